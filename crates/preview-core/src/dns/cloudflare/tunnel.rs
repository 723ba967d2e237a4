//! A Cloudflare Tunnel as the way in: a rule for each host among those of the tunnel, which others may have rules in too.
//!
//! The API knows the rules as one whole, which is replaced. So they are read, merged and written under a lock of the VM. Which rules are ours is known by the hosts:
//! those whose DNS record carries the preview's mark. All others stay as they are, in their order.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value as Json, json};

use super::super::foreign;
use super::api::Api;
use crate::config::Tunnel as Table;
use crate::fault::{Fault, FaultKind};
use crate::lock::{Acquired, Holder, Lock};

/// Somebody else's merge takes two requests.
const WAIT: Duration = Duration::from_secs(60);

/// What is to become of the rules.
#[derive(Clone, Copy)]
pub(super) enum Wish<'a> {
    /// These hosts lead to the service. A rule of a host that is not in `ours` was made by somebody else.
    Lead { hosts: &'a BTreeSet<String>, ours: &'a BTreeSet<String> },
    /// These lead nowhere.
    Drop { hosts: &'a BTreeSet<String> },
}

/// The tunnel that requests come through.
pub(super) struct Tunnel {
    path: String,
    service: String,
    lock: OnceLock<(Arc<dyn Lock>, String)>,
}

impl Tunnel {
    pub(super) fn new(table: &Table) -> Self {
        let path = format!("/accounts/{}/cfd_tunnel/{}/configurations", table.account, table.id);
        Self { path, service: table.service.clone(), lock: OnceLock::new() }
    }

    pub(super) fn under(&self, lock: &Arc<dyn Lock>, base_dir: &str) {
        // The first is as good as any: it is the same VM.
        let _ = self.lock.set((Arc::clone(lock), format!("{base_dir}/.tunnel.lock")));
    }

    /// The hosts whose rules would change. Fails where a rule of somebody else is in the way.
    pub(super) async fn would_change(
        &self,
        api: &Api,
        operation: &'static str,
        wish: Wish<'_>,
    ) -> Result<BTreeSet<String>, Fault> {
        let found = api.get(operation, &self.path).await?;
        let config = &found["config"];
        merge(config, wish, &self.service)?;
        let rules = config["ingress"].as_array().map(Vec::as_slice).unwrap_or_default();
        let led = |host: &&String| rules.iter().any(|rule| is_of(rule, host) && rule["service"] == self.service);
        let is_of_any = |host: &&String| rules.iter().any(|rule| is_of(rule, host));
        Ok(match wish {
            Wish::Lead { hosts, .. } => hosts.iter().filter(|host| !led(host)).cloned().collect(),
            Wish::Drop { hosts } => hosts.iter().filter(is_of_any).cloned().collect(),
        })
    }

    /// Changes the rules.
    pub(super) async fn change(&self, api: &Api, operation: &'static str, wish: Wish<'_>) -> Result<(), Fault> {
        let Some((lock, path)) = self.lock.get() else {
            return Err(Fault::new(
                FaultKind::Unsupported,
                operation,
                "the tunnel's rules are changed under a lock of the VM, and there is none",
            ));
        };
        let since = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let holder = Holder { who: "a run of preview".to_owned(), why: "rules of the tunnel".to_owned(), since };
        let lease = match lock.acquire(path, &holder, WAIT, &|_| ()).await? {
            Acquired::Held(lease) => lease,
            Acquired::TimedOut(_) => {
                let context = format!("others were at work on the tunnel's rules for {} s", WAIT.as_secs());
                return Err(Fault::new(FaultKind::TimedOut, operation, context).transient());
            }
        };
        let work = async {
            let found = api.get(operation, &self.path).await?;
            if let Some(merged) = merge(&found["config"], wish, &self.service)? {
                lease.check()?;
                api.send(operation, Method::PUT, &self.path, &json!({"config": merged})).await?;
            }
            Ok(())
        };
        let done = work.await;
        lease.release(true).await?;
        done
    }
}

