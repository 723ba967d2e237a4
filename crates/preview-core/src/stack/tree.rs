//! The repository's files as a preview has them on the host: what is mounted, what an update changes, and what the way back needs.
//!
//! Each file or directory that something mounts is a *root*: it stands by itself in the preview's volume. A root inside another one
//! is not part of it (of a single file, a copy is): whoever mounts the outer one gets the inner one mounted on top. So all see the same files, and no part of a mount's
//! source is a path that a container can change: a container that replaces a directory of its own by a link to `/etc` gains nothing.
//!
//! Nor can it have the engine change one. The engine writes a commit's files with its own rights, and follows links that a container put in place of
//! directories, so what is written below one root may end up anywhere in the volume. Therefore a path of the volume that a mount's source leads through, and what decides the
//! way back, have names that no file of a commit may have ([`is_reserved`]), and nothing with such a name is ever a link.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{Difference, FileUse, Place, entries, file_uses};
use crate::engine::Rights;
use crate::runtime::Variables;

/// The label with the hash of the files, configs and secrets that a service uses.
pub const CONTENT: &str = "preview.content";
/// How the names of all that is ours begin in the volume.
const RESERVED: &str = ".preview-files-";
/// What the way back needs, in the volume.
pub const UNDO: &str = ".preview-files-undo";
/// The file in it that says how to go back.
const PLAN: &str = ".preview-files-plan.json";

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file; the value is the hash of its content.
    File,
    /// A symbolic link; the value is where it leads.
    Link,
}

/// One path of a root: what it is, its mode, and the value of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry(pub Kind, pub u32, pub String);

/// The paths of a root, relative to it; the empty path is the root itself.
pub type Root = BTreeMap<String, Entry>;

/// What the commit has of the files in a volume. What is there beside it belongs to the application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The roots, by id.
    pub roots: BTreeMap<String, Root>,
}

/// Where a root of the repository is on the host, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The root's id.
    pub id: String,
    /// The hash of all that is in it.
    pub digest: String,
    /// Whether it is a single file.
    pub is_file: bool,
}

/// The id of a root, by its path in the repository.
#[must_use]
pub fn root_id(relative: &str) -> String {
    short(&Sha256::digest(format!("root {relative}")))
}

/// Whether a file or directory of a commit cannot have this name: it would be one of ours.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    // Some file systems do not mind the case.
    name.get(..RESERVED.len()).is_some_and(|start| start.eq_ignore_ascii_case(RESERVED))
}

fn short(hash: &[u8]) -> String {
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The hash of all that is in a root.
#[must_use]
pub fn digest(root: &Root) -> String {
    let mut hash = Sha256::new();
    for (path, Entry(kind, mode, value)) in root {
        hash.update(format!("{}\0{path}\0{kind:?}\0{mode:o}\0{}\0{value}\0", path.len(), value.len()));
    }
    short(&hash.finalize())
}

/// The path in the volume of a path of a root.
#[must_use]
pub fn volume_path(id: &str, path: &str) -> String {
    if path.is_empty() { format!("{RESERVED}{id}") } else { format!("{RESERVED}{id}/{path}") }
}

/// Where what was at a path of the volume is kept.
#[must_use]
pub fn kept_path(path: &str) -> String {
    format!("{UNDO}/{path}")
}

/// The file that says how to go back; it is there once all that it names is kept.
#[must_use]
pub fn undo_path() -> String {
    format!("{UNDO}/{PLAN}")
}

/// The rights of most files of a commit. Their owner is the first ordinary user of a machine, as whom most programs in containers run that are not root.
pub const OF_COMMIT: Rights = Rights { mode: 0o644, uid: 1000, gid: 1000 };

/// How to go back to the files of before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoPlan {
    /// Paths in the volume whose content of before is kept.
    pub restore: Vec<String>,
    /// The rights of what is kept.
    #[serde(default)]
    pub rights: BTreeMap<String, Rights>,
    /// Paths in the volume at which nothing was.
    pub remove: Vec<String>,
}

impl UndoPlan {
    /// With what rights what is kept of this path was there.
    #[must_use]
    pub fn rights_of(&self, path: &str) -> Rights {
        self.rights.get(path).copied().unwrap_or(OF_COMMIT)
    }
}

