//! The repository's files that a stack uses: found, checked and hashed on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::Error;
use crate::stack::tree::{self, Entry, Kind, Manifest, Placed, Root};
use crate::stack::{FileUse, Place, file_uses};

/// More than this is not configuration any more, bytes.
const LARGEST: u64 = 1 << 30;
/// Nor are more paths than this.
const MOST: usize = 200_000;
/// Git's own files: the checkout's token is in them.
const GIT: &str = ".git";

/// The files that a preview gets, as they are on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Local {
    /// What is in each root.
    pub(super) manifest: Manifest,
    /// Each root's path on this machine; nothing need be there.
    pub(super) sources: BTreeMap<String, PathBuf>,
    /// What was left out, for people.
    pub(super) warnings: Vec<String>,
}

impl Local {
    /// Where the files go, by their path on this machine.
    pub(super) fn placed(&self) -> BTreeMap<PathBuf, Placed> {
        let digests = self.manifest.digests();
        let placed = |(id, source): (&String, &PathBuf)| {
            let digest = digests.get(id).cloned().unwrap_or_default();
            let itself = self.manifest.roots.get(id).and_then(|root| root.get(""));
            let is_file = itself.is_some_and(|entry| entry.0 == Kind::File);
            (source.clone(), Placed { id: id.clone(), digest, is_file })
        };
        self.sources.iter().map(placed).collect()
    }
}

/// Makes the paths in the model canonical, so that links cannot lead out of the repository unseen. Reads the file system.
/// `but` are pointers to paths of the host, which mean nothing here.
pub(super) fn canonical(model: &mut Value, but: &BTreeSet<String>) -> Result<Vec<FileUse>, Error> {
    let mut uses = file_uses(model);
    uses.retain(|file| !but.contains(&file.pointer));
    for file in &mut uses {
        let found = match fs::canonicalize(&file.source) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => match file.place {
                Place::Mount { create: true } => missing(&file.source),
                _ => return Err(Error::invalid(format!("{}: {} does not exist", file.key, file.source.display()))),
            },
            Err(error) => {
                return Err(Error::invalid(format!("{}: {} cannot be read: {error}", file.key, file.source.display())));
            }
        };
        let Some(text) = found.to_str() else {
            return Err(Error::invalid(format!("{}: {} is not UTF-8", file.key, found.display())));
        };
        if let Some(place) = model.pointer_mut(&file.pointer) {
            // A dollar sign in a name begins no variable.
            *place = Value::String(text.replace('$', "$$"));
        }
        file.source = found;
    }
    Ok(uses)
}

/// The canonical form of a path of which the last parts do not exist.
fn missing(path: &Path) -> PathBuf {
    let mut tail = Vec::new();
    let mut head = path;
    loop {
        if let Ok(found) = fs::canonicalize(head) {
            return tail.iter().rev().fold(found, |path, part| path.join(part));
        }
        match (head.parent(), head.file_name()) {
            (Some(parent), Some(name)) => {
                tail.push(name);
                head = parent;
            }
            _ => return path.to_owned(),
        }
    }
}

/// What the preview gets of the repository: all that is mounted, and the files of configs and secrets. Reads the file system.
pub(super) fn local(uses: &[FileUse], repository: &Path) -> Result<Local, Error> {
    let uses: Vec<&FileUse> = uses.iter().filter(|file| file.place != Place::Context).collect();
    let sources: BTreeSet<&Path> = uses.iter().map(|file| file.source.as_path()).collect();
    let mut scan = Scan { repository, sources: &sources, total: 0, paths: 0, warnings: Vec::new() };
    let mut local = Local::default();
    for file in uses {
        let relative = file.source.strip_prefix(repository).unwrap_or(&file.source);
        if relative.components().any(|part| part.as_os_str() == GIT) {
            let why = "git's own files stay here, since the checkout's token is in them; remove the mount";
            return Err(Error::invalid(format!("{}: {}: {why}", file.key, relative.display())));
        }
        let id = tree::root_id(&relative.to_string_lossy());
        if local.manifest.roots.contains_key(&id) {
            continue;
        }
        let mut root = Root::new();
        if file.source.symlink_metadata().is_ok() {
            let failed = |error| Error::invalid(format!("{}: {}: {error}", file.key, file.source.display()));
            scan.path(&mut root, &file.source, &file.source, "").map_err(failed)?;
        } else {
            root.insert(String::new(), Entry(Kind::Directory, 0o755, String::new()));
        }
        local.manifest.roots.insert(id.clone(), root);
        local.sources.insert(id, file.source.clone());
    }
    local.warnings = scan.warnings;
    Ok(local)
}

/// A walk through roots.
struct Scan<'a> {
    repository: &'a Path,
    /// All roots: those inside another one are not part of it.
    sources: &'a BTreeSet<&'a Path>,
    total: u64,
    paths: usize,
    warnings: Vec<String>,
}

