//! This machine as a host, through every shell that it has: the same scripts must run on a Debian, an Alpine or a RHEL.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use preview_core::fault::FaultKind;
use preview_core::host::local::{self, LocalHost};
use preview_core::host::{Change, Entry, Host, Query};
use preview_core::lock::shell::{ShellLock, Timing};
use preview_core::lock::{Acquired, Holder, Lock};
use preview_core::secret::Secret;
use preview_core::testkit::conformance;

/// The shells that this machine has, each with a host that uses it. `sh` itself is always there.
fn hosts() -> Vec<(String, Arc<LocalHost>)> {
    let mut shells: Vec<Vec<OsString>> = [&["dash"] as &[&str], &["bash", "--posix"], &["busybox", "sh"]]
        .iter()
        .map(|words| words.iter().map(OsString::from).collect())
        .collect();
    // A shell that talks before it is asked, as one whose start-up files greet.
    shells.push(["sh", "-c", "echo Welcome; echo Hello >&2; exec sh \"$@\"", "sh"].map(OsString::from).into());
    shells.extend(busybox_tools());
    let mut hosts = vec![("sh".to_owned(), local::connect().expect("connects"))];
    for shell in shells {
        let name = shell.join(OsStr::new(" ")).into_string().expect("text");
        let found = std::process::Command::new(&shell[0]).args(&shell[1..]).args(["-c", ":"]).status();
        if found.is_ok_and(|status| status.success()) {
            hosts.push((name, local::connect_with_shell(shell).expect("connects")));
        } else {
            eprintln!("{name} is not on this machine: not tested with it");
        }
    }
    hosts
}

/// A shell that finds busybox's tools only, but for `flock`, which Debian's busybox does not have: that one is told to be as busybox's is elsewhere.
fn busybox_tools() -> Option<Vec<OsString>> {
    let listed = std::process::Command::new("busybox").arg("--list").output().ok()?;
    let find = |program: &str| {
        std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.exists())
    };
    let (busybox, flock) = (find("busybox")?, find("flock")?);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("busybox-tools");
    std::fs::create_dir_all(&dir).expect("makes a directory");
    for applet in String::from_utf8(listed.stdout).expect("text").lines() {
        let _ = symlink(&busybox, dir.join(applet));
    }
    let _ = std::fs::remove_file(dir.join("flock"));
    let only = format!("#!/bin/sh\ncase $1$2 in *w*) exit 1 ;; esac\nexec '{}' \"$@\"\n", flock.display());
    std::fs::write(dir.join("flock"), only).expect("writes");
    std::fs::set_permissions(dir.join("flock"), std::fs::Permissions::from_mode(0o755)).expect("changes the mode");
    let mut path = OsString::from("PATH=");
    path.push(&dir);
    Some(vec!["env".into(), path, "sh".into()])
}

fn write(path: impl Into<String>, content: impl Into<Vec<u8>>) -> Change {
    Change::Write { path: path.into(), content: Secret::new(content.into()), mode: 0o640 }
}

fn mode(path: impl AsRef<Path>) -> u32 {
    std::fs::symlink_metadata(path).expect("exists").permissions().mode() & 0o7777
}

fn holder(who: &str) -> Holder {
    Holder { who: who.into(), why: "test".into(), since: "now".into() }
}

#[tokio::test]
async fn keeps_the_contract_of_hosts() {
    for (shell, host) in hosts() {
        eprintln!("{shell}");
        let dir = tempfile::tempdir().expect("a directory");
        conformance::host::suite(&*host, &format!("{}/ba se", dir.path().display())).await;
        let run = host.guardian().run_dir().to_owned();
        host.close().await.expect("closes");
        host.close().await.expect("closes again");
        assert!(!run.exists());
    }
}

#[tokio::test]
async fn keeps_the_contract_of_locks() {
    let suites = hosts().into_iter().map(|(shell, host)| async move {
        let dir = tempfile::tempdir().expect("a directory");
        let lock = ShellLock::new(host);
        conformance::lock::suite(&lock, &format!("{}/lo cks", dir.path().display())).await;
        shell
    });
    for shell in futures_util::future::join_all(suites).await {
        eprintln!("{shell} passed");
    }
}

#[tokio::test]
async fn bytes_and_modes_survive() {
    for (shell, host) in hosts() {
        let dir = tempfile::tempdir().expect("a directory");
        let base = dir.path().display();
        let bytes: Vec<u8> = (0..=255u8).cycle().take(100_003).collect();
        host.apply(&[write(format!("{base}/a/b/bytes"), bytes.clone())]).await.expect("writes");
        assert_eq!(std::fs::read(dir.path().join("a/b/bytes")).expect("reads"), bytes, "{shell}");
        assert_eq!(mode(dir.path().join("a/b/bytes")), 0o640);
        assert_eq!((mode(dir.path().join("a")), mode(dir.path().join("a/b"))), (0o700, 0o700));
        assert_eq!(std::fs::read_dir(dir.path().join("a/b")).expect("lists").count(), 1, "no temporary file is left");
    }
}

