//! What the APIs of forges have in common: JSON over HTTP, asked again when it may help.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::Value;

use crate::fault::{Fault, FaultKind};
use crate::http;

/// So often a question is asked again that got no answer, each time after twice as long.
const RETRIES: u32 = 2;
const PAUSE: Duration = Duration::from_secs(1);

/// A forge's API.
pub(super) struct Rest {
    pub(super) client: reqwest::Client,
    /// For people: `GitHub`.
    pub(super) name: &'static str,
    pub(super) base: String,
    /// Headers of each request; those with a token are marked as sensitive.
    pub(super) headers: reqwest::header::HeaderMap,
    /// What the token has to be allowed, for people.
    pub(super) rights: &'static str,
}

impl Rest {
    /// What is at a path; nothing where the forge says that there is nothing.
    pub(super) async fn get(&self, operation: &'static str, path: &str) -> Result<Option<Value>, Fault> {
        let mut tries = 0;
        loop {
            match self.once(operation, path).await {
                Err(fault) if fault.transient && tries < RETRIES => {
                    tokio::time::sleep(PAUSE * 2u32.pow(tries)).await;
                    tries += 1;
                }
                done => return done,
            }
        }
    }

    async fn once(&self, operation: &'static str, path: &str) -> Result<Option<Value>, Fault> {
        let request = self.client.get(format!("{}{path}", self.base)).headers(self.headers.clone());
        let answer = request.send().await.map_err(|error| http::fault(operation, self.name, error))?;
        let status = answer.status();
        // Of GitHub, where the token has asked too often.
        let spent = answer.headers().get("x-ratelimit-remaining").is_some_and(|left| left == "0");
        let text = answer.bytes().await.map_err(|error| http::fault(operation, self.name, error))?;
        let value: Value = serde_json::from_slice(&text).unwrap_or_default();
        let fault = |kind, context: String| Err(Fault::new(kind, operation, context));
        let said =
            value["message"].as_str().map(|said| format!(": {}", said.trim_end_matches('.'))).unwrap_or_default();
        let name = self.name;
        match status {
            StatusCode::OK if value.is_object() => Ok(Some(value)),
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::MOVED_PERMANENTLY => {
                fault(FaultKind::Conflict, format!("{name} has it at another address now{said}; was it renamed?"))
            }
            StatusCode::TOO_MANY_REQUESTS => {
                fault(FaultKind::Failed, format!("{name} has been asked too often{said}; run it again later"))
            }
            StatusCode::FORBIDDEN if spent => {
                fault(FaultKind::Failed, format!("{name} has been asked too often{said}; run it again later"))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                fault(FaultKind::Denied, format!("{name} does not let this token read it{said}; {}", self.rights))
            }
            _ if status.is_server_error() => {
                fault(FaultKind::Failed, format!("{name} answers: HTTP {}{said}", status.as_u16()))
                    .map_err(Fault::transient)
            }
            _ => fault(FaultKind::Failed, format!("{name} answers: HTTP {}{said}", status.as_u16())),
        }
    }

    /// Whether there is a branch, where the repository is at one path and its branches are at others.
    pub(super) async fn branch(
        &self,
        operation: &'static str,
        repository: &str,
        whole: &str,
        at: impl Fn(&str) -> String,
        branch: &str,
    ) -> Result<bool, Fault> {
        // GitHub sends those who ask for a branch that was renamed to the new name.
        match self.get(operation, &at(branch)).await {
            Err(fault) if fault.kind == FaultKind::Conflict => {}
            found if found.as_ref().is_ok_and(Option::is_none) => {}
            found => return found.map(|_| true),
        }
        // Who may see the usual branch may see this one.
        let whole = self.get(operation, whole).await?;
        match whole.as_ref().and_then(|whole| whole["default_branch"].as_str()) {
            Some(usual) if self.get(operation, &at(usual)).await?.is_some() => Ok(false),
            _ => Err(self.unreadable(operation, repository)),
        }
    }

    /// For what is not there: the repository has to be one that can be read, or "not found" means nothing.
    pub(super) fn unreadable(&self, operation: &'static str, repository: &str) -> Fault {
        let context = format!("{} shows no repository {repository} to this token; {}", self.name, self.rights);
        Fault::new(FaultKind::Denied, operation, context)
    }
}

/// A header's value that is never shown.
pub(super) fn secret(operation: &'static str, value: String) -> Result<reqwest::header::HeaderValue, Fault> {
    let mut value = reqwest::header::HeaderValue::try_from(value)
        .map_err(|_| Fault::new(FaultKind::Invalid, operation, "the token holds what no token holds: a line's end?"))?;
    value.set_sensitive(true);
    Ok(value)
}
