//! What VMs ask of their host: the rights of a machine, a port, image files, and who owns them.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::{Result, bail};

use super::{Lab, images};
use crate::sh;

/// Outside the range from which a Linux kernel takes the ports of outgoing connections.
const PORTS: std::ops::Range<u16> = 22_000..32_000;

/// Copies images into the VM of that name.
pub(super) fn load(lab: &Lab, vm: &str, images: &[&str]) -> Result<()> {
    for image in images {
        let tar = File::open(saved(lab, image)?)?;
        let out = lab.docker(["exec", "-i", vm, "docker", "load", "-q"]).stdin(tar).output()?;
        if !out.status.success() {
            bail!("cannot load {image} into {vm}: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
    }
    Ok(())
}

/// Whether the host allows `--privileged`; asked once, and remembered for the engine that answered.
pub(super) fn privileged(lab: &Lab) -> Result<bool> {
    let engine = sh::text(&mut lab.docker(["info", "--format", "{{.ID}}"]))?;
    let file = lab.dir.join("privileged");
    if let Ok(known) = fs::read_to_string(&file)
        && let Some(answer) = known.trim().strip_prefix(&format!("{engine} "))
    {
        return Ok(answer == "yes");
    }
    let allowed = sh::succeeds(&mut lab.docker(["run", "--rm", "--privileged", images::BUSYBOX, "true"]));
    fs::write(file, format!("{engine} {}\n", if allowed { "yes" } else { "no" }))?;
    Ok(allowed)
}

/// The tar file of an image, saved now if it is not there.
fn saved(lab: &Lab, image: &str) -> Result<PathBuf> {
    let id = sh::text(&mut lab.docker(["image", "inspect", "--format", "{{.Id}}", image]))?;
    let id = id.trim_start_matches("sha256:");
    let dir = lab.dir.join("images");
    let file = dir.join(format!("{}-{}.tar", image.replace(['/', ':'], "-"), id.get(..12).unwrap_or(id)));
    if !file.is_file() {
        fs::create_dir_all(&dir)?;
        let part = dir.join(format!("{}.part", owner().replace(':', "-") + &random().to_string()));
        sh::text(lab.docker(["save", image, "-o"]).arg(&part))?;
        fs::rename(part, &file)?;
    }
    Ok(file)
}

/// A port that nobody uses now, and that no outgoing connection takes while the VM is rebooting.
pub(super) fn free_port() -> Result<u16> {
    let width = u64::from(PORTS.end - PORTS.start);
    for _ in 0..50 {
        let port = PORTS.start + u16::try_from(random() % width)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port from {} to {}", PORTS.start, PORTS.end)
}

fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}

/// This process: its number, and its start time, because numbers are used again.
pub(super) fn owner() -> String {
    let pid = std::process::id();
    format!("{pid}:{}", start_time(pid).unwrap_or_default())
}

pub(super) fn lives(owner: &str) -> bool {
    let Some((pid, started)) = owner.split_once(':') else { return false };
    pid.parse().ok().and_then(start_time).is_some_and(|now| now == started)
}

fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in the second field may hold anything; fields are counted after it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}
