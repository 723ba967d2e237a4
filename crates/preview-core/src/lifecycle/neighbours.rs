//! Whether what already has the names of a preview's objects is the preview's own. Compose finds containers, networks and volumes by
//! project and by name and takes them over, whoever made them: so that is asked before anything is changed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Error, Refusal, tree};
use crate::engine::{Inventory, Object};
use crate::ownership::{self, Selector};
use crate::project::Target;
use crate::stack;

/// Refuses the objects of others: another application's, those of another base directory, or somebody's own Compose project.
///
/// `wanted` is the rendered stack.
pub(super) fn check(target: &Target, base: &str, wanted: &Value, found: &Inventory) -> Result<(), Error> {
    let own = Selector::preview(&target.app, &target.name).below(base);
    let refuse = |what: String, labels: &BTreeMap<String, String>| -> Result<(), Error> {
        let by = format!("{what}, which belongs to {}", owner(labels));
        Err(Refusal::NameTaken { name: format!("of the Compose project {}", target.project), by }.into())
    };
    if let Some(container) = found.containers.iter().find(|container| !own.matches(&container.labels)) {
        return refuse(format!("the container {}", container.name), &container.labels);
    }
    for (kind, key, objects) in [("network", "networks", &found.networks), ("volume", "volumes", &found.volumes)] {
        let files = tree::volume(target);
        let of_files = (key == "volumes").then_some(files.as_str());
        let names: BTreeSet<&str> = stack::entries(wanted, key)
            .filter(|(_, table)| table.get("external") != Some(&json!(true)))
            .filter_map(|(_, table)| table.get("name").and_then(Value::as_str))
            .chain(of_files)
            .collect();
        let others = |object: &&Object| names.contains(object.name.as_str()) && !own.matches(&object.labels);
        if let Some(object) = objects.iter().find(others) {
            return refuse(format!("the {kind} {}", object.name), &object.labels);
        }
    }
    Ok(())
}

/// Refuses a preview's own network as the proxy's: whoever joins it could talk to all services of that preview.
///
/// `projects` are the Compose projects of the previews on the host.
pub(super) fn check_proxy(network: Option<&str>, found: &Inventory, projects: &BTreeSet<String>) -> Result<(), Error> {
    let Some(object) = found.networks.iter().find(|object| Some(object.name.as_str()) == network) else {
        return Ok(());
    };
    let labels = &object.labels;
    let of_preview = labels.contains_key(ownership::APP) || labels.contains_key(ownership::NAME);
    let of_project = labels.get(ownership::COMPOSE_PROJECT).is_some_and(|project| projects.contains(project));
    if !of_preview && !of_project {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "`proxy.network`: `{}` is the network of {}, which other services must not join; name the network that the proxy and \
         nothing else is in (default: `preview-proxy`)",
        object.name,
        owner(labels)
    )))
}

/// Whose an object with these labels is, for people.
fn owner(labels: &BTreeMap<String, String>) -> String {
    let get = |key: &str| labels.get(key).map(|value| value.replace(char::is_control, "?"));
    match (get(ownership::APP), get(ownership::NAME), get(ownership::COMPOSE_PROJECT)) {
        (Some(app), Some(name), _) => {
            let base = get(ownership::BASE).map(|base| format!(" (base directory {base})")).unwrap_or_default();
            format!("the preview {name} of {app}{base}")
        }
        (_, _, Some(project)) => format!("the Compose project {project}, which is no preview"),
        _ => "somebody else: it has no labels of a preview".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Container, ContainerState, Health};
    use crate::ownership::COMPOSE_PROJECT;

    type Labels = BTreeMap<String, String>;

    fn target() -> Target {
        Target { app: "shop".into(), name: "pr-7".into(), project: "shop_pr-7".into() }
    }

    fn of(app: &str, name: &str, base: &str) -> Labels {
        let mut labels = Selector::preview(app, name).labels_below(base);
        labels.insert(COMPOSE_PROJECT.to_owned(), "shop_pr-7".to_owned());
        labels
    }

    fn strangers() -> Labels {
        Labels::from([(COMPOSE_PROJECT.to_owned(), "shop_pr-7".to_owned())])
    }

    fn object(name: &str, labels: Labels) -> Object {
        Object { id: name.to_owned(), name: name.to_owned(), labels }
    }

    fn container(labels: Labels) -> Inventory {
        let container = Container {
            id: "c".into(),
            name: "shop_pr-7_web_1".into(),
            image: String::new(),
            image_id: String::new(),
            state: ContainerState::Running,
            health: Health::None,
            labels,
            created: 0,
            ports: vec![],
            networks: BTreeMap::new(),
            volumes: BTreeSet::new(),
        };
        Inventory { containers: vec![container], ..Inventory::default() }
    }

    fn wanted() -> Value {
        json!({
            "networks": {"default": {"name": "shop_pr-7_default"}, "proxy": {"name": "preview-proxy", "external": true}},
            "volumes": {"data": {"name": "shop_pr-7_data"}},
        })
    }

    fn checked(found: &Inventory) -> Result<(), String> {
        check(&target(), "/opt/previews", &wanted(), found).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        for (labels, by) in [
            (of("shop", "pr-7", "/srv/others"), "the preview pr-7 of shop (base directory /srv/others)"),
            (of("blog", "pr-7", "/opt/previews"), "the preview pr-7 of blog"),
            (of("shop", "pr-8", "/opt/previews"), "the preview pr-8 of shop"),
            (strangers(), "the Compose project shop_pr-7, which is no preview"),
            (Labels::new(), "somebody else"),
        ] {
            for found in [
                container(labels.clone()),
                Inventory { networks: vec![object("shop_pr-7_default", labels.clone())], ..Inventory::default() },
                Inventory { volumes: vec![object("shop_pr-7_data", labels.clone())], ..Inventory::default() },
            ] {
                let why = checked(&found).unwrap_err();
                assert!(why.contains(by) && why.contains("of the Compose project shop_pr-7"), "{why}");
            }
        }
    }

    #[test]
    fn what_is_ours_is_taken_over() {
        let ours = of("shop", "pr-7", "/opt/previews");
        let older = Selector::preview("shop", "pr-7").labels();
        for labels in [ours, older] {
            let networks = vec![object("shop_pr-7_default", labels.clone())];
            let volumes = vec![object("shop_pr-7_data", labels.clone())];
            let found = Inventory { networks, volumes, ..container(labels) };
            assert_eq!(checked(&found), Ok(()));
        }
        let unused = vec![object("shop_pr-7_old", Labels::new())];
        assert_eq!(
            checked(&Inventory { volumes: unused, ..Inventory::default() }),
            Ok(()),
            "the stack does not name it"
        );
    }

    #[test]
    fn the_proxys_network_is_no_previews() {
        let project = |name: &str| Labels::from([(COMPOSE_PROJECT.to_owned(), name.to_owned())]);
        let projects = BTreeSet::from(["blog_pr-1".to_owned()]);
        for (labels, fine) in [
            (of("blog", "pr-1", "/opt/previews"), false),
            (of("blog", "pr-1", "/srv/others"), false),
            (project("blog_pr-1"), false),
            (project("traefik"), true),
            (Labels::new(), true),
        ] {
            let found = Inventory { networks: vec![object("edge", labels.clone())], ..Inventory::default() };
            assert_eq!(check_proxy(Some("edge"), &found, &projects).is_ok(), fine, "{labels:?}");
            assert!(check_proxy(Some("other"), &found, &projects).is_ok(), "{labels:?}");
            assert!(check_proxy(None, &found, &projects).is_ok(), "{labels:?}");
        }
    }
}