#[tokio::test]
async fn an_upload_keeps_modes_and_links() {
    for (shell, host) in hosts() {
        let dir = tempfile::tempdir().expect("a directory");
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("d")).expect("makes directories");
        std::fs::write(tree.join("run.sh"), "#!/bin/sh\n").expect("writes");
        std::fs::write(tree.join("d/read"), "").expect("writes");
        symlink("../run.sh", tree.join("d/link")).expect("links");
        for (path, bits) in [("run.sh", 0o755), ("d/read", 0o444), ("d", 0o755), ("", 0o750)] {
            std::fs::set_permissions(tree.join(path), std::fs::Permissions::from_mode(bits)).expect("changes the mode");
        }
        let target = dir.path().join("base/files/1");
        let entries =
            [Entry { source: Some(tree), target: "tree".into() }, Entry { source: None, target: "a/b".into() }];
        assert!(host.upload(target.to_str().expect("text"), &entries).await.expect("uploads"), "{shell}");
        assert_eq!(mode(&target), 0o700);
        let modes = ["tree", "tree/run.sh", "tree/d", "tree/d/read", "a/b"].map(|path| mode(target.join(path)));
        assert_eq!(modes, [0o750, 0o755, 0o755, 0o444, 0o755], "{shell}");
        assert_eq!(std::fs::read_link(target.join("tree/d/link")).expect("a link"), Path::new("../run.sh"));
        assert_eq!(std::fs::read_dir(dir.path().join("base/files")).expect("lists").count(), 1, "nothing else is left");
    }
}

#[tokio::test]
async fn a_reader_sees_the_old_or_the_new_file() {
    let host = local::connect().expect("connects");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.json");
    let contents = ["a", "b"].map(|letter| letter.repeat(300_000));
    std::fs::write(&path, &contents[0]).expect("writes");
    let done = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (path, done, contents) = (path.clone(), Arc::clone(&done), contents.clone());
        move || {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) {
                let seen = std::fs::read_to_string(&path).expect("always there");
                assert!(contents.contains(&seen), "half a file of {} bytes", seen.len());
                reads += 1;
            }
            reads
        }
    });
    for round in 1..=20 {
        host.apply(&[write(path.to_str().expect("text"), contents[round % 2].as_str())]).await.expect("writes");
    }
    done.store(true, Ordering::Relaxed);
    assert!(reader.join().expect("saw whole files only") > 0);
}

#[tokio::test]
async fn an_operation_that_is_dropped_harms_no_other() {
    let host = local::connect().expect("connects");
    let dir = tempfile::tempdir().expect("a directory");
    let base = dir.path().display().to_string();
    let large = "x".repeat(4_000_000);
    for microseconds in [0, 300, 3_000, 10_000, 30_000] {
        let apply = [write(format!("{base}/large"), large.as_str())];
        let _ = tokio::time::timeout(Duration::from_micros(microseconds), host.apply(&apply)).await;
        let query = Query { read: vec!["large".into()], list: vec!["*".into()], ..Query::default() };
        let survey = host.survey(&base, &query).await.expect("answers");
        for content in survey.files.values() {
            assert_eq!(content.len(), large.len(), "half a file");
        }
        let tree = [Entry { source: Some(format!("{base}/large").into()), target: "f".into() }];
        std::fs::write(dir.path().join("large"), &large).expect("writes");
        let up = format!("{base}/up");
        let upload = host.upload(&up, &tree);
        let _ = tokio::time::timeout(Duration::from_micros(microseconds), upload).await;
        host.upload(&up, &tree).await.expect("uploads");
        assert_eq!(std::fs::metadata(dir.path().join("up/f")).expect("whole").len(), large.len() as u64);
        host.apply(&[Change::Remove { path: up }]).await.expect("removes");
    }
    host.upload(&format!("{base}/last"), &[]).await.expect("uploads");
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).expect("lists").map(|entry| entry.expect("reads").file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("upload")), "{left:?}");
}

#[tokio::test]
async fn what_dead_runs_left_is_removed_and_what_live_runs_do_is_not() {
    let host = local::connect().expect("connects");
    let dir = tempfile::tempdir().expect("a directory");
    let (dead, live) = (dir.path().join(".preview-upload-dead"), dir.path().join(".preview-upload-live"));
    for path in [&dead, &live] {
        std::fs::create_dir(path).expect("makes a directory");
        std::fs::write(path.join("f"), "").expect("writes");
    }
    let mut owner = tokio::process::Command::new("flock")
        .arg(&live)
        .args(["sleep", "60"])
        .kill_on_drop(true)
        .spawn()
        .expect("flock");
    tokio::time::sleep(Duration::from_millis(300)).await;
    host.upload(dir.path().join("new").to_str().expect("text"), &[]).await.expect("uploads");
    assert!(!dead.exists() && live.exists());
    owner.kill().await.expect("kills");
}

