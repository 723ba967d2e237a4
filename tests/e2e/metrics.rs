//! The numbers of a host, in the file for its monitoring: there after each run, whatever came of it, and right.

use std::process::Command;

use preview_tests::{Site, VmEngine, Where};

use crate::stacks::SMALL;

/// A place for the file that the user of the host may write in, and the configuration that names it.
fn file(site: &Site) -> String {
    let directory = format!("{}-textfile", site.base());
    site.shell(&format!("mkdir -p {directory}; if [ -d {base} ]; then chown --reference={base} {directory}; fi; [ \"$(id -u)\" != 0 ] || chmod 777 {directory}", base = site.base()));
    let file = format!("{directory}/preview.prom");
    site.write("preview.toml", &format!("[limits]\nmax_previews = 4\n[metrics]\nfile = \"{file}\"\n"));
    file
}

/// The value of a series; `None` where there is none.
fn value(text: &str, series: &str) -> Option<f64> {
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.map(|value| value.parse().expect("a number"))
}

#[track_caller]
fn assert_values(text: &str, expected: &[(&str, f64)]) {
    for (series, number) in expected {
        assert_eq!(value(text, series), Some(*number), "{series}\n{text}");
    }
}

fn everywhere(place: Where) {
    let Some(site) = Site::new(place, SMALL) else { return };
    let file = file(&site);
    let read = |site: &Site| site.shell(&format!("cat {file}"));

    site.run(&["deploy", "--pr", "7"]).expect(0);
    let text = read(&site);
    assert_eq!(site.shell(&format!("stat -c %a {file}; ls -A $(dirname {file})")), "644\npreview.prom");
    let ready = r#"preview_runs{command="deploy",outcome="ready",code=""}"#;
    let mut expected = vec![
        ("preview_active", 1.0),
        ("preview_in_flight", 0.0),
        ("preview_stale_runs", 0.0),
        ("preview_places", 1.0),
        ("preview_places_limit", 4.0),
        ("preview_queued", 0.0),
        ("preview_oom_kills", 0.0),
        (ready, 1.0),
    ];
    assert_values(&text, &expected);
    let clock: f64 = site.shell("date +%s").parse().expect("a number");
    let written = value(&text, "preview_written_timestamp_seconds").expect("a time");
    assert!((clock - 120.0..=clock).contains(&written), "{written} {clock}");
    assert!(value(&text, "preview_disk_used_ratio").is_some_and(|ratio| ratio > 0.0 && ratio < 1.0), "{text}");
    assert!(value(&text, r#"preview_run_seconds_p95{command="deploy"}"#).is_some_and(|took| took > 0.0), "{text}");

    // One that fails, and one that is refused before it is at work.
    site.write("compose.yml", &SMALL.replace("[\"sleep\", \"100000\"]", "[sh, -c, exit 3]"));
    site.run(&["deploy", "--pr", "8"]).expect(4);
    site.write("compose.yml", SMALL);
    let failed = r#"preview_runs{command="deploy",outcome="failed",code="exited"}"#;
    expected.push((failed, 1.0));
    assert_values(&read(&site), &expected);

    // A run that died long ago, somebody who waits, and a service that had too little memory.
    let (app, base) = (&site.app, site.base());
    let own = format!("{base}/{app}");
    site.shell(&format!(
        "set -e; mkdir -p {own}/pr-9 {own}/pr-10; \
         sed -e 's/\"pr-7\"/\"pr-9\"/; s/\"ready\"/\"starting\"/; s/_pr-7\"/_pr-9\"/; s/\"updated_at\": \".*\"/\"updated_at\": \"2026-01-01T00:00:00Z\"/' {own}/pr-7/state.json >{own}/pr-9/state.json; \
         echo '{{\"number\":1,\"app\":\"{app}\",\"name\":\"pr-10\",\"subject\":{{\"pull\":10}},\"weight\":1.0,\"since\":\"2026-01-01T00:00:00Z\"}}' >{own}/pr-10/queue.json; \
         tail -n 1 {base}/.history.jsonl | sed 's/\"exited\"/\"oom_killed\"/; s/}}$/,\"oom_kills\":2}}/' >>{base}/.history.jsonl; \
         chown -R --reference={own}/pr-7 {own}"
    ));
    site.run(&["deploy", "--pr", "7"]).expect(0);
    let text = read(&site);
    assert_values(
        &text,
        &[
            ("preview_active", 2.0),
            ("preview_in_flight", 1.0),
            ("preview_stale_runs", 1.0),
            ("preview_places", 2.0),
            ("preview_queued", 1.0),
            ("preview_queue_oldest_timestamp_seconds", 1_767_225_600.0),
            ("preview_oom_kills", 2.0),
            (failed, 1.0),
            (r#"preview_runs{command="deploy",outcome="unchanged",code=""}"#, 1.0),
        ],
    );
    let oldest = value(&text, "preview_last_sweep_timestamp_seconds").expect("that of the oldest run");

    // What died cannot be mended: there is no file of the version before. So the sweep did not end well.
    site.run(&["sweep"]).expect(4);
    assert_values(
        &read(&site),
        &[
            (r#"preview_runs{command="sweep",outcome="failed",code=""}"#, 1.0),
            ("preview_last_sweep_timestamp_seconds", oldest),
        ],
    );
    site.run(&["destroy", "--name", "pr-9"]).expect(0);
    site.run(&["sweep"]).expect(0);
    let text = read(&site);
    assert_values(&text, &[(r#"preview_runs{command="sweep",outcome="swept",code=""}"#, 1.0)]);
    assert!(value(&text, "preview_last_sweep_timestamp_seconds").is_some_and(|at| at > oldest), "{text}");

    // Many that end at once: the file has them all.
    let runs: Vec<_> = (0..3).map(|pr| site.spawn(&["destroy", "--pr", &(30 + pr).to_string()])).collect();
    for run in runs {
        assert!(run.wait_with_output().expect("ends").status.success());
    }
    site.run(&["destroy", "--pr", "7"]).expect(0);
    let text = read(&site);
    assert_values(&text, &[("preview_active", 0.0), ("preview_places", 0.0), ("preview_in_flight", 0.0)]);
    assert_eq!(
        value(&text, r#"preview_runs{command="destroy",outcome="absent",code=""}"#).map(|n| n >= 3.0),
        Some(true),
        "{text}"
    );
    assert!(site.remains().is_empty(), "{:?}", site.remains());
    site.shell(&format!("rm -rf $(dirname {file})"));
}

#[test]
fn numbers_of_this_machine() {
    everywhere(Where::Local);
}

#[test]
fn numbers_of_a_vm() {
    everywhere(Where::Vm(VmEngine::V28));
}

#[test]
fn a_file_that_cannot_be_written_fails_nothing() {
    let Some(site) = Site::new(Where::Local, SMALL) else { return };
    site.write("not-a-directory", "x");
    let file = site.dir.path().join("not-a-directory/preview.prom");
    site.write("preview.toml", &format!("[metrics]\nfile = \"{}\"\n", file.display()));
    for args in [["deploy", "--pr", "7"].as_slice(), &["sweep"], &["destroy", "--pr", "7"]] {
        let ran = site.run(args).expect(0);
        assert!(ran.err.contains("the metrics cannot be written"), "{}", ran.err);
    }
}

#[test]
fn alert_rules_are_sound_and_fire_when_they_should() {
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/monitoring");
    for args in [["check", "rules", "preview-alerts.yml"], ["test", "rules", "preview-alerts.test.yml"]] {
        match Command::new("promtool").args(args).current_dir(rules).output() {
            Err(error) => {
                eprintln!("NOT TESTED: promtool does not run ({error}); Debian has it in the package prometheus")
            }
            Ok(output) => {
                let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
                assert!(output.status.success(), "{}", said.concat());
            }
        }
    }
}
