//! DNS records in a preview's life: written beside its start, taken back when that fails, removed with it.
//!
//! The state file names the hosts that may have a record before one is written, and forgets them after they are removed: whoever finds a preview
//! that died knows what to remove, without asking for the whole zone.

use std::collections::BTreeSet;
use std::time::Duration;

use super::flight::Flight;
use super::run::{Halt, guarded};
use super::{Client, Event, Interrupt, Observer};
use crate::dns::{Dns, Owned};
use crate::failure::FailureCode;
use crate::fault::{Fault, FaultKind};
use crate::project::{Project, Target};
use crate::proxy::Proxy;
use crate::state::State;

/// Hosts of one preview.
pub(super) type Hosts = BTreeSet<String>;

/// Again at most so often, for what may go away by itself.
const RETRIES: u32 = 2;

/// What the preview's hosts are that need a record of their own: none without a proxy, since nothing would answer there.
pub(super) fn wanted(client: &Client, project: &Project) -> Hosts {
    if client.dns.is_some() && project.proxy != Proxy::None { project.hosts.clone() } else { Hosts::new() }
}

/// Whether a refused write is sure to have written nothing.
pub(super) fn definite(fault: &Fault) -> bool {
    // Those two kinds are always transient where a server of names is meant.
    !fault.transient && fault.kind != FaultKind::LeaseLost
}

/// A fault of a server of names. What is unreachable or denied there says nothing about the VM, which others decide on.
fn of_dns(mut fault: Fault) -> Fault {
    if matches!(fault.kind, FaultKind::Unreachable | FaultKind::Denied | FaultKind::TimedOut) {
        fault.kind = FaultKind::Failed;
    }
    fault.or_code(FailureCode::DnsFailed)
}

async fn retrying<T, F: Future<Output = Result<T, Fault>>>(
    observer: &dyn Observer,
    work: impl Fn() -> F,
) -> Result<T, Fault> {
    let mut tried = 0;
    loop {
        match work().await {
            Err(fault) if fault.transient && tried < RETRIES => {
                tried += 1;
                observer.event(&Event::Warning(&format!("{}; trying again", fault.chain())));
                tokio::time::sleep(Duration::from_millis(500 * u64::from(tried))).await;
            }
            // What was tried before may have been carried out, whatever the last answer says.
            Err(fault) if tried > 0 => return Err(of_dns(fault).transient()),
            done => return done.map_err(of_dns),
        }
    }
}

/// Makes these hosts lead to the VM.
pub(super) async fn write(
    client: &Client,
    target: &Target,
    hosts: &Hosts,
    observer: &dyn Observer,
) -> Result<(), Fault> {
    let Some(dns) = client.dns.as_deref().filter(|_| !hosts.is_empty()) else { return Ok(()) };
    let written = retrying(observer, || dns.write(target, hosts)).await?;
    if written > 0 {
        let names: Vec<&str> = hosts.iter().map(String::as_str).collect();
        observer.event(&Event::Progress(&format!("DNS: {} ({})", names.join(", "), dns.describe())));
    }
    Ok(())
}

/// What became of records that were to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Gone {
    /// So many hosts had one.
    pub(super) count: usize,
    /// These hosts may still have theirs, since this run has no access to them.
    pub(super) left: Hosts,
}

/// Removes the preview's records of these hosts. What this run has no access to is told, and left.
pub(super) async fn remove(
    client: &Client,
    target: &Target,
    hosts: &Hosts,
    observer: &dyn Observer,
) -> Result<Gone, Fault> {
    let Some(dns) = client.dns.as_deref() else {
        if !hosts.is_empty() {
            observer.event(&Event::Warning(&left(hosts, "this run has no [dns] that could remove them")));
        }
        return Ok(Gone { count: 0, left: hosts.clone() });
    };
    // Those of a zone that was configured earlier.
    let inside = |host: &String| dns.check(&Hosts::from([host.clone()])).is_ok();
    let (hosts, others): (Hosts, Hosts) = hosts.iter().cloned().partition(inside);
    if !others.is_empty() {
        let why = format!("they do not belong to {}", dns.describe());
        observer.event(&Event::Warning(&left(&others, &why)));
    }
    if hosts.is_empty() {
        return Ok(Gone { count: 0, left: others });
    }
    let count = retrying(observer, || dns.remove(target, &hosts)).await?;
    Ok(Gone { count, left: others })
}

