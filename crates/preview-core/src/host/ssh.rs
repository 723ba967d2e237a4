//! A VM as a host: one `ssh` process, everything else goes through it.
//!
//! The master runs in the foreground as our child, in a process group of its own, watched by the [`Guardian`]: it ends with
//! us whatever happens to us, and Ctrl-C does not cut the connection that the undo needs. Programs and forwards go
//! through its control socket ([`openssh`], native mux).
//!
//! Options stand on the command line, where they win over `~/.ssh/config` and are not handed on to a jump host, which is
//! checked against the user's own files.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use openssh::{ForwardType, Session, Socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

pub use super::destination::Destination;
use super::guardian::{Guardian, Ward};
use super::shell::{Process, ShellHost, Transport, default_shell};
use super::{Stream, private_key, script, ssh_errors};
use crate::fault::{Fault, FaultKind};
use crate::secret::Secret;

const CONNECT: &str = "connect to the VM";

/// The keys that a VM may show. It is never trusted on first sight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KnownHosts {
    /// Lines of a `known_hosts` file; nothing else counts.
    Lines(String),
    /// This file; nothing else counts.
    File(PathBuf),
    /// The user's own and the machine's files, as `ssh` uses them.
    UserDefault,
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct SshOptions {
    /// Where to.
    pub destination: Destination,
    /// The private key's file; `None` leaves it to the agent and `~/.ssh/config`.
    pub identity_file: Option<PathBuf>,
    /// The private key itself (CI has it in a variable); written to the run's private directory while the connection is made.
    pub identity_key: Option<Secret<String>>,
    /// Which host keys are right.
    pub known_hosts: KnownHosts,
    /// For the TCP connection and the greeting; the whole of it may take six times as long: keys cost a busy VM its time.
    pub connect_timeout: Duration,
}

impl SshOptions {
    /// The user's own keys and known hosts, 20 seconds.
    #[must_use]
    pub fn new(destination: Destination) -> Self {
        Self {
            destination,
            identity_file: None,
            identity_key: None,
            known_hosts: KnownHosts::UserDefault,
            connect_timeout: Duration::from_secs(20),
        }
    }
}

/// Programs of a VM, through its connection.
pub struct Ssh {
    destination: Destination,
    session: Arc<Session>,
    master: tokio::sync::Mutex<Option<Child>>,
    /// What the master complained about, its last few kilobytes.
    complaints: Arc<Mutex<String>>,
    run_dir: PathBuf,
    /// Local sockets by what they lead to.
    forwards: tokio::sync::Mutex<HashMap<String, PathBuf>>,
    ward: Mutex<Option<Ward>>,
}

/// A VM as a host.
pub type SshHost = ShellHost<Ssh>;

/// So often at most is connected, where trying again can help: over 5 to 9 seconds. More than for other failures, since
/// nothing was done yet, and an `sshd` with the usual `MaxStartups 10:30:100` turns away some of twenty, each time.
const TRIES: u32 = 5;

/// So many times `connect_timeout`, two minutes by default, is tried where an `sshd` is there, and has too many at its door: a hundred that knock at
/// once on a busy VM need more time than [`TRIES`] have, and each that gave up would be a job to start again by hand.
const PATIENCE: u32 = 6;
/// The longest pause between two tries, and as much again by chance.
const PAUSE: Duration = Duration::from_millis(2400);

/// A try that failed.
struct Failed {
    fault: Fault,
    /// At an `sshd` that had too many at its door.
    crowded: bool,
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self { fault, crowded: false }
    }
}

