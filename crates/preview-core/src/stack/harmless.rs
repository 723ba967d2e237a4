//! What real files ask for that a preview has no use for, and that harms nobody if it is dropped or replaced: files of the clock, logging drivers of other
//! systems, caches of registries, attestations. Everything that is changed is declared.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Allowance, Difference, Isolation, capability, normal};

/// Devices that hold nothing: the same on every machine.
const NULL: [&str; 2] = ["/dev/null", "/dev/zero"];
/// Logging drivers whose logs can be shown.
const LOGGING: [&str; 4] = ["", "json-file", "local", "none"];
/// Keys of a build that leave the image as it is.
const CACHES: [&str; 2] = ["cache_from", "cache_to"];
const ATTESTATIONS: [&str; 3] = ["attest", "provenance", "sbom"];

/// Whether a path of a mount is a device that holds nothing.
pub(super) fn is_null(source: &str) -> bool {
    NULL.contains(&source)
}

/// Whether a path says nothing but which time zone the machine is in.
fn is_clock(source: &str) -> bool {
    let path = normal(Path::new(source));
    let zones = Path::new("/usr/share/zoneinfo");
    path == Path::new("/etc/localtime") || path == Path::new("/etc/timezone") || path.starts_with(zones)
}

/// Drops or replaces what is harmless in a resolved model. What the base branch allows stays as it is.
pub fn drop_harmless(
    model: &mut Value,
    allowed: &[Allowance],
    isolation: &Isolation,
    differences: &mut Vec<Difference>,
) {
    for (service, table) in model.get_mut("services").and_then(Value::as_object_mut).into_iter().flatten() {
        let Some(table) = table.as_object_mut() else { continue };
        let may = |key: &str, value: &str| allowed.iter().any(|allowance| allowance.covers(service, key, Some(value)));
        let mut note = |key: &str, what: String| {
            differences.push(Difference { key: format!("services.{service}.{key}"), what });
        };
        system_files(table, &may, &mut note);
        logging(table, &mut note);
        build(table, &may, &mut note);
        if isolation.cap_drop_all && !isolation.leaves_alone(service) {
            default_capabilities(table, &may, &mut note);
        }
    }
}

type May<'a> = dyn Fn(&str, &str) -> bool + 'a;
type Note<'a> = dyn FnMut(&str, String) + 'a;

/// Which machine a mounted file of the clock is from would change what a preview does, and the machine may lack it, so it goes. A device that holds
/// nothing is mounted to hide something: it stays, read-only, since a container could change the device itself otherwise.
fn system_files(table: &mut Map<String, Value>, may: &May<'_>, note: &mut Note<'_>) {
    let Some(mounts) = table.get_mut("volumes").and_then(Value::as_array_mut) else { return };
    mounts.retain_mut(|mount| {
        if mount.get("type").and_then(Value::as_str) != Some("bind") {
            return true;
        }
        let source = mount.get("source").and_then(Value::as_str).unwrap_or_default().to_owned();
        if may("volumes", &source) {
            return true;
        }
        if is_clock(&source) {
            note(
                "volumes",
                format!("`{source}` dropped: containers have the time zone of their image, or of the variable TZ"),
            );
            return false;
        }
        if is_null(&source)
            && let Some(mount) = mount.as_object_mut()
        {
            if mount.insert("read_only".to_owned(), json!(true)) != Some(json!(true)) {
                note("volumes", format!("`{source}` is mounted read-only"));
            }
            mount.insert("bind".to_owned(), json!({"create_host_path": false}));
        }
        true
    });
    if mounts.is_empty() {
        table.remove("volumes");
    }
}

fn logging(table: &mut Map<String, Value>, note: &mut Note<'_>) {
    let Some(logging) = table.get_mut("logging") else { return };
    let driver = logging.get("driver").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !LOGGING.contains(&driver.as_str()) {
        *logging = json!({"driver": "json-file"});
        note("logging", format!("`{driver}` replaced by json-file: its logs could not be shown"));
    }
}

fn build(table: &mut Map<String, Value>, may: &May<'_>, note: &mut Note<'_>) {
    let Some(build) = table.get_mut("build").and_then(Value::as_object_mut) else { return };
    for key in CACHES {
        let name = format!("build.{key}");
        let Some(entries) = build.get_mut(key).and_then(Value::as_array_mut) else { continue };
        let before = entries.len();
        entries.retain(|entry| entry.as_str().is_some_and(|entry| may(&name, entry)));
        if entries.len() < before {
            note(&name, "dropped: previews build with the cache of their machine".to_owned());
        }
        if entries.is_empty() {
            build.remove(key);
        }
    }
    for key in ATTESTATIONS {
        if build.remove(key).is_some() {
            note(&format!("build.{key}"), "dropped: nobody checks attestations of a preview's image".to_owned());
        }
    }
}

