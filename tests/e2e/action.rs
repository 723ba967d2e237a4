//! `action.yml`: its steps are run as a runner runs them, and no input can become part of a script.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use preview_tests::{Site, THREE, VmEngine, Where, page, preview_binary};
use serde_json::Value;

use crate::ci::{github, outputs};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the top").to_owned()
}

fn yaml(file: &str) -> Value {
    let text = std::fs::read_to_string(top().join(file)).expect("the file");
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// What a runner knows while it runs a composite action.
struct Runner<'a> {
    site: &'a Site,
    inputs: BTreeMap<String, String>,
    steps: BTreeMap<String, BTreeMap<String, String>>,
    log: String,
}

impl Runner<'_> {
    /// `${{ inputs.x }}`, `${{ github.action_path }}`, `${{ steps.x.outputs.y }}`: no other expression is used.
    fn evaluate(&self, text: &str) -> String {
        let Some((before, rest)) = text.split_once("${{") else { return text.to_owned() };
        let (expression, after) = rest.split_once("}}").expect("the end of an expression");
        let parts: Vec<&str> = expression.trim().split('.').collect();
        let value = match parts.as_slice() {
            ["inputs", name] => self.inputs.get(*name).unwrap_or_else(|| panic!("no input `{name}`")).clone(),
            ["github", "action_path"] => top().to_string_lossy().into_owned(),
            ["steps", step, "outputs", name] => {
                self.steps.get(*step).and_then(|outputs| outputs.get(*name)).cloned().unwrap_or_default()
            }
            other => panic!("an expression that a runner may know, but not this test: {other:?}"),
        };
        format!("{before}{value}{}", self.evaluate(after))
    }

    fn step(&mut self, step: &Value, variables: &BTreeMap<String, String>) -> bool {
        assert_eq!(step["shell"], "bash");
        let output = self.site.dir.path().join(".git/step-output");
        let script = self.site.dir.path().join(".git/step.sh");
        std::fs::write(&output, "").expect("a file");
        std::fs::write(&script, step["run"].as_str().expect("a script")).expect("a file");
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc", "-e", "-o", "pipefail"]).arg(&script).current_dir(self.site.dir.path());
        command.env_clear().envs(variables);
        for (name, value) in step["env"].as_object().into_iter().flatten() {
            command.env(name, self.evaluate(value.as_str().expect("text")));
        }
        command.env("GITHUB_ACTION_PATH", top()).env("GITHUB_OUTPUT", &output);
        let ran = command.output().expect("bash starts");
        self.log += &format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        if let Some(id) = step["id"].as_str() {
            self.steps.insert(id.to_owned(), outputs(&output));
        }
        ran.status.success()
    }
}

/// Runs the action with these inputs; its outputs, or its log if it fails.
fn action(site: &Site, with: &[(&str, &str)]) -> Result<BTreeMap<String, String>, String> {
    let action = yaml("action.yml");
    let mut inputs: BTreeMap<String, String> = action["inputs"]
        .as_object()
        .expect("inputs")
        .iter()
        .map(|(name, input)| (name.clone(), input["default"].as_str().unwrap_or_default().to_owned()))
        .collect();
    for (name, value) in with {
        assert!(inputs.insert((*name).to_owned(), (*value).to_owned()).is_some(), "no input `{name}`");
    }
    // What the harness would say by variables is said by inputs here.
    let variables = site
        .command(&[])
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_str()?.to_owned(), value?.to_str()?.to_owned())))
        .filter(|(name, _)| !name.starts_with("PREVIEW_"))
        .collect();
    let mut runner = Runner { site, inputs, steps: BTreeMap::new(), log: String::new() };
    for step in action["runs"]["steps"].as_array().expect("steps") {
        if !runner.step(step, &variables) {
            return Err(runner.log);
        }
    }
    let outputs = action["outputs"].as_object().expect("outputs");
    Ok(outputs
        .iter()
        .map(|(name, output)| (name.clone(), runner.evaluate(output["value"].as_str().expect("a value"))))
        .collect())
}

