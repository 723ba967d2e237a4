//! Which files of the repository a stack uses: sources of bind mounts, files of configs and secrets, build contexts.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::{entries, services};

/// What a file is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Source of a bind mount; made as an empty directory if it does not exist and the flag is set.
    Mount {
        /// `create_host_path`.
        create: bool,
    },
    /// File of a config or secret.
    Content,
    /// Build context: read by the build, not uploaded.
    Context,
}

/// One use of a path of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileUse {
    /// JSON pointer to the path in the model.
    pub pointer: String,
    /// The same for people: `services.web.volumes`.
    pub key: String,
    /// The path, absolute.
    pub source: PathBuf,
    /// What for.
    pub place: Place,
}

/// All uses of paths of this machine in a resolved model.
#[must_use]
pub fn file_uses(model: &Value) -> Vec<FileUse> {
    let mut uses = Vec::new();
    let mut push = |pointer: String, key: String, source: Option<&Value>, place: Place| {
        if let Some(source) = source.and_then(Value::as_str)
            && source.starts_with('/')
        {
            uses.push(FileUse { pointer, key, source: PathBuf::from(source), place });
        }
    };
    for (name, table) in services(model) {
        let at = format!("/services/{}", escape(name));
        let mounts = table.get("volumes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for (index, mount) in mounts.iter().enumerate() {
            if mount.get("type").and_then(Value::as_str) == Some("bind") {
                let create = mount.pointer("/bind/create_host_path").and_then(Value::as_bool).unwrap_or(false);
                push(
                    format!("{at}/volumes/{index}/source"),
                    format!("services.{name}.volumes"),
                    mount.get("source"),
                    Place::Mount { create },
                );
            }
        }
        if let Some(build) = table.get("build").and_then(Value::as_object) {
            push(
                format!("{at}/build/context"),
                format!("services.{name}.build.context"),
                build.get("context"),
                Place::Context,
            );
            let contexts = build.get("additional_contexts").and_then(Value::as_object);
            for (context, value) in contexts.into_iter().flatten() {
                push(
                    format!("{at}/build/additional_contexts/{}", escape(context)),
                    format!("services.{name}.build.additional_contexts.{context}"),
                    Some(value),
                    Place::Context,
                );
            }
        }
    }
    for kind in ["configs", "secrets"] {
        for (name, table) in entries(model, kind) {
            push(
                format!("/{kind}/{}/file", escape(name)),
                format!("{kind}.{name}.file"),
                table.get("file"),
                Place::Content,
            );
        }
    }
    uses
}

/// The path without `.` and `..`, as text, which is how Compose joins paths. Where links lead is for those who can look.
#[must_use]
pub fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}

/// A key as a part of a JSON pointer (RFC 6901).
fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_pointer_leads_to_its_source() {
        let model = json!({
            "services": {"web/1": {
                "volumes": [{"type": "volume", "source": "data"}, {"type": "bind", "source": "/r/www", "bind": {"create_host_path": true}}],
                "build": {"context": "/r", "additional_contexts": {"base": "docker-image://x", "lib": "/r/lib"}},
            }, "git": {"build": {"context": "https://example.com/x.git"}}},
            "configs": {"c": {"file": "/r/c.conf"}, "inline": {"content": "x"}},
        });
        let uses = file_uses(&model);
        for file in &uses {
            assert_eq!(model.pointer(&file.pointer).and_then(Value::as_str), file.source.to_str(), "{file:?}");
        }
        let keys: Vec<_> = uses.iter().map(|file| file.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "services.web/1.volumes",
                "services.web/1.build.context",
                "services.web/1.build.additional_contexts.lib",
                "configs.c.file"
            ]
        );
    }
}