/// What has to change in a volume. All but `write` are paths in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What is written: roots and paths in them, in order.
    pub write: Vec<(String, String)>,
    /// Files and links of the commit before that go or are replaced.
    pub replaced: Vec<String>,
    /// Files and links of this commit where the commit before had nothing; the application may have put something there.
    pub added: Vec<String>,
    /// What goes.
    pub remove: Vec<String>,
    /// Roots that were not there.
    pub new_roots: Vec<String>,
}

impl Manifest {
    /// The name of the file that holds it on the host: by its content.
    #[must_use]
    pub fn file(&self) -> String {
        format!("tree-{}.json", short(&Sha256::digest(self.to_json())))
    }

    /// The content of that file.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Maps with string keys always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The mode of the commit's file or directory at a path of the volume.
    #[must_use]
    pub fn mode(&self, path: &str) -> Option<u32> {
        let below = path.strip_prefix(RESERVED)?;
        let (id, path) = below.split_once('/').unwrap_or((below, ""));
        self.roots.get(id)?.get(path).map(|Entry(_, mode, _)| *mode)
    }

    /// The hash of each root.
    #[must_use]
    pub fn digests(&self) -> BTreeMap<String, String> {
        self.roots.iter().map(|(id, root)| (id.clone(), digest(root))).collect()
    }

    /// With the directories that the version before mounted and this one does not: what the application wrote there stays until it is asked for
    /// again, or the preview goes.
    #[must_use]
    pub fn with_unused(mut self, before: Option<&Self>) -> Self {
        for (id, root) in before.into_iter().flat_map(|before| &before.roots) {
            if root.get("").is_some_and(|entry| entry.0 == Kind::Directory) {
                self.roots.entry(id.clone()).or_insert_with(|| root.clone());
            }
        }
        self
    }

    /// What has to change in a volume that holds `before`.
    #[must_use]
    pub fn changes(&self, before: Option<&Self>) -> Changes {
        let none = Root::new();
        let mut changes = Changes::default();
        for (id, root) in &self.roots {
            let old = before.and_then(|before| before.roots.get(id));
            if old.is_none() {
                changes.new_roots.push(volume_path(id, ""));
            }
            let known = old.unwrap_or(&none);
            for (path, entry) in root {
                let place = volume_path(id, path);
                match known.get(path) {
                    Some(same) if same == entry => continue,
                    Some(Entry(Kind::Directory, ..)) => {}
                    Some(_) => changes.replaced.push(place),
                    None if old.is_some() && entry.0 != Kind::Directory => changes.added.push(place),
                    None => {}
                }
                changes.write.push((id.clone(), path.clone()));
            }
        }
        for (id, root) in before.into_iter().flat_map(|before| &before.roots) {
            let now = self.roots.get(id).unwrap_or(&none);
            let gone = root.iter().filter(|(path, entry)| entry.0 != Kind::Directory && !now.contains_key(*path));
            let gone: Vec<String> = gone.map(|(path, _)| volume_path(id, path)).collect();
            changes.replaced.extend(gone.iter().cloned());
            changes.remove.extend(gone);
        }
        changes
    }
}

/// The services of a rendered stack that use what is at one of these paths of the volume, those that others depend on first.
#[must_use]
pub fn users(model: &Value, paths: &[&str]) -> Vec<String> {
    let in_root = |path: &&str| path.strip_prefix(RESERVED)?.split('/').next().map(str::to_owned);
    let roots: BTreeSet<String> = paths.iter().filter_map(in_root).collect();
    let between = format!("/{RESERVED}");
    let is_root = |source: &str| source.rsplit_once(&between).is_some_and(|(_, id)| roots.contains(id));
    let of = |table: &Map<String, Value>, key: &str| table.get(key).and_then(Value::as_str).is_some_and(is_root);
    let uses = |table: &Map<String, Value>| {
        let mut mounts = list(table, "volumes").iter().filter_map(Value::as_object);
        mounts.any(|mount| of(mount, "source"))
            || ["configs", "secrets"].into_iter().any(|kind| {
                let names = list(table, kind).iter().filter_map(source_name);
                let mut tables = names.filter_map(|name| model.get(kind)?.get(name)?.as_object());
                tables.any(|table| of(table, "file"))
            })
    };
    let mut left: BTreeMap<&String, &Map<String, Value>> =
        super::services(model).filter(|(_, table)| uses(table)).collect();
    let mut users = Vec::new();
    while !left.is_empty() {
        let waits = |table: &Map<String, Value>| {
            let needs = table.get("depends_on").and_then(Value::as_object);
            needs.is_some_and(|needs| needs.keys().any(|need| left.contains_key(need)))
        };
        let next = left.iter().find(|(_, table)| !waits(table)).or_else(|| left.iter().next());
        let Some(name) = next.map(|(name, _)| *name) else { break };
        left.remove(name);
        users.push(name.clone());
    }
    users
}

