//! What a build may read and do: by a list of what is known, since builds run with the rights of the machine that deploys.

use std::path::Path;

use serde_json::{Map, Value};

use super::super::normal;
use super::{Allowing, Court, OUTSIDE, allowing, is_empty, values};

/// Keys of a build that harm nobody else, or that are looked at here.
const KNOWN: &[&str] = &[
    "additional_contexts",
    "args",
    "cache_from",
    "cache_to",
    "context",
    "dockerfile",
    "dockerfile_inline",
    "entitlements",
    "extra_hosts",
    "isolation",
    "labels",
    "network",
    "no_cache",
    "no_cache_filter",
    "platforms",
    "privileged",
    "provenance",
    "pull",
    "sbom",
    "secrets",
    "shm_size",
    "ssh",
    "tags",
    "target",
    "ulimits",
];

pub(super) fn build(court: &mut Court<'_>, table: &Map<String, Value>) {
    let Some(build) = table.get("build").and_then(Value::as_object) else { return };
    for key in build.keys().filter(|key| !KNOWN.contains(&key.as_str()) && !key.starts_with("x-")) {
        let why = "this version of preview does not know whether it is safe on a shared host";
        court.refuse(&format!("build.{key}"), None, why, "remove it");
    }
    switches(court, build);
    let network = build.get("network").and_then(Value::as_str).unwrap_or_default();
    if !matches!(network, "" | "default" | "none") {
        let why = "it reaches the host or others";
        court.refuse_unless_allowed("build.network", Some(network), why, "remove it");
    }
    contexts(court, build);
    templates(court, table, build);
}

/// Keys that are refused whatever they say, unless that is allowed.
fn switches(court: &mut Court<'_>, build: &Map<String, Value>) {
    for (key, why) in [
        ("secrets", "what a pull request builds could keep them"),
        ("ssh", "it lends the agent of the machine that deploys"),
        ("entitlements", "they loosen the isolation of the build"),
        ("privileged", "a privileged build is root on the host"),
        ("cache_to", "it writes outside the preview"),
        ("cache_from", "it may read outside the preview"),
        ("provenance", "it is not supported"),
        ("sbom", "it is not supported"),
    ] {
        let Some(value) = build.get(key).filter(|value| !is_empty(value)) else { continue };
        let key = format!("build.{key}");
        match allowing(&key) {
            Some(Allowing::Key) => court.refuse_unless_allowed(&key, None, why, "remove it"),
            Some(Allowing::Values) => {
                for value in values(value) {
                    court.refuse_unless_allowed(&key, value.as_deref(), why, "remove it");
                }
            }
            None => court.refuse(&key, None, why, "remove it"),
        }
    }
}

fn contexts(court: &mut Court<'_>, build: &Map<String, Value>) {
    let context = build.get("context").and_then(Value::as_str).unwrap_or_default();
    if context.starts_with('/') {
        if court.outside(context) {
            court.refuse("build.context", Some(context), OUTSIDE, "build from inside the repository");
        }
        if let Some(file) = build.get("dockerfile").and_then(Value::as_str) {
            let path = normal(&Path::new(context).join(file));
            if court.outside(&path.to_string_lossy()) {
                court.refuse("build.dockerfile", Some(file), OUTSIDE, "put it into the repository");
            }
        }
    } else if !context.is_empty() {
        elsewhere(court, "build.context", "build.context", context);
    }
    let contexts = build.get("additional_contexts").and_then(Value::as_object).into_iter().flatten();
    for (name, value) in contexts {
        let value = value.as_str().unwrap_or_default();
        let key = format!("build.additional_contexts.{name}");
        if value.starts_with('/') {
            if court.outside(value) {
                court.refuse(&key, Some(value), OUTSIDE, "build from inside the repository");
            }
        } else if !value.starts_with("service:") && !value.starts_with("docker-image://") {
            elsewhere(court, &key, "build.additional_contexts", value);
        }
    }
}

/// A context that the machine that deploys would fetch, or read by a scheme of its own.
fn elsewhere(court: &mut Court<'_>, key: &str, allowed_as: &str, context: &str) {
    let why = "it is fetched or read by the machine that deploys, with its rights and from its network";
    let instead =
        "build from a directory of the repository; an additional context may be `service:` or `docker-image://` too";
    court.refuse_value_unless_allowed(key, allowed_as, Some(context), why, instead);
}

/// Compose hands a build to `docker buildx bake`, where texts are templates that can call functions and read variables.
fn templates(court: &mut Court<'_>, table: &Map<String, Value>, build: &Map<String, Value>) {
    let platform = table.get("platform").map(|value| ("platform".to_owned(), value));
    for (key, value) in build.iter().map(|(key, value)| (format!("build.{key}"), value)).chain(platform) {
        // Compose has a `${` of these reach the build as it stands.
        let escaped = matches!(key.as_str(), "build.args" | "build.dockerfile_inline");
        let starts: &[&str] = if escaped { &["%{", "$${"] } else { &["%{", "${"] };
        let mut found = None;
        texts(value, !escaped, &mut |text| {
            let text = text.replace("$$", "$");
            found = found.take().or_else(|| starts.iter().find(|start| text.contains(**start)));
        });
        if let Some(start) = found {
            let why = format!(
                "it has `{start}`, which the build would take for a template and fill in on the machine that deploys"
            );
            let instead = if key == "build.dockerfile_inline" {
                "put the Dockerfile into a file of the repository"
            } else {
                "write it without"
            };
            court.refuse(&key, None, why, instead);
        }
    }
}

/// Every text of a value. Keys are texts too; names of arguments (`all_keys` is off) are checked at the same place as the rest.
fn texts(value: &Value, all_keys: bool, each: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => each(text),
        Value::Array(items) => items.iter().for_each(|item| texts(item, all_keys, each)),
        Value::Object(table) => {
            for (key, item) in table {
                each(key);
                // A name is not escaped by Compose, whatever is.
                if !all_keys && key.replace("$$", "$").contains("${") {
                    each("%{");
                }
                texts(item, all_keys, each);
            }
        }
        _ => {}
    }
}
