//! Versions that do not work: an update goes back to what worked, a first deploy leaves nothing, and the report says why.

use preview_tests::{Ran, Site, VmEngine, Where, eventually};
use serde_json::Value;

use crate::stacks::{never_up, nothing, serving, stack, standing, still, waiting, with_web};

/// Prints more than a report shows, and serves nothing.
const MUTE: &str = "i=0; while [ $$i -lt 80 ]; do i=$$((i+1)); echo line $$i; done; exec sleep 100000";
/// Nobody listens there.
const UNKNOWN: &str = "    image: 127.0.0.1:9/none/such:1\n";
const BAD_STEP: &str =
    "[[step]]\nafter = \"start\"\nservice = \"data\"\nrun = [\"sh\", \"-c\", \"echo the step says no; exit 9\"]\n";

/// The report of a deploy that failed.
#[track_caller]
fn report(ran: &Ran) -> Value {
    let report = ran.json()["error"]["report"].clone();
    assert!(report.is_object(), "{}\n{}", ran.out, ran.err);
    report
}

/// The report has the last 50 of the 80 lines of [`MUTE`], and what the health check said.
#[track_caller]
fn tells_of_mute(ran: &Ran) {
    let report = report(ran);
    let service = &report["services"][0];
    assert_eq!(service["service"], "web", "{report}");
    let log: Vec<&str> = service["log"].as_array().expect("lines").iter().filter_map(Value::as_str).collect();
    assert_eq!((log.len(), log.first(), log.last()), (50, Some(&"line 31"), Some(&"line 80")));
    assert!(service["health_output"].as_str().is_some_and(|text| text.contains("refused")), "{report}");
    for text in ["web is unhealthy", "| line 80", "health check said"] {
        assert!(ran.err.contains(text), "{text}: {}", ran.err);
    }
    assert!(!ran.err.contains("| line 30\n"), "{}", ran.err);
}

