//! Standard error as a log: every line is a JSON object that says of which run it is, phases stand in order with their durations,
//! a failure has its code, and no secret is in it.

use preview_tests::{Ran, Site, VmEngine, Where};
use serde_json::Value;

use crate::secrets::{clean, needles, planted};

/// Prints what it knows while it is built, while it runs and when it ends; and gives commands to terminals and runners.
const COMPOSE: &str = r#"
services:
  app:
    build: .
    command: ["sh", "-c", "env; printf '\\033[31m##[error]red\\n'; ${END:-exec sleep 100000}"]
    environment: {PLAIN: , AWKWARD: , LINES: , JSON_LIKE: }
    stop_grace_period: 0s
"#;
const DOCKERFILE: &str = "FROM busybox:1.36\nRUN echo '##[error]from the build'; echo one >/word\n";
const CONFIG: &str = "[[secrets]]\nkind = \"env\"\nnames = [\"PLAIN\", \"AWKWARD\", \"LINES\", \"JSON_LIKE\"]\n";
const STATUSES: [&str; 8] = ["started", "done", "failed", "note", "progress", "waiting", "report", "trace"];

/// The lines of the log, each with what every line has. Masks are the runner's.
#[track_caller]
fn lines(ran: &Ran, command: &str) -> Vec<Value> {
    let mut found: Vec<Value> = Vec::new();
    for text in ran.err.lines().filter(|line| !line.starts_with("::add-mask::")) {
        assert!(!text.contains("##[") && !text.chars().any(char::is_control), "{text}");
        let line: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}\n{}", ran.err));
        for name in ["time", "level", "run", "command", "status", "message"] {
            assert!(line[name].is_string(), "no {name}: {text}");
        }
        let time = line["time"].as_str().unwrap_or_default();
        assert!(time.len() == 24 && time.as_bytes()[19] == b'.' && time.ends_with('Z'), "{text}");
        assert!(found.last().is_none_or(|before| before["time"].as_str() <= Some(time)), "{text}");
        assert_eq!(line["command"], command, "{text}");
        let status = line["status"].as_str().unwrap_or_default();
        assert!(STATUSES.contains(&status), "{text}");
        let ended = ["done", "failed"].contains(&status);
        assert_eq!(line["duration_ms"].is_u64(), ended, "{text}");
        assert_eq!(line["code"].is_string(), status == "failed", "{text}");
        found.push(line);
    }
    let last = found.last().expect("a line");
    assert_eq!((&found[0]["status"], last["phase"].is_null()), (&"started".into(), true), "{}", ran.err);
    assert_eq!(last["status"], if ran.code == 0 { "done" } else { "failed" }, "{}", ran.err);
    assert!(found.iter().all(|line| line["run"] == found[0]["run"]));
    found
}

/// Phase and status of the lines that begin or end a stage.
fn stages(lines: &[Value]) -> Vec<String> {
    let ends = |line: &&Value| {
        line["phase"].is_string() && ["started", "done", "failed"].map(Value::from).contains(&line["status"])
    };
    let say = |line: &Value| {
        format!("{} {}", line["phase"].as_str().unwrap_or_default(), line["status"].as_str().unwrap_or_default())
    };
    lines.iter().filter(ends).map(say).collect()
}

