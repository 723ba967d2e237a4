//! What the Compose CLI prints when it fails or warns, and what that means. The one place where its words are read.

use std::path::PathBuf;

use crate::failure::FailureCode;
use crate::fault::{Fault, FaultKind};

/// `2.40.3-3`, `v2.24.0-desktop.1`, `5.0.1`.
pub(crate) fn parse_version(text: &str) -> Option<(u64, u64)> {
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
    let full = lower.contains("no space left on device");
    // A build ends with one line of its own. What stands above is what programs of the user printed: it says nothing about the engine.
    let verdict = lower.lines().rfind(|line| line.contains("failed to solve: ")).unwrap_or(&lower);
    let has = |needles: &[&str]| needles.iter().any(|needle| verdict.contains(needle));
    // BuildKit asks registries itself.
    let registry =
        !has(&DOCKERFILE) && has(&["failed to resolve source metadata", "failed to do request", "failed to authorize"]);
    let (kind, transient) = if has(&["port is already allocated", "address already in use"]) {
        (FaultKind::PortTaken, true)
    } else if has(&["is already in use by container"]) {
        (FaultKind::Conflict, false)
    } else if full {
        (FaultKind::NoSpace, false)
    } else if has(&DOCKERFILE) {
        (FaultKind::Failed, false)
    } else if registry {
        of_registry(&has)
    } else if has(&[
        "cannot connect to the docker daemon",
        "error during connect",
        "connection refused",
        "broken pipe",
        "unexpected eof",
        // BuildKit's, when the engine goes under a build.
        "failed to receive status: rpc error: code = unavailable",
        "error reading from server",
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
    let fault = if registry && kind == FaultKind::Failed { fault.coded(FailureCode::ImagePullFailed) } else { fault };
    if transient { fault.transient() } else { fault }
}

/// A command of the Dockerfile failed, or the Dockerfile is wrong; old builders come second. The command may stand in the line too.
const DOCKERFILE: [&str; 4] = [
    "did not complete successfully: exit code",
    "executor failed running",
    "returned a non-zero code",
    "dockerfile parse error",
];

/// What a registry's words mean. Limits come with a 401 or "denied" in some registries, so they are looked for first.
fn of_registry(has: &impl Fn(&[&str]) -> bool) -> (FaultKind, bool) {
    if has(&["toomanyrequests", "too many requests", "rate limit"]) {
        (FaultKind::Failed, true)
    } else if has(&["denied", "unauthorized", "authorization failed", "forbidden", "authentication required"]) {
        (FaultKind::Denied, false)
    } else if has(&["not found", "manifest unknown", "does not exist"]) {
        (FaultKind::NotFound, false)
    } else {
        let passing = [
            "connection refused",
            "connection reset",
            "broken pipe",
            "eof",
            "timeout",
            "temporary failure in name resolution",
            "500 internal server error",
            "502 bad gateway",
            "503 service unavailable",
            "504 gateway",
        ];
        (FaultKind::Failed, has(&passing))
    }
}

/// Whether this is a line such as `Container shop_pr-7-api-1  Starting`.
fn progress_of_up(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    matches!(words.as_slice(), ["Network" | "Volume" | "Container", _, doing]
        if doing.ends_with("ing") || doing.ends_with("ed") || matches!(*doing, "Recreate" | "Healthy" | "Error"))
}

/// What Compose says of a project's files, for people: with the files, which it names in some of its messages only, with what helps against it,
/// and without what it quotes of files with variables, which may be secrets.
pub(super) fn of_files(message: String, files: &[PathBuf]) -> String {
    let mut message = without_quotes(message);
    if let Some(name) = between(&message, "required variable ", " is missing a value") {
        let hint = format!(
            ": variables of the machine that deploys are not passed to Compose; declare `{name}` in [env], [[secrets]] or [generate], or write a default, as in `${{{name}:-…}}`"
        );
        message.push_str(&hint);
    }
    let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    if !files.iter().any(|file| message.contains(file)) {
        message.push_str(&format!(" (in {})", files.join(", ")));
    }
    message
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(between, _)| between)
}

/// Compose quotes lines of files with variables that it cannot read: of these messages only the file and the line are kept.
fn without_quotes(message: String) -> String {
    const QUOTING: [&str; 4] =
        ["unexpected character", "unterminated quoted value", "variable name", "key cannot contain a space"];
    if !message.contains("failed to read ") && !QUOTING.iter().any(|words| message.contains(words)) {
        return message;
    }
    let start = message.find("failed to read ").unwrap_or(0);
    let said = message.get(start..).unwrap_or(&message);
    let file = between(said, "failed to read ", ": ").unwrap_or("a file with variables");
    let line = between(said, ": line ", ":").filter(|line| line.bytes().all(|byte| byte.is_ascii_digit()));
    let at = line.map(|line| format!(", line {line}")).unwrap_or_default();
    format!(
        "{file}{at}: this is not of the form `NAME=value`; put a value with quotes, spaces or `#` into single quotes"
    )
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
    fn an_engine_that_goes_under_a_build_is_no_wrong_dockerfile() {
        let said = "failed to receive status: rpc error: code = Unavailable desc = error reading from server: EOF";
        let fault = classify("build the images", &[said.to_owned()]);
        assert_eq!((fault.kind, fault.transient), (FaultKind::Unreachable, true));
        assert_eq!(crate::failure::of_build(fault).failure(), FailureCode::EngineUnreachable);
    }

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
        let solve = "target web: failed to solve: ";
        let of = |text: &str| kind(&format!("{solve}{text}"));
        // What a program of the user's said is no fault of the engine, and is not tried again.
        assert_eq!(
            kind(&format!(
                "#9 curl: (7) connection refused\n{solve}process \"/bin/sh -c curl x\" did not complete successfully: exit code: 7"
            )),
            (FaultKind::Failed, false)
        );
        assert_eq!(
            of("dockerfile parse error on line 2: unknown instruction: BROKEN PIPE"),
            (FaultKind::Failed, false)
        );
        assert_eq!(
            kind(&format!(
                "#6 0.1 connection refused\n{solve}executor failed running [/bin/sh -c echo connection refused]: exit code: 7"
            )),
            (FaultKind::Failed, false)
        );
        assert_eq!(kind(&format!("#9 i/o timeout\n{solve}something else")), (FaultKind::Failed, false));
        let source = "x/y:1: failed to resolve source metadata for docker.io/x/y:1: ";
        assert_eq!(of(&format!("{source}docker.io/x/y:1: not found")), (FaultKind::NotFound, false));
        assert_eq!(
            of(&format!("{source}pull access denied, repository does not exist or may require authorization")),
            (FaultKind::Denied, false)
        );
        let dial = "failed to do request: Head \"https://r/v2/y/manifests/1\": dial tcp";
        assert_eq!(of(&format!("{source}{dial} 127.0.0.1:9: connect: connection refused")), (FaultKind::Failed, true));
        assert_eq!(of(&format!("{source}{dial}: lookup r: no such host")), (FaultKind::Failed, false));
        assert_eq!(of(&format!("{source}429 Too Many Requests - toomanyrequests: denied")), (FaultKind::Failed, true));
        let fault = classify("x", &[format!("{solve}{source}{dial}: lookup r: no such host")]);
        assert_eq!(fault.failure(), FailureCode::ImagePullFailed);
        let up = [" Network x_default  Creating", " Container x-web-1  Error", "dependency failed to start"];
        assert_eq!(classify("x", &up.map(str::to_owned)).context, "dependency failed to start");
        assert_eq!(kind("dependency failed to start: container x is unhealthy"), (FaultKind::Failed, false));
    }
}