fn updates(place: Where) {
    let Some(site) = Site::new(place, &stack(&serving("one"))) else { return };
    let (url, before) = standing(&site, "pr-7", "7");
    let back = |ran: &Ran| {
        assert_eq!(report(ran)["restored"]["kind"], "previous", "{}", ran.err);
        still(&site, &url, "7", "one");
        let now = site.containers("pr-7");
        assert_eq!(now["data"], before["data"], "what did not change stays untouched");
        assert_eq!(now.len(), 2, "{now:?}");
    };

    // Never healthy.
    site.write("compose.yml", &stack(MUTE));
    let ran = site.deploy("7").expect(4);
    tells_of_mute(&ran);
    back(&ran);
    assert_eq!((ran.failure().as_str(), &report(&ran)["services"][0]["failure"]), ("unhealthy", &"unhealthy".into()));
    let status = site.run(&["status", "--pr", "7", "--format", "json"]).expect(0).json();
    assert_eq!((&status["phase"], &status["crashed"]), (&"failed".into(), &false.into()));
    assert!(status["failure"]["message"].as_str().is_some_and(|text| text.contains("web is unhealthy")), "{status}");
    assert_eq!(status["failure"]["code"], "unhealthy", "{status}");
    assert!(site.run(&["status", "--pr", "7"]).expect(0).out.contains("(unhealthy): web is unhealthy"));

    // The version before is what runs: nothing to do.
    site.write("compose.yml", &stack(&serving("one")));
    let now = site.containers("pr-7");
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "unchanged");
    assert_eq!(site.containers("pr-7"), now);
    assert_eq!(site.phase("pr-7"), "ready");

    // Ends at once, once and for all or again and again.
    site.write("compose.yml", &stack("echo I give up; exit 3").replace("    ports", "    restart: \"no\"\n    ports"));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("exited with code 3") && ran.err.contains("| I give up"), "{}", ran.err);
    assert_eq!(report(&ran)["services"][0]["exit_code"], 3);
    assert_eq!(ran.failure(), "exited");
    back(&ran);
    site.write("compose.yml", &stack("echo I give up; exit 3"));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("again and again") && ran.err.contains("| I give up"), "{}", ran.err);
    assert_eq!(ran.failure(), "exited");
    back(&ran);

    // An image that does not exist: known before anything is touched.
    let before = site.containers("pr-7");
    site.write("compose.yml", &with_web(UNKNOWN));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("127.0.0.1:9/none/such:1") && ran.err.contains("while pulling"), "{}", ran.err);
    assert_eq!(ran.failure(), "image_pull_failed");
    back(&ran);
    assert_eq!(site.containers("pr-7"), before);

    // A step that fails: its output is shown.
    site.write("compose.yml", &stack(&serving("two")));
    site.write("preview.toml", BAD_STEP);
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("| the step says no") && ran.err.contains("exited with code 9"), "{}", ran.err);
    assert_eq!(report(&ran)["output"][0], "the step says no");
    assert_eq!(ran.failure(), "step_failed");
    back(&ran);

    // Neither healthy nor unhealthy within the limit.
    let slow = stack("sleep 100000").replace("retries: 4", "retries: 4\n      start_period: 1000s");
    site.write("compose.yml", &slow);
    site.write("preview.toml", "[timeouts]\nverify = \"3s\"\n");
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("after 3 s: web is not healthy yet"), "{}", ran.err);
    assert_eq!(ran.failure(), "unhealthy");
    back(&ran);
    site.write("preview.toml", "");
    let ran = site.run(&["deploy", "--pr", "7", "--format", "json", "--timeout", "15s"]).expect(5);
    assert!(ran.err.contains("the whole run took longer than 15 s"), "{}", ran.err);
    assert_eq!(ran.failure(), "timed_out");
    back(&ran);
    assert_eq!(site.phase("pr-7"), "timed_out");

    // Ctrl-C while it is verified, and while Compose is at work.
    let mut run = site.start(&["deploy", "--pr", "7", "--format", "json"]);
    run.until("verifying…");
    run.interrupt();
    let ran = run.end().expect(5);
    assert_eq!(ran.failure(), "interrupted");
    back(&ran);
    assert_eq!(site.phase("pr-7"), "aborted");

    site.write("compose.yml", &never_up());
    let mut run = site.start(&["deploy", "--pr", "7", "--format", "json"]);
    run.until("starting…");
    eventually("Compose waits", || site.containers("pr-7").contains_key("first"));
    run.interrupt();
    back(&run.end().expect(5));

    // Looks well for a while each time, so that it is asked for an answer.
    site.write("compose.yml", &stack("sleep 2; exit 3").replace("wget", "true"));
    site.write(
        "preview.toml",
        "[timeouts]\nverify = \"20s\"\n\n[health]\npath = \"/\"\nservice = \"web\"\nport = 8080\n",
    );
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("web ends again and again"), "{}", ran.err);
    assert_eq!(ran.failure(), "exited");
    back(&ran);
    site.write("preview.toml", "");

    // Repaired.
    site.write("compose.yml", &stack(&serving("three")));
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "update");
    still(&site, &url, "7", "three");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
}

#[test]
fn an_update_that_fails_goes_back_on_this_machine() {
    updates(Where::Local);
}

#[test]
fn an_update_that_fails_goes_back_with_the_other_compose() {
    updates(Where::OtherCompose);
}

#[test]
fn an_update_that_fails_goes_back_on_a_vm() {
    updates(Where::Vm(VmEngine::V28));
}

