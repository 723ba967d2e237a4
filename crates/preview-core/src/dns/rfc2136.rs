//! Any server that takes dynamic updates (RFC 2136) signed with a key (TSIG): BIND, Knot, PowerDNS.
//!
//! The mark is a TXT record at `_preview.<host>`. Each update names it as a condition, so that "is it ours" and "change it" are one step on the server: whatever others
//! do meanwhile. Nothing is asked by queries: those would be answered from wildcard records too.

mod wire;

use std::collections::BTreeSet;

use async_trait::async_trait;
use base64::Engine as _;
use domain::base::iana::Rtype;
use domain::tsig::{Algorithm, Key, KeyName};
use serde::Deserialize;

use self::wire::{Condition, Connection, Edit, Said, content, name, txt};
use super::{Dns, LIST, Marks, Owned, Place, REMOVE, TTL, Value, WRITE};
use crate::config::{AdapterTable, ConfigError, Environment};
use crate::fault::{Fault, FaultKind};
use crate::project::Target;

/// The secret of the key, in base64.
pub const KEY: &str = "PREVIEW_DNS_TSIG_KEY";

/// Where the mark of a host is.
const LABEL: &str = "_preview";

/// The record types that lead a host somewhere.
const ADDRESSES: [Rtype; 3] = [Rtype::A, Rtype::AAAA, Rtype::CNAME];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    zone: String,
    server: String,
    key_name: String,
    #[serde(default)]
    algorithm: Option<String>,
    #[serde(default)]
    target: Option<String>,
    #[serde(default)]
    ttl: Option<u32>,
}

/// Records by dynamic updates.
pub struct Rfc2136 {
    zone: String,
    server: String,
    // Its `Debug` does not show the secret, and nothing here shows it at all.
    key: Key,
    value: Value,
    ttl: u32,
    marks: Marks,
}

impl Rfc2136 {
    /// The adapter of a `[dns]` table with this kind.
    pub fn from_table(table: &AdapterTable, place: &Place, environment: &Environment) -> Result<Self, ConfigError> {
        let wish: Table = table.parse()?;
        if place.tunnel.is_some() {
            return Err(table.error("kind", "records that lead to a [tunnel] are Cloudflare's: `cloudflare`"));
        }
        let zone = super::zone(table, &wish.zone)?;
        if wish.server.trim().is_empty() {
            return Err(table.error(
                "server",
                "is empty: it is the primary server of the zone, `ns1.example.com` or `192.0.2.53:53`",
            ));
        }
        let algorithm = match wish.algorithm.as_deref().unwrap_or("hmac-sha256") {
            "hmac-sha256" => Algorithm::Sha256,
            "hmac-sha384" => Algorithm::Sha384,
            "hmac-sha512" => Algorithm::Sha512,
            other => {
                let message = format!("`{}` is not known here", other.escape_debug());
                let known = "there are: `hmac-sha256`, `hmac-sha384`, `hmac-sha512`";
                return Err(table.error("algorithm", message).with_help(known));
            }
        };
        let key_name: KeyName = wish.key_name.to_ascii_lowercase().parse().map_err(|_| {
            table.error("key_name", format!("`{}` is not the name of a key", wish.key_name.escape_debug()))
        })?;
        let Some(secret) = environment.get(KEY).map(|text| text.trim()).filter(|text| !text.is_empty()) else {
            return Err(table
                .error("key_name", format!("the secret of the key is missing: {KEY} in the environment, in base64")));
        };
        // What is wrong with it is not said: that would show parts of it.
        let secret = base64::engine::general_purpose::STANDARD.decode(secret).map_err(|_| {
            table.error("key_name", format!("{KEY} is not base64, as `tsig-keygen` and `keymgr -t` print it"))
        })?;
        let key = Key::new(algorithm, &secret, key_name, None, None)
            .map_err(|error| table.error("key_name", error.to_string()))?;
        let (value, marks) = super::value_and_marks(table, place, wish.target.as_deref())?;
        let ttl = wish.ttl.unwrap_or(TTL);
        if !(1..=86_400).contains(&ttl) {
            return Err(table.error("ttl", "is not from 1 to 86400 seconds"));
        }
        Ok(Self { zone, server: wish.server, key, value, ttl, marks })
    }

