//! The whole transformation, in one place and one order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::tree::{self, Placed};
use super::{
    Difference, Guardrails, Isolation, Port, Violation, engine_version, images, isolation, limits, network,
    not_literal, restart, volumes,
};
use crate::engine::ImageFacts;
use crate::ownership::Selector;
use crate::route::{self, RoutedServices};
use crate::runtime::Variables;

/// The key of the proxy's network in a rendered model.
const PROXY_KEY: &str = "preview_proxy";

/// What a stack is rendered from.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// The resolved model, its paths canonical, without [`violations`](super::violations).
    pub model: &'a Value,
    /// The directory of all previews on the host.
    pub base: &'a str,
    /// The application.
    pub app: &'a str,
    /// The preview.
    pub name: &'a str,
    /// The random part of the names of its built images, and of its cache mounts.
    pub image_token: &'a str,
    /// The engine's version; may be empty unless [`needs_engine_version`](super::needs_engine_version) of the model.
    pub engine: &'a str,
    /// Limits.
    pub guardrails: &'a Guardrails,
    /// What containers may not do beyond that.
    pub isolation: &'a Isolation,
    /// The directory of the preview's volume of files on the host.
    pub files_directory: &'a str,
    /// The files of this machine that are in it (mounts, configs, secrets), by their path here.
    pub files: &'a BTreeMap<PathBuf, Placed>,
    /// Ports to publish where there is no proxy.
    pub wanted: &'a BTreeSet<Port>,
    /// The host port of each wanted port, by [`Port::key`]; `None` behind a proxy.
    pub host_ports: Option<&'a BTreeMap<String, u16>>,
    /// The proxy's network, and what each routed service needs there.
    pub proxy: Option<(&'a str, &'a RoutedServices)>,
    /// Services that get all variables as environment.
    pub inject_into: &'a [String],
    /// Those variables.
    pub variables: &'a Variables,
    /// Variables that configs and secrets may name by `environment:`.
    pub passed: &'a Variables,
    /// Services that a route or a question needs: they stay up.
    pub stays: &'a BTreeSet<String>,
    /// What is known of images, by the name in the rendered model.
    pub images: &'a BTreeMap<String, ImageFacts>,
}

/// The preview's stack.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// The model to hand to Compose. May hold secrets.
    pub model: Value,
    /// What differs from the user's files, in order.
    pub differences: Vec<Difference>,
}

