//! What has to change: the wanted stack against what runs. Pure; `preview plan` prints it, `deploy` carries it out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::engine::{Container, ContainerState, Health};
use crate::project::StepSpec;
use crate::stack::{self, Difference};
use crate::state::{Address, Phase, State};

/// Why containers are replaced whose image is another one.
pub(crate) const IMAGE_CHANGED: &str = "its image changed";

/// What happens to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "change", content = "because")]
pub enum Change {
    /// It is new.
    Create,
    /// Its containers are replaced, for these reasons.
    Recreate(Vec<String>),
    /// Its containers are there, but do not run as they should.
    Mend(String),
    /// Its image is built or pulled anew, for this reason: its containers are replaced if that changes it. Only in a plan.
    Refresh(String),
    /// It is no longer in the files.
    Remove,
    /// Nothing.
    Keep,
}

/// What a deploy does, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum Action {
    /// Sends files of the repository to the host.
    Upload {
        /// Files and directories that differ on the host, relative to the repository.
        files: Vec<String>,
    },
    /// Builds images.
    Build {
        /// Services.
        services: Vec<String>,
    },
    /// Pulls images.
    Pull {
        /// Images.
        images: Vec<String>,
    },
    /// Brings the stack up; the changes by service stand beside it in the plan.
    Up,
    /// Runs a command in a service.
    Step {
        /// For people.
        name: String,
        /// Service.
        service: String,
    },
    /// Waits for health and an answer.
    Verify,
}

/// What kind of deploy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// There is no such preview.
    Create,
    /// There is one.
    Update,
    /// There is one, and nothing differs.
    Unchanged,
    /// A run died on the way to the first version.
    Resume,
}

/// What has to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The preview's name.
    pub name: String,
    /// The Compose project.
    pub project: String,
    /// Create, update, …
    pub kind: Kind,
    /// What is done, in order; empty if nothing differs.
    pub actions: Vec<Action>,
    /// What happens to each service. Before a build, what a rebuilt image will change is not known yet.
    pub services: BTreeMap<String, Change>,
    /// Public addresses.
    pub addresses: Vec<Address>,
    /// What differs from the user's files.
    pub differences: Vec<Difference>,
    /// For people.
    pub warnings: Vec<String>,
}

/// What runs on the host.
#[derive(Clone, Debug)]
pub struct Running<'a> {
    /// The state file.
    pub state: Option<&'a State>,
    /// The last stack that became ready.
    pub good: Option<&'a Value>,
    /// The preview's containers.
    pub containers: &'a [Container],
    /// Ids of the images of the wanted stack that the host has, by the name in the stack.
    pub images: &'a BTreeMap<String, String>,
    /// Services that have to run, since routes lead to them.
    pub routed: &'a BTreeSet<String>,
}

