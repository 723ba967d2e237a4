//! `kill -9` in each phase: nothing of the run stays at work, the state says that it died, and the next command goes on without hand work.

use std::net::TcpListener;
use std::sync::OnceLock;

use preview_tests::{Run, Site, VmEngine, Where, eventually};

use crate::stacks::{nothing, serving, stack, waiting, with_web};

/// A phase to die in.
struct Death {
    phase: &'static str,
    /// Makes the project one whose deploy stays in the phase; the number makes each one another version.
    stuck: fn(&Site, usize),
    /// Makes it one that works.
    right: fn(&Site, usize),
    /// Waits until the run is in the phase.
    there: fn(&mut Run, &Site),
}

/// Large enough to be seen while it is sent.
const BIG: u64 = 200 << 20;

const PREPARING: Death = Death {
    phase: "preparing",
    stuck: |site, version| {
        site.write("compose.yml", &stack(&serving(&format!("v{version}"))).replace("data:/data", "./big:/big:ro"));
        site.write("big/version", &version.to_string());
        let blob = std::fs::File::create(site.dir.path().join("big/blob")).expect("a file");
        blob.set_len(BIG).expect("a long file");
    },
    right: |site, version| {
        (PREPARING.stuck)(site, version);
        std::fs::write(site.dir.path().join("big/blob"), "short").expect("a file");
    },
    there: |_, site| {
        let half = format!("find {} -name blob -size +1000k 2>/dev/null | grep -q .", volume(site));
        site.shell(&format!("timeout 150 sh -c 'until {half}; do sleep 0.01; done'"));
    },
};

const BUILDING: Death = Death {
    phase: "building",
    stuck: |site, version| {
        (BUILDING.right)(site, version);
        site.write("web/Dockerfile", &format!("FROM busybox:1.36\nRUN echo {version} && sleep 300\n"));
    },
    right: |site, version| {
        let command = serde_json::json!(["sh", "-c", serving(&format!("v{version}"))]);
        site.write("compose.yml", &with_web("    build: ./web\n"));
        site.write("web/Dockerfile", &format!("FROM busybox:1.36\nCMD {command}\n"));
    },
    there: |run, site| {
        run.until("building…");
        eventually("the build is at work", || site.phase("pr-7") == "building");
        std::thread::sleep(std::time::Duration::from_secs(2));
    },
};

const PULLING: Death = Death {
    phase: "pulling",
    stuck: |site, version| {
        let image = format!("127.0.0.1:{}/slow:{version}", silent_registry());
        site.write("compose.yml", &with_web(&format!("    image: {image}\n")));
    },
    right: VERIFYING.right,
    there: |run, site| {
        run.until("pulling…");
        eventually("the state says so", || site.phase("pr-7") == "pulling");
    },
};

/// The port of a registry that takes connections and says nothing.
fn silent_registry() -> u16 {
    static PORT: OnceLock<u16> = OnceLock::new();
    *PORT.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
        port
    })
}

const STARTING: Death = Death {
    phase: "starting",
    stuck: |site, version| site.write("compose.yml", &versioned(false, version)),
    right: |site, version| site.write("compose.yml", &versioned(true, version)),
    there: |run, site| {
        run.until("starting…");
        eventually("the state says so", || site.phase("pr-7") == "starting" && !site.containers("pr-7").is_empty());
        std::thread::sleep(std::time::Duration::from_secs(1));
    },
};

const VERIFYING: Death = Death {
    phase: "verifying",
    stuck: |site, version| {
        let script = format!("echo v{version}; exec sleep 100000");
        site.write("compose.yml", &stack(&script).replace("retries: 4", "retries: 4\n      start_period: 1000s"));
    },
    right: |site, version| site.write("compose.yml", &stack(&serving(&format!("v{version}")))),
    there: |run, site| {
        run.until("verifying…");
        eventually("the state says so", || site.phase("pr-7") == "verifying");
    },
};

fn versioned(ready: bool, version: usize) -> String {
    waiting(ready).replace("echo waited", &format!("echo v{version}")).replace("100000", &format!("10000{version}"))
}

/// The directory of the preview's files on the host.
fn volume(site: &Site) -> String {
    let root = site.docker(&["info", "--format", "{{.DockerRootDir}}"]);
    format!("{root}/volumes/files.{}_pr-7/_data", site.app)
}

