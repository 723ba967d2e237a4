//! Labels for Traefik v3. Format: <https://doc.traefik.io/traefik/reference/routing-configuration/other-providers/docker/>.

use std::collections::BTreeMap;

use crate::route::{Access, Protocol, Route, RoutedServices, parts};

/// Requests that find no server are tried so often: while a container is replaced there are two, and one may be gone before Traefik knows. With
/// many requests at once, one may meet the same again and again.
const ATTEMPTS: u32 = 8;

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

impl Traefik {
    /// Labels by service. Names of routers are global in Traefik, so each holds the project's name.
    pub(super) fn services(&self, project: &str, routes: &[Route], access: &Access) -> RoutedServices {
        let mut services = RoutedServices::new();
        for (index, route) in routes.iter().enumerate() {
            let labels = &mut services.entry(route.service.clone()).or_default();
            labels.insert("traefik.enable".to_owned(), "true".to_owned());
            labels.insert("traefik.docker.network".to_owned(), self.network.clone());
            let router = format!("{project}-{index}");
            if route.protocol == Protocol::Tcp {
                self.tcp(labels, &router, route, access);
            } else {
                self.http(labels, &router, project, route, access);
            }
        }
        services
    }

    fn http(&self, labels: &mut BTreeMap<String, String>, router: &str, project: &str, route: &Route, access: &Access) {
        let at = parts(&route.url);
        let http = format!("traefik.http.routers.{router}");
        let mut set = |key: String, value: String| labels.insert(key, value);
        let mut rule = format!("Host(`{}`)", at.host);
        if !at.path.is_empty() {
            // `PathPrefix` knows no borders: `/pr-7` would also catch `/pr-70`.
            rule = format!("{rule} && (Path(`{0}`) || PathPrefix(`{0}/`))", at.path);
        }
        set(format!("{http}.rule"), rule);
        set(format!("{http}.service"), router.to_owned());
        let server = format!("traefik.http.services.{router}.loadbalancer.server");
        set(format!("{server}.port"), route.port.to_string());
        if route.protocol == Protocol::H2c {
            set(format!("{server}.scheme"), "h2c".to_owned());
        }
        if let Some(priority) = route.priority {
            set(format!("{http}.priority"), priority.to_string());
        }
        let secure = self.tls.unwrap_or(at.secure);
        let usual = if secure { "websecure" } else { "web" };
        let entrypoint = route.entrypoint.as_deref().or(self.entrypoint.as_deref()).unwrap_or(usual);
        set(format!("{http}.entrypoints"), entrypoint.to_owned());
        if secure {
            self.tls(&mut set, &http, route);
        }

        let mut chain = Vec::new();
        let mut middleware = |name: String, setting: &str, value: String| {
            set(format!("traefik.http.middlewares.{name}.{setting}"), value);
            chain.push(name);
        };
        // In the order in which a request meets them: who may not come in learns nothing else.
        if !access.allow_ips.is_empty() {
            middleware(format!("{project}-allow"), "ipallowlist.sourcerange", access.allow_ips.join(","));
        }
        if let Some((user, hash)) = &access.basic_auth {
            let name = format!("{project}-auth");
            middleware(name.clone(), "basicauth.users", format!("{user}:{hash}"));
            // The application may have logins of its own, and gets no password that is not for it.
            set(format!("traefik.http.middlewares.{name}.basicauth.removeheader"), "true".to_owned());
        }
        let mut middleware = |name: String, setting: &str, value: String| {
            set(format!("traefik.http.middlewares.{name}.{setting}"), value);
            chain.push(name);
        };
        if access.noindex {
            let header = "headers.customresponseheaders.X-Robots-Tag";
            middleware(format!("{project}-noindex"), header, "noindex, nofollow".to_owned());
        }
        if route.strip_prefix && !at.path.is_empty() {
            middleware(format!("{router}-strip"), "stripprefix.prefixes", at.path.to_owned());
        }
        if at.secure && !secure {
            // TLS ended before the request got here, and Traefik tells what it sees itself.
            let header = "headers.customrequestheaders.X-Forwarded-Proto";
            middleware(format!("{project}-https"), header, "https".to_owned());
        }
        middleware(format!("{project}-retry"), "retry.attempts", ATTEMPTS.to_string());
        set(format!("{http}.middlewares"), chain.join(","));
    }

    fn tcp(&self, labels: &mut BTreeMap<String, String>, router: &str, route: &Route, access: &Access) {
        let tcp = format!("traefik.tcp.routers.{router}");
        let mut set = |key: String, value: String| labels.insert(key, value);
        set(format!("{tcp}.rule"), format!("HostSNI(`{}`)", parts(&route.url).host));
        set(format!("{tcp}.service"), router.to_owned());
        let entrypoint = route.entrypoint.as_deref().or(self.entrypoint.as_deref()).unwrap_or("websecure");
        set(format!("{tcp}.entrypoints"), entrypoint.to_owned());
        set(format!("traefik.tcp.services.{router}.loadbalancer.server.port"), route.port.to_string());
        if let Some(priority) = route.priority {
            set(format!("{tcp}.priority"), priority.to_string());
        }
        // Without TLS there is no name by which previews could be told apart.
        self.tls(&mut set, &tcp, route);
        if !access.allow_ips.is_empty() {
            let name = format!("{router}-allow");
            set(format!("traefik.tcp.middlewares.{name}.ipallowlist.sourcerange"), access.allow_ips.join(","));
            set(format!("{tcp}.middlewares"), name);
        }
    }

    fn tls(&self, set: &mut impl FnMut(String, String) -> Option<String>, router: &str, route: &Route) {
        set(format!("{router}.tls"), "true".to_owned());
        if let Some(resolver) = &self.cert_resolver {
            set(format!("{router}.tls.certresolver"), resolver.clone());
        }
        if let Some(options) = &route.tls_options {
            set(format!("{router}.tls.options"), options.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traefik() -> Traefik {
        Traefik { network: "preview-proxy".into(), entrypoint: None, tls: None, cert_resolver: Some("le".into()) }
    }

    fn route(service: &str, port: u16, url: &str) -> Route {
        Route { service: service.into(), port, url: url.into(), ..Route::default() }
    }

    #[test]
    fn by_host_and_by_path() {
        let routes = [
            Route { strip_prefix: true, ..route("api", 8000, "https://example.com/pr-7/") },
            Route { strip_prefix: true, ..route("ui", 80, "http://pr-7.example.com") },
        ];
        insta::assert_json_snapshot!(labels(&routes, &Access { noindex: false, ..Access::default() }));
    }

    fn labels(routes: &[Route], access: &Access) -> BTreeMap<String, BTreeMap<String, String>> {
        traefik().services("shop_pr-7", routes, access)
    }

    #[test]
    fn everything_that_a_route_may_have() {
        let routes = [
            Route {
                priority: Some(7),
                entrypoint: Some("internal".into()),
                ..route("ui", 80, "https://pr-7.example.com")
            },
            Route { protocol: Protocol::H2c, ..route("rpc", 50051, "https://pr-7-rpc.example.com") },
            Route {
                protocol: Protocol::Tcp,
                tls_options: Some("postgres@file".into()),
                ..route("db", 5432, "tcp://pr-7-db.example.com")
            },
        ];
        let access = Access {
            basic_auth: Some(("team".into(), "$2y$10$hash".into())),
            allow_ips: vec!["203.0.113.0/24".into(), "2001:db8::/32".into()],
            noindex: true,
        };
        insta::assert_json_snapshot!(labels(&routes, &access));
    }
}
