//! What happens, for machines: one JSON object a line on standard error. The form is in `docs/output.md`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use preview_core::config::Environment;
use preview_core::failure::FailureCode;
use preview_core::lifecycle::{Error, Event, Observer};
use preview_core::report;
use preview_core::secret::Redactor;
use preview_core::state::Phase;
use serde::Serialize;
use tracing::field::{Field, Visit};

use super::{About, Ci, Console, escape, masks, to_stderr};

/// One line.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    level: &'static str,
    run: &'a str,
    command: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preview: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<Phase>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<FailureCode>,
    message: &'a str,
}

/// What a line says beside who and where.
#[derive(Default)]
struct Said {
    phase: Option<Phase>,
    took: Option<Duration>,
    code: Option<FailureCode>,
}

/// Writes the log.
pub(crate) struct Log {
    ci: Ci,
    redactor: Redactor,
    run: String,
    command: &'static str,
    begun: Instant,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    app: Option<String>,
    preview: Option<String>,
    owner: Option<String>,
    stage: Option<(Phase, Instant)>,
}

impl Log {
    pub(crate) fn new(command: &'static str, run: &str, environment: &Environment, redactor: Redactor) -> Self {
        let log = Self {
            ci: Ci::of(environment),
            redactor,
            run: run.to_owned(),
            command,
            begun: Instant::now(),
            inside: Mutex::default(),
        };
        log.write(&log.inside(), "info", "started", Said::default(), concat!("preview ", env!("CARGO_PKG_VERSION")));
        log
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, inside: &Inside, level: &'static str, status: &'static str, said: Said, message: &str) {
        let clean = |text: &Option<String>| text.as_deref().map(|text| self.redactor.clean(text));
        let (app, preview, owner) = (clean(&inside.app), clean(&inside.preview), clean(&inside.owner));
        let line = Line {
            time: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
            level,
            run: &self.run,
            command: self.command,
            app: app.as_deref(),
            preview: preview.as_deref(),
            owner: owner.as_deref(),
            phase: said.phase,
            status,
            duration_ms: said.took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            code: said.code,
            message: &self.redactor.clean(message),
        };
        // Text, numbers and words of ours: that always serialises.
        let mut text = harmless(&serde_json::to_string(&line).unwrap_or_default());
        text.push('\n');
        // In one piece, so that lines of several threads do not mix; a closed standard error is nobody's loss.
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }

    /// A line about the stage at work, or about the run between stages.
    fn note(&self, level: &'static str, status: &'static str, message: &str) {
        let inside = self.inside();
        let phase = inside.stage.map(|(phase, _)| phase);
        self.write(&inside, level, status, Said { phase, ..Said::default() }, message);
    }

    /// The stage at work ends with the run.
    fn close(&self, inside: &mut Inside, code: Option<FailureCode>) {
        if let Some((phase, begun)) = inside.stage.take() {
            let said = Said { phase: Some(phase), took: Some(begun.elapsed()), code };
            let (level, status) = if code.is_some() { ("error", "failed") } else { ("info", "done") };
            self.write(inside, level, status, said, phase.as_str());
        }
    }
}

/// JSON escapes the older control characters alone, and GitHub's runner obeys `##[…]` wherever it stands in a line. Both stand within strings.
pub(super) fn harmless(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.replace("##[", "#\\u0023[").chars() {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            let _ = write!(text, "\\u{:04x}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    text
}

impl Observer for Log {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Secret(secret) => {
                self.redactor.learn(secret);
                if self.ci == Ci::GitHub {
                    // The one thing that is no JSON: a command to the runner, which hides the value in what others print.
                    let _inside = self.inside();
                    masks(secret).for_each(|line| to_stderr(&format!("::add-mask::{}", escape(line))));
                }
            }
            Event::Stage(phase) => {
                let mut inside = self.inside();
                self.close(&mut inside, None);
                inside.stage = Some((*phase, Instant::now()));
                self.write(&inside, "info", "started", Said { phase: Some(*phase), ..Said::default() }, phase.as_str());
            }
            Event::StageDone(phase, took) => {
                let mut inside = self.inside();
                if inside.stage.is_some_and(|(open, _)| open != *phase) {
                    // A wait for a place came between: this one was told as done when that began.
                    return self.close(&mut inside, None);
                }
                inside.stage = None;
                let said = Said { phase: Some(*phase), took: Some(*took), code: None };
                self.write(&inside, "info", "done", said, phase.as_str());
            }
            Event::StageFailed(phase, took, code) => {
                let mut inside = self.inside();
                inside.stage = None;
                let said = Said { phase: Some(*phase), took: Some(*took), code: Some(*code) };
                self.write(&inside, "error", "failed", said, phase.as_str());
            }
            Event::Progress(line) if line.trim().is_empty() => {}
            Event::Progress(line) => self.note("debug", "progress", line),
            Event::Note(line) => self.note("info", "note", line),
            Event::Warning(line) => self.note("warn", "note", line),
            Event::Waiting(_, holder) => {
                let text = holder.map_or_else(
                    || "somebody else is at work on this preview".to_owned(),
                    |holder| format!("{}: {}, since {}", holder.who, holder.why, holder.since),
                );
                self.note("info", "waiting", &text);
            }
        }
    }
}

