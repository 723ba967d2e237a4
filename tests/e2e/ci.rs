//! `preview ci` as a job of GitHub Actions and of GitLab CI runs it, against a VM.

use std::path::PathBuf;

use preview_tests::{Ran, Site, VmEngine, Where};

const COMPOSE: &str = r#"
services:
  web:
    build: .
    command: ["sh", "-c", "echo ::error::from the container; exec httpd -f -p 8080 -h /w"]
    ports: ["8080"]
    environment: {TOKEN: "${TOKEN}"}
    stop_grace_period: 0s
"#;

/// A build that gives commands to the runner, in both of its languages.
const DOCKERFILE: &str = "FROM busybox:1.36\nARG MARK\nRUN echo '::error::from the build'; echo '::add-mask::a'; echo '##[error]from the build'\nRUN mkdir /w && echo one > /w/index.html\n";

fn fixture(action: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/github")).join(format!("pull_request.{action}.json"))
}

/// The variables of a job that the event of this action starts; the job's files are fresh.
pub(crate) fn github(site: &mut Site, event: &std::path::Path) -> (PathBuf, PathBuf) {
    let (output, summary) = (site.dir.path().join(".git/output"), site.dir.path().join(".git/summary"));
    for file in [&output, &summary] {
        std::fs::write(file, "").expect("a file");
    }
    for (name, value) in [
        ("GITHUB_ACTIONS", "true"),
        ("GITHUB_EVENT_NAME", "pull_request"),
        ("GITHUB_EVENT_PATH", event.to_str().expect("a path")),
        ("GITHUB_REPOSITORY", "acme/shop"),
        ("GITHUB_ACTOR", "octocat"),
        ("GITHUB_RUN_ID", "1234"),
        ("GITHUB_SHA", "1111111111111111111111111111111111111111"),
        ("GITHUB_OUTPUT", output.to_str().expect("a path")),
        ("GITHUB_STEP_SUMMARY", summary.to_str().expect("a path")),
        ("TOKEN", "s3cr3t-t0ken"),
    ] {
        site.set(name, value);
    }
    (output, summary)
}

pub(crate) fn outputs(file: &std::path::Path) -> std::collections::BTreeMap<String, String> {
    let text = std::fs::read_to_string(file).expect("the outputs");
    text.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect()
}

/// Reads a log as GitHub's runner does: groups are balanced, and what others wrote stands where commands are off.
#[track_caller]
fn as_the_runner_reads_it(log: &str) {
    let (mut group, mut stopped): (bool, Option<String>) = (false, None);
    for line in log.lines() {
        if let Some(token) = &stopped {
            if line == format!("::{token}::") {
                stopped = None;
            }
            continue;
        }
        if let Some(token) = line.strip_prefix("::stop-commands::") {
            stopped = Some(token.to_owned());
        } else if line.starts_with("::group::") {
            assert!(!group, "a group in a group:\n{log}");
            group = true;
        } else if line == "::endgroup::" {
            assert!(group, "an end without a group:\n{log}");
            group = false;
        } else {
            let foreign = ["from the build", "from the container", "from the failure"];
            assert!(!foreign.iter().any(|text| line.contains(text)), "a foreign line can give commands: {line}\n{log}");
            let known = ["::add-mask::", "::error title=preview::", "::warning title=preview::"];
            let command = line.trim_start().starts_with("::") || line.contains("##[");
            assert!(!command || known.iter().any(|known| line.starts_with(known)), "{line}\n{log}");
        }
    }
    assert!(!group && stopped.is_none(), "left open:\n{log}");
}

fn ci(site: &Site, code: i32) -> Ran {
    let ran = site.run(&["ci"]).expect(code);
    assert!(!ran.out.contains("s3cr3t"), "{}", ran.out);
    ran
}

