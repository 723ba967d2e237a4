//! The report for people.

use std::fmt::Write as _;

use super::{Check, Finding, Group, Report, Status};

const RESET: &str = "\u{1b}[0m";

const fn color(status: Status) -> &'static str {
    match status {
        Status::Ok => "\u{1b}[32m",
        Status::Skipped => "\u{1b}[2m",
        Status::Warning => "\u{1b}[33m",
        Status::Failed => "\u{1b}[1;31m",
    }
}

const fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Skipped => "skipped",
        Status::Warning => "warning",
        Status::Failed => "FAILED",
    }
}

/// All findings by group, each with what to do; in colour for a terminal.
#[must_use]
pub fn report(report: &Report, colors: bool) -> String {
    let mut text = String::new();
    let width = Check::ALL.iter().map(|check| check.as_str().len()).max().unwrap_or(0);
    for group in Group::ALL {
        let _ = writeln!(text, "{group}");
        for finding in report.findings.iter().filter(|finding| finding.group == *group) {
            line(&mut text, finding, width, colors);
        }
        text.push('\n');
    }
    let count = |number: usize, one: &str| match number {
        0 => format!("no {one}"),
        1 => format!("1 {one}"),
        number => format!("{number} {one}s"),
    };
    let _ = writeln!(text, "{}, {}", count(report.failures, "failure"), count(report.warnings, "warning"));
    text
}

fn line(text: &mut String, finding: &Finding, width: usize, colors: bool) {
    let (on, off) = if colors { (color(finding.status), RESET) } else { ("", "") };
    let Finding { id, about, status, found, next, .. } = finding;
    let about = about.as_ref().map(|about| format!("{about}: ")).unwrap_or_default();
    let because = if *status == Status::Skipped { "because " } else { "" };
    let _ = writeln!(text, "  {on}{:7}{off}  {id:width$}  {about}{because}{found}", word(*status));
    if let Some(next) = next {
        let _ = writeln!(text, "  {:7}  {:width$}  -> {next}", "", "");
    }
}
