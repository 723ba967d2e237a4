//! The command line of `preview vm`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(crate) enum Vm {
    /// Make a Debian or Ubuntu server ready for previews; a second run changes nothing
    #[command(after_help = SETUP)]
    Setup(Box<Setup>),
    /// Take the one VM of a project at a cloud provider, or make it
    #[command(after_help = PROVISION)]
    Provision(Box<Provision>),
}

const SETUP: &str = "\
Steps, in their order (--only and --skip take these names):
  docker-config  /etc/docker/daemon.json: logs with an end, addresses for about 1000 networks; other keys stay
  docker         Docker Engine; one that is there is kept. Compose is not needed on the VM
  user           the deploy user with its keys, in the group docker
  directories    /opt/previews, /opt/preview-proxy
  sshd           MaxSessions 64, MaxStartups 100:30:200
  firewall       sshd's port, 80 and 443 only; holds for ports that Docker publishes too
  swap           a swap file, vm.swappiness=1
  node-exporter  on 127.0.0.1:9100, with a directory for the numbers of `[metrics] file`
  alerts         disk, memory and load to a chat; a ping for an uptime monitor (with --webhook-env or --uptime-url-env)
  updates        security updates by themselves (with --security-updates)
  proxy          Traefik behind a read-only Docker socket; nginx and Caddy are yours to run (--proxy none, docs/proxies.md)
  certificate    waits until the first certificate is issued (with --acme-dns), and tells why it is not

Examples:
  preview vm setup --host ssh://root@203.0.113.7 --deploy-key deploy.pub --dry-run
  preview vm setup --host ssh://root@203.0.113.7 --deploy-key deploy.pub --domain preview.example.com \\
      --acme-email ops@example.com --acme-dns cloudflare --acme-env CF_DNS_API_TOKEN
  preview vm setup --print cloud-init --deploy-key deploy.pub > user-data.yml

The user of --host is root, or may use sudo without a password. Host keys are checked as by every other command.
Exit codes: 0 as wanted (or, with --dry-run, looked at), 2 not for this machine, 4 a step failed, 6 not reached or no rights.";

#[derive(Args, Debug, Default)]
pub(crate) struct Setup {
    /// Show what would be done, and change nothing
    #[arg(long, conflicts_with = "print")]
    pub(crate) dry_run: bool,
    /// Print it for a new server instead, in this form; touches no machine
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) print: Option<Form>,
    /// Only this step; may be repeated
    #[arg(long, value_name = "STEP", value_parser = step())]
    pub(crate) only: Vec<String>,
    /// Not this step; may be repeated
    #[arg(long, value_name = "STEP", value_parser = step())]
    pub(crate) skip: Vec<String>,
    #[command(flatten)]
    pub(crate) machine: Machine,
}

fn step() -> clap::builder::PossibleValuesParser {
    preview_core::setup::IDS.into()
}

/// What a machine is to become.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Machine {
    /// The user that runs log in as
    #[arg(long, value_name = "NAME", default_value = "deploy")]
    pub(crate) user: String,
    /// A file with the public key of that user; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) deploy_key: Vec<PathBuf>,
    /// Where an engine comes from, if there is none
    #[arg(long, value_enum, value_name = "FROM", default_value = "docker.io")]
    pub(crate) docker: DockerSource,
    /// Addresses for the previews' networks: a network, and the prefix of each part of it
    #[arg(long, value_name = "POOL", default_value = "10.201.0.0/16/26")]
    pub(crate) address_pool: String,
    /// Size of the swap file; less on a small disk
    #[arg(long, value_name = "SIZE", default_value = "4GB")]
    pub(crate) swap: String,
    /// One more port that the firewall leaves open, TCP and UDP; may be repeated
    #[arg(long, value_name = "PORT")]
    pub(crate) open_port: Vec<u16>,
    /// Have sshd refuse passwords
    #[arg(long)]
    pub(crate) refuse_passwords: bool,
    /// Install security updates by themselves
    #[arg(long)]
    pub(crate) security_updates: bool,
    /// The variable with the address of a chat's webhook, which takes {"text": …}
    #[arg(long, value_name = "NAME")]
    pub(crate) webhook_env: Option<String>,
    /// The variable with the address of an uptime monitor, asked for once a minute
    #[arg(long, value_name = "NAME")]
    pub(crate) uptime_url_env: Option<String>,
    #[command(flatten)]
    pub(crate) proxy: Proxy,
}

