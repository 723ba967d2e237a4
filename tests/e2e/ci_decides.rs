//! What a job of CI does with what a pull request brings: its own file decides nothing over the host, its breaking keeps no preview, and
//! the machine of the job is no host unless asked for by name.

use std::path::PathBuf;

use preview_tests::{Site, Where};
use serde_json::Value;

use crate::bad_input::{ONE, refused};
use crate::ci::github;

fn fixture(action: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/github")).join(format!("pull_request.{action}.json"))
}

/// The event of this action, where it is `opened` otherwise.
fn event(site: &mut Site, action: &str) {
    let text = std::fs::read_to_string(fixture("opened")).expect("an event");
    let mut event: Value = serde_json::from_str(&text).expect("JSON");
    event["action"] = action.into();
    site.write(".git/event.json", &event.to_string());
    let path = site.dir.path().join(".git/event.json");
    github(site, &path);
}

#[test]
fn a_pull_requests_own_file_does_not_decide_over_the_host() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    github(&mut site, &fixture("opened"));
    for (own, name) in [
        ("app = \"other\"\n", "`app`"),
        ("[vm]\nbase_dir = \"/srv/others\"\n", "[vm]"),
        ("[limits]\non_full = \"replace-oldest\"\nmax_previews = 1\n", "[limits]"),
        ("[proxy]\nkind = \"traefik\"\nnetwork = \"other_pr-7_default\"\n", "[proxy]"),
        ("ttl = \"never\"\n[guardrails]\nmemory = \"64GB\"\n", "[guardrails], `ttl`"),
    ] {
        site.write("preview.toml", own);
        for args in [&["ci"][..], &["deploy", "--pr", "2"], &["plan", "--pr", "2"], &["sweep"], &["list"]] {
            refused(&site, args, 2, &["preview.toml:", "cannot decide over the host", name, "--trusted-config"]);
        }
    }
    // Any other CI system is one, too.
    for name in ["GITHUB_ACTIONS", "GITHUB_EVENT_NAME", "GITHUB_EVENT_PATH"] {
        site.set(name, "");
    }
    site.set("CI", "true");
    refused(&site, &["deploy", "--pr", "2"], 2, &["cannot decide over the host", "[guardrails], `ttl`"]);
    // A person's terminal is none.
    site.set("CI", "");
    site.run(&["plan", "--pr", "2"]).expect(0);
    // On the default branch the file is the base branch's.
    site.write(".git/event.json", "{\"repository\": {\"default_branch\": \"main\"}}");
    let path = site.dir.path().join(".git/event.json");
    github(&mut site, &path);
    site.set("GITHUB_EVENT_NAME", "workflow_dispatch");
    site.set("GITHUB_REF", "refs/heads/main");
    site.run(&["plan", "--pr", "2"]).expect(0);
    site.set("GITHUB_REF", "refs/heads/feature");
    site.run(&["plan", "--pr", "2"]).expect(2);
}

#[test]
fn the_machine_of_the_job_is_used_only_by_name() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    github(&mut site, &fixture("opened"));
    site.write(".git/base.toml", "[guardrails]\nmemory = \"32MB\"\n");
    let base = site.dir.path().join(".git/base.toml").to_string_lossy().into_owned();
    site.set("PREVIEW_TRUSTED_CONFIG", &base);
    site.set("PREVIEW_HOST", "");
    for args in [&["ci"][..], &["deploy", "--pr", "2"], &["destroy", "--pr", "2"], &["list"], &["sweep"]] {
        refused(&site, args, 2, &["no machine is given", "[vm] host", "PREVIEW_HOST", "--host local"]);
    }
    site.run(&["plan", "--pr", "2", "--host", "local"]).expect(0);
    site.set("PREVIEW_HOST", "local");
    site.run(&["ci"]).expect(0);
    site.run(&["destroy", "--pr", "2"]).expect(0);
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn whatever_a_pull_request_breaks_its_close_removes_its_preview() {
    let Some(mut site) = Site::new(Where::Local, ONE) else { return };
    let name = site.app.clone();
    for (index, own) in
        ["[limits\n", "app = \"other\"\n[vm]\nbase_dir = \"/srv/others\"\n", "name = \"{nothing}\"\n", "memry = 1\n"]
            .into_iter()
            .enumerate()
    {
        let trusted = format!("app = \"{name}\"\n");
        site.write(".git/base.toml", &trusted);
        let base = site.dir.path().join(".git/base.toml").to_string_lossy().into_owned();
        site.set("PREVIEW_TRUSTED_CONFIG", if index % 2 == 0 { &base } else { "" });
        site.set("PREVIEW_APP", if index % 2 == 0 { "" } else { &name });
        site.write("preview.toml", "");
        // Ready for review: drafts were left out.
        event(&mut site, "ready_for_review");
        site.run(&["ci"]).expect(0);
        assert_eq!(site.containers("pr-2").len(), 1);
        site.write("preview.toml", own);
        event(&mut site, "closed");
        let ran = site.run(&["ci"]).expect(0);
        assert_eq!(site.remains(), Vec::<String>::new(), "{own}: {}", ran.err);
        // A close is no later event than another: for the next round it was not there.
        site.shell(&format!("rm -rf {}/.tombstones", site.base()));
    }
    // Even without its directory.
    site.set("PREVIEW_PROJECT_DIR", "gone");
    site.run(&["ci"]).expect(0);
}

