//! What cannot be broken on a real machine by a test, the words of the report, and the table of the documentation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use super::machine::Program;
use super::tls::Trouble;
use super::*;
use crate::engine::docker::Examined;
use crate::engine::{Container, ContainerState, Health, PublishedPort};
use crate::fault::{Fault, FaultKind};
use crate::host::ssh::Destination;
use crate::host::{Examination, Facts};

fn status(finding: &Finding) -> Status {
    let todo = matches!(finding.status, Status::Warning | Status::Failed);
    assert_eq!(finding.next.is_some(), todo, "what is not well says what to do, and nothing else does: {finding:?}");
    finding.status
}

#[test]
fn the_table_in_the_documentation_has_each_check_and_no_other() {
    let page = include_str!("../../../../docs/doctor.md");
    let rows: Vec<(&str, usize)> = page
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let id = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
            assert!(cells.len() == 6 && cells[2..5].iter().all(|cell| !cell.is_empty()), "{line}");
            Some((id, cells.len()))
        })
        .collect();
    let known: Vec<&str> = Check::ALL.iter().map(|check| check.as_str()).collect();
    assert_eq!(rows.iter().map(|(id, _)| *id).collect::<Vec<_>>(), known, "docs/doctor.md, in the order of the report");
    assert_eq!(known.iter().collect::<BTreeSet<_>>().len(), known.len());
}

#[test]
fn clocks_warn_after_a_minute_and_fail_after_five() {
    for (skew, expected) in [
        (0, Status::Ok),
        (1, Status::Ok),
        (-59, Status::Ok),
        (60, Status::Warning),
        (-299, Status::Warning),
        (300, Status::Failed),
        (-86_400, Status::Failed),
    ] {
        assert_eq!(status(&vm::clock(skew)), expected, "{skew}");
    }
    assert!(vm::clock(-90).found.contains("90 s behind"));
}

#[test]
fn engines_that_are_too_old_or_too_new() {
    let engine = |version: &str, api: &str, least: &str| {
        let engine = Examined {
            version: version.into(),
            api_version: api.into(),
            min_api_version: least.into(),
            ..Examined::default()
        };
        vm::docker_version(Ok(&engine))
    };
    assert_eq!(status(&engine("19.03.15", "1.40", "1.12")), Status::Failed);
    assert_eq!(status(&engine("20.10.24", "1.41", "1.12")), Status::Ok);
    assert_eq!(status(&engine("29.0.0", "1.52", "1.44")), Status::Ok);
    let future = engine("40.0.0", "1.90", "1.80");
    assert_eq!(status(&future), Status::Failed);
    assert!(future.next.is_some_and(|next| next.contains("newer `preview`")));
}

#[test]
fn swap_disk_memory_and_the_last_sweep() {
    let swap = |swap| vm::swap(&Examination { swap, swappiness: Some(1), ..Examination::default() });
    assert_eq!(status(&swap(0)), Status::Warning);
    assert_eq!((status(&swap(4 << 30)), swap(4 << 30).found.as_str()), (Status::Ok, "4.0 GB of swap, swappiness 1"));
    let facts = |free| Facts { disk_free: free, memory_available: free, ..Facts::default() };
    for (free, expected) in [(4, Status::Failed), (5, Status::Warning), (9, Status::Warning), (10, Status::Ok)] {
        assert_eq!(status(&vm::disk(&facts(free), 5)), expected, "{free}");
        assert_eq!(status(&vm::memory(&facts(free), 5)), expected, "{free}");
    }
    let now = Timestamp::from_second(1_800_000_000).expect("a time");
    let before = |hours: i64| Timestamp::from_second(1_800_000_000 - hours * 3600).ok();
    let ttl = Some(Duration::from_secs(60));
    for (last, previews, ttl, expected) in [
        (before(1), 3, ttl, Status::Ok),
        (before(27), 3, ttl, Status::Warning),
        (None, 3, ttl, Status::Warning),
        (None, 3, None, Status::Ok),
        (None, 0, ttl, Status::Ok),
    ] {
        assert_eq!(status(&vm::sweep(last, now, previews, ttl)), expected, "{last:?} {previews}");
    }
}