/// Identity of a stack together with what is done after its start.
#[must_use]
pub fn digest(model: &Value, steps: &[StepSpec]) -> String {
    let mut hash = Sha256::new();
    // The maps of `serde_json` are sorted, so equal models have equal text.
    hash.update(model.to_string());
    for step in steps {
        hash.update(format!("\0{}\0{:?}", step.service, step.run));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Name of the file for a rendered stack: by its content.
#[must_use]
pub fn stack_file(rendered: &str) -> String {
    file_of("stack", rendered)
}

/// Name of the file for what a proxy was told: by its content.
#[must_use]
pub fn routes_file(told: &str) -> String {
    file_of("routes", told)
}

fn file_of(what: &str, content: &str) -> String {
    let hash: String = Sha256::digest(content).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{what}-{hash}.json")
}

/// What happens to each service when `model` is brought up.
#[must_use]
pub fn changes(model: &Value, running: &Running<'_>) -> BTreeMap<String, Change> {
    let wanted = stack::service_names(model);
    let images = stack::images(model);
    let replicas = stack::replicas(model);
    let one_shots = stack::one_shots(model);
    let may_end = |service: &String| one_shots.contains(service) && !running.routed.contains(service);
    let mut by_service: BTreeMap<&str, Vec<&Container>> = BTreeMap::new();
    for container in running.containers {
        if let Some(service) = container.service() {
            by_service.entry(service).or_default().push(container);
        }
    }
    let mut changes = BTreeMap::new();
    for service in &wanted {
        let containers = by_service.get(service.as_str()).map(Vec::as_slice).unwrap_or_default();
        let expected = replicas.get(service).copied().unwrap_or(1);
        if containers.is_empty() && expected > 0 {
            changes.insert(service.clone(), Change::Create);
            continue;
        }
        let mut reasons = Vec::new();
        match running.good.map(|good| definition(good, service)) {
            Some(before) if before.map(of_containers) == definition(model, service).map(of_containers) => {}
            Some(Some(before)) => {
                let now = definition(model, service).map(of_containers).unwrap_or_default();
                reasons.extend(differences(&of_containers(before), &now));
            }
            _ => reasons.push("what runs is not known to be good".to_owned()),
        }
        if let Some(id) = images.get(service).and_then(|image| running.images.get(image))
            && containers.iter().any(|container| &container.image_id != id)
        {
            reasons.push(IMAGE_CHANGED.to_owned());
        }
        let change = if !reasons.is_empty() {
            Change::Recreate(reasons)
        } else if containers.len() != expected {
            Change::Mend(format!("{} of {expected} containers exist", containers.len()))
        } else if let Some(sick) = containers.iter().find(|container| !well(container, may_end(service))) {
            Change::Mend(format!("its container is {}", condition(sick)))
        } else {
            Change::Keep
        };
        changes.insert(service.clone(), change);
    }
    let known: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
    for service in by_service.keys().filter(|service| !known.contains(**service)) {
        changes.insert((*service).to_owned(), Change::Remove);
    }
    changes
}

/// How a service's definition differs, for people.
fn differences(before: &Value, now: &Value) -> Vec<String> {
    let content = format!("/labels/{}", stack::tree::CONTENT);
    let without = |service: &Value| {
        let mut service = service.clone();
        if let Some(labels) = service.get_mut("labels").and_then(Value::as_object_mut) {
            labels.remove(stack::tree::CONTENT);
        }
        service
    };
    let mut reasons = Vec::new();
    if without(before) != without(now) {
        reasons.push("its definition changed".to_owned());
    }
    if before.pointer(&content) != now.pointer(&content) {
        reasons.push("what is in its files, configs or secrets changed".to_owned());
    }
    reasons
}

fn definition<'a>(model: &'a Value, service: &str) -> Option<&'a Value> {
    model.get("services")?.get(service)
}

/// What of a service's definition its containers are made from. The rest says how many there are, in which order they start, and how their image is built.
fn of_containers(definition: &Value) -> Value {
    let mut made = definition.clone();
    if let Some(made) = made.as_object_mut() {
        for key in ["build", "depends_on", "scale", "profiles"] {
            made.remove(key);
        }
        if let Some(deploy) = made.get_mut("deploy").and_then(Value::as_object_mut) {
            deploy.remove("replicas");
        }
    }
    made
}

/// What an update changes that cannot be seen while the preview lives, for people: volumes that are there stay as they were made. `good` is what runs.
#[must_use]
pub fn without_effect(model: &Value, good: Option<&Value>) -> Vec<String> {
    let volume = |model: &Value, key: &str| {
        let mut table = model.get("volumes")?.get(key)?.clone();
        if let Some(table) = table.as_object_mut() {
            table.remove("labels");
        }
        Some(table)
    };
    let Some(good) = good else { return Vec::new() };
    let volumes = |model: &'_ Value| model.get("volumes").and_then(Value::as_object).cloned().unwrap_or_default();
    let wanted = volumes(model);
    let gone = volumes(good).into_iter().filter(|(key, _)| !wanted.contains_key(key)).map(|(key, _)| {
        format!("volumes.{key}: no service mounts it any more; its data stays until the preview is destroyed")
    });
    let changed = model.get("volumes").and_then(Value::as_object).into_iter().flatten().filter_map(|(key, _)| {
        let (before, now) = (volume(good, key)?, volume(model, key)?);
        let keys: BTreeSet<&String> = before.as_object()?.keys().chain(now.as_object()?.keys()).collect();
        let differ: Vec<String> =
            keys.into_iter().filter(|key| before.get(*key) != now.get(*key)).map(|key| format!("`{key}`")).collect();
        (!differ.is_empty()).then(|| {
            format!(
                "volumes.{key}: {} changed, but a volume stays as it was made, with its data; to have it made anew, destroy the preview and deploy \
                 it again, or give the volume another name in the file",
                differ.join(", ")
            )
        })
    });
    changed.chain(gone).collect()
}

