//! Services that are left out: what goes with them, what cannot live without them, and which ones a rejected project could do without.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Caps, Difference, Violation, exceeded, services};

/// Top-level tables whose entries services use by name.
const SHARED: [&str; 4] = ["configs", "networks", "secrets", "volumes"];

/// Another service that one cannot start without.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Need {
    /// The key that says so: `depends_on`.
    key: &'static str,
    /// The other service.
    service: String,
}

/// What a service needs of others. Dependencies with `required: false` are no needs.
fn needs(table: &Map<String, Value>) -> BTreeSet<Need> {
    let mut found = BTreeSet::new();
    let mut need = |key: &'static str, service: &str| {
        found.insert(Need { key, service: service.to_owned() });
    };
    for (name, dependency) in table.get("depends_on").and_then(Value::as_object).into_iter().flatten() {
        if !is_optional(dependency) {
            need("depends_on", name);
        }
    }
    for key in ["network_mode", "ipc", "pid"] {
        if let Some(name) = table.get(key).and_then(Value::as_str).and_then(|mode| mode.strip_prefix("service:")) {
            need(key, name);
        }
    }
    for key in ["links", "volumes_from"] {
        for entry in table.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            let name = entry.split(':').next().unwrap_or_default();
            // Another container is no service.
            if name != "container" {
                need(key, name);
            }
        }
    }
    let build = table.get("build").and_then(|build| build.get("additional_contexts")).and_then(Value::as_object);
    for context in build.into_iter().flatten().filter_map(|(_, context)| context.as_str()) {
        if let Some(name) = context.strip_prefix("service:") {
            need("build.additional_contexts", name);
        }
    }
    found
}

fn is_optional(dependency: &Value) -> bool {
    dependency.get("required") == Some(&Value::Bool(false))
}

/// These services, and every one that cannot live without one of them.
#[must_use]
pub fn with_dependents(model: &Value, names: &BTreeSet<String>) -> BTreeSet<String> {
    let mut all = names.clone();
    loop {
        let more: Vec<String> = services(model)
            .filter(|(name, table)| !all.contains(*name) && needs(table).iter().any(|need| all.contains(&need.service)))
            .map(|(name, _)| name.clone())
            .collect();
        if more.is_empty() {
            return all;
        }
        all.extend(more);
    }
}

/// Takes services out of a resolved model, with what only they use. What cannot live without them is a violation.
/// `place` is where the wish was written. Names that are no services are left alone.
pub fn exclude(
    model: &mut Value,
    names: &BTreeSet<String>,
    place: &str,
    differences: &mut Vec<Difference>,
) -> Vec<Violation> {
    let mut found = Vec::new();
    for (service, table) in services(model).filter(|(service, _)| !names.contains(*service)) {
        for need in needs(table).into_iter().filter(|need| names.contains(&need.service)) {
            let (key, other) = (need.key, need.service);
            let optional = if key == "depends_on" { ", or give that dependency `required: false`" } else { "" };
            found.push(
                Violation {
                    value: Some(other.clone()),
                    ..Violation::input(
                        format!("services.{service}.{key}"),
                        format!("{place} leaves `{other}` out, and `{service}` cannot start without it"),
                        format!("leave `{service}` out too{optional}"),
                    )
                }
                .of(service),
            );
        }
    }
    let excluded: BTreeSet<String> =
        services(model).map(|(name, _)| name.clone()).filter(|name| names.contains(name)).collect();
    let unused: Vec<(&str, String)> = SHARED
        .iter()
        .flat_map(|kind| super::entries(model, kind).map(move |(name, _)| (*kind, name.clone())))
        .filter(|(kind, name)| {
            let users = users(model, kind, name);
            !users.is_empty() && users.is_subset(&excluded)
        })
        .collect();
    for (kind, name) in unused {
        if let Some(table) = model.get_mut(kind).and_then(Value::as_object_mut) {
            table.remove(&name);
        }
        differences.push(Difference {
            key: format!("{kind}.{name}"),
            what: "left out: only services that are left out use it".to_owned(),
        });
    }
    if let Some(table) = model.get_mut("services").and_then(Value::as_object_mut) {
        table.retain(|name, _| !excluded.contains(name));
    }
    for name in excluded {
        differences.push(Difference { key: format!("services.{name}"), what: format!("left out, as {place} says") });
    }
    found
}

