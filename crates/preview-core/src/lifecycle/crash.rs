//! What happens when a run does not get to `ready`: the report is made while the new version is still there, then it is taken back.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::diagnose::{Problems, diagnose, last_lines};
use super::error::FailureReport;
use super::flight::Flight;
use super::leading;
use super::observe::Seen;
use super::prepare::{Prepared, Wanted};
use super::run::{self, Halt};
use super::undo;
use super::wait::{self, Expected, Restarts, Verdict};
use super::{Error, Event, Refusal};
use crate::failure::FailureCode;
use crate::fault::{Fault, FaultKind};
use crate::state::{Failure, Phase, State};

/// How a run ended before `ready`.
pub(super) enum Landing {
    Error { error: Error, nothing_left: bool },
}

/// Nothing was changed yet; whether anything of the preview exists decides whether its directory stays.
pub(super) fn grounded(error: impl Into<Error>, exists: bool) -> Landing {
    Landing::Error { error: error.into(), nothing_left: !exists }
}

/// Why the new version does not work.
pub(super) struct Crash {
    pub(super) halt: Halt,
    pub(super) problems: Problems,
    pub(super) output: Vec<String>,
}

impl From<Halt> for Crash {
    fn from(halt: Halt) -> Self {
        Self { halt, problems: Problems::new(), output: Vec::new() }
    }
}

impl From<Fault> for Crash {
    fn from(fault: Fault) -> Self {
        Halt::from(fault).into()
    }
}

/// What a stage ends with whose [`Crash`] is known already.
pub(super) fn known() -> Fault {
    Fault::new(FaultKind::Failed, "bring up the new version", "")
}

pub(super) fn broken(message: impl Into<String>, problems: Problems, output: Vec<String>) -> Crash {
    // Without any the limit came before the first look: it was not healthy in time.
    let code = FailureCode::cause(problems.values().map(|problem| problem.code)).unwrap_or(FailureCode::Unhealthy);
    let fault = Fault::new(FaultKind::Failed, "bring up the new version", message).coded(code);
    Crash { halt: Halt::Fault(fault), problems, output }
}

