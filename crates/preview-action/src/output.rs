//! What leaves the program: data on standard output, what happens on standard error (for people or as a log), outputs and summaries in files.

mod job;
mod log;
mod plain;
mod text;

use std::hash::{BuildHasher as _, Hasher as _};
use std::io::Write as _;
use std::sync::Arc;

use preview_core::config::Environment;
use preview_core::lifecycle::{Error, Observer};
use preview_core::secret::{Redactor, Secret};

pub(crate) use job::ci_files;
pub(crate) use log::Log;
pub(crate) use plain::Lines;
pub(crate) use text::Text;

/// Is told of everything that is no data. What the library tells comes by [`Observer`], the rest by these.
pub(crate) trait Console: Observer {
    /// What the run is about, as far as it is known; what was said before stays.
    fn about(&self, about: &About<'_>);
    /// Something to know.
    fn say(&self, text: &str);
    /// Something that may be wrong.
    fn warn(&self, text: &str);
    /// The outcome, in one or more lines.
    fn done(&self, text: &str);
    /// The error that ends the run.
    fn failed(&self, error: &Error);
    /// The last word before a run ends well.
    fn finish(&self);
}

/// What a run is about.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct About<'a> {
    pub(crate) app: Option<&'a str>,
    pub(crate) preview: Option<&'a str>,
    pub(crate) owner: Option<&'a str>,
}

/// The name of this run: that of the CI system, which leads to its page, or one made up.
pub(crate) fn run_id(environment: &Environment) -> String {
    let get = |name: &str| environment.get(name).filter(|value| !value.is_empty());
    if let Some(id) = get("GITHUB_RUN_ID") {
        return format!("{id}-{}", get("GITHUB_RUN_ATTEMPT").map_or("1", String::as_str));
    }
    // The keys of a hash map are random in each process.
    let random = || std::hash::RandomState::new().build_hasher().finish();
    get("CI_JOB_ID").cloned().unwrap_or_else(|| format!("{:016x}", random()))
}

/// Makes the console, and has what the libraries trace printed in its form.
pub(crate) fn console(
    json: bool,
    verbose: u8,
    command: &'static str,
    run: &str,
    environment: &Environment,
    redactor: &Redactor,
) -> Arc<dyn Console> {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;
    let (ours, others) = match verbose {
        0 | 1 => (LevelFilter::WARN, LevelFilter::WARN),
        2 => (LevelFilter::DEBUG, LevelFilter::WARN),
        _ => (LevelFilter::TRACE, LevelFilter::INFO),
    };
    let _ = IN_CI.set(Ci::is_ci(environment));
    // Our binary and our library begin with the same word.
    let filter = Targets::new().with_target("preview", ours).with_default(others);
    // A second run in one process, as in tests, keeps the first one's.
    if json {
        let log = Arc::new(Log::new(command, run, environment, redactor.clone()));
        let _ = tracing_subscriber::registry().with(filter).with(log::Traces(Arc::clone(&log))).try_init();
        log
    } else {
        let cleaned = redactor.clone();
        let lines = tracing_subscriber::fmt::layer().with_writer(move || Cleaned(cleaned.clone()));
        let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
        Arc::new(Text::new(Ci::of(environment), verbose > 0, redactor.clone()))
    }
}

/// Standard error for what is traced: one event comes in one piece.
struct Cleaned(Redactor);

impl std::io::Write for Cleaned {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        let clean = harmless(&self.0.clean(&String::from_utf8_lossy(text)));
        std::io::stderr().write_all(clean.as_bytes()).map(|()| text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Writes a line to standard error; a closed one is nobody's loss.
pub(crate) fn to_stderr(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Whether a CI system reads what is written.
static IN_CI: std::sync::OnceLock<bool> = std::sync::OnceLock::new();

/// Whether a CI system reads what is written.
pub(crate) fn in_ci() -> bool {
    IN_CI.get().copied().unwrap_or_default()
}

/// Text in which nothing from outside acts on a terminal or commands a CI system.
fn harmless(text: &str) -> String {
    let text = plain::printable(text);
    if in_ci() { plain::no_commands(&text) } else { text }
}

/// Writes text to standard output, harmless whatever is in it. A reader that has gone away (`| head`) is no error.
pub(crate) fn to_stdout(text: &str) {
    to_stdout_as_is(&harmless(text));
}

/// Writes text of our own, which may have colours, to standard output.
pub(crate) fn to_stdout_as_is(text: &str) {
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
    /// Whether this is a job of any CI system; most set `CI`.
    pub(crate) fn is_ci(environment: &preview_core::config::Environment) -> bool {
        let said = environment.get("CI").is_some_and(|value| !["", "0", "false"].contains(&value.as_str()));
        said || Self::of(environment) != Self::None
    }

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

/// The lines of a secret that GitHub's runner is to mask, each by itself: it hides what it finds on one line.
/// Very short ones are left alone, as in our own output: a masked `1` would hide the whole log.
fn masks(secret: &Secret<String>) -> impl Iterator<Item = &str> {
    secret.expose().lines().filter(|line| line.trim().len() >= 4)
}

/// Data of a GitHub command.
fn escape(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// A JSON document, pretty, with a line end.
pub(crate) fn json(value: &impl serde::Serialize) -> String {
    // Our own types have string keys only, so they always serialise.
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    // Line by line: the ends of lines are no part of a string.
    text.lines().map(|line| log::harmless(line) + "\n").collect()
}
