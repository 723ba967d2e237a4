//! Traefik's stack on a machine: containers that are started by plain `docker run`, since the machine has no Compose. Pure.
//!
//! Traefik sees the engine through a proxy of its socket that lets only reading requests through, in a network that leads nowhere.
//! Each container has a script in `run/` that starts it, readable and usable by hand, and a label with the hash of all that it reads when it starts.

mod config;
mod kept;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

pub use kept::Present;
pub(super) use kept::{Kept, find};

use super::providers::PROVIDERS;
use super::{Facts, File, PROXY_DIR, Step, sha256};
use crate::config::suggestion;
use crate::engine::pools::Subnet;
use crate::proxy::status_server;
use crate::secret::Secret;

/// Where the status pages are in the container that shows them.
const PAGES: &str = "/etc/preview/pages";
/// The network that the proxy shares with routed services.
const NETWORK: &str = "preview-proxy";
/// The network of the proxy and the proxy of its socket.
const SOCKET_NETWORK: &str = "preview-proxy-socket";
/// The container of the tunnel.
const CLOUDFLARED: &str = "preview-cloudflared";
/// The certificate resolver's name, for `[proxy] cert_resolver`.
const RESOLVER: &str = "letsencrypt";

/// Where certificates come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// Whatever the machine has stays; a new one shows one that nobody trusts.
    #[default]
    Keep,
    /// Nowhere: the proxy shows one that nobody trusts.
    SelfSigned,
    /// Files that are given.
    Files {
        /// The certificate with its chain, PEM.
        certificate: String,
        /// Its private key, PEM.
        key: Secret<String>,
    },
    /// An ACME server, which is shown by DNS records that the domain is ours; so it may be a wildcard.
    Acme(Acme),
}

/// How certificates are ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// Whom the authority writes to.
    pub email: String,
    /// The DNS provider, as Traefik calls it: `cloudflare`, `rfc2136`, …
    pub dns: String,
    /// What the provider needs, as variables.
    pub environment: BTreeMap<String, Secret<String>>,
    /// Another authority than Let's Encrypt.
    pub server: Option<String>,
    /// Certificates that make this authority's own server trusted, PEM.
    pub authority: Option<String>,
    /// Name servers that are asked whether the record is there, `host:port`.
    pub resolvers: Vec<String>,
}

/// The way in through a Cloudflare tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tunnel {
    /// Whatever the machine has stays.
    #[default]
    Keep,
    /// It leads here; its token.
    Here(Secret<String>),
    /// There is to be none.
    Remove,
}

/// What is wanted of the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyWish {
    /// Image of Traefik v3.
    pub image: String,
    /// Image of the proxy of the engine's socket.
    pub socket_proxy_image: String,
    /// Image of cloudflared.
    pub cloudflared_image: String,
    /// Image of nginx, which shows the status pages.
    pub status_image: String,
    /// The directory of the status pages: `.pages` of the base directory.
    pub pages: String,
    /// Previews are below this domain; for the wildcard certificate.
    pub domain: Option<String>,
    /// Certificates.
    pub tls: Tls,
    /// Addresses of the network that routed services join: one for each container.
    pub subnet: Subnet,
    /// The way in through a tunnel.
    pub tunnel: Tunnel,
}

impl Default for ProxyWish {
    fn default() -> Self {
        Self {
            image: "traefik:v3.7.9".to_owned(),
            socket_proxy_image: "tecnativa/docker-socket-proxy:v0.4.2".to_owned(),
            cloudflared_image: "cloudflare/cloudflared:2026.9.1".to_owned(),
            status_image: "nginx:1.28-alpine".to_owned(),
            pages: "/opt/previews/.pages".to_owned(),
            domain: None,
            tls: Tls::default(),
            // Beside the pool of [`Wish`](super::Wish); room for 4093.
            subnet: Subnet::new([10, 200, 0, 0], 20),
            tunnel: Tunnel::default(),
        }
    }
}

impl ProxyWish {
    pub(super) fn check(&self) -> Result<(), String> {
        let reference = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
        for image in [&self.image, &self.socket_proxy_image, &self.cloudflared_image, &self.status_image] {
            if image.is_empty() || image.starts_with('-') || !image.chars().all(reference) {
                return Err(format!("`{image}` is no image"));
            }
        }
        if let Some(domain) = &self.domain {
            let label = |label: &str| {
                !label.is_empty()
                    && label.len() <= 63
                    && !label.starts_with('-')
                    && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            };
            if !domain.split('.').all(label) {
                return Err(format!("`{domain}` is no domain such as preview.example.com"));
            }
        }
        match &self.tls {
            Tls::Keep | Tls::SelfSigned => Ok(()),
            Tls::Files { certificate, key } => {
                if !certificate.contains("-----BEGIN CERTIFICATE-----") {
                    return Err("the certificate is not in PEM form".to_owned());
                }
                if !key.expose().contains("PRIVATE KEY-----") {
                    return Err("the certificate's key is not in PEM form".to_owned());
                }
                Ok(())
            }
            Tls::Acme(acme) => acme.check(self.domain.as_deref()),
        }
    }
}