    async fn connect(&self, operation: &'static str) -> Result<Connection<'_>, Fault> {
        Connection::open(&self.server, &self.zone, &self.key, operation).await
    }

    /// That a host is this preview's.
    fn ours(&self, preview: &Target, host: &str) -> Result<Condition, Fault> {
        let mark = self.marks.of(&preview.app, &preview.name);
        Ok(Condition::Exactly(mark_name(host)?, Rtype::TXT, txt(&mark)))
    }

    /// That a host is nobody's.
    fn free(&self, host: &str) -> Result<Vec<Condition>, Fault> {
        let name = name(host)?;
        let mark = Condition::Absent(mark_name(host)?, Rtype::TXT);
        Ok(match self.value {
            // Nothing else may be beside one.
            Value::Cname(_) => vec![mark, Condition::Unused(name)],
            _ => [mark].into_iter().chain(ADDRESSES.map(|rtype| Condition::Absent(name.clone(), rtype))).collect(),
        })
    }

    /// That a host is as it should be.
    fn right(&self, preview: &Target, host: &str) -> Result<Vec<Condition>, Fault> {
        let (name, (rtype, data)) = (name(host)?, content(&self.value)?);
        let others = ADDRESSES.into_iter().filter(|other| *other != rtype);
        let others = others.map(|other| Condition::Absent(name.clone(), other));
        let own = [self.ours(preview, host)?, Condition::Exactly(name.clone(), rtype, data)];
        Ok(own.into_iter().chain(others).collect())
    }

    /// What makes a host as it should be.
    fn edits(&self, preview: &Target, host: &str) -> Result<Vec<Edit>, Fault> {
        let (name, (rtype, data)) = (name(host)?, content(&self.value)?);
        let mark = self.marks.of(&preview.app, &preview.name);
        let add =
            [Edit::Add(name, rtype, self.ttl, data), Edit::Add(mark_name(host)?, Rtype::TXT, self.ttl, txt(&mark))];
        Ok(clear(host)?.into_iter().chain(add).collect())
    }
}

fn mark_name(host: &str) -> Result<wire::DnsName, Fault> {
    name(&format!("{LABEL}.{host}"))
}

fn clear(host: &str) -> Result<Vec<Edit>, Fault> {
    let name = name(host)?;
    let addresses = ADDRESSES.map(|rtype| Edit::Clear(name.clone(), rtype));
    Ok(addresses.into_iter().chain([Edit::Clear(mark_name(host)?, Rtype::TXT)]).collect())
}

/// One list of what is made for each host.
fn all<T>(
    hosts: impl IntoIterator<Item = impl AsRef<str>>,
    make: impl Fn(&str) -> Result<Vec<T>, Fault>,
) -> Result<Vec<T>, Fault> {
    let lists = hosts.into_iter().map(|host| make(host.as_ref())).collect::<Result<Vec<_>, _>>()?;
    Ok(lists.into_iter().flatten().collect())
}

#[async_trait]
impl Dns for Rfc2136 {
    fn describe(&self) -> String {
        format!("the DNS server {}, zone {}", self.server, self.zone)
    }

    fn check(&self, hosts: &BTreeSet<String>) -> Result<Vec<String>, Fault> {
        super::check_zone(&self.zone, hosts)?;
        for host in hosts {
            mark_name(host)?;
        }
        Ok(vec![])
    }

    async fn write(&self, preview: &Target, hosts: &BTreeSet<String>) -> Result<usize, Fault> {
        self.check(hosts)?;
        if hosts.is_empty() {
            return Ok(0);
        }
        let mut server = self.connect(WRITE).await?;
        // One exchange where nothing is to do. The records are written all the same: a condition says nothing about how long they may be kept.
        let right = all(hosts, |host| self.right(preview, host))?;
        let edits = all(hosts, |host| self.edits(preview, host))?;
        if server.update(&right, &edits).await? == Said::Done {
            return Ok(0);
        }
        let (mut conditions, mut fresh, mut wrong) = (Vec::new(), Vec::new(), 0);
        for host in hosts {
            let right = hosts.len() > 1 && server.update(&self.right(preview, host)?, &[]).await? == Said::Done;
            wrong += usize::from(!right);
            let ours = self.ours(preview, host)?;
            if right || server.update(std::slice::from_ref(&ours), &[]).await? == Said::Done {
                conditions.push(ours);
            } else {
                conditions.extend(self.free(host)?);
                fresh.push(host);
            }
        }
        if server.update(&conditions, &edits).await? == Said::Unmet {
            for host in fresh {
                if server.update(&self.free(host)?, &[]).await? == Said::Unmet {
                    return Err(super::foreign(host, &format!("{LABEL}.{host} does not say that it is")));
                }
            }
            let context = "somebody else changes them at the same time";
            return Err(Fault::new(FaultKind::Conflict, WRITE, context).transient());
        }
        // A server drops a CNAME without a word where there is something else beside it. The rest of the update was carried out, so whatever goes
        // wrong from here on is no refusal: only a fault that is not transient says that nothing was written.
        for host in hosts {
            let looked = server.update(&self.right(preview, host)?, &[]).await.map_err(Fault::transient)?;
            if looked == Said::Unmet {
                let found = "records of other types, which a CNAME cannot stand beside";
                return Err(super::foreign(host, found).transient());
            }
        }
        Ok(wrong)
    }

