//! What happens, for people: lines and groups on standard error, in the form that terminals and CI systems understand.

use std::io::IsTerminal as _;
use std::sync::Mutex;

use preview_core::lifecycle::{Error, Event, Observer};
use preview_core::report;
use preview_core::secret::Redactor;
use preview_core::state::Phase;

use super::{About, Ci, Console, escape, masks, to_stderr};

/// Tells people what happens, on standard error.
pub(crate) struct Text {
    ci: Ci,
    verbose: bool,
    redactor: Redactor,
    state: Mutex<Inside>,
    /// Commands of GitHub are off between `::stop-commands::<token>` and `::<token>::`.
    token: String,
}

#[derive(Default)]
struct Inside {
    group: bool,
    stopped: bool,
}

impl Text {
    pub(crate) fn new(ci: Ci, verbose: bool, redactor: Redactor) -> Self {
        // Without randomness the clock and the process id are still not known to who wrote the output.
        let token = preview_core::generate::generate(20).map_or_else(
            |_| format!("preview-{}-{}", std::process::id(), jiff::Timestamp::now().as_nanosecond()),
            |token| token.expose().clone(),
        );
        Self { ci, verbose, redactor, state: Mutex::new(Inside::default()), token }
    }

    /// A line of our own, in which commands of the CI system count.
    fn own(&self, inside: &mut Inside, line: &str) {
        if inside.stopped {
            to_stderr(&format!("::{}::", self.token));
            inside.stopped = false;
        }
        to_stderr(line);
    }

    /// A line that came from outside: nothing in it is a command.
    fn foreign(&self, inside: &mut Inside, line: &str) {
        if self.ci == Ci::GitHub && !inside.stopped {
            to_stderr(&format!("::stop-commands::{}", self.token));
            inside.stopped = true;
        }
        let line = super::plain::printable(&self.redactor.clean(line));
        // For GitHub nothing here is a command; other systems know no such mark.
        let harmless = if self.ci != Ci::GitHub && super::in_ci() { super::plain::no_commands(&line) } else { line };
        to_stderr(&harmless);
    }

    fn close(&self, inside: &mut Inside) {
        if inside.group {
            inside.group = false;
            match self.ci {
                Ci::GitHub => self.own(inside, "::endgroup::"),
                Ci::GitLab => to_stderr("\u{1b}[0Ksection_end:0:preview\r\u{1b}[0K"),
                Ci::None => {}
            }
        }
    }

    fn open(&self, inside: &mut Inside, title: &str) {
        self.close(inside);
        match self.ci {
            Ci::GitHub => {
                self.own(inside, &format!("::group::{title}"));
                inside.group = true;
            }
            Ci::GitLab => {
                to_stderr(&format!("\u{1b}[0Ksection_start:0:preview[collapsed=false]\r\u{1b}[0K{title}"));
                inside.group = true;
            }
            Ci::None => to_stderr(title),
        }
    }

    fn end(&self) {
        let mut inside = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.close(&mut inside);
        if inside.stopped {
            self.own(&mut inside, "");
        }
    }

    fn error(&self, message: &str) {
        self.end();
        let message = self.redactor.clean(message);
        let mut inside = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.ci == Ci::GitHub {
            self.own(
                &mut inside,
                &format!("::error title=preview::{}", escape(message.lines().next().unwrap_or_default())),
            );
        }
        for (index, line) in message.lines().enumerate() {
            let line = if index == 0 { format!("preview: {line}") } else { line.to_owned() };
            self.foreign(&mut inside, &line);
        }
        drop(inside);
        self.end();
    }
}

impl Console for Text {
    fn about(&self, _: &About<'_>) {}

    fn say(&self, text: &str) {
        self.end();
        let mut inside = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for line in text.lines() {
            self.foreign(&mut inside, line);
        }
        drop(inside);
        self.end();
    }

    fn warn(&self, text: &str) {
        self.say(&format!("warning: {text}"));
    }

    fn done(&self, text: &str) {
        self.say(text);
    }

    fn failed(&self, error: &Error) {
        if let Some(report) = error.report() {
            self.say(&report::failure(report));
        }
        self.error(&error.chain());
    }

    fn finish(&self) {
        self.end();
    }
}

impl Observer for Text {
    fn event(&self, event: &Event<'_>) {
        let mut inside = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let inside = &mut *inside;
        match event {
            Event::Secret(secret) => {
                self.redactor.learn(secret);
                if self.ci == Ci::GitHub {
                    for line in masks(secret) {
                        self.own(inside, &format!("::add-mask::{}", escape(line)));
                    }
                }
            }
            Event::Stage(phase) => self.open(inside, &format!("{}…", title(*phase))),
            Event::StageDone(phase, took) => {
                if self.verbose || *phase == Phase::Building {
                    self.foreign(inside, &format!("  {} took {:.1} s", title(*phase), took.as_secs_f64()));
                }
            }
            // The note that follows says it.
            Event::StageFailed(..) => {}
            Event::Progress(line) => {
                if !line.trim().is_empty() && (self.verbose || self.ci != Ci::None || std::io::stderr().is_terminal()) {
                    self.foreign(inside, &format!("  | {line}"));
                }
            }
            Event::Note(line) => self.foreign(inside, &format!("  {line}")),
            Event::Warning(line) => {
                if self.ci == Ci::GitHub {
                    let line = escape(&self.redactor.clean(line));
                    self.own(inside, &format!("::warning title=preview::{line}"));
                } else {
                    self.foreign(inside, &format!("  warning: {line}"));
                }
            }
            Event::Waiting(_, holder) => {
                let text = holder.map_or_else(
                    || "waiting: somebody else is at work on this preview".to_owned(),
                    |holder| format!("waiting for {}: {}, since {}", holder.who, holder.why, holder.since),
                );
                self.foreign(inside, &format!("  {text}"));
            }
        }
    }
}

const fn title(phase: Phase) -> &'static str {
    match phase {
        Phase::Queued => "waiting for a place",
        Phase::Preparing => "preparing",
        Phase::Building => "building",
        Phase::Pulling => "pulling",
        Phase::Starting => "starting",
        Phase::Verifying => "verifying",
        Phase::Ready => "ready",
        Phase::Failed => "failed",
        Phase::TimedOut => "timed out",
        Phase::Aborted => "aborted",
        Phase::Destroying => "destroying",
    }
}