fn dies(site: &Site, death: &Death, version: usize) {
    (death.stuck)(site, version);
    let mut run = site.start(&["deploy", "--pr", "7"]);
    (death.there)(&mut run, site);
    run.kill();
    eventually("the lock's shell and whatever else was at work on the host end", || site.processes().is_empty());
    let status = site.run(&["status", "--pr", "7", "--format", "json"]).expect(0).json();
    assert_eq!((&status["phase"], &status["crashed"]), (&death.phase.into(), &true.into()), "{status}");
    assert!(site.run(&["status", "--pr", "7"]).expect(0).out.contains("its run died"));
}

fn recovers(site: &Site, death: &Death, version: usize) {
    (death.right)(site, version);
    let done = site.deploy("7").expect(0).json();
    let page = site.get(done["url"].as_str().expect("an address"));
    assert!(page.trim_end().ends_with(&format!("v{version}")), "{page}");
    let filter = ["label=preview.app=".to_owned() + &site.app, "label=com.docker.compose.service".to_owned()];
    let there = site.docker(&["ps", "-aq", "--filter", &filter[0], "--filter", &filter[1]]);
    assert_eq!(there.lines().count(), 2, "no container is there twice");
    assert_eq!(site.phase("pr-7"), "ready");
    let volume = volume(site);
    let files = site.shell(&format!("[ ! -d {volume} ] || ls -A {volume}"));
    assert!(files.lines().all(|name| name != ".preview-files-undo"), "nothing is kept for a way back: {files}");
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "unchanged");
}

fn in_phase(place: Where, death: &Death) {
    let Some(site) = Site::new(place, "") else { return };
    let destroyed = || {
        site.run(&["destroy", "--pr", "7"]).expect(0);
        nothing(&site);
    };
    // The first deploy dies.
    dies(&site, death, 1);
    destroyed();
    dies(&site, death, 2);
    recovers(&site, death, 3);
    // An update dies.
    dies(&site, death, 4);
    recovers(&site, death, 5);
    dies(&site, death, 6);
    destroyed();
}

#[test]
fn while_it_uploads_on_this_machine() {
    in_phase(Where::Local, &PREPARING);
}

#[test]
fn while_it_uploads_on_a_vm() {
    in_phase(Where::Vm(VmEngine::V28), &PREPARING);
}

#[test]
fn while_it_builds_on_this_machine() {
    in_phase(Where::Local, &BUILDING);
}

#[test]
fn while_it_builds_on_a_vm() {
    in_phase(Where::Vm(VmEngine::V28), &BUILDING);
}

#[test]
fn while_it_pulls_on_this_machine() {
    in_phase(Where::Local, &PULLING);
}

#[test]
fn while_it_starts_on_this_machine() {
    in_phase(Where::Local, &STARTING);
}

#[test]
fn while_it_starts_on_a_vm() {
    in_phase(Where::Vm(VmEngine::V28), &STARTING);
}

#[test]
fn while_it_verifies_on_this_machine() {
    in_phase(Where::Local, &VERIFYING);
}

#[test]
fn while_it_verifies_on_a_vm() {
    in_phase(Where::Vm(VmEngine::V28), &VERIFYING);
}

/// A destroy that is killed: destroying again ends it, and so does a deploy.
fn while_it_destroys(place: Where) {
    let Some(site) = Site::new(place, "") else { return };
    for again in ["destroy", "deploy"] {
        (VERIFYING.right)(&site, 1);
        site.deploy("7").expect(0);
        let mut run = site.start(&["destroy", "--pr", "7"]);
        let state = format!("{}/{}/pr-7/state.json", site.base(), site.app);
        let script =
            format!("while [ -e {state} ] && ! grep -q '\"destroying\"' {state} 2>/dev/null; do sleep 0.01; done");
        site.shell(&format!("timeout 60 sh -c '{}'", script.replace('\'', "'\\''")));
        // It may have been quicker than we.
        if run.at_work() {
            run.kill()
        } else {
            drop(run.end().expect(0))
        }
        eventually("nothing is at work on the host", || site.processes().is_empty());
        if again == "deploy" {
            recovers(&site, &VERIFYING, 2);
        }
        site.run(&["destroy", "--pr", "7"]).expect(0);
        nothing(&site);
    }
}

#[test]
fn while_it_destroys_on_this_machine() {
    while_it_destroys(Where::Local);
}

#[test]
fn while_it_destroys_on_a_vm() {
    while_it_destroys(Where::Vm(VmEngine::V28));
}