#[test]
fn more_than_a_preview_may_have_is_refused_before_anything_is_sent() {
    let Some(mut site) = Site::new(Where::Local, "") else { return };
    let plan = ["plan", "--pr", "7"];
    let networks: String = (0..40).map(|number| format!("  n{number}: {{}}\n")).collect();
    let names: Vec<String> = (0..40).map(|number| format!("n{number}")).collect();
    for (compose, words) in [
        (
            format!("{ONE}    deploy: {{replicas: 100000}}\n"),
            &["services.app.deploy.replicas", "100000", "max_replicas"],
        ),
        (format!("{ONE}    scale: 41\n"), &["services.app.", "41 containers in all", "max_containers"]),
        (
            format!("{ONE}    networks: [{}]\nnetworks:\n{networks}", names.join(", ")),
            &["networks: 40", "have 10", "max_networks"],
        ),
        (format!("{ONE}    ports: [\"1000-1060\"]\n"), &["61 published ports", "have 50", "max_ports"]),
    ] {
        site.write("compose.yml", &compose);
        refused(&site, &plan, 3, words);
    }
    // The base branch may allow more.
    site.write("compose.yml", &format!("{ONE}    scale: 11\n"));
    refused(&site, &plan, 3, &["max_replicas"]);
    site.write(".git/base.toml", "[guardrails]\nmax_replicas = 11\n");
    let base = site.dir.path().join(".git/base.toml").to_string_lossy().into_owned();
    site.set("PREVIEW_TRUSTED_CONFIG", &base);
    site.run(&plan).expect(0);
}

#[test]
fn two_projects_of_one_repository_do_not_replace_each_other() {
    let Some(mut site) = Site::new(Where::Local, "") else { return };
    site.write("front/compose.yml", ONE);
    site.write("back/compose.yml", &ONE.replace("  app:", "  api:"));
    github(&mut site, &fixture("opened"));
    site.set("PREVIEW_PROJECT_DIR", "front");
    site.run(&["ci"]).expect(0);
    let before = site.containers("pr-2");
    site.set("PREVIEW_PROJECT_DIR", "back");
    for args in [&["ci"][..], &["plan", "--pr", "2"]] {
        let ran = site.run(args).expect(3);
        let words = ["the name pr-2 is taken by the project in `front`", "this one is in `back`", "`app`"];
        assert!(words.iter().all(|word| ran.err.contains(word)), "{}", ran.err);
        assert_eq!(site.containers("pr-2"), before);
    }
    // With names of their own they are apart.
    let back = format!("{}-back", site.app);
    site.run(&["ci", "--app", &back]).expect(0);
    assert_eq!(site.containers("pr-2"), before);
    site.run(&["destroy", "--pr", "2", "--app", &back]).expect(0);
    site.set("PREVIEW_PROJECT_DIR", "front");
    site.run(&["ci"]).expect(0);
    site.run(&["destroy", "--pr", "2"]).expect(0);
    site.shell(&format!("rm -r {}/.tombstones", site.base()));
    assert_eq!(site.remains(), Vec::<String>::new());
}

