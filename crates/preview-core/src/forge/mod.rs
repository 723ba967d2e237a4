//! The forge (GitHub, GitLab, …) that previews come from. Contract of every forge adapter.
//!
//! **Sure or silent**: what is asked decides whether previews are removed, so `Closed` and `false` are said only by a forge that lets the
//! repository be read. Many forges say "not found" of what somebody may not see; that is an error here.
//! **Idempotence**: a comment is updated in place, found by its marker; calling again changes nothing.
//! **Errors** of a report never fail a deploy; callers show them as warnings.

use async_trait::async_trait;

use crate::fault::Fault;

pub mod github;
mod gitlab;
mod rest;
#[cfg(test)]
mod tests;

pub use github::GitHub;
pub use gitlab::GitLab;

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

    /// Whether the repository has a branch of this name.
    async fn branch_exists(&self, repository: &str, branch: &str) -> Result<bool, Fault>;
}

/// A forge that takes comments.
#[async_trait]
pub trait Comments: Send + Sync {
    /// Makes or updates the one comment that carries `marker` on a pull request; true if something changed.
    async fn comment(&self, repository: &str, number: u64, marker: &str, body: &str) -> Result<bool, Fault>;
}
