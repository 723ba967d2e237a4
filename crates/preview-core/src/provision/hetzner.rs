//! Hetzner Cloud: servers listed, one made, its actions waited for.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Order, Provider, Server};
use crate::fault::{Fault, FaultKind};
use crate::http;
use crate::secret::Secret;

/// The API.
pub const API: &str = "https://api.hetzner.cloud/v1";

const SERVER: &str = "Hetzner Cloud";
/// So many servers come on a page, the most there may be.
const PAGE: u32 = 50;
/// A server is there within a minute, by far.
const PATIENCE: Duration = Duration::from_secs(300);
/// What is too much at once is asked again within this time.
const RATE_PATIENCE: Duration = Duration::from_secs(60);

/// The provider.
pub struct Hetzner {
    client: reqwest::Client,
    base: String,
    token: Secret<String>,
    /// Between two looks at an action; tests have less patience.
    pause: Duration,
}

#[derive(Deserialize)]
struct Listed {
    servers: Vec<Found>,
    meta: Meta,
}

#[derive(Deserialize)]
struct Meta {
    pagination: Pagination,
}

#[derive(Deserialize)]
struct Pagination {
    next_page: Option<u32>,
}

#[derive(Deserialize)]
struct Found {
    id: u64,
    name: String,
    status: String,
    #[serde(default)]
    public_net: Net,
}

#[derive(Default, Deserialize)]
struct Net {
    #[serde(default)]
    ipv4: Option<Address>,
    #[serde(default)]
    ipv6: Option<Address>,
}

#[derive(Deserialize)]
struct Address {
    ip: String,
}

#[derive(Deserialize)]
struct Created {
    server: Found,
    action: Task,
    #[serde(default)]
    next_actions: Vec<Task>,
}

#[derive(Deserialize)]
struct Task {
    id: u64,
    status: String,
    #[serde(default)]
    progress: u32,
    #[serde(default)]
    error: Option<Problem>,
}

#[derive(Deserialize)]
struct Problem {
    code: String,
    #[serde(default)]
    message: String,
}

impl From<Found> for Server {
    fn from(found: Found) -> Self {
        let Net { ipv4, ipv6 } = found.public_net;
        // The network of a server is named by its prefix; its own address is the first one.
        let six = ipv6.map(|net| net.ip.split('/').next().map(|prefix| format!("{prefix}1")).unwrap_or_default());
        Self { id: found.id.to_string(), name: found.name, status: found.status, address: ipv4.map(|ip| ip.ip).or(six) }
    }
}

impl Hetzner {
    /// With a token of the project, from `HCLOUD_TOKEN`.
    ///
    /// # Errors
    /// `Unsupported` if this machine has no TLS.
    pub fn new(base: &str, token: Secret<String>) -> Result<Self, Fault> {
        let client = http::client("talk to Hetzner Cloud")?;
        Ok(Self { client, base: base.trim_end_matches('/').to_owned(), token, pause: Duration::from_secs(1) })
    }

    async fn call(
        &self,
        operation: &'static str,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<Value, Fault> {
        let begun = Instant::now();
        loop {
            let mut url = format!("{}{path}", self.base);
            for (index, (key, value)) in query.iter().enumerate() {
                url.push(if index == 0 { '?' } else { '&' });
                url.push_str(&format!("{key}={}", http::escape(value)));
            }
            let mut request = self.client.request(method.clone(), url).bearer_auth(self.token.expose());
            if let Some(body) = body {
                request = request.json(body);
            }
            let answer = request.send().await.map_err(|error| http::fault(operation, SERVER, error))?;
            let status = answer.status();
            if status == StatusCode::TOO_MANY_REQUESTS && begun.elapsed() + self.pause < RATE_PATIENCE {
                // It refills by one a second, and says when it is full again, which is longer than needed.
                tracing::info!("Hetzner Cloud asks to wait");
                tokio::time::sleep(self.pause).await;
                continue;
            }
            let text = answer.bytes().await.map_err(|error| http::fault(operation, SERVER, error))?;
            let value: Value = serde_json::from_slice(&text).unwrap_or_default();
            if status.is_success() {
                return Ok(value);
            }
            return Err(refused(operation, status, serde_json::from_value(value["error"].clone()).ok()));
        }
    }

    /// Looks at what was ordered: a hiccup is no reason to lose sight of it.
    async fn look(&self, operation: &'static str, path: &str, since: Instant) -> Result<Value, Fault> {
        loop {
            match self.call(operation, Method::GET, path, &[], None).await {
                Err(fault) if fault.transient && since.elapsed() < PATIENCE => {
                    tracing::info!("{}; asked again", fault.chain());
                    tokio::time::sleep(self.pause).await;
                }
                answer => return answer,
            }
        }
    }

