//! Whether the public addresses of a preview open, seen from here after a deploy. Which part is in the way is told: DNS, port, TLS, proxy or application.
//!
//! One `GET` an address, without credentials; where an answer leads is told and not followed.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use super::look::{self, Page, Reached};
use super::tls::{self, Trouble};
use super::{run, way_in};
use crate::project::Project;
use crate::proxy::Proxy;
use crate::route::Protocol;
use crate::state::Address;

/// How long an address may take to open that was told to a proxy, to a name server or to a certificate authority a moment ago.
const LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(500);

/// The part of the way that is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// The name leads nowhere.
    Dns,
    /// Nothing takes a connection.
    Port,
    /// There is no TLS, or the certificate does not hold.
    Tls,
    /// The proxy, or another server, answers instead of the preview.
    Proxy,
    /// The application gives no answer, or fails.
    Application,
}

/// What came of opening a public address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Opened {
    /// The address.
    pub url: String,
    /// Whether the application, or the password in front of it, answered.
    pub reached: bool,
    /// What was in the way; `None` where it was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<Layer>,
    /// What was seen.
    pub found: String,
    /// What to do; `None` where it was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Opened {
    /// A sentence or two for people.
    #[must_use]
    pub fn text(&self) -> String {
        let next = self.next.as_ref().map_or_else(String::new, |next| format!("\n  next: {next}"));
        format!("{} {}{next}", self.url, self.found)
    }
}

/// What the judgement needs to know of the project.
#[derive(Clone, Copy, Debug)]
struct Route<'a> {
    url: &'a str,
    proxy: &'a Proxy,
    /// Every answer of the preview's route carries a header by which search engines stay away.
    marked: bool,
    /// `[proxy] allow_ips` keeps some clients out.
    allow_list: bool,
    /// The preview has DNS records of its own.
    records: bool,
}

/// Opens the addresses that a deploy printed, all at once, each for at most ten seconds or one request. Behind no proxy there is none.
///
/// `records` says that the deploy writes DNS records of its own.
pub async fn open(project: &Project, addresses: &[Address], records: bool) -> Vec<Opened> {
    let roots = tls::roots(None);
    let looks = addresses.iter().filter(|address| speaks_http(project, address)).map(|address| {
        let route = Route {
            url: &address.url,
            proxy: &project.proxy,
            marked: project.access.noindex,
            allow_list: !project.access.allow_ips.is_empty(),
            records,
        };
        one(route, roots.clone())
    });
    futures_util::future::join_all(looks).await.into_iter().flatten().collect()
}

