//! What Traefik reads: its configuration, that of certificates, and the variables of a DNS provider. Pure.

use std::fmt::Write as _;

use super::kept::Kept;
use super::{Acme, NETWORK, ProxyWish, RESOLVER, Tls};
use crate::setup::sha256;

/// The dashboard and the API, for this machine alone: what comes through the published port comes from the network's gateway.
/// It stands in a here document in which `$gateway` counts.
pub(super) const ADMIN: &str = include_str!("../files/proxy-admin.yml");

pub(super) fn static_config(wish: &ProxyWish, kept: Option<&Kept>) -> String {
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
    // Last, since what is kept of an earlier file goes on to its end.
    if let Some(kept) = kept {
        text.push_str(&kept.issuers);
    } else if let Tls::Acme(acme) = &wish.tls {
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

pub(super) fn dynamic_config(wish: &ProxyWish, kept: Option<&Kept>) -> String {
    let mut text = "\
# Read by Traefik whenever it changes.
tls:
  options:
    # libpq 17 and later name the protocol, and Traefik's own list lacks it.
    postgres:
      alpnProtocols: [postgresql, h2, http/1.1, acme-tls/1]
"
    .to_owned();
    // Last, as above.
    if let Some(kept) = kept {
        return text + &kept.stores;
    }
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
pub(super) fn certificate_name(certificate: &str) -> String {
    sha256(certificate)[..16].to_owned()
}

/// Variables as Docker's files of variables hold them.
pub(super) fn variables(acme: &Acme) -> String {
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
pub(super) fn yaml(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
