//! What a Compose file may not have on a shared host, where the right to start containers is root.
//!
//! The check fails closed: a key that this version does not know is refused. What would be shared with another preview
//! but can be made the preview's own (fixed names, router labels) is not refused here; `render` and `network` change it.
//! The base branch's configuration can allow some of it, service by service ([`Allowance`]).

mod allow;

use std::path::Path;

use serde_json::{Map, Value};

use super::{AllowLine, Violation, capability, entries, harmless, normal, services};

pub(crate) use allow::is_allowed;
pub use allow::{Allowance, Allowing, allowable_keys, allowing};

/// Why paths of the machine that deploys are refused.
const OUTSIDE: &str = "it is outside the repository";

/// Keys of a service that harm nobody else, or that other parts of this module look at.
const KNOWN: &[&str] = &[
    "annotations",
    "attach",
    "blkio_config",
    "build",
    "command",
    "configs",
    "container_name",
    "cpu_count",
    "cpu_percent",
    "cpu_period",
    "cpu_quota",
    "cpu_shares",
    "cpus",
    "cpuset",
    "cap_drop",
    "cap_add",
    "cgroup",
    "cgroup_parent",
    "depends_on",
    "deploy",
    "develop",
    "device_cgroup_rules",
    "devices",
    "dns",
    "dns_opt",
    "dns_search",
    "domainname",
    "entrypoint",
    "env_file",
    "environment",
    "expose",
    "external_links",
    "extra_hosts",
    "gpus",
    "group_add",
    "healthcheck",
    "hostname",
    "image",
    "init",
    "ipc",
    "labels",
    "label_file",
    "links",
    "logging",
    "mac_address",
    "mem_limit",
    "mem_reservation",
    "mem_swappiness",
    "memswap_limit",
    "network_mode",
    "networks",
    "oom_score_adj",
    "pid",
    "pids_limit",
    "platform",
    "ports",
    "post_start",
    "pre_stop",
    "privileged",
    "profiles",
    "pull_policy",
    "read_only",
    "restart",
    "scale",
    "secrets",
    "security_opt",
    "shm_size",
    "stdin_open",
    "stop_grace_period",
    "stop_signal",
    "storage_opt",
    "sysctls",
    "tmpfs",
    "tty",
    "ulimits",
    "user",
    "userns_mode",
    "uts",
    "volumes",
    "volumes_from",
    "working_dir",
];

/// Keys at the top of a model that are looked at here, or mean nothing to an engine.
const TOP: &[&str] = &["configs", "include", "models", "name", "networks", "secrets", "services", "version", "volumes"];

/// Keys that are refused whatever they hold (unless empty or false).
const REFUSED: &[(&str, &str, &str)] = &[
    ("privileged", "a privileged container is root on the host", "remove it, or add only what is needed to the image"),
    ("devices", "devices belong to the host", "remove it from the preview's files"),
    ("device_cgroup_rules", "devices belong to the host", "remove it from the preview's files"),
    ("gpus", "devices belong to the host", "remove it from the preview's files"),
    (
        "cap_add",
        "capabilities beyond Docker's default reach outside the container",
        "remove it from the preview's files",
    ),
    ("cgroup_parent", "it takes the container out of its limits", "remove it"),
    ("external_links", "they reach containers of others", "put the other service into the same Compose files"),
    ("credential_spec", "it is a credential of the host", "remove it"),
    ("runtime", "another runtime may not isolate", "remove it"),
    ("provider", "it runs a program on the machine that deploys", "use a service with an image"),
    ("use_api_socket", "the Docker socket is root on the host", "remove it"),
    ("models", "it runs a program on the machine that deploys", "use a service with an image"),
    ("oom_kill_disable", "the host must be able to end it", "remove it"),
];

struct Court<'a> {
    found: Vec<Violation>,
    place: String,
    /// The service that is looked at.
    service: Option<&'a str>,
    repository: &'a Path,
    allowed: &'a [Allowance],
}

impl Court<'_> {
    fn refuse(&mut self, key: &str, value: Option<&str>, why: impl Into<String>, instead: impl Into<String>) {
        let key = if key.is_empty() { self.place.clone() } else { format!("{}.{key}", self.place) };
        self.found.push(Violation {
            service: self.service.map(str::to_owned),
            key,
            value: value.map(str::to_owned),
            why: why.into(),
            instead: instead.into(),
            ..Violation::default()
        });
    }

    /// Refuses what the base branch's configuration has not allowed. `value` is what it would have to name.
    fn refuse_unless_allowed(
        &mut self,
        key: &str,
        value: Option<&str>,
        why: impl Into<String>,
        instead: impl Into<String>,
    ) {
        self.refuse_value_unless_allowed(key, key, value, why, instead);
    }

    /// The same where the allowance has a shorter key.
    fn refuse_value_unless_allowed(
        &mut self,
        key: &str,
        allowed_as: &str,
        value: Option<&str>,
        why: impl Into<String>,
        instead: impl Into<String>,
    ) {
        let service = self.service.unwrap_or_default().to_owned();
        if self.allowed.iter().any(|allowance| allowance.covers(&service, allowed_as, value)) {
            return;
        }
        self.refuse(key, value, why, instead);
        let values: Vec<String> = value.into_iter().map(str::to_owned).collect();
        // What cannot be named cannot be allowed.
        let nameable = match allowing(allowed_as) {
            Some(Allowing::Key) => values.is_empty(),
            Some(Allowing::Values) => !values.is_empty(),
            None => false,
        };
        if let Some(last) = self.found.last_mut().filter(|_| nameable) {
            last.allow = Some(AllowLine { service, key: allowed_as.to_owned(), values });
        }
    }

    fn outside(&self, path: &str) -> bool {
        !normal(Path::new(path)).starts_with(self.repository)
    }
}

