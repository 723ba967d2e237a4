//! The restart policy of services whose files name none: what serves is started again whatever happens, what may be a job is not once it has ended with
//! success.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::engine::ImageFacts;

/// The policy of what may be a job: done once it ends with 0, started again when it fails or is killed.
const OF_JOBS: &str = "on-failure";
/// What files say of most servers. An engine that was killed stops the containers that it finds when it comes up, takes that for a wish, and leaves these down.
const UNLESS_STOPPED: &str = "unless-stopped";
/// The same without that: nobody stops a container of a preview and wants it to stay so.
const ALWAYS: &str = "always";

/// Whether the file says whether the service is started again.
pub(super) fn is_said(table: &Map<String, Value>) -> bool {
    let filled = |value: Option<&Value>| value.is_some_and(|value| !value.is_null());
    filled(table.get("restart")) || filled(table.get("deploy").and_then(|deploy| deploy.get("restart_policy")))
}

/// The restart policy of each service that gets one of ours: those that name none, but for services whose end others await, and those that an engine would leave
/// stopped, unless the configuration wants that. `default` is the configured one, `stays` are services
/// that a route or a question needs, `images` what is known of images, by the name in the model.
pub(super) fn policies(
    model: &Value,
    default: &str,
    stays: &BTreeSet<String>,
    images: &BTreeMap<String, ImageFacts>,
) -> BTreeMap<String, String> {
    let awaited = super::awaited(model);
    let unsaid = super::services(model).filter(|(service, table)| !is_said(table) && !awaited.contains(*service));
    let stronger = super::services(model).filter(|(_, table)| default == ALWAYS && stops_with_its_engine(table));
    unsaid
        .map(|(service, table)| {
            let serves = stays.contains(service) || serves(model, service, table, images);
            // A default that is no stronger than that of jobs is meant for all.
            let for_all = default == "no" || default.starts_with(OF_JOBS);
            (service.clone(), if serves || for_all { default } else { OF_JOBS }.to_owned())
        })
        .chain(stronger.map(|(service, _)| (service.clone(), ALWAYS.to_owned())))
        .collect()
}

/// Whether an engine that dies leaves the service stopped.
pub(super) fn stops_with_its_engine(table: &Map<String, Value>) -> bool {
    table.get("restart").and_then(Value::as_str) == Some(UNLESS_STOPPED)
}

/// Whether something about a service says that it is there to be asked, and so to stay.
fn serves(model: &Value, service: &str, table: &Map<String, Value>, images: &BTreeMap<String, ImageFacts>) -> bool {
    let filled = |key: &str| table.get(key).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    filled("ports")
        || filled("expose")
        || is_checked(table)
        || super::awaited_as(model, "service_healthy").contains(service)
        || listens(model, service, table, images)
}

/// Whether the file gives the service a health check.
fn is_checked(table: &Map<String, Value>) -> bool {
    let Some(check) = table.get("healthcheck").filter(|check| !check.is_null()) else { return false };
    let off = check.pointer("/test/0").and_then(Value::as_str) == Some("NONE");
    !off && check.get("disable") != Some(&Value::Bool(true))
}