impl Scan<'_> {
    fn path(&mut self, root: &mut Root, source: &Path, path: &Path, name: &str) -> io::Result<()> {
        self.paths += 1;
        if self.paths > MOST {
            return Err(io::Error::other(format!("more than {MOST} files to send: use an image or a volume for data")));
        }
        let metadata = fs::symlink_metadata(path)?;
        let kind = metadata.file_type();
        let mode = metadata.permissions().mode() & 0o7777;
        let entry = if kind.is_symlink() {
            // Links to it were followed: this one was put there since, and on the host the root itself must never be a link.
            if name.is_empty() {
                return Err(io::Error::other("it became a link while it was looked at"));
            }
            let target = fs::read_link(path)?;
            let text = target.to_str().ok_or_else(|| io::Error::other("a link in it is not UTF-8"))?;
            if leads_out(self.repository, source, path, &target) {
                let shown = path.strip_prefix(self.repository).unwrap_or(path).display();
                self.warnings.push(format!("{shown} is left out: it is a link that leads out of what is mounted"));
                return Ok(());
            }
            Entry(Kind::Link, 0o777, text.to_owned())
        } else if kind.is_dir() {
            root.insert(name.to_owned(), Entry(Kind::Directory, mode, String::new()));
            if !name.is_empty() && self.sources.contains(path) {
                return Ok(());
            }
            let mut children: Vec<_> = fs::read_dir(path)?.collect::<Result<_, _>>()?;
            children.sort_by_key(fs::DirEntry::file_name);
            for child in children.iter().filter(|child| child.file_name() != GIT) {
                let own = child.file_name();
                let own = own.to_str().ok_or_else(|| io::Error::other("a name in it is not UTF-8"))?;
                if tree::is_reserved(own) {
                    let path = child.path();
                    let shown = path.strip_prefix(self.repository).unwrap_or(&path).display();
                    self.warnings.push(format!("{shown} is left out: names like this are preview's own in the volume"));
                    continue;
                }
                let below = if name.is_empty() { own.to_owned() } else { format!("{name}/{own}") };
                self.path(root, source, &child.path(), &below)?;
            }
            return Ok(());
        } else if kind.is_file() {
            self.total += metadata.len();
            if self.total > LARGEST {
                return Err(io::Error::other("more than 1 GB to send: use an image or a volume for data"));
            }
            Entry(Kind::File, mode, hash(&mut fs::File::open(path)?)?)
        } else {
            let what = if kind.is_socket() { "a socket" } else { "a device or pipe" };
            return Err(io::Error::other(format!("{} is {what}, which cannot be sent", path.display())));
        };
        root.insert(name.to_owned(), entry);
        Ok(())
    }
}

/// Whether a relative link leads out of the repository, or so far out of its root that the engine would not make it. An absolute one means the
/// container's own files.
fn leads_out(repository: &Path, source: &Path, path: &Path, target: &Path) -> bool {
    if target.is_absolute() {
        return false;
    }
    let mut depth = path.parent().and_then(|parent| parent.strip_prefix(source).ok()).map_or(0, depth_of);
    let above = source.strip_prefix(repository).map_or(0, depth_of).min(1);
    for part in target.components() {
        match part {
            std::path::Component::ParentDir => depth -= 1,
            std::path::Component::Normal(_) => depth += 1,
            _ => {}
        }
        if depth < -above {
            return true;
        }
    }
    false
}

fn depth_of(path: &Path) -> i64 {
    i64::try_from(path.components().count()).unwrap_or(i64::MAX)
}

