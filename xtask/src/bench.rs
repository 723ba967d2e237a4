//! `cargo xtask bench`: whole commands against the ways to do the same without `preview`, on one machine, in one run.

mod files;
mod peers;
mod program;
mod proxy;
mod report;
mod stacks;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use xtask::lab::{Lab, Needs, Vm, VmEngine, VmOptions, root};
use xtask::sh;

use crate::test::cargo;
use peers::{APP, BASE, Link, Peer, Task};
use proxy::Proxy;

const USAGE: &str = "\
usage: cargo xtask bench [--quick] [--rtt 0,50,150] [--services 1,4,8] [--runs 5] [--only stacks|list|program|files|updates]
                         [--peers preview,forward,docker-host,script] [--binary FILE] [--all]

Without --all, stacks of other sizes than 4 are measured at 50 ms only, and of two peers.";

/// What is measured, and how often.
struct Options {
    round_trips: Vec<u64>,
    services: Vec<usize>,
    runs: usize,
    only: Option<String>,
    peers: Vec<Peer>,
    binary: Option<PathBuf>,
    /// Each size at each round trip, of each peer.
    all: bool,
    /// Everything, so that the result may stand in the documentation.
    whole: bool,
}

/// One row of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    task: Task,
    /// 0 where no stack is deployed.
    services: usize,
    /// Milliseconds.
    round_trip: u64,
}

/// What was measured of one peer.
#[derive(Default)]
struct Samples {
    seconds: Vec<f64>,
    /// The most TCP connections that a run made.
    connections: usize,
    /// Lives that broke off and were begun again.
    failures: usize,
}

type Results = BTreeMap<(Row, Peer), Samples>;

/// What a client sees while a preview is updated: the tests' proxies and client, as a document of its own.
fn updates() -> Result<()> {
    let lab = Lab::up(Needs::Vms)?;
    let mut program = cargo(["run", "--quiet", "-p", "preview-tests", "--example", "updates"]);
    program.env("PREVIEW_LAB", "1");
    lab.set_environment(&mut program);
    let table = sh::text(&mut program)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let text = format!(
        "# Updates under load\n\nWritten by `cargo xtask bench --only updates`: a client asks a preview through its proxy every 20 ms, each time on a new TLS \
         connection, for 20 s, while the preview is updated, on this machine ({cores} cores, the client on it too). A request counts as failed if its answer is not 200, or takes longer than 5 s. The \
         service ends as a server should: after SIGTERM it takes no more connections, and answers those that it has. The goal for `rolling`: none \
         fails. A row with several updates adds them up, and has the longest gap of each.\n\n{table}\n"
    );
    let place = root().join("docs/updates.md");
    fs::write(&place, text)?;
    eprintln!("wrote {}", place.display());
    Ok(())
}

pub(crate) fn run(words: &[&str]) -> Result<()> {
    if words == ["--only", "updates"] {
        return updates();
    }
    let options = Options::parse(words)?;
    let lab = Lab::up(Needs::Vms)?;
    let binary = match &options.binary {
        Some(binary) => fs::canonicalize(binary)?,
        None => build()?,
    };
    let vm = sh::step("VM", || {
        let vm = Vm::start(&lab, VmEngine::V28, &VmOptions::default())?;
        vm.load_image(&["busybox:1.36"])?;
        vm.text(&["install", "-d", "-o", "deploy", "-m", "0700", BASE])?;
        Ok((vm, "started".to_owned()))
    })?;
    let dir = Scratch::new()?;
    let mut results = Results::new();
    let mut program = None;
    for &round_trip in &options.round_trips {
        let proxy = Proxy::start(vm.port(), Duration::from_millis(round_trip))?;
        let link = Link { lab: &lab, vm: &vm, proxy: &proxy, binary: &binary, base: None, dir: &dir.0 };
        link.prepare()?;
        if options.wants("stacks") {
            measure_stacks(&options, &link, round_trip, &mut results)?;
        }
        if options.wants("program") && program.is_none() {
            program = Some(program::measure(&link)?);
        }
    }
    if options.wants("list") {
        let state = fabricated(&options, &lab, &vm, &binary, &dir.0)?;
        stacks::fabricate(&vm, &state, BASE, stacks::LISTED)?;
        stacks::fabricate(&vm, &state, stacks::FEW_BASE, stacks::FEW)?;
        for &round_trip in &options.round_trips {
            let proxy = Proxy::start(vm.port(), Duration::from_millis(round_trip))?;
            let link = Link { lab: &lab, vm: &vm, proxy: &proxy, binary: &binary, base: None, dir: &dir.0 };
            link.prepare()?;
            measure_list(&options, &link, round_trip, &mut results)?;
        }
    }
    let files = match options.wants("files") && (options.whole || options.only.is_some()) {
        true => Some(files::measure(&lab, &vm, &binary, &dir.0, options.runs)?),
        false => None,
    };
    let facts = report::Facts::collect(&lab, &vm)?;
    let text = report::render(&results, program.as_ref(), files.as_ref(), &facts, options.runs);
    let place = root().join("docs/benchmarks.md");
    let renewed = match (words, &program, &files) {
        (["--only", "program"], Some(program), _) => Some(report::of_program(program)),
        (["--only", "files", ..], _, Some(files)) => Some(report::of_files(files)),
        _ => None,
    };
    let document = match renewed {
        _ if options.whole => Some(text),
        Some(lines) => Some(report::renewed(&fs::read_to_string(&place)?, lines)?),
        None => {
            println!("{text}");
            None
        }
    };
    if let Some(document) = document {
        fs::write(&place, document)?;
        eprintln!("wrote {}", place.display());
    }
    program.as_ref().map_or(Ok(()), report::check)
}