#[test]
fn a_pull_request_from_its_opening_to_its_end() {
    let Some(mut site) = Site::new(Where::Vm(VmEngine::V28), COMPOSE) else { return };
    site.write("Dockerfile", DOCKERFILE);
    site.write("preview.toml", "[[secrets]]\nkind = \"env\"\nnames = [\"TOKEN\"]\n");

    // Opened: deployed.
    let (output, summary) = github(&mut site, &fixture("opened"));
    let opened = ci(&site, 0);
    as_the_runner_reads_it(&opened.err);
    assert!(opened.err.contains("::error::from the build"), "the build's output is shown\n{}", opened.err);
    let mask = opened.err.find("::add-mask::s3cr3t-t0ken").expect("a mask");
    assert!(opened.err[..mask].lines().all(|line| line.starts_with("::")), "masks come first\n{}", opened.err);
    let found = outputs(&output);
    assert_eq!((found.len(), found["name"].as_str()), (2, "pr-2"));
    assert!(site.get(&found["url"]).trim_end().ends_with("one"));
    let text = std::fs::read_to_string(&summary).expect("a summary");
    assert!(text.starts_with("##") && text.contains(&found["url"]) && text.contains("**web**"), "{text}");
    let status = site.run(&["status", "--pr", "2", "--format", "json"]).expect(0).json();
    assert_eq!(status["commit"], "ec26c3e57ca3a959ca5aad62de7213c562f8c821", "the head, not the merge commit");
    assert_eq!(status["owner"], "octocat");
    let before = site.containers("pr-2");

    // Synchronize: updated, at the same address.
    site.write("Dockerfile", &DOCKERFILE.replace("echo one", "echo two"));
    let (output, _) = github(&mut site, &fixture("synchronize"));
    as_the_runner_reads_it(&ci(&site, 0).err);
    assert_eq!(outputs(&output)["url"], found["url"]);
    assert!(site.get(&found["url"]).trim_end().ends_with("two"));
    assert_ne!(site.containers("pr-2"), before);

    // One that fails: back to the version before, with the log in the summary.
    site.write("Dockerfile", &DOCKERFILE.replace("mkdir /w", "echo '::error::from the failure' && false"));
    let (output, summary) = github(&mut site, &fixture("synchronize"));
    let failed = ci(&site, 4);
    as_the_runner_reads_it(&failed.err);
    assert!(failed.err.contains("::error title=preview::the deploy of pr-2 failed while building"), "{}", failed.err);
    assert_eq!((outputs(&output)["url"].as_str(), outputs(&output)["failure"].as_str()), ("", "build_failed"));
    let text = std::fs::read_to_string(&summary).expect("a summary");
    assert!(text.starts_with("##") && text.contains("from the failure"), "{text}");
    assert!(site.get(&found["url"]).trim_end().ends_with("two"));

    // Closed: destroyed; no checkout is needed for that.
    std::fs::remove_file(site.dir.path().join("compose.yml")).expect("it is there");
    let (output, summary) = github(&mut site, &fixture("closed"));
    as_the_runner_reads_it(&ci(&site, 0).err);
    assert_eq!((outputs(&output)["name"].as_str(), outputs(&output)["url"].as_str()), ("pr-2", ""));
    assert!(std::fs::read_to_string(&summary).expect("a summary").starts_with("##"));
    assert_eq!(site.remains(), Vec::<String>::new());
    ci(&site, 0);
}

#[test]
fn forks_and_other_events() {
    let Some(mut site) = Site::new(Where::Vm(VmEngine::V20), COMPOSE) else { return };
    let event = std::fs::read_to_string(fixture("opened")).expect("an event");
    let mut event: serde_json::Value = serde_json::from_str(&event).expect("JSON");
    event["pull_request"]["head"]["repo"]["full_name"] = "mallory/shop".into();
    event["pull_request"]["head"]["repo"]["fork"] = true.into();
    site.write(".git/event.json", &event.to_string());
    let path = site.dir.path().join(".git/event.json");
    let (output, summary) = github(&mut site, &path);
    let ran = ci(&site, 3);
    assert_eq!(outputs(&output)["failure"], "fork");
    assert_eq!(std::fs::read_to_string(summary).expect("a summary"), "");
    as_the_runner_reads_it(&ran.err);
    assert!(ran.err.contains("::error title=preview::pull request 2 comes from the fork mallory/shop"), "{}", ran.err);
    site.set("GITHUB_EVENT_NAME", "pull_request_target");
    ci(&site, 3);
    // A fork that was deleted.
    event["pull_request"]["head"]["repo"] = serde_json::Value::Null;
    site.write(".git/event.json", &event.to_string());
    ci(&site, 3);
    event["action"] = "edited".into();
    site.write(".git/event.json", &event.to_string());
    assert!(ci(&site, 0).err.contains("nothing to do"), "other actions ask for nothing");
    site.set("GITHUB_EVENT_NAME", "push");
    assert!(ci(&site, 2).err.contains("`push` is not handled"));
    site.set("GITHUB_EVENT_NAME", "pull_request");
    site.write(".git/event.json", "{");
    assert!(ci(&site, 2).err.contains("not JSON"));
    assert_eq!(site.remains(), Vec::<String>::new());
}

