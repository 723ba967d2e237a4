//! Looks everywhere at the same time, and brings what was seen to those who judge.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::look::{self, Front, Programs};
use super::{Check, Finding, Report, machine, proxy, tls, vm, way_in};
use crate::engine::docker::{DockerEngine, Examined};
use crate::fault::{Fault, FaultKind};
use crate::history::{self, Command};
use crate::host::shell::{ShellHost, Transport};
use crate::host::ssh::Destination;
use crate::host::{Examination, Facts, Host as _, Query, Survey};
use crate::name::Url;
use crate::state::{Address, Phase, State};

/// Connecting is tried several times; what takes longer than this is no way to work.
const CONNECT: Duration = Duration::from_secs(60);
/// Each look at the host, and at its engine.
const LOOK: Duration = Duration::from_secs(30);

/// Where previews run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// This machine.
    Local,
    /// A VM.
    Vm(Destination),
}

/// What is to be looked at: the configuration, as far as it matters.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The configuration in a few words.
    pub configuration: String,
    /// What is odd about it.
    pub warnings: Vec<String>,
    /// Where previews run.
    pub place: Place,
    /// Whether keys of the VM are given.
    pub pinned: bool,
    /// Programs of this machine.
    pub programs: Programs,
    /// The directory of the previews on the host.
    pub base_dir: String,
    /// The engine's socket on the host.
    pub docker_socket: String,
    /// The proxy's network; `None`: there is no proxy.
    pub proxy_network: Option<String>,
    /// The container that is told of routes (`[proxy] container`), where the proxy is told by files.
    pub proxy_container: Option<String>,
    /// Public addresses of a preview that nobody deploys.
    pub urls: Vec<Url>,
    /// Whether each preview gets a DNS record of its own, when it is deployed (`[dns]`).
    pub records: bool,
    /// Whether requests come through a tunnel (`[tunnel]`).
    pub tunnel: bool,
    /// `[limits] min_free_disk`, bytes.
    pub free_disk: u64,
    /// `[limits] min_free_memory`, bytes.
    pub free_memory: u64,
    /// `[limits] max_previews`.
    pub max_previews: u64,
    /// `ttl`.
    pub ttl: Option<Duration>,
    /// A file with authorities that may vouch for certificates, instead of those of this machine.
    pub ca: Option<PathBuf>,
}

/// What was seen of the host.
#[derive(Default)]
struct Seen {
    examination: Option<Result<Examination, Fault>>,
    facts: Option<Result<Facts, Fault>>,
    files: Option<Result<Survey, Fault>>,
    engine: Option<Result<Examined, Fault>>,
    sessions: Option<Result<usize, Fault>>,
    /// The VM's clock minus this machine's, seconds.
    skew: i64,
}

/// Looks at everything. `connect` reaches the host; `dns` asks the DNS provider about the token's rights, where one is configured.
pub async fn doctor<T: Transport>(
    wish: &Wish,
    connect: impl Future<Output = Result<Arc<ShellHost<T>>, Fault>>,
    dns: Option<BoxFuture<'_, Result<String, Fault>>>,
) -> Report {
    let far = async {
        let host = limited("connect to the VM", CONNECT, connect).await;
        let seen = match &host {
            Ok(host) => host_seen(wish, &**host).await,
            Err(_) => Seen::default(),
        };
        (host, seen)
    };
    let fronts = async {
        if wish.proxy_network.is_none() {
            return Vec::new();
        }
        let fallback = host_addresses(wish).await;
        let roots = tls::roots(wish.ca.as_deref());
        let looks = wish.urls.iter().map(|url| look::front(url, fallback.iter().copied().collect(), roots.clone()));
        futures_util::future::join_all(looks).await
    };
    let provider = async {
        match dns {
            Some(check) => Some(limited("ask the DNS provider", LOOK, check).await),
            None => None,
        }
    };
    let (mut findings, (host, seen), fronts, provider, known) =
        futures_util::join!(programs(wish), far, fronts, provider, host_addresses(wish));
    let configuration = Finding::ok(Check::Config, &wish.configuration);
    findings.push(match wish.warnings.first() {
        None => configuration,
        Some(_) => Finding::warning(Check::Config, &wish.configuration, wish.warnings.join("; ")),
    });
    findings.extend(vm::reached(&wish.place, wish.pinned, host.as_ref().err()));
    findings.extend(of_host(wish, host.is_ok(), &seen));
    findings.extend(of_proxy(wish, &seen));
    findings.push(way_in::provider(provider));
    findings.extend(of_fronts(wish, &fronts, &addresses(known, &seen)));
    findings.push(answer(wish, host.as_ref().ok().map(|host| &**host), &seen).await);
    findings.push(Finding::skipped(Check::Probe, "nobody asked for it (`--probe`)"));
    if let Ok(host) = host {
        let _ = host.close().await;
    }
    Report::new(findings)
}

