//! A way from a public address to a service, whatever proxy leads there.

use std::collections::BTreeMap;

/// What a service speaks behind the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Protocol {
    /// HTTP/1.1, web sockets included.
    #[default]
    Http,
    /// HTTP/2 without TLS, as gRPC servers speak it.
    H2c,
    /// Anything over TCP; the proxy ends TLS and finds the way by the name that the client asks for (SNI).
    Tcp,
}

/// A way from a public address to a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The service.
    pub service: String,
    /// The service's port.
    pub port: u16,
    /// The public address: `https://pr-7.example.com`, `https://example.com/pr-7`, `tcp://pr-7-db.example.com`.
    pub url: String,
    /// Whether the service sees paths without the prefix.
    pub strip_prefix: bool,
    /// What the service speaks.
    pub protocol: Protocol,
    /// Traefik alone: which of two routers wins that both fit. Without it, the one with the longer rule.
    pub priority: Option<u32>,
    /// Traefik alone: the entry point, where it is not the usual one.
    pub entrypoint: Option<String>,
    /// Traefik alone: the name of TLS options, `postgres@file`.
    pub tls_options: Option<String>,
}

/// Who may come in, and whether search engines may remember it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// A user, and the bcrypt hash of the password.
    pub basic_auth: Option<(String, String)>,
    /// Addresses and networks that may come in (`203.0.113.0/24`); empty: all.
    pub allow_ips: Vec<String>,
    /// Whether search engines are asked to stay away.
    pub noindex: bool,
}

impl Default for Access {
    fn default() -> Self {
        Self { basic_auth: None, allow_ips: Vec::new(), noindex: true }
    }
}

/// How often each service was replaced beside its old containers, by service; those that are not replaced so are not named.
pub type Generations = BTreeMap<String, u32>;

/// Labels for the proxy by routed service; there may be none.
pub type RoutedServices = BTreeMap<String, BTreeMap<String, String>>;

/// What the names end with by which services are known to the proxy's resolver.
pub const OWN: &str = ".preview";

/// A service's name on the proxy's network, which no other preview's service has.
#[must_use]
pub fn own_name(app: &str, preview: &str, service: &str) -> String {
    format!("{service}.{preview}.{app}{OWN}")
}

/// The parts of an address that a proxy looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    /// Whether the address begins with `https`.
    pub secure: bool,
    /// The host, without the port.
    pub host: &'a str,
    /// The path without a slash at its end; empty for all of the host.
    pub path: &'a str,
}

/// Takes an address apart.
#[must_use]
pub fn parts(url: &str) -> Parts<'_> {
    let (secure, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (scheme == "https", rest),
        None => (false, url),
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    Parts { secure, host, path: path.trim_end_matches('/') }
}
