//! What [`Forge`] promises.

use crate::fault::FaultKind;
use crate::forge::{Forge, PullState};

/// Runs every check; `open` is an open pull request of the repository without a comment of ours, `absent` none at all.
///
/// # Panics
/// Where the contract is not kept.
pub async fn suite(forge: &dyn Forge, repository: &str, open: u64, absent: u64) {
    let state = forge.pull_state(repository, open).await.expect("an open pull request can be read");
    assert_eq!(state, PullState::Open);
    let fault = forge.pull_state(repository, absent).await.expect_err("there is no such pull request");
    assert_eq!(fault.kind, FaultKind::NotFound, "{fault}");
    let fault = forge.comment(repository, absent, "<!-- m -->", "x").await.expect_err("there is no such pull request");
    assert_eq!(fault.kind, FaultKind::NotFound, "{fault}");
    assert!(forge.comment(repository, open, "<!-- m -->", "one").await.expect("a comment is made"), "made");
    assert!(
        !forge.comment(repository, open, "<!-- m -->", "one").await.expect("again"),
        "the same again changes nothing"
    );
    assert!(forge.comment(repository, open, "<!-- m -->", "two").await.expect("updated"), "updated in place");
}