/// Where the configuration cannot be read, what does not depend on it.
pub async fn without_configuration(message: &str, programs_of: &Programs) -> Report {
    let mut findings = asked(programs_of).await;
    let next = "the message says where; the keys are in docs/configuration.md";
    findings.push(Finding::failed(Check::Config, message, next));
    let done: BTreeSet<Check> = findings.iter().map(|finding| finding.id).collect();
    let rest = Check::ALL.iter().filter(|check| !done.contains(check));
    findings.extend(rest.map(|check| Finding::skipped(*check, "the configuration cannot be read")));
    Report::new(findings)
}

async fn limited<T>(
    operation: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let late = |_| Fault::new(FaultKind::TimedOut, operation, format!("no answer within {} s", limit.as_secs()));
    tokio::time::timeout(limit, work).await.map_err(late)?
}

async fn programs(wish: &Wish) -> Vec<Finding> {
    let mut findings = asked(&wish.programs).await;
    if wish.place == Place::Local {
        findings.retain(|finding| finding.id != Check::SshClient);
        findings.push(Finding::skipped(Check::SshClient, "previews run on this machine"));
    }
    findings
}

async fn asked(programs: &Programs) -> Vec<Finding> {
    let (docker, compose, buildx, ssh) = futures_util::join!(
        programs.ask("docker", &["--version"]),
        programs.ask("docker", &["compose", "version", "--short"]),
        programs.ask("docker", &["buildx", "version"]),
        programs.ask("ssh", &["-V"]),
    );
    vec![
        machine::docker_cli(&docker),
        machine::compose(&docker, &compose),
        machine::buildx(&docker, &buildx),
        machine::sandbox(crate::runtime::compose::can_be_closed_in()),
        machine::ssh_client(&ssh),
    ]
}

async fn host_seen<T: Transport>(wish: &Wish, host: &ShellHost<T>) -> Seen {
    let base = &wish.base_dir;
    let query = Query {
        read: vec![history::FILE.to_owned(), "*/*/state.json".to_owned()],
        files_only: true,
        ..Query::default()
    };
    let examination = async {
        let before = Timestamp::now();
        let seen = limited("look at the host", LOOK, host.examine(base, &wish.docker_socket)).await;
        (seen, before, Timestamp::now())
    };
    let everything = Query::default();
    let facts = async {
        let survey = limited("look at the host", LOOK, host.survey(base, &everything)).await;
        survey.map(|survey| survey.facts)
    };
    let files = limited("look at the host", LOOK, host.survey(base, &query));
    let ((examination, before, after), facts, files) = futures_util::join!(examination, facts, files);
    // Its answer was made somewhere between the two.
    let skew = examination
        .as_ref()
        .map_or(0, |seen| (seen.now - after.as_second()).max(0) - (before.as_second() - seen.now).max(0));
    let usable = examination.as_ref().is_ok_and(|seen| seen.socket_usable);
    let engine = async {
        if !usable {
            return None;
        }
        Some(limited("look at the engine", LOOK, engine(host, &wish.docker_socket)).await)
    };
    // Takes all sessions that there are, so it comes last.
    let sessions = async {
        match wish.place {
            Place::Local => None,
            Place::Vm(_) => Some(limited("open sessions on the VM", LOOK, host.sessions(vm::SESSIONS)).await),
        }
    };
    let (engine, sessions) = futures_util::join!(engine, sessions);
    Seen { examination: Some(examination), facts: Some(facts), files: Some(files), engine, sessions, skew }
}

async fn engine<T: Transport>(host: &ShellHost<T>, socket: &str) -> Result<Examined, Fault> {
    let socket = host.socket(socket).await?;
    DockerEngine::connect(&socket)?.examine().await
}

/// States of previews that can be read.
fn states(seen: &Seen) -> Vec<State> {
    let files = seen.files.as_ref().and_then(|files| files.as_ref().ok());
    let states = files.into_iter().flat_map(|survey| &survey.files).filter(|(path, _)| path.ends_with("/state.json"));
    states.filter_map(|(path, text)| State::parse(path, text).ok()).collect()
}

