//! The probe's stack, and what came of it judged. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::look::{Page, Reached};
use super::{Check, Finding, Status, way_in};
use crate::failure::FailureCode;
use crate::lifecycle::Error;
use crate::project::{HealthProbe, OnFull, Project};
use crate::proxy::Proxy;
use crate::route::{self, Protocol};

const ID: Check = Check::Probe;
const SERVICE: &str = "probe";
const PORT: u16 = 8000;
/// What is asked for, below the address.
pub(super) const FILE: &str = "preview-probe.txt";
/// Whoever dies in the middle leaves it to the next sweep after this.
const TTL: Duration = Duration::from_secs(15 * 60);

/// The Compose file; the service shows the files in `www` beside it.
pub(super) fn compose(image: &str) -> Value {
    json!({"services": {SERVICE: {
        // Compose would take a `$` for a variable.
        "image": image.replace('$', "$$"),
        "command": ["httpd", "-f", "-p", PORT.to_string(), "-h", "/www"],
        "volumes": ["./www:/www:ro"],
        "ports": [PORT.to_string()],
        "mem_limit": "32m",
        "cpus": 0.25,
        "pids_limit": 32,
        "stop_grace_period": "1s",
    }}})
}

/// The project of the probe: what the host has for any preview of the application stays, and what the application brings is not there.
/// `None`: no address of it is asked over HTTP.
pub(super) fn project(around: Project) -> Option<Project> {
    let mut project = around;
    let proxied = project.proxy != Proxy::None;
    if let Some(routes) = &mut project.routes {
        routes.retain(|route| route.protocol != Protocol::Tcp);
        for route in &mut *routes {
            (route.service, route.port) = (SERVICE.to_owned(), PORT);
            (route.protocol, route.rolling) = (Protocol::Http, false);
        }
        if !proxied {
            // One published port is as good as another.
            routes.truncate(1);
        }
        if routes.is_empty() {
            return None;
        }
    } else if proxied && project.url.is_none() {
        return None;
    }
    // What it shows is no secret, and the password is one of the application's variables.
    project.access.basic_auth = None;
    // They are about services of the application; and from a closed network nothing can be published.
    project.isolation.except.clear();
    project.isolation.internal &= proxied;
    // It is asked for now, by somebody who waits.
    project.on_full = OnFull::Refuse;
    project.ttl = Some(TTL);
    project.health = Some(HealthProbe {
        path: format!("{}/{FILE}", directories(&project).last().cloned().unwrap_or_default()),
        service: Some(SERVICE.to_owned()),
        port: Some(PORT),
        place: "the probe".to_owned(),
    });
    Some(project)
}

/// Where the file has to be: wherever a proxy may ask for it, with the path of the address or without it.
pub(super) fn directories(project: &Project) -> BTreeSet<String> {
    let urls = project.routes.iter().flatten().filter_map(|route| route.url.as_deref()).chain(project.url.as_deref());
    urls.map(|url| route::parts(url).path.to_owned()).chain([String::new()]).collect()
}

/// A deploy that did not succeed.
pub(super) fn not_deployed(error: &Error, image: &str) -> Finding {
    let mut found = format!("the probe was not deployed: {}", line(&error.chain()));
    for service in error.report().iter().flat_map(|report| &report.services) {
        found.push_str(&format!("; {}: {}", service.service, line(&service.problem)));
    }
    let code = error.failure();
    let next = match code {
        FailureCode::Full => {
            "`preview list` shows who has the places: wait, destroy a preview, or raise what `[limits]` says".to_owned()
        }
        FailureCode::ImagePullDenied | FailureCode::ImageNotFound | FailureCode::ImagePullFailed => {
            format!(
                "`docker pull {image}` on the VM says why; or name an image with busybox that the VM has: `--probe-image`"
            )
        }
        FailureCode::DnsFailed => {
            "see that the token may write, not only read: the rights are in docs/configuration.md under `[dns]`"
                .to_owned()
        }
        FailureCode::ProxyFailed => "see `proxy-container`, then the log of the proxy's container".to_owned(),
        code => format!("docs/failure-codes.md says what to do about `{code}`"),
    };
    Finding::failed(ID, found, next)
}

