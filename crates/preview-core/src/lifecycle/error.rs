//! How a run can end other than well, and the exit code of each way.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::Diagnosis;
use crate::admission::Full;
use crate::failure::FailureCode;
use crate::fault::{Fault, FaultKind};
use crate::fence::Superseded;
use crate::lock::Holder;
use crate::stack::{Rejection, Violation};
use crate::state::Phase;

/// Why a wish is refused, although it is well-formed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The pull request comes from a fork: its code is not trusted with this host.
    #[error(
        "pull request {number} comes from the fork {fork}: previews of forks are refused, since their code would run on your host, unless `[policy] forks` in the base branch's configuration allows them"
    )]
    Fork {
        /// The pull request.
        number: u64,
        /// The fork, as far as known.
        fork: String,
    },
    /// There is no room for one more preview. What it says is for people: see [`Full`] for the parts.
    #[error("there is no room for {name}: {}\n{}", .queue.clone().unwrap_or_else(|| .full.text(*.now)), .full.advice())]
    Full {
        /// The preview.
        name: String,
        /// What there is not enough of, and who has it.
        full: Box<Full>,
        /// When that was.
        now: Timestamp,
        /// There would be a place, if others did not wait for it: who.
        queue: Option<String>,
    },
    /// It is heavy, and this is not the time for that.
    #[error("{name} has to wait: heavy deploys start only in the window {window}, which opens at {opens}{}", .limit.map(|limit| format!("; that is longer than {} s ([timeouts] queue)", limit.as_secs())).unwrap_or_default())]
    NotNow {
        /// The preview.
        name: String,
        /// The window.
        window: String,
        /// When it opens next.
        opens: Timestamp,
        /// The run would have waited, but not so long.
        limit: Option<Duration>,
    },
    /// Something later came before it.
    #[error("{name} is left as it is: {by}")]
    Superseded {
        /// The preview.
        name: String,
        /// What that was.
        by: Superseded,
    },
    /// Something later came while it was at work: what was there of the preview is removed.
    #[error("the deploy of {name} was stopped while {phase}, and the preview removed: {by}")]
    Stopped {
        /// The preview.
        name: String,
        /// What the run was doing.
        phase: Phase,
        /// What that was.
        by: Superseded,
    },
    /// The name belongs to another branch, pull request or repository.
    #[error("the name {name} is taken by {by}; rename the branch, or destroy that preview first")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        by: String,
    },
}

/// What became of what ran before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "detail")]
pub enum Restored {
    /// The version before runs again, or still.
    Previous,
    /// There was none: everything of the new version was removed.
    Removed,
    /// Neither could be done; why, and what mends it.
    NotYet(String),
}

/// A deploy that did not get to `ready`.
#[derive(Clone, Debug, Serialize)]
pub struct FailureReport {
    /// The preview.
    pub name: String,
    /// What the run was doing.
    pub phase: Phase,
    /// What went wrong, in one word.
    pub failure: FailureCode,
    /// What went wrong.
    pub message: String,
    /// A closer look at each service that did not do well.
    pub services: Vec<Diagnosis>,
    /// Output of the step or build that failed, its last lines.
    pub output: Vec<String>,
    /// What became of what ran before.
    pub restored: Restored,
}

