//! The machine that holds the previews: its files, its facts, ways to its sockets. Contract of every host adapter.
//!
//! **Paths** are absolute, `/`-separated, on the host. **Absence** is a value (`None`, `false`, an empty map), never an error.
//! **Atomicity**: a file is either the old or the new one for every reader, also when the writer is killed; so is an uploaded
//! directory. **Rights**: directories are made 0700. **Idempotence**: every method may be called again.
//! **Cancellation**: dropping a future leaves either the old or the new state, and nothing that
//! [`apply`](Host::apply) or [`upload`](Host::upload) of a later run would trip over.
//! **Errors**: a lost connection is `Unreachable`; a wrong host key is `HostKey`; a full disk is `NoSpace`.

mod destination;
mod examine;
mod facts;
pub mod guardian;
pub mod local;
mod private_key;
mod script;
pub mod shell;
pub mod ssh;
mod ssh_errors;
pub(crate) mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

pub use examine::Examination;
pub(crate) use script::{apply as apply_script, checked, describe, guard_in, kind_of, quote, trace_unnoted};
pub(crate) use shell::random_token;
pub(crate) use ssh_errors::key_changed;

use crate::fault::Fault;

/// What the host said about itself in one breath.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The host's clock, seconds since 1970.
    pub now: i64,
    /// Number of processors.
    pub cpus: u32,
    /// Load average of the last minute.
    pub load: f64,
    /// Memory in all, bytes.
    pub memory_total: u64,
    /// Memory that a new process could have, bytes.
    pub memory_available: u64,
    /// Size of a file system, bytes: of those with the base directory and with `/var/lib/docker`, the one that has less left.
    pub disk_total: u64,
    /// Used there, bytes; with what is free it may be less than the size: some is kept for the administrator.
    pub disk_used: u64,
    /// Free there for ordinary users, bytes.
    pub disk_free: u64,
    /// TCP ports on which something listens.
    pub listening: BTreeSet<u16>,
}

/// Facts and files, read in one round trip.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// The host's facts; all zero where only files were asked for.
    pub facts: Facts,
    /// Content of the files that match, by absolute path. Text without NUL bytes; anything else is left out.
    pub files: BTreeMap<String, String>,
    /// Absolute paths (of files and directories alike) that match the second set of patterns.
    pub paths: BTreeSet<String>,
    /// Content of the files to be joined, one after the other. What is no text is left out with its neighbours.
    pub joined: String,
}

/// What to read in a survey; patterns are relative to the base directory, `*` stands for one path component or part of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Files whose content is wanted, for example `app/*/state.json`.
    pub read: Vec<String>,
    /// Paths of which only the existence is wanted, for example `app/pr-7/files/*`. A component that begins with a dot needs
    /// one in its pattern: `app/pr-7/.*` (never `.` or `..`).
    pub list: Vec<String>,
    /// Files whose content is wanted in one piece, in the order of their names: many small ones cost the host one process, not one each.
    pub joined: Vec<String>,
    /// Leaves the facts out: for who asks often.
    pub files_only: bool,
}

/// A change of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Replaces a file atomically, making its directories.
    Write {
        /// Absolute path.
        path: String,
        /// New content.
        content: crate::secret::Secret<Vec<u8>>,
        /// Access mode, for example `0o600`.
        mode: u32,
    },
    /// Moves a file over another one, which may exist.
    Rename {
        /// From; its absence is an error.
        from: String,
        /// To.
        to: String,
    },
    /// Removes a file, or a directory with all that is in it; absence is fine.
    Remove {
        /// Absolute path.
        path: String,
    },
    /// Removes a directory if it is empty; anything else is fine too.
    RemoveEmpty {
        /// Absolute path.
        path: String,
    },
    /// Adds a line at the end of a file (0600), of which only the last lines are kept. Many may do that at once, and no line is lost.
    ///
    /// It is a note that nothing depends on: where it cannot be written, that is traced as a warning, and the other changes are made all the same.
    Append {
        /// Absolute path.
        path: String,
        /// The line, without its end.
        line: String,
        /// So many lines are kept when the file is cut.
        keep: u32,
        /// It is cut when it has more bytes than this.
        above: u64,
    },
}

/// What changes may depend on: the content of a small file that says "somebody was here".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Absolute path; the file is made when needed, and never removed.
    pub path: String,
    /// What its content has to be: a word of hexadecimal digits (`0-9a-f`), or empty where it is absent, or anything else.
    pub expected: String,
    /// Its content afterwards: such a word that was never there before.
    pub next: String,
    /// Other files whose content has to be such a word too, by their paths. They stay as they are, and others may change them meanwhile.
    pub beside: Vec<(String, String)>,
}

/// One entry of a tree to upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it comes from on this machine; `None` makes an empty directory.
    pub source: Option<PathBuf>,
    /// Where it goes, relative to the uploaded directory; a file stays a file, a directory comes with all that is in it.
    pub target: String,
}

/// A connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why a unix socket of the host cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// This may not be, for this reason, with what to do about it.
    Denied(String),
    /// There is none, with what to look at.
    Missing(String),
}

/// A machine that holds previews.
#[async_trait]
pub trait Host: Send + Sync {
    /// How people call it: `this machine`, `ssh://deploy@vm.example.com`.
    fn describe(&self) -> String;

    /// Facts and files in one round trip. A base directory that does not exist reads as empty; its disk is the nearest parent's.
    async fn survey(&self, base: &str, query: &Query) -> Result<Survey, Fault>;

    /// Makes these changes in this order, in one round trip; stops at the first that fails.
    async fn apply(&self, changes: &[Change]) -> Result<(), Fault>;

    /// Makes these changes if the guard's file and those beside it are as expected, and then gives it its next content; false, and nothing changed, if it is not.
    /// Nobody else who asks with the same guard is between the look and the end of the changes. One round trip.
    ///
    /// The guard changes last: who reads it first and other files then, never finds the new guard with the old files.
    async fn apply_if(&self, guard: &Guard, changes: &[Change]) -> Result<bool, Fault>;

    /// Puts a tree of files at `directory`, unless that exists already; true if it was sent. The directory appears as a whole.
    /// Symbolic links are kept as links; owners are not kept; modes are.
    async fn upload(&self, directory: &str, entries: &[Entry]) -> Result<bool, Fault>;

    /// A local unix socket that leads to this unix socket of the host (for the Docker CLI); stays until the host is closed.
    async fn socket(&self, path: &str) -> Result<PathBuf, Fault>;

    /// Why nobody answers behind a unix socket of the host, where the host can tell: asked after a first try has failed.
    async fn why_closed(&self, _path: &str) -> Option<Closed> {
        None
    }

    /// A connection to a TCP address as the host sees it. Where it is forwarded, a refusal shows as an end of the stream.
    async fn dial(&self, address: &str, port: u16) -> Result<Box<dyn Stream>, Fault>;

    /// Closes the connection and removes what it needed on this machine. May be called again.
    async fn close(&self) -> Result<(), Fault>;
}