#[tokio::test]
async fn a_shell_that_dies_is_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let base = dir.path().display().to_string();
    // A name of its own, so that nothing else is killed.
    let name = dir.path().join("my-sh");
    symlink("/bin/sh", &name).expect("links");
    let host = local::connect_with_shell(vec![name.clone().into()]).expect("connects");
    host.survey(&base, &Query::default()).await.expect("answers");
    let killed = tokio::process::Command::new("pkill").args(["-KILL", "-f"]).arg(&name).status().await;
    if !killed.is_ok_and(|status| status.success()) {
        eprintln!("pkill is not on this machine: not tested");
        return;
    }
    assert!(host.survey(&base, &Query::default()).await.expect_err("it was killed").transient);
    host.survey(&base, &Query::default()).await.expect("answers again");
}

#[tokio::test]
async fn a_full_disk_is_told_apart() {
    // Root may always write: a directory without rights says nothing here, a device that is always full does.
    let host = local::connect().expect("connects");
    let dir = tempfile::tempdir().expect("a directory");
    let mount = dir.path().join("full");
    std::fs::create_dir(&mount).expect("makes a directory");
    let mounted =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&mount).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("no right to mount: not tested");
        return;
    }
    let base = mount.display().to_string();
    std::fs::write(mount.join("state.json"), "old").expect("writes");
    let large = "x".repeat(500_000);
    let applied = host.apply(&[write(format!("{base}/state.json"), large.as_str())]).await;
    let old = std::fs::read_to_string(mount.join("state.json"));
    let left = std::fs::read_dir(&mount).expect("lists").count();
    std::fs::write(dir.path().join("large"), large).expect("writes");
    let entry = Entry { source: Some(dir.path().join("large")), target: "f".into() };
    let uploaded = host.upload(&format!("{base}/up"), &[entry]).await;
    let left_by_upload = std::fs::read_dir(&mount).expect("lists").count();
    let _ = std::process::Command::new("umount").arg(&mount).status();
    assert_eq!(applied.expect_err("full").kind, FaultKind::NoSpace);
    assert_eq!((old.expect("reads").as_str(), left), ("old", 1));
    assert_eq!(uploaded.expect_err("full").kind, FaultKind::NoSpace);
    assert_eq!(left_by_upload, 1);
}

#[tokio::test]
async fn release_with_remove_leaves_no_file() {
    let lock = ShellLock::new(local::connect().expect("connects"));
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a/.lock");
    let text = path.to_str().expect("text");
    for remove in [false, true] {
        let acquired = lock.acquire(text, &holder("ada"), Duration::ZERO, &|_| ()).await.expect("answers");
        let Acquired::Held(lease) = acquired else { panic!("free") };
        assert_eq!((mode(&path), mode(dir.path().join("a"))), (0o600, 0o700));
        assert!(std::fs::read_to_string(&path).expect("reads").contains("ada"));
        lease.release(remove).await.expect("releases");
        assert_eq!(path.exists(), !remove);
    }
}

#[tokio::test]
async fn the_last_changes_and_the_release_are_one() {
    let tests = hosts().into_iter().map(|(shell, host)| async move {
        let dir = tempfile::tempdir().expect("a directory");
        let home = dir.path().join("a/pr-1").display().to_string();
        let lock = ShellLock::new(Arc::clone(&host));
        let path = format!("{home}/.lock");
        let take = || async {
            match lock.acquire(&path, &holder("ada"), Duration::ZERO, &|_| ()).await.expect("answers") {
                Acquired::Held(lease) => lease,
                Acquired::TimedOut(by) => panic!("{shell}: held by {by:?}"),
            }
        };
        let content = "$(echo no) `no` \\ 'x'\n".repeat(500);
        let file = format!("{home}/state.json");

        let lease = take().await;
        assert!(lease.conclude(&*host, &[write(&file, content.as_str())], &[]).await.expect("changes"), "{shell}");
        lease.release(true).await.expect("is nothing more to do");
        assert_eq!(std::fs::read_to_string(&file).expect("reads"), content, "{shell}");
        assert!(!Path::new(&path).exists(), "{shell}");

        // What cannot be made leaves the lock where it is, and names the change.
        let lease = take().await;
        let last = [Change::Remove { path: file.clone() }, write(format!("{home}/.lock/x"), "y")];
        let fault = lease.conclude(&*host, &last, &[]).await.expect_err("a file is no directory");
        assert_eq!(fault.kind, FaultKind::Conflict, "{shell}: {fault}");
        assert!(fault.context.starts_with(&format!("write {home}/.lock/x")), "{shell}: {fault}");
        lease.check().expect("held");
        assert_eq!(lock.holder(&path).await.expect("answers"), Some(holder("ada")), "{shell}");

        // Directories go after the lock's file.
        let after = [Change::RemoveEmpty { path: home.clone() }];
        assert!(lease.conclude(&*host, &[Change::Remove { path: file }], &after).await.expect("changes"), "{shell}");
        drop(lease);
        assert!(!Path::new(&home).exists(), "{shell}");

        // Nobody knows how it ended: then the lock is not ours. The change makes nothing, as it may come after the directory's removal.
        let lease = take().await;
        let change = [Change::Remove { path: format!("{home}/nothing") }];
        let dropped = tokio::time::timeout(Duration::ZERO, lease.conclude(&*host, &change, &[])).await;
        assert!(dropped.is_err(), "{shell}");
        assert_eq!(lease.check().expect_err("unknown").kind, FaultKind::LeaseLost, "{shell}");
    });
    futures_util::future::join_all(tests).await;
}

