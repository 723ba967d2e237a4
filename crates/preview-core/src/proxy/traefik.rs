//! Labels for Traefik v3. Format: <https://doc.traefik.io/traefik/reference/routing-configuration/other-providers/docker/>.

use std::collections::BTreeMap;

use crate::route::{Access, Generations, Protocol, Route, RoutedServices, parts};

/// Requests that find no server are tried so often: while a container is replaced there are two, and one may be gone before Traefik knows. With
/// many requests at once, one may meet the same again and again.
const ATTEMPTS: u32 = 8;

/// The priority of a router that is replaced by generations is its usual one times this, and the generation. Nobody rolls a service so often.
pub(super) const STEP: u32 = 100_000;

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
    /// Labels by service. Names of routers are global in Traefik, so each holds the project's name, and from the first generation on that too.
    pub(super) fn services(
        &self,
        project: &str,
        routes: &[Route],
        access: &Access,
        generations: &Generations,
    ) -> RoutedServices {
        let mut services = RoutedServices::new();
        for (index, route) in routes.iter().enumerate() {
            let labels = &mut services.entry(route.service.clone()).or_default();
            labels.insert("traefik.enable".to_owned(), "true".to_owned());
            labels.insert("traefik.docker.network".to_owned(), self.network.clone());
            let age = match generations.get(&route.service) {
                None | Some(0) => String::new(),
                Some(generation) => format!("{AGE}{generation}"),
            };
            let name = |what: &str| format!("{project}-{what}{age}");
            let router = name(&index.to_string());
            let rule = rule(route);
            let priority = priority(route, &rule, routes, generations);
            if route.protocol == Protocol::Tcp {
                self.tcp(labels, &router, rule, priority, route, access);
            } else {
                self.http(labels, &router, &name, rule, priority, route, access);
            }
        }
        services
    }

    #[expect(clippy::too_many_arguments, reason = "they are what a router is made of")]
    fn http(
        &self,
        labels: &mut BTreeMap<String, String>,
        router: &str,
        common: &dyn Fn(&str) -> String,
        rule: String,
        priority: Option<u64>,
        route: &Route,
        access: &Access,
    ) {
        let at = parts(&route.url);
        let http = format!("traefik.http.routers.{router}");
        let mut set = |key: String, value: String| labels.insert(key, value);
        set(format!("{http}.rule"), rule);
        set(format!("{http}.service"), router.to_owned());
        let server = format!("traefik.http.services.{router}.loadbalancer.server");
        set(format!("{server}.port"), route.port.to_string());
        if route.protocol == Protocol::H2c {
            set(format!("{server}.scheme"), "h2c".to_owned());
        }
        if let Some(priority) = priority {
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
            middleware(common("allow"), "ipallowlist.sourcerange", access.allow_ips.join(","));
        }
        if let Some((user, hash)) = &access.basic_auth {
            let name = common("auth");
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
            middleware(common("noindex"), header, "noindex, nofollow".to_owned());
        }
        if route.strip_prefix && !at.path.is_empty() {
            middleware(format!("{router}-strip"), "stripprefix.prefixes", at.path.to_owned());
        }
        if at.secure && !secure {
            // TLS ended before the request got here, and Traefik tells what it sees itself.
            let header = "headers.customrequestheaders.X-Forwarded-Proto";
            middleware(common("https"), header, "https".to_owned());
        }
        middleware(common("retry"), "retry.attempts", ATTEMPTS.to_string());
        set(format!("{http}.middlewares"), chain.join(","));
    }

    fn tcp(
        &self,
        labels: &mut BTreeMap<String, String>,
        router: &str,
        rule: String,
        priority: Option<u64>,
        route: &Route,
        access: &Access,
    ) {
        let tcp = format!("traefik.tcp.routers.{router}");
        let mut set = |key: String, value: String| labels.insert(key, value);
        set(format!("{tcp}.rule"), rule);
        set(format!("{tcp}.service"), router.to_owned());
        let entrypoint = route.entrypoint.as_deref().or(self.entrypoint.as_deref()).unwrap_or("websecure");
        set(format!("{tcp}.entrypoints"), entrypoint.to_owned());
        set(format!("traefik.tcp.services.{router}.loadbalancer.server.port"), route.port.to_string());
        if let Some(priority) = priority {
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

/// What comes before the generation in a name.
const AGE: &str = "-g";

/// Which requests are meant.
fn rule(route: &Route) -> String {
    let at = parts(&route.url);
    match (route.protocol, at.path) {
        (Protocol::Tcp, _) => format!("HostSNI(`{}`)", at.host),
        (_, "") => format!("Host(`{}`)", at.host),
        // `PathPrefix` knows no borders: `/pr-7` would also catch `/pr-70`.
        (_, path) => format!("Host(`{}`) && (Path(`{path}`) || PathPrefix(`{path}/`))", at.host),
    }
}

/// The priority, where it is not Traefik's own, which is the length of the rule.
///
/// Of two generations the later one wins, and which of two routes wins is not changed by that: on a host that a route of a rolled service is on, the usual
/// priorities of all routes are spread, and the generations lie between.
fn priority(route: &Route, rule: &str, routes: &[Route], generations: &Generations) -> Option<u64> {
    let place = |route: &Route| (route.protocol == Protocol::Tcp, parts(&route.url).host.to_ascii_lowercase());
    let neighbours: Vec<&Route> = routes.iter().filter(|other| place(other) == place(route)).collect();
    let generation = generations.get(&route.service).copied().unwrap_or(0);
    // One that is alone, and was never rolled, has what it always had.
    let plain = !neighbours.iter().any(|other| generations.contains_key(&other.service))
        || (generation == 0 && neighbours.len() == 1);
    if plain {
        return route.priority.map(u64::from);
    }
    let usual = route.priority.map_or(rule.len() as u64, u64::from);
    Some(usual * u64::from(STEP) + u64::from(generation.min(STEP - 1)))
}

/// The latest generation that these labels name; 0 where they name none.
pub(super) fn generation<'a>(labels: impl IntoIterator<Item = &'a str>) -> u32 {
    let routers = labels.into_iter().filter_map(|label| {
        let (kind, rest) = label.strip_prefix("traefik.")?.split_once(".routers.")?;
        matches!(kind, "http" | "tcp").then_some(())?;
        rest.split_once('.')?.0.rsplit_once(AGE)?.1.parse().ok()
    });
    routers.max().unwrap_or(0)
}

/// The hosts that these labels have routers for, each with the priority of the router; 0 where that is Traefik's own.
pub(super) fn hosts<'a>(labels: &BTreeMap<&'a str, &'a str>) -> Vec<(&'a str, u64)> {
    let rules = labels.iter().filter_map(|(key, rule)| {
        let router = key.strip_suffix(".rule").filter(|router| router.contains(".routers."))?;
        let priority = labels.get(format!("{router}.priority").as_str()).and_then(|text| text.parse().ok());
        Some((rule.split(" && ").next()?, priority.unwrap_or(0)))
    });
    rules.collect()
}

