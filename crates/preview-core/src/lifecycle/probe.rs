//! Whether a service answers: a TCP connection, or an HTTP request, from the host's point of view.

use std::time::Duration;

use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::engine::Container;
use crate::failure::FailureCode;
use crate::fault::{Fault, FaultKind};
use crate::host::Host;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(250);
/// One answer may take so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long somebody who listens may take to show that it is HTTP.
const ANSWER: Duration = Duration::from_secs(3);
/// Docker's own proxy accepts a connection before it finds nobody behind it, and closes it within this time.
const GLANCE: Duration = Duration::from_millis(150);

/// A question to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) service: String,
    pub(super) port: u16,
    /// A path to ask for; without one, being connected is enough.
    pub(super) path: Option<String>,
}

/// The address under which the host reaches a port of a container: the published one if there is one.
pub(super) fn address(container: &Container, port: u16) -> Option<(String, u16)> {
    let published = container.ports.iter().find(|p| p.container_port == port && p.protocol == "tcp");
    if let Some(published) = published {
        let ip = published.host_ip.filter(|ip| !ip.is_unspecified());
        return Some((ip.map_or_else(|| "127.0.0.1".to_owned(), |ip| ip.to_string()), published.host_port));
    }
    container.networks.values().next().map(|ip| (ip.to_string(), port))
}

/// What was heard on a port that need not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nobody listens there.
    Nothing,
    /// Somebody takes connections.
    Connection,
    /// Somebody answers HTTP.
    Http,
}

/// Listens to a port of a container, until somebody is there or the time is over. `http`: it may be HTTP.
pub(super) async fn hear(host: &dyn Host, container: &Container, port: u16, http: bool, limit: Duration) -> Heard {
    let Some((ip, port)) = address(container, port) else { return Heard::Nothing };
    let listens = async {
        let question = Question { service: String::new(), port, path: None };
        while tokio::time::timeout(PATIENCE, once(host, &ip, port, &question)).await.is_ok_and(|done| done.is_err()) {
            tokio::time::sleep(PAUSE).await;
        }
    };
    if tokio::time::timeout(limit, listens).await.is_err() {
        return Heard::Nothing;
    }
    let answers = async {
        let mut stream = host.dial(&ip, port).await.ok()?;
        stream.write_all(b"HEAD / HTTP/1.0\r\nHost: localhost\r\nUser-Agent: preview\r\n\r\n").await.ok()?;
        let mut start = [0; 5];
        stream.read_exact(&mut start).await.ok()?;
        (&start == b"HTTP/").then_some(())
    };
    match http {
        true if matches!(tokio::time::timeout(ANSWER, answers).await, Ok(Some(()))) => Heard::Http,
        _ => Heard::Connection,
    }
}

/// Asks until the answer is good; the caller limits the time. `last` keeps what the last answer was.
pub(super) async fn ask(
    host: &dyn Host,
    container: &Container,
    question: &Question,
    last: &std::sync::Mutex<String>,
) -> Result<(), Fault> {
    let remember = |text: String| {
        *last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = text;
    };
    let Some((ip, port)) = address(container, question.port) else {
        return Err(Fault::new(
            FaultKind::Unsupported,
            "reach the service",
            format!("{} has no address on a network of the host", question.service),
        )
        .coded(FailureCode::ProbeFailed));
    };
    loop {
        let answer = tokio::time::timeout(PATIENCE, once(host, &ip, port, question)).await;
        match answer {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(text)) => remember(text),
            Err(_) => remember(format!("no answer within {} s", PATIENCE.as_secs())),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn once(host: &dyn Host, ip: &str, port: u16, question: &Question) -> Result<(), String> {
    let mut stream = host
        .dial(ip, port)
        .await
        .map_err(|_| format!("nothing listens on port {} of {}", question.port, question.service))?;
    let Some(path) = &question.path else {
        let mut byte = [0];
        return match tokio::time::timeout(GLANCE, stream.read(&mut byte)).await {
            Ok(Ok(0) | Err(_)) => Err(format!("nothing listens on port {} of {}", question.port, question.service)),
            Ok(Ok(_)) | Err(_) => Ok(()),
        };
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let request = hyper::Request::get(path.as_str())
        .header("host", "localhost")
        .header("user-agent", "preview")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        if (200..400).contains(&status) { Ok(()) } else { Err(format!("GET {path} answered {status}")) }
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // Closed, which it may be right after the answer.
        _ = connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::{ContainerState, Health, PublishedPort};

    #[test]
    fn a_published_port_is_preferred() {
        let mut container = Container {
            id: String::new(),
            name: String::new(),
            image: String::new(),
            image_id: String::new(),
            state: ContainerState::Running,
            health: Health::None,
            labels: BTreeMap::new(),
            created: 0,
            ports: vec![],
            networks: BTreeMap::from([("n".to_owned(), "172.18.0.2".parse().unwrap())]),
            volumes: Default::default(),
        };
        assert_eq!(address(&container, 80), Some(("172.18.0.2".into(), 80)));
        container.ports.push(PublishedPort {
            host_ip: Some("127.0.0.1".parse().unwrap()),
            host_port: 23_456,
            container_port: 80,
            protocol: "tcp".into(),
        });
        assert_eq!(address(&container, 80), Some(("127.0.0.1".into(), 23_456)));
    }
}
