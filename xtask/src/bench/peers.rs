//! Who is measured: this program, and three ways to do the same without it. Each run makes a connection of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xtask::lab::{Lab, Vm};
use xtask::sh;

use super::proxy::Proxy;

/// The application of the measured previews, and their directory on the VM.
pub(crate) const APP: &str = "bench";
pub(crate) const BASE: &str = "/opt/previews";
/// The Compose project of the peers.
pub(crate) const PROJECT: &str = "peer";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// The command `preview`.
    Preview,
    /// `docker compose` over a unix socket that `ssh -L` forwards.
    Forward,
    /// `docker -H ssh://… compose`.
    DockerHost,
    /// Files by `tar`, then `ssh vm docker compose`, both over one connection.
    Script,
}

impl Peer {
    pub(crate) const ALL: [Self; 4] = [Self::Preview, Self::Forward, Self::DockerHost, Self::Script];

    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Preview => "preview",
            Self::Forward => "forward",
            Self::DockerHost => "docker-host",
            Self::Script => "script",
        }
    }

    /// Whether a goal is about it.
    pub(crate) fn judged(self) -> bool {
        matches!(self, Self::Preview | Self::Forward)
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Preview => "preview",
            Self::Forward => "compose, forwarded socket",
            Self::DockerHost => "compose, `-H ssh://`",
            Self::Script => "script",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Task {
    /// Nothing but the connection, ready for use.
    Connect,
    First,
    Unchanged,
    OneChanged,
    Destroy,
    List,
    /// With nothing to do, among so many previews.
    Sweep,
}

impl Task {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Connect => "connect only",
            Self::First => "first deploy",
            Self::Unchanged => "unchanged redeploy",
            Self::OneChanged => "one service changed",
            Self::Destroy => "destroy",
            Self::List => "list of 50",
            Self::Sweep => "sweep",
        }
    }
}

/// A VM behind a link of one length.
pub(crate) struct Link<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) vm: &'a Vm,
    pub(crate) proxy: &'a Proxy,
    /// The release build.
    pub(crate) binary: &'a Path,
    /// Another base directory than the usual one.
    pub(crate) base: Option<&'static str>,
    /// Of this benchmark alone; short, since sockets are made in it.
    pub(crate) dir: &'a Path,
}

