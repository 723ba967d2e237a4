//! Which engine the Docker CLI's environment means: `DOCKER_HOST`, else `DOCKER_CONTEXT`, else the context of its configuration.

use std::path::{Path, PathBuf};

use preview_core::config::Environment;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The Docker CLI's configuration directory.
pub(super) fn directory(environment: &Environment) -> Option<PathBuf> {
    let named = environment.get("DOCKER_CONFIG").map(PathBuf::from);
    named.or_else(|| Some(Path::new(environment.get("HOME")?).join(".docker")))
}

/// The socket of this machine's engine, where the environment names one.
///
/// # Errors
/// What to write instead, where it leads to an engine elsewhere, or to none.
pub(super) fn endpoint(environment: &Environment) -> Result<Option<PathBuf>, String> {
    let read = |path: &str| std::fs::read_to_string(directory(environment)?.join(path)).ok();
    let Some((whose, endpoint)) = named(environment, &read)? else { return Ok(None) };
    match endpoint.strip_prefix("unix://") {
        Some(path) => Ok(Some(PathBuf::from(path))),
        None => Err(format!(
            "{whose} leads to an engine elsewhere: give the machine as ssh://user@host in `[vm] host`, with --host or in PREVIEW_HOST, or unset \
             DOCKER_HOST and set DOCKER_CONTEXT=default for the engine of this machine"
        )),
    }
}

/// Who names an engine, and its address. `read` reads a file of the CLI's configuration.
fn named(environment: &Environment, read: &dyn Fn(&str) -> Option<String>) -> Result<Option<(String, String)>, String> {
    let set = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
    // In this order for the CLI too.
    if let Some(host) = set("DOCKER_HOST") {
        return Ok(Some(("DOCKER_HOST".to_owned(), host)));
    }
    let of_file = || {
        let config: Value = serde_json::from_str(&read("config.json")?).ok()?;
        Some(config.get("currentContext")?.as_str()?.to_owned())
    };
    let (whose, context) = match set("DOCKER_CONTEXT") {
        Some(context) => ("DOCKER_CONTEXT", context),
        None => ("the current context of the Docker CLI", of_file().unwrap_or_default()),
    };
    if context.is_empty() || context == "default" {
        return Ok(None);
    }
    let shown = context.replace(char::is_control, "?");
    let id: String = Sha256::digest(&context).iter().map(|byte| format!("{byte:02x}")).collect();
    let endpoint = || {
        let meta: Value = serde_json::from_str(&read(&format!("contexts/meta/{id}/meta.json"))?).ok()?;
        Some(meta.pointer("/Endpoints/docker/Host")?.as_str()?.to_owned())
    };
    match endpoint() {
        // A context without a host of its own means the default one.
        Some(host) if host.is_empty() => Ok(None),
        Some(host) => Ok(Some((format!("{whose} (`{shown}`, {host})"), host))),
        None => Err(format!(
            "{whose} is `{shown}`, and the Docker CLI has no such context with an engine (`docker context ls`): set DOCKER_CONTEXT=default for the \
             engine of this machine"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: &str = "contexts/meta/d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa/meta.json";

    fn found(variables: &[(&str, &str)], host: &str, current: &str) -> Result<Option<String>, String> {
        let environment: Environment =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let read = |path: &str| match path {
            "config.json" => Some(format!(r#"{{"currentContext": "{current}"}}"#)),
            OTHER => Some(format!(r#"{{"Name": "other", "Endpoints": {{"docker": {{"Host": "{host}"}}}}}}"#)),
            _ => None,
        };
        Ok(named(&environment, &read)?.map(|(_, host)| host))
    }

    #[test]
    fn contexts_are_obeyed_in_the_order_of_the_cli() {
        let unix = "unix:///run/other.sock";
        assert_eq!(found(&[], unix, ""), Ok(None));
        assert_eq!(found(&[("DOCKER_CONTEXT", "default")], unix, "other"), Ok(None));
        assert_eq!(found(&[("DOCKER_CONTEXT", "other")], unix, ""), Ok(Some(unix.to_owned())));
        assert_eq!(found(&[("DOCKER_CONTEXT", "")], unix, "other"), Ok(Some(unix.to_owned())));
        let both = [("DOCKER_CONTEXT", "other"), ("DOCKER_HOST", "unix:///run/one.sock")];
        assert_eq!(found(&both, unix, ""), Ok(Some("unix:///run/one.sock".to_owned())));
    }

    #[test]
    fn a_context_that_leads_elsewhere_or_nowhere_is_told() {
        let missing = found(&[("DOCKER_CONTEXT", "gone")], "", "").expect_err("there is none");
        assert!(missing.contains("`gone`") && missing.contains("DOCKER_CONTEXT=default"), "{missing}");
        let directory = tempfile::tempdir().expect("a directory");
        let meta = directory.path().join(OTHER);
        std::fs::create_dir_all(meta.parent().expect("a parent")).expect("directories");
        std::fs::write(&meta, r#"{"Endpoints": {"docker": {"Host": "ssh://me@vm"}}}"#).expect("written");
        let environment: Environment = [
            ("DOCKER_CONFIG".to_owned(), directory.path().to_string_lossy().into_owned()),
            ("DOCKER_CONTEXT".to_owned(), "other".to_owned()),
        ]
        .into_iter()
        .collect();
        let elsewhere = endpoint(&environment).expect_err("it is elsewhere");
        assert!(elsewhere.contains("ssh://me@vm") && elsewhere.contains("[vm] host"), "{elsewhere}");
    }
}
