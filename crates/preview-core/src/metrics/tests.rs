//! The numbers of made-up hosts, and that documentation and alert rules name what there is.

use std::collections::BTreeSet;

use super::*;
use crate::failure::FailureCode;
use crate::host::Facts;
use crate::queue::Ticket;
use crate::state::{Phase, tests::state};

const NOW: i64 = 1_800_000_000;

fn survey(entries: &[Entry], states: &[State], tickets: &[Ticket]) -> Survey {
    let facts = Facts { now: NOW, disk_used: 30, disk_free: 10, ..Facts::default() };
    let mut survey = Survey { facts, ..Survey::default() };
    let lines: String = entries.iter().map(|entry| entry.line() + "\n").collect();
    survey.files.insert("/base/.history.jsonl".to_owned(), lines);
    for state in states {
        let text = String::from_utf8(state.to_json()).unwrap();
        survey.files.insert(format!("/base/{}/{}/state.json", state.app, state.name), text);
    }
    for ticket in tickets {
        let text = String::from_utf8(ticket.to_json()).unwrap();
        survey.joined.push_str(&text);
    }
    survey
}

fn at(ago: i64) -> Timestamp {
    Timestamp::from_second(NOW - ago).unwrap()
}

fn run(ago: i64, command: Command, outcome: Outcome, seconds: f64) -> Entry {
    Entry { ended_at: at(ago), ..Entry::new("r", command, outcome, seconds) }
}

fn preview(name: &str, phase: Phase, ago: i64, weight: f64) -> State {
    let weight = Weight::try_from(weight).unwrap();
    State { name: name.to_owned(), phase, updated_at: at(ago), weight, ..state() }
}

fn ticket(name: &str, ago: i64) -> Ticket {
    let of = state();
    Ticket {
        number: 1,
        app: of.app,
        name: name.to_owned(),
        subject: of.subject,
        owner: None,
        weight: of.weight,
        memory: 0,
        since: at(ago),
    }
}

fn told(survey: &Survey) -> String {
    text("/base", survey, Weight::places(6))
}

/// The lines of one metric, without help and type.
fn samples(text: &str, name: &str) -> Vec<String> {
    let of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
    text.lines().filter(of).map(str::to_owned).collect()
}

#[test]
fn a_busy_host() {
    let failed = |ago, outcome, code| Entry {
        code: Some(code),
        phase: Some(Phase::Verifying),
        ..run(ago, Command::Deploy, outcome, 100.0)
    };
    let entries = [
        // Of yesterday.
        failed(WINDOW + 1, Outcome::Failed, FailureCode::Unhealthy),
        run(WINDOW + 1, Command::Sweep, Outcome::Swept, 9.0),
        failed(WINDOW, Outcome::Failed, FailureCode::Unhealthy),
        Entry { oom_kills: 2, ..failed(50, Outcome::Failed, FailureCode::OomKilled) },
        Entry { oom_kills: 1, ..failed(40, Outcome::Failed, FailureCode::OomKilled) },
        failed(30, Outcome::Refused, FailureCode::Full),
        Entry { queued_seconds: 60.0, ..run(20, Command::Deploy, Outcome::Ready, 70.0) },
        run(10, Command::Destroy, Outcome::Absent, 50.0),
        run(10, Command::Destroy, Outcome::Destroyed, 2.0),
    ];
    let states = [
        preview("pr-1", Phase::Ready, 90_000, 1.0),
        preview("pr-2", Phase::Building, STALE, 0.5),
        preview("pr-3", Phase::Starting, STALE + 1, 2.0),
    ];
    let text = told(&survey(&entries, &states, &[ticket("pr-8", 5), ticket("pr-9", 300)]));
    insta::assert_snapshot!(text.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

#[test]
fn a_host_that_nobody_used() {
    let text = told(&Survey { facts: Facts { now: NOW, ..Facts::default() }, ..Survey::default() });
    for (name, samples_of_it) in [
        ("preview_active", &["preview_active 0"] as &[&str]),
        ("preview_oom_kills", &["preview_oom_kills 0"]),
        ("preview_runs", &[]),
        ("preview_last_sweep_timestamp_seconds", &[]),
        ("preview_queue_oldest_timestamp_seconds", &[]),
        ("preview_disk_used_ratio", &["preview_disk_used_ratio 0"]),
    ] {
        assert_eq!(samples(&text, name), samples_of_it, "{name}");
    }
}

#[test]
fn each_metric_is_declared_once_before_its_samples_and_documented() {
    let text = told(&survey(&[run(1, Command::Deploy, Outcome::Ready, 1.0)], &[state()], &[]));
    let mut declared: Vec<&str> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let name = line.strip_prefix("# HELP ").and_then(|rest| rest.split(' ').next()).expect(line);
        assert!(!declared.contains(&name), "{name} twice");
        declared.push(name);
        assert_eq!(lines.next(), Some(&*format!("# TYPE {name} gauge")));
        while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
            let (series, value) = sample.rsplit_once(' ').expect("a value");
            assert_eq!(series.split('{').next(), Some(name));
            value.parse::<f64>().expect("a number");
        }
    }
    declared.sort_unstable();
    let known: BTreeSet<&str> = METRICS.iter().map(|(name, _)| *name).collect();
    assert_eq!(declared, known.iter().copied().collect::<Vec<_>>());
    assert!(text.ends_with('\n'), "the last line has its end: the collector wants it");

    let document = include_str!("../../../../docs/metrics.md");
    let rows: BTreeSet<&str> =
        document.lines().filter_map(|line| line.strip_prefix("| `preview_")?.split(['`', '{']).next()).collect();
    assert_eq!(rows, known.iter().map(|name| &name["preview_".len()..]).collect(), "docs/metrics.md");
}

