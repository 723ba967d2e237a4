//! What was found and done on a machine, for people and for machines.

use std::fmt::Write as _;

use serde::Serialize;

/// How a step is, or what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As wanted, nothing to do.
    Ok,
    /// Differs: to be done.
    Change,
    /// Does not apply to this machine.
    Skip,
    /// Was done.
    Changed,
    /// Was tried, and failed.
    Failed,
    /// Is still to be done: a step before it failed.
    NotReached,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Change => "change",
            Self::Skip => "skip",
            Self::Changed => "changed",
            Self::Failed => "FAILED",
            Self::NotReached => "to do",
        }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Told {
    /// Its name.
    pub id: &'static str,
    /// What it is.
    pub title: String,
    /// What it is good for.
    pub why: &'static str,
    /// How it is.
    pub state: State,
    /// What differed, why it does not apply, or what went wrong.
    pub details: Vec<String>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// A machine, step by step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SetUp {
    /// The machine.
    pub host: String,
    /// Its system.
    pub system: String,
    /// Whether this was only a look.
    pub dry_run: bool,
    /// Whether something was changed.
    pub changed: bool,
    /// Whether a step failed.
    pub failed: bool,
    /// The steps.
    pub steps: Vec<Told>,
}

impl SetUp {
    pub(super) fn new(host: String, system: String, dry_run: bool, steps: Vec<Told>) -> Self {
        let any = |state: State| steps.iter().any(|step| step.state == state);
        Self { changed: any(State::Changed), failed: any(State::Failed), host, system, dry_run, steps }
    }

    /// The exit code of the command line: see the table in `docs/exit-codes.md`.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        if self.failed { 4 } else { 0 }
    }
}

/// The steps as a list, and what that comes to.
#[must_use]
pub fn text(setup: &SetUp) -> String {
    let mut text = format!("{} ({})\n", setup.host, setup.system);
    let width = setup.steps.iter().map(|step| step.id.len()).max().unwrap_or_default();
    for step in &setup.steps {
        let _ = write!(text, "  {:<8} {:<width$}  {}", step.state.word(), step.id, step.title);
        if let Some(seconds) = step.seconds {
            let _ = write!(text, " ({seconds} s)");
        }
        text.push('\n');
        if step.state == State::Change {
            let _ = writeln!(text, "{:width$}  why: {}", "", step.why, width = width + 11);
        }
        for line in &step.details {
            let _ = writeln!(text, "{:width$}  - {line}", "", width = width + 11);
        }
    }
    let count = |state: State| setup.steps.iter().filter(|step| step.state == state).count();
    let (open, changed) = (count(State::Change), count(State::Changed));
    text.push_str(&match (setup.failed, setup.dry_run) {
        (true, _) => {
            let failed = setup.steps.iter().find(|step| step.state == State::Failed).map_or("", |step| step.id);
            format!(
                "{failed} failed; {changed} done, {} not reached. Mend it and run the same command again\n",
                count(State::NotReached)
            )
        }
        (false, true) if open > 0 => format!("{open} of {} would be changed; nothing was\n", setup.steps.len()),
        (false, _) if open == 0 && changed == 0 => "nothing to do\n".to_owned(),
        (false, _) if open > 0 => format!("{open} of {} to be changed\n", setup.steps.len()),
        (false, _) => format!("{changed} of {} changed\n", setup.steps.len()),
    });
    text
}
