//! What keeps previews apart: own networks, volumes and names; host ports; router labels.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{Difference, Port, capability, isolation};

/// Prefixes of labels that tell a proxy what to route: ours alone may stand on a preview.
const ROUTER_LABELS: &[&str] = &["traefik."];

/// Networks and volumes with fixed names get the project's own; fixed subnets and addresses are dropped: two previews cannot have the same, and the
/// host would send what is for others there.
pub(super) fn own_names(model: &mut Value, project: &str, differences: &mut Vec<Difference>) {
    let services = model.get_mut("services").and_then(Value::as_object_mut).into_iter().flatten();
    for (service, table) in services {
        let attachments = table.get_mut("networks").and_then(Value::as_object_mut).into_iter().flatten();
        for (network, attachment) in attachments {
            let Some(attachment) = attachment.as_object_mut() else { continue };
            for key in ["ipv4_address", "ipv6_address", "link_local_ips"] {
                if attachment.remove(key).is_some() {
                    differences.push(Difference {
                        key: format!("services.{service}.networks.{network}.{key}"),
                        what: "removed: two previews cannot have the same address; services find each other by name"
                            .to_owned(),
                    });
                }
            }
        }
    }
    for kind in ["networks", "volumes"] {
        let Some(table) = model.get_mut(kind).and_then(Value::as_object_mut) else { continue };
        for (key, value) in table.iter_mut() {
            if value.is_null() {
                *value = json!({});
            }
            let Some(object) = value.as_object_mut() else { continue };
            if object.get("external").is_some_and(|external| external == &json!(true)) {
                continue;
            }
            let own = format!("{project}_{key}");
            let name = object.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            if name != own {
                object.insert("name".to_owned(), json!(own));
                differences.push(Difference {
                    key: format!("{kind}.{key}.name"),
                    what: format!("`{name}` would be shared between previews: `{own}`"),
                });
            }
            if kind == "networks" && object.get("ipam").is_some_and(|ipam| ipam != &json!({})) {
                object.remove("ipam");
                differences.push(Difference {
                    key: format!("networks.{key}.ipam"),
                    what: "removed: two previews cannot have the same subnet".to_owned(),
                });
            }
        }
    }
}

/// A fixed container name is taken by the first preview; other services may use it as a host name, so it stays as an alias.
pub(super) fn own_container_name(service: &str, table: &mut Map<String, Value>, differences: &mut Vec<Difference>) {
    let Some(Value::String(name)) = table.remove("container_name") else { return };
    let networks = table.entry("networks").or_insert_with(|| json!({ "default": null }));
    for (_, attachment) in networks.as_object_mut().into_iter().flatten() {
        if attachment.is_null() {
            *attachment = json!({});
        }
        let Some(attachment) = attachment.as_object_mut() else { continue };
        if let Some(aliases) = attachment.entry("aliases").or_insert_with(|| json!([])).as_array_mut()
            && !aliases.contains(&json!(name))
        {
            aliases.push(json!(name));
        }
    }
    differences.push(Difference {
        key: format!("services.{service}.container_name"),
        what: format!("`{name}` would be shared between previews: kept as a name on the preview's network only"),
    });
}

/// Whether a label tells a proxy what to route.
pub(super) fn is_router_label(key: &str) -> bool {
    // Traefik does not mind the case.
    ROUTER_LABELS.iter().any(|prefix| key.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)))
}

/// Labels for a proxy that the file brings are taken off, of the containers and of the images that it builds: they could claim an
/// address of others.
pub(super) fn strip_router_labels(service: &str, table: &mut Map<String, Value>, differences: &mut Vec<Difference>) {
    for (path, at) in [("labels", vec!["labels"]), ("build.labels", vec!["build", "labels"])] {
        let (last, way) = (at[at.len() - 1], &at[..at.len() - 1]);
        let table = way.iter().try_fold(&mut *table, |table, key| table.get_mut(*key).and_then(Value::as_object_mut));
        let Some(labels) = table.and_then(|table| table.get_mut(last)).and_then(Value::as_object_mut) else { continue };
        let doomed: Vec<String> = labels.keys().filter(|key| is_router_label(key)).cloned().collect();
        if doomed.is_empty() {
            continue;
        }
        for key in &doomed {
            labels.remove(key);
        }
        differences.push(Difference {
            key: format!("services.{service}.{path}"),
            what: format!("{} removed: routes come from the configuration", doomed.join(", ")),
        });
    }
}

