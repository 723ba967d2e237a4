//! Harness of the end-to-end tests: a project in a directory of its own, the built command `preview`, a host to deploy to.
//!
//! The tests need the lab (`cargo xtask test` makes it ready). Without it they print why, and end; with `PREVIEW_LAB=1` its
//! absence is a failure.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub mod lane;
pub mod load;
mod run;

pub use run::Run;
pub use xtask::lab::Lab;
pub use xtask::lab::{Vm, VmEngine, VmOptions};

/// The lab, made ready once. Ends the test with a word where there is none.
///
/// # Panics
/// Where `PREVIEW_LAB` says that there is a lab, and it does not get ready.
#[must_use]
pub fn lab() -> Option<&'static Lab> {
    match Lab::get() {
        Ok(lab) => Some(lab),
        Err(error) if std::env::var_os("PREVIEW_LAB").is_none() => {
            eprintln!("NOT TESTED: there is no lab ({error:#}); `cargo xtask test` makes one");
            None
        }
        Err(error) => panic!("the lab does not get ready: {error:#}"),
    }
}

/// The built command.
#[must_use]
pub fn preview_binary() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            // Tests of another package do not build it by themselves.
            let status = Command::new(env!("CARGO"))
                .args(["build", "--quiet", "--package", "preview-action"])
                .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
                .status()
                .expect("cargo runs");
            assert!(status.success(), "the command `preview` does not build");
            let tests = std::env::current_exe().expect("the test has a path");
            let profile = tests.ancestors().nth(2).expect("target/<profile>/deps/<test>");
            profile.join("preview")
        })
        .clone()
}

/// Where a site is deployed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// This machine.
    Local,
    /// This machine, with the major version of Compose that the lab otherwise does not use: 5 beside 2, or 2 beside 5.
    OtherCompose,
    /// The shared VM with this engine.
    Vm(VmEngine),
}

/// A project in a directory of its own, with an application name that no other test has, and a host.
pub struct Site {
    /// The application.
    pub app: String,
    /// The project directory.
    pub dir: tempfile::TempDir,
    /// The directory of previews is in it, where the host is this machine.
    _beside: tempfile::TempDir,
    lab: &'static Lab,
    vm: Option<std::sync::Arc<Vm>>,
    base: String,
    extra: BTreeMap<String, String>,
}