/// Everything in the model that is refused and not allowed, in order. `repository` is the canonical directory that the files may come from;
/// sources of bind mounts in the model must be canonical too, but for those of
/// [`host_paths`](super::host_paths).
#[must_use]
pub fn violations(
    model: &Value,
    repository: &Path,
    proxy_network: Option<&str>,
    allowed: &[Allowance],
) -> Vec<Violation> {
    let mut court = Court { found: Vec::new(), place: String::new(), service: None, repository, allowed };
    for (name, table) in services(model) {
        court.place = format!("services.{name}");
        court.service = Some(name);
        if proxy_network.is_some() {
            network::shared_names(&mut court, name, table);
        }
        service(&mut court, table);
    }
    court.service = None;
    for (name, table) in entries(model, "networks") {
        court.place = format!("networks.{name}");
        network::network(&mut court, name, table, proxy_network);
        labels(&mut court, table);
    }
    for (name, table) in entries(model, "volumes") {
        court.place = format!("volumes.{name}");
        volume::volume(&mut court, table);
        labels(&mut court, table);
    }
    for kind in ["configs", "secrets"] {
        for (name, table) in entries(model, kind) {
            court.place = format!("{kind}.{name}");
            if is_on(table.get("external")) {
                court.refuse(
                    "external",
                    None,
                    "it would come from outside the preview",
                    "use file:, content: or environment:",
                );
            }
            if let Some(path) = table.get("file").and_then(Value::as_str)
                && court.outside(path)
            {
                court.refuse("file", Some(path), OUTSIDE, "put the file into the repository");
            }
            if table.contains_key("driver") || table.contains_key("template_driver") {
                court.refuse("driver", None, "drivers are plugins of the host", "use file:, content: or environment:");
            }
        }
    }
    for (key, value) in model.as_object().into_iter().flatten() {
        if !TOP.contains(&key.as_str()) && !key.starts_with("x-") && !is_empty(value) {
            court.place.clone_from(key);
            let why = "what it holds is not checked by this version of preview, and not run";
            court.refuse("", None, why, "move it to a Compose file that the preview does not use");
        }
    }
    if model.get("models").is_some_and(|models| !is_empty(models)) {
        court.place = "models".to_owned();
        court.refuse("", None, "it runs a program on the machine that deploys", "use a service with an image");
    }
    court.found.sort();
    court.found
}

fn is_on(value: Option<&Value>) -> bool {
    value.is_some_and(|value| value == &Value::Bool(true) || value.is_object())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    }
}

