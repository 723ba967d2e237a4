//! The outcome as a document: the goals first, then everything that was measured.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;

use super::load::{Job, Kind, Meant, places};
use super::{Ended, Outcome, TOLERATED};
use crate::lab::{Lab, Vm};
use crate::sh;

/// What is told of the machine.
#[derive(Clone, Debug)]
pub struct Facts {
    cores: usize,
    engine: String,
    compose: String,
}

impl Facts {
    /// Asks this machine and the VM.
    ///
    /// # Errors
    /// When one of them does not answer.
    pub fn collect(lab: &Lab, vm: &Vm) -> Result<Self> {
        Ok(Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            engine: vm.text(&["docker", "version", "--format", "{{.Server.Version}}"])?,
            compose: sh::text(&mut lab.docker(["compose", "version", "--short"]))?,
        })
    }
}

/// The value below which so many percent are; the nearest that is one.
fn percentile(values: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

fn both(values: &[f64]) -> String {
    match (percentile(values, 50), percentile(values, 95)) {
        (Some(half), Some(most)) => format!("{half:.1} | {most:.1}"),
        _ => "– | –".to_owned(),
    }
}

/// The document.
#[must_use]
pub fn render(outcome: &Outcome, facts: &Facts) -> String {
    let waves: Vec<String> = outcome.waves.iter().map(|wave| wave.runs.to_string()).collect();
    let mut text = format!(
        "# Soak\n\n\
         Written by `cargo xtask soak`: waves of {} runs, each wave at once, on one VM with {} places; one owner may have {} of them, \
         one application {}. Who finds none waits (`on_full = \"queue\"`). Each run is `preview deploy` and, one to three seconds after it is ready, \
         `preview destroy`: processes of the built command, with a connection each.\n\n\
         {} cores for all of it, the VM included, which is a container on the same machine; engine {} on the VM, Compose {}. It took {:.0} minutes.\n\n",
        waves.join(", "),
        places(outcome.rules.places),
        places(outcome.rules.per_owner),
        places(outcome.rules.per_app),
        facts.cores,
        facts.engine,
        facts.compose,
        outcome.took.as_secs_f64() / 60.0
    );
    goals(&mut text, outcome);
    by_weight(&mut text, outcome);
    by_wave(&mut text, outcome);
    failures(&mut text, outcome);
    text.push_str(HOW);
    text
}

fn goals(text: &mut String, outcome: &Outcome) {
    text.push_str("## Goals\n\n| what | goal | measured | |\n|---|---|---|---|\n");
    let mut line = |what: &str, goal: &str, measured: &str, met: bool| {
        let met = if met { "met" } else { "**not met**" };
        let _ = writeln!(text, "| {what} | {goal} | {measured} | {met} |");
    };
    let count = |word: &str| outcome.broken.iter().filter(|what| what.contains(word)).count();
    let none = |number: usize| (number.to_string(), number == 0);
    let limit = outcome.rules.places;
    let most = outcome.waves.iter().map(|wave| wave.most_running).max().unwrap_or_default();
    line(
        "places taken at once, by containers on the engine",
        &format!("≤ {}", places(limit)),
        &places(most),
        most <= limit,
    );
    let most = outcome.waves.iter().map(|wave| wave.most_reserved).max().unwrap_or_default();
    line("places taken at once, by state files", &format!("≤ {}", places(limit)), &places(most), most <= limit);
    let (bad, all) = outcome.infrastructure();
    let share = bad as f64 / all.max(1) as f64;
    let measured = format!("{:.1} % ({bad} of {all} deploys and destroys)", share * 100.0);
    line("ends that nothing in the stacks explains", "< 2 %", &measured, share < TOLERATED);
    for (what, word) in [
        ("ends without a failure code", "without a failure code"),
        ("somebody overtaken in the queue", "overtaken"),
        ("state files and tickets that did not parse", "does not parse"),
        ("locks, tickets, states and containers after a wave", "stale"),
        ("things that a sweep found to do at the end", "sweep"),
        ("things left on the engine or in the directory", "left after"),
    ] {
        let (measured, met) = none(count(word));
        line(what, "0", &measured, met);
    }
    let _ = writeln!(
        text,
        "\n{} looks at the host; {} pairs of looks were near enough to judge the order by.\n",
        outcome.looks, outcome.judged
    );
}

fn by_weight(text: &mut String, outcome: &Outcome) {
    text.push_str(
        "## By weight\n\n| weight | runs | ready | failed as meant | other ends | queue p50 | p95 | deploy p50 | p95 | without queue p50 | p95 | destroy p50 | p95 |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for kind in Kind::ALL.map(Some).into_iter().chain([None]) {
        let ended: Vec<&Ended> =
            outcome.ended.iter().filter(|end| kind.is_none_or(|kind| end.job.kind == kind)).collect();
        let count = |is: &dyn Fn(&Ended) -> bool| ended.iter().filter(|end| is(end)).count();
        let ready = count(&|end| end.failure.is_none());
        let meant = count(&|end| end.failure.is_some() && end.failure.as_deref() == end.job.meant.code());
        let good: Vec<&Ended> = ended.iter().filter(|end| end.failure.is_none()).copied().collect();
        let waited = |end: &Ended| outcome.queued.get(&end.job.number).copied().unwrap_or_default();
        let queue: Vec<f64> = ended.iter().map(|end| waited(end)).collect();
        let deploy: Vec<f64> = good.iter().map(|end| end.deploy.as_secs_f64()).collect();
        let work: Vec<f64> = good.iter().map(|end| (end.deploy.as_secs_f64() - waited(end)).max(0.0)).collect();
        let destroy: Vec<f64> =
            ended.iter().filter_map(|end| end.destroy.as_ref()).map(|end| end.took.as_secs_f64()).collect();
        let _ = writeln!(
            text,
            "| {} | {} | {ready} | {meant} | {} | {} | {} | {} | {} |",
            kind.map_or("all", Kind::title),
            ended.len(),
            ended.len() - ready - meant,
            both(&queue),
            both(&deploy),
            both(&work),
            both(&destroy)
        );
    }
    text.push_str("\nTimes in seconds.\n\n");
}

fn by_wave(text: &mut String, outcome: &Outcome) {
    text.push_str(
        "## By wave\n\n| runs | seconds | places taken, mean | most | waiting, most | processor seconds of the runs | of the VM | memory of the runs, MB | of the VM, MB | connections turned away |\n\
         |--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for wave in &outcome.waves {
        let mb = |kilobytes: u64| kilobytes as f64 * 1024.0 / 1e6;
        let _ = writeln!(
            text,
            "| {} | {:.0} | {:.1} | {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {} |",
            wave.runs,
            wave.took.as_secs_f64(),
            wave.mean,
            places(wave.most_running),
            wave.most_waiting,
            wave.runner_seconds,
            wave.vm_seconds,
            mb(wave.runner_memory),
            mb(wave.vm_memory),
            wave.turned_away
        );
    }
    text.push('\n');
}

fn failures(text: &mut String, outcome: &Outcome) {
    let mut codes: BTreeMap<(&str, &str), (usize, usize)> = BTreeMap::new();
    for end in &outcome.ended {
        if let Some(code) = &end.failure {
            let count = codes.entry(("deploy", code)).or_default();
            count.0 += 1;
            count.1 += usize::from(Some(code.as_str()) == end.job.meant.code());
        }
        if let Some(code) = end.destroy.as_ref().and_then(|end| end.failure.as_ref()) {
            codes.entry(("destroy", code)).or_default().0 += 1;
        }
    }
    text.push_str("## Failures by code\n\n| command | code | runs | meant to |\n|---|---|--:|--:|\n");
    for ((command, code), (all, meant)) in codes {
        let _ = writeln!(text, "| `{command}` | `{code}` | {all} | {meant} |");
    }
    let wanted = outcome.ended.iter().filter(|end| end.job.meant != Meant::Ready).count();
    let _ = writeln!(text, "\nStacks that were meant to fail: {wanted}.\n");
    let mut others = 0;
    for end in &outcome.ended {
        let Job { number, kind, meant, .. } = &end.job;
        if end.failure.as_deref() != meant.code() {
            others += 1;
            let code = end.failure.as_deref().unwrap_or("ready");
            let meant = meant.code().unwrap_or("ready");
            let _ = writeln!(
                text,
                "- The deploy of {number} ({}) was meant to end with `{meant}`: `{code}`.",
                kind.title()
            );
        }
        if let Some(code) = end.destroy.as_ref().and_then(|end| end.failure.as_ref()) {
            others += 1;
            let _ = writeln!(text, "- The destroy of {number} ({}) ended with `{code}`.", kind.title());
        }
    }
    for what in &outcome.broken {
        let _ = writeln!(text, "- **{what}**");
    }
    if others > 0 || !outcome.broken.is_empty() {
        text.push('\n');
    }
}

const HOW: &str = "\
## What is measured

- **Stacks** of `busybox:1.36`: light ones of one service, medium ones with a health check each second, heavy ones with a second service and
  a volume. 30 % are light, 40 % medium, 30 % heavy; of every 17, one has a container that exits with 7, and one a health check that says no.
  Five owners, one of whom has three of seven, and two applications.
- **The observer** looks past the program, about ten times a second: previews that have containers, by their labels, from the engine; tickets and
  state files from the directory, under the lock under which places are given away. Weights and limits it knows from the load, not from these files.
- **Overtaken** is who waited with a lower number than somebody who was admitted, was not kept back by limits of their own owner or application, and
  has no room beside that one. Two looks one after the other decide it, by what holds whatever happened between them (`xtask/src/soak/order.rs`).
- **Queue**: from the look that first shows a ticket to the one that first shows the state file; 0 for those who had a place at once. **Deploy**: the
  whole process, of those that got to `ready`.
- **Processor seconds of the runs**: `preview`, `ssh` and `docker compose`; **of the VM**: all of its processes, containers and the observer too.
  **Memory**: the highest sum of what is a process's own (`RssAnon`), looked at every few seconds.
- **Connections turned away**: by `sshd`, with its default `MaxStartups 10:30:100`; `preview` tries again.

Again: `cargo xtask soak`; `cargo xtask soak --waves 4,8 --places 3` for a first look, which writes nothing.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 95)), (Some(10.0), Some(19.0)));
        assert_eq!((percentile(&[3.0], 95), percentile(&[], 50)), (Some(3.0), None));
    }
}