/// Drops optional dependencies on services that are not in the model: they are left out, or their profiles are not active.
pub fn drop_optional(model: &mut Value, differences: &mut Vec<Difference>) {
    let there = super::service_names(model);
    for (service, table) in model.get_mut("services").and_then(Value::as_object_mut).into_iter().flatten() {
        let Some(dependencies) = table.get_mut("depends_on").and_then(Value::as_object_mut) else { continue };
        dependencies.retain(|name, dependency| {
            let dropped = is_optional(dependency) && !there.contains(name);
            if dropped {
                differences.push(Difference {
                    key: format!("services.{service}.depends_on"),
                    what: format!("`{name}` dropped: it is optional, and not part of this preview"),
                });
            }
            !dropped
        });
        if dependencies.is_empty()
            && let Some(table) = table.as_object_mut()
        {
            table.remove("depends_on");
        }
    }
}

/// The services that use an entry of a top-level table.
fn users(model: &Value, kind: &str, name: &str) -> BTreeSet<String> {
    let named = |table: &Map<String, Value>| match table.get(kind) {
        Some(Value::Object(entries)) => entries.contains_key(name),
        Some(Value::Array(entries)) => entries.iter().any(|entry| {
            let is_kind = kind != "volumes" || entry.get("type").and_then(Value::as_str) == Some("volume");
            let source = entry.as_str().or_else(|| entry.get("source").and_then(Value::as_str));
            is_kind && source == Some(name)
        }),
        // Who names no network is in the default one.
        None => kind == "networks" && name == "default" && !table.contains_key("network_mode"),
        Some(_) => false,
    };
    let built = |table: &Map<String, Value>| {
        kind == "secrets"
            && table.get("build").and_then(|build| build.get("secrets")).and_then(Value::as_array).is_some_and(
                |secrets| secrets.iter().any(|secret| secret.get("source").and_then(Value::as_str) == Some(name)),
            )
    };
    services(model).filter(|(_, table)| named(table) || built(table)).map(|(service, _)| service.clone()).collect()
}

/// The services without which the rest would have none of these violations, `already` excluded ones among them. `None` where there is no such
/// set: something is wrong with no service in particular, with one that the configuration names (`kept`), nothing would be left, or still too much.
#[must_use]
pub fn proposal(
    model: &Value,
    violations: &[Violation],
    already: &BTreeSet<String>,
    kept: &BTreeSet<String>,
    caps: &Caps,
) -> Option<Vec<String>> {
    // What the preview has too much of in all is counted again in what would be left.
    let in_all = exceeded(model, caps);
    let mut bad = BTreeSet::new();
    for violation in violations.iter().filter(|violation| !in_all.contains(violation)) {
        match &violation.service {
            Some(service) => {
                bad.insert(service.clone());
            }
            None => bad.extend(users_of_key(model, &violation.key)?),
        }
    }
    let all = with_dependents(model, &bad);
    let mut left = model.clone();
    exclude(&mut left, &all, "", &mut Vec::new());
    let some = services(&left).next().is_some() && exceeded(&left, caps).is_empty();
    (some && !all.is_empty() && all.is_disjoint(kept)).then(|| all.union(already).cloned().collect())
}