impl Acme {
    fn check(&self, domain: Option<&str>) -> Result<(), String> {
        if domain.is_none() {
            return Err("a certificate is ordered for a domain: say which with --domain".to_owned());
        }
        if !self.email.contains('@') || self.email.contains(|c: char| c.is_control() || c == ' ') {
            return Err(format!("`{}` is no e-mail address", self.email));
        }
        if self.dns.is_empty() || !self.dns.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
            return Err(format!("--acme-dns: `{}` is no DNS provider of Traefik's", self.dns));
        }
        if !PROVIDERS.contains(&self.dns.as_str()) {
            let help = suggestion(&self.dns, &PROVIDERS);
            return Err(format!("--acme-dns: Traefik knows no DNS provider `{}`; {help}", self.dns));
        }
        for (name, value) in &self.environment {
            if value.expose().contains(['\n', '\r']) {
                return Err(format!("{name} has more than one line, which Docker's files of variables cannot hold"));
            }
        }
        Ok(())
    }
}

/// One container: how it is made, and what it reads when it starts.
struct Container {
    name: &'static str,
    purpose: &'static str,
    image: String,
    /// The network it is made in.
    network: &'static str,
    /// One more.
    also: Option<&'static str>,
    options: Vec<String>,
    command: Vec<String>,
    /// A file with variables, and others that it reads once: paths.
    reads: Vec<String>,
}

/// All files of the proxy's stack that are written, those with secrets too.
pub(super) fn proxy_files(wish: &ProxyWish, kept: Option<&Kept>) -> Vec<File> {
    let mut files = vec![
        File::new(path("traefik.yml"), 0o644, config::static_config(wish, kept)),
        File::new(path("status.conf"), 0o644, status_server(PAGES).trim_end()),
    ];
    match &wish.tls {
        Tls::Keep | Tls::SelfSigned => {}
        Tls::Files { certificate, key } => {
            let name = config::certificate_name(certificate);
            files.push(File::new(path(&format!("certs/{name}.crt")), 0o600, certificate.trim()));
            files.push(File::secret(path(&format!("certs/{name}.key")), key.expose().trim()));
        }
        Tls::Acme(acme) => {
            files.push(File::secret(path("acme.env"), config::variables(acme)));
            if let Some(authority) = &acme.authority {
                files.push(File::new(path("certs/acme-ca.pem"), 0o644, authority.trim()));
            }
        }
    }
    // After what it names: Traefik looks at once, and only once.
    files.push(File::new(path("dynamic/tls.yml"), 0o644, config::dynamic_config(wish, kept)));
    if let Tunnel::Here(token) = &wish.tunnel {
        files.push(File::secret(path("tunnel.env"), format!("TUNNEL_TOKEN={}", token.expose())));
    }
    let scripts: Vec<File> = containers(wish, kept)
        .iter()
        .map(|container| File::new(path(&format!("run/{}", container.name)), 0o755, run_script(container)))
        .collect();
    files.extend(scripts);
    files
}

