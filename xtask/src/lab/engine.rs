//! The engine: the one that answers, else one that the lab starts, and stops again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Lab, install};
use crate::sh;

const READY_WITHIN: Duration = Duration::from_secs(60);

/// What became of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// The lab had started it, and it is stopped.
    Yes,
    /// The lab had not started it.
    NotOurs,
    /// Containers run on it: their names.
    InUse(Vec<String>),
}

/// Finds or starts the engine; returns the client.
pub(super) fn ensure(dir: &Path) -> Result<PathBuf> {
    local_only()?;
    sh::step("engine", || {
        if let Some(docker) = sh::which("docker")
            && let Some(version) = version(&docker)
        {
            return Ok((docker, format!("{version}, already running")));
        }
        if let Some(why) = foreign_socket() {
            bail!("{why}");
        }
        let mut programs = vec![("dockerd", "docker.io"), ("iptables", "iptables")];
        if fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.starts_with('Y')) {
            programs.push(("apparmor_parser", "apparmor"));
        }
        install::need(dir, &programs)?;
        if !install::is_root() {
            bail!("Docker is installed but does not answer; start it (or get the rights to use it), and try again");
        }
        let docker = sh::which("docker")
            .context("dockerd is installed, but the client is not: install Docker's command `docker`")?;
        let pid = start(dir, &docker)?;
        let version = version(&docker).unwrap_or_default();
        Ok((docker, format!("{version}, started by the lab ({pid})")))
    })
}

/// The engine's version, if it answers.
pub(super) fn version(docker: &Path) -> Option<String> {
    sh::text_within(&mut sh::cmd(docker, ["version", "--format", "{{.Server.Version}}"]), Duration::from_secs(10))
        .ok()
        .filter(|version| !version.is_empty())
}

/// Stops the engine if the lab started it and no container runs on it.
pub(super) fn stop(lab: &Lab) -> Result<Stopped> {
    let file = pid_file(&lab.dir);
    let Some(owner) = fs::read_to_string(&file).ok().map(|text| text.trim().to_owned()) else {
        return Ok(Stopped::NotOurs);
    };
    let running = sh::text(lab.docker(["ps", "--format", "{{.Names}}"]).env_remove("DOCKER_HOST"))?;
    if !running.is_empty() {
        return Ok(Stopped::InUse(running.lines().map(str::to_owned).collect()));
    }
    if owner == "systemd" {
        sh::text(&mut sh::cmd("systemctl", ["stop", "docker.service", "docker.socket"]))?;
    } else if is_dockerd(&owner) {
        sh::kill("TERM", &owner)?;
        sh::wait_until("the engine's end", READY_WITHIN, || !is_dockerd(&owner))?;
    } else {
        forget(&file)?;
        return Ok(Stopped::NotOurs);
    }
    forget(&file)?;
    Ok(Stopped::Yes)
}

/// Removes the record of an engine; one that is gone already is as good.
fn forget(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn start(dir: &Path, docker: &Path) -> Result<String> {
    let wait = || sh::wait_until("dockerd", READY_WITHIN, || version(docker).is_some());
    if Path::new("/run/systemd/system").is_dir() {
        sh::text(&mut sh::cmd("systemctl", ["start", "docker.service"]))?;
        wait()?;
        fs::write(pid_file(dir), "systemd\n")?;
        return Ok("by systemd".to_owned());
    }
    // A machine that was switched off keeps the file, and its number may be another program's by now.
    let stale = Path::new("/var/run/docker.pid");
    if fs::read_to_string(stale).is_ok_and(|pid| !is_dockerd(pid.trim())) {
        fs::remove_file(stale)?;
    }
    let dockerd = sh::which("dockerd").context("no dockerd")?;
    let setsid = sh::which("setsid").context("no setsid (package util-linux)")?;
    let log_path = dir.join("logs/dockerd.log");
    fs::create_dir_all(dir.join("logs"))?;
    let log = File::create(&log_path)?;
    let mut command = Command::new(setsid);
    // Its own session: it must outlive a Ctrl-C in this terminal.
    command.arg(dockerd).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = command.spawn().context("cannot start dockerd")?;
    let pid = child.id().to_string();
    fs::write(pid_file(dir), format!("{pid}\n"))?;
    let mut died = None;
    let ready = sh::wait_until("dockerd", READY_WITHIN, || {
        died = child.try_wait().ok().flatten();
        died.is_some() || version(docker).is_some()
    });
    if let (None, Ok(())) = (died, &ready) {
        return Ok(format!("pid {pid}"));
    }
    let said = fs::read_to_string(&log_path).unwrap_or_default();
    let _ = child.kill();
    let _ = fs::remove_file(pid_file(dir));
    bail!("dockerd did not become ready; the end of {}:\n{}", log_path.display(), sh::tail(&said, 15))
}

/// The lab publishes ports on this machine's loopback and mounts its folders: another machine's engine cannot serve.
fn local_only() -> Result<()> {
    match std::env::var("DOCKER_HOST") {
        Ok(host) if !host.is_empty() && !host.starts_with("unix://") => {
            bail!("DOCKER_HOST is {host}; the lab needs an engine on this machine: unset it, and try again")
        }
        _ => Ok(()),
    }
}

fn foreign_socket() -> Option<String> {
    let host = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty())?;
    (host != "unix:///var/run/docker.sock").then(|| format!("no engine answers at DOCKER_HOST={host}"))
}

fn pid_file(dir: &Path) -> PathBuf {
    dir.join("dockerd.pid")
}

/// Whether the process lives; one that ended and waits for its parent has no command line any more.
fn is_dockerd(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split('\0').next().is_some_and(|program| program.ends_with("dockerd")))
}