/// The services that use what a key such as `networks.front.driver` is about.
fn users_of_key(model: &Value, key: &str) -> Option<BTreeSet<String>> {
    let (kind, rest) = key.split_once('.')?;
    let kind = *SHARED.iter().find(|known| **known == kind)?;
    // Names may hold dots: the longest that is there is meant.
    let name = super::entries(model, kind)
        .map(|(name, _)| name)
        .filter(|name| {
            rest == name.as_str() || rest.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('.'))
        })
        .max_by_key(|name| name.len())?;
    let users = users(model, kind, name);
    (!users.is_empty()).then_some(users)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn model() -> Value {
        json!({
            "services": {
                "proxy": {"volumes": [{"type": "volume", "source": "certs"}, {"type": "volume", "source": "both"}], "networks": {"edge": null}},
                "web": {
                    "depends_on": {"proxy": {"condition": "service_started", "required": false}, "db": {"condition": "service_started", "required": true}},
                    "volumes": [{"type": "volume", "source": "both"}], "networks": {"default": null},
                },
                "db": {"networks": {"default": null}, "secrets": [{"source": "pw"}]},
                "shell": {"network_mode": "service:db"},
                "copy": {"volumes_from": ["shell:ro"], "networks": {"default": null}},
                "linked": {"links": ["copy:alias"], "networks": {"default": null}},
                "alone": {"volumes_from": ["container:db"], "networks": {"default": null}},
            },
            "networks": {"default": {}, "edge": {}},
            "volumes": {"certs": {}, "both": {}},
            "secrets": {"pw": {"environment": "PW"}},
        })
    }

    #[test]
    fn everything_that_cannot_live_without_it_goes_along() {
        let all = |one: &str| with_dependents(&model(), &names(&[one]));
        assert_eq!(all("proxy"), names(&["proxy"]), "an optional dependency is no need");
        assert_eq!(all("db"), names(&["copy", "db", "linked", "shell", "web"]));
        assert_eq!(all("linked"), names(&["linked"]));
        for table in [
            json!({"ipc": "service:db"}),
            json!({"pid": "service:db"}),
            json!({"build": {"additional_contexts": {"x": "service:db"}}}),
        ] {
            let model = json!({"services": {"db": {}, "x": table}});
            assert_eq!(with_dependents(&model, &names(&["db"])), names(&["db", "x"]), "{model}");
        }
    }

    #[test]
    fn what_is_left_out_goes_with_what_only_it_uses() {
        let mut model = model();
        let mut differences = Vec::new();
        let found = exclude(&mut model, &names(&["proxy", "unknown"]), "`exclude`", &mut differences);
        assert_eq!(found, vec![]);
        drop_optional(&mut model, &mut differences);
        assert_eq!(model.pointer("/services/proxy"), None);
        assert_eq!(
            model["services"]["web"]["depends_on"],
            json!({"db": {"condition": "service_started", "required": true}})
        );
        assert_eq!((&model["volumes"], &model["networks"]), (&json!({"both": {}}), &json!({"default": {}})));
        let keys: Vec<_> = differences.iter().map(|difference| difference.key.as_str()).collect();
        assert_eq!(keys, ["networks.edge", "volumes.certs", "services.proxy", "services.web.depends_on"]);
    }

    #[test]
    fn what_cannot_live_without_it_is_told() {
        let found = exclude(&mut model(), &names(&["db"]), "`exclude`", &mut Vec::new());
        let keys: Vec<_> = found.iter().map(|violation| violation.key.as_str()).collect();
        assert_eq!(keys, ["services.shell.network_mode", "services.web.depends_on"]);
        assert!(found[1].instead.contains("required: false"), "{found:?}");
    }

    #[test]
    fn optional_dependencies_that_are_there_stay() {
        let mut model = json!({"services": {
            "a": {"depends_on": {"b": {"required": false}, "gone": {"required": false}, "needed": {"required": true}}},
            "b": {"depends_on": {"gone": {"required": false}}},
        }});
        let mut differences = Vec::new();
        drop_optional(&mut model, &mut differences);
        assert_eq!(
            model["services"]["a"]["depends_on"],
            json!({"b": {"required": false}, "needed": {"required": true}})
        );
        assert_eq!(model["services"]["b"], json!({}));
        assert_eq!(differences.len(), 2);
    }

    #[test]
    fn the_proposal_is_the_smallest_that_works_or_none() {
        let about = |service: &str| Violation::default().of(service);
        let key = |key: &str| Violation { key: key.to_owned(), ..Violation::default() };
        let propose = |violations: &[Violation], kept: &[&str]| {
            proposal(&model(), violations, &names(&["gone"]), &names(kept), &Caps::default())
        };
        let list = |items: &[&str]| Some(items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>());
        assert_eq!(propose(&[about("proxy")], &["web"]), list(&["gone", "proxy"]));
        assert_eq!(
            propose(&[about("copy"), key("networks.edge.external")], &[]),
            list(&["copy", "gone", "linked", "proxy"])
        );
        assert_eq!(
            propose(&[key("secrets.pw.external")], &[]),
            list(&["copy", "db", "gone", "linked", "shell", "web"])
        );
        assert_eq!(propose(&[about("db")], &["web"]), None, "the configuration needs it");
        assert_eq!(propose(&[key("preview.toml:3:1")], &[]), None, "no service is to blame");
        assert_eq!(propose(&[about("proxy"), key("networks.default.driver")], &[]), None, "nothing would be left");
    }

    #[test]
    fn what_is_too_much_in_all_is_counted_again_in_what_would_be_left() {
        let model = model();
        let propose = |containers: usize, about: &[&str]| {
            let caps = Caps { containers, ..Caps::default() };
            let mut found = exceeded(&model, &caps);
            assert_eq!(found.len(), 1, "{found:?}");
            found.extend(about.iter().map(|service| Violation::default().of(service)));
            proposal(&model, &found, &names(&[]), &names(&[]), &caps).map(|list| list.join(" "))
        };
        assert_eq!(propose(2, &["db"]).as_deref(), Some("copy db linked shell web"), "two of seven are left");
        assert_eq!(propose(1, &["db"]), None, "two are left, and one may be");
        assert_eq!(propose(6, &[]), None, "nothing says which of them could go");
    }
}
