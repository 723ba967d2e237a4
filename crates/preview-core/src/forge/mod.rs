//! The forge (GitHub, GitLab, …) that a preview is reported to. Contract of every forge adapter.
//!
//! **Idempotence**: a comment is updated in place, found by its marker; calling again changes nothing.
//! **Errors** of a report never fail a deploy; callers show them as warnings.

use async_trait::async_trait;

use crate::fault::Fault;

/// Whether a pull or merge request is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullState {
    /// Open.
    Open,
    /// Closed or merged.
    Closed,
}

/// A forge.
#[async_trait]
pub trait Forge: Send + Sync {
    /// Whether a pull request of the repository (`owner/name`) is open; `NotFound` if there is none of that number.
    async fn pull_state(&self, repository: &str, number: u64) -> Result<PullState, Fault>;

    /// Makes or updates the one comment that carries `marker` on a pull request; true if something changed.
    async fn comment(&self, repository: &str, number: u64, marker: &str, body: &str) -> Result<bool, Fault>;
}
