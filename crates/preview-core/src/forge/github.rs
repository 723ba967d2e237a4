//! GitHub, and GitHub Enterprise Server. Shapes: <https://docs.github.com/rest>, API version 2022-11-28.

use async_trait::async_trait;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue};

use super::rest::{Rest, secret};
use super::{Forge, PullState};
use crate::fault::{Fault, FaultKind};
use crate::http::{self, escape};
use crate::secret::Secret;

/// The API of github.com; others say theirs in `GITHUB_API_URL`.
pub const API: &str = "https://api.github.com";

/// GitHub.
pub struct GitHub {
    rest: Rest,
}

impl GitHub {
    /// With a token that may read contents and pull requests; public repositories need none.
    ///
    /// # Errors
    /// `Unsupported` if this machine has no TLS, `Invalid` for what cannot be a token.
    pub fn new(base: &str, token: Option<&Secret<String>>) -> Result<Self, Fault> {
        const OPERATION: &str = "talk to GitHub";
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
        headers.insert("x-github-api-version", HeaderValue::from_static("2022-11-28"));
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, secret(OPERATION, format!("Bearer {}", token.expose()))?);
        }
        let rights = "GITHUB_TOKEN has to be one with `contents: read` and `pull-requests: read` on it";
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self { rest: Rest { client: http::client(OPERATION)?, name: "GitHub", base, headers, rights } })
    }

    /// The repository, by name and owner.
    fn path(repository: &str, rest: &str) -> String {
        let parts: Vec<String> = repository.split('/').map(escape).collect();
        format!("/repos/{}{rest}", parts.join("/"))
    }
}

#[async_trait]
impl Forge for GitHub {
    async fn pull_state(&self, repository: &str, number: u64) -> Result<PullState, Fault> {
        const OPERATION: &str = "ask GitHub for the pull request";
        let Some(pull) = self.rest.get(OPERATION, &Self::path(repository, &format!("/pulls/{number}"))).await? else {
            return Err(match self.rest.get(OPERATION, &Self::path(repository, "")).await? {
                Some(_) => {
                    Fault::new(FaultKind::NotFound, OPERATION, format!("{repository} has no pull request {number}"))
                }
                None => self.rest.unreadable(OPERATION, repository),
            });
        };
        match pull["state"].as_str() {
            Some("open") => Ok(PullState::Open),
            Some("closed") => Ok(PullState::Closed),
            _ => Err(Fault::new(FaultKind::Failed, OPERATION, "GitHub's answer was not understood")),
        }
    }

    async fn branch_exists(&self, repository: &str, branch: &str) -> Result<bool, Fault> {
        const OPERATION: &str = "ask GitHub for the branch";
        let at = |branch: &str| Self::path(repository, &format!("/branches/{}", escape(branch)));
        self.rest.branch(OPERATION, repository, &Self::path(repository, ""), at, branch).await
    }
}
