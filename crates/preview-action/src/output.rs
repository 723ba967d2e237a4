//! What people, terminals and CI systems see: progress on standard error, data on standard output, outputs and summaries in files.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;

use preview_core::lifecycle::{Event, Observer};
use preview_core::secret::Redactor;
use preview_core::state::Phase;

/// Writes a line to standard error; a closed one is nobody's loss.
pub(crate) fn to_stderr(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Writes text to standard output. A reader that has gone away (`| head`) is no error.
pub(crate) fn to_stdout(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// Which CI system runs us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ci {
    None,
    GitHub,
    GitLab,
}

impl Ci {
    pub(crate) fn of(environment: &preview_core::config::Environment) -> Self {
        let on = |name: &str| environment.get(name).is_some_and(|value| value == "true");
        if on("GITHUB_ACTIONS") {
            Self::GitHub
        } else if on("GITLAB_CI") {
            Self::GitLab
        } else {
            Self::None
        }
    }
}

/// Tells people what happens, on standard error.
pub(crate) struct Console {
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

impl Console {
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
        to_stderr(&self.redactor.clean(line));
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

    /// The last word before the program ends: groups are closed.
    pub(crate) fn finish(&self) {
        let mut inside = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.close(&mut inside);
        if inside.stopped {
            self.own(&mut inside, "");
        }
    }

    /// The outcome in one or more lines.
    pub(crate) fn say(&self, text: &str) {
        self.finish();
        let mut inside = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for line in text.lines() {
            self.foreign(&mut inside, line);
        }
        drop(inside);
        self.finish();
    }

    /// The error that ends the run.
    pub(crate) fn error(&self, message: &str) {
        self.finish();
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
        self.finish();
    }
}

/// Data of a GitHub command.
fn escape(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

impl Observer for Console {
    fn event(&self, event: &Event<'_>) {
        let mut inside = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let inside = &mut *inside;
        match event {
            Event::Secret(secret) => {
                self.redactor.learn(secret);
                if self.ci == Ci::GitHub {
                    // Each line by itself: the runner masks what it finds on one line.
                    // Very short ones are left alone, as in our own output: a masked `1` would hide the whole log.
                    for line in secret.expose().lines().filter(|line| line.trim().len() >= 4) {
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

/// Appends `name=value` lines to the file of step outputs, and text to that of summaries.
pub(crate) fn ci_files(
    environment: &preview_core::config::Environment,
    outputs: &[(&str, String)],
    summary: &str,
) -> std::io::Result<()> {
    let append = |path: &str, text: &str| -> std::io::Result<()> {
        std::fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(text.as_bytes())
    };
    match Ci::of(environment) {
        Ci::GitHub => {
            if let Some(path) = environment.get("GITHUB_OUTPUT").filter(|path| !path.is_empty()) {
                let mut text = String::new();
                for (name, value) in outputs {
                    let _ = writeln!(text, "{name}={}", one_line(value));
                }
                append(path, &text)?;
            }
            let path = environment.get("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty() && !summary.is_empty());
            if let Some(path) = path {
                append(path, &format!("{summary}\n"))?;
            }
        }
        Ci::GitLab => {
            // `artifacts: reports: dotenv`: no blank lines, no quotes, one line a variable.
            let directory = environment.get("CI_PROJECT_DIR").map_or(".", String::as_str);
            let mut text = String::new();
            for (name, value) in outputs.iter().filter(|(_, value)| !value.is_empty()) {
                let _ = writeln!(text, "PREVIEW_{}={}", name.to_uppercase().replace('-', "_"), one_line(value));
            }
            std::fs::write(format!("{directory}/preview.env"), text)?;
        }
        Ci::None => {}
    }
    Ok(())
}

fn one_line(value: &str) -> String {
    value.replace(['\n', '\r'], " ")
}

/// A JSON document, pretty, with a line end.
pub(crate) fn json(value: &impl serde::Serialize) -> String {
    // Our own types have string keys only, so they always serialise.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}
