//! Cloudflare's DNS. The mark is the record's comment; all changes of a deploy go as one batch, which happens as a whole.

mod api;
mod change;
mod tunnel;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use reqwest::Method;
use serde::Deserialize;
use tokio::sync::OnceCell;

use self::api::{Api, parse};
use self::change::{Batch, Record, Wanted};
use self::tunnel::{Tunnel, Wish};
use super::{Dns, LIST, Marks, Owned, Place, REMOVE, TTL, WRITE};
use crate::config::{AdapterTable, ConfigError, Environment};
use crate::fault::{Fault, FaultKind};
use crate::lock::Lock;
use crate::project::Target;
use crate::secret::Secret;

/// The token, by the name that Cloudflare's own tools use.
pub const TOKEN: &str = "CLOUDFLARE_API_TOKEN";
/// The token, where that name is taken.
pub const OWN_TOKEN: &str = "PREVIEW_DNS_TOKEN";
/// Another address of the API: a proxy, or a test.
pub const API: &str = "PREVIEW_CLOUDFLARE_API";

const BASE: &str = "https://api.cloudflare.com/client/v4";

/// A batch holds at most so many changes: 200 on the free plan.
const MOST: usize = 200;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    zone: String,
    #[serde(default)]
    target: Option<String>,
    #[serde(default)]
    proxied: bool,
    #[serde(default)]
    ttl: Option<u32>,
}

/// Records in a zone at Cloudflare.
pub struct Cloudflare {
    api: Api,
    zone: String,
    wanted: Wanted,
    marks: Marks,
    tunnel: Option<Tunnel>,
    id: OnceCell<String>,
}

#[derive(Deserialize)]
struct Zone {
    id: String,
    #[serde(default)]
    status: String,
}

impl Cloudflare {
    /// The adapter of a `[dns]` table with this kind.
    pub fn from_table(table: &AdapterTable, place: &Place, environment: &Environment) -> Result<Self, ConfigError> {
        let wish: Table = table.parse()?;
        let zone = super::zone(table, &wish.zone)?;
        let get = |name: &str| environment.get(name).map(|text| text.trim()).filter(|text| !text.is_empty());
        let Some(token) = get(OWN_TOKEN).or_else(|| get(TOKEN)) else {
            return Err(
                table.error("kind", format!("the token is missing: {TOKEN} (or {OWN_TOKEN}) in the environment"))
            );
        };
        let ttl = wish.ttl.unwrap_or(TTL);
        if ttl != 1 && !(60..=86_400).contains(&ttl) {
            return Err(table.error("ttl", "is neither from 60 to 86400 seconds, nor 1 for Cloudflare's choice"));
        }
        let through = place.tunnel.as_ref().map(|tunnel| format!("{}.cfargotunnel.com", tunnel.id));
        if through.is_some() && wish.target.is_some() {
            return Err(table.error("target", "excludes [tunnel]: with that, records lead to the tunnel"));
        }
        let (value, marks) = super::value_and_marks(table, place, through.as_deref().or(wish.target.as_deref()))?;
        // What leads to a tunnel has to go through Cloudflare's proxy.
        let proxied = wish.proxied || through.is_some();
        let tunnel = place.tunnel.as_ref().map(Tunnel::new);
        let api = Api::new(get(API).unwrap_or(BASE), Secret::new(token.to_owned()))
            .map_err(|fault| table.error("kind", fault.chain()))?;
        Ok(Self { api, zone, wanted: Wanted { value, ttl, proxied }, marks, tunnel, id: OnceCell::new() })
    }

    /// The path of the zone's records.
    async fn records(&self, operation: &'static str) -> Result<String, Fault> {
        let find = || async {
            // Few at most, so no pages; those of zones are smaller than those of records.
            let found = self.api.find(operation, "/zones", &[("name", &self.zone)]).await?;
            let mut found: Vec<Zone> = parse(operation, found)?;
            // One name may stand in two accounts; only one of them is served.
            found.sort_by_key(|zone| zone.status != "active");
            found.into_iter().next().map(|zone| zone.id).ok_or_else(|| {
                let context = format!("the token sees no zone {} at Cloudflare ([dns] zone)", self.zone);
                Fault::new(FaultKind::Denied, operation, context)
            })
        };
        let id = self.id.get_or_try_init(find).await?;
        Ok(format!("/zones/{id}/dns_records"))
    }

