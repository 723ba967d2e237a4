//! The way to the engine's socket: kept-alive connections, and the version of the API that both sides speak.
//!
//! bollard's own transport opens a connection for each request. Through an SSH forward that is a round trip more a
//! request, so this one keeps connections and uses them again once their answer has been read.
//!
//! **Version.** Requests name API 1.41 (Docker 20.10), which holds all that we use, and which every engine from 20.10
//! answers except 29.0 to 29.2 (minimum 1.44). Asking `/version` first would cost each run a request to learn what is
//! true nearly always. Instead an engine that refuses 1.41 says in its answer (status 400) which version it wants;
//! the request goes out again with that one, and so do all later ones. bollard's negotiation is of no help here: it
//! costs that request, only ever lowers the version, and its URIs end up without one.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bollard::BollardRequest;
use bollard::errors::Error;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::http::{HeaderValue, Method, Request, Response, StatusCode, header, request};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::fault::Fault;

/// How long the engine may take for an answer.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

/// API 1.41 came with Docker 20.10, the oldest engine that is supported.
const FIRST_MINOR: u32 = 41;

/// Pooled connections to one unix socket; clones share them.
#[derive(Clone)]
pub(super) struct Transport(Arc<Inner>);

struct Inner {
    socket: PathBuf,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    /// The minor number of the API version; the major one is 1 for as long as Docker exists.
    minor: AtomicU32,
    opened: AtomicUsize,
    sent: AtomicUsize,
    /// Whether the engine has answered at all.
    answered: AtomicBool,
    /// Who knows why nobody answers.
    explain: OnceLock<Explain>,
}

/// Tells why nobody answers behind the socket, and whether that is for want of rights; `None` where that is not known.
pub type Explain = Arc<dyn Fn() -> BoxFuture<'static, Option<(String, bool)>> + Send + Sync>;

/// Why nobody answers, in words that need no others.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Explained(pub(super) String);

impl Transport {
    /// Does no IO.
    pub(super) fn new(socket: &Path) -> Self {
        Self(Arc::new(Inner {
            socket: socket.to_owned(),
            idle: Mutex::default(),
            minor: AtomicU32::new(FIRST_MINOR),
            opened: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
            answered: AtomicBool::new(false),
            explain: OnceLock::new(),
        }))
    }

    /// Who is asked once why nobody answers.
    pub(super) fn explained_by(&self, explain: Explain) {
        let _ = self.0.explain.set(explain);
    }

    /// A connection that failed, with the reason where nobody has ever answered and somebody knows why.
    async fn explained(&self, error: Error) -> Error {
        let Some(explain) = self.0.explain.get().filter(|_| !self.0.answered.load(Ordering::Relaxed)) else {
            return error;
        };
        match explain().await {
            Some((text, denied)) => {
                let kind = if denied { ErrorKind::PermissionDenied } else { ErrorKind::NotFound };
                std::io::Error::new(kind, Explained(text)).into()
            }
            None => error,
        }
    }

    /// The version that requests name, for example `1.41`.
    pub(super) fn version(&self) -> String {
        format!("1.{}", self.0.minor.load(Ordering::Relaxed))
    }

