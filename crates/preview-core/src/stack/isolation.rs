//! Isolation that can be turned on: what containers may do less than Docker lets them. Off unless the configuration says so.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Difference, Port, entries, services};

/// Where programs write although their root is read-only.
const SCRATCH: [&str; 2] = ["/tmp", "/run"];

/// What is turned on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// The root file system is read-only, with small temporary ones on `/tmp` and `/run`.
    pub read_only: bool,
    /// Size of each of these, bytes.
    pub tmpfs: u64,
    /// User of services that name none, or root.
    pub user: Option<String>,
    /// No process gains privileges, by setuid programs for example.
    pub no_new_privileges: bool,
    /// The preview's networks lead nowhere else.
    pub internal: bool,
    /// All capabilities are dropped.
    pub cap_drop_all: bool,
    /// Services that are left alone.
    pub except: Vec<String>,
}

impl Default for Isolation {
    fn default() -> Self {
        Self {
            read_only: false,
            tmpfs: 64 << 20,
            user: None,
            no_new_privileges: false,
            internal: false,
            cap_drop_all: false,
            except: Vec::new(),
        }
    }
}

impl Isolation {
    pub(super) fn leaves_alone(&self, service: &str) -> bool {
        self.except.iter().any(|name| name == service)
    }

    /// What cannot be had together, as key and reason. `published`: ports that are to be reached on the host, where there is no proxy.
    #[must_use]
    pub fn conflicts<'a>(&self, model: &Value, published: impl IntoIterator<Item = &'a Port>) -> Vec<(String, String)> {
        let mut found = Vec::new();
        if self.internal {
            for port in published.into_iter().filter(|port| !self.leaves_alone(&port.service)) {
                found.push((
                    format!("services.{}.ports", port.service),
                    format!(
                        "port {} cannot be published from a network that leads nowhere (`isolation.internal`), and there is no proxy; set up \
                         a proxy, name {} in `isolation.except`, or take the port away and use `preview tunnel`",
                        port.target, port.service
                    ),
                ));
            }
        }
        if self.read_only {
            for (service, table) in services(model).filter(|(service, _)| !self.leaves_alone(service)) {
                for kind in ["configs", "secrets"] {
                    let written = entries(model, kind)
                        .filter(|(_, content)| !content.contains_key("file") && !content.contains_key("external"))
                        .find(|(name, _)| uses(table.get(kind), name));
                    if let Some((name, _)) = written {
                        found.push((
                            format!("services.{service}.{kind}"),
                            format!(
                                "`{name}` has no file, and Compose cannot write it into a container with a read-only root \
                                 (`isolation.read_only`); put it into a file, or name {service} in `isolation.except`"
                            ),
                        ));
                    }
                }
            }
        }
        found
    }
}

/// Whether a service's list of configs or secrets names this one.
fn uses(list: Option<&Value>, name: &str) -> bool {
    list.and_then(Value::as_array)
        .into_iter()
        .flatten()
        .any(|entry| entry.as_str().or_else(|| entry.get("source")?.as_str()) == Some(name))
}

/// Isolates one service.
pub(super) fn isolate(
    service: &str,
    table: &mut Map<String, Value>,
    isolation: &Isolation,
    differences: &mut Vec<Difference>,
) {
    if isolation.leaves_alone(service) {
        return;
    }
    let mut note = |key: &str, what: String| {
        differences.push(Difference { key: format!("services.{service}.{key}"), what });
    };
    if isolation.read_only {
        if table.get("read_only") != Some(&json!(true)) {
            table.insert("read_only".to_owned(), json!(true));
            note("read_only", "the root file system is read-only".to_owned());
        }
        for path in SCRATCH {
            // What the file mounts there is its own matter.
            if !mounts(table, path)
                && let Some(list) = list(table, "tmpfs")
            {
                list.push(json!(format!("{path}:size={},mode=1777", isolation.tmpfs)));
                note("tmpfs", format!("{path} is temporary, {} MB at most", isolation.tmpfs >> 20));
            }
        }
    }
    if let Some(user) = &isolation.user {
        if may_be_root(table.get("user").and_then(Value::as_str).unwrap_or_default()) {
            table.insert("user".to_owned(), json!(user));
            note("user", format!("set to {user}"));
        }
        for key in ["post_start", "pre_stop"] {
            let hooks = table.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten();
            // A hook without a user has the service's.
            let doubtful = hooks.filter(|hook| hook.get("user").and_then(Value::as_str).is_some_and(may_be_root));
            for hook in doubtful {
                hook["user"] = json!(user);
                note(key, format!("its user set to {user}"));
            }
        }
    }
    if isolation.no_new_privileges
        && let Some(options) = list(table, "security_opt")
        && !options.iter().filter_map(Value::as_str).any(|option| option.starts_with("no-new-privileges"))
    {
        options.push(json!("no-new-privileges:true"));
        note("security_opt", "no-new-privileges:true added".to_owned());
    }
    if isolation.cap_drop_all
        && let Some(dropped) = list(table, "cap_drop")
        && !dropped.iter().filter_map(Value::as_str).any(|one| one.eq_ignore_ascii_case("all"))
    {
        *dropped = vec![json!("ALL")];
        note("cap_drop", "all capabilities dropped".to_owned());
    }
}

