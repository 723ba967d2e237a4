//! The history of a host: one line for each run that ended, whoever ran it, of which only the last are kept.

use preview_tests::{Site, VmEngine, Where};

use crate::stacks::SMALL;
use serde_json::Value;

/// What the host remembers, the last first.
#[track_caller]
fn history(site: &Site, number: &str) -> Vec<Value> {
    let ran = site.run(&["list", "--history", "-n", number, "--format", "json"]).expect(0);
    ran.json()["history"].as_array().expect("a list").clone()
}

fn everywhere(place: Where) {
    let Some(mut site) = Site::new(place, SMALL) else { return };
    assert_eq!(site.run(&["list", "--history"]).expect(0).out, "no runs\n");
    site.set("GITHUB_RUN_ID", "1234");
    site.run(&["deploy", "--pr", "7", "--owner", "octocat"]).expect(0);
    site.run(&["deploy", "--pr", "7", "--owner", "octocat"]).expect(0);
    site.write("compose.yml", &SMALL.replace("[\"sleep\", \"100000\"]", "[sh, -c, exit 3]"));
    site.run(&["deploy", "--pr", "7", "--owner", "octocat"]).expect(4);
    site.write("compose.yml", SMALL);
    site.run(&["sweep", "--dry-run"]).expect(0);
    site.run(&["sweep"]).expect(0);
    site.run(&["destroy", "--pr", "7"]).expect(0);
    site.run(&["destroy", "--pr", "7"]).expect(0);

    let found = history(&site, "9");
    let told: Vec<String> = found
        .iter()
        .map(|entry| {
            let word = |key: &str| entry[key].as_str().unwrap_or("-").to_owned();
            ["command", "outcome", "code", "phase", "preview", "owner", "run"].map(word).join(" ")
        })
        .collect();
    assert_eq!(
        told,
        [
            "destroy absent - - pr-7 - 1234-1",
            "destroy destroyed - - pr-7 octocat 1234-1",
            "sweep swept - - - - 1234-1",
            "deploy failed exited verifying pr-7 octocat 1234-1",
            "deploy unchanged - - pr-7 octocat 1234-1",
            "deploy ready - - pr-7 octocat 1234-1",
        ]
    );
    assert!(found.iter().all(|entry| entry["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0)), "{found:?}");
    assert_eq!((&found[5]["weight"], &found[5]["subject"]), (&1.0.into(), &"pull request 7".into()));
    assert_eq!(history(&site, "2").len(), 2);
    let text = site.run(&["list", "--history"]).expect(0).out;
    assert!(text.lines().count() == 7 && text.contains("exited while verifying"), "{text}");
    let file = format!("{}/.history.jsonl", site.base());
    assert_eq!(site.shell(&format!("stat -c %a {file}; wc -l <{file}")), "600\n6");
    assert!(site.remains().is_empty(), "{:?}", site.remains());

    // Many at once, while it is cut: none is lost, and the oldest go.
    site.shell(&format!(
        "o=$(stat -c %u:%g {file}); l=$(head -n 1 {file}); i=0; while [ $i -lt 3500 ]; do echo \"$l\"; i=$((i+1)); done >{file}.new; \
         mv {file}.new {file}; chown $o {file}; chmod 600 {file}"
    ));
    let runs: Vec<_> = (0..4).map(|pr| site.spawn(&["destroy", "--pr", &(20 + pr).to_string()])).collect();
    for run in runs {
        assert!(run.wait_with_output().expect("ends").status.success());
    }
    assert_eq!(history(&site, "4").iter().filter(|entry| entry["command"] == "destroy").count(), 4);
    assert_eq!(site.shell(&format!("stat -c %a {file}")), "600");
    let lines: u32 = site.shell(&format!("wc -l <{file}")).parse().expect("a number");
    assert!((2000..2004).contains(&lines), "{lines}");
}

#[test]
fn runs_are_remembered_on_this_machine() {
    everywhere(Where::Local);
}

#[test]
fn runs_are_remembered_on_a_vm() {
    everywhere(Where::Vm(VmEngine::V28));
}

#[test]
fn what_cannot_be_remembered_fails_nothing() {
    let Some(site) = Site::new(Where::Local, SMALL) else { return };
    site.shell(&format!("mkdir -p {}/.history.jsonl/x", site.base()));
    let ran = site.run(&["deploy", "--pr", "7"]).expect(0);
    assert!(ran.err.contains("history of the host was not written"), "{}", ran.err);
    let ran = site.run(&["destroy", "--pr", "7"]).expect(0);
    assert!(ran.err.contains("Is a directory"), "{}", ran.err);
}
