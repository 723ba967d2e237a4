//! Which proxy leads to previews, and what it has to be told: the one place that knows. Pure renderers; nothing is sent here.
//!
//! Two ways of telling: by labels on the containers (Traefik, which watches the engine), or by files that the proxy includes
//! (nginx, Caddy), put into its container and reloaded there ([`files`]).

mod auth;
mod caddy;
pub mod files;
mod nginx;
pub mod pages;
mod traefik;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::route::{Access, Generations, Route, RoutedServices, own_name};

pub use auth::hash;
pub use files::{Bundle, FileKind, FileProxy, status_server};
pub use traefik::Traefik;

/// The reverse proxy on the host.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Proxy {
    /// None: ports are published on the host's loopback address.
    #[default]
    None,
    /// Traefik, told by labels.
    Traefik(Traefik),
    /// A proxy that is told by files.
    Files(FileProxy),
}

/// Whose routes they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner<'a> {
    /// The application.
    pub app: &'a str,
    /// The preview's name.
    pub name: &'a str,
    /// The Compose project.
    pub project: &'a str,
}

impl Owner<'_> {
    /// The name of a service on the proxy's network: one that no other preview has.
    fn alias(&self, service: &str) -> String {
        own_name(self.app, self.name, service)
    }
}

/// The generation of a container with these labels.
pub fn generation<'a>(labels: impl IntoIterator<Item = &'a str>) -> u32 {
    traefik::generation(labels)
}

/// The hosts that these labels have routers for, each with the router's priority; 0 where that is the proxy's own.
#[must_use]
pub fn hosts<'a>(labels: &BTreeMap<&'a str, &'a str>) -> Vec<(&'a str, u64)> {
    traefik::hosts(labels)
}

/// Whether a priority is one of those between which there is room for generations.
#[must_use]
pub fn is_spread(priority: u64) -> bool {
    priority >= u64::from(traefik::STEP)
}

/// What a label defines, if it is something that two containers have to define in the same words.
#[must_use]
pub fn defined(label: &str) -> Option<&str> {
    traefik::named(label)
}

impl Proxy {
    /// The network that it shares with the services it leads to.
    #[must_use]
    pub fn network(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Traefik(traefik) => Some(&traefik.network),
            Self::Files(proxy) => Some(&proxy.network),
        }
    }

    /// How long it takes at most until it knows of a container that has become healthy.
    #[must_use]
    pub const fn notices_within(&self) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            // It looks at what the engine tells at most every two seconds.
            Self::Traefik(_) => Duration::from_secs(3),
            // An answer of Docker's resolver counts for a second.
            Self::Files(_) => Duration::from_secs(2),
        }
    }

    /// What a proxy of this kind cannot do of what is asked.
    #[must_use]
    pub fn objection(&self, route: &Route) -> Option<&'static str> {
        match self {
            Self::None | Self::Traefik(_) => None,
            Self::Files(proxy) => proxy.objection(route),
        }
    }

    /// What the routed services need. Of two generations of a service that stand side by side, the later one gets the requests, if the proxy is told by labels.
    #[must_use]
    pub fn services(
        &self,
        owner: Owner<'_>,
        routes: &[Route],
        access: &Access,
        generations: &Generations,
    ) -> RoutedServices {
        match self {
            Self::None => RoutedServices::new(),
            Self::Traefik(traefik) => traefik.services(owner.project, routes, access, generations),
            Self::Files(_) => routes.iter().map(|route| (route.service.clone(), BTreeMap::new())).collect(),
        }
    }

    /// The files that tell it of these routes, if it is told by files.
    #[must_use]
    pub fn files(&self, owner: Owner<'_>, routes: &[Route], access: &Access) -> Option<Bundle> {
        match self {
            Self::None | Self::Traefik(_) => None,
            Self::Files(proxy) => Some(proxy.bundle(owner, routes, access)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a proxy is told of one route, as one text.
    fn told(proxy: &Proxy, url: &str) -> String {
        let owner = Owner { app: "shop", name: "pr-7", project: "shop_pr-7" };
        let route = [Route { service: "web".into(), port: 80, url: url.into(), ..Route::default() }];
        let services = proxy.services(owner, &route, &Access::default(), &BTreeMap::new());
        let files = proxy.files(owner, &route, &Access::default()).map(|bundle| bundle.files).unwrap_or_default();
        format!("{services:?}{files:?}")
    }

    #[test]
    fn behind_what_ends_tls_applications_hear_what_the_address_says() {
        let traefik = |tls| {
            let network = "preview-proxy".to_owned();
            Proxy::Traefik(Traefik { network, entrypoint: None, tls, cert_resolver: None })
        };
        let files = |kind, tls| {
            let text = |text: &str| text.to_owned();
            let certificate = Some((text("/c"), text("/k")));
            let (network, container, routes) = (text("n"), text("c"), text("/r"));
            Proxy::Files(FileProxy { kind, network, container, routes, certificate, tls, pages: None })
        };
        let words = [
            "customrequestheaders.X-Forwarded-Proto\": \"https\"",
            "X-Forwarded-Proto https;",
            "header_up X-Forwarded-Proto https",
        ];
        let all = |tls| [traefik(tls), files(FileKind::Nginx, tls), files(FileKind::Caddy, tls)];
        for (proxy, word) in all(Some(false)).iter().zip(words) {
            assert!(told(proxy, "https://pr-7.example.com").contains(word), "{proxy:?}");
            assert!(!told(proxy, "http://pr-7.example.com").contains(word), "{proxy:?}");
        }
        for (proxy, word) in all(None).iter().zip(words) {
            assert!(!told(proxy, "https://pr-7.example.com").contains(word), "{proxy:?}");
        }
        // Who is the first to see a request believes nobody.
        let (edge, behind) = (files(FileKind::Nginx, None), files(FileKind::Nginx, Some(false)));
        assert!(told(&edge, "https://a.example.com").contains("X-Forwarded-For $remote_addr;"));
        assert!(told(&behind, "https://a.example.com").contains("X-Forwarded-For $proxy_add_x_forwarded_for;"));
        assert!(!told(&files(FileKind::Caddy, None), "https://a.example.com").contains("trusted_proxies"));
    }
}
