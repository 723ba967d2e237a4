//! The program by itself: its size, how fast it starts, how much memory it needs.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xtask::sh;

use super::peers::{APP, Link};
use super::{median, stacks};

pub(crate) struct Program {
    /// Bytes.
    pub(crate) size: u64,
    /// Seconds.
    pub(crate) version: f64,
    /// KB.
    pub(crate) peak: u64,
}

/// Of the bind mount that is uploaded.
const UPLOAD: usize = 50 << 20;

pub(crate) fn measure(link: &Link<'_>) -> Result<Program> {
    let size = fs::metadata(link.binary)?.len();
    let mut times = Vec::new();
    for _ in 0..20 {
        let mut command = sh::cmd(link.binary, ["--version"]);
        let begun = Instant::now();
        sh::text(&mut command)?;
        times.push(begun.elapsed().as_secs_f64());
    }
    let project = link.dir.join("upload");
    stacks::write(&project, &stacks::compose(8, 0, true))?;
    fs::create_dir_all(project.join("data"))?;
    fs::write(project.join("data/file"), noise(UPLOAD))?;
    let peak = peak(&mut link.preview(APP, &project, &["deploy", "--pr", "8"])?)?;
    sh::text(&mut link.preview(APP, &project, &["destroy", "--pr", "8"])?)?;
    fs::remove_dir_all(&project)?;
    Ok(Program { size, version: median(&times).context("no times")?, peak })
}

/// Bytes that no compression makes smaller.
pub(super) fn noise(size: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Runs a program and watches the most memory it ever had, in KB, as the kernel counts it (`VmHWM`).
fn peak(command: &mut Command) -> Result<u64> {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
    let status = Path::new("/proc").join(child.id().to_string()).join("status");
    let mut peak = 0;
    let ended = loop {
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        let text = fs::read_to_string(&status).unwrap_or_default();
        let now = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).and_then(|line| {
            let number = line.trim().trim_end_matches("kB").trim();
            number.parse().ok()
        });
        peak = peak.max(now.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    };
    if !ended.success() {
        bail!("`{}`: {ended}", sh::line(command));
    }
    Ok(peak)
}
