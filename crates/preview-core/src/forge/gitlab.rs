//! GitLab, of gitlab.com or one's own. Shapes: <https://docs.gitlab.com/api/rest/>, version 4.

use async_trait::async_trait;
use reqwest::header::HeaderMap;

use super::rest::{Rest, secret};
use super::{Forge, PullState};
use crate::fault::{Fault, FaultKind};
use crate::http::{self, escape};
use crate::secret::Secret;

/// GitLab.
pub struct GitLab {
    rest: Rest,
}

impl GitLab {
    /// With a token that may read the API; public projects need none. `base` ends with `/api/v4`, as `CI_API_V4_URL` does.
    ///
    /// # Errors
    /// `Unsupported` if this machine has no TLS, `Invalid` for what cannot be a token.
    pub fn new(base: &str, token: Option<&Secret<String>>) -> Result<Self, Fault> {
        const OPERATION: &str = "talk to GitLab";
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            headers.insert("private-token", secret(OPERATION, token.expose().clone())?);
        }
        let rights =
            "GITLAB_TOKEN has to be a project access token with the scope `read_api`, and at least the role Reporter";
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self { rest: Rest { client: http::client(OPERATION)?, name: "GitLab", base, headers, rights } })
    }

    fn path(project: &str, rest: &str) -> String {
        format!("/projects/{}{rest}", escape(project))
    }
}

#[async_trait]
impl Forge for GitLab {
    async fn pull_state(&self, repository: &str, number: u64) -> Result<PullState, Fault> {
        const OPERATION: &str = "ask GitLab for the merge request";
        let path = Self::path(repository, &format!("/merge_requests/{number}"));
        let Some(request) = self.rest.get(OPERATION, &path).await? else {
            return Err(match self.rest.get(OPERATION, &Self::path(repository, "")).await? {
                Some(_) => {
                    Fault::new(FaultKind::NotFound, OPERATION, format!("{repository} has no merge request {number}"))
                }
                None => self.rest.unreadable(OPERATION, repository),
            });
        };
        match request["state"].as_str() {
            // Locked: it is being merged this moment, and may be open again in the next.
            Some("opened" | "locked") => Ok(PullState::Open),
            Some("closed" | "merged") => Ok(PullState::Closed),
            _ => Err(Fault::new(FaultKind::Failed, OPERATION, "GitLab's answer was not understood")),
        }
    }

    async fn branch_exists(&self, repository: &str, branch: &str) -> Result<bool, Fault> {
        const OPERATION: &str = "ask GitLab for the branch";
        let at = |branch: &str| Self::path(repository, &format!("/repository/branches/{}", escape(branch)));
        self.rest.branch(OPERATION, repository, &Self::path(repository, ""), at, branch).await
    }
}