/// The rules' whole as it should be; `None` where it is that already.
fn merge(config: &Json, wish: Wish<'_>, service: &str) -> Result<Option<Json>, Fault> {
    let before: Vec<Json> = config["ingress"].as_array().cloned().unwrap_or_default();
    let mut rules = before.clone();
    match wish {
        Wish::Lead { hosts, ours } => {
            for host in hosts {
                match rules.iter_mut().find(|rule| is_of(rule, host)) {
                    Some(rule) if rule["service"] == service => {}
                    Some(rule) if ours.contains(host) => rule["service"] = json!(service),
                    Some(rule) => {
                        let to = rule["service"].as_str().unwrap_or("something else").to_owned();
                        return Err(foreign(host, &format!("a rule of the tunnel that leads it to {to}")));
                    }
                    None => {
                        // The first rule that fits counts, so ours comes before any that would take its requests.
                        let at = rules.iter().position(|rule| takes(rule, host)).unwrap_or(rules.len());
                        rules.insert(at, json!({"hostname": host, "service": service}));
                    }
                }
            }
        }
        Wish::Drop { hosts } => rules.retain(|rule| !hosts.iter().any(|host| is_of(rule, host))),
    }
    if rules == before {
        return Ok(None);
    }
    // A tunnel without rules gets the one that has to be the last.
    if rules.last().is_none_or(|rule| !text(rule, "hostname").is_empty()) {
        rules.push(json!({"service": "http_status:404"}));
    }
    let mut merged = if config.is_object() { config.clone() } else { json!({}) };
    merged["ingress"] = Json::Array(rules);
    Ok(Some(merged))
}

fn text<'a>(rule: &'a Json, key: &str) -> &'a str {
    rule[key].as_str().unwrap_or_default()
}

/// Whether it is the rule of exactly this host. Those with a path are somebody's own.
fn is_of(rule: &Json, host: &str) -> bool {
    text(rule, "hostname").eq_ignore_ascii_case(host) && text(rule, "path").is_empty()
}

/// Whether it would take all requests of this host: a wildcard, or the rule for all that is left.
fn takes(rule: &Json, host: &str) -> bool {
    let name = text(rule, "hostname").to_ascii_lowercase();
    let wild = name.strip_prefix('*').is_some_and(|rest| host.ends_with(rest));
    (name.is_empty() || wild) && text(rule, "path").is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "http://preview-proxy:80";

    fn hosts(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn lead(config: &Json, names: &[&str], ours: &[&str]) -> Result<Option<Json>, Fault> {
        merge(config, Wish::Lead { hosts: &hosts(names), ours: &hosts(ours) }, SERVICE)
    }

    #[test]
    fn rules_come_before_what_would_take_their_requests_and_others_stay_in_order() {
        let config = json!({
            "ingress": [
                {"hostname": "www.example.com", "service": "http://www:80", "originRequest": {"noTLSVerify": true}},
                {"hostname": "*.example.com", "service": "http://rest:80"},
                {"service": "http_status:404"},
            ],
            "warp-routing": {"enabled": true},
        });
        let merged = lead(&config, &["pr-7.example.com"], &[]).unwrap().unwrap();
        let names: Vec<&str> =
            merged["ingress"].as_array().unwrap().iter().map(|rule| text(rule, "hostname")).collect();
        assert_eq!(names, ["www.example.com", "pr-7.example.com", "*.example.com", ""]);
        assert_eq!((&merged["ingress"][0], &merged["warp-routing"]), (&config["ingress"][0], &config["warp-routing"]));
        assert_eq!(lead(&merged, &["pr-7.example.com"], &[]).unwrap(), None, "again is nothing");
        let dropped = merge(&merged, Wish::Drop { hosts: &hosts(&["pr-7.example.com", "pr-8.example.com"]) }, SERVICE);
        assert_eq!(dropped.unwrap().unwrap(), config);
    }

    #[test]
    fn a_tunnel_without_rules_gets_a_last_one() {
        for config in [Json::Null, json!({}), json!({"ingress": []})] {
            let merged = lead(&config, &["pr-7.example.com"], &[]).unwrap().unwrap();
            let rules = json!([{"hostname": "pr-7.example.com", "service": SERVICE}, {"service": "http_status:404"}]);
            assert_eq!(merged["ingress"], rules);
        }
    }

    #[test]
    fn a_rule_of_somebody_else_is_a_conflict_and_one_of_ours_is_set_right() {
        let config = json!({"ingress": [
            {"hostname": "pr-7.example.com", "service": "http://elsewhere:80"}, {"service": "http_status:404"},
        ]});
        let fault = lead(&config, &["pr-7.example.com"], &[]).unwrap_err();
        assert!(fault.kind == FaultKind::Conflict && fault.context.contains("http://elsewhere:80"), "{fault}");
        let merged = lead(&config, &["pr-7.example.com"], &["pr-7.example.com"]).unwrap().unwrap();
        assert_eq!(merged["ingress"][0]["service"], SERVICE);
    }
}
