//! `cargo xtask …`: set-up and habits of this workspace.

mod bench;
mod checks;
mod demo;
mod gate;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};
use xtask::lab::{Extra, Lab, Needs, Stopped};

const USAGE: &str = "\
usage: cargo xtask <command>

  demo [--down]           deploy examples/hello on this machine and fetch its page; --down removes it
  bench [OPTIONS]         whole commands against the ways without it, over a slow link; writes docs/benchmarks.md
  soak [OPTIONS]          a hundred runs at once on one VM, watched from outside; writes docs/soak.md
  test [-- ARGS]          every check and every test, on a real engine and real VMs; ARGS go to `cargo test`
  lab up|down|env         the lab alone: make it ready, remove it, print its environment for a shell
  lab load IMAGE VM       copy an image of this machine's engine into a running VM
  lab extra NAME          make what only some tests need: nginx, caddy, ways, traefik, pebble, engine-29, compose-5
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["demo"] => demo::up(),
        ["demo", "--down"] => demo::down(),
        ["bench", rest @ ..] => bench::run(rest),
        ["soak", rest @ ..] => gate::run(rest),
        ["test"] => test::all(&[]),
        ["test", "--", rest @ ..] => test::all(rest),
        ["lab", "up"] => lab_up(),
        ["lab", "down"] => lab_down(),
        ["lab", "env"] => lab_env(),
        ["lab", "extra", name] => lab_extra(name),
        ["lab", "load", image, vm] => lab_load(image, vm),
        [] | ["help" | "--help" | "-h"] => {
            eprint!("{USAGE}");
            Ok(())
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn lab_up() -> Result<()> {
    let lab = Lab::up(Needs::Vms)?;
    for name in lab.sweep_vms()? {
        eprintln!("removed {name}: its process is gone");
    }
    eprintln!("for a shell: eval \"$(cargo xtask lab env)\"");
    Ok(())
}

fn lab_down() -> Result<()> {
    let Some(lab) = Lab::current() else {
        eprintln!("there is no lab, or no engine answers: there is nothing to remove");
        return Ok(());
    };
    let stay = lab.clear()?;
    eprintln!("removed the lab's VMs and images that nobody uses");
    if !stay.is_empty() {
        eprintln!("these stay, somebody uses them: {}", stay.join(", "));
    }
    say_stopped(&lab.stop_engine()?);
    Ok(())
}

fn lab_env() -> Result<()> {
    let Some(lab) = Lab::current() else {
        bail!("there is no lab, or no engine answers: run `cargo xtask lab up` first");
    };
    println!("export DOCKER_CONFIG='{}'", lab.docker_config.display());
    if let Some(host) = &lab.docker_host {
        println!("export DOCKER_HOST='{host}'");
    }
    println!("unset DOCKER_CONTEXT");
    println!("export PREVIEW_LAB=1");
    Ok(())
}

fn lab_extra(name: &str) -> Result<()> {
    if name == "engine-29" {
        return Lab::up(Needs::Vms)?.engine_29();
    }
    if name == "compose-5" {
        let Some(config) = Lab::up(Needs::Basics)?.other_compose()? else {
            bail!("Compose 5 is built by Go, and there is no `go`, or no module proxy");
        };
        println!("{}", config.display());
        return Ok(());
    }
    let all = [Extra::Nginx, Extra::Caddy, Extra::Ways, Extra::Traefik, Extra::Pebble];
    let Some(extra) = all.into_iter().find(|extra| extra.image().ends_with(&format!("/{name}"))) else {
        bail!("there is no `{name}`: nginx, caddy, ways, traefik, pebble, engine-29, compose-5");
    };
    println!("{}", Lab::up(Needs::Basics)?.extra(extra)?);
    Ok(())
}

fn lab_load(image: &str, vm: &str) -> Result<()> {
    let Some(lab) = Lab::current() else {
        bail!("there is no lab, or no engine answers: run `cargo xtask lab up` first");
    };
    lab.load_image(vm, &[image])
}

fn say_stopped(stopped: &Stopped) {
    match stopped {
        Stopped::Yes => eprintln!("stopped the engine that the lab had started"),
        Stopped::NotOurs => eprintln!("the engine stays: the lab did not start it"),
        Stopped::InUse(names) => {
            eprintln!("the engine stays: it runs {}", names.join(", "));
        }
    }
}