/// A stack through its whole life, by each peer in turn; who begins changes from run to run.
fn measure_stacks(options: &Options, link: &Link<'_>, round_trip: u64, results: &mut Results) -> Result<()> {
    let project = link.dir.join("project");
    let usual = |services: &&usize| options.all || **services == 4 || round_trip == report::GOAL_AT;
    for &services in options.services.iter().filter(usual) {
        // Not counted: it brings what the peers deploy.
        stacks::write(&project, &stacks::compose(services, 0, false))?;
        link.measure(Peer::Preview, Task::First, &project)?;
        let model = stacks::rendered(link.vm)?;
        link.measure(Peer::Preview, Task::Destroy, &project)?;
        link.proxy.take_accepted();
        let judged = |peer: &Peer| options.all || services == 4 || peer.judged();
        let peers: Vec<Peer> = options.peers.iter().copied().filter(judged).collect();
        for run in 0..options.runs {
            for turn in 0..peers.len() {
                let peer = peers[(run + turn) % peers.len()];
                let mut tries = 0;
                while let Err(error) = one_life(link, peer, services, round_trip, &model, results) {
                    tries += 1;
                    if peer == Peer::Preview || tries == TRIES {
                        return Err(error);
                    }
                    eprintln!("again: {error:#}");
                    let row = Row { task: Task::First, services, round_trip };
                    results.entry((row, peer)).or_default().failures += 1;
                    // Whatever it was at: the next try begins with nothing.
                    let down = ["docker", "compose", "-p", peers::PROJECT, "down", "-v", "-t", "0"];
                    link.vm.text(&down)?;
                    link.proxy.take_accepted();
                }
            }
        }
    }
    Ok(())
}

/// A peer may fail so often in a run (`docker -H ssh://` makes more connections than `sshd` likes) before all is given up.
const TRIES: usize = 3;

/// What was measured counts only if all of it went well.
fn one_life(
    link: &Link<'_>,
    peer: Peer,
    services: usize,
    round_trip: u64,
    model: &serde_json::Value,
    results: &mut Results,
) -> Result<()> {
    let project = link.dir.join("project");
    let mut life = Results::new();
    for task in [Task::First, Task::Unchanged, Task::OneChanged, Task::Destroy] {
        if task == Task::OneChanged && services != 4 {
            continue;
        }
        // The change stays until the stack is gone.
        let version = usize::from(task >= Task::OneChanged);
        stacks::write(&project, &stacks::compose(services, version, false))?;
        stacks::write_peer(&project, model, services, version)?;
        let row = Row { task, services, round_trip };
        note(&mut life, row, peer, link, || link.measure(peer, task, &project))?;
    }
    for (key, samples) in life {
        let all = results.entry(key).or_default();
        all.seconds.extend(samples.seconds);
        all.connections = all.connections.max(samples.connections);
    }
    Ok(())
}

