//! From the records that are there to the batch that makes them right. Pure.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::super::{Value, foreign};
use crate::fault::Fault;

/// A record as the API tells it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) content: String,
    #[serde(default)]
    pub(super) ttl: u32,
    #[serde(default)]
    pub(super) proxied: bool,
    #[serde(default)]
    pub(super) comment: Option<String>,
}

impl Record {
    /// Whether it leads the host somewhere.
    fn leads(&self) -> bool {
        matches!(self.kind.as_str(), "A" | "AAAA" | "CNAME")
    }

    fn host(&self) -> String {
        self.name.trim_end_matches('.').to_ascii_lowercase()
    }
}

/// What a host's record has to be.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) value: Value,
    pub(super) ttl: u32,
    pub(super) proxied: bool,
}

impl Wanted {
    fn body(&self, host: &str, mark: &str) -> Json {
        json!({
            "type": self.value.kind(),
            "name": host,
            "content": self.value.to_string(),
            // The proxy has its own; 1 is the word for that.
            "ttl": if self.proxied { 1 } else { self.ttl },
            "proxied": self.proxied,
            "comment": mark,
        })
    }

    fn is(&self, record: &Record) -> bool {
        let content = record.content.trim_end_matches('.').to_ascii_lowercase();
        let content = Value::parse(&content).is_ok_and(|value| value == self.value);
        content && record.proxied == self.proxied && (self.proxied || record.ttl == self.ttl)
    }
}

/// Changes that happen together or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Batch {
    pub(super) deletes: Vec<Json>,
    pub(super) patches: Vec<Json>,
    pub(super) posts: Vec<Json>,
    /// Hosts that this is about.
    pub(super) hosts: BTreeSet<String>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.deletes.is_empty() && self.patches.is_empty() && self.posts.is_empty()
    }

    pub(super) fn body(&self) -> Json {
        json!({"deletes": self.deletes, "patches": self.patches, "posts": self.posts})
    }
}

/// What makes these hosts right, given the records of these names. An address record of somebody else is an error.
pub(super) fn write(hosts: &BTreeSet<String>, found: &[Record], wanted: &Wanted, mark: &str) -> Result<Batch, Fault> {
    let mut batch = Batch::default();
    for host in hosts {
        let there: Vec<&Record> = found.iter().filter(|record| record.leads() && record.host() == *host).collect();
        if let Some(other) = there.iter().find(|record| record.comment.as_deref() != Some(mark)) {
            let comment = other.comment.as_deref().unwrap_or_default();
            let comment = if comment.is_empty() { "no comment".to_owned() } else { format!("comment {comment:?}") };
            return Err(foreign(host, &format!("{} {}, {comment}", other.kind, other.content)));
        }
        let (same, rest): (Vec<&Record>, Vec<&Record>) =
            there.into_iter().partition(|record| record.kind == wanted.value.kind());
        let right = same.iter().position(|record| wanted.is(record));
        let kept = right.or(if same.is_empty() { None } else { Some(0) });
        let extra = same.iter().enumerate().filter(|(index, _)| Some(*index) != kept).map(|(_, record)| *record);
        let deletes: Vec<Json> = rest.into_iter().chain(extra).map(|record| json!({"id": record.id})).collect();
        if right.is_some() && deletes.is_empty() {
            continue;
        }
        batch.hosts.insert(host.clone());
        batch.deletes.extend(deletes);
        match (right, kept) {
            (Some(_), _) => {}
            (None, Some(index)) => {
                let mut body = wanted.body(host, mark);
                body["id"] = json!(same[index].id);
                batch.patches.push(body);
            }
            (None, None) => batch.posts.push(wanted.body(host, mark)),
        }
    }
    Ok(batch)
}

/// The hosts that have a record with this mark.
pub(super) fn ours(found: &[Record], mark: &str) -> BTreeSet<String> {
    let ours = found.iter().filter(|record| record.leads() && record.comment.as_deref() == Some(mark));
    ours.map(Record::host).collect()
}