/// What to do about a record that a removal left: nobody but its mark remembers it.
pub(super) fn orphan(host: &str) -> String {
    format!(
        "DNS record {host} (this run's [dns] does not reach it: remove it in its zone, or run `sweep` with the [dns] that it was written with)"
    )
}

fn left(hosts: &Hosts, why: &str) -> String {
    let names: Vec<&str> = hosts.iter().map(String::as_str).collect();
    format!("DNS records that were written for this preview stay, because {why}: {}", names.join(", "))
}

/// The hosts of a preview that has no state, by the mark of their records.
pub(super) async fn by_mark(client: &Client, target: &Target, observer: &dyn Observer) -> Result<Hosts, Fault> {
    let Some(dns) = client.dns.as_deref() else { return Ok(Hosts::new()) };
    let Some(listed) = list(dns, observer).await? else { return Ok(Hosts::new()) };
    Ok(of_preview(&listed, &target.app, &target.name).collect())
}

/// Those of a list that are this preview's.
pub(super) fn of_preview<'a>(listed: &'a [Owned], app: &'a str, name: &'a str) -> impl Iterator<Item = String> + 'a {
    let is = move |owned: &&Owned| owned.preview.as_ref().is_some_and(|(of, named)| of == app && named == name);
    listed.iter().filter(is).map(|owned| owned.host.clone())
}

/// The records of all previews of this VM; `None`, with a word, where the server does not tell.
pub(super) async fn list(dns: &dyn Dns, observer: &dyn Observer) -> Result<Option<Vec<Owned>>, Fault> {
    match retrying(observer, || dns.list()).await {
        Ok(listed) => Ok(Some(listed)),
        Err(fault) if fault.kind == FaultKind::Unsupported => {
            let text = format!("{}: DNS records of previews that are gone cannot be seen, and stay", fault.chain());
            observer.event(&Event::Warning(&text));
            Ok(None)
        }
        Err(fault) => Err(fault),
    }
}

impl Flight<'_> {
    /// What of the state's records is none of the new version's.
    pub(super) fn stale_hosts(&self, state: &State) -> Hosts {
        let wanted = wanted(self.client, self.project);
        state.records.difference(&wanted).cloned().collect()
    }

    /// Takes records away that the version which stays has no use for. The deploy is as good without: what does not go stays in the state,
    /// and the next run tries again. Returns what is left.
    pub(super) async fn drop_hosts(&self, stale: Hosts) -> Hosts {
        if stale.is_empty() {
            return stale;
        }
        // There may be no way back any more: an interrupt comes too late.
        let (never, limit) = (Interrupt::default(), self.project.timeouts.start);
        let work = remove(self.client, &self.deploy.target, &stale, self.observer);
        match guarded(self.lease, &never, limit, work).await {
            Ok(gone) => return gone.left,
            Err(Halt::Fault(fault) | Halt::LeaseLost(fault)) => {
                self.observer.event(&Event::Warning(&self.redactor.clean(&fault.chain())));
            }
            Err(Halt::TimedOut(_) | Halt::Aborted | Halt::Superseded(_)) => {
                self.observer.event(&Event::Warning(&left(&stale, "removing them took too long")));
            }
        }
        stale
    }

    /// The records of a preview that stays as it is.
    pub(super) async fn keep_hosts(&self, before: &State) -> Result<Hosts, Halt> {
        let wanted = wanted(self.client, self.project);
        let stale = self.stale_hosts(before);
        if !wanted.is_empty() {
            if !wanted.is_subset(&before.records) {
                let more = State { records: before.records.union(&wanted).cloned().collect(), ..before.clone() };
                let change = [self.save(&more)];
                self.guarded(self.project.timeouts.start, self.client.host.apply(&change)).await?;
            }
            let limit = self.limit(self.project.timeouts.start);
            self.guarded(limit, write(self.client, &self.deploy.target, &wanted, self.observer)).await?;
        }
        let left = self.drop_hosts(stale).await;
        Ok(wanted.union(&left).cloned().collect())
    }
}
