//! Cloudflare's API: one request, its envelope, its errors in our words, and how long it asks to wait.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::PATIENCE;
use crate::fault::{Fault, FaultKind};
use crate::http;
use crate::secret::Secret;

/// So many entries of a list come at once.
pub(super) const PAGE: usize = 100;

/// What each answer is wrapped in.
#[derive(Deserialize)]
struct Envelope {
    success: bool,
    #[serde(default)]
    errors: Vec<Problem>,
    #[serde(default)]
    result: Value,
    #[serde(default)]
    result_info: Option<Info>,
}

#[derive(Clone, Debug, Deserialize)]
struct Problem {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Info {
    per_page: Option<usize>,
}

/// The API with a token.
pub(super) struct Api {
    client: reqwest::Client,
    base: String,
    token: Secret<String>,
}

impl Api {
    pub(super) fn new(base: &str, token: Secret<String>) -> Result<Self, Fault> {
        let client = http::client("talk to Cloudflare")?;
        Ok(Self { client, base: base.trim_end_matches('/').to_owned(), token })
    }

    /// All pages of a list.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Vec<T>, Fault> {
        let mut found: Vec<T> = Vec::new();
        let size = PAGE.to_string();
        for page in 1_usize.. {
            let number = page.to_string();
            let query = [query, &[("per_page", size.as_str()), ("page", number.as_str())]].concat();
            let (result, info) = self.call(operation, Method::GET, path, &query, None).await?;
            let entries: Vec<T> = parse(operation, result)?;
            // A page that is not full is the last: `total_count` need not be that of the filter. How long full ones are, the server decides.
            let full = info.and_then(|info| info.per_page).map_or(PAGE, |size| size.clamp(1, PAGE));
            let last = entries.len() < full;
            found.extend(entries);
            if last || page * PAGE > 100_000 {
                break;
            }
        }
        Ok(found)
    }

    /// A request with a body.
    pub(super) async fn send(
        &self,
        operation: &'static str,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Value, Fault> {
        self.call(operation, method, path, &[], Some(body)).await.map(|(result, _)| result)
    }

    /// A request without one.
    pub(super) async fn get(&self, operation: &'static str, path: &str) -> Result<Value, Fault> {
        self.find(operation, path, &[]).await
    }

    /// The first page of a list, as long as the server makes it.
    pub(super) async fn find(
        &self,
        operation: &'static str,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Value, Fault> {
        self.call(operation, Method::GET, path, query, None).await.map(|(result, _)| result)
    }

    async fn call(
        &self,
        operation: &'static str,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<(Value, Option<Info>), Fault> {
        let mut waited = Duration::ZERO;
        loop {
            let url = address(&self.base, path, query);
            let mut request = self.client.request(method.clone(), url).bearer_auth(self.token.expose());
            if let Some(body) = body {
                request = request.json(body);
            }
            let answer = request.send().await.map_err(|error| http::fault(operation, "Cloudflare", error))?;
            let status = answer.status();
            if status == StatusCode::TOO_MANY_REQUESTS {
                let asked = retry_after(answer.headers());
                if waited + asked > PATIENCE {
                    return Err(busy(operation, asked));
                }
                tracing::info!(seconds = asked.as_secs(), "Cloudflare asks to wait");
                tokio::time::sleep(asked).await;
                waited += asked;
                continue;
            }
            let text = answer.bytes().await.map_err(|error| http::fault(operation, "Cloudflare", error))?;
            let envelope = serde_json::from_slice::<Envelope>(&text);
            return match envelope {
                Ok(envelope) if status.is_success() && envelope.success => Ok((envelope.result, envelope.result_info)),
                Ok(envelope) => Err(problem(operation, path, status, &envelope.errors)),
                // A gateway on the way answers with a page.
                Err(_) => Err(problem(operation, path, status, &[])),
            };
        }
    }
}

fn address(base: &str, path: &str, query: &[(&str, &str)]) -> String {
    let mut url = format!("{base}{path}");
    for (index, (key, value)) in query.iter().enumerate() {
        url.push(if index == 0 { '?' } else { '&' });
        url.push_str(key);
        url.push('=');
        url.push_str(&http::escape(value));
    }
    url
}

/// How long the server asks to wait: seconds; without a word, one that is not too short.
fn retry_after(headers: &reqwest::header::HeaderMap) -> Duration {
    let said = headers.get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Duration::from_secs(said.unwrap_or(5).max(1))
}

fn busy(operation: &'static str, asked: Duration) -> Fault {
    let context = format!(
        "Cloudflare has had too many requests of this account's and asks to wait {} s, which is longer than the {} s that are waited for: \
         run the same command again then",
        asked.as_secs(),
        PATIENCE.as_secs()
    );
    Fault::new(FaultKind::Failed, operation, context)
}

