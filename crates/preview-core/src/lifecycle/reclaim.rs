//! Places of the dead: a run that was killed during a first deploy or a destroy left something that no other run of that
//! preview may ever mend. In flight with a free lock means dead, so this needs no guess and no waiting.

use std::collections::BTreeMap;
use std::time::Duration;

use super::destroy::{Destroy, Kept, Record, destroy_if};
use super::{Client, Error, Event, Interrupt, Observer};
use crate::fault::Fault;
use crate::project::Target;
use crate::state::{Phase, State};

/// Who else removes it needs a moment.
const PAUSE: Duration = Duration::from_millis(500);

/// Whether nothing but a removal can come of it, if its run is dead: there is no good version, or it was on its way out.
fn hopeless(state: &State) -> bool {
    state.phase.in_flight() && (state.good.is_none() || state.phase == Phase::Destroying)
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
        let wish = Destroy { target: target.clone(), who: who.to_owned(), wait: Duration::ZERO, event_at: None };
        let still = |record: Record<'_>| match record {
            Record::State(state) if hopeless(state) => Ok(()),
            _ => Err(Kept::Changed),
        };
        let removed = destroy_if(client, &wish, &super::Quiet, interrupt, Some(&still)).await;
        let Target { app, name, .. } = target;
        match removed {
            Ok(Err(_)) => again = true,
            Ok(Ok(destroyed)) => {
                again = true;
                if destroyed.existed {
                    let note = format!("{app} {name}: its run died while {phase}; removed it, its place is free");
                    observer.event(&Event::Note(&note));
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
