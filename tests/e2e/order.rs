//! Runs that come in the wrong order: a close wins over what was pushed before it, and an older push never overwrites a newer one.

use preview_tests::{Site, VmEngine, Where};

use crate::stacks::{nothing, serving, stack};

const LONG: &str = "[[step]]\nafter = \"start\"\nservice = \"web\"\nrun = [\"sleep\", \"1000\"]\n";

/// The event file of a pull request.
fn event(site: &Site, action: &str, at: &str) -> String {
    let name = format!("{action}-{}.json", at.replace(':', "-"));
    let repository = format!("{{\"full_name\": \"acme/{}\"}}", site.app);
    site.write(
        &name,
        &format!(
            r#"{{"action": "{action}", "number": 7, "repository": {repository},
            "pull_request": {{"number": 7, "updated_at": "{at}", "user": {{"login": "ada"}},
            "head": {{"sha": "abc", "repo": {repository}}}, "base": {{"repo": {repository}}}}}}}"#
        ),
    );
    site.dir.path().join(name).to_string_lossy().into_owned()
}

/// A run of `preview ci` for an event.
fn at(site: &mut Site, action: &str, time: &str) {
    let file = event(site, action, &format!("2026-03-01T{time}Z"));
    site.set("GITHUB_ACTIONS", "true");
    site.set("GITHUB_EVENT_NAME", "pull_request");
    site.set("GITHUB_REPOSITORY", &format!("acme/{}", site.app));
    site.set("GITHUB_EVENT_PATH", &file);
}

fn address(site: &Site) -> String {
    let status = site.run(&["status", "--pr", "7", "--format", "json"]).expect(0).json();
    status["addresses"][0]["url"].as_str().expect("an address").to_owned()
}

#[track_caller]
fn shows(site: &Site, url: &str, word: &str) {
    let page = site.get(url);
    assert!(page.trim_end().ends_with(word), "{page}");
}

/// What a close leaves is the word that it happened, so that no run of before brings the preview back.
fn only_tombstones(site: &Site, number: usize) {
    nothing(site);
    assert_eq!(site.tombstones().len(), number);
}

fn wrong_order(place: Where) {
    let Some(mut site) = Site::new(place, &stack(&serving("one"))) else { return };

    // Two pushes whose runs arrive swapped.
    site.write("compose.yml", &stack(&serving("two")));
    at(&mut site, "synchronize", "10:20:00");
    site.run(&["ci"]).expect(0);
    let (url, before) = (address(&site), site.containers("pr-7"));
    site.write("compose.yml", &stack(&serving("one")));
    at(&mut site, "synchronize", "10:10:00");
    let ran = site.run(&["ci"]).expect(3);
    assert!(
        ran.err.contains("pr-7 is left as it is: a run for a later event (2026-03-01T10:20:00Z) was here"),
        "{}",
        ran.err
    );
    shows(&site, &url, "two");
    assert_eq!(site.containers("pr-7"), before);

    // Closed, then a late deploy of an older commit.
    at(&mut site, "closed", "10:30:00");
    site.run(&["ci"]).expect(0);
    only_tombstones(&site, 1);
    at(&mut site, "synchronize", "10:25:00");
    let ran = site.run(&["ci"]).expect(3);
    assert!(ran.err.contains("it was closed at 2026-03-01T10:30:00Z by "), "{}", ran.err);
    only_tombstones(&site, 1);

    // Reopened, it deploys again; and a close of before that comes too late.
    at(&mut site, "reopened", "10:40:00");
    site.run(&["ci"]).expect(0);
    let url = address(&site);
    shows(&site, &url, "one");
    at(&mut site, "closed", "10:35:00");
    let ran = site.run(&["ci"]).expect(3);
    assert!(ran.err.contains("pr-7 is left as it is"), "{}", ran.err);
    shows(&site, &url, "one");

    at(&mut site, "closed", "10:50:00");
    site.run(&["ci"]).expect(0);
    only_tombstones(&site, 3);
}

#[test]
fn the_wrong_order_on_this_machine() {
    wrong_order(Where::Local);
}

#[test]
fn the_wrong_order_on_a_vm() {
    wrong_order(Where::Vm(VmEngine::V28));
}

/// A close stops who is at work: while it builds, while it verifies an update, and by hand.
fn close_at_work(place: Where) {
    let built = "services:\n  web:\n    build:\n      context: .\n      dockerfile_inline: |\n        FROM busybox:1.36\n        RUN sleep 1000\n";
    let Some(mut site) = Site::new(place, built) else { return };
    at(&mut site, "synchronize", "10:00:00");
    let mut deploy = site.start(&["ci"]);
    deploy.until("building…");
    std::thread::sleep(std::time::Duration::from_secs(2));
    at(&mut site, "closed", "10:05:00");
    site.run(&["ci"]).expect(0);
    let ran = deploy.end().expect(3);
    assert!(ran.err.contains("was stopped while building, and the preview removed: it was closed at"), "{}", ran.err);
    only_tombstones(&site, 1);

    // An update: what ran before goes as well.
    site.write("compose.yml", &stack(&serving("one")));
    at(&mut site, "reopened", "10:10:00");
    site.run(&["ci"]).expect(0);
    site.write("compose.yml", &stack(&serving("two")));
    site.write("preview.toml", LONG);
    at(&mut site, "synchronize", "10:15:00");
    let mut deploy = site.start(&["ci"]);
    deploy.until("verifying…");
    at(&mut site, "closed", "10:20:00");
    site.run(&["ci"]).expect(0);
    let ran = deploy.end().expect(3);
    assert!(ran.err.contains("was stopped while verifying"), "{}", ran.err);
    only_tombstones(&site, 2);
}

/// By hand: the wish goes with its run.
fn destroy_at_work(place: Where) {
    let Some(site) = Site::new(place, &stack(&serving("one"))) else { return };
    for there in [false, true] {
        if there {
            site.write("preview.toml", "");
            site.deploy("7").expect(0);
            site.write("compose.yml", &stack(&serving("two")));
        }
        site.write("preview.toml", LONG);
        let mut deploy = site.start(&["deploy", "--pr", "7"]);
        deploy.until("verifying…");
        site.run(&["destroy", "--pr", "7"]).expect(0);
        let ran = deploy.end().expect(3);
        assert!(ran.err.contains("was stopped while verifying, and the preview removed: "), "{}", ran.err);
        assert!(ran.err.contains(" for it to be destroyed"), "{}", ran.err);
        nothing(&site);
    }
}

#[test]
fn a_close_stops_who_is_at_work_on_this_machine() {
    close_at_work(Where::Local);
}

#[test]
fn a_close_stops_who_is_at_work_on_a_vm() {
    close_at_work(Where::Vm(VmEngine::V28));
}

#[test]
fn a_destroy_stops_who_is_at_work_on_this_machine() {
    destroy_at_work(Where::Local);
}

#[test]
fn a_destroy_stops_who_is_at_work_on_a_vm() {
    destroy_at_work(Where::Vm(VmEngine::V20));
}
