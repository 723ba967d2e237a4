//! A host that cannot be reached or is not the right one, and a runner without its tools: what to do about it is said, nothing is sent.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::bad_input::{ONE, refused};
use preview_tests::{Site, Vm, VmEngine, VmOptions, Where, lab};

const DEPLOY: &[&str] = &["deploy", "--pr", "7"];

#[test]
fn no_engine_on_this_machine() {
    let Some(site) = Site::new(Where::Local, ONE) else { return };
    site.write("preview.toml", "[vm]\ndocker_socket = \"/nonexistent/docker.sock\"\n");
    let words = ["/nonexistent/docker.sock", "no Docker engine answers", "systemctl status docker", "docker_socket"];
    for args in [DEPLOY, &["list"], &["status", "--pr", "7"], &["destroy", "--pr", "7"], &["plan", "--pr", "7"]] {
        refused(&site, args, 6, &words);
        let json = [args, &["--format", "json"]].concat();
        assert_eq!(refused(&site, &json, 6, &words).failure(), "engine_unreachable");
    }
    // A socket that nobody answers.
    let socket = site.dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    site.write("preview.toml", &format!("[vm]\ndocker_socket = \"{}\"\n", socket.display()));
    refused(&site, DEPLOY, 6, &["dead.sock", "no Docker engine answers"]);
}

/// A directory with links to all programs of `PATH` but `docker`.
fn without_docker(into: &Path) {
    for dir in std::env::split_paths(&std::env::var_os("PATH").expect("PATH")) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name() != "docker" {
                // The first of a name counts, as in PATH.
                let _ = symlink(entry.path(), into.join(entry.file_name()));
            }
        }
    }
}

#[test]
fn no_docker_cli_no_compose_and_one_that_is_too_old() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    let path = site.dir.path().join("bin");
    std::fs::create_dir(&path).expect("a directory");
    without_docker(&path);
    site.set("PATH", path.to_str().expect("a path"));
    refused(&site, DEPLOY, 2, &["`docker` was not found", "Compose plugin"]);
    // What needs no Compose works without it.
    site.run(&["list"]).expect(0);
    site.run(&["destroy", "--pr", "7"]).expect(0);

    for (script, words) in [
        (
            "echo \"docker: 'compose' is not a docker command.\" >&2; exit 1",
            &["`docker compose` is missing", "Compose plugin (v2)"][..],
        ),
        (
            "[ \"$2\" = version ] && { echo 2.20.3; exit 0; }; echo 'unknown flag' >&2; exit 1",
            &["Docker Compose 2.20.3 is too old", "2.24 or newer"],
        ),
        // One that resolves, but in a form that we do not know.
        (
            "[ \"$2\" = version ] && { echo 1.29.2; exit 0; }; echo 'services: {}'",
            &["Docker Compose 1.29.2 is too old"],
        ),
    ] {
        let docker = path.join("docker");
        std::fs::write(&docker, format!("#!/bin/sh\n{script}\n")).expect("a script");
        std::fs::set_permissions(&docker, std::fs::Permissions::from_mode(0o755)).expect("rights");
        refused(&site, DEPLOY, 2, words);
    }
}

fn key(dir: &Path, name: &str) -> std::path::PathBuf {
    let file = dir.join(name);
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&file).status();
    assert!(made.expect("ssh-keygen runs").success());
    file
}