/// What removes the records with this mark of these hosts.
pub(super) fn remove(hosts: &BTreeSet<String>, found: &[Record], mark: &str) -> Batch {
    let ours = |record: &&Record| record.comment.as_deref() == Some(mark) && hosts.contains(&record.host());
    let ours: Vec<&Record> = found.iter().filter(ours).collect();
    let names: BTreeSet<String> = ours.iter().map(|record| record.host()).collect();
    Batch { deletes: ours.iter().map(|record| json!({"id": record.id})).collect(), hosts: names, ..Batch::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultKind;

    const MARK: &str = "preview 01234567 shop/pr-7";

    fn record(id: &str, kind: &str, content: &str, comment: &str) -> Record {
        Record {
            id: id.to_owned(),
            name: "pr-7.example.com".to_owned(),
            kind: kind.to_owned(),
            content: content.to_owned(),
            ttl: 120,
            proxied: false,
            comment: Some(comment.to_owned()),
        }
    }

    fn plan(found: &[Record], value: &str) -> Result<Batch, Fault> {
        let wanted = Wanted { value: Value::parse(value).unwrap(), ttl: 120, proxied: false };
        write(&BTreeSet::from(["pr-7.example.com".to_owned()]), found, &wanted, MARK)
    }

    #[test]
    fn created_kept_changed_and_replaced() {
        let made = plan(&[], "192.0.2.7").unwrap();
        assert_eq!(
            made.posts,
            [
                json!({"type": "A", "name": "pr-7.example.com", "content": "192.0.2.7", "ttl": 120, "proxied": false, "comment": MARK})
            ]
        );
        let right = record("1", "A", "192.0.2.7", MARK);
        assert!(plan(std::slice::from_ref(&right), "192.0.2.7").unwrap().is_empty());
        let changed = plan(std::slice::from_ref(&right), "192.0.2.8").unwrap();
        assert_eq!((changed.patches[0]["id"].as_str(), changed.posts.len(), changed.deletes.len()), (Some("1"), 0, 0));
        let replaced = plan(&[right.clone(), record("2", "AAAA", "::1", MARK)], "vm.example.com").unwrap();
        assert_eq!((replaced.deletes.len(), replaced.posts.len(), replaced.patches.len()), (2, 1, 0));
        let twice = plan(&[record("2", "A", "192.0.2.9", MARK), right], "192.0.2.7").unwrap();
        assert_eq!((twice.deletes, twice.patches.len()), (vec![json!({"id": "2"})], 0), "the right one stays");
    }

    #[test]
    fn proxied_records_have_the_proxys_ttl() {
        let wanted = Wanted { value: Value::parse("192.0.2.7").unwrap(), ttl: 120, proxied: true };
        let hosts = BTreeSet::from(["pr-7.example.com".to_owned()]);
        let made = write(&hosts, &[], &wanted, MARK).unwrap();
        assert_eq!((made.posts[0]["ttl"].as_u64(), made.posts[0]["proxied"].as_bool()), (Some(1), Some(true)));
        let there = Record { ttl: 1, proxied: true, ..record("1", "A", "192.0.2.7", MARK) };
        assert!(write(&hosts, &[there], &wanted, MARK).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_ours_stays() {
        for comment in ["", "mine", "preview 01234567 shop/pr-8", "preview 76543210 shop/pr-7"] {
            let other = record("1", "A", "192.0.2.7", comment);
            let fault = plan(std::slice::from_ref(&other), "192.0.2.7").unwrap_err();
            assert!(fault.kind == FaultKind::Conflict && fault.context.contains("pr-7.example.com"), "{fault}");
            assert!(remove(&BTreeSet::from(["pr-7.example.com".to_owned()]), &[other], MARK).is_empty());
        }
        // Others' words about a name lead nowhere, and are in nobody's way.
        assert_eq!(plan(&[record("1", "TXT", "x", "")], "192.0.2.7").unwrap().posts.len(), 1);
    }
}
