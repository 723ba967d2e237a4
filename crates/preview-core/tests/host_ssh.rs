//! A host behind a real `sshd`: one of this machine, unprivileged, on a random port of the loopback.
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use preview_core::host::{Host, Query, Change, Entry, ssh};
use preview_core::lock::{Lock, Acquired, Holder, shell::ShellLock};
use preview_core::secret::Secret;

struct Sshd { dir: tempfile::TempDir, port: u16, child: Child }
impl Sshd {
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all("/run/sshd").unwrap();
        for name in ["host", "user"] {
            assert!(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.path().join(name)).status().unwrap().success());
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let d = dir.path().display();
        std::fs::write(dir.path().join("cfg"), format!("Port {port}\nListenAddress 127.0.0.1\nHostKey {d}/host\nAuthorizedKeysFile {d}/user.pub\nUsePAM no\nStrictModes no\nPidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nAllowStreamLocalForwarding yes\nAllowTcpForwarding yes\n")).unwrap();
        let child = Command::new("/usr/sbin/sshd").arg("-D").arg("-e").arg("-f").arg(dir.path().join("cfg")).stdin(Stdio::null()).stderr(std::fs::File::create(dir.path().join("log")).unwrap()).spawn().unwrap();
        for _ in 0..200 { if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() { break } std::thread::sleep(Duration::from_millis(10)); }
        Some(Self { dir, port, child })
    }
    fn options(&self) -> ssh::SshOptions {
        let mut o = ssh::SshOptions::new(ssh::Destination::parse(&format!("ssh://127.0.0.1:{}", self.port)).unwrap());
        let key = std::fs::read_to_string(self.dir.path().join("host.pub")).unwrap();
        o.known_hosts = ssh::KnownHosts::Lines(format!("[127.0.0.1]:{} {key}", self.port));
        o.identity_file = Some(self.dir.path().join("user"));
        o
    }
}
impl Drop for Sshd { fn drop(&mut self) { let _ = self.child.kill(); let _ = self.child.wait(); } }

#[tokio::test]
async fn smoke() {
    let sshd = Sshd::start().unwrap();
    let mut t = Instant::now();
    let mut lap = |what: &str| { println!("{what}: {:?}", t.elapsed()); t = Instant::now(); };
    let host = match ssh::connect(sshd.options()).await { Ok(h) => h, Err(e) => panic!("{} {}", e.chain(), std::fs::read_to_string(sshd.dir.path().join("log")).unwrap()) };
    lap("connect");
    let dir = tempfile::tempdir().unwrap();
    let base = format!("{}/ba se", dir.path().display());
    let q = Query { read: vec!["app/*/state.json".into()], list: vec!["app/*/files/*".into()] };
    println!("{:?}", host.survey(&base, &q).await);
    lap("survey");
    host.survey(&base, &q).await.unwrap();
    lap("survey 2");
    host.apply(&[Change::Write { path: format!("{base}/app/pr-1/state.json"), content: Secret::new(b"{}".to_vec()), mode: 0o600 }]).await.unwrap();
    lap("apply");
    println!("{:?}", host.upload(&format!("{base}/app/pr-1/files/abc"), &[Entry { source: Some("src".into()), target: "x/src".into() }]).await);
    lap("upload");
    println!("{:?}", host.upload(&format!("{base}/app/pr-1/files/abc"), &[Entry { source: Some("src".into()), target: "x/src".into() }]).await);
    lap("upload again");
    println!("{:?}", host.survey(&base, &q).await);
    lap("survey");
    let lock = ShellLock::new(host.clone());
    let path = format!("{base}/.lock");
    let h = |who: &str| Holder { who: who.into(), why: "w".into(), since: "s".into() };
    let Acquired::Held(lease) = lock.acquire(&path, &h("a"), Duration::ZERO, &|_| ()).await.unwrap() else { panic!() };
    lap("acquire");
    println!("{:?}", lock.holder(&path).await);
    lap("holder");
    let Acquired::TimedOut(who) = lock.acquire(&path, &h("b"), Duration::ZERO, &|h| println!("wait {h:?}")).await.unwrap() else { panic!() };
    println!("{who:?}");
    lap("once");
    lease.release(true).await.unwrap();
    lap("release");
    let mut s = host.dial("127.0.0.1", sshd.port).await.unwrap();
    let mut b = [0u8; 7];
    tokio::io::AsyncReadExt::read_exact(&mut s, &mut b).await.unwrap();
    println!("{:?}", std::str::from_utf8(&b));
    lap("dial");
    println!("{:?}", host.socket("/var/run/docker.sock").await);
    lap("socket");
    let run = host.guardian().run_dir().to_owned();
    host.close().await.unwrap();
    lap("close");
    assert!(!run.exists());
}
