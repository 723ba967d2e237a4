//! The short form of `cargo xtask soak`: more runs than places, watched from outside.

use preview_tests::{Vm, VmEngine, lab, preview_binary};
use xtask::soak::{self, Facts, Options};

#[test]
fn more_runs_than_places() {
    let Some(lab) = lab() else { return };
    let vm = Vm::shared(lab, VmEngine::V28).expect("the VM starts");
    let app = xtask::lab::test_app(9000);
    let options = Options::parse(&["--waves", "5,12", "--places", "3"], &app, preview_binary()).expect("sound");
    let outcome = soak::run(lab, &vm, &options).expect("it runs");
    eprintln!("{}", soak::render(&outcome, &Facts::collect(lab, &vm).expect("facts")));
    assert!(outcome.broken.is_empty(), "{:#?}\n{}", outcome.broken, outcome.complaints().join("\n"));
}