#[test]
fn the_ways_not_to_get_in() {
    let place = Place::Vm(Destination::parse("ssh://deploy@vm.example.com:2222").expect("sound"));
    let of = |kind, context: &str, pinned| {
        let fault = Fault::new(kind, "connect to the VM", context);
        vm::reached(&place, pinned, Some(&fault)).map(|finding| (status(&finding), finding))
    };
    let [reach, key, login] = of(FaultKind::Denied, "Permission denied", true);
    assert_eq!((reach.0, key.0, login.0), (Status::Ok, Status::Ok, Status::Failed));
    let [reach, key, login] = of(FaultKind::Unreachable, "Connection refused", true);
    assert_eq!((reach.0, key.0, login.0), (Status::Failed, Status::Skipped, Status::Skipped));
    assert!(reach.1.next.is_some_and(|next| next.contains("ssh -v -p 2222 vm.example.com")));
    let [_, none, login] = of(FaultKind::HostKey, "is not known", false);
    assert_eq!((none.0, login.0), (Status::Failed, Status::Skipped));
    let [_, unknown, _] = of(FaultKind::HostKey, "is not known", true);
    assert_ne!(none.1.found, unknown.1.found, "none at all, and one for another machine");
    assert!(unknown.1.next.is_some_and(|next| next.contains("ssh-keyscan -p 2222 vm.example.com")));
    let [_, changed, _] = of(FaultKind::HostKey, "x has another host key than the one that was pinned", true);
    assert!(changed.1.next.is_some_and(|next| next.contains("do not connect")));
}

#[test]
fn programs_that_do_not_answer() {
    for program in [Program::Missing, Program::Hung, Program::Failed(String::new()), Program::Failed("no".into())] {
        assert_eq!(status(&machine::docker_cli(&program)), Status::Failed);
        assert_eq!(status(&machine::ssh_client(&program)), Status::Failed);
        assert_eq!(status(&machine::compose(&Program::Said("x".into()), &program)), Status::Failed);
        assert_eq!(status(&machine::buildx(&Program::Said("x".into()), &program)), Status::Warning);
    }
    assert_eq!(status(&machine::compose(&Program::Missing, &Program::Missing)), Status::Skipped);
    for (version, expected) in
        [("2.23.9", Status::Failed), ("v2.24.0", Status::Ok), ("5.0.1", Status::Ok), ("?", Status::Failed)]
    {
        assert_eq!(
            status(&machine::compose(&Program::Said("x".into()), &Program::Said(version.into()))),
            expected,
            "{version}"
        );
    }
}

fn container(name: &str, network: &str, ports: &[u16], managed: bool) -> Container {
    let published =
        |port: &u16| PublishedPort { host_ip: None, host_port: *port, container_port: *port, protocol: "tcp".into() };
    Container {
        id: name.into(),
        name: name.into(),
        image: "proxy:1".into(),
        image_id: String::new(),
        state: ContainerState::Running,
        health: Health::None,
        labels: managed.then(|| (crate::ownership::MANAGED.to_owned(), "true".to_owned())).into_iter().collect(),
        created: 0,
        ports: ports.iter().map(published).collect(),
        networks: BTreeMap::from([(network.to_owned(), IpAddr::from([172, 18, 0, 2]))]),
        volumes: Default::default(),
    }
}

#[test]
fn a_proxys_network_has_an_end() {
    let judge = |room: u64, containers: usize| {
        let engine = Examined {
            networks: vec!["edge".to_owned()],
            rooms: BTreeMap::from([("edge".to_owned(), room)]),
            running: vec![container("web", "edge", &[], true); containers],
            ..Examined::default()
        };
        proxy::network(&engine, "edge")
    };
    let statuses = [(61, 3), (61, 48), (61, 49), (61, 61)].map(|(room, taken)| status(&judge(room, taken)));
    assert_eq!(statuses, [Status::Ok, Status::Ok, Status::Warning, Status::Failed]);
    assert!(judge(61, 61).found.contains("61 containers, 61 of them taken"));
}

#[test]
fn a_proxy_is_known_by_its_network_and_its_ports() {
    let judge = |running: Vec<Container>, listening: &[u16]| {
        let engine = Examined { running, ..Examined::default() };
        let finding = proxy::container(&engine, "edge", None, &listening.iter().copied().collect());
        (status(&finding), finding.found)
    };
    let preview = || container("web", "edge", &[], true);
    let (found, words) = judge(vec![preview(), container("traefik", "edge", &[443, 80], false)], &[]);
    assert_eq!((found, words.as_str()), (Status::Ok, "traefik (proxy:1) is in `edge` and has port 80 and 443"));
    assert_eq!(judge(vec![preview()], &[]).0, Status::Failed, "previews are no proxies");
    let (found, words) = judge(vec![preview(), container("caddy", "other", &[443], false)], &[443]);
    assert!(
        found == Status::Failed && words.contains("caddy (proxy:1) has the ports, and is not in the network"),
        "{words}"
    );
    assert_eq!(judge(vec![container("tunnelled", "edge", &[8080], false)], &[]).0, Status::Warning);
    let (found, words) = judge(vec![], &[80]);
    assert!(found == Status::Failed && words.contains("something else listens on port 80"), "{words}");
}

