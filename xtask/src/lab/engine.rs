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

/// The arguments of `docker` by which an engine tells its version.
pub(super) const VERSION: [&str; 3] = ["version", "--format", "{{.Server.Version}}"];
/// Where every CLI looks for an engine that nobody told it of.
const USUAL: &str = "unix:///var/run/docker.sock";

/// Finds or starts the engine; returns the client, and where the engine is if that is not its usual socket.
pub(super) fn ensure(dir: &Path) -> Result<(PathBuf, Option<String>)> {
    sh::step("engine", || {
        let mut refused = None;
        if let Some(docker) = sh::which("docker") {
            let host = host(&docker)?;
            match version(&mut ask(&docker, host.as_deref())) {
                Ok(version) => return Ok(((docker, host), format!("{version}, already running"))),
                Err(error) => refused = Some(format!("{error:#}")),
            }
            if let Some(host) = host {
                bail!("no engine answers at {host}: start it, or unset what leads there, and try again");
            }
        }
        if !install::is_root()
            && refused.as_ref().is_some_and(|words| words.to_lowercase().contains("permission denied"))
        {
            bail!(
                "an engine runs here, but this user may not use it: sudo usermod -aG docker \"$USER\", log in again, and try again"
            );
        }
        install::need(dir, &programs(install::has_package("docker-ce-cli"), apparmor()))?;
        if !install::is_root() {
            bail!("Docker is installed but does not answer: sudo systemctl start docker, and try again");
        }
        if sh::which("docker").is_none() {
            // From Debian 13 on, the client is a package of its own.
            install::need(dir, &[("docker", "docker-cli")])?;
        }
        let docker = sh::which("docker")
            .context("dockerd is installed, but the client is not: install Docker's command `docker`")?;
        let pid = start(dir, &docker)?;
        let version = version(&mut ask(&docker, None)).unwrap_or_default();
        Ok(((docker, None), format!("{version}, started by the lab ({pid})")))
    })
}

/// The programs that an engine needs, and the packages that have them: Docker's own where its client is from there,
/// since the two do not go together.
fn programs(dockers_own: bool, apparmor: bool) -> Vec<(&'static str, &'static str)> {
    let mut programs = if dockers_own {
        vec![("dockerd", "docker-ce"), ("containerd", "containerd.io")]
    } else {
        vec![("dockerd", "docker.io")]
    };
    programs.push(("iptables", "iptables"));
    if apparmor {
        programs.push(("apparmor_parser", "apparmor"));
    }
    programs
}

fn apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.starts_with('Y'))
}

/// Where the engine is, if not at its usual socket: as `DOCKER_HOST`, `DOCKER_CONTEXT` or the CLI's settings say.
pub(super) fn host(docker: &Path) -> Result<Option<String>> {
    let endpoint = sh::text(&mut sh::cmd(docker, ["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]));
    let endpoint = endpoint.context("the Docker CLI does not know where its engine is")?;
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    judge(&endpoint, set("DOCKER_HOST").as_deref(), set("DOCKER_CONTEXT").as_deref())
}

/// The lab publishes ports on this machine's loopback and mounts its folders: another machine's engine cannot serve.
fn judge(endpoint: &str, docker_host: Option<&str>, docker_context: Option<&str>) -> Result<Option<String>> {
    if endpoint.starts_with("unix:///") {
        return Ok((endpoint != USUAL).then(|| endpoint.to_owned()));
    }
    let (whose, way_out) = match (docker_host, docker_context) {
        (Some(_), _) => ("DOCKER_HOST".to_owned(), "unset DOCKER_HOST"),
        (None, Some(context)) => (format!("DOCKER_CONTEXT={context}"), "unset DOCKER_CONTEXT"),
        (None, None) => ("the Docker CLI's current context".to_owned(), "docker context use default"),
    };
    bail!("{whose} leads to {endpoint}; the lab needs an engine on this machine: {way_out}, and try again")
}

/// The engine's version, if it answers `docker` with [`VERSION`].
pub(super) fn version(command: &mut Command) -> Result<String> {
    let version = sh::text_within(command, Duration::from_secs(10))?;
    if version.is_empty() {
        bail!("no engine answers");
    }
    Ok(version)
}

fn ask(docker: &Path, host: Option<&str>) -> Command {
    let mut command = sh::cmd(docker, VERSION);
    command.env_remove("DOCKER_CONTEXT").env("DOCKER_HOST", host.unwrap_or(USUAL));
    command
}

/// Stops the engine if the lab started it and no container runs on it.
pub(super) fn stop(lab: &Lab) -> Result<Stopped> {
    let file = pid_file(&lab.dir);
    let Some(owner) = fs::read_to_string(&file).ok().map(|text| text.trim().to_owned()) else {
        return Ok(Stopped::NotOurs);
    };
    let running = sh::text(&mut lab.docker(["ps", "--format", "{{.Names}}"]))?;
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
    let wait = || sh::wait_until("dockerd", READY_WITHIN, || version(&mut ask(docker, None)).is_ok());
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
        died.is_some() || version(&mut ask(docker, None)).is_ok()
    });
    if let (None, Ok(())) = (died, &ready) {
        return Ok(format!("pid {pid}"));
    }
    let said = fs::read_to_string(&log_path).unwrap_or_default();
    let _ = child.kill();
    let _ = fs::remove_file(pid_file(dir));
    bail!("dockerd did not become ready; the end of {}:\n{}", log_path.display(), sh::tail(&said, 15))
}

fn pid_file(dir: &Path) -> PathBuf {
    dir.join("dockerd.pid")
}

/// Whether the process lives; one that ended and waits for its parent has no command line any more.
fn is_dockerd(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split('\0').next().is_some_and(|program| program.ends_with("dockerd")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_on_this_machine_is_taken_wherever_its_socket_is() {
        assert_eq!(judge(USUAL, None, None).unwrap(), None);
        let rootless = "unix:///run/user/1000/docker.sock";
        assert_eq!(judge(rootless, None, Some("rootless")).unwrap().as_deref(), Some(rootless));
        assert_eq!(judge(rootless, Some(rootless), None).unwrap().as_deref(), Some(rootless));
    }

    #[test]
    fn an_engine_elsewhere_is_refused_with_what_leads_there() {
        let told = |host: Option<&str>, context| judge("ssh://deploy@vm", host, context).unwrap_err().to_string();
        let told_host = told(Some("ssh://deploy@vm"), Some("prod"));
        assert!(told_host.starts_with("DOCKER_HOST leads to ssh://deploy@vm;"), "{told_host}");
        assert!(told_host.contains("unset DOCKER_HOST"), "{told_host}");
        let told_context = told(None, Some("prod"));
        assert!(told_context.starts_with("DOCKER_CONTEXT=prod leads to"), "{told_context}");
        assert!(told_context.contains("unset DOCKER_CONTEXT"), "{told_context}");
        let told_settings = told(None, None);
        assert!(told_settings.contains("docker context use default"), "{told_settings}");
    }

    #[test]
    fn what_is_installed_goes_with_the_client_that_is_there() {
        assert_eq!(programs(false, false), [("dockerd", "docker.io"), ("iptables", "iptables")]);
        let dockers = programs(true, true);
        assert!(dockers.contains(&("dockerd", "docker-ce")) && dockers.contains(&("apparmor_parser", "apparmor")));
        assert!(!dockers.iter().any(|(_, package)| *package == "docker.io"), "{dockers:?}");
    }
}
