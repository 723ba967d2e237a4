//! What mounted files cost an update: 5,000 files, of which one changes, against a stack without files.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xtask::lab::{Lab, Vm};
use xtask::sh;

use super::peers::{APP, Link};
use super::program::noise;
use super::proxy::Proxy;
use super::{median, stacks};

const FILES: usize = 5_000;
/// Bytes of each; 200 MB in all.
const SIZE: usize = 40_000;
/// Round trips in ms; how the time grows between them tells how many there are.
const ROUND_TRIPS: [u64; 2] = [50, 250];

/// What an update with one changed file takes more than an update without files.
pub(crate) struct Files {
    pub(crate) round_trips: f64,
    /// Bytes from this machine to the VM.
    pub(crate) bytes: f64,
    /// The whole update at the first of the round trips, in seconds.
    pub(crate) seconds: f64,
}

/// An update: seconds, and bytes to the VM.
#[derive(Default)]
struct Updates {
    seconds: Vec<f64>,
    bytes: Vec<f64>,
}

pub(crate) fn measure(lab: &Lab, vm: &Vm, binary: &Path, dir: &Path, runs: usize) -> Result<Files> {
    let (mounted, plain) = (dir.join("mounted"), dir.join("plain"));
    lay_out(&mounted)?;
    let mut of_mounted = Vec::new();
    let mut of_plain = Vec::new();
    for round_trip in ROUND_TRIPS {
        let proxy = Proxy::start(vm.port(), Duration::from_millis(round_trip))?;
        let link = Link { lab, vm, proxy: &proxy, binary, base: None, dir };
        let (mut with, mut without) = (Updates::default(), Updates::default());
        for run in 0..=runs {
            fs::write(mounted.join("code/f0001"), noise(SIZE + 8 * (run + round_trip as usize)))?;
            let measured = update(&link, &mounted, "8")?;
            stacks::write(&plain, &stacks::compose(1, run, false))?;
            let other = update(&link, &plain, "9")?;
            // The first deploys, and what another round trip left.
            if run > 0 {
                with.add(measured, round_trip);
                without.add(other, round_trip);
            }
        }
        of_mounted.push(with.medians()?);
        of_plain.push(without.medians()?);
        for pr in ["8", "9"] {
            sh::text(&mut link.preview(APP, &plain, &["destroy", "--pr", pr])?)?;
        }
    }
    for project in [mounted, plain] {
        fs::remove_dir_all(project)?;
    }
    let slope = |of: &[(f64, f64)]| (of[1].0 - of[0].0) * 1e3 / (ROUND_TRIPS[1] - ROUND_TRIPS[0]) as f64;
    Ok(Files {
        round_trips: slope(&of_mounted) - slope(&of_plain),
        bytes: of_mounted[0].1 - of_plain[0].1,
        seconds: of_mounted[0].0,
    })
}

/// A project of one service that mounts all of it.
fn lay_out(project: &Path) -> Result<()> {
    let text = stacks::compose(1, 0, true).replace("./data:/data:ro", ".:/app");
    stacks::write(project, &text)?;
    fs::create_dir_all(project.join("code"))?;
    let content = noise(SIZE + FILES * 8);
    for number in 0..FILES {
        fs::write(project.join(format!("code/f{number:04}")), &content[number * 8..number * 8 + SIZE])?;
    }
    Ok(())
}

fn update(link: &Link<'_>, project: &Path, pr: &str) -> Result<(f64, f64)> {
    let mut command = link.preview(APP, project, &["deploy", "--pr", pr])?;
    link.proxy.take_sent();
    let begun = Instant::now();
    sh::text(&mut command)?;
    Ok((begun.elapsed().as_secs_f64(), link.proxy.take_sent() as f64))
}

impl Updates {
    fn add(&mut self, (seconds, bytes): (f64, f64), round_trip: u64) {
        eprintln!("{round_trip:>4} ms  an update {seconds:.3} s, {bytes} bytes sent");
        self.seconds.push(seconds);
        self.bytes.push(bytes);
    }

    fn medians(&self) -> Result<(f64, f64)> {
        Ok((median(&self.seconds).context("no updates")?, median(&self.bytes).context("no updates")?))
    }
}
