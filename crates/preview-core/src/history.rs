//! What became of the runs on a host: one line for each that ended, and how long such lines are kept. Pure; holds no secret.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::admission::Weight;
use crate::failure::FailureCode;
use crate::fault::FaultKind;
use crate::host::Change;
use crate::lifecycle::{Error, Refusal};
use crate::state::Phase;

/// The file below the base directory. No application has a name that begins with a dot.
pub const FILE: &str = ".history.jsonl";
/// So many lines stay when the file is cut.
pub const LINES: u32 = 2000;
/// It is cut when it is longer than this, in bytes.
pub const BYTES: u64 = 600_000;
/// Texts from elsewhere (a branch, an owner) are cut to so many characters: a line stays a line.
const WIDTH: usize = 100;

/// What kind of run it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// A deploy or an update.
    Deploy,
    /// A removal that somebody or an event asked for.
    Destroy,
    /// A sweep of the host.
    Sweep,
}

impl Command {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Deploy, Self::Destroy, Self::Sweep];

    /// The word in files and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::Destroy => "destroy",
            Self::Sweep => "sweep",
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A deploy whose version answers.
    Ready,
    /// A deploy that found nothing to change.
    Unchanged,
    /// A preview that is gone.
    Destroyed,
    /// A sweep that did all it should.
    Swept,
    /// There was nothing: to update, or to destroy.
    Absent,
    /// Refused; nothing was changed.
    Refused,
    /// Failed.
    Failed,
    /// A limit of time ran out.
    TimedOut,
    /// Interrupted, or stopped because the preview was closed.
    Aborted,
    /// Of a later version.
    #[serde(other)]
    Other,
}

impl Outcome {
    /// The word in files and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Unchanged => "unchanged",
            Self::Destroyed => "destroyed",
            Self::Swept => "swept",
            Self::Absent => "absent",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Aborted => "aborted",
            Self::Other => "other",
        }
    }

    /// How a run ended that did not end well.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        match error {
            Error::Refused(Refusal::Stopped { .. }) | Error::Aborted(_) => Self::Aborted,
            Error::Refused(_)
            | Error::Rejected(_)
            | Error::Invalid { .. }
            | Error::NotFound(_)
            | Error::Locked { .. } => Self::Refused,
            Error::Failed(_) => Self::Failed,
            Error::TimedOut(_) => Self::TimedOut,
            Error::Fault(_) if error.failure() == FailureCode::Interrupted => Self::Aborted,
            Error::Fault(fault) if fault.kind == FaultKind::TimedOut => Self::TimedOut,
            Error::Fault(_) => Self::Failed,
        }
    }

    /// Whether the run did its work, or there was none.
    #[must_use]
    pub const fn is_good(self) -> bool {
        matches!(self, Self::Ready | Self::Unchanged | Self::Destroyed | Self::Swept | Self::Absent)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A run that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When it ended, on its own clock.
    pub ended_at: Timestamp,
    /// Its name: that of the CI system, or one made up; the same as in the log.
    pub run: String,
    /// What it was.
    pub command: Command,
    /// The application; a sweep is of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// The preview's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<String>,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What the preview is of, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it did not end well.
    #[serde(default, deserialize_with = "FailureCode::lenient", skip_serializing_if = "Option::is_none")]
    pub code: Option<FailureCode>,
    /// What it was doing when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// How long it took in all, seconds.
    pub seconds: f64,
    /// How long of that it waited for a place, seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub queued_seconds: f64,
    /// How many places its preview takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Weight>,
    /// Services that ended for lack of memory.
    #[serde(default, skip_serializing_if = "is_none")]
    pub oom_kills: u32,
    /// Previews that a sweep removed.
    #[serde(default, skip_serializing_if = "is_none")]
    pub removed: u32,
    /// Previews that a sweep mended.
    #[serde(default, skip_serializing_if = "is_none")]
    pub mended: u32,
}

fn is_zero(seconds: &f64) -> bool {
    *seconds <= 0.0
}

const fn is_none(number: &u32) -> bool {
    *number == 0
}

impl Entry {
    /// A run that ended now, of which no more is known.
    #[must_use]
    pub fn new(run: &str, command: Command, outcome: Outcome, seconds: f64) -> Self {
        Self {
            ended_at: Timestamp::now(),
            run: short(run),
            command,
            app: None,
            preview: None,
            owner: None,
            subject: None,
            outcome,
            code: None,
            phase: None,
            seconds: hundredths(seconds),
            queued_seconds: 0.0,
            weight: None,
            oom_kills: 0,
            removed: 0,
            mended: 0,
        }
    }

    /// With why it did not end well.
    #[must_use]
    pub fn because(mut self, error: &Error) -> Self {
        self.outcome = Outcome::of(error);
        self.code = Some(error.failure());
        if let Some(report) = error.report() {
            self.phase = Some(report.phase);
            let oom = |service: &&crate::lifecycle::Diagnosis| service.failure == FailureCode::OomKilled;
            self.oom_kills = u32::try_from(report.services.iter().filter(oom).count()).unwrap_or(u32::MAX);
        } else if let Error::Refused(Refusal::Stopped { phase, .. }) = error {
            self.phase = Some(*phase);
        }
        self
    }