/// Whether the image says that it listens, and that is likely to hold here: a job often runs another command on the image of the application beside it.
fn listens(model: &Value, service: &str, table: &Map<String, Value>, images: &BTreeMap<String, ImageFacts>) -> bool {
    let names = super::images(model);
    let name = names.get(service);
    if !name.and_then(|name| images.get(name)).is_some_and(|facts| facts.exposes) {
        return false;
    }
    let overridden = ["command", "entrypoint"].iter().any(|key| table.get(*key).is_some_and(|value| !value.is_null()));
    let build = table.get("build").filter(|build| !build.is_null());
    let source = |build: &Value| ["context", "dockerfile", "target"].map(|key| build.get(key).cloned());
    let shared = super::services(model).filter(|(other, _)| *other != service).any(|(other, table)| {
        let same_build = build.zip(table.get("build").filter(|build| !build.is_null()));
        names.get(other) == name || same_build.is_some_and(|(one, other)| source(one) == source(other))
    });
    !overridden || !shared
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(service: Value, others: Value, stays: &[&str]) -> Option<String> {
        let mut services = others;
        services["a"] = service;
        let images = BTreeMap::from([("listens".to_owned(), ImageFacts { exposes: true, ..ImageFacts::default() })]);
        let stays = stays.iter().map(|name| (*name).to_owned()).collect();
        policies(&json!({"services": services}), "always", &stays, &images).remove("a")
    }

    #[test]
    fn a_job_is_started_again_only_when_it_fails() {
        for job in [
            json!({"image": "x", "command": ["seed"]}),
            json!({"image": "x", "ports": [], "expose": null, "healthcheck": null}),
            json!({"image": "x", "healthcheck": {"disable": true}}),
            json!({"image": "x", "healthcheck": {"test": ["NONE"]}}),
        ] {
            assert_eq!(policy(job.clone(), json!({}), &[]).as_deref(), Some("on-failure"), "{job}");
        }
    }

    #[test]
    fn what_serves_gets_the_default() {
        for server in [
            json!({"image": "x", "ports": [{"target": 80}]}),
            json!({"image": "x", "expose": ["80"]}),
            json!({"image": "x", "healthcheck": {"test": ["CMD", "true"]}}),
            json!({"image": "listens"}),
            json!({"image": "listens", "command": ["postgres", "-c", "fsync=off"]}),
        ] {
            assert_eq!(policy(server.clone(), json!({}), &[]).as_deref(), Some("always"), "{server}");
        }
        assert_eq!(policy(json!({"image": "x"}), json!({}), &["a"]).as_deref(), Some("always"), "a route leads to it");
        let waits = json!({"b": {"depends_on": {"a": {"condition": "service_healthy"}}}});
        assert_eq!(policy(json!({"image": "x"}), waits, &[]).as_deref(), Some("always"));
    }

    #[test]
    fn another_command_on_a_shared_image_may_be_a_job() {
        let job = |table: Value, other: Value| policy(table, json!({"b": other}), &[]);
        let same = json!({"image": "listens"});
        assert_eq!(job(json!({"image": "listens", "command": ["migrate"]}), same).as_deref(), Some("on-failure"));
        let build = json!({"context": "/r", "dockerfile": "Dockerfile"});
        let built = json!({"image": "listens", "build": build, "entrypoint": ["migrate"]});
        let other = json!({"image": "other", "build": build});
        assert_eq!(job(built, other).as_deref(), Some("on-failure"));
    }

    #[test]
    fn what_the_file_says_stays_and_what_others_await_gets_none() {
        assert_eq!(policy(json!({"restart": "no"}), json!({}), &["a"]), None);
        assert_eq!(policy(json!({"deploy": {"restart_policy": {"condition": "none"}}}), json!({}), &[]), None);
        let waits = json!({"b": {"depends_on": {"a": {"condition": "service_completed_successfully"}}}});
        assert_eq!(policy(json!({"image": "x"}), waits, &["a"]), None);
    }

    #[test]
    fn what_an_engine_leaves_stopped_when_it_dies_is_always_started() {
        let file = json!({"services": {"a": {"restart": "unless-stopped"}}});
        let policy = |default: &str| policies(&file, default, &BTreeSet::new(), &BTreeMap::new()).remove("a");
        assert_eq!(policy("always").as_deref(), Some("always"));
        assert_eq!((policy("unless-stopped"), policy("on-failure")), (None, None), "the configuration wants less");
    }

    #[test]
    fn a_default_that_restarts_less_holds_for_all() {
        let model = json!({"services": {"a": {"image": "x"}}});
        for default in ["no", "on-failure:2"] {
            let found = policies(&model, default, &BTreeSet::new(), &BTreeMap::new());
            assert_eq!(found["a"], default);
        }
    }
}
