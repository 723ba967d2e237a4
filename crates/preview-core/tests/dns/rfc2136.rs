//! The adapter for dynamic updates against Knot and BIND.

use std::collections::BTreeSet;

use async_trait::async_trait;
use preview_core::config::AdapterTable;
use preview_core::dns::rfc2136::Rfc2136;
use preview_core::dns::{Dns as _, Place};
use preview_core::fault::FaultKind;
use preview_core::project::Target;
use preview_core::testkit::conformance::dns::{Subject, World, suite};

use crate::server::{KEY, Kind, SECRET, Server, ZONE};

const KINDS: [Kind; 2] = [Kind::Knot, Kind::Bind];

fn adapter(server: &Server, host: &str, target: &str, extra: &str) -> Rfc2136 {
    with_key(server, host, target, extra, KEY, SECRET)
}

fn with_key(server: &Server, host: &str, target: &str, extra: &str, key: &str, secret: &str) -> Rfc2136 {
    let port = server.port;
    let table =
        format!("zone = '{ZONE}'\nserver = '127.0.0.1:{port}'\nkey_name = '{key}'\ntarget = '{target}'\n{extra}");
    let table = AdapterTable::new("rfc2136", table.parse().expect("TOML"));
    let place = Place { host: Some(host.to_owned()), port: None, base_dir: "/opt/previews".to_owned(), tunnel: None };
    let environment = [("PREVIEW_DNS_TSIG_KEY".to_owned(), secret.to_owned())].into();
    Rfc2136::from_table(&table, &place, &environment).expect("an adapter")
}

fn preview(name: &str) -> Target {
    Target { app: "shop".to_owned(), name: name.to_owned(), project: format!("shop_{name}") }
}

fn hosts(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| format!("{name}.{ZONE}")).collect()
}

/// The zone has a wildcard record, which answers for what is not there.
const WILD: &str = "192.0.2.200";

#[async_trait]
impl World for Server {
    async fn put(&self, host: &str, address: &str) {
        self.nsupdate(&format!("update add {host} 300 A {address}"));
    }
    async fn look(&self, host: &str) -> Vec<String> {
        self.dig(host, "A").into_iter().filter(|answer| answer != WILD).collect()
    }
}

#[tokio::test]
async fn conformance() {
    for kind in KINDS {
        let Some(server) = Server::start(kind, true) else { return };
        let (ours, moved) = (adapter(&server, "one", "192.0.2.7", ""), adapter(&server, "one", "192.0.2.8", ""));
        let other = adapter(&server, "two", "192.0.2.9", "");
        let subject =
            Subject { ours: &ours, moved: &moved, other: &other, address: "192.0.2.7", moved_to: "192.0.2.8" };
        suite(&subject, &server, ZONE).await;
    }
}

#[tokio::test]
async fn a_name_an_ipv6_address_and_another_ttl() {
    for kind in KINDS {
        let Some(server) = Server::start(kind, true) else { return };
        let named = adapter(&server, "one", "vm.example.com", "");
        assert_eq!(named.write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("written"), 1, "{kind:?}");
        assert_eq!(server.dig("pr-7", "CNAME"), ["vm.example.com"], "{kind:?}");
        assert_eq!(server.dig("_preview.pr-7", "TXT").len(), 1, "{kind:?}");
        let six = adapter(&server, "one", "2001:db8::7", "");
        assert_eq!(six.write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("another type"), 1, "{kind:?}");
        assert_eq!((server.dig("pr-7", "AAAA"), server.dig("pr-7", "CNAME")), (vec!["2001:db8::7".to_owned()], vec![]));
        let four = adapter(&server, "one", "192.0.2.7", "");
        four.write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("another type");
        assert_eq!(server.ttl("pr-7"), Some(120), "{kind:?}");
        let longer = adapter(&server, "one", "192.0.2.7", "ttl = 600");
        assert_eq!(longer.write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("the same address"), 0);
        assert_eq!(server.ttl("pr-7"), Some(600), "{kind:?}");
    }
}