impl Console for Log {
    fn about(&self, about: &About<'_>) {
        let mut inside = self.inside();
        let inside = &mut *inside;
        for (known, new) in
            [(&mut inside.app, about.app), (&mut inside.preview, about.preview), (&mut inside.owner, about.owner)]
        {
            if let Some(new) = new {
                *known = Some(new.to_owned());
            }
        }
    }

    fn say(&self, text: &str) {
        self.note("info", "note", text);
    }

    fn warn(&self, text: &str) {
        self.note("warn", "note", text);
    }

    fn done(&self, text: &str) {
        self.note("info", "report", text);
    }

    fn failed(&self, error: &Error) {
        let mut inside = self.inside();
        let code = error.failure();
        self.close(&mut inside, Some(code));
        if let Some(report) = error.report() {
            self.write(&inside, "error", "report", Said::default(), &report::failure(report));
        }
        let said = Said { phase: None, took: Some(self.begun.elapsed()), code: Some(code) };
        self.write(&inside, "error", "failed", said, &error.chain());
    }

    fn finish(&self) {
        let mut inside = self.inside();
        self.close(&mut inside, None);
        let said = Said { took: Some(self.begun.elapsed()), ..Said::default() };
        self.write(&inside, "info", "done", said, "done");
    }
}

/// What the libraries trace, as lines of the log.
pub(super) struct Traces(pub(super) Arc<Log>);

impl<S> tracing_subscriber::Layer<S> for Traces
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    fn on_event(&self, event: &tracing::Event<'_>, context: tracing_subscriber::layer::Context<'_, S>) {
        let mut text = Fields::default();
        event.record(&mut text);
        let mut message = String::new();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            let _ = write!(message, "{}: ", span.name());
        }
        message.push_str(&text.message);
        message.push_str(&text.others);
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => "error",
            tracing::Level::WARN => "warn",
            tracing::Level::INFO => "info",
            tracing::Level::DEBUG => "debug",
            tracing::Level::TRACE => "trace",
        };
        self.0.note(level, "trace", &message);
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.others, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::run_id;
    use super::*;

    #[test]
    fn the_runs_name_is_that_of_the_ci_system() {
        let environment = |pairs: &[(&str, &str)]| -> Environment {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(run_id(&environment(&[("GITHUB_RUN_ID", "12"), ("GITHUB_RUN_ATTEMPT", "3")])), "12-3");
        assert_eq!(run_id(&environment(&[("CI_JOB_ID", "77")])), "77");
        let made_up = run_id(&Environment::new());
        assert!(made_up.len() == 16 && made_up.bytes().all(|byte| byte.is_ascii_hexdigit()), "{made_up}");
        assert_ne!(made_up, run_id(&Environment::new()));
    }

    #[test]
    fn nothing_in_a_line_acts_on_a_terminal_or_a_runner_and_it_reads_as_before() {
        let text = "a\u{1b}[31m\u{9b}2J\n##[error]x\u{2028}\u{7f}é";
        let line = harmless(&serde_json::to_string(text).unwrap());
        assert!(line.chars().all(|c| !c.is_control()) && !line.contains("##["), "{line}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
    }
}
