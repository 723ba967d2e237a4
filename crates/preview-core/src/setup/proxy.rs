//! Traefik's stack on a machine: containers that are started by plain `docker run`, since the machine has no Compose. Pure.
//!
//! Traefik sees the engine through a proxy of its socket that lets only reading requests through, in a network that leads nowhere.
//! Each container has a script in `run/` that starts it, readable and usable by hand, and a label with the hash of all that it reads when it starts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::{File, PROXY_DIR, Step, sha256};
use crate::proxy::status_server;
use crate::secret::Secret;

/// Where the status pages are in the container that shows them.
const PAGES: &str = "/etc/preview/pages";
/// The network that the proxy shares with routed services.
const NETWORK: &str = "preview-proxy";
/// The network of the proxy and the proxy of its socket.
const SOCKET_NETWORK: &str = "preview-proxy-socket";
/// The certificate resolver's name, for `[proxy] cert_resolver`.
const RESOLVER: &str = "letsencrypt";

/// Where certificates come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// Nowhere: the proxy shows one that nobody trusts.
    #[default]
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
    /// The token of a Cloudflare tunnel that leads here.
    pub tunnel: Option<Secret<String>>,
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
            tunnel: None,
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
            Tls::SelfSigned => Ok(()),
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
            return Err(format!("`{}` is no DNS provider of Traefik's", self.dns));
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

/// All files of the proxy's stack, those with secrets too.
#[must_use]
pub fn proxy_files(wish: &ProxyWish) -> Vec<File> {
    let mut files = vec![
        File::new(path("traefik.yml"), 0o644, static_config(wish)),
        File::new(path("status.conf"), 0o644, status_server(PAGES).trim_end()),
    ];
    match &wish.tls {
        Tls::SelfSigned => {}
        Tls::Files { certificate, key } => {
            let name = certificate_name(certificate);
            files.push(File::new(path(&format!("certs/{name}.crt")), 0o600, certificate.trim()));
            files.push(File::secret(path(&format!("certs/{name}.key")), key.expose().trim()));
        }
        Tls::Acme(acme) => {
            files.push(File::secret(path("acme.env"), variables(acme)));
            if let Some(authority) = &acme.authority {
                files.push(File::new(path("certs/acme-ca.pem"), 0o644, authority.trim()));
            }
        }
    }
    // After what it names: Traefik looks at once, and only once.
    files.push(File::new(path("dynamic/tls.yml"), 0o644, dynamic_config(wish)));
    if let Some(token) = &wish.tunnel {
        files.push(File::secret(path("tunnel.env"), format!("TUNNEL_TOKEN={}", token.expose())));
    }
    let scripts: Vec<File> = containers(wish)
        .iter()
        .map(|container| File::new(path(&format!("run/{}", container.name)), 0o755, run_script(container)))
        .collect();
    files.extend(scripts);
    files
}

/// The step that writes the files and has the containers run.
pub(super) fn step(wish: &ProxyWish) -> Step {
    let files = proxy_files(wish);
    let mut arguments = vec![format!("network {NETWORK}"), format!("network {SOCKET_NETWORK} --internal")];
    for container in containers(wish) {
        let reads = container.reads.iter().cloned().chain([path(&format!("run/{}", container.name))]);
        let all: String =
            reads.filter_map(|path| files.iter().find(|file| file.path == path).map(File::hash)).collect();
        arguments.push(format!("container {} {} {}", container.name, &sha256(&all)[..32], container.image));
    }
    let kept = files.iter().filter_map(|file| file.path.strip_prefix(&path("certs/")).map(|name| format!(" {name}")));
    arguments.push(format!("only {}{}", path("certs"), kept.collect::<String>()));
    let certificate = match &wish.tls {
        Tls::SelfSigned => "with a certificate that nobody trusts",
        Tls::Files { .. } => "with the certificate that was given",
        Tls::Acme(_) => "with a wildcard certificate of its own",
    };
    let tunnel = if wish.tunnel.is_some() { ", and cloudflared" } else { "" };
    Step {
        id: "proxy",
        title: format!("the proxy: Traefik behind a read-only socket, {certificate}{tunnel}"),
        why: "it leads from the previews' addresses to their containers, and knows them by their labels",
        files,
        arguments,
        script: include_str!("scripts/containers.sh"),
        guarded: false,
        limit: Duration::from_secs(600),
    }
}