#[test]
fn the_steps_run_as_a_runner_runs_them() {
    let Some(mut site) = Site::new(Where::Vm(VmEngine::V28), "") else { return };
    site.write("shop/compose.yml", THREE);
    site.write("shop/www/index.html", "one");
    site.write("shop/settings.toml", "[env]\nCOLOUR = \"red\"\n");
    page(&site, "elsewhere");
    let vm = site.vm().expect("a VM");
    let key = std::fs::read_to_string(vm.identity_file()).expect("a key");
    let (host, hosts, base, app) = (vm.ssh_url(), vm.known_hosts(), site.base().to_owned(), site.app.clone());
    let binary = preview_binary().to_string_lossy().into_owned();
    let settings = site.dir.path().join("shop/settings.toml").to_string_lossy().into_owned();
    site.write(".git/base.toml", "[guardrails]\nmemory = \"48MB\"\n");
    let base_settings = site.dir.path().join(".git/base.toml").to_string_lossy().into_owned();
    let with = [
        ("host", host.as_str()),
        ("known-hosts", &hosts),
        ("identity-key", &key),
        ("base-dir", &base),
        ("app", &app),
        ("bin", &binary),
        ("project-dir", "shop"),
        ("config", &settings),
        ("trusted-config", &base_settings),
    ];
    let event = |action: &str| top().join(format!("tests/fixtures/github/pull_request.{action}.json"));
    github(&mut site, &event("opened"));
    let done = action(&site, &with).expect("it deploys");
    assert_eq!(done["name"], "pr-2");
    assert!(site.get(&done["url"]).trim_end().ends_with("one"));
    let memory = site.docker(&["inspect", "--format", "{{.HostConfig.Memory}}", &site.containers("pr-2")["web"]]);
    assert_eq!(memory, (48_u64 << 20).to_string(), "the base branch's guardrails");
    github(&mut site, &event("closed"));
    let done = action(&site, &with).expect("it destroys");
    assert_eq!((done["name"].as_str(), done["url"].as_str()), ("pr-2", ""));
    assert_eq!(site.remains(), Vec::<String>::new());

    // An input that would be a command is a word.
    let mut evil = with.to_vec();
    evil[0].1 = "ssh://x\"; touch touched; echo \"$(touch touched)";
    let log = action(&site, &evil).expect_err("it is refused");
    assert!(log.contains("PREVIEW_HOST: "), "{log}");
    assert!(!site.dir.path().join("touched").exists());
}

#[test]
fn the_action_is_well_formed() {
    let action = yaml("action.yml");
    for kind in ["inputs", "outputs"] {
        for (name, table) in action[kind].as_object().expect("a table") {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{name} is not kebab-case");
            assert!(table["description"].as_str().is_some_and(|text| !text.is_empty()), "{name} has no description");
        }
    }
    for step in action["runs"]["steps"].as_array().expect("steps") {
        assert_eq!(step["shell"], "bash", "{step}");
        let script = step["run"].as_str().expect("a script");
        assert!(!script.contains("${{"), "an expression in a script: {script}");
    }
    let docs = std::fs::read_to_string(top().join("docs/github-actions.md")).expect("the page");
    for (name, _) in action["inputs"].as_object().into_iter().chain(action["outputs"].as_object()).flatten() {
        assert!(docs.contains(&format!("| `{name}` |")), "docs/github-actions.md does not tell of {name}");
    }
}

#[test]
fn the_gitlab_component_is_well_formed() {
    let text = std::fs::read_to_string(top().join("gitlab-component/templates/preview.yml")).expect("the template");
    let (spec, jobs) = text.split_once("\n---\n").expect("two documents");
    let spec: Value = serde_saphyr::from_str(spec).expect("YAML");
    let readme = std::fs::read_to_string(top().join("gitlab-component/README.md")).expect("the page");
    for (name, input) in spec["spec"]["inputs"].as_object().expect("inputs") {
        assert!(jobs.contains(&format!("$[[ inputs.{name} ]]")), "{name} is not used");
        assert!(input["description"].as_str().is_some_and(|text| !text.is_empty()), "{name} has no description");
        let default = match &input["default"] {
            Value::Null => "required".to_owned(),
            Value::String(text) if text.is_empty() => "none".to_owned(),
            Value::String(text) => format!("`{text}`"),
            _ => "none".to_owned(),
        };
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        assert!(row.is_some_and(|row| row.ends_with(&format!("| {default} |"))), "{name}: {row:?}, {default}");
    }
    let used = jobs.split("$[[ inputs.").skip(1).filter_map(|rest| rest.split_once(" ]]"));
    for (name, _) in used {
        assert!(!spec["spec"]["inputs"][name].is_null(), "no input {name}");
    }
    let jobs: Value = serde_saphyr::from_str(jobs).expect("YAML");
    let (deploy, stop) = (&jobs["preview"], &jobs["preview-stop"]);
    assert_eq!(deploy["environment"]["on_stop"], "preview-stop");
    assert_eq!(deploy["environment"]["name"], stop["environment"]["name"]);
    assert_eq!(stop["environment"]["action"], "stop");
    assert_eq!(stop["variables"]["GIT_STRATEGY"], "empty");
    assert_eq!(stop["resource_group"], "preview/stop/$CI_MERGE_REQUEST_IID");
    assert_eq!((&deploy["extends"], &stop["extends"]), (&".preview-common".into(), &".preview-common".into()));
    let rule = &stop["rules"][0];
    assert_eq!((&rule["if"], &rule["when"]), (&jobs[".preview-common"]["rules"][0]["if"], &"manual".into()));
    assert_eq!(rule["allow_failure"], true);
    let sweep = &jobs["preview-sweep"];
    assert_eq!(sweep["rules"], serde_json::json!([{"if": "$CI_PIPELINE_SOURCE == \"schedule\""}]));
    assert_eq!(sweep["resource_group"], "preview/sweep");
}