#[test]
fn a_proxy_that_is_told_by_files_is_the_one_with_that_name() {
    let judge = |running: Vec<Container>, stopped: Vec<Container>| {
        let engine = Examined { running, stopped, ..Examined::default() };
        let finding = proxy::container(&engine, "edge", Some("nginx"), &BTreeSet::new());
        (status(&finding), finding.found)
    };
    let nginx = |network: &str, ports: &[u16]| container("nginx", network, ports, false);
    let other = || container("traefik", "edge", &[80, 443], false);
    assert_eq!(judge(vec![other(), nginx("edge", &[8080, 443])], vec![]).0, Status::Ok);
    let (found, words) = judge(vec![other()], vec![]);
    assert!(found == Status::Failed && words.contains("no container `nginx`"), "{words}");
    assert!(words.contains("traefik (proxy:1) has the ports, and is told of no route"), "{words}");
    let (found, words) = judge(vec![], vec![nginx("edge", &[])]);
    assert!(found == Status::Failed && words.ends_with("does not run"), "{words}");
    let (found, words) = judge(vec![nginx("other", &[443])], vec![]);
    assert!(found == Status::Failed && words.contains("is not in the network `edge`"), "{words}");
    let (found, words) = judge(vec![nginx("edge", &[]), other()], vec![]);
    assert!(found == Status::Warning && words.contains("neither port 80 nor 443; traefik"), "{words}");
}

#[test]
fn every_kind_of_trouble_with_a_certificate_says_what_to_do() {
    let now = Timestamp::from_second(1_800_000_000).expect("a time");
    let after = |days: i64| Timestamp::from_second(1_800_000_000 + days * 86_400).expect("a time");
    let name = "pr-7.example.com";
    for (days, expected) in [(1, Status::Failed), (2, Status::Warning), (13, Status::Warning), (14, Status::Ok)] {
        assert_eq!(status(&way_in::certificate(name, Ok(after(days)), now)), expected, "{days}");
    }
    for trouble in [
        Trouble::Expired(Some(now)),
        Trouble::Expired(None),
        Trouble::NotYet,
        Trouble::Name(vec![]),
        Trouble::Name(vec!["a".into()]),
        Trouble::Issuer,
        Trouble::Roots("none".into()),
        Trouble::Handshake("alert".into()),
        Trouble::Other("x".into()),
    ] {
        assert_eq!(status(&way_in::certificate(name, Err(&trouble), now)), Status::Failed, "{trouble:?}");
    }
}

#[test]
fn names_ports_redirects_and_answers() {
    let own = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([203, 0, 113, 7])];
    // The address of `[vm] host` is the one to name, whatever sorts before it.
    let host = BTreeSet::from([IpAddr::from([203, 0, 113, 7])]);
    let others = [[10, 0, 0, 5], [203, 0, 113, 7]].map(IpAddr::from);
    let vm = way_in::of_vm(host, others.into_iter());
    assert_eq!(vm, [[203, 0, 113, 7], [10, 0, 0, 5]].map(IpAddr::from));
    let told = way_in::dns("x.example.com", true, Err("no such name"), &vm).next;
    assert_eq!(told.as_deref(), Some("make a record `*.example.com` that leads to 203.0.113.7"));
    let name = "preview-doctor-probe.example.com";
    assert_eq!(status(&way_in::dns(name, true, Ok(&[IpAddr::from([203, 0, 113, 7])]), &own)), Status::Ok);
    assert_eq!(status(&way_in::dns(name, true, Ok(&[IpAddr::from([203, 0, 113, 8])]), &own)), Status::Warning);
    let none = way_in::dns(name, true, Err("no such name"), &own);
    assert_eq!(status(&none), Status::Failed);
    assert_eq!(none.next.as_deref(), Some("make a record `*.example.com` that leads to 203.0.113.7"));
    // A host that all previews share, with their names in the path.
    assert!(
        way_in::dns("vm.example.com", false, Err("x"), &own).next.is_some_and(|next| next.contains("`vm.example.com`"))
    );

    let closed = || Err::<(), _>("refused".to_owned());
    assert_eq!(status(&way_in::ports(name, true, &[(443, Ok(())), (80, Ok(()))])), Status::Ok);
    assert_eq!(status(&way_in::ports(name, true, &[(443, Ok(())), (80, closed())])), Status::Warning);
    assert_eq!(status(&way_in::ports(name, true, &[(443, closed()), (80, Ok(()))])), Status::Failed);
    assert_eq!(status(&way_in::ports(name, true, &[(443, closed()), (80, closed())])), Status::Failed);
    assert_eq!(status(&way_in::ports(name, false, &[(80, closed())])), Status::Failed);

    assert_eq!(status(&way_in::redirect(name, Ok((308, Some("https://x/"))))), Status::Ok);
    for answer in [Ok((200, None)), Ok((302, Some("http://x/"))), Ok((404, None)), Err("gone")] {
        assert_eq!(status(&way_in::redirect(name, answer)), Status::Warning);
    }
    for (answer, expected) in [
        (Ok(200), Status::Ok),
        (Ok(302), Status::Ok),
        (Ok(401), Status::Ok),
        (Ok(404), Status::Warning),
        (Ok(500), Status::Warning),
        (Ok(502), Status::Failed),
        (Err("gone"), Status::Failed),
    ] {
        assert_eq!(status(&way_in::answer("pr-7", "https://x", answer)), expected, "{answer:?}");
    }
    assert_eq!(status(&way_in::provider(None)), Status::Skipped);
    assert_eq!(status(&way_in::provider(Some(Ok("zone example.com may be edited".into())))), Status::Ok);
    let denied = Fault::new(FaultKind::Denied, "ask the provider", "the token may not edit example.com");
    let finding = way_in::provider(Some(Err(denied)));
    assert_eq!((status(&finding), finding.found.as_str()), (Status::Failed, "the token may not edit example.com"));
}

