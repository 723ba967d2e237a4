//! How a stack is resolved, built and brought up: Compose today. Contract of every runtime adapter.
//!
//! `resolve` has no effect and needs no engine. `build` and `up` may be called again; `up` changes only what differs,
//! removes services that are no longer in the stack, never pulls and never builds. **Cancellation**: dropping a future ends the program that was started.
//! **Errors**: a stack that is wrong is `Invalid` with the tool's own words; a missing or old tool is `Unsupported`.

pub mod compose;
mod mirror;
pub(crate) mod reads;
mod yaml;

pub(crate) use mirror::Mirror;

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;

use crate::fault::Fault;
use crate::secret::Secret;

/// A Compose file as Compose gets to read it: every string in double quotes, aliases and merge keys written out. For tests that compare both readings.
///
/// # Errors
/// What is wrong with it, with its line.
#[cfg(feature = "testkit")]
pub fn rewritten(text: &str) -> Result<String, String> {
    yaml::read(text).map(|documents| yaml::write(&documents)).map_err(|wrong| format!("{}: {}", wrong.line, wrong.why))
}

/// Variables for interpolation and for what the stack passes on: all that the tool sees of the outside.
pub type Variables = BTreeMap<String, Secret<String>>;

/// A project as the user wrote it.
#[derive(Clone, Debug)]
pub struct Source {
    /// Compose files, in order; later ones override.
    pub files: Vec<PathBuf>,
    /// What relative paths refer to.
    pub directory: PathBuf,
    /// Files with variables for interpolation.
    pub env_files: Vec<PathBuf>,
    /// Active profiles.
    pub profiles: Vec<String>,
    /// Compose project name.
    pub project: String,
    /// Variables for interpolation; they win over the files.
    pub variables: Variables,
    /// What may be read apart from the directory and the files named here: where the tool can be kept from all else, it is.
    pub readable: Vec<PathBuf>,
}

/// What `resolve` found.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The model, in the form of `docker compose config --format json`.
    pub model: serde_json::Value,
    /// The tool's warnings, for people.
    pub warnings: Vec<String>,
}

/// A line of progress of a build or start.
pub type Progress<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// A stack that is ready to run.
#[derive(Clone, Debug)]
pub struct Stack {
    /// Compose project name.
    pub project: String,
    /// The rendered model, as JSON text. May hold secrets.
    pub rendered: Secret<String>,
    /// Variables that secrets and configs of the stack name by `environment:`.
    pub variables: Variables,
}

/// Brings stacks up.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// A directory for temporary files that goes when this process ends, however it ends; `None`: there is none, and those of a killed process stay.
    fn scratch(&self) -> Option<&std::path::Path> {
        None
    }

    /// The user's files as one resolved model.
    async fn resolve(&self, source: &Source) -> Result<Resolved, Fault>;

    /// Whether the tool takes a stack as it is rendered, with all that `up` would see. Starts nothing, and needs no engine. One that it does not take is `Invalid`.
    async fn check(&self, stack: &Stack) -> Result<(), Fault>;

    /// Builds the images of these services.
    async fn build(&self, stack: &Stack, services: &[String], progress: Progress<'_>) -> Result<(), Fault>;

    /// Makes what runs equal to the stack; returns once all containers are started (dependencies in order). Where there are more containers of a service
    /// than the stack wants, those that are not as it wants them go first.
    async fn up(&self, stack: &Stack, progress: Progress<'_>) -> Result<(), Fault>;

    /// [`up`](Self::up) of what this stack has, its dependencies in order; whatever else the project runs stays as it is.
    async fn up_only(&self, stack: &Stack, progress: Progress<'_>) -> Result<(), Fault>;

    /// Starts containers as the stack wants them beside those that run, which stay as they are, until there are so many of each of these services.
    async fn beside(
        &self,
        stack: &Stack,
        services: &BTreeMap<String, usize>,
        progress: Progress<'_>,
    ) -> Result<(), Fault>;
}
