//! The tables of `preview.toml` as they are written. Doc comments here are the descriptions in its JSON Schema.

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bounds::{Guardrails, Isolation, Limits, Metrics, Sweep, Timeouts};
use super::origin::Origin;
use super::values::{HostPath, OneOrMany, VariableName};
use crate::name::{AppName, NameTemplate, UrlTemplate};
use crate::route::Protocol;
use crate::units::{TimeSpan, Ttl};

/// The configuration of `preview`: one file in the repository. Every key has a default; an empty file is valid.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(title = "preview.toml"))]
pub struct ConfigFile {
    /// Name of the application: it keeps repositories that share a VM apart. `[a-z0-9-]`, at most 40 characters. Default: made from
    /// the name of the repository or directory.
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>", extend("pattern" = "^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")))]
    pub app: Option<AppName>,
    /// Compose files, relative to the project's directory; later ones override. Default: the first that exists of `compose.yaml`,
    /// `compose.yml`, `docker-compose.yaml` and `docker-compose.yml`.
    pub compose: Option<OneOrMany<PathBuf>>,
    /// Files with variables for interpolation in the Compose files, relative to the project's directory. Default: none.
    pub env_file: Option<OneOrMany<PathBuf>>,
    /// Compose profiles that are active. Default: none.
    pub profiles: Vec<String>,
    /// Services that are left out of previews, with the volumes, networks, configs and secrets that only they use. Default: none.
    pub exclude: Vec<String>,
    /// When images that are not built are pulled: `missing` (only those that the host does not have) or `always`. Default: `missing`.
    pub pull: Pull,
    /// A sweep removes a preview that was not deployed for so long: `72h`, `7d`, or `never`. Default: `72h`.
    #[cfg_attr(feature = "schema", schemars(with = "Option<Ttl>"))]
    pub ttl: Ttl,
    /// Template for the names of previews, with `{number}` (for pull requests) or `{slug}` (for branches), and `{app}` if wanted. The
    /// kind that it does not fit keeps its default: `pr-{number}` or `preview-{slug}`.
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub name: Option<NameTemplate>,
    /// Template for the public address, with `{name}`, `{number}`, `{slug}`, `{app}` and `{service}` in the host or the path. A list
    /// gives the routes without a `url` of their own theirs, in order. Default: none.
    #[cfg_attr(feature = "schema", schemars(with = "Option<OneOrMany<String>>"))]
    pub url: Option<OneOrMany<UrlTemplate>>,
    /// The machine that holds the previews.
    pub vm: Vm,
    /// The reverse proxy on that machine.
    pub proxy: Proxy,
    /// Who writes DNS records of previews' hosts. Default: nobody; a wildcard record answers.
    #[cfg_attr(feature = "schema", schemars(with = "Option<super::dns::DnsSchema>"))]
    pub dns: toml::Table,
    /// A Cloudflare Tunnel that requests come through, with `[dns] kind = "cloudflare"`. Default: none.
    pub tunnel: Option<super::Tunnel>,
    /// Services that are reachable from outside. Default: the ports that the Compose files publish; behind a
    /// proxy, there may be only one of them.
    pub route: Vec<RouteTable>,
    /// How many previews the VM may hold. What a preview has, an update keeps.
    pub limits: Limits,
    /// When `preview sweep` frees disk on the host.
    pub sweep: Sweep,
    /// Where the numbers of the host are written for its monitoring.
    pub metrics: Metrics,
    /// Limits for every container of a preview; a lower limit in the Compose file stays.
    pub guardrails: Guardrails,
    /// What containers may do less than Docker lets them. Default: all of it is off.
    pub isolation: Isolation,
    /// How long each stage of a run may take.
    pub timeouts: Timeouts,
    /// What the base branch allows to pull requests. Counts only in a file that is given with `--trusted-config`.
    pub policy: Policy,
    /// When a preview counts as ready, and whether its public address has to open.
    pub health: Option<Health>,
    /// Variables of the stack: for interpolation in the Compose files, and for the services in `env_services`. Numbers and booleans stand for
    /// their text. They win over `secrets` and `generate`. Not for secrets.
    #[serde(deserialize_with = "super::values::variables")]
    #[cfg_attr(feature = "schema", schemars(with = "BTreeMap<String, ScalarSchema>", extend("propertyNames" = { "pattern": "^[A-Za-z_][A-Za-z0-9_]*$" })))]
    pub env: BTreeMap<VariableName, String>,
    /// Services that get all variables (`env`, `secrets`, `generate`) into their environment. Default: none; the Compose file decides.
    pub env_services: Vec<String>,
    /// Where secrets come from. Of two that know one name, the later wins; `generate` wins over all of them, and `env` over that.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<SecretsSchema>"))]
    pub secrets: Vec<toml::Table>,
    /// Credentials that are made up once for each preview and kept on the host until it is destroyed, by name of the variable.
    #[cfg_attr(feature = "schema", schemars(with = "BTreeMap<String, Generate>", extend("propertyNames" = { "pattern": "^[A-Za-z_][A-Za-z0-9_]*$" })))]
    pub generate: BTreeMap<VariableName, Generate>,
    /// Commands that run in the preview during a deploy, in order; one that fails fails the deploy.
    pub step: Vec<Step>,
    #[serde(skip)]
    pub(super) origin: Arc<Origin>,
    /// What a trusted file put out of force, for people.
    #[serde(skip)]
    pub(super) overruled: Option<String>,
    /// Nothing is deployed with it.
    #[serde(skip)]
    pub(super) idle: bool,
}

