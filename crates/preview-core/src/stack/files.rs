//! Which files of the repository a stack uses: sources of bind mounts, files of configs and secrets, build contexts.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::{Violation, entries, services};

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
            // In a model, a dollar sign that begins no variable stands doubled.
            uses.push(FileUse { pointer, key, source: PathBuf::from(source.replace("$$", "$")), place });
        }
    };
    for (name, table) in services(model) {
        let at = format!("/services/{}", escape(name));
        let mounts = table.get("volumes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for (index, mount) in mounts.iter().enumerate() {
            if mount.get("type").and_then(Value::as_str) == Some("bind") {
                let create = mount.get("bind").is_some_and(creates);
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

/// JSON pointers to the paths that are outside of the repository by their very text. A mount of such a path can only mean the host's, and anything else of
/// it is refused, so nothing here may look at them or send them. `model` is as Compose resolved it.
#[must_use]
pub fn host_paths(model: &Value, repository: &Path) -> BTreeSet<String> {
    let outside = |file: &FileUse| !normal(&file.source).starts_with(repository);
    file_uses(model).into_iter().filter(outside).map(|file| file.pointer).collect()
}

/// Paths that were inside the repository by their text, and are not once their links are followed. They are put back as they were written, so that nothing
/// takes them for paths of the host: no allowance is meant for them. `before` is the model with its paths as Compose resolved them.
pub fn links_out(model: &mut Value, before: &Value, followed: &[FileUse], repository: &Path) -> Vec<Violation> {
    let mut found = Vec::new();
    for file in followed.iter().filter(|file| !file.source.starts_with(repository)) {
        let written = before.pointer(&file.pointer).cloned().unwrap_or_default();
        found.push(Violation {
            key: file.key.clone(),
            value: written.as_str().map(str::to_owned),
            why: format!("a link leads to {}, outside the repository", file.source.display()),
            instead: "put the files into the repository".to_owned(),
            ..Violation::default()
        });
        if let Some(place) = model.pointer_mut(&file.pointer) {
            *place = written;
        }
    }
    found
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
pub(super) fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// Whether a source that is missing is made. Compose 2 prints `create_host_path` where it is true, and leaves it out where it is false; Compose 5 does the
/// opposite. Where the key is left out, what both say in their documentation holds: it is true.
fn creates(bind: &Value) -> bool {
    bind.get("create_host_path").and_then(Value::as_bool).unwrap_or(true)
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

    #[test]
    fn a_source_is_made_unless_the_file_says_otherwise_in_the_words_of_either_compose() {
        let created = |bind: serde_json::Value| {
            let mount = json!({"type": "bind", "source": "/r/x", "target": "/x", "bind": bind});
            let model = json!({"services": {"a": {"volumes": [mount]}}});
            file_uses(&model)[0].place
        };
        for bind in [json!({"create_host_path": true}), json!({}), json!({"propagation": "rslave"})] {
            assert_eq!(created(bind.clone()), Place::Mount { create: true }, "{bind}");
        }
        assert_eq!(created(json!({"create_host_path": false})), Place::Mount { create: false });
        let long = json!({"services": {"a": {"volumes": [{"type": "bind", "source": "/r/x", "target": "/x"}]}}});
        assert_eq!(file_uses(&long)[0].place, Place::Mount { create: false }, "the long form without `bind`");
    }

    #[test]
    fn what_is_outside_by_its_text_is_the_hosts_and_never_looked_at() {
        let bind = |source: &str| json!({"type": "bind", "source": source});
        let model = json!({
            "services": {"a": {
                "volumes": [bind("/repo/conf"), bind("/srv/models"), bind("/repo/../etc"), bind("/repository"), {"type": "volume", "source": "x"}],
                "build": {"context": "/elsewhere"},
            }},
            "secrets": {"s": {"file": "/root/.ssh/id_rsa"}, "own": {"file": "/repo/s"}},
        });
        let found: Vec<String> = host_paths(&model, Path::new("/repo")).into_iter().collect();
        let pointers = [1, 2, 3].map(|index| format!("/services/a/volumes/{index}/source"));
        assert_eq!(found[..2], ["/secrets/s/file", "/services/a/build/context"]);
        assert_eq!(found[2..], pointers);
    }

    #[test]
    fn a_link_that_leads_out_is_no_path_of_the_host() {
        let before = json!({"services": {"a": {"volumes": [{"type": "bind", "source": "/repo/lnk"}, {"type": "bind", "source": "/repo/x"}]}}});
        let mut model = before.clone();
        model["services"]["a"]["volumes"][0]["source"] = json!("/srv/models");
        let followed = file_uses(&model);
        let found = links_out(&mut model, &before, &followed, Path::new("/repo"));
        assert_eq!(model, before, "an allowance of /srv/models does not see it");
        let told: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "services.a.volumes: `/repo/lnk`: a link leads to /srv/models, outside the repository; put the files into the repository"
            ]
        );
    }
}
