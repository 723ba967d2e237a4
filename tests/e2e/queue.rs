//! Who finds no place and waits: first come, first served; and who makes room for another.

use preview_tests::{Run, Site, VmEngine, Where, eventually};

use crate::stacks::{SMALL, limits, nothing};

fn waiting(site: &Site, pr: &str, owner: &str, position: u32) -> Run {
    let mut run = site.start(&["deploy", "--pr", pr, "--owner", owner]);
    run.until(&format!("position {position} in the queue"));
    run
}

fn names(site: &Site) -> Vec<String> {
    let list = site.run(&["list", "--format", "json"]).expect(0).json();
    let previews = list["previews"].as_array().expect("a list");
    previews
        .iter()
        .map(|listed| format!("{} {}", listed["name"].as_str().unwrap_or("?"), listed["phase"].as_str().unwrap_or("?")))
        .collect()
}

fn queue(place: Where) {
    let Some(site) = Site::new(place, SMALL) else { return };
    let one = limits(1, "on_full = \"queue\"\nmax_per_owner = 1\n");
    site.write("preview.toml", &one);
    site.run(&["deploy", "--pr", "1", "--owner", "ada"]).expect(0);
    // One behind the other; one of them dies, one gives up, one is closed, one runs out of time.
    let second = waiting(&site, "2", "bob", 1);
    let third = waiting(&site, "3", "cem", 2);
    let mut fourth = waiting(&site, "4", "dan", 3);
    let fifth = waiting(&site, "5", "eve", 4);
    let sixth = waiting(&site, "6", "fay", 5);
    assert_eq!(names(&site)[0], "pr-1 ready");
    assert_eq!(names(&site)[5], "pr-6 queued");
    let status = site.run(&["status", "--pr", "3", "--format", "json"]).expect(0).json();
    assert_eq!((&status["phase"], &status["queued"]["position"]), (&"queued".into(), &2.into()), "{status}");
    assert_eq!((&status["owner"], &status["subject"]), (&"cem".into(), &"pull request 3".into()), "{status}");
    let ran = site.run(&["status", "--pr", "4"]).expect(0);
    assert!(ran.out.contains(": queued\n  queued   position 3, for "), "{}", ran.out);
    third.kill();
    fourth.interrupt();
    let ran = fourth.end().expect(5);
    assert!(!ran.err.contains("taking it back"), "who only waited has nothing to take back: {}", ran.err);
    site.run(&["destroy", "--pr", "5"]).expect(0);
    fifth.end().expect(3);
    site.write("preview.toml", &format!("{one}[timeouts]\nqueue = \"3s\"\n"));
    let ran = site.run(&["deploy", "--pr", "7", "--owner", "gus"]).expect(5);
    assert!(ran.err.contains("waited 3 s ([timeouts] queue): position "), "{}", ran.err);
    site.write("preview.toml", &one);
    site.run(&["status", "--pr", "4"]).expect(2);
    assert_eq!(names(&site).len(), 4, "the dead one's ticket is there until somebody comes to it: {:?}", names(&site));

    site.run(&["destroy", "--pr", "1"]).expect(0);
    let ran = second.end().expect(0);
    assert!(ran.err.contains("waiting for a place"), "{}", ran.err);
    assert_eq!(names(&site)[0], "pr-2 ready");
    site.run(&["destroy", "--pr", "2"]).expect(0);
    // The dead one in front is found out.
    sixth.end().expect(0);
    assert_eq!(names(&site), ["pr-6 ready"]);

    // Who refuses to wait does not overtake who waits either.
    let eighth = waiting(&site, "8", "bob", 1);
    site.write("preview.toml", &limits(1, "on_full = \"refuse\"\n"));
    site.run(&["deploy", "--pr", "9"]).expect(3);
    site.run(&["destroy", "--pr", "6"]).expect(0);
    eighth.end().expect(0);
    site.run(&["destroy", "--pr", "8"]).expect(0);
    eventually("nothing is left", || site.remains().is_empty());
    nothing(&site);
}

