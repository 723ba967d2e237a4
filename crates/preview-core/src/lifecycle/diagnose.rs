//! A closer look at services that did not do well, for the report: state, exit code, health, and the last lines of the log.

use std::collections::BTreeMap;
use std::fmt;

use futures_util::StreamExt as _;
use serde::Serialize;

use crate::engine::{Chunk, Container, Engine, LogOptions};
use crate::failure::FailureCode;
use crate::plan::condition;
use crate::secret::Redactor;

/// Lines of log in a report.
pub(super) const LOG_LINES: u32 = 50;
/// Longest line of a log in a report, bytes.
const LINE: usize = 2_000;

/// What is wrong with a service: for machines, and for people as the rest of a sentence that begins with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) code: FailureCode,
    pub(super) why: String,
}

/// What is wrong, by service.
pub(super) type Problems = BTreeMap<String, Problem>;

impl Problem {
    pub(super) fn new(code: FailureCode, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// What is known of a service that did not do well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Service.
    pub service: String,
    /// Container; empty if none was made.
    pub container: String,
    /// What is wrong, in one word.
    pub failure: FailureCode,
    /// What is wrong.
    pub problem: String,
    /// State and health in words.
    pub state: String,
    /// Exit code of the last run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// How often the engine has started it again.
    pub restarts: i64,
    /// Whether the kernel ended it for lack of memory.
    pub out_of_memory: bool,
    /// What the last health check printed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_output: Option<String>,
    /// The last lines of the log.
    pub log: Vec<String>,
}

/// Looks at the containers of these services; a look that fails says so in its place.
pub(super) async fn diagnose(
    engine: &dyn Engine,
    containers: &[Container],
    problems: &Problems,
    redactor: &Redactor,
) -> Vec<Diagnosis> {
    let looks = problems.iter().flat_map(|(service, problem)| {
        let of_service: Vec<_> = containers.iter().filter(|c| c.service() == Some(service)).collect();
        if of_service.is_empty() {
            vec![(service, problem, None)]
        } else {
            of_service.into_iter().map(|container| (service, problem, Some(container))).collect()
        }
    });
    let looks = looks.map(|(service, problem, container)| async move {
        let Some(container) = container else {
            return Diagnosis {
                service: service.clone(),
                container: String::new(),
                failure: problem.code,
                problem: redactor.clean(&problem.why),
                state: "no container".to_owned(),
                exit_code: None,
                restarts: 0,
                out_of_memory: false,
                health_output: None,
                log: vec![],
            };
        };
        let (detail, log) = tokio::join!(engine.inspect(&container.id), tail(engine, &container.id, redactor));
        let detail = detail.ok();
        let state = detail.as_ref().map_or_else(|| condition(container), |d| condition(&d.container));
        let running = detail.as_ref().is_some_and(|d| d.container.state == crate::engine::ContainerState::Running);
        let out_of_memory = detail.as_ref().is_some_and(|d| d.oom_killed);
        Diagnosis {
            service: service.clone(),
            container: container.name.clone(),
            failure: if out_of_memory { FailureCode::OomKilled } else { problem.code },
            problem: redactor.clean(&problem.why),
            state,
            exit_code: detail.as_ref().filter(|_| !running).map(|d| d.exit_code),
            restarts: detail.as_ref().map_or(0, |d| d.restarts),
            out_of_memory,
            health_output: detail
                .and_then(|d| d.health_output)
                .map(|text| redactor.clean(text.trim()))
                .filter(|text| !text.is_empty()),
            log,
        }
    });
    futures_util::future::join_all(looks).await
}

/// The last lines of a container's log, without known secrets.
async fn tail(engine: &dyn Engine, id: &str, redactor: &Redactor) -> Vec<String> {
    let options = LogOptions { tail: Some(LOG_LINES), ..LogOptions::default() };
    let mut stream = match engine.logs(id, &options).await {
        Ok(stream) => stream,
        Err(fault) => return vec![format!("(the log cannot be read: {})", fault.chain())],
    };
    let mut text = Vec::new();
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(Chunk::Stdout(bytes) | Chunk::Stderr(bytes)) => text.extend_from_slice(&bytes),
            Err(fault) => {
                text.extend_from_slice(format!("\n(the log ends here: {})", fault.chain()).as_bytes());
                break;
            }
        }
    }
    last_lines(&redactor.clean(&String::from_utf8_lossy(&text)))
}

/// The last lines of a text, each of a bearable length and without control characters that would act on a terminal.
pub(super) fn last_lines(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LOG_LINES as usize);
    lines[from..].iter().map(|line| printable(line)).collect()
}

/// A line that may be printed: colours and other control sequences are taken out, and too long a line is cut.
pub(super) fn printable(line: &str) -> String {
    let mut out = String::with_capacity(line.len().min(LINE));
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // A control sequence ends with a letter or `~`.
            if chars.peek() == Some(&'[') {
                chars.next();
                while chars.next().is_some_and(|c| !c.is_ascii_alphabetic() && c != '~') {}
            }
        } else if c == '\t' || !c.is_control() {
            out.push(c);
        }
        if out.len() >= LINE {
            out.push('…');
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_made_printable() {
        assert_eq!(printable("\u{1b}[31mred\u{1b}[0m\r\u{7}"), "red");
        assert!(printable(&"x".repeat(5_000)).len() < 2_010);
        assert_eq!(last_lines(&(0..80).map(|n| format!("{n}\n")).collect::<String>()).len(), 50);
    }
}
