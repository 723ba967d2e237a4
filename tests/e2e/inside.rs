//! Into a running preview: steps, `exec`, `tunnel`, `logs --follow`.

use std::io::Write as _;

use preview_tests::{Ran, Site, VmEngine, Where, http_get};

use crate::stacks::{nothing, serving, stack};

const STEPS: &str = r#"
[[step]]
after = "start"
service = "data"
run = ["sh", "-c", "echo one >>/data/steps; echo the first step"]

[[step]]
after = "start"
service = "data"
run = ["sh", "-c", "echo two >>/data/steps; echo the second step"]
"#;

fn exec(args: &[&'static str]) -> Vec<&'static str> {
    [&["exec", "--pr", "7", "data", "--"], args].concat()
}

fn into(place: Where) {
    // A server on a port that nobody publishes.
    let compose = stack(&serving("one")).replace(
        "command: [\"sleep\", \"100000\"]",
        "command: [\"sh\", \"-c\", \"echo up; exec httpd -f -p 9000 -h /data\"]",
    );
    let Some(site) = Site::new(place, &compose) else { return };
    site.write("preview.toml", STEPS);

    // Steps, in order, and what they print.
    let ran = site.run(&["deploy", "--pr", "7", "-v"]).expect(0);
    let at = |text: &str| ran.err.find(text).unwrap_or_else(|| panic!("{text}: {}", ran.err));
    assert!(at("starting…") < at("| the first step") && at("| the first step") < at("| the second step"));
    assert_eq!(site.run(&exec(&["cat", "/data/steps"])).expect(0).out, "one\ntwo\n");

    // exec: standard input, both outputs, the exit code.
    let mut command = site.command(&exec(&["cat"]));
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("starts");
    child.stdin.take().expect("piped").write_all(b"hi\n").expect("writes");
    assert_eq!(Ran::from(child.wait_with_output().expect("ends")).expect(0).out, "hi\n");
    let ran = site.run(&exec(&["sh", "-c", "echo out; echo err >&2; exit 42"])).expect(42);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("out\n", "err\n"));
    // An open standard input that never says anything does not keep it.
    let idle = site.start(&exec(&["true"]));
    assert_eq!(idle.end().code, 0);

    // tunnel.
    let mut tunnel = site.start(&["tunnel", "--pr", "7", "data:9000"]);
    tunnel.until("leads to data:9000");
    preview_tests::eventually("the address is printed", || tunnel.printed().ends_with('\n'));
    let url = format!("http://{}/steps", tunnel.printed().trim());
    for _ in 0..3 {
        assert!(http_get(&url).expect("an answer").ends_with("one\ntwo\n"));
    }
    tunnel.interrupt();
    tunnel.end().expect(0);

    // logs --follow.
    let mut logs = site.start(&["logs", "--pr", "7", "--follow", "data"]);
    preview_tests::eventually("the log comes", || logs.printed().contains("data | up"));
    assert!(logs.at_work());
    logs.interrupt();
    logs.end().expect(0);

    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
}

#[test]
fn into_a_preview_on_this_machine() {
    into(Where::Local);
}

#[test]
fn into_a_preview_on_a_vm() {
    into(Where::Vm(VmEngine::V28));
}