impl Link<'_> {
    /// Writes what the peers need: the pinned key, an `ssh` configuration, and an `ssh` that uses it.
    pub(crate) fn prepare(&self) -> Result<()> {
        fs::write(self.dir.join("known_hosts"), self.known_hosts()?)?;
        let config = format!(
            "Host vm\n  HostName 127.0.0.1\n  Port {}\n  User deploy\n  IdentityFile \"{}\"\n  IdentitiesOnly yes\n  \
             BatchMode yes\n  StrictHostKeyChecking yes\n  UserKnownHostsFile {}\n  GlobalKnownHostsFile /dev/null\n  \
             UpdateHostKeys no\n  ConnectTimeout 20\n",
            self.proxy.port(),
            self.vm.identity_file().display(),
            self.dir.join("known_hosts").display()
        );
        fs::write(self.dir.join("config"), config)?;
        let ssh = sh::which("ssh").context("ssh is not installed")?;
        let bin = self.dir.join("bin");
        fs::create_dir_all(&bin)?;
        let wrapper = format!("#!/bin/sh\nexec {} -F {}/config \"$@\"\n", ssh.display(), self.dir.display());
        fs::write(bin.join("ssh"), wrapper)?;
        fs::set_permissions(bin.join("ssh"), fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// The VM's key under the proxy's port.
    fn known_hosts(&self) -> Result<String> {
        let line = self.vm.known_hosts();
        let (_, key) = line.split_once(' ').context("the VM's host key has no name")?;
        Ok(format!("[127.0.0.1]:{} {key}", self.proxy.port()))
    }

    /// A program with the environment of a runner: nothing but what it needs.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir).env_clear().stdin(Stdio::null());
        for name in ["PATH", "HOME"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        self.lab.set_environment(&mut command);
        command
    }

    /// Our command, in this project directory.
    pub(crate) fn preview(&self, app: &str, project: &Path, args: &[&str]) -> Result<Command> {
        let mut command = self.command(self.binary);
        command.current_dir(project).args(args).args(["--format", "json"]);
        command.env("PREVIEW_APP", app).env("PREVIEW_BASE_DIR", BASE);
        command.env("PREVIEW_HOST", format!("ssh://deploy@127.0.0.1:{}", self.proxy.port()));
        command.env("PREVIEW_IDENTITY_FILE", self.vm.identity_file());
        command.env("PREVIEW_KNOWN_HOSTS", self.known_hosts()?);
        Ok(command)
    }

    /// Does a task and says how long it took, from the first connection on. `project` has the Compose file of ours, and the
    /// rendered one for the others in `peer.json`.
    pub(crate) fn measure(&self, peer: Peer, task: Task, project: &Path) -> Result<Duration> {
        match peer {
            Peer::Preview => self.measure_preview(task, project),
            Peer::Forward => {
                let begun = Instant::now();
                self.forward()?;
                if task != Task::Connect {
                    let mut command = self.command(&self.lab.docker);
                    command.env("DOCKER_HOST", format!("unix://{}", self.dir.join("engine").display()));
                    run(command.arg("compose").args(compose(task, &project.join("peer.json"))))?;
                }
                let took = begun.elapsed();
                self.hang_up("forward")?;
                fs::remove_file(self.dir.join("engine"))?;
                Ok(took)
            }
            Peer::DockerHost => {
                let mut command = self.command(&self.lab.docker);
                let path = std::env::var("PATH").unwrap_or_default();
                command.env("PATH", format!("{}:{path}", self.dir.join("bin").display()));
                command.args(["-H", "ssh://vm", "compose"]).args(compose(task, &project.join("peer.json")));
                let begun = Instant::now();
                run(&mut command)?;
                Ok(begun.elapsed())
            }
            Peer::Script => {
                let begun = Instant::now();
                if matches!(task, Task::First | Task::Unchanged | Task::OneChanged) {
                    let line = format!(
                        "tar -c -C '{}' peer.json | {} 'mkdir -p stack && tar -x -C stack'",
                        project.display(),
                        self.multiplexed()
                    );
                    run(self.command("sh").args(["-c", &line]))?;
                }
                let words = compose(task, Path::new("stack/peer.json")).join(" ");
                run(self.command("sh").args(["-c", &format!("{} docker compose {words}", self.multiplexed())]))?;
                let took = begun.elapsed();
                self.hang_up("script")?;
                Ok(took)
            }
        }
    }

    fn measure_preview(&self, task: Task, project: &Path) -> Result<Duration> {
        let (app, words, kind): (_, &[&str], _) = match task {
            Task::First => (APP, &["deploy", "--pr", "7"], Some("create")),
            Task::Unchanged => (APP, &["deploy", "--pr", "7"], Some("unchanged")),
            Task::OneChanged => (APP, &["deploy", "--pr", "7"], Some("update")),
            Task::Destroy => (APP, &["destroy", "--pr", "7"], None),
            Task::List => (super::stacks::LISTED_APP, &["list"], None),
            Task::Sweep => (super::stacks::LISTED_APP, &["sweep"], None),
            Task::Connect => bail!("the connection alone is no command"),
        };
        let mut command = self.preview(app, project, words)?;
        if let Some(base) = self.base {
            command.env("PREVIEW_BASE_DIR", base);
        }
        let begun = Instant::now();
        let out = run(&mut command)?;
        let took = begun.elapsed();
        let document: serde_json::Value = serde_json::from_str(&out).context("no JSON")?;
        let right = match task {
            Task::Destroy => document["existed"] == true,
            Task::Sweep => document["removed"].as_array().is_some_and(Vec::is_empty),
            Task::List => {
                document.as_array().or_else(|| document["previews"].as_array()).is_some_and(|a| a.len() == 50)
            }
            _ => document["kind"].as_str() == kind,
        };
        if !right {
            bail!("{}: an unexpected report: {out}", task.title());
        }
        Ok(took)
    }

    /// A forwarded socket in the background, as a careful script makes one.
    fn forward(&self) -> Result<()> {
        let mut ssh = self.command("ssh");
        ssh.arg("-F").arg(self.dir.join("config")).args(["-f", "-N", "-M", "-S"]).arg(self.dir.join("forward"));
        ssh.args(["-o", "ExitOnForwardFailure=yes", "-L"]);
        ssh.arg(format!("{}:/var/run/docker.sock", self.dir.join("engine").display())).arg("vm");
        // Not captured: the one in the background would keep the pipe open.
        sh::run(ssh.stdout(Stdio::null()).stderr(Stdio::null()))
    }

    /// The words of an `ssh` that makes a connection if there is none, and else uses it.
    fn multiplexed(&self) -> String {
        let dir = self.dir.display();
        format!("ssh -F {dir}/config -S {dir}/script -o ControlMaster=auto -o ControlPersist=60 vm")
    }

    fn hang_up(&self, control: &str) -> Result<()> {
        let mut ssh = self.command("ssh");
        ssh.arg("-F").arg(self.dir.join("config")).arg("-S").arg(self.dir.join(control)).args(["-O", "exit", "vm"]);
        sh::text(&mut ssh).map(drop)
    }
}

fn compose(task: Task, file: &Path) -> Vec<String> {
    let file = file.display().to_string();
    let words: &[&str] = match task {
        Task::Connect => &["version"],
        Task::List | Task::Sweep => &["ls", "--all", "--format", "json"],
        Task::Destroy => &["-p", PROJECT, "-f", &file, "down", "-v"],
        _ => &["-p", PROJECT, "-f", &file, "up", "-d", "--wait"],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Runs a program to its end; standard output, or an error with what it said. Output goes to files: a connection that
/// stays in the background would keep a pipe open.
fn run(command: &mut Command) -> Result<String> {
    let place = std::env::temp_dir().join(format!("preview-bench-{}-out", std::process::id()));
    let (out, err) = (place.with_extension("out"), place.with_extension("err"));
    let status = command
        .stdout(fs::File::create(&out)?)
        .stderr(fs::File::create(&err)?)
        .status()
        .with_context(|| format!("cannot start `{}`", sh::line(command)))?;
    let said = fs::read_to_string(&out)?;
    let complained = fs::read_to_string(&err)?;
    fs::remove_file(&out)?;
    fs::remove_file(&err)?;
    if !status.success() {
        bail!("`{}`: {status}\n{}\n{}", sh::line(command), sh::tail(&said, 10), sh::tail(&complained, 20));
    }
    Ok(said)
}