/// When images are pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Pull {
    /// Only what the host does not have.
    #[default]
    Missing,
    /// At every deploy.
    Always,
}

/// The machine that holds the previews.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Vm {
    /// `local`, or `ssh://user@host[:port]`. Default: `local`, the Docker engine of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Directory on the host for the files of previews; absolute. Default: `/opt/previews` over ssh; a directory of the user on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>", extend("pattern" = "^/.")))]
    pub base_dir: Option<HostPath>,
    /// Keys of the host, as lines of a `known_hosts` file (`ssh-keyscan` prints them; compare before you trust). Default: none; over ssh, this or
    /// `known_hosts_file` is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_hosts: Option<String>,
    /// File with the keys of the host; instead of `known_hosts`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_hosts_file: Option<PathBuf>,
    /// File with the private ssh key. Default: what ssh and its agent offer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_file: Option<PathBuf>,
    /// The Docker engine's socket on the host. Default: `/var/run/docker.sock`.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub docker_socket: HostPath,
}

/// The reverse proxy on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Proxy {
    /// `none` (ports are published on the host), `traefik` (labels tell a running Traefik what to route), `nginx` or `caddy` (files are put into the
    /// proxy's container, and it is reloaded). Default: `none`.
    pub kind: ProxyKind,
    /// Docker network that the proxy is in; routed services join it. Default: `preview-proxy`.
    pub network: String,
    /// The proxy's entry point. Default: `websecure` with TLS, else `web`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<String>,
    /// The proxy's certificate resolver. Default: none; the proxy has the certificate already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_resolver: Option<String>,
    /// Whether the proxy itself speaks TLS. Default: as the address says; `false` behind a tunnel that ends TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// nginx, Caddy: the name of the proxy's container. Default: `preview-proxy`.
    pub container: String,
    /// nginx, Caddy: the directory in that container for routes, on a volume; the proxy's own configuration includes `live/*.conf` of it. Default: `/etc/preview/routes`.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub routes_dir: HostPath,
    /// nginx, Caddy: the directory in that container where the status pages are, `.pages` of the base directory. Default: none; there are no status pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>", extend("pattern" = "^/.")))]
    pub pages_dir: Option<HostPath>,
    /// nginx, Caddy: the certificate's file in that container. Default: none; Caddy gets certificates by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>", extend("pattern" = "^/.")))]
    pub certificate: Option<HostPath>,
    /// nginx, Caddy: the certificate's private key in that container. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>", extend("pattern" = "^/.")))]
    pub certificate_key: Option<HostPath>,
    /// Hosts that addresses of previews may have: `{name}.preview.example.com`, with `{name}` for the preview's own name, and `*` for a part of a label.
    /// On a host with neither the path has to begin with the preview's name. Default: any.
    pub domains: Vec<String>,
    /// Entry points that a `[[route]]` of a pull request may name, where this file is the base branch's. Default: none.
    pub route_entrypoints: Vec<String>,
    /// TLS options that a `[[route]]` of a pull request may name, where this file is the base branch's. Default: none.
    pub route_tls_options: Vec<String>,
    /// Who may come in: addresses and networks, `203.0.113.0/24`. Default: everybody.
    pub allow_ips: Vec<String>,
    /// A password that is asked for. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic_auth: Option<BasicAuth>,
    /// Whether search engines are asked to stay away, by the header `X-Robots-Tag`. Default: `true`.
    pub noindex: bool,
}

/// A password that the proxy asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BasicAuth {
    /// The user's name. Default: `preview`.
    #[serde(default = "usual_user")]
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "^[A-Za-z0-9._-]+$")))]
    pub user: String,
    /// The variable that holds the password, from `secrets` or `generate`; at most 72 bytes.
    #[cfg_attr(feature = "schema", schemars(with = "String", regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$")))]
    pub password: VariableName,
}

fn usual_user() -> String {
    "preview".to_owned()
}

/// Kinds of proxies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ProxyKind {
    /// No proxy: ports are published on the host.
    #[default]
    None,
    /// Traefik, by labels.
    Traefik,
    /// nginx, by files.
    Nginx,
    /// Caddy, by files.
    Caddy,
}

/// What happens to a routed service at an update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Update {
    /// Its container is replaced: the old one goes first.
    #[default]
    Recreate,
    /// The new container is healthy before the old one goes. For services that keep nothing of their own.
    Rolling,
}