fn measure_list(options: &Options, link: &Link<'_>, round_trip: u64, results: &mut Results) -> Result<()> {
    let project = link.dir.join("project");
    fs::create_dir_all(&project)?;
    for run in 0..options.runs {
        let row = Row { task: Task::Connect, services: 0, round_trip };
        note(results, row, Peer::Forward, link, || link.measure(Peer::Forward, Task::Connect, &project))?;
        for turn in 0..options.peers.len() {
            let peer = options.peers[(run + turn) % options.peers.len()];
            let row = Row { task: Task::List, services: 0, round_trip };
            note(results, row, peer, link, || link.measure(peer, Task::List, &project))?;
        }
        for (services, base) in [(stacks::FEW, Some(stacks::FEW_BASE)), (stacks::LISTED, None)] {
            let row = Row { task: Task::Sweep, services, round_trip };
            let link = Link { base, ..*link };
            note(results, row, Peer::Preview, &link, || link.measure(Peer::Preview, Task::Sweep, &project))?;
        }
    }
    Ok(())
}

/// The state file of a real preview.
fn fabricated(options: &Options, lab: &Lab, vm: &Vm, binary: &Path, dir: &Path) -> Result<String> {
    let proxy = Proxy::start(vm.port(), Duration::ZERO)?;
    let link = Link { lab, vm, proxy: &proxy, binary, base: None, dir };
    let project = dir.join("project");
    let services = options.services.iter().copied().min().unwrap_or(1);
    stacks::write(&project, &stacks::compose(services, 0, false))?;
    link.measure(Peer::Preview, Task::First, &project)?;
    let state = vm.text(&["cat", &format!("{BASE}/{APP}/pr-7/state.json")])?;
    link.measure(Peer::Preview, Task::Destroy, &project)?;
    Ok(state)
}

fn note(
    results: &mut Results,
    row: Row,
    peer: Peer,
    link: &Link<'_>,
    measure: impl FnOnce() -> Result<Duration>,
) -> Result<()> {
    let took = measure().with_context(|| format!("{} by {}", row.task.title(), peer.key()))?;
    let samples = results.entry((row, peer)).or_default();
    samples.seconds.push(took.as_secs_f64());
    samples.connections = samples.connections.max(link.proxy.take_accepted());
    let Row { task, services, round_trip } = row;
    eprintln!(
        "{round_trip:>4} ms  {services} services  {:<20} {:<12} {:.3} s",
        task.title(),
        peer.key(),
        took.as_secs_f64()
    );
    Ok(())
}

/// The release build of the command.
pub(crate) fn build() -> Result<PathBuf> {
    sh::step("release build", || {
        sh::run(&mut cargo(["build", "--quiet", "--release", "-p", "preview-action"]))?;
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        Ok((root().join(target).join("release/preview"), "built".to_owned()))
    })
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self {
            round_trips: vec![0, 50, 150],
            services: vec![1, 4, 8],
            runs: 5,
            only: None,
            peers: Peer::ALL.to_vec(),
            binary: None,
            all: false,
            whole: true,
        };
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            if word == "--quick" {
                (options.round_trips, options.services, options.runs) = (vec![50], vec![4], 2);
                options.whole = false;
                continue;
            }
            if word == "--all" {
                options.all = true;
                continue;
            }
            let value = words.next().with_context(|| format!("{word} needs a value\n{USAGE}"))?;
            match word {
                "--rtt" => options.round_trips = numbers(value)?,
                "--services" => options.services = numbers(value)?,
                "--runs" => options.runs = value.parse()?,
                "--only" if ["stacks", "list", "program", "files"].contains(value) => {
                    options.only = Some((*value).to_owned())
                }
                "--peers" => {
                    let find = |key| Peer::ALL.into_iter().find(|peer| peer.key() == key);
                    options.peers =
                        value.split(',').map(find).collect::<Option<_>>().with_context(|| USAGE.to_owned())?;
                }
                "--binary" => options.binary = Some(value.into()),
                _ => bail!("{USAGE}"),
            }
            options.whole = options.whole && word == "--runs" && options.runs >= 5;
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == part)
    }
}

fn numbers<T: std::str::FromStr<Err = std::num::ParseIntError>>(text: &str) -> Result<Vec<T>> {
    text.split(',').map(|word| word.parse().with_context(|| format!("not a number: {word}\n{USAGE}"))).collect()
}

/// A folder that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("preview-bench-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is in the folder for temporary files.
        fs::remove_dir_all(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn only_a_whole_run_is_documented() {
        assert!(Options::parse(&[]).unwrap().whole);
        assert!(Options::parse(&["--runs", "7"]).unwrap().whole);
        assert!(Options::parse(&["--all"]).unwrap().whole);
        for words in [&["--quick"][..], &["--runs", "3"], &["--rtt", "50"], &["--binary", "x"]] {
            assert!(!Options::parse(words).unwrap().whole, "{words:?}");
        }
        assert!(Options::parse(&["--peers", "nobody"]).is_err());
    }
}