/// Closes the preview's own networks. Services that are left alone get a network of their own that leads outside; `owner` are its labels.
pub(super) fn close_networks(
    model: &mut Value,
    project: &str,
    isolation: &Isolation,
    owner: &BTreeMap<String, String>,
    differences: &mut Vec<Difference>,
) {
    if !isolation.internal {
        return;
    }
    for (key, network) in model.get_mut("networks").and_then(Value::as_object_mut).into_iter().flatten() {
        if network.is_null() {
            *network = json!({});
        }
        let Some(network) = network.as_object_mut() else { continue };
        if network.get("external") == Some(&json!(true)) || network.get("internal") == Some(&json!(true)) {
            continue;
        }
        network.insert("internal".to_owned(), json!(true));
        differences.push(Difference {
            key: format!("networks.{key}.internal"),
            what: "set: nothing outside the preview can be reached".to_owned(),
        });
    }
    for service in &isolation.except {
        let key = format!("preview_outside_{service}");
        let networks = model
            .get_mut("services")
            .and_then(|services| services.get_mut(service))
            .and_then(|table| table.get_mut("networks"))
            .and_then(Value::as_object_mut);
        // Without networks it has a mode of its own.
        let Some(networks) = networks else { continue };
        networks.insert(key.clone(), json!({}));
        differences.push(Difference {
            key: format!("services.{service}.networks"),
            what: "joins a network of its own that leads outside".to_owned(),
        });
        let network = json!({"name": format!("{project}_{key}"), "labels": owner});
        if let Some(all) = model.get_mut("networks").and_then(Value::as_object_mut) {
            all.insert(key, network);
        }
    }
}

/// Whether a user, as Compose and Docker write it, may be root: nobody is named, or the number 0, or a name, which the image says the number of.
fn may_be_root(user: &str) -> bool {
    let name = user.split(':').next().unwrap_or_default();
    !name.bytes().all(|byte| byte.is_ascii_digit()) || name.trim_start_matches('0').is_empty()
}

/// Whether something is mounted at this very path.
fn mounts(table: &Map<String, Value>, path: &str) -> bool {
    let same = |target: &str| target.trim_end_matches('/') == path;
    let items = |key: &str| table.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items("volumes").iter().any(|mount| mount.get("target").and_then(Value::as_str).is_some_and(same))
        || items("tmpfs").iter().filter_map(Value::as_str).any(|mount| mount.split(':').next().is_some_and(same))
}

