//! Anonymous volumes: those that a file mounts without a name, and those that images declare. They get names and labels, so that they are counted, found
//! again after an update that failed, and gone with their preview.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::Difference;
use crate::engine::ImageFacts;

/// Longest part of a path in a volume's name.
const PART: usize = 40;

/// Gives the anonymous volumes of services with one container names of their own.
pub(super) fn name_anonymous(
    model: &mut Value,
    project: &str,
    images: &BTreeMap<String, ImageFacts>,
    differences: &mut Vec<Difference>,
) {
    let names = super::images(model);
    let replicas = super::replicas(model);
    let mut made = BTreeMap::new();
    for (service, table) in model.get_mut("services").and_then(Value::as_object_mut).into_iter().flatten() {
        // Containers of one service would share what is each one's own.
        if replicas.get(service).is_some_and(|count| *count > 1) {
            continue;
        }
        let Some(table) = table.as_object_mut() else { continue };
        let mut note = |path: &str, key: &str, whose: &str| {
            differences.push(Difference {
                key: format!("services.{service}.volumes"),
                what: format!("`{path}`, a volume {whose}, is the preview's volume `{key}`"),
            });
            made.insert(key.to_owned(), json!({"name": format!("{project}_{key}")}));
        };
        for mount in table.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(mount) = mount.as_object_mut().filter(|mount| is_anonymous(mount)) else { continue };
            let path = mount.get("target").and_then(Value::as_str).map(normal_path).unwrap_or_default();
            let key = key(service, &path);
            mount.insert("source".to_owned(), json!(key));
            note(&path, &key, "without a name");
        }
        // What another service mounts may be the volumes of the image.
        if table.get("volumes_from").and_then(Value::as_array).is_some_and(|from| !from.is_empty()) {
            continue;
        }
        let taken = mounted(table);
        let facts = names.get(service).and_then(|image| images.get(image));
        let free: Vec<String> = facts
            .into_iter()
            .flat_map(|facts| &facts.volumes)
            .map(|path| normal_path(path))
            .filter(|path| !taken.contains(path))
            .collect();
        for path in free {
            let mounts = table.entry("volumes").or_insert_with(|| json!([]));
            if mounts.is_null() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            let key = key(service, &path);
            mounts.push(json!({"type": "volume", "source": key, "target": path, "volume": {}}));
            note(&path, &key, "of its image");
        }
    }
    if made.is_empty() {
        return;
    }
    let Some(top) = model.as_object_mut() else { return };
    let volumes = top.entry("volumes").or_insert_with(|| json!({}));
    if volumes.is_null() {
        *volumes = json!({});
    }
    if let Some(volumes) = volumes.as_object_mut() {
        volumes.extend(made);
    }
}

/// A path in a container in one spelling.
fn normal_path(path: &str) -> String {
    super::normal(Path::new(path)).to_string_lossy().into_owned()
}

fn is_anonymous(mount: &Map<String, Value>) -> bool {
    mount.get("type").and_then(Value::as_str) == Some("volume")
        && mount.get("source").and_then(Value::as_str).is_none_or(str::is_empty)
}

/// Paths at which a service mounts something.
fn mounted(table: &Map<String, Value>) -> BTreeSet<String> {
    let mounts = table.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let mounts = mounts.filter_map(|mount| mount.get("target")?.as_str());
    let tmpfs = table.get("tmpfs");
    let tmpfs = tmpfs
        .and_then(Value::as_str)
        .into_iter()
        .chain(tmpfs.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str));
    mounts.chain(tmpfs.map(|entry| entry.split(':').next().unwrap_or(entry))).map(normal_path).collect()
}

/// Name of a volume in the model: readable, and by its hash the same for no two paths.
fn key(service: &str, path: &str) -> String {
    let hash: String = Sha256::digest(path).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let part: String = path.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    let part: String = part.trim_matches('-').chars().take(PART).collect();
    format!("{service}-{part}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(service: Value, volumes: &[&str]) -> (Value, Vec<Difference>) {
        let mut model = json!({"name": "shop_pr-7", "services": {"web": service}});
        let volumes = volumes.iter().map(|path| (*path).to_owned()).collect();
        let images = BTreeMap::from([("x".to_owned(), ImageFacts { volumes, exposes: false })]);
        let mut differences = Vec::new();
        name_anonymous(&mut model, "shop_pr-7", &images, &mut differences);
        (model, differences)
    }

    fn mounts(model: &Value) -> Vec<(String, String)> {
        let list = model["services"]["web"]["volumes"].as_array().cloned().unwrap_or_default();
        let text = |mount: &Value, key: &str| mount[key].as_str().unwrap_or_default().to_owned();
        list.iter().map(|mount| (text(mount, "source"), text(mount, "target"))).collect()
    }

    #[test]
    fn mounts_without_a_name_and_those_of_the_image_get_one() {
        let anonymous = json!({"type": "volume", "target": "/app/node_modules", "volume": {}});
        let (model, differences) = named(json!({"image": "x", "volumes": [anonymous]}), &["/data/"]);
        let found = mounts(&model);
        assert_eq!(found[0].1, "/app/node_modules");
        assert_eq!(found[1].1, "/data");
        assert!(found[0].0.starts_with("web-app-node_modules-"), "{found:?}");
        for (source, _) in &found {
            assert_eq!(model["volumes"][source]["name"], format!("shop_pr-7_{source}"));
        }
        assert_eq!(differences.len(), 2);
        // The same again: nothing is anonymous any more.
        let (again, _) = named(model["services"]["web"].clone(), &["/data"]);
        assert_eq!(mounts(&again), found);
    }

    #[test]
    fn where_something_is_mounted_the_image_has_no_volume() {
        for table in [
            json!({"image": "x", "volumes": [{"type": "bind", "source": "/a", "target": "/data/"}]}),
            json!({"image": "x", "volumes": [{"type": "volume", "source": "data", "target": "/data"}]}),
            json!({"image": "x", "tmpfs": ["/data:size=1m"]}),
            json!({"image": "x", "tmpfs": "/data"}),
            json!({"image": "x", "volumes_from": ["db"]}),
        ] {
            let (model, differences) = named(table.clone(), &["/data"]);
            assert_eq!(model["services"]["web"], table);
            assert!(differences.is_empty(), "{differences:?}");
        }
    }

    #[test]
    fn several_containers_of_a_service_keep_their_own() {
        let table = json!({"image": "x", "deploy": {"replicas": 3}, "volumes": [{"type": "volume", "target": "/a"}]});
        let (model, differences) = named(table.clone(), &["/data"]);
        assert_eq!(model["services"]["web"], table);
        assert!(differences.is_empty(), "{differences:?}");
    }

    #[test]
    fn paths_that_look_alike_have_volumes_of_their_own() {
        let (model, _) = named(json!({"image": "x"}), &["/a-b", "/a/b"]);
        let found = mounts(&model);
        assert_ne!(found[0].0, found[1].0);
    }
}