fn list<'a>(table: &'a Map<String, Value>, key: &str) -> &'a [Value] {
    table.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The name of a config or secret that a service uses.
fn source_name(entry: &Value) -> Option<&str> {
    entry.as_str().or_else(|| entry.get("source")?.as_str())
}

/// Puts the repository's files of a model where they are on the host. `directory` is that of the volume there; `salt` keeps hashes of secrets from being looked up.
pub(super) fn place(
    model: &mut Value,
    directory: &str,
    placed: &BTreeMap<PathBuf, Placed>,
    variables: &Variables,
    salt: &str,
    differences: &mut Vec<Difference>,
) {
    let uses = file_uses(model);
    let used: Vec<(&FileUse, &Placed)> = uses
        .iter()
        .filter(|file| file.place != Place::Context)
        .filter_map(|file| Some((file, placed.get(&file.source)?)))
        .collect();
    let inner = mount_inner(model, &uses, placed, differences);
    let on_host = |placed: &Placed| json!(literal(&format!("{directory}/{}", volume_path(&placed.id, ""))));
    for (file, placed) in &used {
        if let Some(place) = model.pointer_mut(&file.pointer) {
            *place = on_host(placed);
        }
        if let (Place::Mount { .. }, Some(mount)) = (file.place, file.pointer.strip_suffix("/source"))
            && let Some(mount) = model.pointer_mut(mount).and_then(Value::as_object_mut)
        {
            do_not_make_source(mount);
        }
        let what = "the repository's file, in the preview's volume on the host".to_owned();
        differences.push(Difference { key: file.key.clone(), what });
    }
    for (service, mounts) in inner {
        let volumes = model.pointer_mut(&format!("/services/{}/volumes", super::files::escape(&service)));
        let Some(volumes) = volumes.and_then(Value::as_array_mut) else { continue };
        volumes.extend(mounts.into_iter().map(|(mut mount, placed)| {
            mount.insert("source".to_owned(), on_host(placed));
            do_not_make_source(&mut mount);
            Value::Object(mount)
        }));
    }
    label(model, placed, &used, directory, variables, salt);
}

/// A dollar sign begins a variable in a Compose model.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

fn do_not_make_source(mount: &mut Map<String, Value>) {
    if let Some(bind) = mount.entry("bind").or_insert_with(|| json!({})).as_object_mut() {
        bind.insert("create_host_path".to_owned(), json!(false));
    }
}

type Mounts<'a> = Vec<(Map<String, Value>, &'a Placed)>;