fn service(court: &mut Court<'_>, table: &Map<String, Value>) {
    for (key, why, instead) in REFUSED {
        let Some(value) = table.get(*key).filter(|value| !is_empty(value)) else { continue };
        match allowing(key) {
            Some(Allowing::Key) => court.refuse_unless_allowed(key, None, *why, *instead),
            Some(Allowing::Values) => {
                let values = values(value).into_iter();
                // What Docker gives to every container is no addition.
                let values =
                    values.filter(|value| *key != "cap_add" || !value.as_deref().is_some_and(capability::is_default));
                for value in values {
                    court.refuse_unless_allowed(key, value.as_deref(), *why, *instead);
                }
            }
            None => court.refuse(key, None, *why, *instead),
        }
    }
    for key in table.keys() {
        if !KNOWN.contains(&key.as_str())
            && !REFUSED.iter().any(|(refused, ..)| refused == key)
            && !key.starts_with("x-")
        {
            let why = "this version of preview does not know whether it is safe on a shared host";
            court.refuse(key, None, why, "remove it");
        }
    }
    for (key, safe) in [
        ("ipc", &["", "private", "shareable", "none"][..]),
        ("pid", &[""][..]),
        ("uts", &[""][..]),
        ("userns_mode", &[""][..]),
        ("cgroup", &["", "private"][..]),
        ("network_mode", &["", "none"][..]),
    ] {
        let mode = table.get(key).and_then(Value::as_str).unwrap_or_default();
        let of_the_stack = mode.starts_with("service:") && matches!(key, "ipc" | "pid" | "network_mode");
        if !safe.contains(&mode) && !of_the_stack {
            let why = "it shares what belongs to the host or to others";
            court.refuse_unless_allowed(key, Some(mode), why, "remove it");
        }
    }
    for option in strings(table.get("security_opt")) {
        if !matches!(option.as_str(), "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true") {
            let why = "it loosens the isolation";
            court.refuse_unless_allowed("security_opt", Some(&option), why, "use only no-new-privileges:true");
        }
    }
    for from in strings(table.get("volumes_from")) {
        if from.starts_with("container:") {
            let why = "it reaches a container of others";
            court.refuse_unless_allowed("volumes_from", Some(&from), why, "name a service of these files");
        }
    }
    for hook in ["post_start", "pre_stop"] {
        let hooks = table.get(hook).and_then(Value::as_array).cloned().unwrap_or_default();
        if hooks.iter().any(|hook| is_on(hook.get("privileged"))) {
            court.refuse_unless_allowed(hook, None, "a privileged process is root on the host", "remove privileged");
        }
    }
    for name in table.get("annotations").and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name) {
        let why =
            "the host's container runtime obeys annotations: they can restart the host, or end what else runs there";
        court.refuse_unless_allowed("annotations", Some(name), why, "remove it, or make it a label");
    }
    if let Some(value) = table.get("oom_score_adj").and_then(Value::as_i64).filter(|value| *value < 0) {
        let value = value.to_string();
        let why = "the host would end others first";
        court.refuse_unless_allowed("oom_score_adj", Some(&value), why, "use a value of 0 or more");
    }
    if let Some(devices) = table.get("deploy").and_then(|deploy| deploy.pointer("/resources/reservations/devices"))
        && !is_empty(devices)
    {
        let key = "deploy.resources.reservations.devices";
        court.refuse_unless_allowed(key, None, "devices belong to the host", "remove it");
    }
    mounts(court, table);
    network::attachments(court, table);
    build::build(court, table);
    labels(court, table);
    let logging =
        table.get("logging").and_then(|logging| logging.get("driver")).and_then(Value::as_str).unwrap_or_default();
    if !matches!(logging, "" | "json-file" | "local" | "none") {
        let why = "it sends logs elsewhere, and they could not be shown";
        court.refuse("logging.driver", Some(logging), why, "use json-file or local");
    }
}

/// The values by which the elements of a refused key are allowed; a device is its path on the host.
fn values(value: &Value) -> Vec<Option<String>> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Object(table) => table.get("source").and_then(Value::as_str).map(str::to_owned),
        _ => None,
    };
    value.as_array().map_or_else(|| vec![one(value)], |items| items.iter().map(one).collect())
}

fn mounts(court: &mut Court<'_>, table: &Map<String, Value>) {
    let mounts = table.get("volumes").and_then(Value::as_array).cloned().unwrap_or_default();
    for mount in mounts {
        let kind = mount.get("type").and_then(Value::as_str).unwrap_or_default();
        let source = mount.get("source").and_then(Value::as_str).unwrap_or_default();
        match kind {
            "volume" | "tmpfs" | "image" => {}
            "bind" if harmless::is_null(source) && mount.get("read_only") == Some(&Value::Bool(true)) => {}
            "bind" if source.starts_with('~') => {
                let why = "it is in the home directory of whoever deploys";
                court.refuse("volumes", Some(source), why, "use a named volume, or a path inside the repository");
            }
            "bind" if source.ends_with("docker.sock") || source.ends_with("containerd.sock") => {
                let why = "whoever has the Docker socket is root on the host";
                court.refuse_unless_allowed("volumes", Some(source), why, "remove the mount");
            }
            "bind" if court.outside(source) => {
                let instead = "use a named volume, or a path inside the repository";
                court.refuse_unless_allowed("volumes", Some(source), OUTSIDE, instead);
            }
            "bind" => {}
            other => {
                let why = format!("mounts of type `{other}` are not known to be safe");
                court.refuse("volumes", None, why, "use volume, bind or tmpfs");
            }
        }
        let propagation = mount.pointer("/bind/propagation").and_then(Value::as_str).unwrap_or_default();
        if !matches!(propagation, "" | "private" | "rprivate" | "slave" | "rslave") {
            let why = format!("its propagation `{propagation}` changes the host's mounts");
            court.refuse("volumes", Some(source), why, "remove the propagation");
        }
    }
}

fn labels(court: &mut Court<'_>, table: &Map<String, Value>) {
    labels_of(court, "labels", table.get("labels"));
    labels_of(court, "build.labels", table.get("build").and_then(|build| build.get("labels")));
}

fn labels_of(court: &mut Court<'_>, place: &str, labels: Option<&Value>) {
    for key in labels.and_then(Value::as_object).into_iter().flatten().map(|(key, _)| key) {
        if key.starts_with("preview.") {
            court.refuse(
                &format!("{place}.{key}"),
                None,
                "labels that begin with `preview.` say what is ours",
                "use another name",
            );
        }
        if key.starts_with("com.docker.compose.") {
            court.refuse(&format!("{place}.{key}"), None, "Compose sets these labels itself", "use another name");
        }
    }
}

fn strings(value: Option<&Value>) -> Vec<String> {
    value
        .and_then(Value::as_array)
        .map(|items| items.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default()
}

mod build;
mod network;
mod volume;

#[cfg(test)]
mod tests;