#[test]
fn a_vm_that_is_not_the_right_one() {
    let Some(lab) = lab() else { return };
    let vm = Arc::new(Vm::start(lab, VmEngine::V28, &VmOptions::default()).expect("the VM starts"));
    let mut site = Site::on(lab, Some(Arc::clone(&vm)), ONE);
    let own = site.dir.path().to_owned();
    site.set("HOME", own.to_str().expect("a path"));
    let temporary = own.join("t");
    std::fs::create_dir(&temporary).expect("a directory");
    site.set("TMPDIR", temporary.to_str().expect("a path"));
    let logins = || vm.sshd_log().expect("a log").matches("Accepted publickey").count();
    let before = logins();

    // Unknown: no line for this machine, or none at all.
    let other = std::fs::read_to_string(key(&own, "other").with_extension("pub")).expect("a key");
    let other = other.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    let keyscan = format!("ssh-keyscan -p {} 127.0.0.1", vm.port());
    for lines in [format!("elsewhere.example.com {other}"), String::new()] {
        site.set("PREVIEW_KNOWN_HOSTS", &lines);
        for args in [DEPLOY, &["list"], &["destroy", "--pr", "7"], &["plan", "--pr", "7"]] {
            refused(&site, args, 6, &["host key", "is not known", &keyscan, "PREVIEW_KNOWN_HOSTS", "ssh-keygen -lf"]);
        }
    }
    // Changed.
    site.set("PREVIEW_KNOWN_HOSTS", &format!("[127.0.0.1]:{} {other}", vm.port()));
    refused(&site, DEPLOY, 6, &["another host key than the one that was pinned", &keyscan, "stand between you"]);
    site.set("PREVIEW_KNOWN_HOSTS", &vm.known_hosts());

    // The wrong key of the user: a file, and a variable.
    let wrong = key(&own, "wrong");
    site.set("PREVIEW_IDENTITY_FILE", wrong.to_str().expect("a path"));
    refused(&site, DEPLOY, 6, &["Permission denied", "authorized_keys"]);
    site.set("PREVIEW_IDENTITY_FILE", "");
    site.set("PREVIEW_IDENTITY_KEY", "-----BEGIN nonsense-----\nhunter22hunter22\n");
    let ran = refused(&site, DEPLOY, 6, &["PREVIEW_IDENTITY_KEY"]);
    assert!(!ran.err.contains("hunter22"), "{}", ran.err);
    site.set("PREVIEW_IDENTITY_KEY", "");
    site.set("PREVIEW_IDENTITY_FILE", vm.identity_file().to_str().expect("a path"));

    // Nobody there.
    site.set("PREVIEW_HOST", "ssh://deploy@127.0.0.1:1");
    refused(&site, DEPLOY, 6, &["127.0.0.1:1", "Connection refused"]);
    site.set("PREVIEW_HOST", "ssh://deploy@no-such-host.invalid");
    refused(&site, DEPLOY, 6, &["no-such-host.invalid", "resolve"]);
    site.set("PREVIEW_HOST", &vm.ssh_url());

    // Bad input that is known before connecting opens no connection.
    for (toml, code) in [("[limit]\n", 2), ("[[secrets]]\nkind = \"env\"\nnames = [\"NOT_SET\"]\n", 2)] {
        site.write("preview.toml", toml);
        refused(&site, DEPLOY, code, &[]);
    }
    site.write("preview.toml", "");
    for args in [&["deploy", "--branch", "///"][..], &["deploy", "--pr", "7", "--compose", "nope.yml"], &["ci"]] {
        refused(&site, args, 2, &[]);
    }
    assert_eq!(logins(), before, "somebody logged in");
    let left: Vec<_> = std::fs::read_dir(&temporary).expect("a directory").flatten().collect();
    assert!(left.is_empty(), "{left:?}");

    // With all in order it works, with one login a run.
    site.run(&["list"]).expect(0);
    assert_eq!(logins(), before + 1);
    // Bad input that the Compose CLI finds while the connection is made changes nothing either.
    site.write("compose.yml", &format!("{ONE}    privileged: true\n"));
    refused(&site, DEPLOY, 3, &["services.app.privileged"]);
    // A VM whose engine is down.
    site.write("compose.yml", ONE);
    vm.kill_dockerd().expect("dockerd ends");
    refused_without_engine(&site);
}

/// The host can be reached, its engine cannot: that is remembered, and nothing else is left.
fn refused_without_engine(site: &Site) {
    for args in [DEPLOY, &["list"], &["destroy", "--pr", "7"]] {
        let ran = site.run(args).expect(6);
        assert!(ran.err.contains("no Docker engine answers"), "{}", ran.err);
        assert_eq!(
            site.shell(&format!("[ ! -d '{0}' ] || find '{0}' -mindepth 1 ! -name .history.jsonl", site.base())),
            ""
        );
    }
}