/// What new images bring that is not seen, for people: at these paths, volumes that are there hide what the image has. `renewed` are services whose
/// image changes.
#[must_use]
pub fn hidden(model: &Value, good: Option<&Value>, renewed: &BTreeSet<String>) -> Vec<String> {
    let mounts = |model: &Value, service: &str| -> BTreeSet<(String, String)> {
        let list = definition(model, service).and_then(|table| table.get("volumes")?.as_array());
        let volumes = list.into_iter().flatten().filter(|mount| mount["type"] == "volume");
        let text = |mount: &Value, key: &str| mount[key].as_str().unwrap_or_default().to_owned();
        volumes.map(|mount| (text(mount, "target"), text(mount, "source"))).collect()
    };
    let Some(good) = good else { return Vec::new() };
    let services = renewed.iter().flat_map(|service| {
        let both: Vec<_> = mounts(model, service).intersection(&mounts(good, service)).cloned().collect();
        both.into_iter().map(move |(path, volume)| {
            format!(
                "{service}: at {path} it goes on with the volume `{volume}`, so what a new image has there is not seen"
            )
        })
    });
    services.collect()
}

/// Whether nothing at all has to be done: the stack of this digest is recorded as good, and just its containers run, on the images of today.
#[must_use]
pub fn unchanged(model: &Value, digest: &str, running: &Running<'_>) -> bool {
    let Some(state) = running.state else { return false };
    let Some(good) = &state.good else { return false };
    matches!(state.phase, Phase::Ready | Phase::Failed | Phase::TimedOut | Phase::Aborted)
        && good.digest == digest
        && good.containers == container_ids(running.containers)
        && changes(model, running).values().all(|change| change == &Change::Keep)
}

/// Ids of the containers by service, sorted: what the state file remembers.
#[must_use]
pub fn container_ids(containers: &[Container]) -> BTreeMap<String, Vec<String>> {
    let mut ids: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for container in containers {
        ids.entry(container.service().unwrap_or_default().to_owned()).or_default().push(container.id.clone());
    }
    for ids in ids.values_mut() {
        ids.sort();
    }
    ids
}

fn well(container: &Container, may_end: bool) -> bool {
    match container.state {
        ContainerState::Running => matches!(container.health, Health::None | Health::Healthy),
        ContainerState::Exited => may_end,
        _ => false,
    }
}

