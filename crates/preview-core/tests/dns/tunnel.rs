//! A Cloudflare Tunnel as the way in: the contract of records holds with it, and its rules are merged, never lost.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use preview_core::config::{AdapterTable, Tunnel};
use preview_core::dns::cloudflare::Cloudflare;
use preview_core::dns::{Dns as _, Place};
use preview_core::fault::FaultKind;
use preview_core::lock::Lock;
use preview_core::project::Target;
use preview_core::testkit::conformance::dns::{Subject, World, suite};
use preview_core::testkit::lock::MemoryLock;
use serde_json::{Value, json};

use crate::fake::{ACCOUNT, Fake, TOKEN, TUNNEL};

const LEADS: &str = "f70ff985-a4ef-4643-bbbc-4a0ed4fc8415.cfargotunnel.com";

fn adapter(fake: &Fake, lock: &Arc<dyn Lock>, host: &str, service: &str) -> Cloudflare {
    let table = AdapterTable::new("cloudflare", "zone = 'example.com'".parse().expect("TOML"));
    let tunnel = Tunnel { account: ACCOUNT.to_owned(), id: TUNNEL.to_owned(), service: service.to_owned() };
    let base_dir = "/opt/previews".to_owned();
    let place = Place { host: Some(host.to_owned()), port: None, base_dir, tunnel: Some(tunnel) };
    let environment = [("CLOUDFLARE_API_TOKEN", TOKEN.to_owned()), ("PREVIEW_CLOUDFLARE_API", fake.url())];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).into();
    let dns = Cloudflare::from_table(&table, &place, &environment).expect("an adapter");
    dns.under(lock, "/opt/previews");
    dns
}

fn preview(name: &str) -> Target {
    Target { app: "shop".to_owned(), name: name.to_owned(), project: format!("shop_{name}") }
}

fn hosts(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| format!("{name}.example.com")).collect()
}

/// Hosts and services of the rules, in order.
fn rules(fake: &Fake) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let memory = fake.memory();
    let rules = memory.tunnel["ingress"].as_array().cloned().unwrap_or_default();
    rules.iter().map(|rule| (text(&rule["hostname"]), text(&rule["service"]))).collect()
}

struct Through<'a>(&'a Fake);

#[async_trait]
impl World for Through<'_> {
    async fn put(&self, host: &str, address: &str) {
        self.0.put("A", host, address, None);
    }
    /// Where the host leads: to the tunnel, and on by its rule.
    async fn look(&self, host: &str) -> Vec<String> {
        let records = self.0.look(host);
        let rule = rules(self.0).into_iter().find(|(name, _)| name == host).map(|(_, service)| service);
        match rule {
            Some(service) if records == [LEADS] => vec![service],
            Some(service) => vec![format!("a rule to {service} without its record: {records:?}")],
            None => records,
        }
    }
}

#[tokio::test]
async fn conformance() {
    let fake = Fake::start().await;
    let lock: Arc<dyn Lock> = Arc::new(MemoryLock::default());
    let (ours, moved) = (adapter(&fake, &lock, "one", "http://a:80"), adapter(&fake, &lock, "one", "http://b:80"));
    let other = adapter(&fake, &lock, "two", "http://c:80");
    let subject =
        Subject { ours: &ours, moved: &moved, other: &other, address: "http://a:80", moved_to: "http://b:80" };
    suite(&subject, &Through(&fake), "example.com").await;
    assert_eq!(rules(&fake), [(String::new(), "http_status:404".to_owned())], "nothing of ours is left");
}

#[tokio::test]
async fn rules_of_others_stay_and_those_of_runs_at_once_are_all_there() {
    let fake = Fake::start().await;
    let theirs = json!([
        {"hostname": "www.example.com", "service": "http://www:80", "originRequest": {"noTLSVerify": true}},
        {"hostname": "*.example.com", "service": "http://rest:80"},
        {"service": "http_status:404"},
    ]);
    fake.memory().tunnel = json!({"ingress": theirs, "warp-routing": {"enabled": true}});
    let lock: Arc<dyn Lock> = Arc::new(MemoryLock::default());
    let at_once = (1..=4).map(|number| {
        // Each run has its own adapter, as each process has.
        let dns = adapter(&fake, &lock, "one", "http://preview-proxy:80");
        async move { dns.write(&preview(&format!("pr-{number}")), &hosts(&[&format!("pr-{number}")])).await }
    });
    futures_util::future::try_join_all(at_once).await.expect("all of them");
    let names: Vec<String> = rules(&fake).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        (names.len(), names[0].as_str(), names[5].as_str(), names[6].as_str()),
        (7, "www.example.com", "*.example.com", "")
    );
    for number in 1..=4 {
        assert!(names.contains(&format!("pr-{number}.example.com")), "{names:?}");
        assert_eq!(fake.look(&format!("pr-{number}.example.com")), [LEADS]);
    }
    let proxied = fake.memory().records.values().all(|record| record["proxied"] == true && record["type"] == "CNAME");
    assert!(proxied);

    let at_once = (1..=4).map(|number| {
        let dns = adapter(&fake, &lock, "one", "http://preview-proxy:80");
        async move { dns.remove(&preview(&format!("pr-{number}")), &hosts(&[&format!("pr-{number}")])).await }
    });
    let removed = futures_util::future::try_join_all(at_once).await.expect("all of them");
    assert_eq!(removed, [1, 1, 1, 1]);
    let memory = fake.memory();
    assert_eq!((&memory.tunnel["ingress"], memory.records.len()), (&theirs, 0));
}

#[tokio::test]
async fn a_rule_of_somebody_else_is_a_conflict_before_anything_is_written() {
    let fake = Fake::start().await;
    let theirs = json!({"ingress": [{"hostname": "pr-7.example.com", "service": "http://theirs:80"}, {"service": "http_status:404"}]});
    fake.memory().tunnel = theirs.clone();
    let lock: Arc<dyn Lock> = Arc::new(MemoryLock::default());
    let dns = adapter(&fake, &lock, "one", "http://preview-proxy:80");
    let fault = dns.write(&preview("pr-7"), &hosts(&["pr-7"])).await.expect_err("theirs");
    assert!(fault.kind == FaultKind::Conflict && fault.context.contains("http://theirs:80"), "{fault}");
    assert!(fake.memory().records.is_empty());
    assert_eq!(fake.memory().tunnel, theirs);
    assert_eq!(dns.remove(&preview("pr-7"), &hosts(&["pr-7"])).await.expect("nothing of ours"), 0);
    assert_eq!(fake.memory().tunnel, theirs);
}

#[tokio::test]
async fn what_is_right_is_only_looked_at() {
    let fake = Fake::start().await;
    let lock: Arc<dyn Lock> = Arc::new(MemoryLock::default());
    let dns = adapter(&fake, &lock, "one", "http://preview-proxy:80");
    dns.write(&preview("pr-8"), &hosts(&["pr-8"])).await.expect("written");
    let calls = fake.memory().calls.len();
    dns.write(&preview("pr-8"), &hosts(&["pr-8"])).await.expect("again");
    let again: Vec<String> = fake.memory().calls.drain(calls..).collect();
    assert!(again.iter().all(|call| call.starts_with("GET")), "nothing to do is nothing written: {again:?}");
    assert_eq!(dns.remove(&preview("pr-8"), &hosts(&["pr-8"])).await.expect("removed"), 1);
    assert_eq!(rules(&fake).len(), 1);
}