#[test]
fn a_queue_on_this_machine() {
    queue(Where::Local);
}

#[test]
fn a_queue_on_a_vm() {
    queue(Where::Vm(VmEngine::V28));
}

/// The longest unused makes room, but never who is pinned; and two at once never take more than there is.
#[test]
fn the_oldest_makes_room() {
    let Some(site) = Site::new(Where::Vm(VmEngine::V20), SMALL) else { return };
    site.write("preview.toml", &limits(2, "on_full = \"replace-oldest\"\n"));
    for pr in ["1", "2"] {
        site.run(&["deploy", "--pr", pr]).expect(0);
    }
    site.run(&["pin", "--pr", "1"]).expect(0);
    let ran = site.run(&["deploy", "--pr", "3"]).expect(0);
    assert!(ran.err.contains("pr-2") && ran.err.contains("to make room"), "{}", ran.err);
    assert_eq!(names(&site), ["pr-1 ready", "pr-3 ready"]);
    let both = [site.start(&["deploy", "--pr", "4"]), site.start(&["deploy", "--pr", "5"])];
    let codes: Vec<i32> = both.into_iter().map(|run| run.end().code).collect();
    assert!(codes.contains(&0) && codes.iter().all(|code| [0, 3].contains(code)), "{codes:?}");
    assert_eq!(names(&site).len(), 2);
    site.run(&["pin", "--name", names(&site)[1].split(' ').next().unwrap_or_default()]).expect(0);
    site.run(&["deploy", "--pr", "6"]).expect(3);
    for name in names(&site) {
        site.run(&["destroy", "--name", name.split(' ').next().unwrap_or_default()]).expect(0);
    }
    nothing(&site);
}

/// Builds are heavy here: out of their window they are refused, or wait for it; what builds nothing starts at any time.
#[test]
fn heavy_builds_in_their_window() {
    let Some(site) = Site::new(Where::Vm(VmEngine::V28), SMALL) else { return };
    let at = |when: &str| site.shell(&format!("date -u -d 'now + {when}' +%H:%M"));
    let configure = |from: &str, to: &str, on_full: &str| {
        let heavy = format!("heavy = \"build\"\nheavy_window = \"{from}-{to} UTC\"\non_full = \"{on_full}\"\n");
        site.write("preview.toml", &limits(2, &heavy));
    };
    let later = (at("2 hours"), at("3 hours"));
    configure(&later.0, &later.1, "refuse");
    site.run(&["deploy", "--pr", "1"]).expect(0);
    site.write("compose.yml", &SMALL.replace("image: busybox:1.36", "build: ."));
    site.write("Dockerfile", "FROM busybox:1.36\nRUN echo heavy >/it\n");
    let ran = site.run(&["deploy", "--pr", "1", "--format", "json"]).expect(3);
    assert_eq!(ran.failure(), "outside_window", "{}", ran.err);
    assert!(ran.err.contains(&format!("{}-{} UTC, which opens at ", later.0, later.1)), "{}", ran.err);
    assert_eq!(names(&site), ["pr-1 ready"], "nothing was changed");

    // Soon: at the full minute that is 10 to 70 seconds ahead.
    let soon = at("70 seconds");
    configure(&soon, &later.1, "queue");
    let mut run = site.start(&["deploy", "--pr", "1"]);
    run.until("heavy deploys start only in the window");
    let now = site.shell("date -u +%H:%M");
    run.end().expect(0);
    assert!(now != soon && site.shell("date -u +%H:%M") >= soon, "{now}, {soon}");
    assert_eq!(site.run(&["exec", "--pr", "1", "web", "--", "cat", "/it"]).expect(0).out, "heavy\n");
    site.run(&["destroy", "--pr", "1"]).expect(0);
    nothing(&site);
}
