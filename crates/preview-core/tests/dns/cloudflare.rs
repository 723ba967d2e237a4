//! The Cloudflare adapter against the fake: its contract, pages, limits, and what it says of errors.

use std::collections::BTreeSet;

use async_trait::async_trait;
use preview_core::config::AdapterTable;
use preview_core::dns::cloudflare::Cloudflare;
use preview_core::dns::{Dns as _, Place};
use preview_core::fault::FaultKind;
use preview_core::project::Target;
use preview_core::testkit::conformance::dns::{Subject, World, suite};

use crate::fake::{Fake, TOKEN};

fn adapter(fake: &Fake, host: &str, target: &str, extra: &str) -> Cloudflare {
    with_token(fake, host, target, extra, TOKEN)
}

fn with_token(fake: &Fake, host: &str, target: &str, extra: &str, token: &str) -> Cloudflare {
    let table = format!("zone = 'example.com'\ntarget = '{target}'\n{extra}");
    let table = AdapterTable::new("cloudflare", table.parse().expect("TOML"));
    let place = Place { host: Some(host.to_owned()), port: None, base_dir: "/opt/previews".to_owned(), tunnel: None };
    let environment = [("CLOUDFLARE_API_TOKEN", token.to_owned()), ("PREVIEW_CLOUDFLARE_API", fake.url())];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).into();
    Cloudflare::from_table(&table, &place, &environment).expect("an adapter")
}

fn preview(name: &str) -> Target {
    Target { app: "shop".to_owned(), name: name.to_owned(), project: format!("shop_{name}") }
}

fn hosts(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| format!("{name}.example.com")).collect()
}

#[async_trait]
impl World for Fake {
    async fn put(&self, host: &str, address: &str) {
        Fake::put(self, "A", host, address, Some("written by hand"));
    }
    async fn look(&self, host: &str) -> Vec<String> {
        Fake::look(self, host)
    }
}

#[tokio::test]
async fn conformance() {
    let fake = Fake::start().await;
    let (ours, moved) = (adapter(&fake, "one", "192.0.2.7", ""), adapter(&fake, "one", "vm.example.com", ""));
    let other = adapter(&fake, "two", "192.0.2.9", "");
    let subject =
        Subject { ours: &ours, moved: &moved, other: &other, address: "192.0.2.7", moved_to: "vm.example.com" };
    suite(&subject, &fake, "example.com").await;
}

#[tokio::test]
async fn all_hosts_of_a_deploy_are_one_batch_and_pages_are_read_to_the_end() {
    let fake = Fake::start().await;
    let dns = adapter(&fake, "one", "192.0.2.7", "");
    let names: Vec<String> = (0..130).map(|number| format!("h{number}")).collect();
    let many = hosts(&names.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(dns.write(&preview("pr-7"), &many).await.expect("written"), 130);
    let batches = fake.memory().calls.iter().filter(|call| call.ends_with("/batch")).count();
    assert_eq!(batches, 1);
    assert_eq!(dns.list().await.expect("listed").len(), 130);
    assert_eq!(dns.remove(&preview("pr-7"), &many).await.expect("removed"), 130);
    assert!(fake.memory().records.is_empty());
}

/// The API's schema says that `total_count` counts without the filter.
#[tokio::test]
async fn a_list_ends_with_the_first_page_that_is_not_full() {
    let fake = Fake::start().await;
    let dns = adapter(&fake, "one", "192.0.2.7", "");
    let names: Vec<String> = (0..130).map(|number| format!("h{number}")).collect();
    let many = hosts(&names.iter().map(String::as_str).collect::<Vec<_>>());
    dns.write(&preview("pr-7"), &many).await.expect("written");
    let lists = |fake: &Fake| fake.memory().calls.iter().filter(|call| call.starts_with("GET")).count();
    // (pages that the server makes, what it says that there is, requests)
    for (page, total, requests) in [(None, 150, 2), (None, 0, 2), (Some(50), 150, 3), (Some(65), 150, 3)] {
        (fake.memory().page, fake.memory().total) = (page, Some(total));
        let before = lists(&fake);
        let found = dns.list().await.expect("listed").len();
        assert_eq!((found, lists(&fake) - before), (130, requests), "{page:?} {total}");
    }
    (fake.memory().page, fake.memory().total) = (None, Some(150));
    let before = lists(&fake);
    assert_eq!(dns.write(&preview("pr-8"), &hosts(&["pr-8"])).await.expect("written"), 1);
    assert_eq!(lists(&fake) - before, 1, "one question for one host");
}

#[tokio::test]
async fn a_full_zone_says_what_to_do_and_has_nothing_of_it() {
    let fake = Fake::start().await;
    fake.put("A", "www.example.com", "192.0.2.99", None);
    fake.memory().limit = Some(2);
    let dns = adapter(&fake, "one", "192.0.2.7", "");
    let fault = dns.write(&preview("pr-7"), &hosts(&["pr-7", "pr-7-api"])).await.expect_err("full");
    assert!(!fault.transient && fault.context.contains("wildcard record"), "{fault}");
    assert_eq!(fake.memory().records.len(), 1, "a batch is all or nothing");
}

#[tokio::test]
async fn a_wrong_token_and_a_zone_that_it_does_not_see_are_denied_without_showing_it() {
    let fake = Fake::start().await;
    let dns = with_token(&fake, "one", "192.0.2.7", "", "hunter22-wrong");
    let fault = dns.write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect_err("denied");
    assert_eq!((fault.kind, fault.transient), (FaultKind::Denied, false), "{fault}");
    assert!(!fault.chain().contains("hunter22") && fault.context.contains("9109"), "{fault}");

    let table = AdapterTable::new("cloudflare", "zone = 'example.org'\ntarget = '192.0.2.7'".parse().expect("TOML"));
    let place = Place { host: Some("one".to_owned()), port: None, base_dir: "/opt/previews".to_owned(), tunnel: None };
    let environment = [("PREVIEW_DNS_TOKEN", TOKEN.to_owned()), ("PREVIEW_CLOUDFLARE_API", fake.url())];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).into();
    let dns = Cloudflare::from_table(&table, &place, &environment).expect("an adapter");
    let fault = dns.list().await.expect_err("no such zone");
    assert!(fault.kind == FaultKind::Denied && fault.context.contains("example.org"), "{fault}");
}