    async fn send(&self, operation: &'static str, records: &str, batch: &Batch) -> Result<(), Fault> {
        if batch.is_empty() {
            return Ok(());
        }
        self.api.send(operation, Method::POST, &format!("{records}/batch"), &batch.body()).await.map(|_| ())
    }
}

#[async_trait]
impl Dns for Cloudflare {
    fn describe(&self) -> String {
        format!("Cloudflare, zone {}", self.zone)
    }

    fn under(&self, lock: &Arc<dyn Lock>, base_dir: &str) {
        if let Some(tunnel) = &self.tunnel {
            tunnel.under(lock, base_dir);
        }
    }

    fn check(&self, hosts: &BTreeSet<String>) -> Result<Vec<String>, Fault> {
        super::check_zone(&self.zone, hosts)?;
        let levels = |name: &str| name.split('.').count();
        let deep = hosts.iter().find(|host| self.wanted.proxied && levels(host) > levels(&self.zone) + 1);
        Ok(deep
            .map(|host| {
                format!(
                    "{host} is more than one level below {}: Cloudflare's universal certificate does not cover it, so browsers will refuse it \
                     while [dns] proxied = true; use a name one level below the zone, proxied = false, or an advanced certificate",
                    self.zone
                )
            })
            .into_iter()
            .collect())
    }

    async fn write(&self, preview: &Target, hosts: &BTreeSet<String>) -> Result<usize, Fault> {
        self.check(hosts)?;
        if hosts.is_empty() {
            return Ok(0);
        }
        let records = self.records(WRITE).await?;
        let named = hosts.iter().map(|host| async {
            let query = [("name.exact", host.as_str())];
            self.api.list::<Record>(WRITE, &records, &query).await
        });
        let found: Vec<Record> = futures_util::future::try_join_all(named).await?.into_iter().flatten().collect();
        let mark = self.marks.of(&preview.app, &preview.name);
        let batch = change::write(hosts, &found, &self.wanted, &mark)?;
        let ours = change::ours(&found, &mark);
        let lead = Wish::Lead { hosts, ours: &ours };
        // Before the records are written, since that cannot be taken back with them.
        let rules = match &self.tunnel {
            Some(tunnel) => tunnel.would_change(&self.api, WRITE, lead).await?,
            None => BTreeSet::new(),
        };
        self.send(WRITE, &records, &batch).await?;
        if let Some(tunnel) = self.tunnel.as_ref().filter(|_| !rules.is_empty()) {
            // By now something was changed: whatever goes wrong, the caller has to take that back.
            tunnel.change(&self.api, WRITE, lead).await.map_err(Fault::transient)?;
        }
        Ok(rules.union(&batch.hosts).count())
    }

    async fn remove(&self, preview: &Target, hosts: &BTreeSet<String>) -> Result<usize, Fault> {
        if hosts.is_empty() {
            return Ok(0);
        }
        let records = self.records(REMOVE).await?;
        let mark = self.marks.of(&preview.app, &preview.name);
        let found = self.api.list::<Record>(REMOVE, &records, &[("comment.exact", &mark)]).await?;
        let batch = change::remove(hosts, &found, &mark);
        if let Some(tunnel) = &self.tunnel {
            // The records go last: by them it is known which rules are ours.
            let gone: BTreeSet<String> = change::ours(&found, &mark).intersection(hosts).cloned().collect();
            let wish = Wish::Drop { hosts: &gone };
            if !gone.is_empty() && !tunnel.would_change(&self.api, REMOVE, wish).await?.is_empty() {
                tunnel.change(&self.api, REMOVE, wish).await?;
            }
        }
        // What is gone already needs not go together with the rest.
        for some in batch.deletes.chunks(MOST) {
            let some = Batch { deletes: some.to_vec(), ..Batch::default() };
            self.send(REMOVE, &records, &some).await?;
        }
        Ok(batch.hosts.len())
    }

    async fn list(&self) -> Result<Vec<Owned>, Fault> {
        let records = self.records(LIST).await?;
        let found = self.api.list::<Record>(LIST, &records, &[("comment.startswith", self.marks.prefix())]).await?;
        let owned = found
            .iter()
            .filter_map(|record| self.marks.owned(&record.name, record.comment.as_deref().unwrap_or_default()));
        Ok(owned.collect())
    }
}
