//! Each fault while runs are in every phase: one sweep, or the next run, brings everything to a clean state.
//!
//! The table in `docs/reliability.md` names these tests.

use std::time::Duration;

use preview_tests::{VmOptions, eventually};

use crate::crowd::{Crowd, Ended, Held, ends};
use crate::stacks::{alone, nothing, serving, stack, standing, still, with_web};

/// What runs ended with, for people.
fn tell(ended: &[Ended]) {
    for Ended { pr, phase, ran } in ended {
        let failure = ran.json()["error"]["failure"].clone();
        eprintln!("pr-{pr} {phase}: {} {failure} {}", ran.code, ran.err.lines().last().unwrap_or_default());
    }
}

/// The lease is gone, so nothing was taken back, and that is what is said.
fn lost_their_lease(ended: &[Ended]) {
    tell(ended);
    for Ended { pr, phase, ran } in ended {
        // A destroy has nothing to take back, and says what it saw first.
        let codes: &[&str] = if *phase == "destroying" { &["lease_lost", "vm_unreachable"] } else { &["lease_lost"] };
        assert_eq!(ran.code, 6, "pr-{pr} {phase}: {}", ran.err);
        assert!(codes.contains(&ran.failure().as_str()), "pr-{pr} {phase}: {}", ran.err);
    }
}

#[test]
fn killed_in_every_phase() {
    let Some(mut crowd) = Crowd::new(&VmOptions::default()) else { return };
    for Held { run, .. } in crowd.hold() {
        run.kill();
    }
    crowd.let_go();
    crowd.one_sweep_mends_it();
}

#[test]
fn an_engine_that_dies_in_every_phase() {
    let Some(mut crowd) = Crowd::new(&VmOptions::default()) else { return };
    let held = crowd.hold();
    crowd.vm().kill_dockerd().expect("pkill");
    crowd.let_go();
    let (queued, others): (Vec<Held>, Vec<Held>) = held.into_iter().partition(|held| held.phase == "queued");
    let ended = ends(others);
    tell(&ended);
    for Ended { pr, phase, ran } in &ended {
        let code = if *phase == "destroying" { 6 } else { 4 };
        assert_eq!((ran.code, ran.failure().as_str()), (code, "engine_unreachable"), "pr-{pr} {phase}: {}", ran.err);
    }
    crowd.vm().start_dockerd().expect("dockerd");
    // Who waits for a place needs no engine, unless something changes meanwhile that makes it look at everything again.
    for Held { pr, mut run, .. } in queued {
        let waits = run.at_work();
        if waits {
            run.interrupt();
        }
        let (code, failure) = if waits { (5, "interrupted") } else { (6, "engine_unreachable") };
        let ran = run.end();
        assert_eq!((ran.code, ran.failure().as_str()), (code, failure), "pr-{pr}: {}", ran.err);
    }
    crowd.one_sweep_mends_it();
}

#[test]
fn a_vm_that_loses_power_in_every_phase() {
    let Some(mut crowd) = Crowd::new(&VmOptions::default()) else { return };
    let held = crowd.hold();
    crowd.vm().power_off().expect("power");
    lost_their_lease(&ends(held));
    crowd.vm().power_on().expect("power");
    crowd.one_sweep_mends_it();
}

#[test]
fn a_vm_that_is_restarted_in_every_phase() {
    let Some(mut crowd) = Crowd::new(&VmOptions::default()) else { return };
    let held = crowd.hold();
    crowd.vm().restart().expect("restarts");
    let ended = ends(held);
    tell(&ended);
    for Ended { pr, phase, ran } in &ended {
        // The engine goes before the link does: some see the one first, some the other.
        let end = (ran.code, ran.failure());
        let may = [(6, "lease_lost"), (6, "vm_unreachable"), (4, "engine_unreachable"), (6, "engine_unreachable")];
        assert!(
            may.iter().any(|(code, failure)| end == (*code, (*failure).to_owned())),
            "pr-{pr} {phase}: {}",
            ran.err
        );
    }
    crowd.one_sweep_mends_it();
}

#[test]
fn a_link_that_is_cut_for_a_minute_in_every_phase() {
    let Some(mut crowd) = Crowd::new(&VmOptions::default()) else { return };
    let held = crowd.hold();
    crowd.vm().cut_off().expect("iptables");
    crowd.let_go();
    std::thread::sleep(Duration::from_secs(60));
    crowd.vm().reconnect().expect("iptables");
    lost_their_lease(&ends(held));
    crowd.one_sweep_mends_it();
}

/// The runner's machine is gone, and with it the end of its connections: `sshd` learns nothing of it for hours.
#[test]
fn a_runner_that_vanishes_in_every_phase() {
    let Some(mut crowd) = Crowd::new(&VmOptions::default()) else { return };
    let held = crowd.hold();
    crowd.site.shell(
        "for p in $(awk '$4 == \"01\" && $2 ~ /:0016$/ { sub(/.*:/, \"\", $3); print $3 }' /proc/net/tcp /proc/net/tcp6); do \
         n=$(printf %d 0x$p); iptables -I INPUT -p tcp --dport 22 --sport $n -j DROP; \
         iptables -I OUTPUT -p tcp --sport 22 --dport $n -j DROP; done",
    );
    crowd.let_go();
    lost_their_lease(&ends(held));
    eventually("no build is at work", || crowd.site.shell("pgrep -f '[s]leep 3000' || :").is_empty());
    crowd.one_sweep_mends_it();
}

