//! Observes: programs of this machine, names, ports, the certificate, an answer over HTTP. Each look has a limit of time.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::header::{HOST, LOCATION, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::machine::Program;
use super::tls::{self, Trouble};

/// A version is printed at once, even on a machine that is busy.
const PROGRAM: Duration = Duration::from_secs(20);
const NAME: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);

/// Where programs of this machine are, and what they may see of its environment.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// `PATH`.
    pub path: OsString,
    /// `HOME`.
    pub home: Option<OsString>,
    /// The Docker CLI's configuration directory.
    pub docker_config: Option<PathBuf>,
}

impl Programs {
    /// The first line that a program prints, on whichever output.
    pub(super) async fn ask(&self, program: &str, args: &[&str]) -> Program {
        let mut command = Command::new(program);
        command.args(args).env_clear().env("PATH", &self.path).stdin(Stdio::null()).kill_on_drop(true);
        command.envs(self.home.as_ref().map(|home| ("HOME", home)));
        command.envs(self.docker_config.as_ref().map(|directory| ("DOCKER_CONFIG", directory)));
        let output = match tokio::time::timeout(PROGRAM, command.output()).await {
            Err(_) => return Program::Hung,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return Program::Missing,
            Ok(Err(error)) => return Program::Failed(error.to_string()),
            Ok(Ok(output)) => output,
        };
        let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let line = said.iter().flat_map(|text| text.lines()).map(str::trim).find(|line| !line.is_empty());
        let line: String = line.unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect();
        if output.status.success() && !line.is_empty() { Program::Said(line) } else { Program::Failed(line) }
    }
}

/// The addresses of a name.
pub(super) async fn resolve(name: &str) -> Result<Vec<IpAddr>, String> {
    match tokio::time::timeout(NAME, tokio::net::lookup_host((name, 0))).await {
        Err(_) => Err(format!("no answer within {} s", NAME.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(found)) => {
            let found: BTreeSet<IpAddr> = found.map(|address| address.ip()).collect();
            if found.is_empty() { Err("it has no address".to_owned()) } else { Ok(found.into_iter().collect()) }
        }
    }
}

/// A connection to whichever of these addresses takes it first, in their order.
async fn connect(addresses: &[IpAddr], port: u16) -> Result<TcpStream, String> {
    let mut why = "no address".to_owned();
    for address in addresses {
        let to = SocketAddr::new(*address, port);
        match tokio::time::timeout(CONNECT, TcpStream::connect(to)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => why = format!("{to}: {error}"),
            Err(_) => why = format!("{to}: no answer within {} s", CONNECT.as_secs()),
        }
    }
    Err(why)
}

/// A status, and where it leads.
pub(super) type Answer = (u16, Option<String>);

/// What is seen of a public host from here.
pub(super) struct Front {
    pub(super) addresses: Result<Vec<IpAddr>, String>,
    /// Each port that counts, with what became of connecting.
    pub(super) ports: Vec<(u16, Result<(), String>)>,
    /// `None`: not HTTPS, or not reached.
    pub(super) certificate: Option<Result<jiff::Timestamp, Trouble>>,
    /// What port 80 answers; `None` where HTTPS is not what is wanted, or port 80 is not reached.
    pub(super) redirect: Option<Result<Answer, String>>,
}

/// Looks at a host as a browser does. `fallback` are addresses for a name that leads nowhere yet.
pub(super) async fn front(
    url: &crate::name::Url,
    fallback: Vec<IpAddr>,
    roots: Result<std::sync::Arc<rustls::RootCertStore>, Trouble>,
) -> Front {
    let addresses = resolve(url.host()).await;
    let to = addresses.clone().unwrap_or(fallback);
    let own = url.port().unwrap_or(if url.is_https() { 443 } else { 80 });
    // Who names a port has no use for another one.
    let plain = url.is_https() && url.port().is_none();
    let (own_stream, plain_stream) =
        futures_util::join!(connect(&to, own), async { if plain { Some(connect(&to, 80).await) } else { None } });
    let mut ports = vec![(own, own_stream.as_ref().map(drop).map_err(Clone::clone))];
    ports.extend(plain_stream.as_ref().map(|stream| (80, stream.as_ref().map(drop).map_err(Clone::clone))));
    let certificate = async {
        let stream = own_stream.ok().filter(|_| url.is_https())?;
        Some(match greet(stream, url.host()).await {
            Err(trouble) => Err(trouble),
            Ok(stream) => roots.and_then(|roots| tls::judge(&stream, url.host(), roots, jiff::Timestamp::now())),
        })
    };
    let redirect = async {
        let stream = plain_stream?.ok()?;
        Some(get(stream, url.host(), "/").await)
    };
    let (certificate, redirect) = futures_util::join!(certificate, redirect);
    Front { addresses, ports, certificate, redirect }
}

/// What an address answers to the world; the certificate is another check's.
pub(super) async fn answer(https: bool, host: &str, port: Option<u16>, path: &str) -> Result<u16, String> {
    let addresses = resolve(host).await?;
    let stream = connect(&addresses, port.unwrap_or(if https { 443 } else { 80 })).await?;
    let authority = authority(host, port);
    if !https {
        return get(stream, &authority, path).await.map(|(status, _)| status);
    }
    match greet(stream, host).await {
        Ok(stream) => get(stream, &authority, path).await.map(|(status, _)| status),
        Err(Trouble::Handshake(why)) => Err(format!("no TLS connection: {why}")),
        Err(other) => Err(format!("{other:?}")),
    }
}

fn authority(host: &str, port: Option<u16>) -> String {
    port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

async fn greet(stream: TcpStream, name: &str) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Trouble> {
    tokio::time::timeout(ANSWER, tls::greet(stream, name))
        .await
        .unwrap_or_else(|_| Err(Trouble::Handshake(format!("no answer within {} s", ANSWER.as_secs()))))
}

/// What the whole way to an address leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// The name has no address.
    Nowhere(String),
    /// Nobody takes a connection.
    Closed(String),
    /// The certificate is not good, or there is none.
    Tls(Trouble),
    /// Connected, and no answer.
    Silent(String),
    /// An answer.
    Page(Page),
}

/// An answer with what it brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) status: u16,
    pub(super) to: Option<String>,
    /// No more than its beginning.
    pub(super) body: String,
    /// Whether search engines are asked to stay away: what the preview's own route adds.
    pub(super) noindex: bool,
}