    /// Its line, without the end; texts from elsewhere are cut.
    #[must_use]
    pub fn line(&self) -> String {
        let cut = |text: &Option<String>| text.as_deref().map(short);
        let entry = Self { owner: cut(&self.owner), subject: cut(&self.subject), ..self.clone() };
        // A struct of strings and numbers always serialises.
        serde_json::to_string(&entry).unwrap_or_default()
    }

    /// What adds it to the history of a host.
    #[must_use]
    pub fn change(&self, base: &str) -> Change {
        Change::Append { path: format!("{base}/{FILE}"), line: self.line(), keep: LINES, above: BYTES }
    }
}

/// To hundredths of a second: more is noise.
#[must_use]
pub fn hundredths(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}

fn short(text: &str) -> String {
    text.chars().take(WIDTH).collect()
}

/// The runs in a history, as they ended. A line that cannot be read (cut by a host that lost power, or of a later version) is none.
#[must_use]
pub fn parse(text: &str) -> Vec<Entry> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The last `number` runs, the last first; of one application and of the whole host, or of all.
#[must_use]
pub fn last(entries: Vec<Entry>, app: Option<&str>, number: usize) -> Vec<Entry> {
    let mut found: Vec<Entry> = entries
        .into_iter()
        .filter(|entry| app.is_none() || entry.app.is_none() || entry.app.as_deref() == app)
        .collect();
    found.reverse();
    found.truncate(number);
    found
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::fault::Fault;

    pub(crate) fn entry(command: Command, outcome: Outcome, seconds: f64) -> Entry {
        Entry { ended_at: Timestamp::from_second(1_800_000_000).unwrap(), ..Entry::new("r", command, outcome, seconds) }
    }

    #[test]
    fn a_line_is_read_back_and_says_nothing_that_is_not_known() {
        let plain = entry(Command::Sweep, Outcome::Swept, 1.0);
        assert_eq!(
            plain.line(),
            r#"{"ended_at":"2027-01-15T08:00:00Z","run":"r","command":"sweep","outcome":"swept","seconds":1.0}"#
        );
        let full = Entry {
            app: Some("shop".into()),
            preview: Some("pr-7".into()),
            owner: Some("octo\ncat".into()),
            subject: Some("branch a\"b".into()),
            code: Some(FailureCode::OomKilled),
            phase: Some(Phase::Verifying),
            queued_seconds: 2.5,
            weight: Some(Weight::default()),
            oom_kills: 2,
            ..entry(Command::Deploy, Outcome::Failed, 12.345)
        };
        assert!(!full.line().contains('\n'), "{}", full.line());
        assert_eq!(parse(&format!("{}\n{}\n", plain.line(), full.line())), [plain, full]);
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_a_later_word_is_not_damage() {
        let good = entry(Command::Deploy, Outcome::Ready, 1.0).line();
        let later =
            good.replace("ready", "of_a_later_version").replace("\"run\"", "\"code\":\"later\",\"more\":1,\"run\"");
        let found = parse(&format!("{{\"ended_at\":\n\n{good}\n{later}\n{}", &good[..20]));
        assert_eq!(found.iter().map(|entry| entry.outcome).collect::<Vec<_>>(), [Outcome::Ready, Outcome::Other]);
    }

    #[test]
    fn a_line_is_short_whatever_the_branch_is_called() {
        let long = Some("x".repeat(10_000));
        let line = Entry { owner: long.clone(), subject: long, ..entry(Command::Deploy, Outcome::Ready, 1.0) }.line();
        assert!(line.len() < 400, "{}", line.len());
    }

    #[test]
    fn each_end_has_its_word() {
        let fault = |kind| Error::Fault(Fault::new(kind, "test", ""));
        let interrupted = Fault::new(FaultKind::TimedOut, "test", "").coded(FailureCode::Interrupted);
        for (error, outcome) in [
            (Error::invalid("x"), Outcome::Refused),
            (Error::Locked { what: "x".into(), holder: None, waited: std::time::Duration::ZERO }, Outcome::Refused),
            (fault(FaultKind::TimedOut), Outcome::TimedOut),
            (interrupted.into(), Outcome::Aborted),
            (fault(FaultKind::NoSpace), Outcome::Failed),
        ] {
            let told = entry(Command::Deploy, Outcome::Ready, 1.0).because(&error);
            assert_eq!((told.outcome, told.code), (outcome, Some(error.failure())), "{error}");
            assert!(!told.outcome.is_good());
        }
    }

    #[test]
    fn the_last_come_first_and_a_sweep_concerns_everybody() {
        let of =
            |app: &str, seconds| Entry { app: Some(app.into()), ..entry(Command::Deploy, Outcome::Ready, seconds) };
        let all = vec![of("shop", 1.0), of("blog", 2.0), entry(Command::Sweep, Outcome::Swept, 3.0), of("shop", 4.0)];
        let seconds = |app, number| last(all.clone(), app, number).iter().map(|e| e.seconds).collect::<Vec<_>>();
        assert_eq!(seconds(None, 9), [4.0, 3.0, 2.0, 1.0]);
        assert_eq!(seconds(Some("shop"), 9), [4.0, 3.0, 1.0]);
        assert_eq!(seconds(Some("shop"), 2), [4.0, 3.0]);
    }
}
