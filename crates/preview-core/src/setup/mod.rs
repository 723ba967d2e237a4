//! A machine made ready for previews: from what is wanted to an ordered list of steps, each with a check and a way to mend what the check finds.
//!
//! Everything is decided here, in values: the scripts of the steps are fixed texts, what users say reaches them as quoted arguments
//! or as content of files. `script` renders steps for a shell, `run` has them carried out over SSH, [`print`](mod@print) makes
//! one script or cloud-init user data of them that needs nothing of ours.

mod certificate;
mod daemon;
mod facts;
pub mod print;
mod providers;
pub mod proxy;
mod report;
mod run;
mod script;
mod steps;
mod wish;

use std::time::Duration;

pub use certificate::check_certificate;
pub use facts::Facts;
pub use report::{SetUp, State, Told, text};
pub use run::{Options, Probe, run};
pub use steps::{IDS, steps};
pub use wish::{Alerts, DockerSource, Pool, Wish, proxy_subnet};

use crate::secret::Secret;

/// The directory of the proxy's stack.
pub const PROXY_DIR: &str = "/opt/preview-proxy";

/// A file that a step writes: text, owned by root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Absolute path.
    pub path: String,
    /// Access mode.
    pub mode: u32,
    /// Its content; ends with a line's end.
    pub content: Secret<String>,
    /// Whether the content may not be seen: such a file never becomes part of what is printed.
    pub secret: bool,
}

impl File {
    /// A file that everybody may see.
    pub fn new(path: impl Into<String>, mode: u32, content: impl Into<String>) -> Self {
        let mut content = content.into();
        if !content.ends_with('\n') {
            content.push('\n');
        }
        Self { path: path.into(), mode, content: Secret::new(content), secret: false }
    }

    /// A file for root alone.
    pub fn secret(path: impl Into<String>, content: impl Into<String>) -> Self {
        Self { secret: true, ..Self::new(path, 0o600, content) }
    }

    /// SHA-256 of the content, in hexadecimal.
    #[must_use]
    pub fn hash(&self) -> String {
        sha256(self.content.expose())
    }
}

/// One thing that a machine needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name, for `--only` and `--skip`.
    pub id: &'static str,
    /// What it is, in a few words.
    pub title: String,
    /// What it is good for.
    pub why: &'static str,
    /// Files that it writes, before its own `apply`.
    pub files: Vec<File>,
    /// Arguments of its script.
    pub arguments: Vec<String>,
    /// Its script: functions `check` (exit status 0: as wanted, 77: does not apply here; prints what differs) and `apply`, and perhaps `undo`.
    pub script: &'static str,
    /// Whether it could lock us out: afterwards a new connection is tried, and `undo` called if there is none.
    pub guarded: bool,
    /// How long `apply` may take.
    pub limit: Duration,
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256(text: &str) -> String {
    use sha2::Digest as _;
    use std::fmt::Write as _;
    sha2::Sha256::digest(text.as_bytes()).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests;