/// What is said of a preview's address, resolved as `to`, whose ports are closed.
fn front(url: &str, to: Result<Vec<IpAddr>, String>, records: bool, tunnel: bool) -> Vec<(Check, Status, String)> {
    use crate::name::{AppName, Key, Naming, UrlTemplate};
    let naming =
        Naming::new(&AppName::parse("shop").expect("a name"), None, &[UrlTemplate::parse(url).expect("a template")]);
    let wish = Wish {
        configuration: String::new(),
        warnings: vec![],
        place: Place::Local,
        pinned: true,
        programs: Programs::default(),
        base_dir: "/opt/previews".into(),
        docker_socket: "/var/run/docker.sock".into(),
        proxy_network: Some("edge".into()),
        proxy_container: None,
        urls: naming.expect("sound").resolve(&Key::pull(7).expect("a key")).expect("sound").urls,
        records,
        tunnel,
        free_disk: 0,
        free_memory: 0,
        max_previews: 1,
        ttl: None,
        ca: None,
    };
    let ports = vec![(443, Err("refused".to_owned())), (80, Err("refused".to_owned()))];
    let front = look::Front { addresses: to, ports, certificate: None, redirect: None };
    let vm = [IpAddr::from([203, 0, 113, 7])];
    let findings = run::of_fronts(&wish, &[front], &vm);
    findings.iter().map(|finding| (finding.id, status(finding), finding.found.clone())).collect()
}

#[test]
fn records_that_come_with_previews_and_tunnels_are_no_faults() {
    let statuses = |url, to: &[[u8; 4]], records, tunnel| {
        let found: Vec<IpAddr> = to.iter().copied().map(IpAddr::from).collect();
        let to = if found.is_empty() { Err("no such name".to_owned()) } else { Ok(found) };
        front(url, to, records, tunnel).into_iter().map(|(id, status, _)| (id, status)).collect::<Vec<_>>()
    };
    let (own, shared) = ("https://{name}.example.com", "https://example.com/{name}");
    let (ok, skipped, failed) = (Status::Ok, Status::Skipped, Status::Failed);
    let all = |dns, ports, certificate| {
        vec![(Check::Dns, dns), (Check::Ports, ports), (Check::Certificate, certificate), (Check::Redirect, skipped)]
    };
    assert_eq!(statuses(own, &[], false, false), all(failed, failed, skipped), "a wildcard record is wanted");
    assert_eq!(statuses(own, &[], true, false), all(skipped, failed, skipped), "the rest is asked of the VM");
    assert_eq!(
        statuses(shared, &[], true, false),
        all(failed, failed, skipped),
        "no preview's own, so no record comes"
    );
    assert_eq!(statuses(own, &[[203, 0, 113, 7]], true, false), all(ok, failed, skipped));
    assert_eq!(statuses(own, &[], true, true), all(skipped, skipped, skipped));
    assert_eq!(statuses(own, &[[104, 16, 0, 1]], true, true), all(ok, skipped, skipped), "the provider's addresses");
    let told = front(own, Err("no such name".into()), true, true);
    assert!(told[0].2.contains("[dns]") && told[1].2.contains("[tunnel]"), "{told:?}");
}

#[test]
fn the_report_for_people() {
    let findings = vec![
        Finding::skipped(Check::Answer, "no preview is there to be asked"),
        Finding::ok(Check::DockerCli, "Docker version 28.5.2"),
        vm::clock(400),
        way_in::redirect("pr-7.example.com", Ok((200, None))),
    ];
    let report = Report::new(findings);
    assert!(!report.ok && !report.passes(false));
    insta::assert_snapshot!(super::report(&report, false));
    let colored = super::report(&report, true);
    assert!(colored.contains("\u{1b}[1;31mFAILED \u{1b}[0m"), "{colored:?}");
    let warned = Report::new(vec![way_in::redirect("x", Ok((200, None)))]);
    assert!(warned.passes(false) && !warned.passes(true));
}
