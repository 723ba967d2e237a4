//! How much of each kind one preview may have: a pull request cannot fill the host with containers, networks or volumes. Pure.

use serde_json::{Value, json};

use super::{Violation, published_ports, replicas};

/// At most so many of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Containers of the preview, all replicas counted.
    pub containers: usize,
    /// Containers of one service.
    pub replicas: usize,
    /// Networks that are made for the preview.
    pub networks: usize,
    /// Volumes that are made for the preview; those that only an image declares are not counted.
    pub volumes: usize,
    /// Ports that the Compose files publish.
    pub ports: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self { containers: 40, replicas: 10, networks: 10, volumes: 50, ports: 50 }
    }
}

/// What the model has more of than a preview may have.
#[must_use]
pub fn exceeded(model: &Value, caps: &Caps) -> Vec<Violation> {
    let more = |key: String, found: usize, what: &str, setting: &str, most: usize| {
        (found > most).then(|| Violation {
            key,
            why: format!("{found} {what}, and a preview may have {most}"),
            instead: format!("have fewer, or raise `[guardrails] {setting}` in the base branch's configuration"),
            ..Violation::default()
        })
    };
    let counts = replicas(model);
    let mut found: Vec<Violation> = counts
        .iter()
        .filter_map(|(service, count)| {
            let table = model.pointer(&format!("/services/{}", service.replace('~', "~0").replace('/', "~1")))?;
            let key = if table.pointer("/deploy/replicas").is_some() { "deploy.replicas" } else { "scale" };
            let key = format!("services.{service}.{key}");
            more(key, *count, "containers of one service", "max_replicas", caps.replicas)
        })
        .collect();
    let containers = counts.values().fold(0, |sum: usize, count| sum.saturating_add(*count));
    let own = |kind: &str| {
        super::entries(model, kind).filter(|(_, table)| table.get("external") != Some(&json!(true))).count()
    };
    // Volumes without a name are made too, one for each mount.
    let unnamed = |mount: &&Value| mount["type"] == "volume" && mount["source"].as_str().is_none_or(str::is_empty);
    let unnamed = super::services(model)
        .map(|(service, table)| {
            let mounts = table.get("volumes").and_then(Value::as_array);
            mounts.map_or(0, |mounts| mounts.iter().filter(unnamed).count()).saturating_mul(counts[service])
        })
        .fold(0, usize::saturating_add);
    let volumes = own("volumes").saturating_add(unnamed);
    found.extend(more("services".to_owned(), containers, "containers in all", "max_containers", caps.containers));
    found.extend(more("networks".to_owned(), own("networks"), "networks", "max_networks", caps.networks));
    found.extend(more("volumes".to_owned(), volumes, "volumes", "max_volumes", caps.volumes));
    let ports = published_ports(model).len();
    found.extend(more("services.*.ports".to_owned(), ports, "published ports", "max_ports", caps.ports));
    found
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    fn keys(model: &Value) -> Vec<String> {
        exceeded(model, &Caps::default()).into_iter().map(|violation| violation.key).collect()
    }

    fn many(number: usize, value: &Value) -> Map<String, Value> {
        (0..number).map(|index| (format!("x{index}"), value.clone())).collect()
    }

    #[test]
    fn what_is_too_much_is_named_with_the_setting_that_allows_it() {
        let replicas = json!({"services": {"web": {"deploy": {"replicas": 100_000}}, "api": {"scale": 11}}});
        assert_eq!(keys(&replicas), ["services.api.scale", "services.web.deploy.replicas", "services"]);
        let said = &exceeded(&replicas, &Caps::default())[1];
        assert_eq!(said.why, "100000 containers of one service, and a preview may have 10");
        assert!(said.instead.contains("`[guardrails] max_replicas`"), "{}", said.instead);
        assert_eq!(keys(&json!({"services": {"web": {"deploy": {"replicas": u64::MAX}}, "b": {}}})).len(), 2);
        assert_eq!(keys(&json!({"services": many(41, &json!({}))})), ["services"]);
        assert_eq!(keys(&json!({"networks": many(11, &json!({}))})), ["networks"]);
        assert_eq!(keys(&json!({"volumes": many(51, &json!({}))})), ["volumes"]);
        let mounts: Vec<Value> = (0..6).map(|n| json!({"type": "volume", "target": format!("/{n}")})).collect();
        assert_eq!(keys(&json!({"services": {"a": {"scale": 9, "volumes": mounts}}})), ["volumes"]);
        let ports: Vec<Value> = (1..60).map(|port| json!({"target": port, "protocol": "tcp"})).collect();
        assert_eq!(keys(&json!({"services": {"a": {"ports": ports}}})), ["services.*.ports"]);
    }

    #[test]
    fn what_is_usual_is_fine_and_what_is_not_made_does_not_count() {
        let external = json!({"external": true});
        let model = json!({
            "services": many(40, &json!({"image": "x"})),
            "networks": many(30, &external),
            "volumes": many(100, &external),
        });
        assert_eq!(keys(&model), Vec::<String>::new());
    }
}