/// The end of a run that did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was handed in is wrong. Nothing was changed.
    #[error("{message}")]
    Invalid {
        /// What and where.
        message: String,
    },
    /// The files hold what a preview may not have on a shared host, or they or the configuration are wrong: everything that was found. Nothing was changed.
    #[error("{0}")]
    Rejected(Box<Rejection>),
    /// Refused. Nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The new version does not work.
    #[error("the deploy of {} failed while {}: {}", .0.name, .0.phase, .0.message)]
    Failed(Box<FailureReport>),
    /// A limit of time ran out.
    #[error("the deploy of {} ran out of time while {}: {}", .0.name, .0.phase, .0.message)]
    TimedOut(Box<FailureReport>),
    /// The run was interrupted.
    #[error("the deploy of {} was interrupted while {}", .0.name, .0.phase)]
    Aborted(Box<FailureReport>),
    /// There is no such preview.
    #[error("{0}")]
    NotFound(String),
    /// Somebody else is at work on the preview.
    #[error("{what} is locked: {}; waited {} s", say_holder(.holder.as_ref()), .waited.as_secs())]
    Locked {
        /// What is locked.
        what: String,
        /// By whom, as far as known.
        holder: Option<Holder>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Something outside failed before anything was changed, or while nothing could be undone.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// One sentence on who holds a lock.
#[must_use]
pub(crate) fn say_holder(holder: Option<&Holder>) -> String {
    holder.map_or_else(
        || "somebody is at work on it".to_owned(),
        |holder| format!("{} is at work on it ({}) since {}", holder.who, holder.why, holder.since),
    )
}

impl Error {
    /// What was handed in is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into() }
    }

    /// These violations, with no proposal what to leave out.
    #[must_use]
    pub fn rejected(violations: Vec<Violation>) -> Self {
        Self::Rejected(Box::new(Rejection { violations, exclude: None }))
    }

    /// What was found wrong with the project, if that is what ended the run.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::Rejected(rejection) => Some(rejection),
            _ => None,
        }
    }

    /// The exit code of the command line: see the table in `docs/exit-codes.md`.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Invalid { .. } | Self::NotFound(_) => 2,
            Self::Rejected(rejection) => {
                if rejection.is_refused() {
                    3
                } else {
                    2
                }
            }
            Self::Refused(_) => 3,
            Self::Failed(_) => 4,
            Self::TimedOut(_) | Self::Aborted(_) => 5,
            Self::Locked { .. } => 7,
            Self::Fault(fault) if fault.failure() == FailureCode::PublicUnreachable => 4,
            Self::Fault(fault) => match fault.kind {
                FaultKind::Unreachable | FaultKind::HostKey | FaultKind::Denied | FaultKind::LeaseLost => 6,
                FaultKind::Invalid | FaultKind::Unsupported => 2,
                FaultKind::NoSpace | FaultKind::PortTaken => 4,
                FaultKind::TimedOut => 5,
                FaultKind::NotFound | FaultKind::Conflict | FaultKind::Failed => 1,
            },
        }
    }

    /// The failure code: see the table in `docs/failure-codes.md`.
    #[must_use]
    pub fn failure(&self) -> FailureCode {
        match self {
            Self::Invalid { .. } => FailureCode::ConfigInvalid,
            Self::NotFound(_) => FailureCode::NotFound,
            Self::Rejected(rejection) if rejection.is_refused() => FailureCode::Policy,
            Self::Rejected(_) => FailureCode::ConfigInvalid,
            Self::Refused(refusal) => match refusal {
                Refusal::Fork { .. } => FailureCode::Fork,
                Refusal::Full { .. } => FailureCode::Full,
                Refusal::NameTaken { .. } => FailureCode::NameTaken,
                Refusal::Superseded { .. } | Refusal::Stopped { .. } => FailureCode::Superseded,
                Refusal::NotNow { .. } => FailureCode::OutsideWindow,
            },
            Self::Failed(report) | Self::TimedOut(report) | Self::Aborted(report) => report.failure,
            Self::Locked { .. } => FailureCode::Locked,
            Self::Fault(fault) => fault.failure(),
        }
    }

    /// The report of a deploy that failed, if there is one.
    #[must_use]
    pub const fn report(&self) -> Option<&FailureReport> {
        match self {
            Self::Failed(report) | Self::TimedOut(report) | Self::Aborted(report) => Some(report),
            _ => None,
        }
    }

    /// The message with its causes, for people.
    #[must_use]
    pub fn chain(&self) -> String {
        match self {
            Self::Fault(fault) => fault.chain(),
            other => other.to_string(),
        }
    }
}