/// What the way to one of its addresses led to in the end; `None`: to the probe. `records`: it has got DNS
/// records of its own.
pub(super) fn reached(
    url: &str,
    reached: &Reached,
    token: &str,
    project: &Project,
    records: bool,
    waited: Duration,
) -> Option<Finding> {
    let seconds = waited.as_secs();
    let host = route::parts(url).host;
    let failed = |found: String, next: String| {
        Some(Finding::failed(ID, format!("{url} {found}, {seconds} s after the deploy"), next))
    };
    match reached {
        Reached::Page(Page { status: 200, body, .. }) if body.trim() == token => None,
        Reached::Nowhere(why) => failed(
            format!("leads nowhere ({why})"),
            if records && project.hosts.contains(host) {
                format!(
                    "does `[dns]` write into the zone that the world asks? `dig +trace {host}` while a preview is there; else a resolver remembers that there was nothing"
                )
            } else {
                format!("make a record that leads to the VM: see the check `{}`", Check::Dns)
            },
        ),
        Reached::Closed(why) => failed(
            format!("takes no connection ({why})"),
            format!(
                "open the port in the VM's firewall and in the provider's, and see that the proxy runs: the checks `{}` and `{}`",
                Check::Ports,
                Check::ProxyContainer
            ),
        ),
        Reached::Tls(trouble) => {
            let told = way_in::certificate(host, Err(trouble), Timestamp::now());
            failed(format!("has no good certificate ({})", told.found), told.next.unwrap_or_default())
        }
        Reached::Silent(why) => failed(
            format!("takes a connection and gives no answer ({why})"),
            "the log of the proxy's container says what became of the request".to_owned(),
        ),
        Reached::Page(page) => failed(what_came(page), what_now(page.status, project)),
    }
}

fn what_came(page: &Page) -> String {
    match (page.status, &page.to) {
        (status @ (502..=504), _) => format!("answers {status}: the proxy does not reach the container"),
        (404, _) => "answers 404: the proxy knows no route to it, or somebody else answers".to_owned(),
        (status, Some(to)) => format!("answers {status} and leads to {}", line(to)),
        (200, None) => "answers 200 with something else than the probe".to_owned(),
        (status, None) => format!("answers {status}"),
    }
}

fn what_now(status: u16, project: &Project) -> String {
    let network = project.proxy.network().unwrap_or_default();
    match (status, &project.proxy) {
        (_, Proxy::None) => "something else has this port of the VM: `ss -ltnp` there".to_owned(),
        (502..=504, _) => format!(
            "is the proxy's container in `{network}`? on the VM: `docker network inspect {network}`, and does a firewall stand between containers?"
        ),
        (401 | 403, _) => "does `[proxy] allow_ips` hold the address of this machine, as the proxy sees it?".to_owned(),
        (404, Proxy::Traefik(_)) => format!(
            "does Traefik read labels of this engine (`--providers.docker`), and has it the entry point that `[proxy] entrypoint` names? its log; is the network `{network}` its own?"
        ),
        (404, Proxy::Files(proxy)) => {
            format!("does the proxy that answers read `{}`, and is it the one in `[proxy] container`? its log", proxy.routes)
        }
        (300..=399, _) => "does the address in `url` have the scheme and the port that the proxy serves (`[proxy] entrypoint`, `tls`)?".to_owned(),
        _ => "does the name lead to this VM and to no other (the check `dns`), and does no other route of the proxy take it first?".to_owned(),
    }
}

/// All of it went well.
pub(super) fn answered(urls: &[String], took: Duration) -> Finding {
    let found = format!(
        "a preview was deployed, answered at {} after {:.1} s, and was removed",
        urls.join(" and "),
        took.as_secs_f64()
    );
    Finding::ok(ID, found)
}

/// What became of it is known; that it is gone is not.
pub(super) fn left(finding: Finding, name: &str, error: &Error) -> Finding {
    let next = format!("`preview destroy --name {name}`; a sweep does the same after {} minutes", TTL.as_secs() / 60);
    let left = format!("the probe could not be removed: {}", line(&error.chain()));
    match finding.status {
        Status::Failed => {
            let next = finding.next.map_or_else(|| next.clone(), |first| format!("{first}; then {next}"));
            Finding::failed(ID, format!("{}; {left}", finding.found), next)
        }
        _ => Finding::failed(ID, left, next),
    }
}