/// Renders the preview's stack.
///
/// # Errors
/// Texts that Compose would not take as they stand, and what an engine of this version cannot do.
pub fn render(input: &Input<'_>) -> Result<Rendered, Vec<Violation>> {
    let unknown = engine_version::unknown(input.model, input.engine);
    if !unknown.is_empty() {
        return Err(unknown);
    }
    let mut model = input.model.clone();
    let mut differences = Vec::new();
    let project = model.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let owner = Selector::preview(input.app, input.name).labels_below(input.base);

    tree::place(&mut model, input.files_directory, input.files, input.passed, input.image_token, &mut differences);
    engine_version::drop_unknown(&mut model, input.engine, &mut differences);
    network::own_names(&mut model, &project, &mut differences);
    images::own_images(&mut model, &project, input.image_token, &mut differences);
    let restarts = restart::policies(&model, &input.guardrails.restart, input.stays, input.images);
    volumes::name_anonymous(&mut model, &project, input.images, &mut differences);
    let replicas = super::replicas(&model);
    let proxy_keys = proxy_keys(&model, input.proxy.map(|(name, _)| name));

    let routed = input.proxy.iter().flat_map(|(_, services)| services.keys());
    let in_proxys_network = network::in_proxys_network(&model, routed);

    let names: Vec<String> = super::service_names(&model).into_iter().collect();
    for service in &names {
        let Some(table) = model.get_mut("services").and_then(|s| s.get_mut(service)).and_then(Value::as_object_mut)
        else {
            continue;
        };
        network::own_container_name(service, table, &mut differences);
        network::strip_router_labels(service, table, &mut differences);
        let containers = replicas.get(service).copied().unwrap_or(1);
        network::ports(service, table, input.wanted, input.host_ports, containers, &mut differences);
        if table.remove("pull_policy").is_some() {
            differences.push(Difference {
                key: format!("services.{service}.pull_policy"),
                what: "obeyed before the start, not by Compose".to_owned(),
            });
        }
        let routed = input.proxy.and_then(|(_, services)| services.get(service));
        network::leave_proxy(service, table, &proxy_keys, routed.is_some(), &mut differences);
        if routed.is_some() {
            network::join_proxy(service, table, PROXY_KEY, &mut differences);
        }
        if in_proxys_network.contains(service) {
            network::no_raw_packets(service, table, &mut differences);
        }
        let restart = restarts.get(service).map(String::as_str);
        limits::guard(service, table, input.guardrails, restart, &mut differences);
        isolation::isolate(service, table, input.isolation, &mut differences);
        if input.inject_into.contains(service) {
            inject(service, table, input.variables, &mut differences);
        }
        add_labels(table, &owner);
        if let Some(labels) = routed {
            add_labels(table, labels);
        }
        if let Some(build) = table.get_mut("build").and_then(Value::as_object_mut) {
            add_labels(build, &owner);
            images::own_caches(service, build, input.image_token, &mut differences);
            if build.remove("tags").is_some() {
                differences.push(Difference {
                    key: format!("services.{service}.build.tags"),
                    what: "removed: they would be shared between previews".to_owned(),
                });
            }
        }
    }
    for kind in ["networks", "volumes"] {
        for (_, value) in model.get_mut(kind).and_then(Value::as_object_mut).into_iter().flatten() {
            if let Some(object) = value.as_object_mut()
                && object.get("external").is_none_or(|external| external != &json!(true))
            {
                add_labels(object, &owner);
            }
        }
    }
    if let Some((name, routed)) = input.proxy
        && let Some(top) = model.as_object_mut()
    {
        let networks = top.entry("networks").or_insert_with(|| json!({}));
        if let Some(networks) = networks.as_object_mut() {
            for key in &proxy_keys {
                networks.remove(key);
            }
            if !routed.is_empty() {
                networks.insert(PROXY_KEY.to_owned(), json!({"name": name, "external": true}));
            }
        }
    }
    ensure_default_network(&mut model, &project, &owner);
    if let Some((_, routed)) = input.proxy {
        let own = |service: &str| route::own_name(input.app, input.name, service);
        network::own_words(&mut model, own, |service| routed.contains_key(service), &mut differences);
    }
    isolation::close_networks(&mut model, &project, input.isolation, &owner, &mut differences);
    network::mark(&mut model);
    differences.sort();
    differences.dedup();
    let found = not_literal(&model);
    if found.is_empty() { Ok(Rendered { model, differences }) } else { Err(found) }
}

/// Names under which the file knows the proxy's network.
fn proxy_keys(model: &Value, proxy_network: Option<&str>) -> Vec<String> {
    super::entries(model, "networks")
        .filter(|(_, table)| {
            table.get("external") == Some(&json!(true)) && table.get("name").and_then(Value::as_str) == proxy_network
        })
        .map(|(key, _)| key.clone())
        .collect()
}

/// `docker compose config` leaves the default network out when no service uses it; taking the proxy's away may bring it back.
fn ensure_default_network(model: &mut Value, project: &str, owner: &BTreeMap<String, String>) {
    let used = super::services(model).any(|(_, table)| {
        table.get("networks").and_then(Value::as_object).is_some_and(|networks| networks.contains_key("default"))
    });
    if !used {
        return;
    }
    let Some(top) = model.as_object_mut() else { return };
    let networks = top.entry("networks").or_insert_with(|| json!({}));
    if let Some(networks) = networks.as_object_mut()
        && !networks.contains_key("default")
    {
        networks.insert("default".to_owned(), json!({"name": format!("{project}_default"), "labels": owner}));
    }
}

fn inject(service: &str, table: &mut Map<String, Value>, variables: &Variables, differences: &mut Vec<Difference>) {
    let environment = table.entry("environment").or_insert_with(|| json!({}));
    if environment.is_null() {
        *environment = json!({});
    }
    let Some(environment) = environment.as_object_mut() else { return };
    for (key, value) in variables {
        // Compose interpolates the model once more, so a dollar sign has to be doubled.
        environment.insert(key.clone(), json!(value.expose().replace('$', "$$")));
    }
    if !variables.is_empty() {
        differences.push(Difference {
            key: format!("services.{service}.environment"),
            what: format!("{} set", variables.keys().cloned().collect::<Vec<_>>().join(", ")),
        });
    }
}

