//! What a host's previews look like in numbers: values to text for node-exporter's textfile collector. Pure.
//!
//! No label says which preview: the number of series does not grow with them. What each metric means stands in `docs/metrics.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};

use crate::admission::Weight;
use crate::history::{self, Command, Entry, Outcome};
use crate::host::{Query, Survey};
use crate::queue;
use crate::state::State;

/// The file below the base directory that changes with each writing.
pub const GUARD: &str = ".metrics";
/// Figures of runs are about those that ended within so many seconds.
pub const WINDOW: i64 = 24 * 3600;
/// A run in flight whose state did not change for so many seconds is stale: longer than any stage takes by default.
pub const STALE: i64 = 3600;

/// Every metric: its name, and what it is. All are gauges, also those that count: they count within a window.
pub const METRICS: [(&str, &str); 18] = [
    ("preview_info", "The version that wrote this file; always 1."),
    ("preview_written_timestamp_seconds", "When this file was written, on the host's clock."),
    ("preview_window_seconds", "Figures of runs are about those that ended within so long before that."),
    ("preview_active", "Previews on the host, whatever they do."),
    ("preview_in_flight", "Previews that a run is at work on."),
    ("preview_stale_runs", "Previews in flight whose state did not change for an hour: their runs are likely dead."),
    ("preview_places", "Places that are taken."),
    ("preview_places_limit", "Places that there are."),
    ("preview_queued", "Runs that wait for a place."),
    ("preview_queue_oldest_timestamp_seconds", "Since when the first of them waits; missing where nobody does."),
    ("preview_queue_seconds_mean", "How long the deploys that waited for a place did, on average."),
    ("preview_queue_seconds_p95", "How long the deploys that waited for a place did, 95 of 100 at most."),
    ("preview_runs", "Runs that ended, by command, outcome and failure code."),
    ("preview_run_seconds_mean", "How long runs worked, waiting for a place not counted, on average."),
    ("preview_run_seconds_p95", "How long runs worked, waiting for a place not counted, 95 of 100 at most."),
    ("preview_oom_kills", "Services that ended for lack of memory, and failed their run."),
    (
        "preview_last_sweep_timestamp_seconds",
        "When the last sweep ended well; the oldest run known where there is none.",
    ),
    (
        "preview_disk_used_ratio",
        "How full the disk is, from 0 to 1: the base directory's or that of /var/lib/docker, whichever has less left.",
    ),
];

/// What has to be read of a host for its numbers.
#[must_use]
pub fn query() -> Query {
    // The guard before what it guards.
    let read = [GUARD, history::FILE, "*/*/state.json"].map(str::to_owned);
    Query { read: read.into_iter().collect(), joined: vec![queue::pattern()], ..Query::default() }
}