fn path(name: &str) -> String {
    format!("{PROXY_DIR}/{name}")
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn containers(wish: &ProxyWish) -> Vec<Container> {
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
    if let Tls::Acme(_) = &wish.tls {
        traefik.options.push(format!("--volume={}:/acme", path("acme")));
        traefik.options.push(format!("--env-file={}", path("acme.env")));
        traefik.reads.extend([path("acme.env"), path("certs/acme-ca.pem")]);
    }
    let mut all = vec![socket, traefik, status(wish)];
    if wish.tunnel.is_some() {
        all.push(Container {
            name: "preview-cloudflared",
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
    let list = |words: &[String]| words.iter().map(|word| format!(" {}", quote(word))).collect::<String>();
    let image = quote(image);
    let mut text = format!("#!/bin/sh\n# Makes and starts {name}: {purpose}.\nset -eu\n");
    if *name == "preview-traefik" {
        // The dashboard's port is published on 127.0.0.1 only; containers beside the proxy could reach it all the same.
        let _ = write!(
            text,
            "mkdir -p {dir}/dynamic {dir}/certs {dir}/acme\nchmod 700 {dir}/certs {dir}/acme\n\
             gateway=$(docker network inspect --format '{{{{(index .IPAM.Config 0).Gateway}}}}' {NETWORK})\n\
             cat >{dir}/dynamic/admin.yml <<CONFIG\n{ADMIN}CONFIG\n",
            dir = PROXY_DIR
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

/// The dashboard and the API, for this machine alone: what comes through the published port comes from the network's gateway.
/// It stands in a here document in which `$gateway` counts.
const ADMIN: &str = "\
http:
  routers:
    admin:
      entryPoints: [admin]
      rule: PathPrefix(\\`/api\\`) || PathPrefix(\\`/dashboard\\`)
      service: api@internal
      middlewares: [this-machine]
  middlewares:
    this-machine:
      ipAllowList:
        sourceRange: [\"$gateway/32\"]
";

fn static_config(wish: &ProxyWish) -> String {
    let mut text = format!(
        "\
# Read by Traefik when it starts.
global:
  checkNewVersion: false
  sendAnonymousUsage: false
log:
  level: INFO
entryPoints:
  web:
    address: \":80\"
    http:
      redirections:
        entryPoint:
          to: websecure
          scheme: https
  # Uploads and streams of clients take their time; Traefik's own 60 s count for the whole of a request.
  websecure:
    address: \":443\"
    transport: {{respondingTimeouts: {{readTimeout: 1h}}}}
    http:
      tls: {{}}
  # For a tunnel that ends TLS before it gets here; published nowhere, and nothing is led to HTTPS, which would lead here again.
  # Nobody gets there but who is in the network, so what the tunnel says of its clients is believed.
  tunnel:
    address: \":8081\"
    forwardedHeaders:
      insecure: true
    transport: {{respondingTimeouts: {{readTimeout: 1h}}}}
  admin:
    address: \":8080\"
api:
  dashboard: true
ping:
  entryPoint: admin
# A container on the same machine is reached at once or not at all; one that has just gone is not waited for.
serversTransport:
  forwardingTimeouts:
    dialTimeout: 500ms
providers:
  providersThrottleDuration: 250ms
  docker:
    endpoint: tcp://preview-socket-proxy:2375
    exposedByDefault: false
    network: {NETWORK}
  file:
    directory: /etc/traefik/dynamic
    watch: true
"
    );
    if let Tls::Acme(acme) = &wish.tls {
        let _ = write!(
            text,
            "certificatesResolvers:\n  {RESOLVER}:\n    acme:\n      email: {}\n      storage: /acme/acme.json\n",
            yaml(&acme.email)
        );
        if let Some(server) = &acme.server {
            let _ = writeln!(text, "      caServer: {}", yaml(server));
        }
        let _ = write!(text, "      dnsChallenge:\n        provider: {}\n", yaml(&acme.dns));
        if !acme.resolvers.is_empty() {
            let list: Vec<String> = acme.resolvers.iter().map(|resolver| yaml(resolver)).collect();
            // These instead of the zone's own, which may be out of reach from here, or on another port.
            let _ = write!(
                text,
                "        resolvers: [{}]\n        propagation:\n          disableANSChecks: true\n          requireAllRNS: true\n",
                list.join(", ")
            );
        }
    }
    text
}

fn dynamic_config(wish: &ProxyWish) -> String {
    let mut text = "\
# Read by Traefik whenever it changes.
tls:
  options:
    # libpq 17 and later name the protocol, and Traefik's own list lacks it.
    postgres:
      alpnProtocols: [postgresql, h2, http/1.1, acme-tls/1]
"
    .to_owned();
    match (&wish.tls, &wish.domain) {
        (Tls::Files { certificate, .. }, _) => {
            let name = certificate_name(certificate);
            let _ = write!(
                text,
                "  stores:\n    default:\n      defaultCertificate:\n        certFile: /etc/traefik/certs/{name}.crt\n        keyFile: /etc/traefik/certs/{name}.key\n"
            );
        }
        (Tls::Acme(_), Some(domain)) => {
            let _ = write!(
                text,
                "  stores:\n    default:\n      defaultGeneratedCert:\n        resolver: {RESOLVER}\n        domain:\n          main: {}\n          sans: [{}]\n",
                yaml(&format!("*.{domain}")),
                yaml(domain)
            );
        }
        _ => {}
    }
    text
}

/// Another certificate has another name: Traefik watches its configuration, and not what that names.
fn certificate_name(certificate: &str) -> String {
    sha256(certificate)[..16].to_owned()
}

/// Variables as Docker's files of variables hold them.
fn variables(acme: &Acme) -> String {
    let mut text = String::new();
    for (name, value) in &acme.environment {
        let _ = writeln!(text, "{name}={}", value.expose());
    }
    if acme.authority.is_some() {
        text.push_str("LEGO_CA_CERTIFICATES=/etc/traefik/certs/acme-ca.pem\n");
    }
    text
}

/// A text in YAML: a string of JSON is one.
fn yaml(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
