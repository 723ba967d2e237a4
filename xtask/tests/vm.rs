//! The lab itself: what the end-to-end tests rely on holds for both kinds of VM.
//!
//! Runs where `PREVIEW_LAB` is set, as `cargo xtask test` does: a lab is more than a plain `cargo test` should set up.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use xtask::lab::{Lab, Vm, VmEngine, VmOptions};
use xtask::sh;

fn lab() -> Result<Option<&'static Lab>> {
    if std::env::var_os("PREVIEW_LAB").is_none() {
        eprintln!("skipped: PREVIEW_LAB is not set (see `cargo xtask test`)");
        return Ok(None);
    }
    Lab::get().map(Some)
}

fn ssh(vm: &Vm, remote: &[&str]) -> Result<String> {
    sh::text(vm.ssh().args(remote))
}

fn runs_containers(engine: VmEngine, version: &str) -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    let vm = Vm::start(lab, engine, &VmOptions::default())?;
    let found = ssh(&vm, &["docker", "version", "--format", "'{{.Server.Version}}'"])?;
    ensure!(found.starts_with(version), "engine {found}");
    vm.load_image(&["busybox:1.36"])?;
    ensure!(ssh(&vm, &["docker", "run", "--rm", "busybox:1.36", "echo", "hello"])? == "hello");
    ensure!(ssh(&vm, &["docker", "compose", "version", "--short"])?.starts_with('2'));
    ensure!(vm.sshd_log()?.contains("Accepted publickey for deploy"), "the log lacks the login");

    // The disk, the port and the key outlive a power cut.
    vm.power_off()?;
    vm.power_on()?;
    ensure!(ssh(&vm, &["docker", "images", "-q", "busybox:1.36"])?.len() >= 12, "the image is gone");
    Ok(())
}

#[test]
fn the_old_engine_runs_containers() -> Result<()> {
    runs_containers(VmEngine::V20, "20.10.")
}

#[test]
fn the_new_engine_runs_containers() -> Result<()> {
    runs_containers(VmEngine::V28, "28.")
}

#[test]
fn a_vm_fails_as_told() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    let options = VmOptions { data_size: Some("64m".to_owned()), ..VmOptions::default() };
    let vm = Vm::start(lab, VmEngine::V20, &options)?;

    vm.kill_dockerd()?;
    ensure!(ssh(&vm, &["docker", "ps"]).is_err(), "the engine answers after its death");
    vm.start_dockerd()?;
    ssh(&vm, &["docker", "ps"])?;

    vm.load_image(&["busybox:1.36"])?;
    let fill = ["docker", "run", "--rm", "busybox:1.36", "dd", "if=/dev/zero", "of=/f", "bs=1M", "count=100"];
    let full = ssh(&vm, &fill).map_or_else(|error| error.to_string(), |_| "the disk took 100 MB".to_owned());
    ensure!(full.contains("No space left"), "{full}");

    vm.cut_off()?;
    let mut hanging: Command = vm.ssh();
    let dead = hanging.args(["-o", "ConnectTimeout=2", "true"]).stdin(Stdio::null()).output()?;
    ensure!(!dead.status.success(), "a VM that is cut off answers");
    vm.reconnect()?;
    ssh(&vm, &["true"])?;

    vm.restart()?;
    ssh(&vm, &["docker", "ps"])?;
    Ok(())
}

#[test]
fn a_wrong_host_key_is_refused() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    let one = Vm::start(lab, VmEngine::V20, &VmOptions::default())?;
    let other = Vm::start(lab, VmEngine::V20, &VmOptions::default())?;
    let wrong = other.known_hosts().replace(&other.port().to_string(), &one.port().to_string());
    ensure!(wrong != one.known_hosts(), "two VMs have one host key");
    std::fs::write(one.known_hosts_file(), wrong)?;
    let error = ssh(&one, &["true"]).expect_err("a login with the wrong key").to_string();
    ensure!(error.contains("Host key verification failed"), "{error}");
    Ok(())
}

#[test]
fn a_shared_vm_is_started_once_and_outlives_its_value() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    let first = Vm::shared(lab, VmEngine::V28)?;
    let (name, key) = (first.name().to_owned(), first.known_hosts());
    drop(first);
    let second = Vm::shared(lab, VmEngine::V28)?;
    ensure!(second.name() == name && second.known_hosts() == key, "another VM");
    ensure!(lab.remove_shared_vms()?.contains(&name), "a VM in use was removed");
    ssh(&second, &["docker", "ps"]).map(drop)
}
