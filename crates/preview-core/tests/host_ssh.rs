//! A VM as a host, through a real `sshd`: one of this machine, unprivileged, on a random port of the loopback.
//!
//! Where `sshd` is missing the tests say so and pass, unless `PREVIEW_LAB=1` promises that it is there.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use preview_core::fault::{Fault, FaultKind};
use preview_core::host::ssh::{self, Destination, KnownHosts, SshOptions};
use preview_core::host::{Change, Entry, Host, Query};
use preview_core::lock::shell::{ShellLock, Timing};
use preview_core::lock::{Acquired, Holder, Lease, Lock};
use preview_core::secret::Secret;
use preview_core::testkit::conformance;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An `sshd` with keys of its own; ends with all its sessions when dropped.
struct Sshd {
    dir: tempfile::TempDir,
    port: u16,
    daemon: Child,
}

const SSHD: &str = "/usr/sbin/sshd";

fn keygen(path: &Path) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status();
    assert!(made.expect("ssh-keygen").success());
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    listener.local_addr().expect("has one").port()
}

impl Sshd {
    fn start() -> Option<Self> {
        if !Path::new(SSHD).exists() {
            assert_ne!(std::env::var("PREVIEW_LAB").as_deref(), Ok("1"), "PREVIEW_LAB=1, and no {SSHD}");
            eprintln!("not tested: no {SSHD} on this machine (the package openssh-server has it)");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["host", "user", "other"] {
            keygen(&dir.path().join(name));
        }
        // As root it insists on this directory.
        let _ = std::fs::create_dir_all("/run/sshd");
        let (port, path) = (free_port(), dir.path().display().to_string());
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {path}/host\nAuthorizedKeysFile {path}/user.pub\nUsePAM no\n\
             StrictModes no\nPidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             AllowStreamLocalForwarding yes\nAllowTcpForwarding yes\nMaxStartups 100\nMaxSessions 40\n"
        );
        std::fs::write(dir.path().join("config"), config).expect("writes");
        let log = std::fs::File::create(dir.path().join("log")).expect("makes a file");
        let daemon = Command::new(SSHD)
            .args(["-D", "-e", "-f"])
            .arg(dir.path().join("config"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("sshd");
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "sshd does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { dir, port, daemon })
    }

    fn known_hosts(&self, key: &str) -> KnownHosts {
        let key = std::fs::read_to_string(self.dir.path().join(key).with_extension("pub")).expect("reads");
        KnownHosts::Lines(format!("[127.0.0.1]:{} {key}", self.port))
    }

    fn options(&self) -> SshOptions {
        let mut options =
            SshOptions::new(Destination::parse(&format!("ssh://127.0.0.1:{}", self.port)).expect("sound"));
        options.known_hosts = self.known_hosts("host");
        options.identity_file = Some(self.dir.path().join("user"));
        options
    }

    async fn connect(&self) -> Arc<ssh::SshHost> {
        ssh::connect(self.options()).await.unwrap_or_else(|fault| panic!("{}", fault.chain()))
    }

    /// Cuts all connections, as a router that restarts; the daemon goes on.
    fn cut(&self) {
        for child in children(self.daemon.id()) {
            kill("KILL", child);
            // With privilege separation the session's end is a process below.
            children(child).into_iter().for_each(|grandchild| kill("KILL", grandchild));
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.cut();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn kill(signal: &str, pid: u32) {
    let _ = Command::new("kill").args(["-s", signal, &pid.to_string()]).stderr(Stdio::null()).status();
}

fn processes() -> impl Iterator<Item = (u32, Vec<String>)> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    entries.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        Some((pid, stat.rsplit(") ").next()?.split(' ').map(str::to_owned).collect()))
    })
}

fn children(parent: u32) -> Vec<u32> {
    processes().filter(|(_, stat)| stat[1] == parent.to_string()).map(|(pid, _)| pid).collect()
}

/// Running, and not merely unburied.
fn alive(pid: u32) -> bool {
    processes().any(|(other, stat)| other == pid && stat[0] != "Z")
}

fn holder(who: &str) -> Holder {
    Holder { who: who.into(), why: "test".into(), since: "now".into() }
}

async fn take(lock: &dyn Lock, path: &str, who: &str, wait: Duration) -> Box<dyn Lease> {
    match lock.acquire(path, &holder(who), wait, &|_| ()).await.unwrap_or_else(|fault| panic!("{}", fault.chain())) {
        Acquired::Held(lease) => lease,
        Acquired::TimedOut(by) => panic!("held by {by:?}"),
    }
}

async fn refused(options: SshOptions) -> Fault {
    let fault = ssh::connect(options).await.err().expect("a failure");
    eprintln!("{}", fault.chain());
    fault
}

#[tokio::test]
async fn keeps_the_contract_of_hosts() {
    let Some(sshd) = Sshd::start() else { return };
    let host = sshd.connect().await;
    let dir = tempfile::tempdir().expect("a directory");
    conformance::host::suite(&*host, &format!("{}/ba se", dir.path().display())).await;
    let run = host.guardian().run_dir().to_owned();
    host.close().await.expect("closes");
    host.close().await.expect("closes again");
    assert!(!run.exists());
    let after = host.survey("/tmp", &Query::default()).await.expect_err("closed");
    assert_eq!((after.kind, after.transient), (FaultKind::Unreachable, false));
}

#[tokio::test]
async fn keeps_the_contract_of_locks() {
    let Some(sshd) = Sshd::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let lock = ShellLock::new(sshd.connect().await);
    conformance::lock::suite(&lock, &format!("{}/lo cks", dir.path().display())).await;
}

#[tokio::test]
async fn an_unknown_host_key_is_refused_with_advice() {
    let Some(sshd) = Sshd::start() else { return };
    let mut options = sshd.options();
    options.known_hosts = KnownHosts::Lines(
        "vm.example.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEhM9mDeSVh8/I2Ri0tKVkN9J2iQ8UqQJ+Xk5wkKbgk0".into(),
    );
    let fault = refused(options).await;
    assert_eq!((fault.kind, fault.transient), (FaultKind::HostKey, false));
    assert!(fault.context.contains(&format!("ssh-keyscan -p {} 127.0.0.1", sshd.port)), "{fault}");
    assert!(fault.context.contains("PREVIEW_KNOWN_HOSTS"), "{fault}");
}

#[tokio::test]
async fn a_changed_host_key_is_refused() {
    let Some(sshd) = Sshd::start() else { return };
    let mut options = sshd.options();
    options.known_hosts = sshd.known_hosts("other");
    let fault = refused(options).await;
    assert_eq!((fault.kind, fault.transient), (FaultKind::HostKey, false));
    assert!(fault.context.contains("another host key"), "{fault}");
}

#[tokio::test]
async fn a_wrong_user_key_is_denied() {
    let Some(sshd) = Sshd::start() else { return };
    let mut options = sshd.options();
    options.identity_file = Some(sshd.dir.path().join("other"));
    let fault = refused(options).await;
    assert_eq!((fault.kind, fault.transient), (FaultKind::Denied, false));
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_unreachable() {
    if Sshd::start().is_none() {
        return;
    }
    let destination = Destination::parse(&format!("ssh://127.0.0.1:{}", free_port())).expect("sound");
    let fault = refused(SshOptions::new(destination)).await;
    assert_eq!((fault.kind, fault.transient), (FaultKind::Unreachable, true));
}

/// Many that knock at once are dropped many times before their turn comes: by `MaxStartups`, more often than other failures are tried again.
#[tokio::test]
async fn who_is_turned_away_comes_back_until_it_is_let_in() {
    let Some(sshd) = Sshd::start() else { return };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let (port, door) = (listener.local_addr().expect("has one").port(), sshd.port);
    let doorman = tokio::spawn(async move {
        let mut dropped = 0;
        loop {
            let (mut outside, _) = listener.accept().await.expect("accepts");
            if dropped < 7 {
                dropped += 1;
                continue;
            }
            tokio::spawn(async move {
                let mut inside = tokio::net::TcpStream::connect(("127.0.0.1", door)).await.expect("connects");
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    let mut options = sshd.options();
    options.destination = Destination::parse(&format!("ssh://127.0.0.1:{port}")).expect("sound");
    let KnownHosts::Lines(lines) = sshd.known_hosts("host") else { panic!("lines") };
    options.known_hosts = KnownHosts::Lines(lines.replace(&format!(":{door} "), &format!(":{port} ")));
    let host = ssh::connect(options).await.unwrap_or_else(|fault| panic!("{}", fault.chain()));
    host.close().await.expect("closes");
    doorman.abort();
}

#[tokio::test]
async fn a_server_that_says_nothing_is_unreachable_in_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("has one").port();
    let mut options = SshOptions::new(Destination::parse(&format!("ssh://127.0.0.1:{port}")).expect("sound"));
    options.connect_timeout = Duration::from_secs(1);
    let begun = Instant::now();
    let fault = refused(options).await;
    assert_eq!((fault.kind, fault.transient), (FaultKind::Unreachable, true));
    // It may be a crowd at the door, which is given six times as long; and a try and a pause more.
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_key_that_is_handed_over_is_used_and_not_kept() {
    let Some(sshd) = Sshd::start() else { return };
    let mut options = sshd.options();
    options.identity_file = None;
    // As a variable of CI often has it.
    let key = std::fs::read_to_string(sshd.dir.path().join("user")).expect("reads").trim().replace('\n', "\r\n");
    options.identity_key = Some(Secret::new(key));
    let host = ssh::connect(options).await.unwrap_or_else(|fault| panic!("{}", fault.chain()));
    assert!(!host.guardian().run_dir().join("key").exists());
}

#[tokio::test]
async fn sockets_and_addresses_of_the_host_are_reached() {
    let Some(sshd) = Sshd::start() else { return };
    let host = sshd.connect().await;
    let path = sshd.dir.path().join("echo.sock");
    let unix = tokio::net::UnixListener::bind(&path).expect("binds");
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = tcp.local_addr().expect("has one").port();
    tokio::spawn(async move {
        loop {
            let mut stream: Box<dyn preview_core::host::Stream> = tokio::select! {
                accepted = unix.accept() => Box::new(accepted.expect("accepts").0),
                accepted = tcp.accept() => Box::new(accepted.expect("accepts").0),
            };
            tokio::spawn(async move {
                let mut word = [0u8; 4];
                stream.read_exact(&mut word).await.expect("reads");
                stream.write_all(&word).await.expect("writes");
            });
        }
    });
    let local = host.socket(path.to_str().expect("text")).await.expect("forwards");
    assert_eq!(host.socket(path.to_str().expect("text")).await.expect("forwards"), local, "one forward a socket");
    for round in 0..3 {
        let mut streams: Vec<Box<dyn preview_core::host::Stream>> = vec![
            Box::new(tokio::net::UnixStream::connect(&local).await.expect("connects")),
            host.dial("127.0.0.1", port).await.expect("connects"),
        ];
        for stream in &mut streams {
            stream.write_all(b"ping").await.expect("writes");
            let mut word = [0u8; 4];
            stream.read_exact(&mut word).await.expect("reads");
            assert_eq!(&word, b"ping", "{round}");
        }
    }
    let mut nobody = host.dial("127.0.0.1", free_port()).await.expect("the refusal comes later");
    assert_eq!(nobody.read(&mut [0u8; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_cut_connection_is_told_and_frees_the_lock() {
    let Some(sshd) = Sshd::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(".lock").display().to_string();
    let base = dir.path().display().to_string();
    let host = sshd.connect().await;
    let lease = take(&ShellLock::new(host.clone()), &path, "ada", Duration::ZERO).await;
    host.survey(&base, &Query::default()).await.expect("answers");
    sshd.cut();
    tokio::time::timeout(Duration::from_secs(5), lease.lost()).await.expect("finds out at once");
    assert_eq!(lease.check().expect_err("lost").kind, FaultKind::LeaseLost);
    let fault = host.survey(&base, &Query::default()).await.expect_err("cut");
    eprintln!("{}", fault.chain());
    assert_eq!((fault.kind, fault.transient), (FaultKind::Unreachable, false));
    let upload = host.upload(&format!("{base}/x"), &[Entry { source: None, target: "d".into() }]).await;
    assert_eq!(upload.expect_err("cut").kind, FaultKind::Unreachable);
    assert_eq!(host.socket("/x").await.expect_err("cut").kind, FaultKind::Unreachable);

    let other = sshd.connect().await;
    let lease = take(&ShellLock::new(other.clone()), &path, "bob", Duration::from_secs(5)).await;
    lease.release(true).await.expect("releases");
    other.close().await.expect("closes");
    host.close().await.expect("closes");
}

#[tokio::test]
async fn content_is_in_no_list_of_processes() {
    let Some(sshd) = Sshd::start() else { return };
    let host = sshd.connect().await;
    let dir = tempfile::tempdir().expect("a directory");
    let secret = "hunter22-".repeat(60_000);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let watcher = std::thread::spawn(move || {
        while stopped.try_recv().is_err() {
            for (pid, _) in processes() {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).into_owned();
                assert!(!line.contains("hunter22") && !line.contains("aHVudGVyMjI"), "{line}");
            }
        }
    });
    for round in 0..10 {
        let path = dir.path().join(format!("{round}")).display().to_string();
        let content = Secret::new(secret.clone().into_bytes());
        host.apply(&[Change::Write { path, content, mode: 0o600 }]).await.expect("writes");
    }
    let _ = stop.send(());
    watcher.join().expect("saw nothing");
}

/// The victim of the two tests below is this very program, started again with this variable.
const VICTIM: &str = "PREVIEW_TEST_VICTIM";

fn timing() -> Timing {
    Timing { heartbeat: Duration::from_millis(300), ttl: Duration::from_secs(6), grace: Duration::from_secs(5) }
}

/// What a test that starts it again does there: connects, takes the lock, starts a long child, says so, and waits for words.
#[tokio::test]
async fn victim() {
    let Ok(setting) = std::env::var(VICTIM) else { return };
    let mut words = setting.split('|');
    let mut next = || words.next().expect("a word").to_owned();
    let (port, dir, path) = (next(), next(), next());
    let mut options = SshOptions::new(Destination::parse(&format!("ssh://127.0.0.1:{port}")).expect("sound"));
    let key = std::fs::read_to_string(format!("{dir}/host.pub")).expect("reads");
    options.known_hosts = KnownHosts::Lines(format!("[127.0.0.1]:{port} {key}"));
    options.identity_file = Some(format!("{dir}/user").into());
    let host = ssh::connect(options).await.unwrap_or_else(|fault| panic!("{}", fault.chain()));
    host.socket("/var/run/docker.sock").await.expect("forwards");
    let mut child =
        tokio::process::Command::new("sleep").arg("600").process_group(0).kill_on_drop(true).spawn().expect("sleep");
    let _ward = host.guardian().watch(child.id().expect("runs"));
    let lease = take(&ShellLock::with_timing(host.clone(), timing()), &path, "victim", Duration::from_secs(20)).await;
    println!("\nREADY {} {}", child.id().expect("runs"), host.guardian().run_dir().display());
    std::io::stdout().flush().expect("flushes");
    // One line asks for a check; the end of the input is the end.
    let lines = tokio::task::spawn_blocking(|| std::io::stdin().lines().next());
    if lines.await.expect("reads").is_some() {
        println!("\nCHECK {}", if lease.check().is_ok() { "held" } else { "lost" });
        std::io::stdout().flush().expect("flushes");
    }
    child.kill().await.expect("kills");
    host.close().await.expect("closes");
}

struct Victim {
    process: Child,
    output: BufReader<std::process::ChildStdout>,
    sleeper: u32,
    run_dir: String,
}

impl Victim {
    fn start(sshd: &Sshd, path: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
            .env(VICTIM, format!("{}|{}|{path}", sshd.port, sshd.dir.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut output = BufReader::new(process.stdout.take().expect("piped"));
        let ready = line_with(&mut output, "READY ");
        let (sleeper, run_dir) = ready.split_once(' ').expect("two words");
        let (sleeper, run_dir) = (sleeper.parse().expect("a number"), run_dir.to_owned());
        Self { process, output, sleeper, run_dir }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn line_with(output: &mut impl BufRead, word: &str) -> String {
    let lines = output.lines().map(|line| line.expect("text"));
    lines.into_iter().find_map(|line| line.strip_prefix(word).map(str::to_owned)).expect("the line")
}

#[tokio::test]
async fn nothing_is_left_of_a_process_that_is_killed() {
    let Some(sshd) = Sshd::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(".lock").display().to_string();
    let mut victim = Victim::start(&sshd, &path);
    let family: Vec<u32> = children(victim.process.id());
    assert!(family.len() >= 3, "the connection, the guardian, the child: {family:?}");
    assert!(alive(victim.sleeper) && Path::new(&victim.run_dir).exists());
    let host = sshd.connect().await;
    let lock = ShellLock::with_timing(host, timing());
    assert_eq!(lock.holder(&path).await.expect("answers"), Some(holder("victim")));

    victim.process.kill().expect("kills");
    let begun = Instant::now();
    take(&lock, &path, "bob", Duration::from_secs(20)).await.release(true).await.expect("releases");
    assert!(begun.elapsed() < timing().ttl, "the lock is free because its holder is dead, not because it is silent");
    victim.process.wait().expect("ends");
    while family.iter().any(|pid| alive(*pid)) || Path::new(&victim.run_dir).exists() {
        assert!(begun.elapsed() < Duration::from_secs(10), "left: {family:?} {}", victim.run_dir);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eprintln!("all gone after {:?}", begun.elapsed());
    // Nor does anything go on at the other end.
    let mut rest = String::new();
    let _ = victim.output.read_to_string(&mut rest);
}

#[tokio::test]
async fn a_process_that_was_stopped_too_long_knows_that_it_lost_the_lock() {
    let Some(sshd) = Sshd::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(".lock").display().to_string();
    let mut victim = Victim::start(&sshd, &path);
    let begun = Instant::now();
    kill("STOP", victim.process.id());
    let lock = ShellLock::with_timing(sshd.connect().await, timing());
    let lease = take(&lock, &path, "bob", Duration::from_secs(20)).await;
    assert!(begun.elapsed() > timing().ttl - Duration::from_secs(1), "it had the lock for its time to live");
    // The word is there when it wakes up: the check comes before any timer or answer could tell it.
    victim.process.stdin.as_mut().expect("piped").write_all(b"check\n").expect("writes");
    kill("CONT", victim.process.id());
    assert_eq!(line_with(&mut victim.output, "CHECK "), "lost");
    lease.check().expect("held");
    lease.release(true).await.expect("releases");
}

#[tokio::test]
async fn a_short_stop_costs_nothing() {
    let Some(sshd) = Sshd::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(".lock").display().to_string();
    let mut victim = Victim::start(&sshd, &path);
    kill("STOP", victim.process.id());
    tokio::time::sleep(Duration::from_millis(800)).await;
    kill("CONT", victim.process.id());
    tokio::time::sleep(Duration::from_secs(1)).await;
    victim.process.stdin.as_mut().expect("piped").write_all(b"check\n").expect("writes");
    assert_eq!(line_with(&mut victim.output, "CHECK "), "held");
}
