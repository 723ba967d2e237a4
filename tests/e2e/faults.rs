//! What happens to VMs: links are cut, engines die, disks fill. Each test has a VM of its own.

use std::sync::Arc;
use std::time::Instant;

use preview_tests::{Site, Vm, VmEngine, VmOptions, eventually, lab};

use crate::stacks::{nothing, serving, stack, still};

/// A site on a VM that nobody else uses.
fn alone(options: &VmOptions, compose: &str) -> Option<Site> {
    let lab = lab()?;
    let vm = Vm::start(lab, VmEngine::V28, options).expect("a VM");
    vm.load_image(&["busybox:1.36"]).expect("the image gets into the VM");
    Some(Site::on(lab, Some(Arc::new(vm)), compose))
}

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

#[test]
fn a_link_that_is_cut() {
    let Some(site) = alone(&VmOptions::default(), &stack(&serving("one"))) else { return };
    let vm = site.vm().expect("a VM");
    let url = data(&site);
    site.write("compose.yml", &stuck());
    site.write("preview.toml", "[timeouts]\nverify = \"10m\"\n");
    let mut run = site.start(&["deploy", "--pr", "7", "--format", "json"]);
    run.until("verifying…");
    vm.cut_off().expect("iptables");
    let begun = Instant::now();
    let ran = run.end().expect(6);
    assert!(begun.elapsed().as_secs() < 90, "{:?}", begun.elapsed());
    assert!(ran.err.contains("the next deploy or destroy"), "{}", ran.err);
    assert_eq!(ran.json()["error"]["code"], 6);

    vm.reconnect().expect("iptables");
    eventually("the lock's shell notices", || site.processes().is_empty());
    let status = site.run(&["status", "--pr", "7", "--format", "json"]).expect(0).json();
    assert_eq!((&status["phase"], &status["crashed"]), (&"verifying".into(), &true.into()), "{status}");
    site.write("compose.yml", &stack(&serving("two")));
    assert_eq!(site.deploy("7").expect(0).json()["kind"], "update");
    still(&site, &url, "7", "two");
    site.run(&["destroy", "--pr", "7"]).expect(0);
    nothing(&site);
}

#[test]
fn an_engine_that_dies() {
    let Some(site) = alone(&VmOptions::default(), &stack(&serving("one"))) else { return };
    let vm = site.vm().expect("a VM");
    let url = data(&site);
    site.write("compose.yml", &stuck());
    let mut run = site.start(&["deploy", "--pr", "7", "--format", "json"]);
    run.until("verifying…");
    vm.kill_dockerd().expect("pkill");
    let begun = Instant::now();
    let ran = run.end();
    assert!([4, 6].contains(&ran.code), "{}: {}", ran.code, ran.err);
    assert!(begun.elapsed().as_secs() < 120, "{:?}", begun.elapsed());
    // While it is away.
    let ran = site.deploy("7").expect(6);
    assert!(ran.err.contains("engine") || ran.err.contains("docker"), "{}", ran.err);

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
    site.shell("dd if=/dev/zero of=/var/lib/docker/fill bs=64k 2>/dev/null || :");
    let ran = site.deploy("7").expect(4);
    assert!(ran.err.to_lowercase().contains("no space left on device"), "{}", ran.err);
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
    let compose = stack(&serving("one")).replace("data:/data", "./big:/big:ro");
    let Some(site) = alone(&VmOptions::default(), &compose) else { return };
    site.write("big/blob", &"x".repeat(400_000));
    let base = site.base();
    site.shell(&format!("mkdir -p {base} && mount -t tmpfs -o size=128k,mode=0700,uid=$(id -u deploy) preview {base}"));
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