#[test]
fn the_number_of_series_does_not_grow_with_the_previews() {
    let series = |number: usize| {
        let named = |index: usize| format!("pr-{index}");
        let states: Vec<State> = (0..number).map(|index| preview(&named(index), Phase::Ready, 1, 1.0)).collect();
        let entries: Vec<Entry> = (0..number)
            .map(|index| Entry { preview: Some(named(index)), ..run(1, Command::Deploy, Outcome::Ready, 1.0) })
            .collect();
        told(&survey(&entries, &states, &[])).lines().count()
    };
    assert_eq!(series(1), series(100));
}

#[test]
fn labels_cannot_end_early() {
    let mut page = Page::default();
    page.sample("x", &[("a", "b\"} 1\nc\\"), ("d", "é")], 0.5);
    assert_eq!(page.text, "x{a=\"b\\\"} 1\\nc\\\\\",d=\"é\"} 0.5\n");
}

#[test]
fn percentiles_are_values_that_were_there() {
    let of = |values: &[f64]| Sample::of(values.to_vec()).map(|sample| (sample.mean, sample.p95));
    assert_eq!(of(&[]), None);
    assert_eq!(of(&[3.0]), Some((3.0, 3.0)));
    assert_eq!(of(&[2.0, 1.0]), Some((1.5, 2.0)));
    let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
    assert_eq!(of(&hundred), Some((50.5, 95.0)));
}

#[test]
fn where_lines_are_gone_the_window_says_so_and_so_does_the_last_sweep() {
    let many: Vec<Entry> = (1..=2000).map(|ago| run(ago, Command::Deploy, Outcome::Ready, 1.0)).collect();
    let text = told(&survey(&many, &[], &[]));
    assert_eq!(samples(&text, "preview_window_seconds"), ["preview_window_seconds 2000"]);
    // None is known; but it was not later than what is known.
    let oldest = format!("preview_last_sweep_timestamp_seconds {}", NOW - 2000);
    assert_eq!(samples(&text, "preview_last_sweep_timestamp_seconds"), [oldest]);
    let text = told(&survey(&many[1..], &[], &[]));
    assert_eq!(samples(&text, "preview_window_seconds"), [format!("preview_window_seconds {WINDOW}")]);
}

/// Words of an expression that could be names of metrics.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("preview_"))
}

#[test]
fn the_alert_rules_ask_for_metrics_that_there_are() {
    let text = include_str!("../../../../examples/monitoring/preview-alerts.yml");
    let rules: serde_json::Value = serde_saphyr::from_str(text).expect("YAML");
    let known: BTreeSet<&str> = METRICS.iter().map(|(name, _)| *name).collect();
    let codes: BTreeSet<&str> = FailureCode::ALL.iter().map(|code| code.as_str()).collect();
    let mut alerts = BTreeSet::new();
    for rule in rules["groups"].as_array().expect("groups").iter().flat_map(|group| group["rules"].as_array().unwrap())
    {
        let word = |key: &str| rule[key].as_str().unwrap_or_else(|| panic!("no {key}: {rule}"));
        assert!(alerts.insert(word("alert").to_owned()), "{rule}");
        let expression = word("expr");
        assert!(names(expression).next().is_some(), "{rule}");
        for name in names(expression) {
            assert!(known.contains(name), "{}: there is no {name}", word("alert"));
        }
        for (open, close) in [('(', ')'), ('{', '}')] {
            assert_eq!(expression.matches(open).count(), expression.matches(close).count(), "{expression}");
        }
        // Codes in a matcher are ours.
        for code in expression.split("code=~\"").skip(1).flat_map(|rest| rest.split('"').next().unwrap().split('|')) {
            assert!(codes.contains(code), "{code}");
        }
        for key in ["summary", "description"] {
            assert!(rule["annotations"][key].is_string(), "{rule}");
        }
        assert!(matches!(rule["labels"]["severity"].as_str(), Some("warning" | "critical")), "{rule}");
    }
    assert!(alerts.len() >= 8, "{alerts:?}");
}
