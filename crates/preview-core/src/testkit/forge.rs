//! A forge in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use crate::fault::{Fault, FaultKind};
use crate::forge::{Comments, Forge, PullState};

/// State and comments of each pull request, by repository and number.
type Pulls = BTreeMap<(String, u64), (PullState, Vec<String>)>;

/// A forge in memory: pull requests with their comments, and branches. What it knows nothing of may not be seen.
#[derive(Default)]
pub struct MemoryForge {
    pulls: Mutex<Pulls>,
    branches: Mutex<BTreeSet<(String, String)>>,
}

impl MemoryForge {
    fn pulls(&self) -> std::sync::MutexGuard<'_, Pulls> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens or closes a pull request; its comments stay.
    pub fn set(&self, repository: &str, number: u64, state: PullState) {
        self.pulls().entry((repository.to_owned(), number)).or_insert((state, vec![])).0 = state;
    }

    fn branches(&self) -> std::sync::MutexGuard<'_, BTreeSet<(String, String)>> {
        self.branches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a branch.
    pub fn push(&self, repository: &str, branch: &str) {
        self.branches().insert((repository.to_owned(), branch.to_owned()));
    }

    /// Removes a branch.
    pub fn delete(&self, repository: &str, branch: &str) {
        self.branches().remove(&(repository.to_owned(), branch.to_owned()));
    }

    fn readable(&self, operation: &'static str, repository: &str) -> Result<(), Fault> {
        let known = self.pulls().keys().any(|(of, _)| of == repository)
            || self.branches().iter().any(|(of, _)| of == repository);
        if known {
            Ok(())
        } else {
            Err(Fault::new(FaultKind::Denied, operation, format!("no repository {repository}")))
        }
    }

    /// The comments of a pull request.
    #[must_use]
    pub fn comments(&self, repository: &str, number: u64) -> Vec<String> {
        self.pulls().get(&(repository.to_owned(), number)).map(|(_, comments)| comments.clone()).unwrap_or_default()
    }
}

fn missing(operation: &'static str, repository: &str, number: u64) -> Fault {
    Fault::new(FaultKind::NotFound, operation, format!("{repository} has no pull request {number}"))
}

#[async_trait]
impl Forge for MemoryForge {
    async fn pull_state(&self, repository: &str, number: u64) -> Result<PullState, Fault> {
        const OPERATION: &str = "read the pull request";
        self.readable(OPERATION, repository)?;
        let pulls = self.pulls();
        let found = pulls.get(&(repository.to_owned(), number));
        found.map(|(state, _)| *state).ok_or_else(|| missing(OPERATION, repository, number))
    }

    async fn branch_exists(&self, repository: &str, branch: &str) -> Result<bool, Fault> {
        self.readable("read the branch", repository)?;
        Ok(self.branches().contains(&(repository.to_owned(), branch.to_owned())))
    }
}

#[async_trait]
impl Comments for MemoryForge {
    async fn comment(&self, repository: &str, number: u64, marker: &str, body: &str) -> Result<bool, Fault> {
        let mut pulls = self.pulls();
        let (_, comments) = pulls
            .get_mut(&(repository.to_owned(), number))
            .ok_or_else(|| missing("comment on the pull request", repository, number))?;
        let text = format!("{marker}\n{body}");
        match comments.iter_mut().find(|comment| comment.lines().next() == Some(marker)) {
            Some(comment) if *comment == text => return Ok(false),
            Some(comment) => *comment = text,
            None => comments.push(text),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::conformance::forge::{Facts, comments, suite};

    #[tokio::test]
    async fn keeps_the_contract() {
        let forge = MemoryForge::default();
        forge.set("acme/shop", 7, PullState::Open);
        forge.set("acme/shop", 8, PullState::Closed);
        forge.push("acme/shop", "feature/x");
        let facts =
            Facts { repository: "acme/shop", open: 7, closed: 8, absent: 9, branch: "feature/x", hidden: "acme/x" };
        suite(&forge, &facts).await;
        comments(&forge, "acme/shop", 7, 9).await;
        assert_eq!(forge.comments("acme/shop", 7).len(), 1);
    }
}