    /// How many connections were opened and how many requests were sent so far.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.0.opened.load(Ordering::Relaxed), self.0.sent.load(Ordering::Relaxed))
    }

    /// Carries a request that bollard built; all of ours have a body in memory.
    pub(super) async fn carry(self, request: BollardRequest) -> Result<Response<Incoming>, Error> {
        let (mut parts, body) = request.into_parts();
        if let Some(auth) = parts.headers.get("X-Registry-Auth").and_then(|value| value.to_str().ok()) {
            // The engine reads this header in the URL-safe alphabet and, where it cannot, goes on without credentials;
            // bollard writes the standard alphabet. They differ as soon as a password holds `?`, `>` or `~`.
            let safe = auth.replace('+', "-").replace('/', "_");
            if let Ok(value) = HeaderValue::try_from(safe) {
                parts.headers.insert("X-Registry-Auth", value);
            }
        }
        let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
        self.send(&parts, body).await
    }

    /// Sends a request of our own and returns as soon as the engine has answered with success: the body may go on for long.
    pub(super) async fn open(&self, method: Method, path: &str, body: Bytes) -> Result<Incoming, Error> {
        let (parts, ()) = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(())?
            .into_parts();
        let response =
            tokio::time::timeout(LIMIT, self.send(&parts, body)).await.map_err(|_| Error::RequestTimeoutError)??;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        Err(Error::DockerResponseServerError {
            status_code: response.status().as_u16(),
            message: message(response).await?,
        })
    }

    /// As [`open`](Self::open), for an answer that is one JSON document.
    pub(super) async fn json<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, Error> {
        let body = self.open(method, path, body).await?.collect().await?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    }

    /// What the engine says of a path in a container, as JSON; none if nothing is there.
    pub(super) async fn describe(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let (parts, ()) = Request::builder().method(Method::HEAD).uri(path).body(())?.into_parts();
        let response = self.send(&parts, Bytes::new()).await?;
        let status = response.status();
        let described = response.headers().get("x-docker-container-path-stat").cloned();
        match described {
            _ if status == StatusCode::NOT_FOUND => Ok(None),
            Some(value) if status.is_success() => {
                let decoded = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, value.as_bytes());
                Ok(Some(decoded.map_err(std::io::Error::other)?))
            }
            _ => Err(Error::DockerResponseServerError {
                status_code: status.as_u16(),
                message: "no description".to_owned(),
            }),
        }
    }

    /// Sends a body that comes piece by piece, on a connection of its own, and waits for the whole answer. `stall`: the longest that the engine may
    /// take no piece.
    ///
    /// The API version is what earlier requests found out: nothing can be sent twice here.
    pub(super) async fn put(
        &self,
        path: &str,
        mut pieces: futures_util::stream::BoxStream<'static, Result<Bytes, Fault>>,
        stall: Duration,
    ) -> Result<Result<(), Error>, Fault> {
        let stream = match UnixStream::connect(&self.0.socket).await {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error.into())),
        };
        let (queue, mut received) = tokio::sync::mpsc::channel::<Bytes>(4);
        let body = http_body_util::StreamBody::new(futures_util::stream::poll_fn(move |context| {
            received.poll_recv(context).map(|piece| piece.map(|piece| Ok::<_, std::io::Error>(Frame::data(piece))))
        }));
        let (mut sender, connection) = match http1::handshake(TokioIo::new(stream)).await {
            Ok(both) => both,
            Err(error) => return Ok(Err(error.into())),
        };
        self.0.opened.fetch_add(1, Ordering::Relaxed);
        self.0.sent.fetch_add(1, Ordering::Relaxed);
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("/v1.{}{path}", self.0.minor.load(Ordering::Relaxed)))
            .header(header::HOST, "docker")
            .header(header::CONTENT_TYPE, "application/x-tar")
            .body(body);
        let request = match request {
            Ok(request) => request,
            Err(error) => return Ok(Err(error.into())),
        };
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the engine ended");
            }
        });
        let answered = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            // An answer that is read to its end: the connection may go.
            let message = message(response).await?;
            if status.is_success() {
                return Ok(());
            }
            Err(Error::DockerResponseServerError { status_code: status.as_u16(), message })
        };
        let feed = async {
            while let Some(piece) = pieces.next().await {
                // The engine answers early where it fails; then nobody takes the rest, and its answer says why.
                match tokio::time::timeout(stall, queue.send(piece?)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => break,
                    Err(_) => return Ok(Err(Error::RequestTimeoutError)),
                }
            }
            drop(queue);
            Ok::<_, Fault>(Ok(()))
        };
        let mut answered = std::pin::pin!(answered);
        tokio::select! {
            answer = &mut answered => Ok(answer),
            fed = feed => match fed? {
                Ok(()) => Ok(tokio::time::timeout(LIMIT, answered).await.unwrap_or(Err(Error::RequestTimeoutError))),
                Err(error) => Ok(Err(error)),
            },
        }
    }

    async fn send(&self, parts: &request::Parts, body: Bytes) -> Result<Response<Incoming>, Error> {
        let asked = self.0.minor.load(Ordering::Relaxed);
        let response = self.send_as(asked, parts, body.clone()).await?;
        if response.status() != StatusCode::BAD_REQUEST {
            return Ok(response);
        }
        let message = message(response).await?;
        match wanted_minor(&message) {
            Some(wanted) if wanted != asked => {
                self.0.minor.store(wanted, Ordering::Relaxed);
                self.send_as(wanted, parts, body).await
            }
            // The body is read, so the answer becomes the error that bollard would make of it.
            _ => Err(Error::DockerResponseServerError { status_code: StatusCode::BAD_REQUEST.as_u16(), message }),
        }
    }

    async fn send_as(&self, minor: u32, parts: &request::Parts, body: Bytes) -> Result<Response<Incoming>, Error> {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(parts.method.clone())
            .uri(format!("/v1.{minor}{path}"))
            .header(header::HOST, "docker")
            .body(Full::new(body))?;
        for (name, value) in &parts.headers {
            request.headers_mut().insert(name, value.clone());
        }
        self.0.sent.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        loop {
            let (mut sender, fresh) = match self.take_idle().await {
                Some(sender) => (sender, false),
                None => match self.connect().await {
                    Ok(sender) => (sender, true),
                    Err(error) => return Err(self.explained(error).await),
                },
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    // Not ready until its answer has been read; `take_idle` looks.
                    self.idle().push(sender);
                    self.0.answered.store(true, Ordering::Relaxed);
                    let status = response.status().as_u16();
                    tracing::debug!(method = %parts.method, path, status, fresh, took = ?begun.elapsed(), "asked the engine");
                    return Ok(response);
                }
                Err(mut error) => match error.take_message() {
                    // The engine closed a kept connection just now; nothing was sent on it.
                    Some(unsent) if !fresh => request = unsent,
                    _ => return Err(self.explained(error.into_error().into()).await),
                },
            }
        }
    }

    /// Opens connections before anybody needs them: a forward's round trip then overlaps with other work.
    pub(super) async fn warm(&self, count: usize) {
        for _ in 0..count {
            // Why it cannot be opened is told by the first request, which tries again.
            let Ok(sender) = self.connect().await else { return };
            self.idle().push(sender);
        }
    }

    /// A kept connection that waits for a request.
    async fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        for again in [true, false] {
            {
                let mut idle = self.idle();
                idle.retain(|sender| !sender.is_closed());
                if let Some(at) = idle.iter().position(SendRequest::is_ready) {
                    return Some(idle.swap_remove(at));
                }
                if idle.is_empty() {
                    return None;
                }
            }
            if again {
                // A connection whose answer was read to the end right now notes it at its next turn.
                tokio::task::yield_now().await;
            }
        }
        None
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Error> {
        let stream = UnixStream::connect(&self.0.socket)
            .await
            .map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", self.0.socket.display())))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        self.0.opened.fetch_add(1, Ordering::Relaxed);
        // It ends by itself when the engine closes it, or when the pool and the answer's body are dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to the engine ended");
            }
        });
        Ok(sender)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<SendRequest<Full<Bytes>>>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the engine says in an answer that is an error.