/// What came of opening them, for a job summary.
#[must_use]
pub fn markdown(opened: &[Opened]) -> String {
    let line = |one: &Opened| {
        let text = one.text().replace('`', "").replace(['<', '>'], "");
        if one.reached { format!("- {text}\n") } else { format!("- **warning**: {}\n", text.replace('\n', "  \n")) }
    };
    let lines: String = opened.iter().map(line).collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

/// Whether a plain HTTP request is a fair question there.
fn speaks_http(project: &Project, address: &Address) -> bool {
    let mut routes = project.routes.iter().flatten();
    project.proxy != Proxy::None
        && !routes.any(|route| {
            route.service == address.service && route.port == address.port && route.protocol != Protocol::Http
        })
}

async fn one(route: Route<'_>, roots: Result<std::sync::Arc<rustls::RootCertStore>, Trouble>) -> Option<Opened> {
    let (https, host, port, path) = run::parts(route.url)?;
    let begun = Instant::now();
    loop {
        let seen = look::whole(https, &host, port, &path, roots.clone()).await;
        let opened = judge(route, &host, &seen);
        let again = opened.layer.is_some_and(|layer| may_come(route, layer)) && begun.elapsed() + PAUSE < LIMIT;
        if !again {
            return Some(opened);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether what is missing may be there in a moment: what a deploy has just asked others for.
const fn may_come(route: Route<'_>, layer: Layer) -> bool {
    match layer {
        Layer::Dns => route.records,
        Layer::Tls | Layer::Proxy => true,
        Layer::Port | Layer::Application => false,
    }
}

fn judge(route: Route<'_>, host: &str, seen: &Reached) -> Opened {
    let failed = |layer: Layer, found: String, next: String| Opened {
        url: route.url.to_owned(),
        reached: false,
        layer: Some(layer),
        found,
        next: Some(next),
    };
    match seen {
        Reached::Nowhere(why) => {
            let next = if route.records {
                format!("`[dns]` wrote a record; does it write into the zone that the world asks? `dig +trace {host}`")
            } else {
                let zone = host.split_once('.').map_or(host, |(_, zone)| zone);
                format!(
                    "make a DNS record for `{host}`, or a wildcard record `*.{zone}`, that leads to the VM; `preview doctor` checks it"
                )
            };
            failed(Layer::Dns, format!("cannot be opened: DNS knows no address of {host} ({why})"), next)
        }
        Reached::Closed(why) => failed(
            Layer::Port,
            format!("cannot be opened: nothing takes a connection ({why})"),
            "does a proxy run on the VM, and do its firewall and the provider's let the port in? `preview vm setup` sets both up, `preview doctor` checks them"
                .to_owned(),
        ),
        Reached::Tls(trouble) => {
            let told = way_in::certificate(host, Err(trouble), Timestamp::now());
            let found = match trouble {
                Trouble::Handshake(why) => format!("cannot be opened: no TLS connection ({why})"),
                _ => format!("cannot be opened: the certificate does not hold: {}", told.found),
            };
            failed(Layer::Tls, found, told.next.unwrap_or_default())
        }
        Reached::Silent(why) => failed(
            Layer::Application,
            format!("takes a connection and gives no answer ({why})"),
            "`preview logs` shows whether the application got the request; else see the proxy's log".to_owned(),
        ),
        Reached::Page(page) => answered(route, page),
    }
}

/// What an answer means.
fn answered(route: Route<'_>, page: &Page) -> Opened {
    let opened = |layer: Option<Layer>, found: String, next: &str| Opened {
        url: route.url.to_owned(),
        reached: layer.is_none(),
        layer,
        found,
        next: layer.map(|_| next.to_owned()),
    };
    let reached = |found: String| opened(None, found, "");
    let status = page.status;
    match status {
        401 => reached("answers 401: it asks for the password".to_owned()),
        403 if route.allow_list => reached("answers 403: `[proxy] allow_ips` does not let this machine in".to_owned()),
        300..=399 => {
            let to = page.to.as_deref().map_or_else(String::new, |to| format!(" and leads to {}", plain(to)));
            reached(format!("answers {status}{to}"))
        }
        502..=504 => opened(
            Some(Layer::Proxy),
            format!("answers {status}: the proxy does not reach the application, or the application says so itself"),
            "is the proxy's container in the network of `[proxy] network`? `preview doctor` checks that; `preview logs` shows what the application got",
        ),
        _ if foreign(route, page) => {
            let next = match route.proxy {
                Proxy::Traefik(_) => {
                    "does Traefik read labels of this engine, has it the entry point of `[proxy] entrypoint`, and does the name lead to this VM? `preview doctor --probe` looks at each"
                }
                _ => {
                    "does the proxy of `[proxy] container` answer there, and does the name lead to this VM? `preview doctor --probe` looks at each"
                }
            };
            let who = if status == 404 {
                "the proxy knows no route to the preview"
            } else {
                "not from the preview: another server or route answers"
            };
            opened(Some(Layer::Proxy), format!("answers {status}, {who}"), next)
        }
        500.. => opened(
            Some(Layer::Application),
            format!("answers {status}: the application fails"),
            "`preview logs` shows why",
        ),
        _ => reached(format!("answers {status}")),
    }
}

/// Whether an answer is not the preview's: it lacks what the preview's route adds, or is a page about previews.
fn foreign(route: Route<'_>, page: &Page) -> bool {
    let about_previews = page.body.contains("There is no preview here") || page.body.contains("<!-- preview, at ");
    // Without the header, Traefik's own words are known alone.
    let traefiks = !route.marked && page.status == 404 && page.body.trim() == "404 page not found";
    about_previews || (route.marked && page.status != 403 && !page.noindex) || traefiks
}

/// A header's value on a line of ours.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::RouteSpec;
    use crate::proxy::Traefik;

    const URL: &str = "https://pr-7.example.com";

    fn traefik() -> Proxy {
        Proxy::Traefik(Traefik { network: "edge".into(), entrypoint: None, tls: None, cert_resolver: None })
    }

    fn page(status: u16, noindex: bool, body: &str) -> Reached {
        Reached::Page(Page { status, to: None, body: body.into(), noindex })
    }

    fn told(seen: &Reached, change: impl Fn(&mut Route<'_>)) -> (Option<Layer>, String, String) {
        let proxy = traefik();
        let mut route = Route { url: URL, proxy: &proxy, marked: true, allow_list: false, records: false };
        change(&mut route);
        let opened = judge(route, "pr-7.example.com", seen);
        assert_eq!(opened.reached, opened.layer.is_none());
        assert_eq!(opened.reached, opened.next.is_none(), "what is not reached says what to do");
        assert!(opened.text().starts_with(URL) && !opened.found.is_empty());
        (opened.layer, opened.found, opened.next.unwrap_or_default())
    }

    #[test]
    fn each_layer_is_told_apart() {
        let table: Vec<(Reached, Option<Layer>, &str, &str)> = vec![
            (Reached::Nowhere("no such name".into()), Some(Layer::Dns), "no such name", "*.example.com"),
            (Reached::Closed("refused".into()), Some(Layer::Port), "refused", "preview vm setup"),
            (Reached::Tls(Trouble::Issuer), Some(Layer::Tls), "does not hold", "chain"),
            (Reached::Tls(Trouble::Handshake("eof".into())), Some(Layer::Tls), "no TLS connection (eof)", "log"),
            (Reached::Silent("reset".into()), Some(Layer::Application), "no answer", "preview logs"),
            (page(404, false, "404 page not found\n"), Some(Layer::Proxy), "knows no route", "labels"),
            (page(200, false, "Welcome to nginx!"), Some(Layer::Proxy), "another server", "doctor --probe"),
            (page(200, true, "<h1>There is no preview here</h1>"), Some(Layer::Proxy), "another server", "doctor"),
            (page(502, true, "Bad Gateway"), Some(Layer::Proxy), "does not reach", "[proxy] network"),
            (page(500, true, ""), Some(Layer::Application), "the application fails", "preview logs"),
        ];
        for (seen, layer, found, next) in table {
            let said = told(&seen, |_| ());
            assert!(said.0 == layer && said.1.contains(found) && said.2.contains(next), "{seen:?}: {said:?}");
        }
    }

    #[test]
    fn what_counts_as_reached() {
        for (status, noindex) in
            [(200, true), (204, true), (404, true), (401, false), (401, true), (302, false), (403, true)]
        {
            assert_eq!(told(&page(status, noindex, "404 page not found"), |_| ()).0, None, "{status}");
        }
        let leads = Page { status: 302, to: Some("https://elsewhere.example\r\n/x".into()), ..Page::default() };
        assert_eq!(told(&Reached::Page(leads), |_| ()).1, "answers 302 and leads to https://elsewhere.example/x");
        let kept_out = told(&page(403, false, ""), |route| route.allow_list = true);
        assert!(kept_out.0.is_none() && kept_out.1.contains("allow_ips"), "{kept_out:?}");
        // Where the route adds no header, an answer without it is the application's.
        assert_eq!(told(&page(200, false, "hello"), |route| route.marked = false).0, None);
        assert_eq!(told(&page(404, false, "no such page"), |route| route.marked = false).0, None);
        let traefiks = told(&page(404, false, "404 page not found\n"), |route| route.marked = false);
        assert_eq!(traefiks.0, Some(Layer::Proxy));
    }

    #[test]
    fn only_what_the_deploy_asked_others_for_is_waited_for() {
        let proxy = traefik();
        let route = |records| Route { url: URL, proxy: &proxy, marked: true, allow_list: false, records };
        assert!(!may_come(route(false), Layer::Dns) && may_come(route(true), Layer::Dns));
        assert!(may_come(route(false), Layer::Tls) && may_come(route(false), Layer::Proxy));
        assert!(!may_come(route(true), Layer::Port) && !may_come(route(true), Layer::Application));
    }

    #[test]
    fn only_http_is_asked_and_only_behind_a_proxy() {
        let address = |service: &str| Address { service: service.into(), port: 80, url: URL.into() };
        let route =
            |service: &str, protocol| RouteSpec { service: service.into(), port: 80, protocol, ..RouteSpec::default() };
        let routes = vec![route("web", Protocol::Http), route("rpc", Protocol::H2c), route("db", Protocol::Tcp)];
        let behind = Project { proxy: traefik(), routes: Some(routes), ..Project::new("/nowhere", &[]) };
        assert_eq!(["web", "rpc", "db"].map(|name| speaks_http(&behind, &address(name))), [true, false, false]);
        assert!(!speaks_http(&Project::new("/nowhere", &[]), &address("web")));
    }
}