/// The step that writes the files and has the containers run.
///
/// # Errors
/// If the certificate that is to stay is not all there.
pub(super) fn step(wish: &ProxyWish, facts: &Facts) -> Result<Step, String> {
    let kept = if wish.tls == Tls::Keep { find(&facts.proxy, wish.domain.as_deref())? } else { None };
    let mut files = proxy_files(wish, kept.as_ref());
    let after_engine = include_str!("files/docker-proxy.conf");
    files.push(File::new("/etc/systemd/system/docker.service.d/preview-proxy.conf", 0o644, after_engine));
    let hash = |path: &String| {
        let written = files.iter().find(|file| file.path == *path).map(File::hash);
        written.or_else(|| kept.as_ref()?.files.get(path).cloned())
    };
    let mut arguments = vec![
        format!("network {NETWORK} --subnet {} --gateway {}", wish.subnet, wish.subnet.first()),
        format!("network {SOCKET_NETWORK} --internal"),
    ];
    if kept.is_none() && wish.tls == Tls::Keep {
        // It may have one by the time that this runs: printed, or while somebody else sets it up.
        arguments.insert(0, format!("unknown {}", path("dynamic/tls.yml")));
    }
    for container in containers(wish, kept.as_ref()) {
        let reads = container.reads.iter().cloned().chain([path(&format!("run/{}", container.name))]);
        let all: String = reads.filter_map(|path| hash(&path)).collect();
        arguments.push(format!("container {} {} {}", container.name, &sha256(&all)[..32], container.image));
    }
    let paths = files.iter().map(|file| &file.path).chain(kept.iter().flat_map(|kept| kept.files.keys()));
    let certificates = path("certs/");
    let names = paths.filter_map(|path| path.strip_prefix(&certificates).map(|name| format!(" {name}")));
    arguments.push(format!("only {}{}", path("certs"), names.collect::<String>()));
    if !ordered(wish, kept.as_ref()) {
        arguments.push(format!("unused {}", path("acme.env")));
    }
    let [run, token] = [path(&format!("run/{CLOUDFLARED}")), path("tunnel.env")];
    let tunnel = match &wish.tunnel {
        Tunnel::Here(_) => ", and cloudflared",
        Tunnel::Keep => {
            arguments.push(format!("stays {CLOUDFLARED} --no-tunnel {token}"));
            ""
        }
        Tunnel::Remove => {
            arguments.extend([format!("gone {CLOUDFLARED}"), format!("unused {token}"), format!("unused {run}")]);
            ", and no cloudflared"
        }
    };
    let certificate = match (&wish.tls, &kept) {
        (_, Some(kept)) if kept.ordered() => "keeping the wildcard certificate of its own",
        (_, Some(_)) => "keeping the certificate that was given before",
        (Tls::Keep | Tls::SelfSigned, None) => "with a certificate that nobody trusts",
        (Tls::Files { .. }, None) => "with the certificate that was given",
        (Tls::Acme(_), None) => "with a wildcard certificate of its own",
    };
    Ok(Step {
        id: "proxy",
        title: format!("the proxy: Traefik behind a read-only socket, {certificate}{tunnel}"),
        why: "it leads from the previews' addresses to their containers, and knows them by their labels",
        files,
        arguments,
        script: include_str!("scripts/containers.sh"),
        guarded: false,
        limit: Duration::from_secs(600),
    })
}

/// Waits for the first certificate, if one is ordered by this wish.
pub(super) fn certificate_step(wish: &ProxyWish) -> Option<Step> {
    let (Tls::Acme(acme), Some(domain)) = (&wish.tls, &wish.domain) else { return None };
    Some(Step {
        id: "certificate",
        title: format!("the certificate of *.{domain}, by {}", acme.dns),
        why: "until it is issued, browsers warn of every preview; a token without its rights shows here",
        files: Vec::new(),
        arguments: vec![domain.clone()],
        script: include_str!("scripts/certificate.sh"),
        guarded: false,
        limit: Duration::from_secs(300),
    })
}

/// Whether Traefik orders certificates.
fn ordered(wish: &ProxyWish, kept: Option<&Kept>) -> bool {
    matches!(wish.tls, Tls::Acme(_)) || kept.is_some_and(Kept::ordered)
}