/// A service that is reachable from outside.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RouteTable {
    /// The Compose service.
    pub service: String,
    /// The port in its container that speaks HTTP.
    pub port: NonZeroU16,
    /// Template for its address, as the `url` at the top. Default: that one.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub url: Option<UrlTemplate>,
    /// Whether the address's path is taken off before the service sees the request. Default: `false`.
    #[serde(default)]
    pub strip_prefix: bool,
    /// What the service speaks: `http` (web sockets included), `h2c` (HTTP/2 without TLS, as gRPC servers do) or `tcp` (anything, behind TLS; the
    /// address begins with `tcp://`). Default: `http`.
    #[serde(default)]
    pub protocol: Protocol,
    /// What happens to the service at an update: `recreate`, or `rolling`, with the new container healthy before the old one goes. Default: `recreate`.
    #[serde(default)]
    pub update: Update,
    /// Traefik: which of two routes wins that fit both; the higher. Default: the one with the longer rule.
    #[serde(default)]
    pub priority: Option<NonZeroU32>,
    /// Traefik: the entry point. Default: that of `[proxy]`.
    #[serde(default)]
    pub entrypoint: Option<String>,
    /// Traefik: the name of TLS options, `postgres@file`. Default: none.
    #[serde(default)]
    pub tls_options: Option<String>,
}

/// What the base branch allows to pull requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Policy {
    /// Whether `preview ci` deploys pull requests of forks. Default: `false`.
    pub forks: bool,
    /// What services may have although it is refused otherwise. Default: nothing.
    pub allow: Vec<Allow>,
}

/// Something that a service may have although it is refused otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Allow {
    /// The Compose service.
    pub service: String,
    /// The key, as the refusal names it after the service: `cap_add`, `volumes`, `build.network`.
    pub key: String,
    /// The values that are allowed, each exactly as it stands in the refusal; for a mount the path on the host. Default: none; keys that are on or off
    /// have no values.
    #[serde(default)]
    pub values: Vec<String>,
}

/// When a preview is ready, and whether its public address has to open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Health {
    /// Path of a request that has to succeed, starting with `/`: any answer from 200 to 399. Default: none is made.
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>", extend("pattern" = "^/")))]
    pub path: Option<String>,
    /// Port in the container. Default: that of the service's route.
    pub port: Option<NonZeroU16>,
    /// The Compose service that is asked. Default: that of the first route.
    pub service: Option<String>,
    /// Behind a proxy, after a deploy: what follows where the public address cannot be opened from the runner. `warn`, `fail` (exit
    /// code 4; the preview stays), or `off` (it is not opened). Default: `warn`.
    pub public: PublicCheck,
}

/// What follows where a public address cannot be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum PublicCheck {
    /// It is told, and the deploy is a success.
    #[default]
    Warn,
    /// The run fails; the preview stays.
    Fail,
    /// Nobody opens it.
    Off,
}

/// How a credential is made up: letters and digits, a letter first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Generate {
    /// Characters, 8 to 128. Default: 24.
    #[cfg_attr(feature = "schema", schemars(range(min = 8, max = 128)))]
    pub length: usize,
}

/// A command that runs in the preview during a deploy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Step {
    /// When it runs: `start`, once all containers are started.
    pub after: After,
    /// The Compose service whose container it runs in.
    pub service: String,
    /// Program and arguments; no shell.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub run: Vec<String>,
    /// How it is called in output. Default: the program and its arguments.
    #[serde(default)]
    pub name: Option<String>,
    /// How long it may take. Default: `timeouts.step`.
    #[serde(default)]
    pub timeout: Option<TimeSpan>,
}

/// When a step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum After {
    /// Once all containers are started, before health is checked.
    Start,
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            host: None,
            base_dir: None,
            known_hosts: None,
            known_hosts_file: None,
            identity_file: None,
            docker_socket: HostPath::docker_socket(),
        }
    }
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            kind: ProxyKind::None,
            network: "preview-proxy".to_owned(),
            entrypoint: None,
            cert_resolver: None,
            tls: None,
            container: "preview-proxy".to_owned(),
            routes_dir: HostPath::proxy_routes(),
            pages_dir: None,
            certificate: None,
            certificate_key: None,
            domains: Vec::new(),
            route_entrypoints: Vec::new(),
            route_tls_options: Vec::new(),
            allow_ips: Vec::new(),
            basic_auth: None,
            noindex: true,
        }
    }
}

impl Default for Generate {
    fn default() -> Self {
        Self { length: 24 }
    }
}

/// What may stand for a variable's value.
#[cfg(feature = "schema")]
#[derive(schemars::JsonSchema)]
#[schemars(inline, untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum ScalarSchema {
    Text(String),
    Number(f64),
    Boolean(bool),
}

/// A source of secrets; further keys are those of its kind.
#[cfg(feature = "schema")]
#[derive(schemars::JsonSchema)]
#[schemars(rename = "Secrets", extend("additionalProperties" = true))]
#[expect(dead_code, reason = "only its schema is used")]
struct SecretsSchema {
    /// The adapter: `env`, the environment of the run.
    kind: String,
}
