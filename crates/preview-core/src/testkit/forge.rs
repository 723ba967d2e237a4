//! A forge in memory.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use crate::fault::{Fault, FaultKind};
use crate::forge::{Forge, PullState};

/// State and comments of each pull request, by repository and number.
type Pulls = BTreeMap<(String, u64), (PullState, Vec<String>)>;

/// A forge in memory: pull requests with their comments.
#[derive(Default)]
pub struct MemoryForge {
    pulls: Mutex<Pulls>,
}

impl MemoryForge {
    fn pulls(&self) -> std::sync::MutexGuard<'_, Pulls> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens or closes a pull request; its comments stay.
    pub fn set(&self, repository: &str, number: u64, state: PullState) {
        self.pulls().entry((repository.to_owned(), number)).or_insert((state, vec![])).0 = state;
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
        let pulls = self.pulls();
        let found = pulls.get(&(repository.to_owned(), number));
        found.map(|(state, _)| *state).ok_or_else(|| missing("read the pull request", repository, number))
    }

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

    #[tokio::test]
    async fn keeps_the_contract() {
        let forge = MemoryForge::default();
        forge.set("acme/shop", 7, PullState::Open);
        crate::testkit::conformance::forge::suite(&forge, "acme/shop", 7, 8).await;
        assert_eq!(forge.comments("acme/shop", 7).len(), 1);
    }
}