fn path(name: &str) -> String {
    format!("{PROXY_DIR}/{name}")
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn containers(wish: &ProxyWish, kept: Option<&Kept>) -> Vec<Container> {
    // `CONTAINERS=1`, and by default events, ping and version; whatever changes something is refused.
    let socket = Container {
        name: "preview-socket-proxy",
        purpose: "the engine's socket, for reading only",
        image: wish.socket_proxy_image.clone(),
        network: SOCKET_NETWORK,
        also: None,
        options: words(&[
            "--env=CONTAINERS=1",
            "--env=NETWORKS=1",
            "--env=POST=0",
            "--volume=/var/run/docker.sock:/var/run/docker.sock:ro",
            "--memory=128m",
        ]),
        command: vec![],
        reads: vec![],
    };
    let mut traefik = Container {
        name: "preview-traefik",
        purpose: "the reverse proxy",
        image: wish.image.clone(),
        network: NETWORK,
        also: Some(SOCKET_NETWORK),
        options: words(&["--publish=80:80", "--publish=443:443", "--publish=127.0.0.1:8080:8080", "--read-only"]),
        command: words(&["--configFile=/etc/traefik/traefik.yml"]),
        reads: vec![path("traefik.yml")],
    };
    traefik.options.extend(words(&["--cap-drop=ALL", "--cap-add=NET_BIND_SERVICE", "--memory=512m"]));
    traefik.options.extend([
        format!("--volume={}:/etc/traefik/traefik.yml:ro", path("traefik.yml")),
        format!("--volume={}:/etc/traefik/dynamic:ro", path("dynamic")),
        format!("--volume={}:/etc/traefik/certs:ro", path("certs")),
    ]);
    if ordered(wish, kept) {
        traefik.options.push(format!("--volume={}:/acme", path("acme")));
        traefik.options.push(format!("--env-file={}", path("acme.env")));
        traefik.reads.extend([path("acme.env"), path("certs/acme-ca.pem")]);
    }
    let mut all = vec![socket, traefik, status(wish)];
    if let Tunnel::Here(_) = &wish.tunnel {
        all.push(Container {
            name: CLOUDFLARED,
            purpose: "the tunnel from Cloudflare to the proxy",
            image: wish.cloudflared_image.clone(),
            network: NETWORK,
            also: None,
            options: vec![
                format!("--env-file={}", path("tunnel.env")),
                "--read-only".to_owned(),
                "--cap-drop=ALL".to_owned(),
                "--memory=256m".to_owned(),
            ],
            command: words(&["tunnel", "--no-autoupdate", "run"]),
            reads: vec![path("tunnel.env")],
        });
    }
    all
}

/// Shows the status pages behind the router that fits everything and comes last.
fn status(wish: &ProxyWish) -> Container {
    let labels = [
        "traefik.enable=true",
        "traefik.http.routers.preview-status.rule=HostRegexp(`.+`)",
        "traefik.http.routers.preview-status.priority=1",
        "traefik.http.routers.preview-status.entrypoints=websecure,tunnel",
        "traefik.http.services.preview-status.loadbalancer.server.port=80",
    ];
    let mut options: Vec<String> = labels.iter().map(|label| format!("--label={label}")).collect();
    options.extend([
        format!("--volume={}:/etc/nginx/nginx.conf:ro", path("status.conf")),
        format!("--volume={}:{PAGES}:ro", wish.pages),
    ]);
    options.extend(words(&["--read-only", "--tmpfs=/run", "--tmpfs=/var/cache/nginx", "--tmpfs=/var/lib/nginx"]));
    options.push("--memory=64m".to_owned());
    Container {
        name: "preview-status",
        purpose: "the pages for previews that do not answer",
        image: wish.status_image.clone(),
        network: NETWORK,
        also: None,
        options,
        command: vec![],
        reads: vec![path("status.conf")],
    }
}

/// The script that makes and starts a container; its argument is the hash that the label gets.
fn run_script(container: &Container) -> String {
    use crate::host::quote;
    let Container { name, purpose, image, network, also, options, command, .. } = container;
    let word = |word: &String| match word.strip_prefix("--publish=") {
        Some(ports) if !ports.contains('.') => format!(" --publish=\"$on\"{ports}"),
        _ => format!(" {}", quote(word)),
    };
    let list = |words: &[String]| words.iter().map(word).collect::<String>();
    let image = quote(image);
    let mut text = format!("#!/bin/sh\n# Makes and starts {name}: {purpose}.\nset -eu\n");
    if *name == "preview-traefik" {
        // Where the network has no IPv6, Docker would let such visitors in with the gateway's address: lists of addresses could not tell them apart.
        // The dashboard's port is published on 127.0.0.1 only; containers beside the proxy could reach it all the same.
        let _ = write!(
            text,
            "mkdir -p {dir}/dynamic {dir}/certs {dir}/acme\nchmod 700 {dir}/certs {dir}/acme\n\
             on=0.0.0.0:\n[ \"$(docker network inspect --format '{{{{.EnableIPv6}}}}' {NETWORK})\" != true ] || on=\n\
             gateway=$(docker network inspect --format '{{{{(index .IPAM.Config 0).Gateway}}}}' {NETWORK})\n\
             cat >{dir}/dynamic/admin.yml <<CONFIG\n{admin}CONFIG\n",
            dir = PROXY_DIR,
            admin = config::ADMIN
        );
    }
    let _ = write!(
        text,
        "docker image inspect {image} >/dev/null 2>&1 || docker pull -q {image}\n\
         docker create --name {name} --restart always --network {network} \\\n  \
         --label preview.setup=proxy --label \"preview.setup.hash=${{1:-}}\" \\\n  \
         --security-opt no-new-privileges{}{} {image}{}\n",
        if options.is_empty() { "" } else { " \\\n " },
        list(options),
        list(command)
    );
    if let Some(also) = also {
        let _ = writeln!(text, "docker network connect {also} {name}");
    }
    let _ = writeln!(text, "docker start {name}");
    text
}