/// A run of the command that has ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; -1 if it was killed.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// Fails the test with everything that was printed unless the exit code is this.
    ///
    /// # Panics
    /// If it is another one.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code\n--- stdout\n{}\n--- stderr\n{}", self.out, self.err);
        self
    }

    /// The failure code in the JSON document on standard output.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    #[track_caller]
    pub fn failure(&self) -> String {
        let document = self.json();
        document["error"]["failure"].as_str().unwrap_or_else(|| panic!("no failure code: {document}")).to_owned()
    }

    /// The JSON document on standard output.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}\n{}", self.out, self.err))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Site {
    /// A site on this host, with this Compose file. `None` where there is no lab.
    ///
    /// # Panics
    /// If the VM does not start.
    #[must_use]
    pub fn new(place: Where, compose: &str) -> Option<Self> {
        let lab = lab()?;
        let vm = match place {
            Where::Local | Where::OtherCompose => None,
            Where::Vm(VmEngine::V29) if !lab.has_engine_29() => {
                eprintln!("NOT TESTED: Docker Engine 29 is built by Go, and there is no `go`, or no module proxy");
                return None;
            }
            Where::Vm(engine) => Some(std::sync::Arc::new(Vm::shared(lab, engine).expect("the VM starts"))),
        };
        if let Some(vm) = &vm {
            vm.load_image(&["busybox:1.36"]).expect("the image gets into the VM");
        }
        let mut site = Self::on(lab, vm, compose);
        if place == Where::OtherCompose {
            let Some(config) = lab.other_compose().expect("Compose is built or fetched") else {
                eprintln!("NOT TESTED: Compose 5 is built by Go, and there is no `go`, or no module proxy");
                return None;
            };
            site.set("DOCKER_CONFIG", config.to_str().expect("a path"));
        }
        Some(site)
    }

    /// A site on a VM of the test's own.
    ///
    /// # Panics
    /// If the directory cannot be made.
    #[must_use]
    pub fn on(lab: &'static Lab, vm: Option<std::sync::Arc<Vm>>, compose: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let app = xtask::lab::test_app(number);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let beside = tempfile::tempdir().expect("a temporary directory");
        // The boundary of a repository, so that nothing above counts as part of it.
        std::fs::create_dir(dir.path().join(".git")).expect("a directory");
        let base = match vm {
            // Beside the project: what a run writes there is no file of the repository.
            None => beside.path().join("previews").to_string_lossy().into_owned(),
            Some(_) => format!("/opt/previews/{app}"),
        };
        if let Some(vm) = &vm {
            // Made once on a VM by whoever sets it up.
            let made =
                vm.exec(&["install", "-d", "-o", "deploy", "-m", "0700", "/opt/previews"]).expect("install runs");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        let site = Self { app, dir, _beside: beside, lab, vm, base, extra: BTreeMap::new() };
        if !compose.is_empty() {
            site.write("compose.yml", compose);
        }
        site
    }

    /// Writes a file of the project.
    ///
    /// # Panics
    /// If that fails.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, text).expect("a file is written");
    }

    /// A variable of the runner's environment.
    pub fn set(&mut self, name: &str, value: &str) {
        self.extra.insert(name.to_owned(), value.to_owned());
    }

    /// The directory of previews on the host.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The VM, if it is one.
    #[must_use]
    pub fn vm(&self) -> Option<&Vm> {
        self.vm.as_deref()
    }

    /// The command with these arguments, and the environment of a runner: nothing but what it needs.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(preview_binary());
        command.args(args).current_dir(self.dir.path()).env_clear().stdin(Stdio::null());
        let keep = ["PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"];
        for name in keep {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        self.lab.set_environment(&mut command);
        command.env("PREVIEW_APP", &self.app).env("PREVIEW_BASE_DIR", &self.base);
        if let Some(vm) = &self.vm {
            command.env("PREVIEW_HOST", vm.ssh_url());
            command.env("PREVIEW_IDENTITY_FILE", vm.identity_file());
            command.env("PREVIEW_KNOWN_HOSTS", vm.known_hosts());
        } else if ["GITHUB_ACTIONS", "GITLAB_CI", "CI"].iter().any(|name| self.extra.contains_key(*name)) {
            // In CI the machine of the job has to be asked for by name.
            command.env("PREVIEW_HOST", "local");
        }
        command.envs(&self.extra);
        command
    }

    /// Runs the command to its end.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().expect("the command starts").into()
    }

    /// Starts the command, its output kept for [`std::process::Child::wait_with_output`].
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn spawn(&self, args: &[&str]) -> std::process::Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts")
    }

    /// Deploys with JSON output.
    #[must_use]
    pub fn deploy(&self, pr: &str) -> Ran {
        self.run(&["deploy", "--pr", pr, "--format", "json"])
    }

    /// `docker …` on the engine of the host, its standard output.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn docker(&self, args: &[&str]) -> String {
        let output = match &self.vm {
            None => self.lab.docker(args).output().expect("docker runs"),
            Some(vm) => vm.exec(&[&["docker"], args].concat()).expect("docker runs in the VM"),
        };
        assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A shell script on the host, its standard output.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn shell(&self, script: &str) -> String {
        let output = match &self.vm {
            None => Command::new("sh").args(["-c", script]).output().expect("sh runs"),
            Some(vm) => vm.exec(&["sh", "-c", script]).expect("sh runs in the VM"),
        };
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Ids of the application's containers by service, of one preview.
    #[must_use]
    pub fn containers(&self, name: &str) -> BTreeMap<String, String> {
        let filter = [format!("label=preview.app={}", self.app), format!("label=preview.name={name}")];
        let format = "{{.Label \"com.docker.compose.service\"}} {{.ID}}";
        let text = self.docker(&[
            "ps",
            "-a",
            "--no-trunc",
            "--filter",
            &filter[0],
            "--filter",
            &filter[1],
            "--format",
            format,
        ]);
        // What only holds on to the volume of files is of no service.
        let of_services =
            text.lines().filter_map(|line| line.split_once(' ')).filter(|(service, _)| !service.is_empty());
        of_services.map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
    }

    /// Everything on the host that carries the application's labels or lies in its directory; empty when nothing was left behind.
    /// The lines by which runs agree about places and images, and the history, are no preview's, and the word that something was closed outlives it.
    #[must_use]
    pub fn remains(&self) -> Vec<String> {
        let filter = format!("label=preview.app={}", self.app);
        let mut found = Vec::new();
        for (kind, args) in [
            ("container", ["ps", "-aq", "--filter", &filter].as_slice()),
            ("network", &["network", "ls", "-q", "--filter", &filter]),
            ("volume", &["volume", "ls", "-q", "--filter", &filter]),
            ("image", &["image", "ls", "-q", "--filter", &filter]),
        ] {
            found.extend(self.docker(args).lines().map(|id| format!("{kind} {id}")));
        }
        let files = self.shell(&format!("[ ! -d '{0}' ] || find '{0}' -mindepth 1 ! -path '{0}/.places' ! -path '{0}/.freed' ! -path '{0}/.history.jsonl' ! -path '{0}/.metrics' ! -path '{0}/.images*' ! -path '{0}/.pages' ! -path '{0}/.pages/gone.html'", self.base));
        let closed = self.tombstones();
        let kept = |path: &str| closed.iter().any(|file| file == path || file.starts_with(&format!("{path}/")));
        found.extend(files.lines().filter(|path| !kept(path)).map(|path| format!("file {path}")));
        found
    }

    /// Files that say that a preview was closed for an event.
    #[must_use]
    pub fn tombstones(&self) -> Vec<String> {
        let pattern = format!("{}/.tombstones/{}/*@[0-9]*.json", self.base, self.app);
        self.shell(&format!("ls {pattern} 2>/dev/null || :")).lines().map(str::to_owned).collect()
    }

    /// `GET` of an address as the host sees it: status line and body.
    ///
    /// # Panics
    /// If nothing answers.
    #[must_use]
    #[track_caller]
    pub fn get(&self, url: &str) -> String {
        match &self.vm {
            None => http_get(url).unwrap_or_else(|error| panic!("{url}: {error}")),
            Some(vm) => {
                vm.text(&["curl", "-sS", "-i", "--max-time", "10", url]).expect("curl in the VM gets an answer")
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // A test that failed leaves its previews; the next test should not have to live with them.
        let filter = format!("label=preview.app={}", self.app);
        let script = format!(
            "docker ps -aq --filter {filter} | xargs -r docker rm -fv >/dev/null 2>&1; \
             docker network ls -q --filter {filter} | xargs -r docker network rm >/dev/null 2>&1; \
             docker volume ls -q --filter {filter} | xargs -r docker volume rm >/dev/null 2>&1; \
             docker image ls -q --filter {filter} | sort -u | xargs -r docker image rm -f >/dev/null 2>&1; \
             rm -rf '{}'",
            self.base
        );
        match &self.vm {
            None => {
                let _ = Command::new("sh").args(["-c", &script]).output();
            }
            Some(vm) => {
                let _ = vm.exec(&["sh", "-c", &script]);
            }
        }
    }
}

/// `GET` of `http://127.0.0.1:port/path`: status line, headers and body.
///
/// # Errors
/// If nothing answers.
pub fn http_get(url: &str) -> std::io::Result<String> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let mut stream = TcpStream::connect(authority)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {authority}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Waits until something holds.
///
/// # Panics
/// If it does not within 60 seconds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}: not within 60 s");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A Compose file with a page from a bind mount, a service with data in a volume, and one more.
pub const THREE: &str = include_str!("three.yml");

/// Content of the page of [`THREE`].
pub fn page(site: &Site, text: &str) {
    site.write("www/index.html", text);
}

/// So many public keys, one a line. No two are alike: what is alike is packed into nothing.
#[must_use]
pub fn public_keys(number: u64) -> String {
    let part = |seed: u64| format!("{:016x}", (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let key = |number: u64| (0..4).map(|index| part(number * 4 + index)).collect::<String>();
    (0..number).map(|number| format!("ssh-ed25519 {}\n", key(number))).collect()
}