/// Behind a proxy nothing is published; without one each port is published on the loopback address, on the preview's own port.
pub(super) fn ports(
    service: &str,
    table: &mut Map<String, Value>,
    wanted: &BTreeSet<Port>,
    host_ports: Option<&BTreeMap<String, u16>>,
    containers: usize,
    differences: &mut Vec<Difference>,
) {
    let before = table.remove("ports").and_then(|ports| ports.as_array().cloned()).unwrap_or_default();
    let key = format!("services.{service}.ports");
    let mut published = Vec::new();
    if let Some(host_ports) = host_ports {
        for port in wanted.iter().filter(|port| port.service == service) {
            let own: Vec<u16> = port.keys(containers.max(1)).filter_map(|key| host_ports.get(&key)).copied().collect();
            let (Some(first), Some(last)) = (own.first(), own.last()) else { continue };
            // Of a range each container takes one.
            let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
            published.push(json!({
                "mode": "ingress", "host_ip": "127.0.0.1", "target": port.target,
                "published": range, "protocol": port.protocol,
            }));
            differences.push(Difference {
                key: key.clone(),
                what: format!("{}/{} published on 127.0.0.1:{range}", port.target, port.protocol),
            });
        }
    } else if !before.is_empty() {
        differences
            .push(Difference { key, what: format!("{} host ports removed: the proxy leads here", before.len()) });
    }
    if !published.is_empty() {
        table.insert("ports".to_owned(), Value::Array(published));
    }
}

/// Names by which the services of a preview behind a proxy find each other, and the proxy them.
///
/// Compose makes the name of a service an alias on each network that it joins, so on the proxy's network the `api` of all previews has one name, and Docker
/// may well look there first. A link comes before all of that: each routed service gets one to each service of its own preview, by the name that no
/// other preview's service has.
pub(super) fn own_words(
    model: &mut Value,
    own: impl Fn(&str) -> String,
    routed: impl Fn(&str) -> bool,
    differences: &mut Vec<Difference>,
) {
    let names: Vec<String> = super::service_names(model).into_iter().collect();
    let mut links: Vec<Value> = names.iter().map(|name| json!(format!("{}:{name}", own(name)))).collect();
    // Whatever else they are called must not lead to the service of another preview that has that name. A link leads to one service, so a name that
    // several have stays as it is.
    let mut called: BTreeMap<String, BTreeSet<&String>> = BTreeMap::new();
    for (name, table) in super::services(model) {
        let attachments = table.get("networks").and_then(Value::as_object).into_iter().flatten();
        let aliases = attachments.filter_map(|(_, attachment)| attachment.get("aliases")?.as_array()).flatten();
        for other in aliases.chain(table.get("hostname")).filter_map(Value::as_str) {
            called.entry(other.to_owned()).or_default().insert(name);
        }
    }
    called.retain(|other, of| of.len() == 1 && !names.contains(other));
    links.extend(
        called
            .iter()
            .flat_map(|(other, of)| of.iter().map(move |name| (other, name)))
            .map(|(other, name)| json!(format!("{}:{other}", own(name)))),
    );
    for name in &names {
        let Some(table) = model.get_mut("services").and_then(|s| s.get_mut(name)).and_then(Value::as_object_mut) else {
            continue;
        };
        for (_, attachment) in table.get_mut("networks").and_then(Value::as_object_mut).into_iter().flatten() {
            if attachment.is_null() {
                *attachment = json!({});
            }
            if let Some(attachment) = attachment.as_object_mut()
                && let Some(aliases) = attachment.entry("aliases").or_insert_with(|| json!([])).as_array_mut()
            {
                aliases.push(json!(own(name)));
            }
        }
        if routed(name) {
            if let Some(before) = table.entry("external_links").or_insert_with(|| json!([])).as_array_mut() {
                before.extend(links.iter().cloned());
            }
            differences.push(Difference {
                key: format!("services.{name}.external_links"),
                what: "names of services lead to this preview's, though others are in the proxy's network too"
                    .to_owned(),
            });
        }
    }
}

