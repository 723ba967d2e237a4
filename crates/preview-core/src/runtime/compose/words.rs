//! What the Compose CLI prints when it fails or warns, and what that means. The one place where its words are read.

use std::path::PathBuf;

use crate::fault::{Fault, FaultKind};

/// `2.40.3-3`, `v2.24.0-desktop.1`, `5.0.1`.
pub(super) fn parse_version(text: &str) -> Option<(u64, u64)> {
    let mut parts = text.trim().trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The one place where the CLI's words are read: it has no other way to say what went wrong.
pub(super) fn classify(operation: &'static str, stderr: &[String]) -> Fault {
    let mut text: Vec<&str> = Vec::new();
    // What it did before it failed says nothing, and it often says the last thing twice.
    for line in stderr.iter().map(|line| line.trim()).filter(|line| !line.is_empty() && warning(line).is_none()) {
        text.retain(|before| !before.ends_with(line));
        if !progress_of_up(line) {
            text.push(line);
        }
    }
    let all = text.join("\n");
    let lower = all.to_lowercase();
    let has = |needles: &[&str]| needles.iter().any(|needle| lower.contains(needle));
    let (kind, transient) = if has(&["port is already allocated", "address already in use"]) {
        (FaultKind::PortTaken, true)
    } else if has(&["is already in use by container"]) {
        (FaultKind::Conflict, false)
    } else if has(&["no space left on device"]) {
        (FaultKind::NoSpace, false)
    } else if has(&[
        "cannot connect to the docker daemon",
        "error during connect",
        "connection refused",
        "broken pipe",
        "unexpected eof",
    ]) {
        (FaultKind::Unreachable, true)
    } else if has(&[
        "tls handshake timeout",
        "i/o timeout",
        "temporary failure in name resolution",
        "502 bad gateway",
        "503 service unavailable",
        "toomanyrequests",
    ]) {
        (FaultKind::Failed, true)
    } else if has(&["pull access denied", "unauthorized", "authentication required"]) {
        (FaultKind::Denied, false)
    } else if has(&["no such image", "manifest unknown", "not found: manifest"]) {
        (FaultKind::NotFound, false)
    } else {
        (FaultKind::Failed, false)
    };
    let fault = Fault::new(kind, operation, all);
    if transient { fault.transient() } else { fault }
}

/// Whether this is a line such as `Container shop_pr-7-api-1  Starting`.
fn progress_of_up(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    matches!(words.as_slice(), ["Network" | "Volume" | "Container", _, doing]
        if doing.ends_with("ing") || doing.ends_with("ed") || matches!(*doing, "Recreate" | "Healthy" | "Error"))
}

/// Compose names the file in some of its messages only.
pub(super) fn name_files(message: &mut String, files: &[PathBuf]) {
    let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    if !files.iter().any(|file| message.contains(file)) {
        message.push_str(&format!(" (in {})", files.join(", ")));
    }
}

/// The text of a warning line: `time="…" level=warning msg="…"`, or `level=warning`-less `WARN[0000] …`.
pub(super) fn warning(line: &str) -> Option<String> {
    let rest = if line.starts_with("time=") && line.contains("level=warning") {
        line.split_once("msg=")?.1
    } else {
        line.strip_prefix("WARN[")?.split_once("] ")?.1
    };
    let text = serde_json::from_str::<String>(rest).unwrap_or_else(|_| rest.trim().to_owned());
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(parse_version("2.40.3-3"), Some((2, 40)));
        assert_eq!(parse_version("v2.24.0-desktop.1\n"), Some((2, 24)));
        assert_eq!(parse_version("1.29.2"), Some((1, 29)));
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn a_failure_is_said_once_and_without_what_went_before() {
        let said = [
            " Network shop_default  Creating",
            " Network shop_default  Created",
            " Container shop-app-1  Creating",
            " Container shop-app-1  Error response from daemon: no such thing",
            "Error response from daemon: no such thing",
        ];
        let fault = classify("bring the stack up", &said.map(str::to_owned));
        assert_eq!(fault.context, "Error response from daemon: no such thing");
    }

    #[test]
    fn warnings_are_read_in_both_forms() {
        let line = r#"time="2026-11-21T01:33:22Z" level=warning msg="The \"X\" variable is not set. Defaulting to a blank string.""#;
        assert_eq!(warning(line).as_deref(), Some("The \"X\" variable is not set. Defaulting to a blank string."));
        assert_eq!(warning("WARN[0000] something").as_deref(), Some("something"));
        assert_eq!(warning("Error: x"), None);
    }

    #[test]
    fn the_words_of_the_cli_have_a_kind() {
        let kind = |text: &str| {
            let fault = classify("x", &[text.to_owned()]);
            (fault.kind, fault.transient)
        };
        assert_eq!(
            kind("Error response from daemon: driver failed … Bind for 127.0.0.1:80 failed: port is already allocated"),
            (FaultKind::PortTaken, true)
        );
        assert_eq!(kind("write /x: no space left on device"), (FaultKind::NoSpace, false));
        assert_eq!(
            kind("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?"),
            (FaultKind::Unreachable, true)
        );
        let up = [" Network x_default  Creating", " Container x-web-1  Error", "dependency failed to start"];
        assert_eq!(classify("x", &up.map(str::to_owned)).context, "dependency failed to start");
        assert_eq!(kind("dependency failed to start: container x is unhealthy"), (FaultKind::Failed, false));
    }
}
