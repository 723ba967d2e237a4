//! What a stack asks of the engine that only newer ones can do. Compose refuses some of it while it starts the stack, and an engine leaves the rest
//! out without a word, so both are found before anything is changed. Pure.

use std::fmt;

use serde_json::{Map, Value};

use super::{Difference, Violation};

/// Docker's version: major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u64, u64);

/// Checking more often while a service starts.
const START_INTERVAL: Version = Version(25, 0);
/// Several MAC addresses for one container.
const MAC_ADDRESSES: Version = Version(25, 0);
/// Mounting a part of a volume.
const SUBPATH: Version = Version(26, 0);
/// Mounting an image.
const IMAGE: Version = Version(28, 0);
/// Naming a network's interface.
const INTERFACE_NAME: Version = Version(28, 1);

impl Version {
    /// `None` where it says nothing: that is taken for a new one.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|part| {
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..digits].parse().ok()
        });
        Some(Self(numbers.next()??, numbers.next().flatten().unwrap_or_default()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(major, 0) => write!(f, "Docker {major}"),
            Self(major, minor) => write!(f, "Docker {major}.{minor}"),
        }
    }
}

/// Whether a stack of this model depends on the engine's version.
#[must_use]
pub fn needs_engine_version(model: &Value) -> bool {
    super::services(model).any(|(_, table)| {
        !asks(table).is_empty() || table.get("healthcheck").is_some_and(|check| check.get("start_interval").is_some())
    })
}

/// Drops what an engine of this version does not know and a preview can do without.
pub(super) fn drop_unknown(model: &mut Value, version: &str, differences: &mut Vec<Difference>) {
    if Version::parse(version).is_none_or(|engine| engine >= START_INTERVAL) {
        return;
    }
    for (service, table) in model.get_mut("services").and_then(Value::as_object_mut).into_iter().flatten() {
        let Some(check) = table.get_mut("healthcheck").and_then(Value::as_object_mut) else { continue };
        if check.remove("start_interval").is_some() {
            differences.push(Difference {
                key: format!("services.{service}.healthcheck.start_interval"),
                what: format!(
                    "dropped: it needs {START_INTERVAL}, and the engine is {version}; `interval` counts alone"
                ),
            });
        }
    }
}

/// What an engine of this version does not know and the stack would not be the same without.
pub(super) fn unknown(model: &Value, version: &str) -> Vec<Violation> {
    let Some(engine) = Version::parse(version) else { return vec![] };
    super::services(model)
        .flat_map(|(service, table)| asks(table).into_iter().map(move |ask| (service, ask)))
        .filter(|(_, ask)| engine < ask.since)
        .map(|(service, ask)| {
            let why = format!("{} needs {}, and the engine is {version}", ask.what, ask.since);
            let instead = "update the engine on the host, or remove it from the preview's files";
            Violation { value: ask.value, ..Violation::input(format!("services.{service}.{}", ask.key), why, instead) }
                .of(service)
        })
        .collect()
}

/// Something that not every engine can do.
struct Ask {
    key: &'static str,
    value: Option<String>,
    what: &'static str,
    since: Version,
}

fn asks(table: &Map<String, Value>) -> Vec<Ask> {
    let mut found = Vec::new();
    let text = |value: Option<&Value>| value.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    for mount in table.get("volumes").and_then(Value::as_array).into_iter().flatten() {
        if let Some(subpath) = text(mount.pointer("/volume/subpath")) {
            found.push(Ask { key: "volumes", value: Some(subpath), what: "`subpath`", since: SUBPATH });
        }
        if mount["type"] == "image" {
            let value = text(mount.get("source"));
            found.push(Ask { key: "volumes", value, what: "a mount of an image", since: IMAGE });
        }
    }
    let networks =
        || table.get("networks").and_then(Value::as_object).into_iter().flatten().map(|(_, network)| network);
    for name in networks().filter_map(|network| text(network.get("interface_name"))) {
        found.push(Ask { key: "networks", value: Some(name), what: "`interface_name`", since: INTERFACE_NAME });
    }
    if networks().filter(|network| text(network.get("mac_address")).is_some()).count() > 1 {
        let what = "`mac_address` of several networks";
        found.push(Ask { key: "networks", value: None, what, since: MAC_ADDRESSES });
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_start_interval_goes_where_the_engine_does_not_know_it() {
        let check = json!({"test": ["CMD", "true"], "interval": "10s", "start_interval": "2s"});
        let model =
            json!({"services": {"a": {"healthcheck": check}, "b": {}, "c": {"healthcheck": {"interval": "1s"}}}});
        assert!(needs_engine_version(&model) && !needs_engine_version(&json!({"services": {"b": {}}})));
        let dropped = |version: &str| {
            let (mut model, mut differences) = (model.clone(), Vec::new());
            drop_unknown(&mut model, version, &mut differences);
            assert_eq!(needs_engine_version(&model), differences.is_empty(), "{version}");
            assert_eq!(model["services"]["a"]["healthcheck"]["interval"], "10s");
            differences.into_iter().map(|difference| difference.key).collect::<Vec<_>>()
        };
        for old in ["20.10.24+dfsg1", "24.0.9", "23"] {
            assert_eq!(dropped(old), ["services.a.healthcheck.start_interval"], "{old}");
        }
        for new in ["25.0.0", "28.5.2+dfsg4", "29.0.0-rc.1", "", "dev"] {
            assert_eq!(dropped(new), Vec::<String>::new(), "{new}");
        }
    }

    #[test]
    fn what_an_older_engine_cannot_do_is_told_with_the_version_that_can() {
        let told = |table: Value, version: &str| {
            let model = json!({"services": {"a": table}});
            assert!(needs_engine_version(&model), "{model}");
            unknown(&model, version).into_iter().map(|violation| violation.to_string()).collect::<Vec<_>>()
        };
        let mount = |mount: Value| json!({"volumes": [mount]});
        let subpath = mount(json!({"type": "volume", "source": "v", "target": "/x", "volume": {"subpath": "sub"}}));
        let instead = "update the engine on the host, or remove it from the preview's files";
        assert_eq!(
            told(subpath.clone(), "25.0.3"),
            [format!("services.a.volumes: `sub`: `subpath` needs Docker 26, and the engine is 25.0.3; {instead}")]
        );
        let image = mount(json!({"type": "image", "source": "x:1", "target": "/x"}));
        let interface = json!({"networks": {"n": {"interface_name": "eth7"}, "m": null}});
        let addresses =
            json!({"networks": {"n": {"mac_address": "02:42:ac:11:00:03"}, "m": {"mac_address": "02:42:ac:11:00:04"}}});
        for (table, before, since) in [
            (subpath, "25.0.9", "26.0.0"),
            (image, "27.5.1", "28.0.0"),
            (interface, "28.0.4", "28.1.0-rc.1"),
            (addresses, "24.0.9", "25.0.0"),
        ] {
            assert_eq!(told(table.clone(), before).len(), 1, "{table}");
            assert_eq!(told(table.clone(), "20.10.24+dfsg1").len(), 1, "{table}");
            for new in [since, "29.0", "dev", ""] {
                assert_eq!(told(table.clone(), new), Vec::<String>::new(), "{table} {new}");
            }
        }
        let usual = json!({"services": {"a": {
            "volumes": [{"type": "volume", "source": "v", "target": "/x", "volume": {}}],
            "networks": {"n": {"mac_address": "02:42:ac:11:00:03"}, "m": {}},
        }}});
        assert!(!needs_engine_version(&usual));
    }
}