/// Stopped for longer than the lease lives: others mend what it did, and it changes nothing when it wakes up. Neither do its children,
/// which were not stopped with it.
#[test]
fn a_holder_that_is_frozen_in_every_phase() {
    let Some(mut crowd) = Crowd::new(&VmOptions::default()) else { return };
    let held = crowd.hold();
    for Held { run, .. } in &held {
        run.signal("STOP");
    }
    crowd.let_go();
    crowd.quiet();
    crowd.sweep();
    let before = crowd.everything();
    for Held { run, .. } in &held {
        run.signal("CONT");
    }
    lost_their_lease(&ends(held));
    assert_eq!(crowd.everything(), before);
    crowd.goes_on();
    crowd.quiet();
}

/// The engine ends what a dead run asked for: a sweep that comes at once does not take what still runs for what stays.
#[test]
fn a_sweep_while_the_engine_still_stops_containers() {
    // The first process of a container that has no handler for it does not hear of SIGTERM.
    let slow = |word: &str| stack(&serving(word)).replacen("stop_grace_period: 0s", "stop_grace_period: 9s", 1);
    let Some(site) = alone(&VmOptions::default(), &slow("one")) else { return };
    let (url, before) = standing(&site, "pr-7", "7");
    site.write("compose.yml", &slow("two"));
    let run = site.start(&["deploy", "--pr", "7"]);
    let seen = "docker events --since 0 --until $(date +%s) --filter event=kill --filter container=";
    let old = before["web"].clone();
    eventually("the old container is being stopped", || !site.shell(&format!("{seen}{old}")).is_empty());
    run.kill();
    let swept = site.run(&["sweep", "--format", "json"]).expect(0).json();
    assert_eq!(swept["mended"][0]["name"], "pr-7", "{swept}");
    std::thread::sleep(Duration::from_secs(10));
    still(&site, &url, "7", "one");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
}

/// The engine's disk while it builds and starts an update, the previews' disk while it verifies one; and what frees room needs none.
#[test]
fn a_full_disk_in_an_update() {
    let options = VmOptions { data_size: Some("150m".into()), ..VmOptions::default() };
    let Some(site) = alone(&options, &stack(&serving("one"))) else { return };
    let base = site.base();
    site.shell(&format!("mkdir -p {base} && mount -t tmpfs -o size=256k,mode=0700,uid=$(id -u deploy) preview {base}"));
    let quick = "[limits]\nmin_free_disk = \"0MB\"\nmin_free_memory = \"0MB\"\n";
    site.write("preview.toml", quick);
    let (url, _) = standing(&site, "pr-7", "7");
    site.deploy("8").expect(0);
    let settled = |what: &str| {
        let planned = site.run(&["sweep", "--dry-run", "--format", "json"]).expect(0).json();
        let nothing = serde_json::json!([]);
        assert_eq!((&planned["removed"], &planned["mended"]), (&nothing, &nothing), "{what}: {planned}");
        still(&site, &url, "7", "one");
    };

    site.write("compose.yml", &with_web("    build: ./web\n"));
    site.write("web/Dockerfile", "FROM busybox:1.36\nRUN dd if=/dev/zero of=/big bs=1M count=300\n");
    let ran = site.deploy("7").expect(4);
    assert!(["disk_full", "build_failed"].contains(&ran.failure().as_str()), "{}", ran.err);
    assert!(ran.err.to_lowercase().contains("no space left"), "{}", ran.err);
    settled("building");

    site.write("compose.yml", &stack(&serving("two")));
    site.shell("dd if=/dev/zero of=/var/lib/docker/fill bs=4k 2>/dev/null || :");
    let ran = site.deploy("7").expect(4);
    assert_eq!(ran.failure(), "disk_full", "{}", ran.err);
    site.shell("rm /var/lib/docker/fill");
    site.run(&["sweep"]).expect(0);
    settled("starting");

    let step = "[[step]]\nafter = \"start\"\nservice = \"web\"\nrun = [\"sh\", \"-c\", \"until [ -e /go ]; do sleep 0.1; done\"]\n";
    site.write("preview.toml", &format!("{quick}{step}"));
    let mut run = site.start(&["deploy", "--pr", "7", "--format", "json"]);
    run.until("verifying…");
    eventually("the state says so", || site.phase("pr-7") == "verifying");
    site.shell(&format!("dd if=/dev/zero of={base}/fill bs=4k 2>/dev/null || :"));
    let web = site.containers("pr-7")["web"].clone();
    site.docker(&["exec", &web, "touch", "/go"]);
    let ran = run.end().expect(4);
    assert_eq!(ran.failure(), "disk_full", "{}", ran.err);
    // Who makes room needs none.
    site.run(&["destroy", "--pr", "8"]).expect(0);
    assert!(site.containers("pr-8").is_empty());
    site.shell(&format!("rm {base}/fill"));
    site.run(&["sweep"]).expect(0);
    settled("verifying");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
    site.shell(&format!("umount {base}"));
}

/// The table in the documentation claims nothing that no test shows.
#[test]
fn every_test_that_the_table_names_exists() {
    let table = include_str!("../../docs/reliability.md");
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e");
    let sources: String = std::fs::read_dir(folder)
        .expect("the tests")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| std::fs::read_to_string(path).expect("a source"))
        .collect();
    let named: Vec<&str> = table.split('`').filter_map(|word| word.strip_suffix("()")).collect();
    assert!(named.len() > 20, "{named:?}");
    for name in named {
        assert!(
            sources.contains(&format!("#[test]\nfn {name}()")),
            "docs/reliability.md names {name}, which is no test"
        );
    }
    let rows = table.split("## Faults").nth(1).expect("the table").lines().filter(|line| line.starts_with("| "));
    for row in rows.skip(1) {
        assert!(row.contains("()`"), "no test for this row: {row}");
        assert_eq!(row.matches('|').count(), 9, "a cell for each phase: {row}");
    }
}
