//! Programs that users have and Debian does not: built from their Go modules, once, into the lab's folder.
//!
//! They need `go` and a module proxy. Where these are missing, what needs the programs is skipped, and says so.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Lab, install};
use crate::sh;

/// A proxy that is there answers within this, even with a large module.
const DOWNLOAD_WITHIN: Duration = Duration::from_secs(180);

/// A program of a Go module.
pub(super) struct Program {
    /// The program's file name.
    pub(super) name: &'static str,
    module: &'static str,
    pub(super) version: &'static str,
    /// Where the program is in the module.
    package: &'static str,
    tags: &'static str,
    /// Linker flags beside those that leave out symbols.
    link: &'static str,
    /// Headers and tools of C that it needs, each with its package; a program that needs none is built without C.
    c: &'static [(&'static str, &'static str)],
}

/// Compose 5: what users who installed Docker lately have.
pub(super) const COMPOSE: Program = Program {
    name: "docker-compose",
    module: "github.com/docker/compose/v5",
    version: "v5.6.0",
    package: "./cmd",
    tags: "",
    link: "-X github.com/docker/compose/v5/internal.Version=v5.6.0",
    c: &[],
};

/// The engine of Docker 29. Its module has a numbering of its own.
pub(super) const DOCKERD: Program = Program {
    name: "dockerd",
    module: "github.com/moby/moby/v2",
    version: "v2.0.0-beta.24",
    package: "./cmd/dockerd",
    tags: "exclude_graphdriver_btrfs exclude_graphdriver_zfs",
    link: "-X github.com/moby/moby/v2/dockerversion.Version=29.0.0-beta.24",
    c: &[],
};

/// The `runc` that engine wants; linked statically, since the VM's C library may be older than this machine's.
pub(super) const RUNC: Program = Program {
    name: "runc",
    module: "github.com/opencontainers/runc",
    version: "v1.4.0",
    package: ".",
    tags: "seccomp netgo osusergo",
    link: "-extldflags -static -X main.version=1.4.0",
    c: &[("gcc", "gcc"), ("pkg-config", "pkg-config"), ("/usr/include/seccomp.h", "libseccomp-dev")],
};

/// Whether these programs can be built here, or are there already. Asked once, and remembered until `lab down`.
pub(super) fn available(lab: &Lab, programs: &[&Program]) -> bool {
    programs.iter().all(|program| file(lab, program).is_file() || module_is_served(lab, program))
}

fn module_is_served(lab: &Lab, program: &Program) -> bool {
    let answer = lab.dir.join("go").join(format!("{}.served", program.name));
    if let Ok(known) = fs::read_to_string(&answer) {
        return known.trim() == "yes";
    }
    let served = sh::which("go").is_some() && source(lab, program).is_ok();
    // If it cannot be written, it is asked again.
    let _ = fs::write(&answer, if served { "yes\n" } else { "no\n" });
    served
}

/// The program, built if it is not there; another process that builds it is waited for.
pub(super) fn build(lab: &Lab, program: &Program) -> Result<PathBuf> {
    let file = file(lab, program);
    if file.is_file() {
        return Ok(file);
    }
    let dir = file.parent().context("a file has a folder")?;
    fs::create_dir_all(dir)?;
    let lock = File::create(dir.join("lock"))?;
    lock.lock().with_context(|| format!("cannot lock {}", dir.display()))?;
    if file.is_file() {
        return Ok(file);
    }
    sh::step(&format!("{} {}", program.name, program.version), || {
        if sh::which("go").is_none() {
            bail!("{} {} is built by Go, and there is no `go` here", program.name, program.version);
        }
        install::need(&lab.dir, program.c)?;
        let new = dir.join("new");
        let flags = format!("-s -w {}", program.link);
        let mut build = sh::cmd("nice", ["go", "build", "-trimpath", "-tags", program.tags, "-ldflags", &flags, "-o"]);
        build.arg(&new).arg(program.package).current_dir(source(lab, program)?);
        // Of the module alone: this repository's version is none of it.
        build.env("CGO_ENABLED", if program.c.is_empty() { "0" } else { "1" }).env("GOFLAGS", "-buildvcs=false");
        sh::logged(&mut build, &lab.log(&format!("build-{}", program.name)))?;
        fs::rename(&new, &file)?;
        Ok(((), "built by Go".to_owned()))
    })?;
    Ok(file)
}

/// `target/lab/go/docker-compose-v5.6.0/docker-compose`
fn file(lab: &Lab, program: &Program) -> PathBuf {
    lab.dir.join("go").join(format!("{}-{}", program.name, program.version)).join(program.name)
}

/// The folder with the module's source, fetched if it is not there.
fn source(lab: &Lab, program: &Program) -> Result<PathBuf> {
    let empty = lab.dir.join("go");
    fs::create_dir_all(&empty)?;
    let module = format!("{}@{}", program.module, program.version);
    let mut download = sh::cmd("go", ["mod", "download", "-json", &module]);
    // Outside of any module: `go.mod` of a folder above would count otherwise.
    download.current_dir(&empty).env("GO111MODULE", "on").env("GOWORK", "off");
    let said = sh::text_within(&mut download, DOWNLOAD_WITHIN).with_context(|| format!("cannot fetch {module}"))?;
    let said: Value = serde_json::from_str(&said)?;
    Ok(said["Dir"].as_str().with_context(|| format!("go says no folder of {module}"))?.into())
}
