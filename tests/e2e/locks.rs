//! Two at work on one preview: one waits and says for whom, or gives up and says so. And what was changed by hand is mended.

use preview_tests::{Run, Site, VmEngine, Where};

use crate::stacks::{nothing, serving, stack, standing, still};

/// A step that lasts until the test lets it end.
const LONG: &str = "[[step]]\nafter = \"start\"\nservice = \"data\"\nrun = [\"sh\", \"-c\", \"until [ -e /data/go ]; do sleep 0.1; done\"]\n";

/// A deploy that holds the lock until [`go`].
fn holder(site: &Site) -> (Run, String) {
    site.run(&["exec", "--pr", "7", "data", "--", "rm", "-f", "/data/go"]).expect(0);
    let mut run = site.start(&["deploy", "--pr", "7", "--format", "json"]);
    run.until("verifying…");
    let name = format!("(process {})", run.id());
    (run, name)
}

fn go(site: &Site) {
    site.run(&["exec", "--pr", "7", "data", "--", "touch", "/data/go"]).expect(0);
}

fn two_at_once(place: Where) {
    let Some(site) = Site::new(place, &stack(&serving("one"))) else { return };
    let (url, _) = standing(&site, "pr-7", "7");
    site.write("preview.toml", LONG);
    site.write("compose.yml", &stack(&serving("two")));

    // One waits, and says for whom.
    let (first, name) = holder(&site);
    let mut second = site.start(&["deploy", "--pr", "7", "--format", "json"]);
    second.until("waiting for ");
    second.until(&name);
    second.until("deploy of pr-7");
    let status = site.run(&["status", "--pr", "7", "--format", "json"]).expect(0).json();
    assert_eq!(status["crashed"], false);
    assert!(status["locked_by"]["who"].as_str().is_some_and(|who| who.contains(&name)), "{status}");
    go(&site);
    assert_eq!(first.end().expect(0).json()["kind"], "update");
    assert_eq!(second.end().expect(0).json()["kind"], "unchanged");
    still(&site, &url, "7", "two");

    // One gives up, and has changed nothing.
    site.write("compose.yml", &stack(&serving("three")));
    let (first, name) = holder(&site);
    let before = site.containers("pr-7");
    site.write("compose.yml", &stack(&serving("four")));
    site.write("preview.toml", &format!("{LONG}[timeouts]\nlock = \"2s\"\n"));
    // A destroy asks who is at work to stop; one that hangs does not hear it.
    first.signal("STOP");
    for command in ["deploy", "destroy"] {
        let ran = site.run(&[command, "--pr", "7", "--format", "json"]).expect(7);
        assert!(ran.err.contains(&name) && ran.err.contains("is locked"), "{}", ran.err);
        assert_eq!(ran.json()["error"]["code"], 7);
        assert_eq!(ran.failure(), "locked");
    }
    first.signal("CONT");
    assert_eq!(site.containers("pr-7"), before);
    // What was asked for in vain concerns nobody.
    go(&site);
    assert_eq!(first.end().expect(0).json()["kind"], "update");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
}

#[test]
fn two_at_once_on_this_machine() {
    two_at_once(Where::Local);
}

#[test]
fn two_at_once_on_a_vm() {
    two_at_once(Where::Vm(VmEngine::V28));
}

/// A container that somebody stopped or removed comes back, and no other is touched.
fn mended(place: Where) {
    let Some(site) = Site::new(place, &stack(&serving("one"))) else { return };
    let (url, before) = standing(&site, "pr-7", "7");

    site.docker(&["stop", "-t", "0", &before["web"]]);
    let done = site.deploy("7").expect(0).json();
    assert_eq!((&done["kind"], &done["services"]["web"]["change"]), (&"update".into(), &"mend".into()), "{done}");
    assert_eq!(site.containers("pr-7"), before, "a stopped container is started, not replaced");
    still(&site, &url, "7", "one");

    site.docker(&["rm", "-f", &before["web"]]);
    let done = site.deploy("7").expect(0).json();
    assert_eq!(done["services"]["web"]["change"], "create", "{done}");
    let after = site.containers("pr-7");
    assert_eq!((after.len(), &after["data"]), (2, &before["data"]));
    still(&site, &url, "7", "one");
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "unchanged");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
}

#[test]
fn what_was_stopped_by_hand_is_mended_on_this_machine() {
    mended(Where::Local);
}

#[test]
fn what_was_stopped_by_hand_is_mended_on_a_vm() {
    mended(Where::Vm(VmEngine::V28));
}