fn of_host(wish: &Wish, reached: bool, seen: &Seen) -> Vec<Finding> {
    use Check::{
        BaseDir, Clock, Disk, DockerSocket, DockerVersion, LogRotation, Memory, Networks, SshSessions, Swap, Sweep,
    };
    let unreached = if reached { "the host gave no answer" } else { "the VM was not reached" };
    let mut findings = Vec::new();
    let examination = seen.examination.as_ref().and_then(|seen| seen.as_ref().ok());
    match examination {
        Some(examination) => {
            findings.push(vm::base_dir(&wish.base_dir, examination));
            findings.push(vm::docker_socket(&wish.docker_socket, examination));
            findings.push(vm::swap(examination));
            findings.push(match wish.place {
                Place::Local => Finding::skipped(Clock, "previews run on this machine"),
                Place::Vm(_) => vm::clock(seen.skew),
            });
        }
        None => findings.extend(unseen([BaseDir, DockerSocket, Swap, Clock], seen.examination.as_ref(), unreached)),
    }
    match seen.facts.as_ref().and_then(|facts| facts.as_ref().ok()) {
        Some(facts) => {
            findings.push(vm::disk(facts, wish.free_disk));
            findings.push(vm::memory(facts, wish.free_memory));
        }
        None => findings.extend(unseen([Disk, Memory], seen.facts.as_ref(), unreached)),
    }
    findings.push(match (&wish.place, &seen.sessions) {
        (Place::Local, _) => Finding::skipped(SshSessions, "previews run on this machine"),
        (_, Some(Ok(open))) => vm::sessions(*open),
        (_, Some(Err(fault))) => Finding::skipped(SshSessions, vm::without_operation(fault)),
        (_, None) => Finding::skipped(SshSessions, unreached),
    });
    let previews = states(seen).len() as u64;
    match (&seen.engine, examination) {
        (Some(engine), Some(examination)) => {
            findings.push(vm::docker_version(engine.as_ref()));
            match engine {
                Ok(engine) => {
                    findings.push(vm::networks(engine, &examination.routes, previews, wish.max_previews));
                    findings.push(vm::log_rotation(engine, examination));
                }
                Err(_) => {
                    findings
                        .extend([Networks, LogRotation].map(|id| Finding::skipped(id, "the engine does not answer")));
                }
            }
        }
        _ => {
            let why = if examination.is_some() { "the engine's socket cannot be used" } else { unreached };
            findings.extend([DockerVersion, Networks, LogRotation].map(|id| Finding::skipped(id, why)));
        }
    }
    findings.push(match &seen.files {
        Some(Ok(survey)) => {
            let entries = survey.files.values().flat_map(|text| history::parse(text));
            let last = entries.filter(|entry| entry.command == Command::Sweep).map(|entry| entry.ended_at).max();
            vm::sweep(last, Timestamp::now(), previews, wish.ttl)
        }
        Some(Err(fault)) => {
            Finding::skipped(Sweep, format!("the base directory cannot be read: {}", vm::without_operation(fault)))
        }
        None => Finding::skipped(Sweep, unreached),
    });
    findings
}

/// What could not be looked at: because of a fault of its own, or of an earlier one.
fn unseen<const N: usize, T>(ids: [Check; N], result: Option<&Result<T, Fault>>, unreached: &str) -> Vec<Finding> {
    let why = match result {
        Some(Err(fault)) => vm::without_operation(fault),
        _ => unreached.to_owned(),
    };
    ids.into_iter().map(|id| Finding::skipped(id, why.clone())).collect()
}

const NO_PROXY: &str = "no proxy is configured (`[proxy] kind`)";

fn of_proxy(wish: &Wish, seen: &Seen) -> [Finding; 2] {
    let both = |why: &str| [Check::ProxyNetwork, Check::ProxyContainer].map(|id| Finding::skipped(id, why));
    let Some(network) = &wish.proxy_network else { return both(NO_PROXY) };
    let Some(Ok(engine)) = &seen.engine else { return both("the engine was not reached") };
    let found = proxy::network(engine, network);
    if found.status == super::Status::Failed {
        return [found, Finding::skipped(Check::ProxyContainer, "its network is missing")];
    }
    let nothing = BTreeSet::new();
    let listening =
        seen.facts.as_ref().and_then(|facts| facts.as_ref().ok()).map_or(&nothing, |facts| &facts.listening);
    [found, proxy::container(engine, network, wish.proxy_container.as_deref(), listening)]
}

