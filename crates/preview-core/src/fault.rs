//! What went wrong outside: the one error that every adapter returns.

use std::error::Error as StdError;
use std::fmt;

use crate::failure::FailureCode;

/// What kind of failure an adapter met. Decisions are taken on the kind, never on a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The thing that was asked for does not exist.
    NotFound,
    /// Something of that name exists, or is in use.
    Conflict,
    /// A host port that was wanted is taken.
    PortTaken,
    /// Credentials or rights are missing.
    Denied,
    /// The host or the engine cannot be reached, or the connection was lost.
    Unreachable,
    /// The host key is unknown or not the one that was pinned.
    HostKey,
    /// A limit of time ran out.
    TimedOut,
    /// No space is left on the host's disk.
    NoSpace,
    /// The other side, or a program on this machine, is missing or too old.
    Unsupported,
    /// What was handed in is wrong; the same again fails the same.
    Invalid,
    /// The lease was lost: somebody else may hold the lock now.
    LeaseLost,
    /// Everything else: the other side tried and failed.
    Failed,
}

/// A failure at one of the seams: what was tried, on what, why it failed, and whether trying again can help.
///
/// The cause is [`source`](StdError::source), and is not repeated in the message.
#[derive(Debug)]
pub struct Fault {
    /// What kind of failure this is.
    pub kind: FaultKind,
    /// Whether the same attempt may succeed in a moment.
    pub transient: bool,
    /// What was tried, as a verb phrase: `list containers`.
    pub operation: &'static str,
    /// What it was tried on and what the other side said; never a secret.
    pub context: String,
    /// The last lines that a program printed before it failed, as they came.
    pub output: Vec<String>,
    /// The failure code, where more is known than the kind says. Nothing is decided on it.
    pub code: Option<FailureCode>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Fault {
    /// A failure of `operation`, deterministic unless [`transient`](Self::transient) says otherwise.
    pub fn new(kind: FaultKind, operation: &'static str, context: impl Into<String>) -> Self {
        Self {
            kind,
            transient: false,
            operation,
            context: context.into(),
            output: Vec::new(),
            code: None,
            source: None,
        }
    }

    /// Marks a failure that may go away by itself.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.transient = true;
        self
    }

    /// Keeps what a program printed.
    #[must_use]
    pub fn with_output(mut self, output: Vec<String>) -> Self {
        self.output = output;
        self
    }

    /// Says which failure code this is.
    #[must_use]
    pub fn coded(mut self, code: FailureCode) -> Self {
        self.code = Some(code);
        self
    }

    /// Says which failure code this is, where nobody has said so yet.
    #[must_use]
    pub fn or_code(self, code: FailureCode) -> Self {
        if self.code.is_none() { self.coded(code) } else { self }
    }

    /// The failure code: the one that was said, or that of the kind.
    #[must_use]
    pub fn failure(&self) -> FailureCode {
        self.code.unwrap_or(FailureCode::of(self.kind))
    }

    /// Keeps the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The message followed by those of its causes, for people.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let message = error.to_string();
            if !text.contains(&message) {
                text.push_str(": ");
                text.push_str(&message);
            }
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.operation)?;
        if !self.context.is_empty() {
            write!(f, ": {}", self.context)?;
        }
        Ok(())
    }
}

impl StdError for Fault {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|error| error as &(dyn StdError + 'static))
    }
}