fn everywhere(place: Where) {
    let Some(mut site) = Site::new(place, COMPOSE) else { return };
    site.write("Dockerfile", DOCKERFILE);
    site.write("preview.toml", CONFIG);
    for (name, value) in planted() {
        site.set(name, value);
    }
    for (name, value) in [("GITHUB_RUN_ID", "1234"), ("GITHUB_RUN_ATTEMPT", "2"), ("PREVIEW_LOG_FORMAT", "json")] {
        site.set(name, value);
    }
    let needles = needles(planted().into_values().map(str::to_owned));
    let run = |site: &Site, args: &[&str], code: i32| {
        let ran = site.run(args).expect(code);
        clean(&format!("the log of {args:?}"), &ran.err, &needles);
        let found = lines(&ran, args[0]);
        (ran, found)
    };

    // A first deploy, with all that can be said.
    let (ran, found) = run(&site, &["deploy", "--pr", "7", "--owner", "octocat", "-vvv"], 0);
    let order = ["preparing", "building", "starting", "verifying"];
    let whole: Vec<String> =
        order.iter().flat_map(|phase| [format!("{phase} started"), format!("{phase} done")]).collect();
    assert_eq!(stages(&found), whole, "{}", ran.err);
    let last = found.last().expect("a line");
    assert_eq!((&last["run"], &last["preview"], &last["owner"]), (&"1234-2".into(), &"pr-7".into(), &"octocat".into()));
    assert_eq!(last["app"], site.app.as_str());
    let took = |line: &Value| line["duration_ms"].as_u64().unwrap_or_default();
    let of_stages: u64 = found.iter().filter(|line| line["phase"].is_string()).map(took).sum();
    assert!(took(last) > 0 && of_stages > 0 && of_stages <= took(last) + 50, "{of_stages} ms of {} ms", took(last));
    let with = |status: &str, text: &str| {
        found.iter().any(|line| line["status"] == status && line["message"].as_str().is_some_and(|m| m.contains(text)))
    };
    assert!(with("progress", "##[error]from the build") && with("report", "pr-7: created"), "{}", ran.err);
    assert!(with("trace", "run: stage: asked the engine") && with("trace", "asked the host"), "{}", ran.err);

    // One that fails: the stage and the run end with the code, the report is one line.
    site.write("preview.toml", &format!("{CONFIG}[env]\nEND = \"exit 7\"\n"));
    let (ran, found) = run(&site, &["deploy", "--pr", "7", "--format", "json"], 4);
    assert_eq!(ran.failure(), "exited");
    let stages = stages(&found);
    assert_eq!(stages.last().map(String::as_str), Some("verifying failed"), "{}", ran.err);
    assert_eq!(stages.iter().filter(|stage| stage.ends_with("failed")).count(), 1, "{}", ran.err);
    let codes: Vec<_> = found.iter().filter(|line| line["status"] == "failed").map(|line| &line["code"]).collect();
    assert_eq!(codes, ["exited", "exited"], "the stage's and the run's");
    let report = found.iter().find(|line| line["status"] == "report").expect("a report");
    assert!(report["message"].as_str().is_some_and(|text| text.contains("PLAIN=***")), "{report}");

    // One that is refused before anything, and commands that only look.
    site.write("preview.toml", &format!("{CONFIG}memry = 1\n"));
    let (_, found) = run(&site, &["deploy", "--pr", "7"], 2);
    assert_eq!(found.last().expect("a line")["code"], "config_invalid");
    site.write("preview.toml", CONFIG);
    for args in [&["status", "--pr", "7"][..], &["list"], &["plan", "--pr", "7"], &["logs", "--pr", "7"]] {
        run(&site, args, 0);
    }
    assert_eq!(run(&site, &["status", "--pr", "8"], 2).1.last().expect("a line")["code"], "not_found");

    // A job of GitHub Actions: masks are printed all the same, before anything that was made with their values.
    site.set("GITHUB_ACTIONS", "true");
    let (ran, found) = run(&site, &["deploy", "--pr", "7"], 0);
    assert_eq!(found.first().expect("a line")["status"], "started");
    assert!(ran.err.contains("::add-mask::s3cr3t-plain-value\n"), "{}", ran.err);
    let (first, last) = (ran.err.find("\"phase\":\"building\""), ran.err.rfind("::add-mask::"));
    assert!(last < first, "{}", ran.err);
    let (_, found) = run(&site, &["destroy", "--pr", "7"], 0);
    assert_eq!(self::stages(&found), ["destroying started", "destroying done"]);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn on_this_machine() {
    everywhere(Where::Local);
}

#[test]
fn on_a_vm() {
    everywhere(Where::Vm(VmEngine::V28));
}