/// A thing that has a name in Traefik (a router, a service, a middleware): where it is defined twice, both have to say the same of it, or it is dropped.
pub(super) fn named(label: &str) -> Option<&str> {
    let mut dots = label.match_indices('.').map(|(at, _)| at);
    let kind = label.strip_prefix("traefik.")?.split('.').next()?;
    matches!(kind, "http" | "tcp").then_some(())?;
    Some(&label[..dots.nth(3)?])
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
        traefik().services("shop_pr-7", routes, access, &Generations::new())
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
    fn generations(of: &[(&str, u32)]) -> Generations {
        of.iter().map(|(service, generation)| ((*service).to_owned(), *generation)).collect()
    }

    #[test]
    fn a_generation_has_names_of_its_own() {
        let routes = [
            Route { strip_prefix: true, ..route("api", 8000, "https://example.com/pr-7/") },
            Route { protocol: Protocol::Tcp, ..route("api", 5432, "tcp://pr-7-db.example.com") },
        ];
        let access = Access {
            basic_auth: Some(("team".into(), "$2y$10$hash".into())),
            allow_ips: vec!["203.0.113.0/24".into()],
            noindex: true,
        };
        let of = |generation| traefik().services("shop_pr-7", &routes, &access, &generations(&[("api", generation)]));
        insta::assert_json_snapshot!(of(3));
        assert_eq!(of(0), labels(&routes, &access), "what was never rolled is called as it always was");
        let names = |generation| -> std::collections::BTreeSet<String> {
            of(generation)["api"].keys().filter_map(|label| named(label)).map(str::to_owned).collect()
        };
        assert_eq!(names(3).len(), names(0).len());
        assert!(names(3).is_disjoint(&names(0)) && names(3).is_disjoint(&names(4)), "nothing is defined by two");
        for number in [0, 1, 3, 123_456] {
            assert_eq!(generation(of(number)["api"].keys().map(String::as_str)), number);
        }
    }

    #[test]
    fn only_generations_are_taken_for_generations() {
        for label in [
            "traefik.http.routers.shop_pr-g7-0.rule",
            "traefik.http.services.shop_pr-7-0-g3.loadbalancer.server.port",
            "traefik.udp.routers.shop_pr-7-0-g3.rule",
            "team.http.routers.shop_pr-7-0-g3.rule",
            "traefik.http.routers.shop_pr-7-0-g3",
            "traefik.enable",
        ] {
            assert_eq!(generation([label]), 0, "{label}");
        }
        assert_eq!(generation(["traefik.http.routers.a-0-g3.rule", "traefik.tcp.routers.a-1-g10.tls"]), 10);
        assert_eq!(named("traefik.http.routers.p-0.tls.options"), Some("traefik.http.routers.p-0"));
        assert_eq!((named("traefik.enable"), named("traefik.docker.network")), (None, None));
    }

    /// Names of services by the priority that Traefik goes by, the highest first.
    fn order(routes: &[Route], of: &[(&str, u32)]) -> Vec<String> {
        let all = traefik().services("p", routes, &Access::default(), &generations(of));
        let mut found = Vec::new();
        for (service, labels) in &all {
            for (key, rule) in labels.iter().filter(|(key, _)| key.ends_with(".rule")) {
                let explicit = labels.get(&key.replace(".rule", ".priority"));
                let priority = explicit.map_or(rule.len(), |priority| priority.parse().unwrap());
                found.push((std::cmp::Reverse(priority), service.clone()));
            }
        }
        found.sort();
        found.into_iter().map(|(_, service)| service).collect()
    }

    #[test]
    fn generations_do_not_change_which_of_two_routes_wins() {
        let at = |service: &str, path: &str, priority| Route {
            priority,
            ..route(service, 80, &format!("https://pr-7.example.com{path}"))
        };
        let routes = [at("ui", "", None), at("api", "/a", None), at("deep", "/a/b", None)];
        for of in [[].as_slice(), &[("ui", 0)], &[("ui", 99_999)], &[("ui", 4_000_000_000), ("api", 1)], &[("api", 7)]]
        {
            assert_eq!(order(&routes, of), ["deep", "api", "ui"], "{of:?}");
        }
        let routes = [at("ui", "", Some(8)), at("api", "/a", Some(7)), at("deep", "/a/b", Some(u32::MAX))];
        for of in [[].as_slice(), &[("ui", 0)], &[("api", 99_999)], &[("ui", 5), ("api", 50), ("deep", 2)]] {
            assert_eq!(order(&routes, of), ["deep", "ui", "api"], "{of:?}");
        }
    }

    #[test]
    fn the_later_generation_wins_and_others_hosts_are_left_alone() {
        let routes = [
            route("ui", 80, "https://pr-7.example.com"),
            route("docs", 80, "https://PR-7.example.com/docs"),
            route("api", 80, "https://pr-7-api.example.com"),
            Route { protocol: Protocol::Tcp, ..route("db", 5432, "tcp://pr-7.example.com") },
        ];
        let priorities = |of: &[(&str, u32)]| -> BTreeMap<String, Option<u64>> {
            let generations = generations(of);
            let each = |route: &Route| priority(route, &rule(route), &routes, &generations);
            routes.iter().map(|route| (route.service.clone(), each(route))).collect()
        };
        let all = priorities(&[("ui", 1)]);
        assert_eq!(all["ui"], Some(24 * 100_000 + 1), "{}", rule(&routes[0]));
        assert_eq!(all["docs"], Some(rule(&routes[1]).len() as u64 * 100_000), "it is on the same host");
        assert_eq!((all["api"], all["db"]), (None, None));
        assert!(priorities(&[("ui", 2)])["ui"] > all["ui"]);
        assert_eq!(priorities(&[("ui", 2)])["docs"], all["docs"], "a neighbour is not replaced with it");
        // One that is alone on its host is as it always was until it is rolled, and then higher.
        assert_eq!(priorities(&[("api", 0)])["api"], None);
        assert!(priorities(&[("api", 1)])["api"] > Some(rule(&routes[2]).len() as u64));
    }
}