/// The addresses of the VM as its name says, from here.
async fn host_addresses(wish: &Wish) -> BTreeSet<IpAddr> {
    match &wish.place {
        Place::Local => BTreeSet::from([IpAddr::from([127, 0, 0, 1])]),
        // A name that only ssh knows, by its own configuration, says nothing.
        Place::Vm(destination) => look::resolve(&destination.host).await.unwrap_or_default().into_iter().collect(),
    }
}

/// With those that the VM itself knows; the address of `[vm] host` comes first.
fn addresses(known: BTreeSet<IpAddr>, seen: &Seen) -> Vec<IpAddr> {
    let own = seen.examination.iter().filter_map(|seen| seen.as_ref().ok()).flat_map(|seen| &seen.addresses);
    way_in::of_vm(known, own.filter_map(|address| address.parse().ok()))
}

pub(super) fn of_fronts(wish: &Wish, fronts: &[Front], vm: &[IpAddr]) -> Vec<Finding> {
    use Check::{Certificate, Dns, Ports, Redirect};
    if fronts.is_empty() {
        let why = if wish.proxy_network.is_none() { NO_PROXY } else { "no public address is configured (`url`)" };
        return [Dns, Ports, Certificate, Redirect].map(|id| Finding::skipped(id, why)).into();
    }
    let mut findings = Vec::new();
    for (url, front) in wish.urls.iter().zip(fronts) {
        let name = url.host();
        let resolved = front.addresses.as_deref().map_err(String::as_str);
        let each = url.path().is_empty();
        findings.push(match resolved {
            Err(_) if wish.records && each => way_in::no_record_yet(name),
            Ok(found) if wish.tunnel => way_in::dns_of_tunnel(name, found),
            _ => way_in::dns(name, each, resolved, vm),
        });
        if wish.tunnel {
            // The name of no preview leads to Cloudflare, or nowhere: whatever answers there says nothing about the VM.
            findings.extend([Ports, Certificate, Redirect].map(|id| way_in::through_tunnel(id, name)));
            continue;
        }
        findings.push(way_in::ports(name, url.is_https(), &front.ports));
        findings.push(match &front.certificate {
            Some(seen) => way_in::certificate(name, seen.as_ref().map(|end| *end), Timestamp::now()),
            None if url.is_https() => Finding::skipped(Certificate, "the port is not reached").about(name),
            None => Finding::skipped(Certificate, "the address is not HTTPS").about(name),
        });
        findings.push(match &front.redirect {
            Some(answer) => {
                let answer = answer.as_ref().map(|(status, to)| (*status, to.as_deref())).map_err(String::as_str);
                way_in::redirect(name, answer)
            }
            None if !url.is_https() => Finding::skipped(Redirect, "the address is not HTTPS").about(name),
            None if url.port().is_some() => Finding::skipped(Redirect, "the address names a port").about(name),
            None => Finding::skipped(Redirect, "port 80 is not reached").about(name),
        });
    }
    findings
}

/// Asks the preview that was deployed last, the way that its users go.
async fn answer<T: Transport>(wish: &Wish, host: Option<&ShellHost<T>>, seen: &Seen) -> Finding {
    const ID: Check = Check::Answer;
    let Some(host) = host else { return Finding::skipped(ID, "the VM was not reached") };
    let ready = states(seen).into_iter().filter(|state| state.phase == Phase::Ready && !state.addresses.is_empty());
    let Some(state) = ready.max_by_key(|state| state.updated_at) else {
        return Finding::skipped(ID, "no preview is there to be asked");
    };
    let Some(url) = Address::first(&state.addresses) else {
        return Finding::skipped(ID, "no preview is there to be asked");
    };
    let Some((https, name, port, path)) = parts(&url) else {
        return Finding::skipped(ID, format!("{url} is no address of HTTP"));
    };
    let answer = if wish.proxy_network.is_none() || name == "127.0.0.1" {
        match limited("ask the preview", LOOK, host.dial(&name, port.unwrap_or(80))).await {
            Ok(stream) => look::get(stream, &name, &path).await.map(|(status, _)| status),
            Err(fault) => Err(vm::without_operation(&fault)),
        }
    } else {
        look::answer(https, &name, port, &path).await
    };
    way_in::answer(&state.name, &url, answer.as_ref().map(|status| *status).map_err(String::as_str))
}

/// Scheme, host, port and path of an address that we wrote ourselves.
pub(super) fn parts(url: &str) -> Option<(bool, String, Option<u16>, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let https = match scheme {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (authority, None),
    };
    Some((https, host.to_owned(), port, path.to_owned()))
}