/// The reverse proxy.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "The proxy")]
pub(crate) struct Proxy {
    /// Which proxy: traefik or none. nginx and Caddy are yours to run: none, and docs/proxies.md
    #[arg(long, value_parser = proxy_kind, value_name = "KIND", default_value = "traefik")]
    pub(crate) proxy: ProxyKind,
    /// The domain that the previews are below, for the wildcard certificate
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) domain: Option<String>,
    /// A certificate with its chain, PEM. Without this and --acme-email, the certificate that is there stays
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with = "acme_email")]
    pub(crate) cert: Option<PathBuf>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// Go back to a certificate that nobody trusts
    #[arg(long, conflicts_with_all = ["cert", "acme_email"])]
    pub(crate) self_signed: bool,
    /// Order a wildcard certificate (ACME, DNS-01); the authority writes to this address
    #[arg(long, value_name = "ADDRESS", requires_all = ["acme_dns", "domain"])]
    pub(crate) acme_email: Option<String>,
    /// The DNS provider, as Traefik calls it: cloudflare, rfc2136, …
    #[arg(long, value_name = "PROVIDER", requires = "acme_email")]
    pub(crate) acme_dns: Option<String>,
    /// A variable that the provider needs, taken from this environment: CF_DNS_API_TOKEN; may be repeated
    #[arg(long, value_name = "NAME", requires = "acme_email")]
    pub(crate) acme_env: Vec<String>,
    /// Another authority than Let's Encrypt
    #[arg(long, value_name = "URL", requires = "acme_email")]
    pub(crate) acme_server: Option<String>,
    /// Certificates by which that authority's server is trusted, PEM
    #[arg(long, value_name = "FILE", requires = "acme_email")]
    pub(crate) acme_ca: Option<PathBuf>,
    /// A name server that is asked whether the record is there, instead of the zone's own, HOST:PORT; may be repeated
    #[arg(long, value_name = "SERVER", requires = "acme_email")]
    pub(crate) acme_resolver: Vec<String>,
    /// Addresses of the network that routed services join, one for each container; a network that is there keeps its own
    #[arg(long, value_name = "NETWORK", default_value = "10.200.0.0/20")]
    pub(crate) proxy_subnet: String,
    /// The variable with the token of a Cloudflare tunnel that leads here
    #[arg(long, value_name = "NAME")]
    pub(crate) tunnel_token_env: Option<String>,
    /// Remove the cloudflared of an earlier --tunnel-token-env; it stays otherwise
    #[arg(long, conflicts_with = "tunnel_token_env")]
    pub(crate) no_tunnel: bool,
    /// Another image: traefik=IMAGE, socket-proxy=IMAGE, status=IMAGE (an nginx), cloudflared=IMAGE; may be repeated
    #[arg(long, value_name = "NAME=IMAGE")]
    pub(crate) image: Vec<String>,
}

/// In which form steps are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// User data for a new server.
    CloudInit,
    /// A script for root.
    Script,
}

/// Where an engine comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DockerSource {
    /// The distribution's package.
    #[default]
    #[value(name = "docker.io")]
    Distribution,
    /// Docker's own repository.
    #[value(name = "docker-ce")]
    DockerCe,
}

fn proxy_kind(word: &str) -> Result<ProxyKind, String> {
    match word {
        "traefik" => Ok(ProxyKind::Traefik),
        "none" => Ok(ProxyKind::None),
        "nginx" | "caddy" => Err(format!(
            "{word} is not set up by this command, only Traefik is: --proxy none leaves the proxy to you, and docs/proxies.md says how {word} is run and told of previews"
        )),
        _ => Err("expected traefik or none".to_owned()),
    }
}

/// Which proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ProxyKind {
    /// Traefik.
    #[default]
    Traefik,
    /// One of yours, or none.
    None,
}

const PROVISION: &str = "\
Exactly one server of the name pattern may be there: it is taken, or made if there is none; two are refused. A new server sets itself up
when it first starts, as `preview vm setup --print cloud-init` would have it, and has a host key that was made here: the line that pins it
is printed. The token of the project comes from HCLOUD_TOKEN.

Examples:
  preview vm provision --provider hetzner --name preview-vm --ssh-key ops --deploy-key deploy.pub
  preview vm provision --provider hetzner --name preview-vm --dry-run";

#[derive(Args, Debug)]
pub(crate) struct Provision {
    /// The cloud provider
    #[arg(long, value_enum, value_name = "PROVIDER")]
    pub(crate) provider: ProviderKind,
    /// Show whether a server would be taken or made, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The name of a new server
    #[arg(long, value_name = "NAME", default_value = "preview-vm")]
    pub(crate) name: String,
    /// Which servers count, `*` stands for anything; the name and whatever begins with it, if not given
    #[arg(long, value_name = "PATTERN")]
    pub(crate) pattern: Option<String>,
    /// Only servers with these labels count, KEY=VALUE or KEY, with commas between; a new server has to have them (--label)
    #[arg(long, value_name = "LABELS", default_value = "")]
    pub(crate) label_selector: String,
    /// The size of a new server, in the provider's word
    #[arg(long, value_name = "TYPE", default_value = "cx33")]
    pub(crate) server_type: String,
    /// Where a new server stands
    #[arg(long, value_name = "PLACE", default_value = "fsn1")]
    pub(crate) location: String,
    /// The system of a new server
    #[arg(long = "system", value_name = "IMAGE", default_value = "debian-12")]
    pub(crate) system: String,
    /// The name of a key at the provider with which root may log in; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) ssh_key: Vec<String>,
    /// A label of a new server, KEY=VALUE; may be repeated
    #[arg(long, value_name = "LABEL")]
    pub(crate) label: Vec<String>,
    /// Another address of the provider's API
    #[arg(long, value_name = "URL", hide = true)]
    pub(crate) api: Option<String>,
    /// Only this step; may be repeated
    #[arg(long, value_name = "STEP", value_parser = step())]
    pub(crate) only: Vec<String>,
    /// Not this step; may be repeated
    #[arg(long, value_name = "STEP", value_parser = step())]
    pub(crate) skip: Vec<String>,
    #[command(flatten)]
    pub(crate) machine: Machine,
}

/// Which cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProviderKind {
    /// Hetzner Cloud.
    Hetzner,
}