/// The numbers of a host, of which [`query`] was read. `places` is how many there are.
#[must_use]
pub fn text(base: &str, survey: &Survey, places: Weight) -> String {
    let facts = &survey.facts;
    let now = Timestamp::from_second(facts.now).unwrap_or_else(|_| Timestamp::now());
    let entries = survey.files.get(&format!("{base}/{}", history::FILE)).map(|text| history::parse(text));
    let entries = entries.unwrap_or_default();
    let states = survey.files.iter().filter(|(path, _)| path.ends_with("/state.json"));
    let states: Vec<State> = states.filter_map(|(path, text)| State::parse(path, text).ok()).collect();
    let tickets = queue::tickets(&survey.joined);
    let at_work: Vec<&State> = states.iter().filter(|state| state.phase.in_flight()).collect();
    let stale = |state: &&&State| now.duration_since(state.updated_at) > SignedDuration::from_secs(STALE);

    let window = window(&entries, now);
    let recent: Vec<&Entry> = entries
        .iter()
        .filter(|entry| now.duration_since(entry.ended_at) <= SignedDuration::from_secs(window))
        .collect();
    let mut runs: BTreeMap<(Command, Outcome, &str), usize> = BTreeMap::new();
    for entry in &recent {
        let code = entry.code.map_or("", |code| code.as_str());
        *runs.entry((entry.command, entry.outcome, code)).or_default() += 1;
    }
    let waited = recent.iter().map(|entry| entry.queued_seconds).filter(|seconds| *seconds > 0.0).collect();
    // Who was refused, or found nothing, did not work.
    let worked = |entry: &&&Entry| !matches!(entry.outcome, Outcome::Refused | Outcome::Absent);
    let took = Command::ALL.map(|command| {
        let own = recent.iter().filter(|entry| entry.command == command).filter(worked);
        (command, Sample::of(own.map(|entry| (entry.seconds - entry.queued_seconds).max(0.0)).collect()))
    });
    let swept = entries.iter().filter(|entry| entry.command == Command::Sweep && entry.outcome == Outcome::Swept);
    // Nothing is known of what was before.
    let swept = swept.map(|entry| entry.ended_at).max().or_else(|| entries.iter().map(|entry| entry.ended_at).min());

    let mut page = Page::default();
    page.one("preview_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    page.one("preview_written_timestamp_seconds", &[], seconds(now));
    page.one("preview_window_seconds", &[], real(window));
    page.one("preview_active", &[], count(states.len()));
    page.one("preview_in_flight", &[], count(at_work.len()));
    page.one("preview_stale_runs", &[], count(at_work.iter().filter(stale).count()));
    page.one("preview_places", &[], states.iter().map(|state| state.weight).sum::<Weight>().into());
    page.one("preview_places_limit", &[], places.into());
    page.one("preview_queued", &[], count(tickets.len()));
    let oldest = tickets.iter().map(|ticket| ticket.since).min();
    page.some("preview_queue_oldest_timestamp_seconds", oldest.map(seconds));
    let waited = Sample::of(waited);
    page.some("preview_queue_seconds_mean", waited.map(|sample| sample.mean));
    page.some("preview_queue_seconds_p95", waited.map(|sample| sample.p95));
    page.head("preview_runs");
    for ((command, outcome, code), number) in runs {
        let labels = [("command", command.as_str()), ("outcome", outcome.as_str()), ("code", code)];
        page.sample("preview_runs", &labels, count(number));
    }
    for (name, figure) in [
        ("preview_run_seconds_mean", (|sample: Sample| sample.mean) as fn(Sample) -> f64),
        ("preview_run_seconds_p95", |sample| sample.p95),
    ] {
        page.head(name);
        for (command, sample) in &took {
            if let Some(sample) = sample {
                page.sample(name, &[("command", command.as_str())], figure(*sample));
            }
        }
    }
    let oom_kills: u64 = recent.iter().map(|entry| u64::from(entry.oom_kills)).sum();
    page.one("preview_oom_kills", &[], real(oom_kills));
    page.some("preview_last_sweep_timestamp_seconds", swept.map(seconds));
    let disk = real(facts.disk_used) / real(facts.disk_used.saturating_add(facts.disk_free).max(1));
    page.one("preview_disk_used_ratio", &[], (disk * 10_000.0).round() / 10_000.0);
    page.text
}

/// How far back the figures of runs reach: less than they should where so much happened that older lines are gone.
fn window(entries: &[Entry], now: Timestamp) -> i64 {
    if entries.len() < history::LINES as usize {
        return WINDOW;
    }
    let oldest = entries.iter().map(|entry| entry.ended_at).min();
    oldest.map_or(WINDOW, |oldest| now.duration_since(oldest).as_secs().clamp(1, WINDOW))
}

/// Two figures of a number of values.
#[derive(Clone, Copy)]
struct Sample {
    mean: f64,
    p95: f64,
}

impl Sample {
    /// `None` of none. The percentile is one of the values: the smallest that 95 of 100 do not exceed.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let rank = (values.len() * 95).div_ceil(100);
        let p95 = *values.get(rank.checked_sub(1)?)?;
        Some(Self { mean: history::hundredths(values.iter().sum::<f64>() / count(values.len())), p95 })
    }
}

fn seconds(at: Timestamp) -> f64 {
    real(at.as_second())
}

fn count(number: usize) -> f64 {
    real(number)
}

/// Exact up to 2^53, which no second, byte or count of ours exceeds.
fn real(number: impl TryInto<i64>) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "see above")]
    let real = number.try_into().unwrap_or(i64::MAX) as f64;
    real
}

/// The text format of Prometheus.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn head(&mut self, name: &str) {
        let help = METRICS.iter().find(|(known, _)| *known == name).map_or("", |(_, help)| help);
        let _ = write!(self.text, "# HELP {name} {}\n# TYPE {name} gauge\n", escape(help, false));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(value, true))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.head(name);
        self.sample(name, labels, value);
    }

    fn some(&mut self, name: &str, value: Option<f64>) {
        self.head(name);
        if let Some(value) = value {
            self.sample(name, &[], value);
        }
    }
}

/// What may stand in a help text, or between the quotes of a label's value.
fn escape(text: &str, quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quotes { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests;