/// The label with the hash of the networks of a service.
const DEFINITIONS: &str = "preview.networks";

/// Marks each service with what its networks are like. Compose makes a network anew whose definition changed, and containers that it only starts again are not
/// found by name there; those whose label changed are recreated.
pub(super) fn mark(model: &mut Value) {
    let definitions: BTreeMap<String, String> = super::entries(model, "networks")
        .filter(|(_, table)| table.get("external") != Some(&json!(true)))
        .map(|(key, table)| {
            let defined: Map<String, Value> = table
                .iter()
                .filter(|(key, _)| *key != "labels")
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            (key.clone(), Value::Object(defined).to_string())
        })
        .collect();
    for (_, table) in model.get_mut("services").and_then(Value::as_object_mut).into_iter().flatten() {
        let joined = table.get("networks").and_then(Value::as_object).into_iter().flatten();
        let mut hash = Sha256::new();
        let mut any = false;
        for (key, definition) in joined.filter_map(|(key, _)| definitions.get_key_value(key)) {
            any = true;
            hash.update(format!("{key}\0{definition}\0"));
        }
        let hash: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        if any && let Some(labels) = table.get_mut("labels").and_then(Value::as_object_mut) {
            labels.insert(DEFINITIONS.to_owned(), json!(hash));
        }
    }
}

/// Attaches a routed service to the proxy's network.
pub(super) fn join_proxy(service: &str, table: &mut Map<String, Value>, key: &str, differences: &mut Vec<Difference>) {
    let networks = table.entry("networks").or_insert_with(|| json!({ "default": null }));
    if let Some(networks) = networks.as_object_mut() {
        networks.insert(key.to_owned(), json!({}));
        differences.push(Difference {
            key: format!("services.{service}.networks"),
            what: "joins the proxy's network".to_owned(),
        });
    }
    // Compose gives it to one of the networks, and that may be the proxy's, where others have theirs.
    if table.remove("mac_address").is_some() {
        differences.push(Difference {
            key: format!("services.{service}.mac_address"),
            what: "removed: two previews cannot have the same address in the proxy's network; one of a network of its own can be kept, under \
                   `networks`"
                .to_owned(),
        });
    }
}

/// The services whose containers are in the proxy's network: those with a route, and those that share the network of one of them.
pub(super) fn in_proxys_network<'a>(model: &Value, routed: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
    let mut there: BTreeSet<String> = routed.cloned().collect();
    loop {
        let shares = |table: &Map<String, Value>| {
            let mode = table.get("network_mode").and_then(Value::as_str).unwrap_or_default();
            mode.strip_prefix("service:").is_some_and(|other| there.contains(other))
        };
        let more = super::services(model).filter(|(name, table)| !there.contains(*name) && shares(table));
        let more: Vec<String> = more.map(|(name, _)| name.clone()).collect();
        if more.is_empty() {
            return there;
        }
        there.extend(more);
    }
}

/// Takes `NET_RAW` from a service in the proxy's network: with it a container can answer for the address of another preview's.
pub(super) fn no_raw_packets(service: &str, table: &mut Map<String, Value>, differences: &mut Vec<Difference>) {
    const RAW: &str = "NET_RAW";
    let is = |value: &Value, name: &str| value.as_str().is_some_and(|given| capability::is(given, name));
    if let Some(added) = table.get_mut("cap_add").and_then(Value::as_array_mut) {
        // The base branch allowed that.
        if added.iter().any(|value| is(value, "ALL")) {
            return;
        }
        added.retain(|value| !is(value, RAW));
    }
    let Some(dropped) = isolation::list(table, "cap_drop") else { return };
    if !dropped.iter().any(|value| is(value, "ALL") || is(value, RAW)) {
        dropped.push(json!(RAW));
    }
    differences.push(Difference {
        key: format!("services.{service}.cap_drop"),
        what: format!("{RAW} dropped: in the proxy's network a container could answer for another preview's address"),
    });
}