/// Asks the way that users go: name, port, certificate, and then the question.
pub(super) async fn whole(
    https: bool,
    host: &str,
    port: Option<u16>,
    path: &str,
    roots: Result<std::sync::Arc<rustls::RootCertStore>, Trouble>,
) -> Reached {
    let addresses = match resolve(host).await {
        Ok(addresses) => addresses,
        Err(why) => return Reached::Nowhere(why),
    };
    let stream = match connect(&addresses, port.unwrap_or(if https { 443 } else { 80 })).await {
        Ok(stream) => stream,
        Err(why) => return Reached::Closed(why),
    };
    let authority = authority(host, port);
    if !https {
        return page(stream, &authority, path).await.map_or_else(Reached::Silent, Reached::Page);
    }
    let stream = match greet(stream, host).await {
        Ok(stream) => stream,
        Err(trouble) => return Reached::Tls(trouble),
    };
    let judged = roots.and_then(|roots| tls::judge(&stream, host, roots, jiff::Timestamp::now()));
    match judged {
        Ok(_) => page(stream, &authority, path).await.map_or_else(Reached::Silent, Reached::Page),
        Err(trouble) => Reached::Tls(trouble),
    }
}

/// `GET` over a connection: the status, and where it leads.
pub(super) async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    authority: &str,
    path: &str,
) -> Result<Answer, String> {
    asked(stream, authority, path, 0).await.map(|page| (page.status, page.to))
}

/// The same, with the beginning of what comes.
pub(super) async fn page(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    authority: &str,
    path: &str,
) -> Result<Page, String> {
    asked(stream, authority, path, 4096).await
}

async fn asked(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    authority: &str,
    path: &str,
    most: usize,
) -> Result<Page, String> {
    let asked = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = hyper::Request::get(if path.is_empty() { "/" } else { path })
            .header(HOST, authority)
            .header(USER_AGENT, "preview doctor")
            .body(Empty::<Bytes>::new());
        let request = match request {
            Ok(request) => request,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let mut response = sender.send_request(request).await?;
        let mut body = Vec::new();
        while body.len() < most
            && let Some(frame) = response.body_mut().frame().await
        {
            body.extend_from_slice(frame?.data_ref().map_or(&[][..], |data| data));
        }
        connection.abort();
        body.truncate(most);
        let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).map(str::to_owned);
        let body = String::from_utf8_lossy(&body).into_owned();
        let robots = response.headers().get("x-robots-tag").and_then(|robots| robots.to_str().ok());
        let noindex = robots.is_some_and(|robots| robots.contains("noindex"));
        Ok::<_, hyper::Error>(Ok(Page { status: response.status().as_u16(), to, body, noindex }))
    };
    match tokio::time::timeout(ANSWER, asked).await {
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(answer)) => answer,
    }
}