async fn message(response: Response<Incoming>) -> Result<String, Error> {
    #[derive(serde::Deserialize)]
    struct Answer {
        message: String,
    }
    let body = response.into_body().collect().await?.to_bytes();
    Ok(serde_json::from_slice::<Answer>(&body)
        .map_or_else(|_| String::from_utf8_lossy(&body).trim().to_owned(), |answer| answer.message))
}

/// The minor API version that a refusal asks for:
/// `client version 1.41 is too old. Minimum supported API version is 1.44, please upgrade …`.
fn wanted_minor(message: &str) -> Option<u32> {
    if !message.contains("client version") {
        return None;
    }
    let (_, rest) = message.split_once("supported API version is 1.")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).map_or(rest, |end| &rest[..end]);
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::UnixListener;

    /// An engine that refuses API versions below 1.44, closes after `per_connection` answers, and answers with the request line.
    async fn serve(listener: UnixListener, per_connection: usize) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                for _ in 0..per_connection {
                    let mut head = Vec::new();
                    loop {
                        let mut line = String::new();
                        if stream.read_line(&mut line).await.unwrap() == 0 {
                            return;
                        }
                        if line == "\r\n" {
                            break;
                        }
                        head.push(line);
                    }
                    let (status, body) = if head[0].contains("/v1.44/") {
                        ("200 OK", format!("{:?}", head[0].trim()))
                    } else {
                        let text = "client version 1.41 is too old. Minimum supported API version is 1.44, please upgrade your client to a newer version";
                        ("400 Bad Request", format!("{{\"message\":\"{text}\"}}"))
                    };
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    }

    async fn get(transport: &Transport) -> String {
        transport.json::<String>(Method::GET, "/images/json?all=1", Bytes::new()).await.unwrap()
    }

    #[tokio::test]
    async fn a_refused_version_is_replaced_once_and_connections_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker.sock");
        let server = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), usize::MAX));
        let transport = Transport::new(&socket);
        for _ in 0..5 {
            assert_eq!(get(&transport).await, "GET /v1.44/images/json?all=1 HTTP/1.1");
        }
        assert_eq!(transport.version(), "1.44");
        assert_eq!(transport.counts(), (1, 6), "five requests and one repeated, on one connection");
        server.abort();
    }

    #[tokio::test]
    async fn a_connection_that_the_engine_closed_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker.sock");
        let server = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), 2));
        let transport = Transport::new(&socket);
        for _ in 0..5 {
            get(&transport).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(transport.counts().0, 3);
        server.abort();
    }

    #[tokio::test]
    async fn no_socket_is_an_io_error() {
        let transport = Transport::new(Path::new("/nonexistent/docker.sock"));
        let error = transport.open(Method::GET, "/version", Bytes::new()).await.unwrap_err();
        assert!(matches!(error, Error::IOError { .. }), "{error:?}");
    }

    #[test]
    fn refusals_of_the_version_are_understood() {
        assert_eq!(wanted_minor("client version 1.60 is too new. Maximum supported API version is 1.41"), Some(41));
        assert_eq!(
            wanted_minor(
                "client version 1.41 is too old. Minimum supported API version is 1.44, please upgrade your client to a newer version"
            ),
            Some(44)
        );
        assert_eq!(wanted_minor("invalid filter"), None);
    }
}
