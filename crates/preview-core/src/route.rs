//! From services to public addresses: the labels by which a proxy finds the way. Pure renderers; which proxy runs is not known here.

use std::collections::BTreeMap;

/// A way from a public address to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The service.
    pub service: String,
    /// The service's port.
    pub port: u16,
    /// The public address: `https://pr-7.example.com`, `https://example.com/pr-7`.
    pub url: String,
    /// Whether the service sees paths without the prefix.
    pub strip_prefix: bool,
}

/// How Traefik on the host is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traefik {
    /// The network that Traefik and the routed services share.
    pub network: String,
    /// Entry point; without one `websecure` for TLS and `web` for the rest, as most set-ups call them.
    pub entrypoint: Option<String>,
    /// Whether Traefik speaks TLS; without a word, for `https://` addresses. `false`: something in front of it does.
    pub tls: Option<bool>,
    /// Certificate resolver for `https://` addresses; Traefik's default certificate without one.
    pub cert_resolver: Option<String>,
}

/// Labels for the proxy, by service.
pub type RouterLabels = BTreeMap<String, BTreeMap<String, String>>;

/// The parts of a URL that a router looks at.
fn split(url: &str) -> (bool, &str, &str) {
    let (secure, rest) = match url.split_once("://") {
        Some(("https", rest)) => (true, rest),
        Some((_, rest)) => (false, rest),
        None => (false, url),
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    (secure, host, path.trim_end_matches('/'))
}

/// Labels for Traefik v3, by service. Names of routers are global in Traefik, so each holds the project's name.
#[must_use]
pub fn traefik(project: &str, routes: &[Route], proxy: &Traefik) -> RouterLabels {
    let mut labels = RouterLabels::new();
    for (index, route) in routes.iter().enumerate() {
        let (secure, host, path) = split(&route.url);
        let router = format!("{project}-{index}");
        let http = format!("traefik.http.routers.{router}");
        let of_service = labels.entry(route.service.clone()).or_default();
        let mut set = |key: String, value: String| of_service.insert(key, value);
        set("traefik.enable".to_owned(), "true".to_owned());
        set("traefik.docker.network".to_owned(), proxy.network.clone());
        let mut rule = format!("Host(`{host}`)");
        if !path.is_empty() {
            // `PathPrefix` knows no borders: `/pr-7` would also catch `/pr-70`.
            rule = format!("{rule} && (Path(`{path}`) || PathPrefix(`{path}/`))");
        }
        set(format!("{http}.rule"), rule);
        set(format!("{http}.service"), router.clone());
        set(format!("traefik.http.services.{router}.loadbalancer.server.port"), route.port.to_string());
        let secure = proxy.tls.unwrap_or(secure);
        let usual = if secure { "websecure" } else { "web" };
        set(format!("{http}.entrypoints"), proxy.entrypoint.as_deref().unwrap_or(usual).to_owned());
        if secure {
            set(format!("{http}.tls"), "true".to_owned());
            if let Some(resolver) = &proxy.cert_resolver {
                set(format!("{http}.tls.certresolver"), resolver.clone());
            }
        }
        if route.strip_prefix && !path.is_empty() {
            set(format!("traefik.http.middlewares.{router}.stripprefix.prefixes"), path.to_owned());
            set(format!("{http}.middlewares"), router.clone());
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_host_and_by_path() {
        let routes = [
            Route { service: "api".into(), port: 8000, url: "https://example.com/pr-7/".into(), strip_prefix: true },
            Route { service: "ui".into(), port: 80, url: "http://pr-7.example.com".into(), strip_prefix: true },
        ];
        let proxy =
            Traefik { network: "preview-proxy".into(), entrypoint: None, tls: None, cert_resolver: Some("le".into()) };
        insta::assert_json_snapshot!(traefik("shop_pr-7", &routes, &proxy));
    }
}