/// Who mounts a directory gets the roots inside it mounted on top, unless something of its own is mounted there.
fn mount_inner<'a>(
    model: &Value,
    uses: &[FileUse],
    placed: &'a BTreeMap<PathBuf, Placed>,
    differences: &mut Vec<Difference>,
) -> BTreeMap<String, Mounts<'a>> {
    let mut all: BTreeMap<String, Mounts<'a>> = BTreeMap::new();
    for (service, table) in super::services(model) {
        let volumes = list(table, "volumes");
        let target = |mount: &Value| Some(super::normal(Path::new(mount.get("target")?.as_str()?)));
        let mut targets: BTreeSet<PathBuf> = volumes.iter().filter_map(target).collect();
        let tmpfs = table.get("tmpfs").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        targets.extend(tmpfs.map(|text| super::normal(Path::new(text.split(':').next().unwrap_or_default()))));
        for (index, mount) in volumes.iter().enumerate() {
            let pointer = format!("/services/{}/volumes/{index}/source", super::files::escape(service));
            let Some(file) = uses.iter().find(|file| file.pointer == pointer) else { continue };
            let (Some(outer), true) = (target(mount), placed.contains_key(&file.source)) else { continue };
            let read_only = mount.get("read_only").and_then(Value::as_bool).unwrap_or(false);
            // An engine cannot make the place of a mounted file in a read-only directory, not even where it is there; its copy will do.
            for (source, inner) in placed.iter().filter(|(_, inner)| !(read_only && inner.is_file)) {
                let Some(rest) = source.strip_prefix(&file.source).ok().filter(|rest| !rest.as_os_str().is_empty())
                else {
                    continue;
                };
                let at = outer.join(rest);
                // Below something else that is mounted inside the outer one, it would stand where nobody sees the outer one.
                let covered =
                    targets.iter().any(|other| at.starts_with(other) && other.starts_with(&outer) && *other != outer);
                let Some(text) = at.to_str().filter(|_| !covered) else { continue };
                let mut more = mount.as_object().cloned().unwrap_or_default();
                more.insert("target".to_owned(), json!(literal(text)));
                differences.push(Difference {
                    key: format!("services.{service}.volumes"),
                    what: format!("`{text}` mounted by itself, since another mount shares it"),
                });
                all.entry(service.clone()).or_default().push((more, inner));
            }
        }
    }
    all
}

/// Compose does not look into files, so each service that uses some says by a label what is in them.
fn label(
    model: &mut Value,
    placed: &BTreeMap<PathBuf, Placed>,
    used: &[(&FileUse, &Placed)],
    directory: &str,
    variables: &Variables,
    salt: &str,
) {
    let by_id: BTreeMap<&str, &Placed> = placed.values().map(|placed| (placed.id.as_str(), placed)).collect();
    let prefix = literal(&format!("{directory}/{RESERVED}"));
    let mut contents: BTreeMap<(&str, String), String> = BTreeMap::new();
    for kind in ["configs", "secrets"] {
        for (name, table) in entries(model, kind) {
            let pointer = format!("/{kind}/{}/file", super::files::escape(name));
            let text = |text: &str| short(&Sha256::digest(format!("{salt}\0{kind}\0{name}\0{text}")));
            let content = match used.iter().find(|(file, _)| file.pointer == pointer) {
                Some((_, placed)) => Some(placed.digest.clone()),
                None => table.get("content").and_then(Value::as_str).map(text).or_else(|| {
                    let variable = table.get("environment").and_then(Value::as_str)?;
                    Some(text(variables.get(variable)?.expose()))
                }),
            };
            if let Some(content) = content {
                contents.insert((kind, name.clone()), content);
            }
        }
    }
    for (_, table) in model.get_mut("services").and_then(Value::as_object_mut).into_iter().flatten() {
        let Some(table) = table.as_object_mut() else { continue };
        let mut hash = Sha256::new();
        let mut any = false;
        for mount in list(table, "volumes") {
            let source = mount.get("source").and_then(Value::as_str).unwrap_or_default();
            if let Some(placed) = source.strip_prefix(&prefix).and_then(|id| by_id.get(id)) {
                hash.update(format!("mount {} {}\0", mount.get("target").cloned().unwrap_or_default(), placed.digest));
                any = true;
            }
        }
        for kind in ["configs", "secrets"] {
            for entry in list(table, kind) {
                let name = source_name(entry).unwrap_or_default();
                if let Some(content) = contents.get(&(kind, name.to_owned())) {
                    hash.update(format!("{kind} {name} {content}\0"));
                    any = true;
                }
            }
        }
        if any {
            let labels = table.entry("labels").or_insert_with(|| json!({}));
            if labels.is_null() {
                *labels = json!({});
            }
            if let Some(labels) = labels.as_object_mut() {
                labels.insert(CONTENT.to_owned(), json!(short(&hash.finalize())));
            }
        }
    }
}

#[cfg(test)]
mod tests;