fn hash(file: &mut impl io::Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        (dir, root)
    }

    fn used(source: PathBuf) -> FileUse {
        FileUse {
            pointer: String::new(),
            key: "services.web.volumes".into(),
            source,
            place: Place::Mount { create: true },
        }
    }

    fn names(local: &Local, source: &Path, repository: &Path) -> Vec<String> {
        let id = tree::root_id(source.strip_prefix(repository).unwrap().to_str().unwrap());
        local.manifest.roots[&id].keys().cloned().collect()
    }

    #[test]
    fn links_are_followed_before_the_policy_looks() {
        let (_dir, root) = directory();
        symlink("/etc", root.join("innocent")).unwrap();
        let mut model = json!({"services": {"a": {"volumes": [{"type": "bind", "source": root.join("innocent")}]}}});
        canonical(&mut model, &BTreeSet::new()).unwrap();
        assert_eq!(model.pointer("/services/a/volumes/0/source"), Some(&json!("/etc")));
        assert_eq!(crate::stack::violations(&model, &root, None, &[]).len(), 1);
    }

    #[test]
    fn a_name_with_a_dollar_sign_is_that_name_and_no_variable() {
        let (_dir, root) = directory();
        fs::create_dir(root.join("${EVIL}")).unwrap();
        symlink("${EVIL}", root.join("link")).unwrap();
        for written in ["link", "$${EVIL}"] {
            let source = root.join(written);
            let mut model = json!({"services": {"a": {"volumes": [{"type": "bind", "source": source}]}}});
            let uses = canonical(&mut model, &BTreeSet::new()).unwrap();
            assert_eq!(uses[0].source, root.join("${EVIL}"));
            assert_eq!(model.pointer("/services/a/volumes/0/source"), Some(&json!(root.join("$${EVIL}"))));
        }
    }

    #[test]
    fn a_missing_source_is_an_empty_directory_only_where_compose_says_so() {
        let (_dir, root) = directory();
        let source = root.join("a/b");
        let mut model = json!({"services": {"a": {"volumes": [{"type": "bind", "source": source, "bind": {"create_host_path": true}}]}}});
        let uses = canonical(&mut model, &BTreeSet::new()).unwrap();
        let local = local(&uses, &root).unwrap();
        assert_eq!(names(&local, &source, &root), [""]);
        let mut model = json!({"services": {"a": {"volumes": [{"type": "bind", "source": source}]}}});
        let error = canonical(&mut model, &BTreeSet::new()).unwrap_err().to_string();
        assert!(error.contains("services.a.volumes") && error.contains("does not exist"), "{error}");
    }

    #[test]
    fn the_hash_sees_content_names_modes_and_links() {
        let (_dir, repository) = directory();
        let root = repository.join("www");
        fs::create_dir(&root).unwrap();
        let hash = || {
            let local = local(&[used(root.clone())], &repository).unwrap();
            local.placed()[&root].digest.clone()
        };
        let mut seen = BTreeSet::from([hash()]);
        fs::write(root.join("a"), "1").unwrap();
        assert!(seen.insert(hash()));
        fs::write(root.join("a"), "2").unwrap();
        assert!(seen.insert(hash()));
        fs::rename(root.join("a"), root.join("b")).unwrap();
        assert!(seen.insert(hash()));
        fs::set_permissions(root.join("b"), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(seen.insert(hash()));
        symlink("b", root.join("l")).unwrap();
        assert!(seen.insert(hash()));
        assert_eq!(hash(), hash());
    }

    #[test]
    fn gits_files_and_what_another_root_has_are_not_part_of_a_root() {
        let (_dir, root) = directory();
        for path in [".git/config", "vendor/.git", "static/index.html", "app.conf", "main.py"] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), path).unwrap();
        }
        let (www, conf) = (root.join("static"), root.join("app.conf"));
        let local = local(&[used(root.clone()), used(www.clone()), used(conf.clone())], &root).unwrap();
        assert_eq!(names(&local, &root, &root), ["", "app.conf", "main.py", "static", "vendor"]);
        assert_eq!(names(&local, &www, &root), ["", "index.html"]);
        assert_eq!(names(&local, &conf, &root), [""]);
        let inside = local_error(&[used(root.join(".git/hooks"))], &root);
        assert!(inside.contains("services.web.volumes: .git/hooks") && inside.contains("token"), "{inside}");
    }

    fn local_error(uses: &[FileUse], repository: &Path) -> String {
        local(uses, repository).unwrap_err().to_string()
    }

    /// The engine writes through links that a container made of directories, so a commit must not name what mounts lead through.
    #[test]
    fn a_commit_names_nothing_that_is_ours_in_the_volume() {
        let (_dir, root) = directory();
        let www = root.join("www");
        let id = tree::root_id("www");
        for name in [tree::volume_path(&id, ""), tree::UNDO.to_owned(), tree::volume_path(&id, "").to_uppercase()] {
            fs::create_dir_all(www.join("sub").join(&name)).unwrap();
            fs::write(www.join("sub").join(name).join("x"), "x").unwrap();
        }
        symlink("/", www.join("sub").join(tree::volume_path("0", ""))).unwrap();
        fs::write(www.join("sub/.preview-files"), "ordinary").unwrap();
        let local = local(&[used(www.clone())], &root).unwrap();
        assert_eq!(names(&local, &www, &root), ["", "sub", "sub/.preview-files"]);
        assert_eq!(local.warnings.len(), 4, "{:?}", local.warnings);
        // What is ours is so at every step of the way.
        for path in [tree::volume_path(&id, ""), tree::undo_path(), tree::kept_path(&tree::volume_path(&id, ""))] {
            assert!(path.split('/').all(tree::is_reserved), "{path}");
        }
    }

    #[test]
    fn links_that_lead_out_are_left_out_and_said() {
        let (_dir, root) = directory();
        fs::create_dir_all(root.join("app/sub")).unwrap();
        for (link, target) in [
            ("app/sub/out", "../../../secret"),
            ("app/sub/zigzag", "x/../../../../secret"),
            ("app/sub/up", "../x"),
            ("app/beside", "../other"),
            ("app/absolute", "/usr/bin/python3"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        let app = root.join("app");
        let local = local(&[used(app.clone())], &root).unwrap();
        assert_eq!(names(&local, &app, &root), ["", "absolute", "beside", "sub", "sub/up"]);
        assert_eq!(local.warnings.len(), 2, "{:?}", local.warnings);
        assert!(local.warnings[0].starts_with("app/sub/out is left out"), "{:?}", local.warnings);
    }
}
