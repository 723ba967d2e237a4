//! Tests of the reports: what people and programs read.

use super::*;
use crate::failure::FailureCode;
use crate::lifecycle::Diagnosis;
use crate::state::Phase;

fn report() -> FailureReport {
    FailureReport {
        name: "pr-7".into(),
        phase: Phase::Verifying,
        failure: FailureCode::Unhealthy,
        message: "web is unhealthy".into(),
        services: vec![Diagnosis {
            service: "web".into(),
            container: "shop_pr-7-web-1".into(),
            failure: FailureCode::Unhealthy,
            problem: "is unhealthy".into(),
            state: "unhealthy".into(),
            exit_code: None,
            restarts: 2,
            out_of_memory: false,
            health_output: Some("connection refused".into()),
            log: vec!["boom".into(), "```".into()],
        }],
        output: vec![],
        restored: Restored::Previous,
    }
}

#[test]
fn a_failure_in_text() {
    insta::assert_snapshot!(failure(&report()));
}

#[test]
fn a_failure_in_markdown_cannot_leave_its_fence() {
    insta::assert_snapshot!(failure_markdown(&report()));
}

#[test]
fn runs_that_ended() {
    use crate::history::{Command, Outcome};
    let now = Timestamp::from_second(7_300).unwrap();
    let of = |command, outcome, seconds| Entry {
        ended_at: Timestamp::from_second(100).unwrap(),
        ..Entry::new("1234-1", command, outcome, seconds)
    };
    let failed = Entry {
        app: Some("shop".into()),
        preview: Some("pr-7".into()),
        owner: Some("octo\ncat".into()),
        code: Some(FailureCode::Unhealthy),
        phase: Some(Phase::Verifying),
        queued_seconds: 31.25,
        ..of(Command::Deploy, Outcome::Failed, 75.5)
    };
    let swept = Entry { removed: 2, mended: 1, ..of(Command::Sweep, Outcome::Swept, 3.0) };
    insta::assert_snapshot!(history(&[failed, swept], now));
    assert_eq!(history(&[], now), "no runs\n");
}

#[test]
fn columns_line_up() {
    let listed = Listed {
        app: "shop".into(),
        name: "pr-7".into(),
        phase: "ready".into(),
        subject: None,
        owner: Some("octocat".into()),
        commit: None,
        url: Some("http://127.0.0.1:23456".into()),
        created_at: Some(Timestamp::UNIX_EPOCH),
        updated_at: None,
        expires_at: None,
        pinned: false,
        queued_since: None,
        running: 2,
        containers: 3,
    };
    insta::assert_snapshot!(list(&[listed], Timestamp::from_second(7_300).unwrap()));
}