/// Somebody has the name, and is no probe.
pub(super) fn taken(name: &str, by: &str) -> Finding {
    Finding::failed(
        ID,
        format!("the probe's name {name} is that of a preview of {by}"),
        "destroy that preview, or rename its branch",
    )
}

/// The probe failed before there was anything of it.
#[must_use]
pub fn not_begun(error: &Error) -> Finding {
    let next = format!("docs/failure-codes.md says what to do about `{}`", error.failure());
    Finding::failed(ID, format!("the probe was not begun: {}", line(&error.chain())), next)
}

/// Why there was no probe.
pub fn skipped(why: impl Into<String>) -> Finding {
    Finding::skipped(ID, why)
}

/// Many lines as one.
fn line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fault::{Fault, FaultKind};
    use crate::project::{AccessSpec, RouteSpec};
    use crate::proxy::{FileKind, FileProxy, Traefik};
    use crate::stack::Isolation;

    fn traefik() -> Proxy {
        Proxy::Traefik(Traefik { network: "edge".into(), entrypoint: None, tls: None, cert_resolver: None })
    }

    fn nginx() -> Proxy {
        Proxy::Files(FileProxy {
            kind: FileKind::Nginx,
            network: "edge".into(),
            container: "preview-proxy".into(),
            routes: "/etc/preview/routes".into(),
            certificate: None,
            tls: None,
            pages: None,
        })
    }

    fn route(url: &str, protocol: Protocol) -> RouteSpec {
        RouteSpec {
            service: "api".into(),
            port: 80,
            url: Some(url.into()),
            protocol,
            rolling: true,
            ..RouteSpec::default()
        }
    }

    fn around(proxy: Proxy, routes: Option<Vec<RouteSpec>>) -> Project {
        Project { proxy, routes, ..Project::new("/nowhere", &[]) }
    }

    #[test]
    fn the_ways_of_the_application_lead_to_the_probe() {
        let urls = ["https://x.example.com", "https://example.com/x", "https://x-rpc.example.com"];
        let mut routes =
            vec![route(urls[0], Protocol::Http), route(urls[1], Protocol::Http), route(urls[2], Protocol::H2c)];
        routes.push(route("tcp://x-db.example.com", Protocol::Tcp));
        let wished = Project {
            access: AccessSpec {
                basic_auth: Some(("a".into(), "PASSWORD".into())),
                allow_ips: vec!["::1".into()],
                ..AccessSpec::default()
            },
            isolation: Isolation {
                internal: true,
                read_only: true,
                except: vec!["api".into()],
                ..Isolation::default()
            },
            on_full: OnFull::ReplaceOldest,
            ..around(traefik(), Some(routes))
        };
        let made = project(wished).expect("a project");
        let led: Vec<_> = made
            .routes
            .iter()
            .flatten()
            .map(|route| (route.service.as_str(), route.port, route.protocol, route.rolling))
            .collect();
        assert_eq!(led, [("probe", 8000, Protocol::Http, false); 3], "what speaks no HTTP is not asked");
        assert_eq!((made.access.basic_auth.is_none(), made.access.allow_ips.len()), (true, 1));
        assert_eq!((made.isolation.internal, made.isolation.read_only, made.isolation.except.len()), (true, true, 0));
        assert_eq!((made.on_full, made.ttl), (OnFull::Refuse, Some(TTL)), "it takes nobody's place, and expires");
        assert_eq!(directories(&made), BTreeSet::from([String::new(), "/x".into()]));

        let mut alone = around(Proxy::None, Some(vec![route("", Protocol::Http), route("", Protocol::Http)]));
        alone.isolation.internal = true;
        let made = project(alone).expect("a project");
        assert_eq!((made.routes.map(|routes| routes.len()), made.isolation.internal), (Some(1), false));
        assert!(project(around(Proxy::None, None)).is_some());
        assert!(project(around(traefik(), None)).is_none(), "behind a proxy without an address");
        assert!(project(around(traefik(), Some(vec![route("tcp://x", Protocol::Tcp)]))).is_none());
    }

    #[test]
    fn the_image_is_no_place_for_variables() {
        assert_eq!(compose("a${HOME}b").pointer("/services/probe/image"), Some(&json!("a$${HOME}b")));
    }

    const URL: &str = "https://x.example.com/all";

    fn verdict(seen: &Reached, proxy: Proxy, records: bool) -> Option<(String, String)> {
        let mut project = around(proxy, None);
        project.hosts.insert("x.example.com".into());
        let finding = reached(URL, seen, "token", &project, records, Duration::from_secs(61))?;
        assert_eq!((finding.id, finding.status), (Check::Probe, Status::Failed));
        assert!(
            finding.found.starts_with(URL) && finding.found.ends_with("61 s after the deploy"),
            "{}",
            finding.found
        );
        Some((finding.found, finding.next.expect("what is not well says what to do")))
    }

    #[test]
    fn only_its_own_answer_counts() {
        let page = |status, to: Option<&str>, body: &str| {
            Reached::Page(Page { status, to: to.map(str::to_owned), body: body.into(), ..Page::default() })
        };
        assert_eq!(verdict(&page(200, None, "token\n"), traefik(), false), None);
        let table: Vec<(Reached, &str, &str)> = vec![
            (page(200, None, "other"), "something else than the probe", "no other route"),
            (page(404, None, "token"), "answers 404", "--providers.docker"),
            (page(502, None, ""), "does not reach the container", "docker network inspect edge"),
            (page(403, None, ""), "answers 403", "allow_ips"),
            (page(301, Some("https://elsewhere/"), ""), "leads to https://elsewhere/", "entrypoint"),
            (page(500, None, ""), "answers 500", "no other route"),
            (Reached::Nowhere("no such name".into()), "leads nowhere", "make a record"),
            (Reached::Closed("refused".into()), "takes no connection", "firewall"),
            (Reached::Silent("reset".into()), "gives no answer", "log"),
            (Reached::Tls(super::super::tls::Trouble::Issuer), "no good certificate", "--ca FILE"),
        ];
        for (seen, found, next) in table {
            let said = verdict(&seen, traefik(), false).expect("a finding");
            assert!(said.0.contains(found) && said.1.contains(next), "{seen:?}: {said:?}");
        }
        let said = verdict(&Reached::Nowhere("no".into()), traefik(), true).expect("a finding");
        assert!(said.1.contains("`[dns]`"), "{said:?}");
        let said = verdict(&page(404, None, ""), nginx(), false).expect("a finding");
        assert!(said.1.contains("/etc/preview/routes"), "{said:?}");
        let said = verdict(&page(404, None, ""), Proxy::None, false).expect("a finding");
        assert!(said.1.contains("ss -ltnp"), "{said:?}");
    }

    #[test]
    fn a_deploy_that_fails_says_what_to_do() {
        let coded = |code| Error::from(Fault::new(FaultKind::Failed, "try", "it\n  all").coded(code));
        let table = BTreeMap::from([
            ("Full", (FailureCode::Full, "preview list")),
            ("Pull", (FailureCode::ImagePullFailed, "docker pull x:1")),
            ("Dns", (FailureCode::DnsFailed, "rights")),
            ("Proxy", (FailureCode::ProxyFailed, "proxy-container")),
            ("Other", (FailureCode::DiskFull, "`disk_full`")),
        ]);
        for (name, (code, next)) in table {
            let finding = not_deployed(&coded(code), "x:1");
            assert!(finding.next.as_ref().is_some_and(|said| said.contains(next)), "{name}: {finding:?}");
            assert!(!finding.found.contains('\n') && finding.found.contains("it; all"), "{finding:?}");
        }
        let gone = left(answered(&[URL.into()], Duration::ZERO), "pr-7", &coded(FailureCode::Locked));
        assert_eq!(gone.status, Status::Failed, "what stays is not well, whatever it answered");
        assert!(gone.next.is_some_and(|next| next.contains("preview destroy --name pr-7")));
        let both = left(taken("pr-7", "pr 7"), "pr-7", &coded(FailureCode::Locked));
        assert!(both.found.contains("is that of") && both.found.contains("could not be removed"), "{both:?}");
        assert_eq!(not_begun(&coded(FailureCode::Locked)).status, Status::Failed);
        assert_eq!(skipped("x").status, Status::Skipped);
    }
}
