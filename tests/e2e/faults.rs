//! What happens to VMs: links are cut, engines die, disks fill. Each test has a VM of its own.

use std::time::{Duration, Instant};

use preview_tests::{Run, Site, VmOptions, eventually};

use crate::stacks::{alone, never_up, nothing, serving, stack, still};

/// Stays in `verifying` for as long as it may.
fn stuck() -> String {
    stack("exec sleep 100000").replace("retries: 4", "retries: 4\n      start_period: 1000s")
}

fn data(site: &Site) -> String {
    let done = site.deploy("7").expect(0).json();
    site.run(&["exec", "--pr", "7", "data", "--", "sh", "-c", "echo kept >/data/mine"]).expect(0);
    done["url"].as_str().expect("an address").to_owned()
}

#[test]
fn one_connection_a_run() {
    let Some(site) = alone(&VmOptions::default(), &stack(&serving("one"))) else { return };
    let vm = site.vm().expect("a VM");
    let logins = || vm.sshd_log().expect("a log").matches("Accepted publickey").count();
    for command in [
        ["deploy", "--pr", "7"].as_slice(),
        &["deploy", "--pr", "7"],
        &["list"],
        &["status", "--pr", "7"],
        &["exec", "--pr", "7", "data", "--", "true"],
        &["destroy", "--pr", "7"],
    ] {
        let before = logins();
        site.run(command).expect(0);
        assert_eq!(logins() - before, 1, "{command:?}");
    }
    nothing(&site);
}

/// A deploy that is far from its end, in `verifying` or with Compose at work.
fn at_work(site: &Site, compose: &str, stage: &str) -> Run {
    site.write("compose.yml", compose);
    let mut run = site.start(&["deploy", "--pr", "7", "--format", "json"]);
    run.until(stage);
    eventually("the state says so", || format!("{}…", site.phase("pr-7")) == stage);
    run
}

/// The run is seen as dead, and the next one goes on without hand work.
fn goes_on(site: &Site, url: &str, word: &str) {
    eventually("the lock's shell notices", || site.processes().is_empty());
    let status = site.run(&["status", "--pr", "7", "--format", "json"]).expect(0).json();
    assert_eq!(status["crashed"], true, "{status}");
    site.write("compose.yml", &stack(&serving(word)));
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "update");
    still(site, url, "7", word);
}

#[test]
fn a_link_that_is_cut() {
    let Some(site) = alone(&VmOptions::default(), &stack(&serving("one"))) else { return };
    let vm = site.vm().expect("a VM");
    let url = data(&site);
    site.write("preview.toml", "[timeouts]\nstart = \"10m\"\nverify = \"10m\"\n");

    // For a moment: nothing happens.
    let mut run = at_work(&site, &stuck(), "verifying…");
    vm.cut_off().expect("iptables");
    std::thread::sleep(Duration::from_secs(4));
    vm.reconnect().expect("iptables");
    std::thread::sleep(Duration::from_secs(8));
    assert!(run.at_work(), "{:?}", run.end());

    // For good: the run ends by itself and changes nothing more.
    vm.cut_off().expect("iptables");
    let cut = |run: Run| {
        let begun = Instant::now();
        let ran = run.end().expect(6);
        assert!(begun.elapsed().as_secs() < 90, "{:?}", begun.elapsed());
        assert!(ran.err.contains("the next deploy or destroy"), "{}", ran.err);
        assert_eq!((&ran.json()["error"]["code"], ran.failure().as_str()), (&6.into(), "lease_lost"));
        vm.reconnect().expect("iptables");
    };
    cut(run);
    goes_on(&site, &url, "two");

    // With Compose at work over the link.
    let run = at_work(&site, &never_up(), "starting…");
    vm.cut_off().expect("iptables");
    cut(run);
    goes_on(&site, &url, "three");

    // A power cut.
    let run = at_work(&site, &stuck(), "verifying…");
    vm.power_off().expect("power");
    let ran = run.end().expect(6);
    assert!(ran.err.contains("the next deploy or destroy"), "{}", ran.err);
    vm.power_on().expect("power");
    goes_on(&site, &url, "four");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
}

#[test]
fn an_engine_that_dies() {
    let Some(site) = alone(&VmOptions::default(), &stack(&serving("one"))) else { return };
    let vm = site.vm().expect("a VM");
    let url = data(&site);
    let run = at_work(&site, &stuck(), "verifying…");
    vm.kill_dockerd().expect("pkill");
    let begun = Instant::now();
    let ran = run.end();
    assert!([4, 6].contains(&ran.code), "{}: {}", ran.code, ran.err);
    assert!(begun.elapsed().as_secs() < 120, "{:?}", begun.elapsed());
    // While it is away.
    let ran = site.deploy("7").expect(6);
    assert!(ran.err.contains("no Docker engine answers"), "{}", ran.err);
    assert_eq!(ran.failure(), "engine_unreachable");

    vm.start_dockerd().expect("dockerd");
    site.write("compose.yml", &stack(&serving("two")));
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "update");
    still(&site, &url, "7", "two");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
}

#[test]
fn a_full_disk_of_the_engine() {
    let options = VmOptions { data_size: Some("100m".into()), ..VmOptions::default() };
    let Some(site) = alone(&options, &stack(&serving("one"))) else { return };
    let vm = site.vm().expect("a VM");
    let ran = site.deploy("7").expect(3);
    assert!(ran.err.contains("of disk are free on the VM, a new preview needs 5.0 GB"), "{}", ran.err);
    site.write("preview.toml", "[limits]\nmin_free_disk = \"0MB\"\n");
    site.shell("dd if=/dev/zero of=/var/lib/docker/fill bs=64k 2>/dev/null || :");
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.to_lowercase().contains("no space left on device"), "{}", ran.err);
    assert_eq!(ran.failure(), "disk_full");
    vm.text(&["rm", "/var/lib/docker/fill"]).expect("rm");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);

    let url = data(&site);
    still(&site, &url, "7", "one");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
}

#[test]
fn a_full_disk_of_the_previews() {
    // The stack's file lies there, and holds this.
    let compose = format!("{}x-big: \"{}\"\n", stack(&serving("one")), "x".repeat(400_000));
    let Some(site) = alone(&VmOptions::default(), &compose) else { return };
    let base = site.base();
    site.shell(&format!("mkdir -p {base} && mount -t tmpfs -o size=128k,mode=0700,uid=$(id -u deploy) preview {base}"));
    let ran = site.deploy("7").expect(3);
    assert!(ran.err.contains("of disk are free on the VM, a new preview needs 5.0 GB"), "{}", ran.err);
    nothing(&site);
    // Whoever knows better finds out.
    site.write("preview.toml", "[limits]\nmin_free_disk = \"0MB\"\n");
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("No space left on device"), "{}", ran.err);
    assert!(ran.err.contains("Nothing was left behind"), "{}", ran.err);
    nothing(&site);
    // Not even room for the lock's directory.
    site.shell(&format!("dd if=/dev/zero of={base}/fill bs=4k 2>/dev/null || :"));
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.contains("No space left on device"), "{}", ran.err);
    site.shell(&format!("rm {base}/fill"));
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
    site.shell(&format!("umount {base}"));
}
