//! The lab: an engine, the Compose and buildx plugins, images without a registry, and VMs that are containers.
//!
//! A machine that has Docker, the plugins and a registry is used as it is; what it lacks is made on it.
//! Everything that the lab keeps is in `target/lab`, and everything that it puts into the engine has the
//! label `preview.lab`.

mod engine;
mod go;
mod images;
mod install;
mod packages;
mod plugins;
mod proxies;
mod vm;
mod vm_host;
mod vm_image;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::sh;

pub use engine::Stopped;
pub use proxies::Extra;
pub use vm::{Vm, VmEngine, VmOptions};

/// The label of everything that the lab puts into an engine.
pub const LABEL: &str = "preview.lab";

/// The name of the Docker configuration that everything uses.
const CONFIG: &str = "tests";

/// The variable by which one run of `cargo xtask test` knows its processes and previews; children inherit it.
pub const RUN_VARIABLE: &str = "PREVIEW_LAB_RUN";

/// The application name for a test's previews: unique on this machine, and known to the run that the test is part
/// of, which finds by it what the test left behind. `number` tells the tests of one process apart.
#[must_use]
pub fn test_app(number: u32) -> String {
    let pid = std::process::id();
    match std::env::var(RUN_VARIABLE) {
        Ok(run) => format!("{run}-{pid}-{number}"),
        Err(_) => format!("t{pid}-{number}"),
    }
}

/// How much of the lab is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// An engine, the Compose and buildx plugins, `busybox:1.36` and `debian:bookworm-slim`.
    Basics,
    /// And the images of the VMs, and an SSH key for them.
    Vms,
}

/// A lab that is up.
#[derive(Debug, Clone)]
pub struct Lab {
    /// The `docker` client.
    pub docker: PathBuf,
    /// The lab's own Docker configuration, with the plugins and the user's settings; to be passed on as `DOCKER_CONFIG`.
    pub docker_config: PathBuf,
    /// Where the engine is, if not at its usual socket; to be passed on as `DOCKER_HOST`.
    pub docker_host: Option<String>,
    dir: PathBuf,
}

impl Lab {
    /// Makes everything ready that is not; a second call is quick (about half a second).
    ///
    /// Other processes that do the same wait for this one. What is made takes its time and is told on standard error.
    ///
    /// # Errors
    /// When something is missing that cannot be made here; the message says what to install.
    pub fn up(needs: Needs) -> Result<Self> {
        let dir = dir();
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let lock = File::create(dir.join("lock"))?;
        lock.lock().context("cannot lock target/lab/lock")?;

        let (docker, docker_host) = engine::ensure(&dir)?;
        // Until the plugins are there, an empty one: images need no plugin.
        let mut lab = Self { docker, docker_config: dir.join("config").join(CONFIG), docker_host, dir };
        images::ensure(&lab)?;
        lab.docker_config = plugins::ensure(&lab)?;
        if needs >= Needs::Vms {
            // Each test starts servers of its own, on ports of their own.
            let servers = [
                ("knotd", "knot"),
                ("named", "bind9"),
                ("dig", "bind9-dnsutils"),
                ("nsupdate", "bind9-dnsutils"),
                ("sshd", "openssh-server"),
            ];
            install::need(&lab.dir, &servers)?;
            vm_image::ensure(&lab)?;
        }
        Ok(lab)
    }

