//! Records in memory. What others wrote can be put there too, and failures ordered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::dns::{Dns, Marks, Owned, Value};
use crate::fault::{Fault, FaultKind};
use crate::project::Target;

/// A zone that several adapters may share.
#[derive(Clone, Default)]
pub struct MemoryZone {
    inner: Arc<Mutex<Zone>>,
}

#[derive(Default)]
struct Zone {
    /// Value and mark by host.
    records: BTreeMap<String, (String, String)>,
    failures: Vec<(&'static str, Fault)>,
    /// Faults of writes that are carried out all the same.
    lost: Vec<Fault>,
    calls: Vec<&'static str>,
}

impl MemoryZone {
    fn lock(&self) -> MutexGuard<'_, Zone> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A record of somebody else.
    pub fn put(&self, host: &str, value: &str) {
        self.lock().records.insert(host.to_owned(), (value.to_owned(), String::new()));
    }

    /// What hosts lead to.
    #[must_use]
    pub fn records(&self) -> BTreeMap<String, String> {
        self.lock().records.iter().map(|(host, (value, _))| (host.clone(), value.clone())).collect()
    }

    /// The next `write`, `remove` or `list` fails, before it does anything.
    pub fn fail_next(&self, operation: &'static str, fault: Fault) {
        self.lock().failures.push((operation, fault));
    }

    /// The next `write` is carried out, and its answer is lost; what [`fail_next`](Self::fail_next) ordered comes after it.
    pub fn lose_answer(&self, fault: Fault) {
        self.lock().lost.push(fault);
    }

    /// What was asked for, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<&'static str> {
        self.lock().calls.clone()
    }

    fn begin(&self, operation: &'static str) -> Result<MutexGuard<'_, Zone>, Fault> {
        let mut zone = self.lock();
        zone.calls.push(operation);
        let first = operation == "write" && !zone.lost.is_empty();
        match zone.failures.iter().position(|(of, _)| *of == operation && !first) {
            Some(index) => Err(zone.failures.remove(index).1),
            None => Ok(zone),
        }
    }
}

/// One VM's adapter.
#[derive(Clone)]
pub struct MemoryDns {
    zone: MemoryZone,
    value: Value,
    marks: Marks,
    below: String,
}

impl MemoryDns {
    /// The adapter of the VM `host`; records of names below `below` lead to this value.
    #[must_use]
    pub fn new(zone: MemoryZone, below: &str, host: &str, value: Value) -> Self {
        Self { zone, value, marks: Marks::new(host, "/base"), below: below.to_owned() }
    }
}

#[async_trait]
impl Dns for MemoryDns {
    fn describe(&self) -> String {
        format!("the zone {} in memory", self.below)
    }

    fn check(&self, hosts: &BTreeSet<String>) -> Result<Vec<String>, Fault> {
        match hosts.iter().find(|host| !host.ends_with(&format!(".{}", self.below))) {
            None => Ok(vec![]),
            Some(host) => Err(Fault::new(FaultKind::Invalid, "write records", format!("{host} is not in the zone"))),
        }
    }

    async fn write(&self, preview: &Target, hosts: &BTreeSet<String>) -> Result<usize, Fault> {
        self.check(hosts)?;
        let mut zone = self.zone.begin("write")?;
        let wanted = (self.value.to_string(), self.marks.of(&preview.app, &preview.name));
        let others = hosts.iter().filter_map(|host| Some((host, zone.records.get(host)?)));
        for (host, (value, mark)) in others {
            if *mark != wanted.1 {
                let context = format!("{host} has a record already that is not this preview's ({value})");
                return Err(Fault::new(FaultKind::Conflict, "write records", context));
            }
        }
        let changed = hosts.iter().filter(|host| zone.records.get(*host) != Some(&wanted)).count();
        zone.records.extend(hosts.iter().map(|host| (host.clone(), wanted.clone())));
        zone.lost.pop().map_or(Ok(changed), Err)
    }

    async fn remove(&self, preview: &Target, hosts: &BTreeSet<String>) -> Result<usize, Fault> {
        let mut zone = self.zone.begin("remove")?;
        let mark = self.marks.of(&preview.app, &preview.name);
        let before = zone.records.len();
        zone.records.retain(|host, (_, of)| *of != mark || !hosts.contains(host));
        Ok(before - zone.records.len())
    }

    async fn list(&self) -> Result<Vec<Owned>, Fault> {
        let zone = self.zone.begin("list")?;
        Ok(zone.records.iter().filter_map(|(host, (_, mark))| self.marks.owned(host, mark)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::conformance::dns::{Subject, World, suite};

    struct Memory(MemoryZone);

    #[async_trait]
    impl World for Memory {
        async fn put(&self, host: &str, address: &str) {
            self.0.put(host, address);
        }
        async fn look(&self, host: &str) -> Vec<String> {
            self.0.records().remove(host).into_iter().collect()
        }
    }

    #[tokio::test]
    async fn conformance() {
        let zone = MemoryZone::default();
        let vm = |host: &str, address: &str| {
            MemoryDns::new(zone.clone(), "example.com", host, Value::parse(address).unwrap())
        };
        let (ours, moved, other) = (vm("one", "192.0.2.7"), vm("one", "192.0.2.8"), vm("two", "192.0.2.9"));
        let subject =
            Subject { ours: &ours, moved: &moved, other: &other, address: "192.0.2.7", moved_to: "192.0.2.8" };
        suite(&subject, &Memory(zone.clone()), "example.com").await;
    }
}