/// A list, made where it is missing; none if something else stands there.
pub(super) fn list<'a>(table: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Vec<Value>> {
    let place = table.entry(key).or_insert(Value::Null);
    match place {
        Value::Null => *place = json!([]),
        Value::String(_) => *place = json!([place.take()]),
        _ => {}
    }
    place.as_array_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Isolation {
        Isolation {
            read_only: true,
            user: Some("1000:1000".to_owned()),
            no_new_privileges: true,
            internal: true,
            cap_drop_all: true,
            except: vec!["db".to_owned()],
            ..Isolation::default()
        }
    }

    fn isolated(service: &str, table: Value, isolation: &Isolation) -> (Value, Vec<String>) {
        let mut table = table.as_object().unwrap().clone();
        let mut differences = Vec::new();
        isolate(service, &mut table, isolation, &mut differences);
        (Value::Object(table), differences.into_iter().map(|d| format!("{}: {}", d.key, d.what)).collect())
    }

    #[test]
    fn nothing_is_on_by_default_and_exceptions_are_left_alone() {
        let table = json!({"image": "x"});
        assert_eq!(isolated("api", table.clone(), &Isolation::default()), (table.clone(), vec![]));
        assert_eq!(isolated("db", table.clone(), &all()), (table, vec![]));
    }

    #[test]
    fn everything_that_is_on_is_told() {
        let (table, differences) = isolated("api", json!({"image": "x", "cap_drop": ["NET_RAW"]}), &all());
        assert_eq!(
            table,
            json!({
                "image": "x", "read_only": true, "user": "1000:1000",
                "tmpfs": ["/tmp:size=67108864,mode=1777", "/run:size=67108864,mode=1777"],
                "security_opt": ["no-new-privileges:true"], "cap_drop": ["ALL"],
            })
        );
        assert_eq!(
            differences,
            [
                "services.api.read_only: the root file system is read-only",
                "services.api.tmpfs: /tmp is temporary, 64 MB at most",
                "services.api.tmpfs: /run is temporary, 64 MB at most",
                "services.api.user: set to 1000:1000",
                "services.api.security_opt: no-new-privileges:true added",
                "services.api.cap_drop: all capabilities dropped",
            ]
        );
        // A second time there is nothing left to change.
        assert_eq!(isolated("api", table.clone(), &all()), (table, vec![]));
    }

    #[test]
    fn what_the_file_says_more_strictly_or_by_itself_stays() {
        let service = json!({
            "read_only": true, "user": "1001:app", "cap_drop": ["all"], "cap_add": ["CHOWN"],
            "tmpfs": ["/run:size=1m"], "volumes": [{"type": "volume", "source": "t", "target": "/tmp/"}],
            "security_opt": ["no-new-privileges"],
        });
        assert_eq!(isolated("api", service.clone(), &all()), (service, vec![]));
    }

    #[test]
    fn root_by_any_name_is_replaced() {
        // A name is what the image says of it, and `-0` is root to Docker.
        for user in ["", "0", "root", "0:1000", "root:root", "00", "app", "postgres", "-0", "+0", " 0"] {
            assert_eq!(isolated("api", json!({"user": user}), &all()).0["user"], "1000:1000", "{user}");
        }
        for user in ["1", "1000:0", "999:postgres"] {
            assert_eq!(isolated("api", json!({"user": user}), &all()).0["user"], user);
        }
        let hooks = json!({"user": "1", "post_start": [{"command": ["a"], "user": "root"}, {"command": ["b"]}]});
        let (table, told) = isolated("api", hooks, &all());
        assert_eq!(table["post_start"], json!([{"command": ["a"], "user": "1000:1000"}, {"command": ["b"]}]));
        assert!(told.iter().any(|told| told == "services.api.post_start: its user set to 1000:1000"), "{told:?}");
    }

    #[test]
    fn own_networks_are_closed_and_exceptions_get_out() {
        let mut model = json!({
            "services": {"api": {"networks": {"default": null}}, "db": {"networks": {"default": null}}},
            "networks": {"default": {"name": "p_default"}, "back": null, "preview_proxy": {"name": "proxy", "external": true}},
        });
        let owner = BTreeMap::from([("preview.name".to_owned(), "pr-7".to_owned())]);
        let mut differences = Vec::new();
        close_networks(&mut model, "p", &all(), &owner, &mut differences);
        assert_eq!(
            model,
            json!({
                "services": {"api": {"networks": {"default": null}}, "db": {"networks": {"default": null, "preview_outside_db": {}}}},
                "networks": {
                    "default": {"name": "p_default", "internal": true}, "back": {"internal": true},
                    "preview_proxy": {"name": "proxy", "external": true},
                    "preview_outside_db": {"name": "p_preview_outside_db", "labels": {"preview.name": "pr-7"}},
                },
            })
        );
        assert_eq!(differences.len(), 3);
        let before = model.clone();
        close_networks(&mut model, "p", &Isolation::default(), &owner, &mut differences);
        assert_eq!(model, before);
    }

    #[test]
    fn what_cannot_be_had_together_is_found() {
        let model = json!({
            "services": {
                "api": {"secrets": [{"source": "token"}, {"source": "file"}], "configs": [{"source": "inline"}]},
                "db": {"secrets": [{"source": "token"}]},
                "web": {"secrets": [{"source": "file"}]},
            },
            "secrets": {"token": {"environment": "TOKEN"}, "file": {"file": "/r/x"}}, "configs": {"inline": {"content": "x"}},
        });
        let port = |service: &str| Port { service: service.to_owned(), target: 80, protocol: "tcp".to_owned() };
        let ports = [port("db"), port("web")];
        let keys = |isolation: &Isolation| -> Vec<String> {
            isolation.conflicts(&model, &ports).into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(keys(&all()), ["services.web.ports", "services.api.configs", "services.api.secrets"]);
        assert_eq!(keys(&Isolation::default()), Vec::<String>::new());
    }
}