#[tokio::test]
async fn a_cname_that_the_server_would_drop_without_a_word_is_told() {
    for kind in KINDS {
        let Some(server) = Server::start(kind, true) else { return };
        server.nsupdate(&format!("update add pr-7.{ZONE} 300 TXT \"a word\""));
        let named = adapter(&server, "one", "vm.example.com", "");
        let fault = named.write(&preview("pr-7"), &hosts(&["pr-7", "pr-7-api"])).await.expect_err("not beside a TXT");
        assert_eq!(fault.kind, FaultKind::Conflict, "{kind:?}: {fault}");
        assert_eq!(server.dig("pr-7-api", "CNAME"), Vec::<String>::new(), "{kind:?}: all or nothing");
        // An address can.
        let four = adapter(&server, "one", "192.0.2.7", "");
        assert_eq!(four.write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("written"), 1);
        assert_eq!(four.remove(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("removed"), 1);
        assert_eq!(server.dig("pr-7", "TXT"), ["\"a word\""], "{kind:?}: somebody's");
    }
}

#[tokio::test]
async fn what_is_dropped_after_the_rest_was_written_is_no_refusal() {
    for kind in KINDS {
        let Some(server) = Server::start(kind, true) else { return };
        let four = adapter(&server, "one", "192.0.2.7", "");
        four.write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("written");
        server.nsupdate(&format!("update add pr-7.{ZONE} 300 TXT \"a word\""));
        let named = adapter(&server, "one", "vm.example.com", "");
        let fault = named.write(&preview("pr-7"), &hosts(&["pr-7", "pr-7-api"])).await.expect_err("not beside a TXT");
        assert_eq!(server.dig("pr-7-api", "CNAME"), ["vm.example.com"], "{kind:?}: the other host is written");
        assert!(fault.transient, "{kind:?}: nobody may take it for nothing written: {fault}");
        assert_eq!(named.remove(&preview("pr-7"), &hosts(&["pr-7", "pr-7-api"])).await.expect("taken back"), 2);
        assert_eq!(server.dig("pr-7-api", "CNAME"), Vec::<String>::new(), "{kind:?}");
    }
}

#[tokio::test]
async fn of_two_that_want_one_host_at_once_one_gets_it() {
    for kind in KINDS {
        let Some(server) = Server::start(kind, true) else { return };
        let (one, two) = (adapter(&server, "one", "192.0.2.7", ""), adapter(&server, "two", "192.0.2.8", ""));
        for number in 0..5 {
            let wanted = hosts(&[&format!("h{number}")]);
            let (pr, want) = (preview("pr-7"), &wanted);
            let (first, second) = futures_util::join!(one.write(&pr, want), two.write(&pr, want));
            assert_eq!([&first, &second].iter().filter(|done| done.is_ok()).count(), 1, "{first:?} {second:?}");
            assert_eq!(server.dig(&format!("h{number}"), "A").len(), 1, "{kind:?}");
        }
    }
}

#[tokio::test]
async fn wrong_keys_are_denied_and_nothing_shows_the_secret() {
    for kind in KINDS {
        let Some(server) = Server::start(kind, true) else { return };
        let other = "YW5vdGhlci1zZWNyZXQtb2YtdGhlLXRlc3RzIQ==";
        for (key, secret) in [(KEY, other), ("unknown-key", SECRET)] {
            let dns = with_key(&server, "one", "192.0.2.7", "", key, secret);
            let fault = dns.write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect_err("denied");
            assert_eq!((fault.kind, fault.transient), (FaultKind::Denied, false), "{kind:?}: {}", fault.chain());
            assert!(!fault.chain().contains(secret) && !format!("{fault:?}").contains(secret));
        }
        assert_eq!(server.dig("pr-7", "A"), [WILD], "{kind:?}: nothing was written");
    }
}

#[tokio::test]
async fn a_server_that_transfers_no_zone_says_so() {
    for kind in KINDS {
        let Some(server) = Server::start(kind, false) else { return };
        let dns = adapter(&server, "one", "192.0.2.7", "");
        dns.write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("updates work");
        let fault = dns.list().await.expect_err("no transfer");
        assert_eq!(fault.kind, FaultKind::Unsupported, "{kind:?}: {}", fault.chain());
        assert_eq!(dns.remove(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("removed"), 1);
    }
}

#[tokio::test]
async fn nobody_there_is_transient() {
    let Some(server) = Server::start(Kind::Knot, true) else { return };
    let dns = adapter(&server, "one", "192.0.2.7", "");
    drop(server);
    let fault = dns.list().await.expect_err("gone");
    assert!(fault.transient && fault.kind == FaultKind::Unreachable, "{}", fault.chain());
}
