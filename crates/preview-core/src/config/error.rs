//! What is wrong with the configuration, and where.

use std::fmt;
use std::path::PathBuf;

/// An error in the configuration: file, flag or environment. Never holds a value of `[env]` or a secret.
///
/// ```text
/// preview.toml:3:1: unknown key `guardrails.memry`; did you mean `memory`?
/// PREVIEW_TIMEOUT: `15` has no unit: write `15m`, for example
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file; `None` if the value comes from elsewhere.
    pub file: Option<PathBuf>,
    /// Line in the file, from 1.
    pub line: Option<u32>,
    /// Column in that line, in characters from 1.
    pub column: Option<u32>,
    /// The key (`guardrails.memory`, `route[0].port`), flag or variable.
    pub key: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What could be done.
    pub help: Option<String>,
}

impl ConfigError {
    /// An error of a key, flag or variable whose place in a file is not known.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { file: None, line: None, column: None, key: Some(key.into()), message: message.into(), help: None }
    }

    /// Adds what could be done.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let placed = self.file.is_some() || self.line.is_some();
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
        }
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}:")?;
        }
        if placed {
            f.write_str(" ")?;
        }
        // A message that names its key already does not need it twice.
        if let Some(key) = &self.key
            && !key.is_empty()
            && !self.message.contains(&format!("`{key}`"))
        {
            if placed {
                write!(f, "`{key}`: ")?;
            } else {
                write!(f, "{key}: ")?;
            }
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}