#[test]
fn a_merge_request_by_variables_alone() {
    let Some(mut site) = Site::new(Where::Vm(VmEngine::V20), COMPOSE) else { return };
    site.write("Dockerfile", DOCKERFILE);
    let directory = site.dir.path().to_str().expect("a path").to_owned();
    for (name, value) in [
        ("GITLAB_CI", "true"),
        ("CI_PIPELINE_SOURCE", "merge_request_event"),
        ("CI_MERGE_REQUEST_IID", "12"),
        ("CI_MERGE_REQUEST_PROJECT_ID", "42"),
        ("CI_MERGE_REQUEST_SOURCE_PROJECT_ID", "42"),
        ("CI_MERGE_REQUEST_SOURCE_BRANCH_NAME", "hello"),
        ("CI_PROJECT_ID", "42"),
        ("CI_PROJECT_PATH", "acme/shop"),
        ("CI_PROJECT_DIR", &directory),
        ("CI_COMMIT_SHA", "ec26c3e57ca3a959ca5aad62de7213c562f8c821"),
        ("CI_JOB_URL", "https://gitlab.example.com/acme/shop/-/jobs/7"),
        ("CI_ENVIRONMENT_ACTION", "start"),
        ("GITLAB_USER_LOGIN", "octocat"),
    ] {
        site.set(name, value);
    }
    let ran = ci(&site, 0);
    assert_eq!(ran.err.matches("section_start:").count(), ran.err.matches("section_end:").count(), "{}", ran.err);
    let dotenv = std::fs::read_to_string(site.dir.path().join("preview.env")).expect("a dotenv report");
    let lines: Vec<&str> = dotenv.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, "PREVIEW_NAME=pr-12"));
    let url = lines[1].strip_prefix("PREVIEW_URL=").expect("an address").to_owned();
    assert!(site.get(&url).trim_end().ends_with("one"));
    let status = site.run(&["status", "--pr", "12", "--format", "json"]).expect(0).json();
    assert_eq!((status["subject"].as_str(), status["owner"].as_str()), (Some("pull request 12"), Some("octocat")));
    // Later jobs may hand its address on; that is no setting.
    site.set("PREVIEW_URL", &url);
    assert!(!ci(&site, 0).err.contains("PREVIEW_URL"), "it is known");

    // A fork.
    site.set("CI_MERGE_REQUEST_SOURCE_PROJECT_ID", "43");
    assert!(ci(&site, 3).err.contains("fork"));
    site.set("CI_MERGE_REQUEST_SOURCE_PROJECT_ID", "42");

    // The stop job: no checkout.
    let empty = site.dir.path().join("empty");
    std::fs::create_dir(&empty).expect("a directory");
    site.set("CI_PROJECT_DIR", empty.to_str().expect("a path"));
    site.set("CI_ENVIRONMENT_ACTION", "stop");
    for existed in [true, false] {
        let stopped: Ran = site.command(&["ci"]).current_dir(&empty).output().expect("it starts").into();
        let stopped = stopped.expect(0);
        assert_eq!(stopped.err.contains("nothing to remove"), !existed, "{}", stopped.err);
        assert_eq!(site.remains(), Vec::<String>::new());
    }
}
