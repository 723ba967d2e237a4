//! The stacks that are deployed, and the fifty previews that are listed.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use xtask::lab::{LABEL, Vm};

use super::peers::{APP, BASE};

/// The application of the fabricated previews.
pub(crate) const LISTED_APP: &str = "fifty";
pub(crate) const LISTED: usize = 50;
/// A base directory with few previews, and how many.
pub(crate) const FEW_BASE: &str = "/opt/previews-few";
pub(crate) const FEW: usize = 5;

/// A Compose file: the first half of the services, and the other half, which waits until all of the first are healthy.
/// `version` is in the environment of the last service only.
pub(crate) fn compose(services: usize, version: usize, mount: bool) -> String {
    let first = services.div_ceil(2);
    let mut text = "services:\n".to_owned();
    for number in 1..=services {
        let version = if number == services { version } else { 0 };
        let _ = write!(
            text,
            "  s{number}:\n    image: busybox:1.36\n    \
             command: [sh, -c, \"trap 'exit 0' TERM; sleep 1000000 & wait\"]\n    \
             environment: {{VERSION: \"{version}\"}}\n    \
             healthcheck: {{test: [CMD, \"true\"], interval: 1s, timeout: 5s, retries: 5}}\n"
        );
        if number > first {
            text.push_str("    depends_on:\n");
            for before in 1..=first {
                let _ = writeln!(text, "      s{before}: {{condition: service_healthy}}");
            }
        }
        if mount && number == 1 {
            text.push_str("    volumes: [\"./data:/data:ro\"]\n");
        }
    }
    text
}

/// Writes the Compose file of ours.
pub(crate) fn write(project: &Path, text: &str) -> Result<()> {
    // The boundary of a repository, so that nothing above counts as part of it.
    fs::create_dir_all(project.join(".git"))?;
    fs::write(project.join("compose.yml"), text)?;
    Ok(())
}

/// What was deployed last, as `preview` rendered it: the same limits for the peers, but no labels of ours.
pub(crate) fn rendered(vm: &Vm) -> Result<Value> {
    let text = vm.text(&["sh", "-c", &format!("cat {BASE}/{APP}/pr-7/stack-*.json")])?;
    let text = text.replace(&format!("{APP}_pr-7"), "peer");
    let mut model = serde_json::from_str(&text).context("the rendered stack is no JSON")?;
    without_labels(&mut model);
    Ok(model)
}

fn without_labels(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !key.starts_with("preview."));
            map.values_mut().for_each(without_labels);
        }
        Value::Array(items) => items.iter_mut().for_each(without_labels),
        _ => {}
    }
}

/// The peers' file, with this version in the last service.
pub(crate) fn write_peer(project: &Path, model: &Value, services: usize, version: usize) -> Result<()> {
    let mut model = model.clone();
    let place = format!("/services/s{services}/environment/VERSION");
    *model.pointer_mut(&place).with_context(|| format!("no {place}"))? = Value::String(version.to_string());
    fs::write(project.join("peer.json"), model.to_string())?;
    Ok(())
}

/// So many previews: the state file of a real one under as many names, and for each a container that was created and not
/// started.
pub(crate) fn fabricate(vm: &Vm, state: &str, base: &str, count: usize) -> Result<()> {
    let mut script = format!("set -e\nmkdir -p {base}\ncd {base}\n");
    for number in 1..=count {
        let (name, project) = (format!("pr-{number}"), format!("{LISTED_APP}_pr-{number}"));
        let mut state: Value = serde_json::from_str(state).context("the state file is no JSON")?;
        for (key, value) in [("app", LISTED_APP), ("name", &name), ("project", &project)] {
            state[key] = Value::String(value.to_owned());
        }
        let _ = write!(
            script,
            "mkdir -p {LISTED_APP}/{name}\ncat >{LISTED_APP}/{name}/state.json <<'END'\n{state:#}\nEND\n\
             docker create --label preview.managed=true --label preview.app={LISTED_APP} --label preview.name={name} \
             --label preview.base={base} \
             --label com.docker.compose.project={project} --label com.docker.compose.service=s1 \
             --label {LABEL}=1 busybox:1.36 true >/dev/null\n"
        );
    }
    let _ = writeln!(script, "chown -R deploy {base}");
    let made = vm.exec(&["sh", "-c", &script])?;
    if !made.status.success() {
        bail!("cannot make {count} previews: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_half_waits_for_the_first_and_the_last_has_the_version() {
        let text = compose(4, 3, false);
        assert_eq!(text.matches("s1: {condition: service_healthy}").count(), 2);
        assert_eq!(text.matches("VERSION: \"3\"").count(), 1);
        assert_eq!(compose(1, 0, true).matches("depends_on").count(), 0);
    }

    #[test]
    fn our_labels_go_and_others_stay() {
        let mut model = serde_json::json!({"services": {"a": {"labels": {"preview.app": "x", "mine": "y"}}}});
        without_labels(&mut model);
        assert_eq!(model, serde_json::json!({"services": {"a": {"labels": {"mine": "y"}}}}));
    }
}
