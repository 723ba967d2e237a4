//! What [`Forge`] and [`Comments`] promise.

use crate::fault::FaultKind;
use crate::forge::{Comments, Forge, PullState};

/// A repository as the checks need it.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// `owner/name`.
    pub repository: &'a str,
    /// An open pull request.
    pub open: u64,
    /// A closed one.
    pub closed: u64,
    /// None at all.
    pub absent: u64,
    /// A branch, best with a slash in its name.
    pub branch: &'a str,
    /// A repository that is not there, or not for us.
    pub hidden: &'a str,
}

/// Runs every check of [`Forge`].
///
/// # Panics
/// Where the contract is not kept.
pub async fn suite(forge: &dyn Forge, facts: &Facts<'_>) {
    let Facts { repository, open, closed, absent, branch, hidden } = *facts;
    let state = async |number| forge.pull_state(repository, number).await.map_err(|fault| fault.kind);
    assert_eq!(state(open).await, Ok(PullState::Open));
    assert_eq!(state(closed).await, Ok(PullState::Closed));
    assert_eq!(state(absent).await, Err(FaultKind::NotFound));
    let exists = async |branch: &str| forge.branch_exists(repository, branch).await.map_err(|fault| fault.kind);
    assert_eq!(exists(branch).await, Ok(true));
    assert_eq!(exists("no/such/branch").await, Ok(false));
    // Nothing is said to be gone of what cannot be seen.
    assert_eq!(forge.pull_state(hidden, open).await.map_err(|fault| fault.kind), Err(FaultKind::Denied));
    assert_eq!(forge.branch_exists(hidden, branch).await.map_err(|fault| fault.kind), Err(FaultKind::Denied));
}

/// Runs every check of [`Comments`]; `open` is an open pull request of the repository without a comment of ours, `absent` none at all.
///
/// # Panics
/// Where the contract is not kept.
pub async fn comments(forge: &dyn Comments, repository: &str, open: u64, absent: u64) {
    let fault = forge.comment(repository, absent, "<!-- m -->", "x").await.expect_err("there is no such pull request");
    assert_eq!(fault.kind, FaultKind::NotFound, "{fault}");
    assert!(forge.comment(repository, open, "<!-- m -->", "one").await.expect("a comment is made"), "made");
    assert!(
        !forge.comment(repository, open, "<!-- m -->", "one").await.expect("again"),
        "the same again changes nothing"
    );
    assert!(forge.comment(repository, open, "<!-- m -->", "two").await.expect("updated"), "updated in place");
}
