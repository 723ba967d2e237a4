//! `cargo xtask soak`: the load of the gate on a VM of its own, and its document.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};
use xtask::lab::{Lab, Needs, Vm, VmEngine, VmOptions, root};
use xtask::sh;
use xtask::soak::{self, Facts, Options};

pub(crate) fn run(words: &[&str]) -> Result<()> {
    let mut options = Options::parse(words, "soak", PathBuf::new())?;
    let lab = Lab::up(Needs::Vms)?;
    if options.binary.as_os_str().is_empty() {
        options.binary = crate::bench::build()?;
    }
    let vm = sh::step("VM", || Ok((Vm::start(&lab, VmEngine::V28, &VmOptions::default())?, "started".to_owned())))?;
    let outcome = soak::run(&lab, &vm, &options)?;
    let text = soak::render(&outcome, &Facts::collect(&lab, &vm)?);
    println!("{text}");
    for complaint in outcome.complaints() {
        eprintln!("{complaint}\n");
    }
    if options.whole() {
        let place = root().join("docs/soak.md");
        fs::write(&place, text)?;
        eprintln!("wrote {}", place.display());
    }
    if !outcome.broken.is_empty() {
        bail!("{}", outcome.broken.join("\n"));
    }
    Ok(())
}
