//! From the resolved Compose model to the preview's stack: pure functions on the JSON of `docker compose config`.
//!
//! Only declared differences: whatever is changed is listed as a [`Difference`], and nothing else differs from the user's files.

mod capability;
mod caps;
pub(crate) mod dockerfile;
mod engine_version;
mod exclude;
mod files;
mod harmless;
mod health;
mod images;
mod isolation;
mod limits;
mod literal;
mod network;
mod policy;
mod published;
mod pull_policy;
mod render;
mod restart;
mod shares;
pub mod tree;
mod violation;
mod volumes;
mod written;

pub use caps::{Caps, exceeded};
pub use engine_version::needs_engine_version;
pub use exclude::{drop_optional, exclude, proposal, with_dependents};
pub use files::{FileUse, Place, file_uses, host_paths, links_out, normal};
pub use harmless::drop_harmless;
pub use health::{Patience, patience};
pub(crate) use images::{image_ids, image_names, image_prefix};
pub use isolation::Isolation;
pub use limits::{Guardrails, ServiceGuardrails, declared_memory};
pub use literal::not_literal;
pub(crate) use policy::is_allowed;
pub use policy::{Allowance, Allowing, allowable_keys, allowing, violations};
pub use published::{is_unlikely_http, may_be_http, page};
pub use pull_policy::{Pull, pull_policies};
pub use render::{Input, Rendered, render};
pub use shares::{Said, Share, own_networks, shares};
pub use violation::{AllowLine, Rejection, Violation, ViolationKind};
pub use written::as_written;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// One thing that differs from the user's files, for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Difference {
    /// Where: `services.api.ports`.
    pub key: String,
    /// What was done: `host port 8000 removed`.
    pub what: String,
}

/// A port that the user's files publish, or that a route leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Service.
    pub service: String,
    /// Port in the container.
    pub target: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

impl Port {
    /// The key under which the state file remembers the port: `api:8000/tcp`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}:{}/{}", self.service, self.target, self.protocol)
    }

    /// The keys of the host ports of a service with so many containers: each needs one.
    pub fn keys(&self, containers: usize) -> impl Iterator<Item = String> + use<> {
        let key = self.key();
        (0..containers).map(move |number| if number == 0 { key.clone() } else { format!("{key}+{number}") })
    }
}

/// The services of a model, by name.
pub(crate) fn services(model: &Value) -> impl Iterator<Item = (&String, &Map<String, Value>)> {
    entries(model, "services")
}

/// The tables below a top-level key.
pub(crate) fn entries<'a>(model: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Map<String, Value>)> {
    static NOTHING: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    model
        .get(key)
        .and_then(Value::as_object)
        .unwrap_or(&NOTHING)
        .iter()
        .map(|(name, value)| (name, value.as_object().unwrap_or(&NOTHING)))
}

/// Names of the services.
#[must_use]
pub fn service_names(model: &Value) -> BTreeSet<String> {
    services(model).map(|(name, _)| name.clone()).collect()
}

/// The ports that the files publish on the host, in order.
#[must_use]
pub fn published_ports(model: &Value) -> BTreeSet<Port> {
    services(model)
        .flat_map(|(service, table)| {
            let ports = table.get("ports").and_then(Value::as_array).cloned().unwrap_or_default();
            ports.into_iter().filter_map(move |port| {
                Some(Port {
                    service: service.clone(),
                    target: u16::try_from(port.get("target")?.as_u64()?).ok()?,
                    protocol: port.get("protocol").and_then(Value::as_str).unwrap_or("tcp").to_owned(),
                })
            })
        })
        .collect()
}

/// Why these images (by name, with their labels) may not run here: their containers would inherit what tells a proxy what to route.
#[must_use]
pub fn router_labels(images: &BTreeMap<String, BTreeMap<String, String>>) -> Option<String> {
    let (image, label) = images
        .iter()
        .find_map(|(image, labels)| Some((image, labels.keys().find(|key| network::is_router_label(key))?)))?;
    let label = label.replace(char::is_control, "?");
    Some(format!(
        "the image {image} has the label `{label}`, which would tell the host's proxy what to route: remove it from the Dockerfile; routes come \
         from `[[route]]`"
    ))
}

/// The image that each service runs, by service; a service that is built and names no image runs Compose's default name.
#[must_use]
pub fn images(model: &Value) -> BTreeMap<String, String> {
    let project = model.get("name").and_then(Value::as_str).unwrap_or_default();
    services(model)
        .map(|(service, table)| {
            let image = table
                .get("image")
                .and_then(Value::as_str)
                .map_or_else(|| format!("{project}-{service}"), str::to_owned);
            (service.clone(), image)
        })
        .collect()
}

/// The services whose image is built from the repository.
#[must_use]
pub fn built(model: &Value) -> Vec<String> {
    services(model)
        .filter(|(_, table)| table.get("build").is_some_and(|build| !build.is_null()))
        .map(|(service, _)| service.clone())
        .collect()
}

/// Services that may end with success instead of staying up: another one waits for just that, or they are not started
/// again after it.
#[must_use]
pub fn one_shots(model: &Value) -> BTreeSet<String> {
    let mut names = awaited(model);
    for (service, table) in services(model) {
        let of_deploy = || table.get("deploy")?.pointer("/restart_policy/condition")?.as_str();
        let restart = table.get("restart").and_then(Value::as_str).or_else(of_deploy).unwrap_or_default();
        if restart == "no" || restart == "none" || restart.starts_with("on-failure") {
            names.insert(service.clone());
        }
    }
    names
}

/// Services of which another one awaits the successful end.
pub(crate) fn awaited(model: &Value) -> BTreeSet<String> {
    awaited_as(model, "service_completed_successfully")
}

/// Services that another one waits for with this condition.
pub(crate) fn awaited_as(model: &Value, wanted: &str) -> BTreeSet<String> {
    services(model)
        .filter_map(|(_, table)| table.get("depends_on")?.as_object())
        .flatten()
        .filter(|(_, condition)| condition.get("condition").and_then(Value::as_str) == Some(wanted))
        .map(|(name, _)| name.clone())
        .collect()
}

/// How many containers each service should have.
#[must_use]
pub fn replicas(model: &Value) -> BTreeMap<String, usize> {
    services(model)
        .map(|(service, table)| {
            let count = table
                .get("deploy")
                .and_then(|deploy| deploy.get("replicas"))
                .or_else(|| table.get("scale"))
                .and_then(Value::as_u64)
                .unwrap_or(1);
            (service.clone(), usize::try_from(count).unwrap_or(usize::MAX))
        })
        .collect()
}