/// Connects. Starts the [`Guardian`] of this run, and the shell that stays; call inside a tokio runtime.
///
/// # Errors
/// `HostKey`, with the steps to a pinned key; `Denied`; `Unreachable` (transient where trying again can help);
/// `Unsupported` if `ssh` is missing; `Invalid` if an option cannot be used.
pub async fn connect(options: SshOptions) -> Result<Arc<SshHost>, Fault> {
    let mut tries = 1;
    let quick = options.connect_timeout.min(Duration::from_secs(5));
    let (first, patience) = (Instant::now(), options.connect_timeout.saturating_mul(PATIENCE));
    loop {
        let begun = Instant::now();
        match connect_once(&options).await {
            Ok(host) => return Ok(host),
            // `sshd` drops some of many that knock at once, and is back soon after a restart. What took long is not repeated, unless
            // it was for the crowd.
            Err(Failed { fault, crowded })
                if (crowded && first.elapsed() < patience)
                    || (fault.transient && tries < TRIES && begun.elapsed() < quick) =>
            {
                tracing::debug!(error = fault.chain(), "connecting again");
                let mut byte = [0];
                let _ = getrandom::fill(&mut byte);
                // Those who were dropped together should not come back together.
                let pause = (Duration::from_millis(300) * 2u32.pow((tries - 1).min(TRIES))).min(PAUSE);
                tokio::time::sleep(pause + pause * u32::from(byte[0]) / 255).await;
                tries += 1;
            }
            Err(Failed { fault, .. }) => return Err(fault),
        }
    }
}

async fn connect_once(options: &SshOptions) -> Result<Arc<SshHost>, Failed> {
    let guardian = Guardian::start()?;
    match connect_guarded(options, &guardian).await {
        Ok(ssh) => Ok(ShellHost::start(ssh, guardian, default_shell())),
        Err(failed) => {
            guardian.finish().await;
            Err(failed)
        }
    }
}

async fn connect_guarded(options: &SshOptions, guardian: &Guardian) -> Result<Ssh, Failed> {
    let run_dir = guardian.run_dir().to_owned();
    let control = run_dir.join("ssh");
    let mut options = options.clone();
    there(&options).await?;
    if let KnownHosts::Lines(lines) = &options.known_hosts {
        let file = run_dir.join("known_hosts");
        write_private(&file, &format!("{}\n", lines.trim())).await?;
        options.known_hosts = KnownHosts::File(file);
    }
    let key_file = run_dir.join("key");
    let file = options.identity_file.clone();
    let of_file = async { Some(Secret::new(tokio::fs::read_to_string(file?).await.ok()?)) };
    let key = match options.identity_key.take() {
        Some(key) => Some((key, true)),
        None => of_file.await.map(|key| (key, false)),
    };
    let has_passphrase = key.as_ref().is_some_and(|(key, _)| private_key::has_passphrase(key.expose()));
    if let Some((key, variable)) = key {
        let text = private_key::tidy(key.expose());
        // A file that ssh can read stays where it is: an agent may know it.
        if variable || (text != *key.expose() && private_key::is_private(&text)) {
            write_private(&key_file, &text).await?;
            options.identity_file = Some(key_file.clone());
        }
    }

    let begun = Instant::now();
    let mut child = Command::new("ssh")
        .args(arguments(&options, &control)?)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Fault::new(FaultKind::Unsupported, CONNECT, "ssh cannot be started").caused_by(error))?;
    let ward = child.id().map(|pgid| guardian.watch(pgid));
    let complaints = Arc::new(Mutex::new(String::new()));
    let reader = child.stderr.take().map(|stderr| tokio::spawn(collect(stderr, Arc::clone(&complaints))));

    let ready =
        tokio::time::timeout(options.connect_timeout.saturating_mul(PATIENCE), ready(&mut child, &control)).await;
    if options.identity_file.as_deref() == Some(&key_file) {
        let _ = tokio::fs::remove_file(&key_file).await;
    }
    match ready {
        Ok(Ok(true)) => tracing::debug!(took = ?begun.elapsed(), "connected"),
        Ok(Ok(false)) => {
            // It ended: its last words may still be on the way.
            if let Some(reader) = reader {
                let _ = tokio::time::timeout(Duration::from_secs(1), reader).await;
            }
            let text = complaints.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut fault = ssh_errors::classify(&text, &options.destination);
            if has_passphrase && fault.kind == FaultKind::Denied {
                fault.context = format!("{}: {}", options.destination, private_key::WITH_PASSPHRASE);
            }
            return Err(Failed { crowded: fault.transient && ssh_errors::crowded(&text), fault });
        }
        Ok(Err(error)) => return Err(Fault::new(FaultKind::Failed, CONNECT, "").caused_by(error).into()),
        Err(_) => {
            let limit = options.connect_timeout.saturating_mul(PATIENCE).as_secs();
            let context = format!("{} did not let us in within {limit} s", options.destination);
            return Err(Fault::new(FaultKind::Unreachable, CONNECT, context).transient().into());
        }
    }
    Ok(Ssh {
        destination: options.destination,
        session: Arc::new(Session::resume_mux(control.into_boxed_path(), None)),
        master: tokio::sync::Mutex::new(Some(child)),
        complaints,
        run_dir,
        forwards: tokio::sync::Mutex::default(),
        ward: Mutex::new(ward),
    })
}