#[tokio::test]
async fn a_holder_does_not_remove_the_lock_of_another() {
    let lock = ShellLock::new(local::connect().expect("connects"));
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a/.lock");
    let text = path.to_str().expect("text");
    let take = async |who| match lock.acquire(text, &holder(who), Duration::ZERO, &|_| ()).await.expect("answers") {
        Acquired::Held(lease) => lease,
        Acquired::TimedOut(by) => panic!("held by {by:?}"),
    };
    let first = take("ada").await;
    // As a destroy does, which removes the preview's directory with all that is in it.
    std::fs::remove_dir_all(dir.path().join("a")).expect("removes");
    let second = take("bob").await;
    first.release(true).await.expect("releases");
    assert_eq!(lock.holder(text).await.expect("answers"), Some(holder("bob")));
    second.release(true).await.expect("releases");
}

/// In a shell without `read -t` the time to live needs another program; both ways are tried here.
#[tokio::test]
async fn a_holder_that_is_silent_loses_the_lock() {
    let tests = hosts().into_iter().map(|(shell, host)| async move {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(".lock").display().to_string();
        let (long, ttl) = (Duration::from_secs(3600), Duration::from_secs(4));
        let silent = Timing { heartbeat: long, ttl, grace: Duration::from_secs(3) };
        let lock = ShellLock::with_timing(Arc::clone(&host), silent);
        let acquired = lock.acquire(&path, &holder("ada"), Duration::ZERO, &|_| ()).await.expect("answers");
        let Acquired::Held(lease) = acquired else { panic!("free") };
        lease.check().expect("held");
        lease.lost().await;
        assert_eq!(lease.check().expect_err("silent").kind, FaultKind::LeaseLost, "{shell}");
        let acquired = lock.acquire(&path, &holder("bob"), 3 * ttl, &|_| ()).await.expect("answers");
        assert!(matches!(acquired, Acquired::Held(_)), "{shell}");
    });
    futures_util::future::join_all(tests).await;
}

#[tokio::test]
async fn heartbeats_keep_it() {
    let tests = hosts().into_iter().map(|(shell, host)| async move {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(".lock").display().to_string();
        let timing = Timing {
            heartbeat: Duration::from_millis(300),
            ttl: Duration::from_secs(5),
            grace: Duration::from_secs(4),
        };
        let lock = ShellLock::with_timing(host, timing);
        let acquired = lock.acquire(&path, &holder("ada"), Duration::ZERO, &|_| ()).await.expect("answers");
        let Acquired::Held(lease) = acquired else { panic!("free") };
        tokio::time::sleep(Duration::from_secs(7)).await;
        lease.check().unwrap_or_else(|fault| panic!("{shell}: {fault}"));
        lease.release(true).await.expect("releases");
    });
    futures_util::future::join_all(tests).await;
}

#[tokio::test]
async fn sockets_and_addresses_are_those_of_this_machine() {
    let host = local::connect().expect("connects");
    assert_eq!(host.socket("/var/run/docker.sock").await.expect("is itself"), Path::new("/var/run/docker.sock"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("has one").port();
    host.dial("127.0.0.1", port).await.expect("connects");
    let dir = tempfile::tempdir().expect("a directory");
    let facts = host.survey(dir.path().to_str().expect("text"), &Query::default()).await.expect("answers").facts;
    assert!(facts.listening.contains(&port));
    drop(listener);
    assert_eq!(host.dial("127.0.0.1", port).await.err().map(|fault| fault.kind), Some(FaultKind::Unreachable));
}
