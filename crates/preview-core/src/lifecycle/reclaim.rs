//! Places of the dead: a run that was killed during a first deploy or a destroy left something that no other run of that
//! preview may ever mend. In flight with a free lock means dead, so this needs no guess and no waiting.

use std::collections::BTreeMap;
use std::time::Duration;

use super::deploy::release;
use super::destroy::{Destroy, Kept, Record, destroy_if};
use super::place::freed;
use super::records;
use super::run::acquire;
use super::{Client, Error, Event, Interrupt, Observer};
use crate::fault::{Fault, FaultKind};
use crate::host::Change;
use crate::project::Target;
use crate::queue::{TICKET, Ticket};
use crate::state::{Phase, State};

/// Who else removes it needs a moment.
const PAUSE: Duration = Duration::from_millis(500);

/// Whether nothing but a removal can come of it, if its run is dead: there is no good version, or it was on its way out.
fn hopeless(state: &State) -> bool {
    state.phase.in_flight() && (state.good.is_none() || state.phase == Phase::Destroying)
}

/// Removes the tickets of those who died waiting; true if there was one, or somebody came back to one.
pub(super) async fn bury_tickets(
    client: &Client,
    tickets: &[Ticket],
    who: &str,
    interrupt: &Interrupt,
) -> Result<bool, Fault> {
    let target =
        |ticket: &Ticket| Target { app: ticket.app.clone(), name: ticket.name.clone(), project: String::new() };
    let targets: Vec<Target> = tickets.iter().map(target).collect();
    bury_tickets_of(client, &targets, who, interrupt).await.map(|went| went > 0)
}

/// The same of these previews; how many went.
pub(super) async fn bury_tickets_of(
    client: &Client,
    targets: &[Target],
    who: &str,
    interrupt: &Interrupt,
) -> Result<usize, Fault> {
    let locks: Vec<String> = targets.iter().map(|target| target.file(&client.base_dir, ".lock")).collect();
    let holders = futures_util::future::try_join_all(locks.iter().map(|lock| client.lock.holder(lock))).await?;
    let mut went = 0;
    for ((target, lock), _) in targets.iter().zip(&locks).zip(holders).filter(|(_, holder)| holder.is_none()) {
        let why = format!("removal of the ticket of {}", target.name);
        let lease =
            match acquire(&*client.lock, lock, who, &why, Duration::ZERO, &super::Quiet, interrupt, &|| ()).await {
                Ok(lease) => lease,
                Err(Error::Locked { .. }) => continue,
                Err(Error::Fault(fault)) => return Err(fault),
                Err(_) => continue,
            };
        // Under its lock nobody waits with it.
        let changes = [Change::Remove { path: target.file(&client.base_dir, TICKET) }, freed(&client.base_dir)?];
        client.host.apply(&changes).await?;
        let released = release(client, target, lease, true).await;
        released.map_err(|error| Fault::new(FaultKind::Failed, "release the lock", error.chain()))?;
        went += 1;
    }
    Ok(went)
}

/// Previews that are in flight without anything to go back to, and their phase: if their run is dead, they are.
pub(super) fn suspects(files: &BTreeMap<String, String>, own: &Target) -> Vec<(Target, Phase)> {
    let states = files.iter().filter_map(|(path, text)| State::parse(path, text).ok());
    states
        .filter(hopeless)
        .map(|state| (Target { app: state.app, name: state.name, project: state.project }, state.phase))
        .filter(|(target, _)| target != own)
        .collect()
}

/// Removes those of them that have no run any more. True if there was one, or somebody else was faster: then it is worth another look.
/// What cannot be removed is told, and stays.
pub(super) async fn reclaim(
    client: &Client,
    suspects: &[(Target, Phase)],
    who: &str,
    observer: &dyn Observer,
    interrupt: &Interrupt,
) -> Result<bool, Fault> {
    let locks: Vec<String> = suspects.iter().map(|(target, _)| target.file(&client.base_dir, ".lock")).collect();
    let holders = futures_util::future::try_join_all(locks.iter().map(|lock| client.lock.holder(lock))).await?;
    let mut again = false;
    for ((target, phase), _) in suspects.iter().zip(holders).filter(|(_, holder)| holder.is_none()) {
        // Somebody may have come back to it meanwhile: that is asked again under its lock.
        let (target, who) = (target.clone(), who.to_owned());
        let wish = Destroy { target, whose: None, who, wait: Duration::ZERO, event_at: None, run: None };
        let still = |record: Record<'_>| match record {
            Record::State(state) if hopeless(state) => Ok(()),
            _ => Err(Kept::Changed),
        };
        let removed = Box::pin(destroy_if(client, &wish, &super::Quiet, interrupt, Some(&still))).await;
        let Target { app, name, .. } = &wish.target;
        match removed {
            Ok(Err(_)) => again = true,
            Ok(Ok(destroyed)) => {
                again = true;
                if destroyed.existed {
                    let note = format!("{app} {name}: its run died while {phase}; removed it, its place is free");
                    observer.event(&Event::Note(&note));
                }
                for host in &destroyed.records_left {
                    observer.event(&Event::Warning(&format!("{app} {name}: left: {}", records::orphan(host))));
                }
            }
            Err(Error::Locked { .. }) => {
                again = true;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => observer.event(&Event::Warning(&format!(
                "{app} {name}: its run died while {phase}, and it cannot be removed: {}",
                error.chain()
            ))),
        }
    }
    Ok(again)
}
