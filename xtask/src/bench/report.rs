//! The results as a document: goals first, then everything that was measured.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use xtask::lab::{Lab, Vm};
use xtask::sh;

use super::files::Files;
use super::peers::{Peer, Task};
use super::program::Program;
use super::stacks::{FEW, LISTED};
use super::{Results, Row, median};

/// What is told of the machine.
pub(crate) struct Facts {
    cores: usize,
    kernel: String,
    engine: String,
    compose: String,
}

impl Facts {
    pub(crate) fn collect(lab: &Lab, vm: &Vm) -> Result<Self> {
        let kernel = sh::text(&mut sh::cmd("uname", ["-r"]))?;
        Ok(Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.split('.').take(1).collect(),
            engine: vm.text(&["docker", "version", "--format", "{{.Server.Version}}"])?,
            compose: sh::text(&mut lab.docker(["compose", "version", "--short"]))?,
        })
    }
}

/// The round trip at which the goals are judged.
pub(crate) const GOAL_AT: u64 = 50;

pub(crate) fn render(
    results: &Results,
    program: Option<&Program>,
    files: Option<&Files>,
    facts: &Facts,
    runs: usize,
) -> String {
    let mut text = format!(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench`: whole commands, each with a connection of its own, on one machine and in one run. The \
         median of {runs} runs each. Who goes first changes from run to run.\n\n\
         {} cores, Linux {}; engine {} on the VM, Compose {}. The VM is a container on the same machine, behind a proxy that \
         hands on each piece half a round trip after it came, without a limit of bandwidth; a new connection costs one round trip \
         more, as TCP's handshake does.\n\n",
        facts.cores, facts.kernel, facts.engine, facts.compose
    );
    goals(&mut text, results, program, files);
    measured(&mut text, results);
    text.push_str(HOW);
    text
}

fn seconds(results: &Results, row: Row, peer: Peer) -> Option<f64> {
    median(&results.get(&(row, peer))?.seconds)
}

fn goals(text: &mut String, results: &Results, program: Option<&Program>, files: Option<&Files>) {
    text.push_str("## Goals\n\n| what | goal | measured | |\n|---|---|---|---|\n");
    let mut line = |what: &str, goal: &str, measured: &str, met: bool| text.push_str(&row(what, goal, measured, met));
    for (task, goal) in [(Task::Unchanged, 0.6), (Task::First, 1.1), (Task::Destroy, 0.8)] {
        let sizes: BTreeSet<usize> =
            results.keys().filter(|(row, _)| row.task == task).map(|(row, _)| row.services).collect();
        let ratios: Vec<(usize, f64)> = sizes
            .into_iter()
            .filter_map(|services| {
                let row = Row { task, services, round_trip: GOAL_AT };
                Some((services, seconds(results, row, Peer::Preview)? / seconds(results, row, Peer::Forward)?))
            })
            .collect();
        if ratios.is_empty() {
            continue;
        }
        let measured: Vec<String> = ratios.iter().map(|(services, ratio)| format!("{ratio:.2} ({services})")).collect();
        line(
            &format!("{} at {GOAL_AT} ms, of Compose over a forwarded socket (services)", task.title()),
            &format!("≤ {goal:.2}"),
            &measured.join(", "),
            ratios.iter().all(|(_, ratio)| *ratio <= goal),
        );
    }
    let list = slope(results, Task::List, 0, Peer::Preview);
    if let (Some(list), Some(connect)) = (list, slope(results, Task::Connect, 0, Peer::Forward)) {
        let measured = format!("{:.1} ({list:.1} less {connect:.1} to connect)", list - connect);
        line("round trips of a list of 50, after the connection", "≤ 6", &measured, list - connect <= 6.0);
    }
    let sweeps = [FEW, LISTED].map(|live| slope(results, Task::Sweep, live, Peer::Preview));
    if let ([Some(few), Some(many)], Some(connect)) = (sweeps, slope(results, Task::Connect, 0, Peer::Forward)) {
        let measured = format!("{:.1} and {:.1} ({connect:.1} more to connect)", few - connect, many - connect);
        // A half more is noise; a call for each would be 45 more.
        line(
            &format!("round trips of a sweep of {FEW} and of {LISTED} previews that live, after the connection"),
            "the same",
            &measured,
            many - few <= 1.0,
        );
    }
    let ours = results.iter().filter(|((_, peer), _)| *peer == Peer::Preview).map(|(_, samples)| samples.connections);
    if let Some(most) = ours.max() {
        line("TCP connections of a command, at most", "1", &most.to_string(), most == 1);
    }
    text.extend(program.map(of_program).into_iter().flatten());
    text.extend(files.map(of_files).into_iter().flatten());
    text.push('\n');
}

fn row(what: &str, goal: &str, measured: &str, met: bool) -> String {
    let met = if met { "met" } else { "**not met**" };
    format!("| {what} | {goal} | {measured} | {met} |\n")
}

/// The release binary has at most so many bytes.
const BINARY: u64 = 8_000_000;

/// What the program by itself has to keep to.
pub(crate) fn of_program(program: &Program) -> Vec<String> {
    let (size, peak) = (program.size as f64 / 1e6, program.peak as f64 * 1024.0 / 1e6);
    let version = program.version * 1e3;
    vec![
        row("release binary", "≤ 8 MB", &format!("{size:.1} MB"), program.size <= BINARY),
        row("`preview --version`", "≤ 10 ms", &format!("{version:.1} ms"), version <= 10.0),
        row("peak memory, 8 services and 50 MB to upload", "≤ 30 MB", &format!("{peak:.1} MB"), peak <= 30.0),
    ]
}

/// What mounted files cost an update.
pub(crate) fn of_files(files: &Files) -> Vec<String> {
    let Files { round_trips, bytes, seconds } = files;
    let kilobytes = bytes / 1e3;
    let measured = format!("{round_trips:.1}, {kilobytes:.0} KB; {seconds:.2} s in all at 50 ms");
    let met = *round_trips <= 10.0 && kilobytes <= 500.0;
    let what =
        "5,000 files, 200 MB, `.:/app`, one file of 40 KB changes: round trips and bytes more than without the mount";
    vec![row(what, "≤ 10, that file and a list", &measured, met)]
}

/// The document with these lines as they are now.
pub(crate) fn renewed(document: &str, lines: Vec<String>) -> Result<String> {
    let mut text = document.to_owned();
    for line in lines {
        let what = format!("|{}|", line.split('|').nth(1).unwrap_or_default());
        let old = text.split_inclusive('\n').find(|old| old.starts_with(&what));
        let old = old.with_context(|| format!("docs/benchmarks.md has no line `{what}`"))?.to_owned();
        text = text.replacen(&old, &line, 1);
    }
    Ok(text)
}

/// Grows unseen, a little with each dependency, so who measures it is told.
pub(crate) fn check(program: &Program) -> Result<()> {
    if program.size > BINARY {
        bail!("the release binary has {} bytes, and should have at most {BINARY}", program.size);
    }
    Ok(())
}

/// Round trips one after the other, from how the time grows with the round trip between the two longest ones.
fn slope(results: &Results, task: Task, services: usize, peer: Peer) -> Option<f64> {
    let times: BTreeSet<u64> = results
        .keys()
        .filter(|(row, other)| (row.task, row.services, *other) == (task, services, peer))
        .map(|(row, _)| row.round_trip)
        .collect();
    let mut longest = times.into_iter().rev();
    let (far, near) = (longest.next()?, longest.next()?);
    let at = |round_trip| seconds(results, Row { task, services, round_trip }, peer);
    Some((at(far)? - at(near)?) * 1e3 / (far - near) as f64)
}

fn measured(text: &mut String, results: &Results) {
    let peers: BTreeSet<Peer> = results.keys().map(|(_, peer)| *peer).collect();
    text.push_str("## Seconds\n\n| what | services | round trip |");
    for peer in &peers {
        let _ = write!(text, " {} |", peer.title());
    }
    text.push_str(" preview / forwarded |\n|---|--:|--:|");
    text.push_str(&"--:|".repeat(peers.len() + 1));
    text.push('\n');
    let rows: BTreeSet<Row> = results.keys().map(|(row, _)| *row).collect();
    for row in rows {
        let services = if row.services == 0 { String::new() } else { row.services.to_string() };
        let _ = write!(text, "| {} | {services} | {} ms |", row.task.title(), row.round_trip);
        for peer in &peers {
            let cell = seconds(results, row, *peer).map_or_else(|| "–".to_owned(), |median| format!("{median:.2}"));
            let _ = write!(text, " {cell} |");
        }
        let ratio = seconds(results, row, Peer::Preview).zip(seconds(results, row, Peer::Forward));
        let _ = writeln!(text, " {} |", ratio.map_or_else(|| "–".to_owned(), |(a, b)| format!("{:.2}", a / b)));
    }
    text.push_str("\nTCP connections of a command, at most:");
    for (index, peer) in peers.iter().enumerate() {
        let of_peer = results.iter().filter(|((_, other), _)| other == peer).map(|(_, samples)| samples.connections);
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(text, "{comma} {} {}", peer.title(), of_peer.max().unwrap_or(0));
    }
    text.push('.');
    for peer in &peers {
        let of_peer = results.iter().filter(|((_, other), _)| other == peer).map(|(_, samples)| samples.failures);
        let failures: usize = of_peer.sum();
        if failures > 0 {
            let _ = write!(text, " Runs that failed and were begun again: {} {failures}.", peer.title());
        }
    }
    text.push_str("\n\n");
}

const HOW: &str = "\
## What is measured

- **Stacks**: `busybox:1.36` with a health check each second; the second half of the services waits until the first half is
  healthy. The image is on the VM already. One service changed: the environment of the last one.
- **preview**: `preview deploy`, `preview destroy` and `preview list`, from the start of the process to its end, with lock, state,
  checks and report.
- **compose, forwarded socket**: `ssh -f -N -L`, then `docker compose up -d --wait`, `down -v` or `ls --all`. The connection is
  part of the time, its end is not. It is handed the stack that `preview` rendered, with the same limits, without our labels.
- **compose, `-H ssh://`**: the same with `docker -H ssh://vm compose`.
- **script**: the file through `tar`, then `ssh vm docker compose …`, both over one connection (`ControlMaster`). `tar` stands for
  `rsync`, which takes more round trips for a single small file.
- Host keys are pinned and strict for all.
- **List of 50**: the state file of a real preview under 50 names, and for each a container that was created and not started.
- **Round trips**: how much longer it takes at the longest round trip than at the one before, divided by the difference.
- **Files**: one service that mounts the repository; one of its files changes, against the same service without a mount, of which a variable changes. Both are recreated.
- **Memory**: the kernel's `VmHWM` of our process alone; `ssh` and `docker compose`, which it starts, are not in it.

Again: `cargo xtask bench` (about half an hour; `--all` measures each size at each round trip, of each peer); `cargo xtask bench --quick` for a
first look, which writes nothing. `cargo xtask bench --only program` measures the program alone (binary, `--version`, memory), writes those three lines anew,
and fails if the binary is too large. `--only files` does the same for mounted files.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_about_the_program_are_written_anew() {
        let before = "# Benchmarks\n\n| what | goal |\n| other | 1 |\n| release binary | ≤ 8 MB | 6.3 MB | met |\n\
                      | `preview --version` | ≤ 10 ms | 1 ms | met |\n| peak memory, 8 services and 50 MB to upload | x |\nend\n";
        let program = Program { size: 8_000_001, version: 0.002, peak: 10_000 };
        let after = renewed(before, of_program(&program)).unwrap();
        assert_eq!(
            after,
            "# Benchmarks\n\n| what | goal |\n| other | 1 |\n| release binary | ≤ 8 MB | 8.0 MB | **not met** |\n\
             | `preview --version` | ≤ 10 ms | 2.0 ms | met |\n| peak memory, 8 services and 50 MB to upload | ≤ 30 MB | 10.2 MB | met |\nend\n"
        );
        assert!(renewed("nothing", of_program(&program)).is_err());
        assert!(check(&program).is_err() && check(&Program { size: BINARY, ..program }).is_ok());
    }
}
