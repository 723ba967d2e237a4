//! `cargo xtask test`: every check and every test, then proof that nothing was left behind.

use std::ffi::OsString;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};
use xtask::lab::{Extra, Lab, Needs, Stopped, root};
use xtask::sh;

use crate::checks::Run;

/// Runs it all; `rest` goes to `cargo test`.
pub(crate) fn all(rest: &[&str]) -> Result<()> {
    let start = Instant::now();
    let lab = Lab::up(Needs::Vms)?;
    ahead(&lab);
    let checked = checks().and_then(|()| tests(&lab, rest));
    // Whatever came of the tests, what is in the engine goes, and the engine stops.
    let cleaned = lab.remove_shared_vms().and_then(|in_use| {
        in_use.iter().for_each(|name| eprintln!("{name} stays: another process uses it"));
        lab.stop_engine()
    });
    match &cleaned {
        Ok(Stopped::InUse(names)) => {
            eprintln!("the engine that the lab started stays, it runs {}", names.join(", "));
        }
        Ok(Stopped::Yes) => eprintln!("stopped the engine that the lab had started"),
        _ => {}
    }
    checked?;
    cleaned?;
    eprintln!("all of it: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Some things take minutes to build and are wanted late; whoever wants one that is not ready waits for it.
fn ahead(lab: &Lab) {
    let lab = lab.clone();
    std::thread::spawn(move || {
        let tell = |name: &str, made: Result<()>| {
            if let Err(error) = made {
                eprintln!("== {name}: {error:#}");
            }
        };
        if lab.has_programs() {
            for extra in [Extra::Traefik, Extra::Pebble] {
                tell(extra.image(), lab.extra(extra).map(drop));
            }
        } else {
            eprintln!("== {}", skipped("Traefik and Pebble", "registry to pull them from, and no `go` to build them"));
        }
        match lab.other_compose() {
            Ok(None) => eprintln!("== {}", skipped("Compose 5", GO)),
            made => tell("Compose 5", made.map(drop)),
        }
        if lab.has_engine_29() {
            tell("Docker Engine 29", lab.engine_29());
        } else {
            eprintln!("== {}", skipped("Docker Engine 29", GO));
        }
    });
}

const GO: &str = "`go`, or no module proxy, to build it";

fn skipped(name: &str, lacking: &str) -> String {
    format!("{name}: skipped, there is no {lacking}; so are the tests that need it")
}

fn checks() -> Result<()> {
    stage("cargo fmt", cargo(["fmt", "--all", "--check"]))?;
    stage("cargo clippy", cargo(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    let mut doc = cargo(["doc", "--workspace", "--no-deps", "--quiet"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    stage("cargo doc", doc)?;
    deny()
}

/// Licences, sources and duplicates need nothing from outside; the advisories need their database.
fn deny() -> Result<()> {
    if sh::which("cargo-deny").is_none() {
        eprintln!("== cargo deny: skipped, cargo-deny is not installed (cargo install cargo-deny --locked)");
        return Ok(());
    }
    let parts = ["deny", "--log-level", "error", "check", "bans", "licenses", "sources"];
    stage("cargo deny check bans licenses sources", cargo(parts))?;
    if !sh::succeeds(&mut cargo(["deny", "fetch", "db"])) {
        eprintln!("== cargo deny check advisories: skipped, the advisory database cannot be fetched here");
        return Ok(());
    }
    stage("cargo deny check advisories", cargo(["deny", "check", "advisories"]))
}

fn tests(lab: &Lab, rest: &[&str]) -> Result<()> {
    for name in lab.sweep_vms()? {
        eprintln!("removed {name}: left by an earlier run that was killed");
    }
    let run = Run::new()?;
    // One run tells of everything that is broken.
    let mut test = cargo(["test", "--workspace", "--no-fail-fast"]);
    test.args(rest).env("PREVIEW_LAB", "1").envs(run.environment());
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        // They wait for containers, locks and time limits more than they compute.
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        test.env("RUST_TEST_THREADS", (2 * cores).to_string());
    }
    lab.set_environment(&mut test);
    let tested = stage("cargo test", test);
    let left = run.leftovers(lab)?;
    if !left.is_empty() {
        eprintln!("the tests left this behind (removed now):\n  {}", left.join("\n  "));
        tested?;
        bail!("the tests left {} things behind", left.len());
    }
    tested
}

fn stage(name: &str, mut command: Command) -> Result<()> {
    eprintln!("== {name}");
    let start = Instant::now();
    let done = sh::run(&mut command);
    eprintln!(
        "== {name}: {} after {:.1} s",
        if done.is_ok() { "passed" } else { "failed" },
        start.elapsed().as_secs_f64()
    );
    done
}

pub(crate) fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = sh::cmd(program, args);
    command.current_dir(root());
    command
}
