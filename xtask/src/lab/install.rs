//! What the lab may install on this machine: Debian's packages, as root, on Debian and Ubuntu only.

use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::sh;

/// Installs the packages of those programs that are missing: pairs of program and package.
pub(super) fn need(dir: &Path, programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        programs.iter().filter(|(program, _)| sh::which(program).is_none()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let wanted = missing.join(" ");
    if sh::which("apt-get").is_none() {
        bail!("please install what these packages of Debian have, and try again: {wanted}");
    }
    if !is_root() {
        bail!("please install, and try again: sudo apt-get install {wanted}");
    }
    update(dir)?;
    let mut install = sh::cmd("apt-get", ["install", "-y", "--no-install-recommends"]);
    install.args(&missing).env("DEBIAN_FRONTEND", "noninteractive");
    sh::logged(&mut install, &dir.join("logs/apt-install.log"))
}

/// Whether a package of Debian is installed.
pub(super) fn has_package(name: &str) -> bool {
    let mut query = sh::cmd("dpkg-query", ["--show", "--showformat", "${db:Status-Status}", name]);
    sh::text(&mut query).is_ok_and(|status| status == "installed")
}

/// Whether this process may install and start things.
pub(super) fn is_root() -> bool {
    sh::text(&mut sh::cmd("id", ["-u"])).is_ok_and(|id| id == "0")
}

fn update(dir: &Path) -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_none() {
        sh::logged(&mut sh::cmd("apt-get", ["update"]), &dir.join("logs/apt-update.log"))
            .context("cannot ask this machine's package mirror")?;
        let _ = DONE.set(());
    }
    Ok(())
}