/// What an error answer means. Decided on status and code, never on words.
fn problem(operation: &'static str, path: &str, status: StatusCode, problems: &[Problem]) -> Fault {
    let code = |codes: &[u32]| problems.iter().any(|problem| codes.contains(&problem.code));
    let said: Vec<String> = problems
        .iter()
        .map(|problem| format!("{} ({})", problem.message.trim_end_matches('.'), problem.code))
        .collect();
    let said = if said.is_empty() { format!("HTTP {}", status.as_u16()) } else { said.join("; ") };
    // The record limit.
    if code(&[81_045]) {
        let context = format!(
            "the zone is full: {said}; zones of Cloudflare's free plan hold 200 records. Use one wildcard record for all previews instead \
             (`*` to the VM, and kind = \"none\" in [dns]), or remove records that nobody needs"
        );
        return Fault::new(FaultKind::Failed, operation, context);
    }
    // The same name exists, the same record exists, an A, AAAA or CNAME exists.
    if code(&[81_053, 81_054, 81_055, 81_056, 81_057, 81_058]) {
        let context = format!("a record that is not this preview's came in between: {said}; nothing was changed");
        return Fault::new(FaultKind::Conflict, operation, context);
    }
    // Somebody else removed it meanwhile: another look decides.
    if code(&[81_044]) {
        let context = format!("a record went away in between: {said}; nothing was changed");
        return Fault::new(FaultKind::Conflict, operation, context).transient();
    }
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) || code(&[6003, 9106, 9109, 10_000]) {
        let rights = if path.starts_with("/accounts/") {
            "right Account: Cloudflare Tunnel: Edit on the tunnel's account ([tunnel] account)"
        } else {
            "rights Zone: Zone: Read and Zone: DNS: Edit on the zone"
        };
        let context = format!(
            "Cloudflare does not accept the token, or it lacks the {rights}: {said}; make one in the dashboard under My Profile, API Tokens"
        );
        return Fault::new(FaultKind::Denied, operation, context);
    }
    let context = format!("Cloudflare answers: {said}");
    if status.is_server_error() {
        return Fault::new(FaultKind::Failed, operation, context).transient();
    }
    let kind = if status == StatusCode::NOT_FOUND { FaultKind::NotFound } else { FaultKind::Failed };
    Fault::new(kind, operation, context)
}

/// What is in an envelope.
pub(super) fn parse<T: DeserializeOwned>(operation: &'static str, result: Value) -> Result<T, Fault> {
    serde_json::from_value(result).map_err(|error| {
        Fault::new(FaultKind::Failed, operation, "Cloudflare's answer is not what its documentation says")
            .caused_by(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, code: u32) -> Fault {
        let problems = [Problem { code, message: "Words.".to_owned() }];
        problem("write", "/zones/1/dns_records", StatusCode::from_u16(status).unwrap(), &problems)
    }

    #[test]
    fn errors_are_told_apart_by_code_and_status() {
        assert_eq!(of(403, 9109).kind, FaultKind::Denied);
        assert_eq!(of(400, 6003).kind, FaultKind::Denied);
        for code in [81_053, 81_057, 81_058] {
            let fault = of(400, code);
            assert_eq!((fault.kind, fault.transient), (FaultKind::Conflict, false));
        }
        let full = of(400, 81_045);
        assert!(!full.transient && full.context.contains("wildcard"), "{full}");
        assert!(of(502, 0).transient && !of(400, 9005).transient);
        assert!(problem("write", "/zones", StatusCode::BAD_GATEWAY, &[]).context.contains("HTTP 502"));
        let denied = problem("write", "/accounts/1/cfd_tunnel/2/configurations", StatusCode::FORBIDDEN, &[]);
        assert!(denied.context.contains("Cloudflare Tunnel: Edit") && !denied.context.contains("Zone"), "{denied}");
        assert!(of(403, 0).context.contains("Zone: DNS: Edit"));
    }

    #[test]
    fn values_of_queries_are_escaped() {
        let url = address("http://h", "/zones", &[("comment.exact", "preview 1a app/pr-7&x"), ("page", "1")]);
        assert_eq!(url, "http://h/zones?comment.exact=preview%201a%20app%2Fpr-7%26x&page=1");
    }

    #[test]
    fn waiting_is_bounded() {
        let mut headers = reqwest::header::HeaderMap::new();
        assert_eq!(retry_after(&headers), Duration::from_secs(5));
        headers.insert("retry-after", "0".parse().unwrap());
        assert_eq!(retry_after(&headers), Duration::from_secs(1), "never a busy loop");
        headers.insert("retry-after", "300".parse().unwrap());
        assert!(retry_after(&headers) > PATIENCE);
    }
}