impl Flight<'_> {
    /// With a connection goes the lease: then nothing may be taken back, and that is what has to be said.
    async fn with_lease_in_mind(&self, halt: Halt) -> Halt {
        match halt {
            Halt::Fault(fault) if fault.kind == FaultKind::Unreachable => {
                // The end of a connection is not seen everywhere at once.
                let lost = tokio::time::timeout(Duration::from_secs(1), self.lease.lost()).await.is_ok();
                if lost || self.lease.check().is_err() { Halt::LeaseLost(run::lost()) } else { Halt::Fault(fault) }
            }
            // What went wrong meanwhile is not why: a process that was stopped finds its children dead and its time over.
            Halt::Fault(_) | Halt::TimedOut(_) if self.lease.check().is_err() => Halt::LeaseLost(run::lost()),
            other => other,
        }
    }

    /// Which limit it was, and how to raise it.
    fn too_long(&self, phase: Phase, limit: Duration) -> String {
        if self.deadline <= Instant::now() {
            let total = self.project.timeouts.total.as_secs();
            return format!("the whole run took longer than {total} s (--timeout, or [timeouts] total)");
        }
        let key = match phase {
            Phase::Building => "build",
            Phase::Pulling => "pull",
            Phase::Verifying => "verify",
            _ => "start",
        };
        format!("it took longer than {} s ([timeouts] {key})", limit.as_secs())
    }

    /// The new version does not work: the report is made while it is still there, then it is taken back.
    pub(super) async fn crash(
        &self,
        crash: Crash,
        seen: &Seen,
        prepared: &Prepared,
        wanted: &Wanted,
        mut state: State,
    ) -> Landing {
        // What stays is what was there before.
        if let Some(before) = &seen.state {
            state.weight = before.weight;
            state.memory = before.memory;
        }
        let phase = state.phase;
        // The stage began with its phase in the state.
        let took = Duration::try_from(Timestamp::now().duration_since(state.updated_at)).unwrap_or_default();
        let Crash { halt, mut problems, output } = crash;
        let halt = self.with_lease_in_mind(halt).await;
        let mut superseded = None;
        let (message, mut code, end) = match halt {
            Halt::LeaseLost(fault) => {
                // Somebody else may be at work: nothing may be changed any more.
                self.observer.event(&Event::StageFailed(phase, took, fault.failure()));
                return Landing::Error { error: fault.into(), nothing_left: false };
            }
            Halt::TimedOut(limit) => (self.too_long(phase, limit), FailureCode::TimedOut, Phase::TimedOut),
            Halt::Aborted => ("interrupted".to_owned(), FailureCode::Interrupted, Phase::Aborted),
            Halt::Fault(fault) => (self.redactor.clean(&say(&fault)), fault.failure(), Phase::Failed),
            Halt::Superseded(by) => {
                let message = by.to_string();
                // What was there before is to go too.
                state.good = None;
                superseded = Some(by);
                (message, FailureCode::Superseded, Phase::Aborted)
            }
        };
        let message = first_lines(&message);
        let expected = Expected::of(&wanted.model).routed(&wanted.routed);
        let mut restarts = Restarts::since(seen.state.as_ref().and_then(|state| state.good.as_ref()));
        let mut services = Vec::new();
        let looked = async {
            let (verdict, containers) =
                wait::look(&*self.client.engine, &self.selector(), &expected, &mut restarts).await?;
            let cause = match &verdict {
                // Compose has given up, but not because of itself.
                Verdict::Broken(found) if code == FailureCode::StartFailed => {
                    FailureCode::cause(found.values().map(|problem| problem.code))
                }
                _ => None,
            };
            // Services that had no time to start are not why.
            if code == FailureCode::DnsFailed {
                return Ok((cause, Vec::new()));
            }
            if let (Verdict::Broken(found) | Verdict::Waiting(found), Phase::Starting | Phase::Verifying) =
                (verdict, phase)
            {
                for (service, why) in found {
                    problems.entry(service).or_insert(why);
                }
            }
            Ok::<_, Fault>((cause, diagnose(&*self.client.engine, &containers, &problems, self.redactor).await))
        };
        if end != Phase::Aborted
            && let Ok(Ok((cause, found))) = tokio::time::timeout(Duration::from_secs(30), looked).await
        {
            services = found;
            code = cause.unwrap_or(code);
        }
        self.observer.event(&Event::StageFailed(phase, took, code));
        self.observer.event(&Event::Note(&format!("{message}; taking it back")));
        let failure = Failure { phase, code: Some(code), message: message.clone(), at: Timestamp::now() };
        let uploaded: Vec<String> = state.tree.iter().map(|file| self.path(file)).collect();
        let passed = prepared.stack_variables();
        let restored = undo::undo(&undo::Undo {
            client: self.client,
            timeouts: &self.project.timeouts,
            target: &self.deploy.target,
            lease: self.lease,
            observer: self.observer,
            redactor: self.redactor,
            good: seen.good_text.as_deref().zip(state.good.as_ref()),
            routes: state
                .good
                .as_ref()
                .and_then(|good| leading::told(&seen.survey.files, &self.deploy.target, &self.client.base_dir, good)),
            state: &state,
            end,
            failure,
            files: seen.survey.paths.iter().cloned().chain(uploaded).collect(),
            variables: &passed,
            pages: self.pages,
        })
        .await;
        let nothing_left = restored == super::Restored::Removed;
        if nothing_left && let Some(by) = superseded {
            let name = self.deploy.target.name.clone();
            return Landing::Error { error: Refusal::Stopped { name, phase, by }.into(), nothing_left };
        }
        let report = Box::new(FailureReport {
            name: self.deploy.target.name.clone(),
            phase,
            failure: code,
            message,
            services,
            output: output.iter().map(|line| self.redactor.clean(line)).collect(),
            restored,
        });
        let error = match end {
            Phase::TimedOut => Error::TimedOut(report),
            Phase::Aborted => Error::Aborted(report),
            _ => Error::Failed(report),
        };
        Landing::Error { error, nothing_left }
    }
}

/// Our own words for our own failures, the adapter's for its.
fn say(fault: &Fault) -> String {
    if fault.operation == "bring up the new version" { fault.context.clone() } else { fault.chain() }
}

/// A message is a few lines; the rest stands in the output.
fn first_lines(message: &str) -> String {
    let lines: Vec<&str> = message.lines().collect();
    if lines.len() <= 6 {
        message.to_owned()
    } else {
        format!("{}\n…\n{}", lines[0], lines[lines.len() - 4..].join("\n"))
    }
}

/// The words of a program that failed are the output of the report.
pub(super) fn with_output(halt: Halt) -> Crash {
    let output = match &halt {
        Halt::Fault(fault) if !fault.output.is_empty() => last_lines(&fault.output.join("\n")),
        Halt::Fault(fault) => last_lines(&fault.context),
        _ => Vec::new(),
    };
    Crash { halt, problems: Problems::new(), output }
}

/// How a run ends that was stopped before its first change.
pub(super) fn halt_error(halt: Halt, name: &str) -> Error {
    match halt {
        Halt::Superseded(by) => Refusal::Superseded { name: name.to_owned(), by }.into(),
        Halt::Fault(fault) | Halt::LeaseLost(fault) => fault.into(),
        Halt::TimedOut(limit) => {
            Fault::new(FaultKind::TimedOut, "read the host's state", format!("no answer within {} s", limit.as_secs()))
                .into()
        }
        Halt::Aborted => run::interrupted("read the host's state", "interrupted").into(),
    }
}