fn add_labels(table: &mut Map<String, Value>, labels: &BTreeMap<String, String>) {
    let place = table.entry("labels").or_insert_with(|| json!({}));
    if place.is_null() {
        *place = json!({});
    }
    if let Some(place) = place.as_object_mut() {
        for (key, value) in labels {
            place.insert(key.clone(), json!(value.replace('$', "$$")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn model() -> Value {
        json!({
            "name": "shop_pr-7",
            "services": {
                "api": {
                    "image": "shop:dev", "build": {"context": "/repo/api", "tags": ["shop:x"]}, "container_name": "shop-api",
                    "command": ["serve", "--price", "5$$"],
                    "ports": [{"mode": "ingress", "target": 8000, "published": "8000", "protocol": "tcp"}],
                    "networks": {"default": null, "edge": null},
                    "labels": {"traefik.enable": "true", "team": "shop"},
                    "volumes": [{"type": "bind", "source": "/repo/conf", "target": "/conf", "bind": {"create_host_path": true}}],
                    "environment": {"A": "1"},
                    "depends_on": {"migrate": {"condition": "service_completed_successfully", "required": true}},
                },
                "worker": {"image": "shop:dev", "networks": {"default": {"ipv4_address": "10.1.0.9"}, "edge": null}},
                "migrate": {"image": "shop:dev", "networks": {"default": null}},
                "db": {"image": "postgres:16", "networks": {"default": null}, "restart": "always",
                       "volumes": [{"type": "volume", "source": "data", "target": "/var/lib/postgresql/data"}]},
            },
            "networks": {"default": {"name": "shop_pr-7_default", "ipam": {"config": [{"subnet": "10.1.0.0/24"}]}}, "edge": {"name": "preview-proxy", "external": true}},
            "volumes": {"data": {"name": "shopdata"}},
            "configs": {"c": {"name": "shop_pr-7_c", "file": "/repo/c.conf"}},
            "x-note": {"kept": true},
        })
    }

    fn rendered(proxy: bool) -> Rendered {
        let model = model();
        let placed =
            |id: &str, digest: &str| Placed { id: id.to_owned(), digest: digest.to_owned(), is_file: id == "def" };
        let files = BTreeMap::from([
            (PathBuf::from("/repo/conf"), placed("abc", "d1")),
            (PathBuf::from("/repo/c.conf"), placed("def", "d2")),
        ]);
        let wanted = BTreeSet::from([Port { service: "api".into(), target: 8000, protocol: "tcp".into() }]);
        let host_ports = BTreeMap::from([("api:8000/tcp".to_owned(), 23456)]);
        let labels = BTreeMap::from([("traefik.http.routers.shop_pr-7.rule".to_owned(), "Host(`x`)".to_owned())]);
        let labels = RoutedServices::from([("api".to_owned(), labels)]);
        let variables = Variables::from([("TOKEN".to_owned(), Secret::new("a$b".to_owned()))]);
        render(&Input {
            base: "/opt/previews",
            model: &model,
            app: "shop",
            name: "pr-7",
            image_token: "t0ken",
            engine: "28.5.2",
            guardrails: &Guardrails::default(),
            isolation: &Isolation::default(),
            files_directory: "/var/lib/docker/volumes/files.shop_pr-7/_data",
            files: &files,
            wanted: &wanted,
            host_ports: (!proxy).then_some(&host_ports),
            proxy: proxy.then_some(("preview-proxy", &labels)),
            inject_into: &["api".to_owned()],
            variables: &variables,
            passed: &variables,
            stays: &BTreeSet::new(),
            images: &BTreeMap::new(),
        })
        .unwrap()
    }

    #[test]
    fn behind_a_proxy() {
        insta::assert_json_snapshot!(rendered(true).model);
    }

    #[test]
    fn on_loopback_ports() {
        insta::assert_json_snapshot!(rendered(false).model);
    }

    #[test]
    fn every_difference_is_told() {
        insta::assert_json_snapshot!(rendered(true).differences);
    }

    #[test]
    fn rendering_is_stable() {
        assert_eq!(rendered(true), rendered(true));
    }

    #[test]
    fn what_is_not_declared_does_not_differ() {
        let out = rendered(false).model;
        let before = model();
        for pointer in [
            "/services/api/command",
            "/services/api/depends_on",
            "/services/db/volumes",
            "/services/db/restart",
            "/x-note",
            "/services/api/build/context",
        ] {
            assert_eq!(out.pointer(pointer), before.pointer(pointer), "{pointer}");
        }
    }
}