/// `ssh` takes a file that is missing for an empty one, and then knows no key.
async fn there(options: &SshOptions) -> Result<(), Fault> {
    let known_hosts = match &options.known_hosts {
        KnownHosts::File(file) => Some(file),
        KnownHosts::Lines(_) | KnownHosts::UserDefault => None,
    };
    for (file, what) in [(known_hosts, "the host's keys"), (options.identity_file.as_ref(), "the private key")] {
        let Some(file) = file else { continue };
        if !tokio::fs::try_exists(file).await.unwrap_or(false) {
            let context = format!("the file with {what} is not there: {}", file.display());
            return Err(Fault::new(FaultKind::Invalid, CONNECT, context));
        }
    }
    Ok(())
}

/// True once the control socket is there, which is after authentication; false if the master ended.
async fn ready(child: &mut Child, control: &Path) -> std::io::Result<bool> {
    loop {
        // The socket appears under its name when it already listens.
        if tokio::fs::try_exists(control).await? {
            return Ok(true);
        }
        if child.try_wait()?.is_some() {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The words after `ssh`.
fn arguments(options: &SshOptions, control: &Path) -> Result<Vec<OsString>, Fault> {
    let mut words: Vec<OsString> = ["-M", "-N", "-T", "-a", "-x", "-S"].map(OsString::from).into();
    words.push(token_free(control)?.into());
    let mut option = |text: String| words.extend(["-o".into(), OsString::from(text)]);
    for fixed in [
        "ControlPersist=no",
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "UpdateHostKeys=no",
        "VerifyHostKeyDNS=no",
        "ServerAliveInterval=5",
        "ServerAliveCountMax=4",
        "TCPKeepAlive=yes",
        "ClearAllForwardings=yes",
        "PermitLocalCommand=no",
        "AddKeysToAgent=no",
        "RemoteCommand=none",
        "Tunnel=no",
        "LogLevel=INFO",
    ] {
        option(fixed.to_owned());
    }
    option(format!("ConnectTimeout={}", options.connect_timeout.as_secs().max(1)));
    if let KnownHosts::File(file) = &options.known_hosts {
        option(format!("UserKnownHostsFile=\"{}\"", token_free(file)?));
        option("GlobalKnownHostsFile=/dev/null".to_owned());
        option("KnownHostsCommand=none".to_owned());
    }
    if let Some(file) = &options.identity_file {
        option("IdentitiesOnly=yes".to_owned());
        option(format!("IdentityFile=\"{}\"", token_free(file)?));
    }
    let Destination { user, host, port } = &options.destination;
    if let Some(port) = port {
        words.extend(["-p".into(), port.to_string().into()]);
    }
    if let Some(user) = user {
        words.extend(["-l".into(), user.into()]);
    }
    words.extend(["--".into(), host.into()]);
    Ok(words)
}

/// A path as `ssh` reads it in an option: `%` doubled; what else it would expand or take for the end of a word is refused.
fn token_free(path: &Path) -> Result<String, Fault> {
    let text = path.to_str().filter(|text| !text.contains(['"', '\\', '\n', '$']) && !text.starts_with('~'));
    let text = text.ok_or_else(|| {
        Fault::new(FaultKind::Invalid, CONNECT, format!("ssh cannot be given this path: {}", path.display()))
    })?;
    Ok(text.replace('%', "%%"))
}

async fn write_private(path: &Path, content: &str) -> Result<(), Fault> {
    let failed = |error: std::io::Error| {
        Fault::new(FaultKind::Failed, "write a file of this run", path.display().to_string()).caused_by(error)
    };
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path).await.map_err(failed)?;
    file.write_all(content.as_bytes()).await.map_err(failed)?;
    file.flush().await.map_err(failed)
}

/// Keeps the end of what the master says: it explains why a connection was lost.
async fn collect(mut stderr: tokio::process::ChildStderr, into: Arc<Mutex<String>>) {
    const KEEP: usize = 8192;
    let mut buffer = [0u8; 1024];
    while let Ok(size @ 1..) = stderr.read(&mut buffer).await {
        let mut text = into.lock().unwrap_or_else(PoisonError::into_inner);
        text.push_str(&String::from_utf8_lossy(&buffer[..size]));
        if text.len() > 2 * KEEP {
            let from = text.ceil_char_boundary(text.len() - KEEP);
            text.drain(..from);
        }
    }
}

impl Ssh {
    async fn forward(&self, key: String, target: Socket<'_>) -> Result<PathBuf, Fault> {
        let mut forwards = self.forwards.lock().await;
        if let Some(path) = forwards.get(&key) {
            return Ok(path.clone());
        }
        let path = self.run_dir.join(format!("s{}", forwards.len()));
        let asked = self.session.request_port_forward(ForwardType::Local, path.as_path(), target).await;
        if let Err(error) = asked {
            return Err(self.broken("forward a socket").await.caused_by(error));
        }
        forwards.insert(key, path.clone());
        Ok(path)
    }
}

#[async_trait]
impl Transport for Ssh {
    fn describe(&self) -> String {
        self.destination.to_string()
    }

    async fn spawn(&self, argv: &[OsString]) -> Result<Process, Fault> {
        const OPERATION: &str = "run a program on the VM";
        // `exec`: one process less between sshd and the program. The words are quoted for the user's login shell.
        let mut line = "exec".to_owned();
        for word in argv {
            let word = word.to_str().filter(|word| !word.contains('\0'));
            let word = word.ok_or_else(|| Fault::new(FaultKind::Invalid, OPERATION, "a word that is not text"))?;
            let _ = write!(line, " {}", script::quote(word));
        }
        let mut command = Arc::clone(&self.session).arc_raw_command(line);
        command.stdin(openssh::Stdio::piped()).stdout(openssh::Stdio::piped()).stderr(openssh::Stdio::piped());
        let mut child = match command.spawn().await {
            Ok(child) => child,
            Err(error) => return Err(self.broken(OPERATION).await.caused_by(error)),
        };
        let ends = (child.stdin().take(), child.stdout().take(), child.stderr().take());
        let (Some(stdin), Some(stdout), Some(stderr)) = ends else {
            return Err(Fault::new(FaultKind::Failed, OPERATION, "its input and output are missing"));
        };
        let wait = Box::pin(async move {
            match child.wait().await {
                Ok(status) => Ok(status.code().unwrap_or(-1)),
                // How openssh reports exit status 127.
                Err(openssh::Error::Remote(_)) => Ok(127),
                Err(error) => Err(Fault::new(FaultKind::Unreachable, OPERATION, "").caused_by(error)),
            }
        });
        Ok(Process { stdin: Box::new(stdin), stdout: Box::new(stdout), stderr: Box::new(stderr), wait })
    }

    async fn socket(&self, path: &str) -> Result<PathBuf, Fault> {
        self.forward(path.to_owned(), Socket::from(Path::new(path))).await
    }

    async fn dial(&self, address: &str, port: u16) -> Result<Box<dyn Stream>, Fault> {
        let key = format!("{address}:{port}");
        let path = self.forward(key.clone(), Socket::new(address, port)).await?;
        match tokio::net::UnixStream::connect(&path).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(self.broken("connect through the VM").await.caused_by(error)),
        }
    }

    async fn broken(&self, operation: &'static str) -> Fault {
        // The end of a channel may be seen before the end of the process that carried it.
        for _ in 0..20 {
            let ended = match self.master.lock().await.as_mut() {
                Some(child) => !matches!(child.try_wait(), Ok(None)),
                None => {
                    let context = format!("the connection to {} was closed", self.destination);
                    return Fault::new(FaultKind::Unreachable, operation, context);
                }
            };
            if ended {
                let said = ssh_errors::essence(&self.complaints.lock().unwrap_or_else(PoisonError::into_inner));
                let context = format!("the connection to {} was lost: {said}", self.destination);
                return Fault::new(FaultKind::Unreachable, operation, context);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let context = format!("{} broke off the conversation", self.destination);
        Fault::new(FaultKind::Unreachable, operation, context).transient()
    }

    fn refuses_sockets(&self) -> bool {
        let complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        ssh_errors::refuses_forwards(&complaints)
    }

    async fn close(&self) -> Result<(), Fault> {
        if let Some(mut child) = self.master.lock().await.take() {
            // Its sockets are removed with the run's directory; the VM sees the connection end.
            let _ = child.kill().await;
        }
        drop(self.ward.lock().unwrap_or_else(PoisonError::into_inner).take());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line() {
        let mut options = SshOptions::new(Destination::parse("ssh://deploy@[::1]:2222").expect("sound"));
        options.known_hosts = KnownHosts::File("/run/known hosts%1".into());
        options.identity_file = Some("/keys/id".into());
        let words = arguments(&options, Path::new("/run/p/ssh")).expect("sound");
        let line: Vec<&str> = words.iter().map(|word| word.to_str().expect("text")).collect();
        assert_eq!(line[..7], ["-M", "-N", "-T", "-a", "-x", "-S", "/run/p/ssh"]);
        assert_eq!(line[line.len() - 6..], ["-p", "2222", "-l", "deploy", "--", "::1"]);
        for expected in [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "UserKnownHostsFile=\"/run/known hosts%%1\"",
            "GlobalKnownHostsFile=/dev/null",
            "KnownHostsCommand=none",
            "IdentitiesOnly=yes",
            "IdentityFile=\"/keys/id\"",
            "ConnectTimeout=20",
        ] {
            assert!(line.contains(&expected), "{expected}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_missing_is_named() {
        let destination = Destination::parse("ssh://deploy@192.0.2.1").expect("sound");
        let known_hosts = KnownHosts::File("/no/such/known_hosts".into());
        let keys = SshOptions { known_hosts, ..SshOptions::new(destination.clone()) };
        let identity = SshOptions { identity_file: Some("/no/such/id".into()), ..SshOptions::new(destination) };
        for (options, expected) in [
            (keys, "the file with the host's keys is not there: /no/such/known_hosts"),
            (identity, "the file with the private key is not there: /no/such/id"),
        ] {
            let fault = connect(options).await.err().expect("a fault");
            assert_eq!((fault.kind, fault.context.as_str()), (FaultKind::Invalid, expected));
        }
    }

    #[test]
    fn without_keys_of_ours_the_users_files_count() {
        let options = SshOptions::new(Destination::parse("ssh://vm").expect("sound"));
        let words = arguments(&options, Path::new("/run/p/ssh")).expect("sound");
        let text = words.join(std::ffi::OsStr::new(" ")).into_string().expect("text");
        assert!(text.ends_with(" -- vm") && text.contains("StrictHostKeyChecking=yes"));
        for absent in ["KnownHostsFile", "Identit", " -p ", " -l "] {
            assert!(!text.contains(absent), "{absent}");
        }
    }

    #[test]
    fn paths_that_ssh_would_expand_are_refused() {
        for path in ["/a\"b", "/a$b", "~/x", "/a\\b"] {
            assert_eq!(token_free(Path::new(path)).expect_err(path).kind, FaultKind::Invalid);
        }
    }
}