    async fn remove(&self, preview: &Target, hosts: &BTreeSet<String>) -> Result<usize, Fault> {
        if hosts.is_empty() {
            return Ok(0);
        }
        let mut server = self.connect(REMOVE).await?;
        let ours = hosts.iter().map(|host| self.ours(preview, host)).collect::<Result<Vec<_>, _>>()?;
        if server.update(&ours, &all(hosts, clear)?).await? == Said::Done {
            return Ok(hosts.len());
        }
        if hosts.len() == 1 {
            return Ok(0);
        }
        let mut removed = 0;
        for (host, ours) in hosts.iter().zip(&ours) {
            removed += usize::from(server.update(std::slice::from_ref(ours), &clear(host)?).await? == Said::Done);
        }
        Ok(removed)
    }

    async fn list(&self) -> Result<Vec<Owned>, Fault> {
        let texts = self.connect(LIST).await?.texts().await?;
        let owned = texts.iter().filter_map(|(name, text)| {
            let host = name.strip_prefix(LABEL)?.strip_prefix('.')?;
            self.marks.owned(host, text)
        });
        Ok(owned.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(extra: &str, key: Option<&str>) -> Result<Rfc2136, ConfigError> {
        let text = format!("zone = 'Example.com.'\nserver = '127.0.0.1:53'\nkey_name = 'preview'\n{extra}");
        let table = AdapterTable::new("rfc2136", text.parse().unwrap());
        let place = Place {
            host: Some("192.0.2.7".to_owned()),
            port: None,
            base_dir: "/opt/previews".to_owned(),
            tunnel: None,
        };
        let environment = key.map(|key| (KEY.to_owned(), key.to_owned())).into_iter().collect();
        Rfc2136::from_table(&table, &place, &environment)
    }

    #[test]
    fn the_table_is_checked_and_no_message_shows_the_key() {
        let dns = adapter("ttl = 60", Some("aHVudGVyMjI=")).unwrap();
        assert_eq!((dns.zone.as_str(), dns.ttl, dns.value.to_string().as_str()), ("example.com", 60, "192.0.2.7"));
        assert!(adapter("algorithm = 'hmac-md5'", Some("aHVudGVyMjI=")).is_err());
        assert!(adapter("ttl = 0", Some("aHVudGVyMjI=")).is_err());
        assert!(adapter("proxied = true", Some("aHVudGVyMjI=")).is_err());
        assert!(adapter("", None).err().unwrap().to_string().contains(KEY));
        let error = adapter("", Some("hunter22!")).err().unwrap().to_string();
        assert!(error.contains("base64") && !error.contains("hunter22"), "{error}");
    }

    #[test]
    fn hosts_of_other_zones_and_names_without_room_for_the_mark_are_refused() {
        let dns = adapter("", Some("aHVudGVyMjI=")).unwrap();
        let check = |host: &str| dns.check(&BTreeSet::from([host.to_owned()]));
        assert!(check("pr-7.example.com").is_ok() && check("example.com").is_ok());
        assert!(check("pr-7.badexample.com").is_err() && check("pr-7.example.org").is_err());
        let long = format!("{}example.com", "abcdefghi.".repeat(24));
        assert!(long.len() <= 253 && check(&long).is_err(), "{}", long.len());
    }

    #[test]
    fn a_mark_and_an_address_are_conditions_of_one_update() {
        let dns = adapter("", Some("aHVudGVyMjI=")).unwrap();
        let preview = Target { app: "shop".into(), name: "pr-7".into(), project: "shop_pr-7".into() };
        let right = dns.right(&preview, "pr-7.example.com").unwrap();
        assert_eq!(right.len(), 4);
        let Condition::Exactly(name, Rtype::TXT, data) = &right[0] else { panic!("{right:?}") };
        assert_eq!(name.to_string(), "_preview.pr-7.example.com");
        assert_eq!(usize::from(data[0]), data.len() - 1);
        assert!(data.ends_with(b"shop/pr-7"));
        assert_eq!(dns.free("pr-7.example.com").unwrap().len(), 4);
    }
}
