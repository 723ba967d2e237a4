//! Real name servers of Debian, each started as a process of this test on a port of its own. Without them the tests say so, and fail where
//! `PREVIEW_LAB` says that there is a lab.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const SECRET: &str = "c2VjcmV0LW9mLXRoZS10ZXN0cy1vZi1wcmV2aWV3ISE=";
pub(crate) const KEY: &str = "preview-key";
pub(crate) const ZONE: &str = "previews.test";

const TEXT: &str = "$ORIGIN previews.test.\n$TTL 300\n@ SOA ns1 admin 1 3600 600 86400 60\n@ NS ns1\nns1 A 127.0.0.1\n* A 192.0.2.200\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Knot,
    Bind,
}

pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    _dir: tempfile::TempDir,
}

/// A program of Debian's that is not there is a test that did not run.
fn there(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
        || Path::new("/usr/sbin").join(program).is_file();
    assert!(
        found || std::env::var_os("PREVIEW_LAB").is_none(),
        "{program} is not installed; `cargo xtask lab up` does it"
    );
    if !found {
        eprintln!("NOT TESTED: {program} is not installed");
    }
    found
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port()
}

impl Server {
    /// A server with the zone, whose key may update it, and transfer it if `transfer`.
    pub(crate) fn start(kind: Kind, transfer: bool) -> Option<Self> {
        Self::start_on(kind, transfer, &[])
    }

    /// The same, which listens on more addresses of this machine too.
    pub(crate) fn start_on(kind: Kind, transfer: bool, more: &[&str]) -> Option<Self> {
        let addresses: Vec<&str> = ["127.0.0.1"].iter().chain(more).copied().collect();
        let program = if kind == Kind::Knot { "knotd" } else { "named" };
        if !there(program) || !there("dig") || !there("nsupdate") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (path, port) = (dir.path().display().to_string(), free_port());
        std::fs::write(dir.path().join("previews.test.zone"), TEXT).expect("written");
        let mut command = Command::new(program);
        match kind {
            Kind::Knot => {
                let listen: Vec<String> = addresses.iter().map(|address| format!("{address}@{port}")).collect();
                let listen = listen.join(", ");
                let actions = if transfer { "[update, transfer]" } else { "[update]" };
                let text = format!(
                    "server:\n  rundir: {path}\n  listen: [{listen}]\n\
                     database:\n  storage: {path}\n\
                     key:\n  - id: {KEY}\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
                     acl:\n  - id: preview\n    key: {KEY}\n    action: {actions}\n\
                     template:\n  - id: default\n    storage: {path}\n\
                     zone:\n  - domain: {ZONE}\n    file: previews.test.zone\n    acl: preview\n"
                );
                std::fs::write(dir.path().join("knot.conf"), text).expect("written");
                command.args(["-c", &format!("{path}/knot.conf")]);
            }
            Kind::Bind => {
                let listen = addresses.join("; ");
                let transfer = if transfer { format!("key {KEY};") } else { "none;".to_owned() };
                let text = format!(
                    "options {{ directory \"{path}\"; listen-on port {port} {{ {listen}; }}; listen-on-v6 {{ none; }}; pid-file \"{path}/pid\"; \
                     session-keyfile \"{path}/session\"; recursion no; dnssec-validation no; managed-keys-directory \"{path}\"; }};\n\
                     controls {{ }};\n\
                     key {KEY} {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
                     zone \"{ZONE}\" {{ type primary; file \"previews.test.zone\"; allow-update {{ key {KEY}; }}; allow-transfer {{ {transfer} }}; }};\n"
                );
                std::fs::write(dir.path().join("named.conf"), text).expect("written");
                command.args(["-g", "-n", "1", "-c", &format!("{path}/named.conf")]);
            }
        }
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let log = std::fs::File::create(dir.path().join("log")).expect("a file");
        let child = command.env("PATH", path).stdout(Stdio::null()).stderr(log).spawn().expect("the server starts");
        let server = Self { child, port, _dir: dir };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() || server.dig("ns1", "A") != ["127.0.0.1"] {
            let log = || std::fs::read_to_string(server._dir.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < Duration::from_secs(20), "{kind:?} does not answer:\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    /// Records as `dig` shows them.
    pub(crate) fn dig(&self, name: &str, rtype: &str) -> Vec<String> {
        let port = self.port.to_string();
        let name = if name.ends_with(ZONE) { name.to_owned() } else { format!("{name}.{ZONE}") };
        let args = ["@127.0.0.1", "-p", &port, "+short", "+tries=1", "+time=2", &name, rtype];
        let output = Command::new("dig").args(args).output().expect("dig runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().filter(|line| !line.starts_with(';')).map(|line| line.trim_end_matches('.').to_owned()).collect()
    }

    /// The seconds that resolvers may keep a host's address.
    pub(crate) fn ttl(&self, name: &str) -> Option<u32> {
        let port = self.port.to_string();
        let name = format!("{name}.{ZONE}");
        let output = Command::new("dig").args(["@127.0.0.1", "-p", &port, "+noall", "+answer", &name, "A"]).output();
        let text = String::from_utf8_lossy(&output.expect("dig runs").stdout).into_owned();
        text.split_whitespace().nth(1)?.parse().ok()
    }

    /// A change that is not ours.
    pub(crate) fn nsupdate(&self, line: &str) {
        let script = format!("server 127.0.0.1 {}\nzone {ZONE}\n{line}\nsend\n", self.port);
        let key = format!("hmac-sha256:{KEY}:{SECRET}");
        let mut child =
            Command::new("nsupdate").args(["-y", &key]).stdin(Stdio::piped()).spawn().expect("nsupdate starts");
        std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), script.as_bytes()).expect("written");
        assert!(child.wait().expect("it ends").success(), "{line}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