/// Takes a service off the proxy's network, under whatever names the file knows that; a routed one is attached again by [`join_proxy`].
pub(super) fn leave_proxy(
    service: &str,
    table: &mut Map<String, Value>,
    keys: &[String],
    routed: bool,
    differences: &mut Vec<Difference>,
) {
    let Some(networks) = table.get_mut("networks").and_then(Value::as_object_mut) else { return };
    for key in keys {
        if networks.remove(key).is_some() && !routed {
            differences.push(Difference {
                key: format!("services.{service}.networks"),
                what: "leaves the proxy's network: it has no route".to_owned(),
            });
        }
    }
    if networks.is_empty() {
        networks.insert("default".to_owned(), Value::Null);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(networks: Value) -> [Value; 3] {
        let service = |network: &str| json!({"labels": {}, "networks": {network: null}});
        let mut model = json!({
            "services": {"web": service("default"), "db": service("back"), "edge": service("proxy")},
            "networks": networks,
        });
        mark(&mut model);
        ["web", "db", "edge"].map(|name| model["services"][name]["labels"][DEFINITIONS].clone())
    }

    #[test]
    fn who_shares_the_network_of_a_routed_service_is_in_the_proxys_too() {
        let mode = |other: &str| json!({"network_mode": format!("service:{other}")});
        let model = json!({"services": {"a": mode("b"), "b": mode("web"), "c": mode("db"), "db": {}, "web": {}}});
        let there = in_proxys_network(&model, ["web".to_owned()].iter());
        assert_eq!(there.into_iter().collect::<Vec<_>>(), ["a", "b", "web"]);
    }

    #[test]
    fn no_container_in_the_proxys_network_sends_raw_packets() {
        for (given, expected) in [
            (json!({}), json!({"cap_drop": ["NET_RAW"]})),
            (
                json!({"cap_add": ["cap_net_raw", "CHOWN"], "cap_drop": ["KILL"]}),
                json!({"cap_add": ["CHOWN"], "cap_drop": ["KILL", "NET_RAW"]}),
            ),
            (json!({"cap_drop": ["all"]}), json!({"cap_drop": ["all"]})),
            (json!({"cap_add": ["ALL"]}), json!({"cap_add": ["ALL"]})),
        ] {
            let mut service = given;
            no_raw_packets("web", service.as_object_mut().unwrap(), &mut Vec::new());
            assert_eq!(service, expected);
        }
    }

    #[test]
    fn an_address_that_may_be_anothers_does_not_get_into_the_proxys_network() {
        let own = json!({"back": {"mac_address": "02:00:00:00:00:01"}});
        let mut service = json!({"mac_address": "02:00:00:00:00:02", "networks": own});
        let mut differences = Vec::new();
        join_proxy("web", service.as_object_mut().unwrap(), "proxy", &mut differences);
        assert_eq!(service, json!({"networks": {"back": own["back"], "proxy": {}}}));
        assert_eq!(differences[1].key, "services.web.mac_address");
    }

    #[test]
    fn services_are_marked_with_what_their_own_networks_are_like() {
        let with = |default: Value, back: Value| {
            labels(json!({"default": default, "back": back, "proxy": {"name": "proxy", "external": true}}))
        };
        let plain = with(json!({"name": "d"}), json!({"name": "b"}));
        assert!(plain[0].is_string() && plain[1].is_string() && plain[2].is_null(), "{plain:?}");
        let changed = with(json!({"name": "d", "driver_opts": {"mtu": "1400"}}), json!({"name": "b"}));
        assert_ne!(changed[0], plain[0], "its network is another one");
        assert_eq!(changed[1], plain[1], "the network of others is none of its business");
        let labelled = with(json!({"name": "d", "labels": {"a": "b"}}), json!({"name": "b"}));
        assert_eq!(labelled, plain);
    }
}