#[tokio::test]
async fn a_short_wait_is_waited_and_a_long_one_is_told() {
    let fake = Fake::start().await;
    let dns = adapter(&fake, "one", "192.0.2.7", "");
    fake.memory().next.extend([(429, 10_000, Some(1)), (429, 10_000, Some(1))]);
    let begun = std::time::Instant::now();
    assert_eq!(dns.write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("after a while"), 1);
    assert!(begun.elapsed().as_millis() >= 2_000, "it was waited");
    fake.memory().next.push_back((429, 10_000, Some(300)));
    let fault = dns.list().await.expect_err("too long");
    assert!(!fault.transient && fault.context.contains("300 s"), "{fault}");
}

#[tokio::test]
async fn what_may_pass_is_transient() {
    let fake = Fake::start().await;
    let dns = adapter(&fake, "one", "192.0.2.7", "");
    fake.memory().next.push_back((502, 0, None));
    assert!(dns.list().await.expect_err("a gateway's trouble").transient);
    let table = AdapterTable::new("cloudflare", "zone = 'example.com'\ntarget = '192.0.2.7'".parse().expect("TOML"));
    let place = Place { host: Some("one".to_owned()), port: None, base_dir: "/opt/previews".to_owned(), tunnel: None };
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let environment = [("PREVIEW_DNS_TOKEN", TOKEN.to_owned()), ("PREVIEW_CLOUDFLARE_API", format!("http://{nobody}"))];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).into();
    let dns = Cloudflare::from_table(&table, &place, &environment).expect("an adapter");
    let fault = dns.list().await.expect_err("nobody there");
    assert!(fault.transient && fault.kind == FaultKind::Unreachable, "{fault}");
}

#[tokio::test]
async fn a_record_that_came_in_between_is_a_conflict() {
    let fake = Fake::start().await;
    let dns = adapter(&fake, "one", "vm.example.com", "");
    // Found by no name filter, since others write capitals; refused all the same.
    fake.put("A", "pr-7.example.com", "192.0.2.99", None);
    let fault = dns.write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect_err("somebody's");
    assert!(fault.context.contains("192.0.2.99") && fault.context.contains("no comment"), "{fault}");
    for code in [81_057, 81_058, 81_053] {
        fake.memory().next.extend([(400, code, None)]);
        let fault = dns.write(&preview("pr-8"), &hosts(&["pr-8"])).await.expect_err("in between");
        assert_eq!((fault.kind, fault.transient), (FaultKind::Conflict, false), "{fault}");
    }
}

#[tokio::test]
async fn proxied_records_carry_the_proxys_ttl_and_a_warning_where_its_certificate_ends() {
    let fake = Fake::start().await;
    let dns = adapter(&fake, "one", "192.0.2.7", "proxied = true");
    assert_eq!(dns.write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("written"), 1);
    let record = fake.memory().records.values().next().cloned().expect("a record");
    assert_eq!((record["ttl"].as_u64(), record["proxied"].as_bool()), (Some(1), Some(true)));
    assert_eq!(dns.write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("again"), 0);
    assert!(dns.check(&hosts(&["pr-7"])).expect("fine").is_empty());
    let warnings = dns.check(&hosts(&["pr-7.preview"])).expect("allowed");
    assert!(warnings.len() == 1 && warnings[0].contains("certificate"), "{warnings:?}");
}

/// `ssh://vm` and `ssh://vm:22` are one VM; another port may be another.
#[tokio::test]
async fn the_usual_port_is_no_part_of_the_mark() {
    let fake = Fake::start().await;
    let behind = |port| {
        let table =
            AdapterTable::new("cloudflare", "zone = 'example.com'\ntarget = '192.0.2.7'".parse().expect("TOML"));
        let place = Place { host: Some("one".to_owned()), port, base_dir: "/opt/previews".to_owned(), tunnel: None };
        let environment = [("PREVIEW_DNS_TOKEN", TOKEN.to_owned()), ("PREVIEW_CLOUDFLARE_API", fake.url())];
        let environment = environment.map(|(name, value)| (name.to_owned(), value)).into();
        Cloudflare::from_table(&table, &place, &environment).expect("an adapter")
    };
    assert_eq!(behind(None).write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("written"), 1);
    assert_eq!(behind(Some(22)).write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("the same"), 0);
    let fault = behind(Some(2222)).write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect_err("another VM's");
    assert_eq!(fault.kind, FaultKind::Conflict, "{fault}");
}
