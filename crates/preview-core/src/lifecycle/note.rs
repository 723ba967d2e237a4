//! What a run leaves in the history of its host when it ends. Never fails the run.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::flight::Flight;
use super::verify::lock;
use super::{Client, Deployed, Destroy, Error, Sweep, Swept};
use crate::failure::FailureCode;
use crate::fault::FaultKind;
use crate::history::{Command, Entry, Outcome, hundredths};
use crate::host::Change;
use crate::plan::Kind;
use crate::project::{Deploy, Project};
use crate::secret::Redactor;
use crate::state::{Phase, State};

/// A host that does not answer any more is not waited for longer than this.
const LIMIT: Duration = Duration::from_secs(15);

/// Writes what is to be noted; a failure is a warning in the trace, and no more.
pub(super) async fn note(client: &Client, entry: Option<Entry>) {
    let Some(entry) = entry else { return };
    match tokio::time::timeout(LIMIT, client.host.apply(&[entry.change(&client.base_dir)])).await {
        Ok(Ok(())) => {}
        Ok(Err(fault)) => tracing::warn!(why = fault.chain(), "the history of the host was not written"),
        Err(_) => tracing::warn!("the history of the host was not written: no answer within {} s", LIMIT.as_secs()),
    }
}

/// Whether anything may be written after a run that ended so: not when somebody else may be at work, nor where nothing was reached.
pub(super) fn may_be_noted(error: &Error) -> bool {
    let gone = [FaultKind::LeaseLost, FaultKind::Unreachable, FaultKind::HostKey, FaultKind::Denied];
    // The engine may be down on a host that is well.
    let engine = error.failure() == FailureCode::EngineUnreachable;
    engine || !matches!(error, Error::Fault(fault) if gone.contains(&fault.kind))
}

/// The line of a deploy that ended now.
fn of_deploy(project: &Project, deploy: &Deploy, outcome: Outcome, took: Duration, redactor: &Redactor) -> Entry {
    let clean = |text: &str| redactor.clean(text);
    let mut entry = Entry::new(&clean(&deploy.run), Command::Deploy, outcome, took.as_secs_f64());
    entry.app = Some(deploy.target.app.clone());
    entry.preview = Some(deploy.target.name.clone());
    entry.owner = deploy.owner.as_deref().map(clean);
    entry.subject = Some(clean(&deploy.subject.to_string()));
    entry.weight = Some(project.weight);
    entry
}

/// The line of a deploy that found somebody else at work. Who got no lock for another reason may write nothing, or reaches nothing.
pub(super) fn turned_away(
    project: &Project,
    deploy: &Deploy,
    error: &Error,
    took: Duration,
    redactor: &Redactor,
) -> Option<Entry> {
    let locked = matches!(error, Error::Locked { .. });
    locked.then(|| of_deploy(project, deploy, Outcome::Refused, took, redactor).because(error))
}

impl Flight<'_> {
    fn entry(&self, outcome: Outcome) -> Entry {
        let entry = of_deploy(self.project, self.deploy, outcome, self.begun.elapsed(), self.redactor);
        Entry { queued_seconds: hundredths(self.asking.waited.as_secs_f64()), ..entry }
    }

    /// What goes with the last changes of a run that ends well. A lease that is concluded cannot be asked any more, so it is noted there.
    pub(super) fn ending(&self, kind: Kind) -> Change {
        let outcome = if kind == Kind::Unchanged { Outcome::Unchanged } else { Outcome::Ready };
        self.entry(outcome).change(&self.client.base_dir)
    }

    /// What is left to note after a run. `None` where that went with its last changes, or nothing may be written.
    pub(super) fn epilogue(&self, done: Result<&Deployed, &Error>) -> Option<Entry> {
        match done {
            Ok(Deployed { kind: Some(_), .. }) => None,
            Ok(_) => Some(self.entry(Outcome::Absent)),
            Err(error) => {
                // A preview that cannot be undone may have lost its lease on the way back.
                (may_be_noted(error) && self.lease.check().is_ok()).then(|| {
                    let mut entry = self.entry(Outcome::Failed).because(error);
                    let before = if self.asking.queues() { Phase::Queued } else { Phase::Preparing };
                    entry.phase.get_or_insert(before);
                    entry
                })
            }
        }
    }
}

/// What becomes known of a destroy while it is at work; nothing is kept of one that is part of another run.
pub(super) struct Story {
    entry: Option<Mutex<Entry>>,
    begun: Instant,
}

impl Story {
    pub(super) fn new(wish: &Destroy, begun: Instant) -> Self {
        let entry = wish.run.as_ref().map(|run| {
            let mut entry = Entry::new(run, Command::Destroy, Outcome::Destroyed, 0.0);
            entry.app = Some(wish.target.app.clone());
            entry.preview = Some(wish.target.name.clone());
            Mutex::new(entry)
        });
        Self { entry, begun }
    }

    /// What the state says of the preview that is to go.
    pub(super) fn learn(&self, state: &State) {
        if let Some(entry) = &self.entry {
            let mut entry = lock(entry);
            entry.owner.clone_from(&state.owner);
            entry.subject = Some(state.subject.to_string());
            entry.weight = Some(state.weight);
        }
    }

    fn now(&self, outcome: Outcome) -> Option<Entry> {
        let entry = lock(self.entry.as_ref()?).clone();
        let seconds = hundredths(self.begun.elapsed().as_secs_f64());
        Some(Entry { ended_at: Timestamp::now(), outcome, seconds, ..entry })
    }

    /// What goes with the last changes.
    pub(super) fn ending(&self, existed: bool, base: &str) -> Option<Change> {
        let outcome = if existed { Outcome::Destroyed } else { Outcome::Absent };
        self.now(outcome).map(|entry| entry.change(base))
    }

    /// What is left to note where it did not end well.
    pub(super) fn failed(&self, error: &Error) -> Option<Entry> {
        if !may_be_noted(error) {
            return None;
        }
        let mut entry = self.now(Outcome::Failed)?.because(error);
        entry.phase = Some(Phase::Destroying);
        Some(entry)
    }
}

/// The line of a sweep that ended now.
pub(super) fn of_sweep(wish: &Sweep, done: Result<&Swept, &Error>, took: Duration) -> Option<Entry> {
    let entry = Entry::new(&wish.run, Command::Sweep, Outcome::Swept, took.as_secs_f64());
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    match done {
        Ok(swept) if swept.dry_run => None,
        Ok(swept) => {
            let outcome = if swept.exit_code() == 0 { Outcome::Swept } else { Outcome::Failed };
            Some(Entry { outcome, removed: count(swept.removed.len()), mended: count(swept.mended.len()), ..entry })
        }
        Err(error) => (!wish.dry_run && may_be_noted(error)).then(|| entry.because(error)),
    }
}