fn builds(place: Where) {
    let built = "    build: ./web\n";
    let dockerfile = |word: &str, extra: &str| {
        format!(
            "FROM busybox:1.36\n{extra}RUN mkdir /srv && echo {word} >/srv/index.html\nCMD [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/srv\"]\n"
        )
    };
    let Some(site) = Site::new(place, &with_web(built)) else { return };
    site.write("web/Dockerfile", &dockerfile("one", ""));
    let (url, before) = standing(&site, "pr-7", "7");
    let image = |id: &str| site.docker(&["inspect", "--format", "{{.Image}}", id]);
    let good = image(&before["web"]);

    // The build fails: its last lines are in the report, and nothing was touched.
    site.write("web/Dockerfile", &dockerfile("two", "RUN echo about to fail: connection refused && exit 7\n"));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("while building") && ran.err.contains("about to fail"), "{}", ran.err);
    let output = report(&ran)["output"].to_string();
    assert!(output.contains("about to fail") && output.contains("exit code: 7"), "{output}");
    assert_eq!(ran.failure(), "build_failed");
    assert!(!ran.err.contains("trying again"), "{}", ran.err);
    assert_eq!(site.containers("pr-7"), before);
    still(&site, &url, "7", "one");

    // It takes too long.
    site.write("web/Dockerfile", &dockerfile("two", "RUN sleep 300\n"));
    site.write("preview.toml", "[timeouts]\nbuild = \"3s\"\n");
    let ran = site.start(&["deploy", "--pr", "7", "--format", "json"]).end().expect(5);
    assert!(ran.err.contains("while building: it took longer than 3 s ([timeouts] build)"), "{}", ran.err);
    assert_eq!(site.containers("pr-7"), before);
    site.write("preview.toml", "");

    // It builds, but does not work: the image of before runs again, under its name.
    site.write("web/Dockerfile", &dockerfile("two", "").replace("8080", "8081"));
    let ran = site.deploy("7").expect(4);
    assert_eq!(report(&ran)["restored"]["kind"], "previous", "{}", ran.err);
    still(&site, &url, "7", "one");
    let now = site.containers("pr-7");
    assert_eq!((image(&now["web"]), &now["data"]), (good.clone(), &before["data"]));
    site.write("web/Dockerfile", &dockerfile("one", ""));
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "unchanged");
    assert_eq!(site.containers("pr-7"), now);

    // Repaired.
    site.write("web/Dockerfile", &dockerfile("three", ""));
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "update");
    still(&site, &url, "7", "three");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
}

#[test]
fn a_build_that_fails_on_this_machine() {
    builds(Where::Local);
}

#[test]
fn a_build_that_fails_on_a_vm() {
    builds(Where::Vm(VmEngine::V28));
}

#[test]
fn a_build_that_fails_on_engine_29() {
    builds(Where::Vm(VmEngine::V29));
}

#[test]
fn a_build_that_fails_with_the_other_compose() {
    builds(Where::OtherCompose);
}

fn first_deploys(place: Where) {
    let Some(site) = Site::new(place, &stack(MUTE)) else { return };
    let gone = |ran: &Ran| {
        assert_eq!(report(ran)["restored"]["kind"], "removed", "{}", ran.err);
        nothing(&site);
    };
    let ran = site.deploy("7").expect(4);
    tells_of_mute(&ran);
    gone(&ran);

    site.write("compose.yml", &stack("echo I give up; exit 1").replace("    ports", "    restart: \"no\"\n    ports"));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("exited with code 1") && ran.err.contains("| I give up"), "{}", ran.err);
    gone(&ran);

    site.write("compose.yml", &with_web(UNKNOWN));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("127.0.0.1:9/none/such:1"), "{}", ran.err);
    gone(&ran);

    site.write("compose.yml", &stack(&serving("one")));
    site.write("preview.toml", BAD_STEP);
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("| the step says no"), "{}", ran.err);
    gone(&ran);
    site.write("preview.toml", "");

    // More memory than it may have.
    let greedy = stack("x=$$(head -c 200000000 /dev/zero | tr '\\0' x); exec sleep 100000");
    site.write("compose.yml", &greedy.replace("    ports", "    mem_limit: 16m\n    restart: \"no\"\n    ports"));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("ended for lack of memory"), "{}", ran.err);
    assert_eq!((ran.failure().as_str(), &report(&ran)["services"][0]["failure"]), ("oom_killed", &"oom_killed".into()));
    gone(&ran);

    // What another service waits for in vain is named, though it is Compose that fails.
    site.write("compose.yml", &waiting(false).replace(", start_period: 1000s", ""));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("first (unhealthy)"), "{}", ran.err);
    assert_eq!(ran.failure(), "unhealthy");
    gone(&ran);

    // Ctrl-C while Compose is at work.
    site.write("compose.yml", &waiting(false));
    let mut run = site.start(&["deploy", "--pr", "7", "--format", "json"]);
    run.until("starting…");
    eventually("the first container is there", || !site.containers("pr-7").is_empty());
    run.interrupt();
    gone(&run.end().expect(5));
}

#[test]
fn a_first_deploy_that_fails_leaves_nothing_on_this_machine() {
    first_deploys(Where::Local);
}

#[test]
fn a_first_deploy_that_fails_leaves_nothing_on_a_vm() {
    first_deploys(Where::Vm(VmEngine::V28));
}
