//! Volumes that are more than a directory of the engine.

use serde_json::{Map, Value};

use super::{Court, is_on};

pub(super) fn volume(court: &mut Court<'_>, table: &Map<String, Value>) {
    if is_on(table.get("external")) {
        court.refuse(
            "external",
            table.get("name").and_then(Value::as_str),
            "a volume of others would be shared",
            "remove external: each preview has its own volumes",
        );
        return;
    }
    let driver = table.get("driver").and_then(Value::as_str).unwrap_or_default();
    if !matches!(driver, "" | "local") {
        court.refuse("driver", Some(driver), "it is a plugin of the host", "use local, or name no driver");
    }
    let options = table.get("driver_opts").and_then(Value::as_object).cloned().unwrap_or_default();
    if !options.is_empty() && !is_plain_tmpfs(&options) {
        court.refuse(
            "driver_opts",
            None,
            "the local driver would mount what belongs to the host",
            "remove driver_opts",
        );
    }
}

/// The kernel obeys some of the options before it looks at the type: with `o: bind`, a tmpfs of `device: /` is the host's root.
fn is_plain_tmpfs(options: &Map<String, Value>) -> bool {
    const BOUNDS: [&str; 6] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"];
    let harmless = |option: &str| match option.split_once('=') {
        Some((name, _)) => BOUNDS.contains(&name),
        None => ["nosuid", "nodev", "noexec"].contains(&option),
    };
    let plain = |(key, value): (&String, &Value)| {
        let value = value.as_str().unwrap_or_default();
        match key.as_str() {
            "type" => value == "tmpfs",
            "device" => ["tmpfs", "none"].contains(&value),
            "o" => value.split(',').all(harmless),
            _ => false,
        }
    };
    options.contains_key("type") && options.iter().all(plain)
}