/// Where the base branch drops all capabilities, a file cannot take the usual ones back.
fn default_capabilities(table: &mut Map<String, Value>, may: &May<'_>, note: &mut Note<'_>) {
    let Some(added) = table.get_mut("cap_add").and_then(Value::as_array_mut) else { return };
    added.retain(|name| {
        let Some(name) = name.as_str() else { return true };
        let dropped = capability::is_default(name) && !may("cap_add", name);
        if dropped {
            note("cap_add", format!("`{name}` dropped, as all capabilities are (`isolation.cap_drop_all`)"));
        }
        !dropped
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(service: Value, allowed: &[Allowance], isolation: &Isolation) -> (Value, Vec<String>) {
        let mut model = json!({"services": {"app": service}});
        let mut differences = Vec::new();
        drop_harmless(&mut model, allowed, isolation, &mut differences);
        (
            model["services"]["app"].take(),
            differences.into_iter().map(|one| format!("{}: {}", one.key, one.what)).collect(),
        )
    }

    fn plain(service: Value) -> (Value, Vec<String>) {
        dropped(service, &[], &Isolation::default())
    }

    fn allow(key: &str, value: &str) -> Allowance {
        Allowance { service: "app".to_owned(), key: key.to_owned(), values: vec![value.to_owned()] }
    }

    fn bind(source: &str) -> Value {
        json!({"type": "bind", "source": source, "target": "/x", "bind": {"create_host_path": true}})
    }

    #[test]
    fn files_of_the_clock_go_and_their_neighbours_stay() {
        for source in ["/etc/localtime", "/etc/timezone", "/usr/share/zoneinfo", "/usr/share/zoneinfo/Europe/Kyiv"] {
            let (service, differences) = plain(json!({"volumes": [bind(source), bind("/repo/x")]}));
            assert_eq!(service["volumes"], json!([bind("/repo/x")]), "{source}");
            assert!(differences[0].contains(&format!("services.app.volumes: `{source}` dropped")), "{differences:?}");
        }
        for source in [
            "/etc",
            "/etc/localtime/x",
            "/usr/share/zoneinfo/../../../etc/shadow",
            "/usr/share/zoneinfo2",
            "/repo/etc/localtime",
        ] {
            let (service, differences) = plain(json!({"volumes": [bind(source)]}));
            assert_eq!((service["volumes"].clone(), differences), (json!([bind(source)]), vec![]), "{source}");
        }
        let volume = json!({"type": "volume", "source": "/etc/localtime", "target": "/x"});
        assert_eq!(plain(json!({"volumes": [volume]})).0["volumes"], json!([volume]));
        assert_eq!(plain(json!({"volumes": [bind("/etc/localtime")]})).0, json!({}));
        let allowed = [allow("volumes", "/etc/localtime")];
        let kept = dropped(json!({"volumes": [bind("/etc/localtime")]}), &allowed, &Isolation::default());
        assert_eq!(kept, (json!({"volumes": [bind("/etc/localtime")]}), vec![]), "the host's, as it is allowed");
    }

    #[test]
    fn devices_that_hold_nothing_stay_and_cannot_be_changed() {
        let (service, differences) = plain(
            json!({"volumes": [bind("/dev/null"), {"type": "bind", "source": "/dev/zero", "target": "/z", "read_only": true}]}),
        );
        let expected = json!([
            {"type": "bind", "source": "/dev/null", "target": "/x", "read_only": true, "bind": {"create_host_path": false}},
            {"type": "bind", "source": "/dev/zero", "target": "/z", "read_only": true, "bind": {"create_host_path": false}},
        ]);
        assert_eq!(service["volumes"], expected);
        assert_eq!(differences, ["services.app.volumes: `/dev/null` is mounted read-only"]);
        assert_eq!(plain(json!({"volumes": [bind("/dev/sda")]})).0["volumes"], json!([bind("/dev/sda")]));
    }

    #[test]
    fn logging_drivers_of_other_systems_are_replaced() {
        for driver in ["loki", "syslog", "gelf", "fluentd", "awslogs", "journald", "a-plugin"] {
            let (service, differences) =
                plain(json!({"logging": {"driver": driver, "options": {"loki-url": "http://x"}}}));
            assert_eq!(service["logging"], json!({"driver": "json-file"}), "its options mean nothing to another one");
            assert_eq!(
                differences,
                [format!("services.app.logging: `{driver}` replaced by json-file: its logs could not be shown")]
            );
        }
        for kept in [
            json!({"driver": "local", "options": {"max-size": "1m"}}),
            json!({"driver": "none"}),
            json!({"options": {"max-file": "2"}}),
        ] {
            assert_eq!(plain(json!({"logging": kept})), (json!({"logging": kept}), vec![]));
        }
    }

    #[test]
    fn caches_and_attestations_go_unless_allowed() {
        let build = json!({
            "context": "/repo", "cache_from": ["type=registry,ref=x", "shop:cache"], "cache_to": ["type=inline"],
            "provenance": "false", "sbom": "true", "attest": [{"type": "sbom"}], "target": "dev",
        });
        let (service, differences) = plain(json!({"build": build.clone()}));
        assert_eq!(service["build"], json!({"context": "/repo", "target": "dev"}));
        assert_eq!(differences.len(), 5, "{differences:?}");
        let (service, differences) =
            dropped(json!({"build": build}), &[allow("build.cache_from", "shop:cache")], &Isolation::default());
        assert_eq!(service["build"], json!({"context": "/repo", "target": "dev", "cache_from": ["shop:cache"]}));
        assert_eq!(differences.len(), 5, "{differences:?}");
    }

    #[test]
    fn dropped_capabilities_are_not_taken_back_by_the_file() {
        let all = Isolation { cap_drop_all: true, except: vec!["db".to_owned()], ..Isolation::default() };
        let service = json!({"cap_add": ["CHOWN", "cap_net_raw", "SYS_PTRACE", "KILL"]});
        let (kept, differences) = dropped(service.clone(), &[allow("cap_add", "KILL")], &all);
        assert_eq!((kept["cap_add"].clone(), differences.len()), (json!(["SYS_PTRACE", "KILL"]), 2));
        assert_eq!(plain(service.clone()), (service, vec![]));
    }
}
