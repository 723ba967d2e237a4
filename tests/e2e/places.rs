//! Many at once: a VM never holds more previews than it has places for, whoever comes when.

use preview_tests::{Run, Site, VmEngine, Where};

use crate::stacks::{SMALL, limits, nothing};

/// Counts the previews that the engine has containers of, ten times a second, until it is told to stop: one line each time.
fn count(site: &Site) -> String {
    site.shell(&format!(
        "while [ ! -e /tmp/{app}.stop ]; do docker ps -a --filter label=preview.app={app} --format '{{{{.Label \"preview.name\"}}}}' \
         | sort -u | wc -l; sleep 0.1; done; rm -f /tmp/{app}.stop",
        app = site.app
    ))
}

fn last_place(place: Where, runs: u32, places: u16) {
    let Some(site) = Site::new(place, SMALL) else { return };
    site.write("preview.toml", &limits(places, ""));
    let numbers: Vec<String> = (1..=runs).map(|number| number.to_string()).collect();
    let start = |pr: &String| site.start(&["deploy", "--pr", pr, "--owner", "ada", "--format", "json"]);
    let (ended, counts) = std::thread::scope(|scope| {
        let counter = scope.spawn(|| count(&site));
        let started: Vec<Run> = numbers.iter().map(start).collect();
        let ended: Vec<_> = started.into_iter().map(Run::end).collect();
        site.shell(&format!("touch /tmp/{}.stop", site.app));
        (ended, counter.join().expect("it counts"))
    });
    let counts: Vec<u16> = counts.lines().filter_map(|line| line.trim().parse().ok()).collect();

    let (won, lost): (Vec<_>, Vec<_>) = ended.iter().zip(&numbers).partition(|(ran, _)| ran.code == 0);
    let codes: Vec<_> = ended.iter().map(|ran| (ran.code, ran.err.lines().last())).collect();
    assert_eq!(won.len(), usize::from(places), "{codes:?}");
    for (ran, _) in &lost {
        assert_eq!(ran.code, 3, "{}", ran.err);
        let taken = format!("{places} of {places} places on the VM are taken, held by");
        assert!(ran.err.contains(&taken), "{}", ran.err);
        for (_, pr) in &won {
            assert!(ran.err.contains(&format!("{} pr-{pr} of ada: pull request {pr}, ", site.app)), "{}", ran.err);
        }
        assert_eq!((&ran.json()["error"]["code"], ran.failure().as_str()), (&3.into(), "full"));
    }
    assert!(counts.len() > 10, "the engine was asked often enough: {counts:?}");
    assert_eq!(counts.iter().max(), Some(&places), "never more than there are places: {counts:?}");
    assert_eq!(
        site.run(&["list", "--format", "json"]).expect(0).json()["previews"].as_array().map(Vec::len),
        Some(won.len())
    );

    // An update has its place, and a place that is given back is free at once.
    let (mine, other) = (won[0].1, lost[0].1);
    site.run(&["deploy", "--pr", mine]).expect(0);
    site.run(&["deploy", "--pr", other]).expect(3);
    site.run(&["destroy", "--pr", mine]).expect(0);
    site.run(&["deploy", "--pr", other]).expect(0);
    for (_, pr) in won.iter().skip(1).chain(&lost[..1]) {
        site.run(&["destroy", "--pr", pr]).expect(0);
    }
    nothing(&site);
}

#[test]
fn the_last_place_on_a_vm() {
    last_place(Where::Vm(VmEngine::V28), 20, 6);
}

#[test]
fn the_last_place_on_this_machine() {
    last_place(Where::Local, 6, 2);
}