    /// The lab with VMs, made ready at the first call in a process: what tests want.
    ///
    /// # Errors
    /// Those of [`Lab::up`]; they are kept and told to each caller.
    pub fn get() -> Result<&'static Self> {
        static LAB: OnceLock<Result<Lab, String>> = OnceLock::new();
        match LAB.get_or_init(|| Self::up(Needs::Vms).map_err(|error| format!("{error:#}"))) {
            Ok(lab) => Ok(lab),
            Err(error) => bail!("no lab: {error}"),
        }
    }

    /// The lab as it is now, if it was made and its engine answers: nothing is made or started.
    #[must_use]
    pub fn current() -> Option<Self> {
        let dir = dir();
        let docker = sh::which("docker")?;
        let docker_host = engine::host(&docker).ok()?;
        let docker_config = plugins::config(&dir, CONFIG)?;
        let lab = Self { docker, docker_config, docker_host, dir };
        engine::version(&mut lab.docker(engine::VERSION)).ok().map(|_| lab)
    }

    /// A `docker` command with the lab's configuration.
    pub fn docker<I, S>(&self, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        let mut command = sh::cmd(&self.docker, args);
        self.set_environment(&mut command);
        command
    }

    /// Leads a program to the lab's engine and plugins, whatever this process's environment says.
    pub fn set_environment(&self, command: &mut Command) {
        command.env("DOCKER_CONFIG", &self.docker_config).env_remove("DOCKER_CONTEXT").env_remove("DOCKER_HOST");
        command.envs(self.docker_host.iter().map(|host| ("DOCKER_HOST", host)));
    }

    /// Whether there can be a VM with engine 29: it is there, or can be built here.
    #[must_use]
    pub fn has_engine_29(&self) -> bool {
        vm_image::has_29(self)
    }

    /// Makes the image of the VM with engine 29, in about two minutes.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn engine_29(&self) -> Result<()> {
        vm_image::ensure_29(self)
    }

    /// A Docker configuration with the major version of Compose that the lab otherwise does not use: 5 beside 2, 2
    /// beside 5. `None` where it is neither there nor can be built.
    ///
    /// # Errors
    /// When making it fails.
    pub fn other_compose(&self) -> Result<Option<PathBuf>> {
        plugins::other_compose(self)
    }

    /// The folder of what the lab keeps, `target/lab`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes the VMs of processes that ended without doing so; returns their names.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn sweep_vms(&self) -> Result<Vec<String>> {
        vm::sweep(self)
    }

    /// Removes the VMs that [`Vm::shared`] started for this copy of the repository, except those that a process is
    /// using: their names are returned.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn remove_shared_vms(&self) -> Result<Vec<String>> {
        vm::remove_shared(self)
    }

    /// Copies images of this machine's engine into a running VM's.
    ///
    /// # Errors
    /// When there is no such image or VM.
    pub fn load_image(&self, vm: &str, images: &[&str]) -> Result<()> {
        vm_host::load(self, vm, images)
    }

    /// Removes what the lab put into the engine: this copy's shared VMs, VMs whose process is gone, and the images
    /// that it made. What somebody uses stays, and is returned.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn clear(&self) -> Result<Vec<String>> {
        self.sweep_vms()?;
        let mut stay = self.remove_shared_vms()?;
        // By name, never by label alone: images that others built on ours have the label too.
        let made = format!("label={LABEL}");
        let vms = VmEngine::ALL.map(VmEngine::image);
        let names = vms.into_iter().chain([images::BUSYBOX, images::DEBIAN]);
        for name in names {
            let ours = sh::text(&mut self.docker(["images", "-q", "--filter", &made, name]))?;
            if !ours.is_empty() && !sh::succeeds(&mut self.docker(["rmi", name])) {
                stay.push(name.to_owned());
            }
        }
        for made in ["registry", "privileged"] {
            remove_if_there(fs::remove_file(self.dir.join(made)))?;
        }
        for made in ["images", "work", "go"] {
            remove_if_there(fs::remove_dir_all(self.dir.join(made)))?;
        }
        Ok(stay)
    }

    /// Stops the engine if the lab started it and nothing is running on it.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn stop_engine(&self) -> Result<Stopped> {
        engine::stop(self)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }
}

/// The top folder of the workspace.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

fn dir() -> PathBuf {
    root().join("target/lab")
}

fn remove_if_there(removed: std::io::Result<()>) -> Result<()> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