/// A service that prints commands of CI systems and sequences for terminals, and fails or stays.
fn printing(end: &str) -> String {
    let words = "printf 'a\\r::error::said\\n  ::add-mask::said\\n##[error]said\\n##vso[x]said\\n\\033[0Ksection_start:1:said\\r\\033[0Khidden\\n'";
    let web =
        "services:\n  web:\n    image: busybox:1.36\n    init: true\n    stop_grace_period: 0s\n    restart: \"no\"\n";
    format!("{web}    command: [sh, -c, {}]\n", Value::from(format!("{words}; {end}")))
}

/// No line that was printed is a command, and none acts on a terminal. What stands between `::stop-commands::` and its end is none.
#[track_caller]
fn harmless(text: &str, github: bool) {
    let mut stopped: Option<String> = None;
    for line in text.split(['\n', '\r']) {
        match &stopped {
            Some(token) if line == format!("::{token}::") => stopped = None,
            Some(_) => {}
            None => {
                stopped = line.strip_prefix("::stop-commands::").filter(|_| github).map(str::to_owned);
                let own = stopped.is_some() || line.starts_with("::add-mask::") || line.starts_with("::group::");
                let own = own || line.starts_with("::endgroup::") || line.starts_with("::error title=preview::");
                let command = line.trim_start().starts_with("::") || line.contains("##[") || line.contains("##vso[");
                assert!(!command || own, "{line:?} in\n{text}");
            }
        }
        let own_section =
            !github && (line.starts_with("\u{1b}[0K") || line.contains("]\u{1b}[0K") || line.contains("preview["));
        assert!(!line.contains('\u{1b}') || own_section, "{line:?} in\n{text}");
    }
    assert!(!text.contains("section_start:1:said\r"), "{text}");
}

#[test]
fn what_a_preview_prints_commands_no_ci_system() {
    let Some(mut site) = Site::new(Where::Local, &printing("exec sleep 100000")) else { return };
    for (name, github) in [("GITHUB_ACTIONS", true), ("GITLAB_CI", false)] {
        site.set("GITHUB_ACTIONS", "");
        site.set("GITLAB_CI", "");
        site.set(name, "true");
        site.set("CI_PROJECT_DIR", &site.dir.path().join(".git").to_string_lossy());
        site.write("compose.yml", &printing("exec sleep 100000"));
        site.run(&["deploy", "--pr", "7"]).expect(0);
        let script = "printf '::error::said\\n##[error]said\\n\\033[0Ksection_end:1:x\\r\\033[0K\\n'; printf ' ::error::said' >&2";
        for args in [
            &["logs", "--pr", "7"][..],
            &["exec", "--pr", "7", "web", "--", "sh", "-c", script],
            &["status", "--pr", "7"],
            &["status", "--pr", "7", "--format", "json"],
            &["plan", "--pr", "7", "-vv"],
        ] {
            let ran = site.run(args).expect(0);
            harmless(&ran.out, false);
            harmless(&ran.err, github);
            assert!(!matches!(args[0], "logs" | "exec") || ran.out.contains("said"), "{args:?}: {}", ran.out);
        }
        // Into a file, and where that is asked for, bytes come as they are.
        let raw = site.run(&["exec", "--pr", "7", "--raw", "web", "--", "printf", "::x"]).expect(0);
        assert_eq!(raw.out, "::x");
        let file = site.dir.path().join(".git/out");
        let mut command = site.command(&["exec", "--pr", "7", "web", "--", "printf", "::x"]);
        command.stdout(std::fs::File::create(&file).expect("a file"));
        assert!(command.status().expect("it starts").success());
        assert_eq!(std::fs::read_to_string(&file).expect("a file"), "::x");

        // The report of a failure, and its document.
        site.write("compose.yml", &printing("sleep 1; exit 3").replace("restart: \"no\"", "restart: always"));
        for format in ["text", "json"] {
            let failed = site.run(&["deploy", "--pr", "7", "-vv", "--format", format]).expect(4);
            harmless(&failed.out, false);
            harmless(&failed.err, github);
            assert!(failed.err.contains("said"), "{}", failed.err);
        }
        site.run(&["destroy", "--pr", "7"]).expect(0);
    }
    assert_eq!(site.remains(), Vec::<String>::new());
}