    /// Waits for what the provider does by and by.
    async fn finish(&self, operation: &'static str, mut task: Task) -> Result<(), Fault> {
        let begun = Instant::now();
        loop {
            match task.status.as_str() {
                "success" => return Ok(()),
                "error" => {
                    let why =
                        task.error.map_or_else(String::new, |error| format!(": {} ({})", error.message, error.code));
                    return Err(Fault::new(FaultKind::Failed, operation, format!("{SERVER} gave up{why}")));
                }
                _ if begun.elapsed() > PATIENCE => {
                    let context = format!(
                        "it is {} % done after {} s; run the same command again later: it takes the server that is there",
                        task.progress,
                        PATIENCE.as_secs()
                    );
                    return Err(Fault::new(FaultKind::TimedOut, operation, context));
                }
                _ => tokio::time::sleep(self.pause).await,
            }
            let answer = self.look(operation, &format!("/actions/{}", task.id), begun).await?;
            task = parse(operation, answer["action"].clone())?;
        }
    }
}

#[async_trait]
impl Provider for Hetzner {
    fn name(&self) -> &'static str {
        SERVER
    }

    async fn servers(&self, labels: &str) -> Result<Vec<Server>, Fault> {
        const OPERATION: &str = "list the servers";
        let (mut all, mut page) = (Vec::new(), Some(1));
        while let Some(number) = page {
            let mut query = vec![("page", number.to_string()), ("per_page", PAGE.to_string())];
            if !labels.is_empty() {
                query.push(("label_selector", labels.to_owned()));
            }
            let listed: Listed = parse(OPERATION, self.call(OPERATION, Method::GET, "/servers", &query, None).await?)?;
            // Who takes one that is on its way out, has none a moment later.
            all.extend(listed.servers.into_iter().filter(|found| found.status != "deleting").map(Server::from));
            page = listed.meta.pagination.next_page.filter(|next| *next > number);
        }
        Ok(all)
    }

    async fn create(&self, order: &Order) -> Result<Server, Fault> {
        const OPERATION: &str = "create the server";
        let body = json!({
            "name": order.name,
            "server_type": order.kind,
            "location": order.location,
            "image": order.image,
            "ssh_keys": order.ssh_keys,
            "labels": order.labels,
            "user_data": order.user_data.expose(),
            "start_after_create": true,
        });
        let created: Created =
            parse(OPERATION, self.call(OPERATION, Method::POST, "/servers", &[], Some(&body)).await?)?;
        self.finish(OPERATION, created.action).await?;
        for task in created.next_actions {
            self.finish(OPERATION, task).await?;
        }
        let answer = self.look(OPERATION, &format!("/servers/{}", created.server.id), Instant::now()).await?;
        parse::<Found>(OPERATION, answer["server"].clone()).map(Server::from)
    }
}

fn parse<T: serde::de::DeserializeOwned>(operation: &'static str, value: Value) -> Result<T, Fault> {
    serde_json::from_value(value).map_err(|error| {
        Fault::new(FaultKind::Failed, operation, format!("{SERVER}'s answer was not understood")).caused_by(error)
    })
}

/// What a refusal means.
fn refused(operation: &'static str, status: StatusCode, problem: Option<Problem>) -> Fault {
    let (code, message) = problem.map_or_else(Default::default, |problem| (problem.code, problem.message));
    let kind = match (code.as_str(), status) {
        ("uniqueness_error" | "conflict", _) => FaultKind::Conflict,
        ("invalid_input" | "json_error", _) => FaultKind::Invalid,
        ("not_found", _) | (_, StatusCode::NOT_FOUND) => FaultKind::NotFound,
        ("resource_limit_exceeded", _) => FaultKind::Failed,
        (_, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => FaultKind::Denied,
        (_, StatusCode::TOO_MANY_REQUESTS) => FaultKind::Unreachable,
        _ if status.is_server_error() => FaultKind::Unreachable,
        _ => FaultKind::Failed,
    };
    let mut context = format!("{SERVER} refuses");
    match (message.is_empty(), code.is_empty()) {
        (false, _) => context.push_str(&format!(": {message} ({code})")),
        (true, false) => context.push_str(&format!(": {code}")),
        (true, true) => context.push_str(&format!(": HTTP {}", status.as_u16())),
    }
    match (kind, code.as_str()) {
        (FaultKind::Denied, _) => {
            context.push_str("; HCLOUD_TOKEN has to be a token of the project, for reading and writing")
        }
        (_, "uniqueness_error") => {
            context.push_str("; somebody else made it a moment ago: run the same command again, to take that one")
        }
        _ => {}
    }
    let fault = Fault::new(kind, operation, context);
    if kind == FaultKind::Unreachable || code == "locked" { fault.transient() } else { fault }
}

#[cfg(test)]
mod tests;