/// State and health of a container in words.
#[must_use]
pub fn condition(container: &Container) -> String {
    let state = match container.state {
        ContainerState::Created => "created, not started",
        ContainerState::Running => match container.health {
            Health::None => "running",
            Health::Starting => "starting",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        },
        ContainerState::Paused => "paused",
        ContainerState::Restarting => "restarting",
        ContainerState::Removing => "being removed",
        ContainerState::Exited => "exited",
        ContainerState::Dead => "dead",
    };
    state.to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn model(tag: &str) -> Value {
        json!({"name": "p", "services": {"web": {"image": format!("web:{tag}")}, "db": {"image": "db:1"}}})
    }

    fn container(service: &str, id: &str, image_id: &str) -> Container {
        Container {
            id: id.into(),
            name: format!("p-{service}-1"),
            image: String::new(),
            image_id: image_id.into(),
            state: ContainerState::Running,
            health: Health::None,
            labels: BTreeMap::from([(crate::ownership::COMPOSE_SERVICE.to_owned(), service.to_owned())]),
            created: 0,
            ports: vec![],
            networks: BTreeMap::new(),
            volumes: Default::default(),
        }
    }

    fn images() -> BTreeMap<String, String> {
        BTreeMap::from([("web:1".into(), "i1".into()), ("web:2".into(), "i2".into()), ("db:1".into(), "d1".into())])
    }

    fn state(model: &Value, containers: &[Container]) -> State {
        let now = jiff::Timestamp::UNIX_EPOCH;
        State {
            good: Some(crate::state::Good {
                addresses: vec![],
                routes: None,
                digest: digest(model, &[]),
                stack: stack_file(""),
                containers: container_ids(containers),
                images: BTreeMap::new(),
                facts: BTreeMap::new(),
                roots: BTreeMap::new(),
                tree: None,
                records: Default::default(),
                weight: None,
                commit: None,
                at: now,
            }),
            ..crate::state::tests::state()
        }
    }

    #[test]
    fn nothing_differs() {
        let model = model("1");
        let containers = [container("web", "c1", "i1"), container("db", "c2", "d1")];
        let state = state(&model, &containers);
        let images = images();
        let running = Running {
            state: Some(&state),
            good: Some(&model),
            containers: &containers,
            images: &images,
            routed: &BTreeSet::new(),
        };
        assert!(unchanged(&model, &digest(&model, &[]), &running));
    }

    #[test]
    fn each_difference_is_seen_and_named() {
        let good = model("1");
        let containers = [container("web", "c1", "i1"), container("db", "c2", "d1")];
        let state = state(&good, &containers);
        let images = images();
        let routed = BTreeSet::new();
        let running = |containers| Running {
            state: Some(&state),
            good: Some(&good),
            containers,
            images: &images,
            routed: &routed,
        };

        let new = model("2");
        assert!(!unchanged(&new, &digest(&new, &[]), &running(&containers)));
        let found = changes(&new, &running(&containers));
        assert_eq!(found["db"], Change::Keep);
        assert_eq!(found["web"], Change::Recreate(vec!["its definition changed".into(), "its image changed".into()]));

        let replaced = [container("web", "c9", "i1"), container("db", "c2", "d1")];
        assert!(!unchanged(&good, &digest(&good, &[]), &running(&replaced)), "a container that we did not start");

        let mut stopped = containers.clone();
        stopped[1].state = ContainerState::Exited;
        assert_eq!(changes(&good, &running(&stopped))["db"], Change::Mend("its container is exited".into()));

        let fewer = [container("web", "c1", "i1"), container("old", "c3", "x")];
        let found = changes(&good, &running(&fewer));
        assert_eq!((&found["db"], &found["old"]), (&Change::Create, &Change::Remove));
    }

    #[test]
    fn what_makes_no_other_containers_recreates_none() {
        let mut good = model("1");
        good["services"]["web"]["build"] = json!({"context": "/r"});
        good["services"]["web"]["deploy"] = json!({});
        let containers = [container("web", "c1", "i1"), container("db", "c2", "d1")];
        let images = images();
        let routed = BTreeSet::new();
        let running =
            Running { state: None, good: Some(&good), containers: &containers, images: &images, routed: &routed };
        let mut new = good.clone();
        new["services"]["web"]["build"]["args"] = json!({"A": "1"});
        new["services"]["web"]["depends_on"] = json!({"db": {"condition": "service_started"}});
        new["services"]["web"]["deploy"] = json!({"replicas": 1});
        assert_eq!(changes(&new, &running)["web"], Change::Keep);
        new["services"]["web"]["environment"] = json!({"A": "1"});
        assert_eq!(changes(&new, &running)["web"], Change::Recreate(vec!["its definition changed".into()]));
    }

    #[test]
    fn a_job_may_have_ended_and_what_a_route_leads_to_may_not() {
        let mut good = model("1");
        good["services"]["web"]["restart"] = json!("on-failure");
        let mut containers = [container("web", "c1", "i1"), container("db", "c2", "d1")];
        containers[0].state = ContainerState::Exited;
        let images = images();
        let change = |routed: &BTreeSet<String>| {
            let running = Running { state: None, good: Some(&good), containers: &containers, images: &images, routed };
            changes(&good, &running)["web"].clone()
        };
        assert_eq!(change(&BTreeSet::new()), Change::Keep);
        assert_eq!(change(&BTreeSet::from(["web".into()])), Change::Mend("its container is exited".into()));
    }

    #[test]
    fn what_an_update_cannot_change_is_told() {
        let with = |driver: Value, target: &str| {
            let mount = json!({"type": "volume", "source": "data", "target": target});
            json!({"services": {"web": {"volumes": [mount]}}, "volumes": {"data": driver}})
        };
        let plain = json!({"name": "p_data", "labels": {"a": "1"}});
        let good = with(plain.clone(), "/www");
        assert_eq!(without_effect(&good, Some(&with(json!({"name": "p_data"}), "/www"))), Vec::<String>::new());
        let told = without_effect(&with(json!({"name": "p_data", "driver_opts": {"o": "x"}}), "/www"), Some(&good));
        assert!(told.len() == 1 && told[0].starts_with("volumes.data: `driver_opts` changed"), "{told:?}");
        assert_eq!(without_effect(&good, None), Vec::<String>::new(), "what is new is made as it is wanted");

        let gone = without_effect(&json!({"services": {}}), Some(&good));
        assert!(gone.len() == 1 && gone[0].starts_with("volumes.data: no service mounts it"), "{gone:?}");

        let renewed = BTreeSet::from(["web".to_owned()]);
        let told = hidden(&good, Some(&good), &renewed);
        assert!(told.len() == 1 && told[0].contains("at /www") && told[0].contains("`data`"), "{told:?}");
        assert_eq!(hidden(&with(plain, "/other"), Some(&good), &renewed), Vec::<String>::new());
        assert_eq!(hidden(&good, Some(&good), &BTreeSet::new()), Vec::<String>::new());
    }

    #[test]
    fn a_step_is_part_of_the_identity() {
        let step = StepSpec {
            name: "m".into(),
            service: "web".into(),
            run: vec!["m".into()],
            timeout: None,
            place: String::new(),
        };
        assert_ne!(digest(&model("1"), &[]), digest(&model("1"), &[step]));
    }
}