/// Each limit refuses with what is missing, and changes nothing; a refused wish leaves no trace.
#[test]
fn limits_and_floors() {
    let Some(site) = Site::new(Where::Local, SMALL) else { return };
    site.write("preview.toml", &limits(3, "max_per_owner = 1\n"));
    site.run(&["deploy", "--pr", "1", "--owner", "ada"]).expect(0);
    let ran = site.run(&["deploy", "--pr", "2", "--owner", "ada"]).expect(3);
    assert!(ran.err.contains("1 of 1 places of ada are taken, held by\n"), "{}", ran.err);
    assert!(ran.err.contains("pr-1 of ada: pull request 1, ready, last deployed "), "{}", ran.err);
    let plan = site.run(&["plan", "--pr", "2", "--owner", "ada"]).expect(0);
    assert!(plan.out.contains("there is no room for it now: 1 of 1 places of ada are taken"), "{}", plan.out);

    site.write("preview.toml", &limits(3, "max_per_app = 1\n"));
    let ran = site.run(&["deploy", "--pr", "2", "--owner", "bob"]).expect(3);
    assert!(ran.err.contains("1 of 1 places of this application are taken"), "{}", ran.err);

    // Half a place fits where a whole one does not; and what grows needs the difference.
    site.write("preview.toml", &limits(2, "weight = 1.5\n"));
    let ran = site.run(&["deploy", "--pr", "2"]).expect(3);
    assert!(ran.err.contains("1 of 2 places on the VM are taken, 1.5 wanted, held by"), "{}", ran.err);
    site.write("preview.toml", &limits(2, "weight = 0.5\n"));
    site.run(&["deploy", "--pr", "2"]).expect(0);
    site.write("preview.toml", &limits(2, "weight = 2\n"));
    site.write("compose.yml", &SMALL.replace("100000", "100001"));
    let ran = site.run(&["deploy", "--pr", "2"]).expect(3);
    assert!(ran.err.contains("1.5 of 2 places"), "{}", ran.err);

    // What is unchanged may count for more as well, and what counts for less makes room at once.
    site.write("compose.yml", SMALL);
    let ran = site.run(&["deploy", "--pr", "2"]).expect(3);
    assert!(ran.err.contains("1.5 of 2 places"), "{}", ran.err);
    site.write("preview.toml", &limits(2, "weight = 1\n"));
    let done = site.run(&["deploy", "--pr", "2", "--format", "json"]).expect(0).json();
    assert_eq!(done["kind"], "unchanged");
    site.run(&["deploy", "--pr", "3"]).expect(3);
    site.write("preview.toml", &limits(2, "weight = 0.5\n"));
    site.run(&["deploy", "--pr", "3"]).expect(3);
    site.run(&["deploy", "--pr", "2"]).expect(0);
    site.run(&["deploy", "--pr", "3"]).expect(0);
    site.run(&["destroy", "--pr", "3"]).expect(0);

    // A failed update counts for what it counted before.
    site.write(
        "preview.toml",
        &limits(2, "weight = 1\n[[step]]\nafter = \"start\"\nservice = \"web\"\nrun = [\"false\"]\n"),
    );
    site.write("compose.yml", &SMALL.replace("100000", "100002"));
    site.run(&["deploy", "--pr", "2"]).expect(4);
    site.write("preview.toml", &limits(2, "weight = 0.5\n"));
    site.run(&["deploy", "--pr", "3"]).expect(0);
    site.run(&["destroy", "--pr", "3"]).expect(0);

    for (floor, said) in [("min_free_disk", "of disk are free"), ("min_free_memory", "of memory are available")] {
        site.write("preview.toml", &format!("[limits]\n{floor} = \"900000GB\"\n"));
        let ran = site.run(&["deploy", "--pr", "3"]).expect(3);
        assert!(ran.err.contains(said) && ran.err.contains("a new preview needs 900000.0 GB"), "{}", ran.err);
    }
    assert_eq!(site.shell(&format!("ls {}/{}", site.base(), site.app)), "pr-1\npr-2", "a refused wish leaves nothing");
    for pr in ["1", "2"] {
        site.run(&["destroy", "--pr", pr]).expect(0);
    }
    nothing(&site);
}

/// A run that is killed during a first deploy holds its place no longer than it lives.
fn killed_with_a_place(place: Where) {
    let Some(site) = Site::new(place, SMALL) else { return };
    let long = "[[step]]\nafter = \"start\"\nservice = \"web\"\nrun = [\"sleep\", \"1000\"]\n";
    site.write("preview.toml", &limits(1, long));
    let mut first = site.start(&["deploy", "--pr", "1"]);
    first.until("verifying…");
    site.write("preview.toml", &limits(1, ""));
    let ran = site.run(&["deploy", "--pr", "2"]).expect(3);
    assert!(ran.err.contains("pr-1: pull request 1, verifying, last deployed "), "{}", ran.err);
    first.kill();
    let ran = site.run(&["deploy", "--pr", "2"]).expect(0);
    assert!(ran.err.contains("pr-1: its run died while verifying; removed it, its place is free"), "{}", ran.err);
    let listed = site.run(&["list", "--format", "json"]).expect(0).json();
    assert_eq!(
        (listed["previews"][0]["name"].as_str(), listed["previews"].as_array().map(Vec::len)),
        (Some("pr-2"), Some(1))
    );
    site.run(&["destroy", "--pr", "2"]).expect(0);
    nothing(&site);
}

#[test]
fn killed_with_a_place_on_a_vm() {
    killed_with_a_place(Where::Vm(VmEngine::V28));
}

#[test]
fn killed_with_a_place_on_this_machine() {
    killed_with_a_place(Where::Local);
}
