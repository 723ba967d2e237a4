//! The repository's files that a stack uses: found, checked, hashed, and where they go on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::Error;
use crate::host::Entry;
use crate::stack::{FileUse, Place, file_uses};

/// More than this is not configuration any more.
const LARGEST: u64 = 1 << 30;

/// One tree to upload: its directory's name is its content's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Upload {
    /// 16 hex digits.
    pub(super) hash: String,
    /// Where it comes from; `None` is an empty directory.
    pub(super) entry: Entry,
    /// The source as it stands in the model.
    pub(super) source: String,
}

/// Makes the paths in the model canonical, so that links cannot lead out of the repository unseen. Reads the file system.
/// `but` are pointers to paths of the host, which mean nothing here.
pub(super) fn canonical(model: &mut Value, but: &BTreeSet<String>) -> Result<Vec<FileUse>, Error> {
    let mut uses = file_uses(model);
    uses.retain(|file| !but.contains(&file.pointer));
    for file in &mut uses {
        let found = match fs::canonicalize(&file.source) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match file.place {
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
            *place = Value::String(text.to_owned());
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

/// The trees to upload, each once. Reads the file system.
pub(super) fn uploads(uses: &[FileUse]) -> Result<Vec<Upload>, Error> {
    let mut found: BTreeMap<&Path, Upload> = BTreeMap::new();
    let mut total = 0;
    for file in uses.iter().filter(|file| file.place != Place::Context) {
        if found.contains_key(file.source.as_path()) {
            continue;
        }
        let name = file.source.file_name().and_then(|name| name.to_str()).unwrap_or("root").to_owned();
        let exists = file.source.exists();
        let mut hash = Sha256::new();
        hash.update(&name);
        if exists {
            digest(&mut hash, &file.source, "", &mut total)
                .map_err(|error| Error::invalid(format!("{}: {}: {error}", file.key, file.source.display())))?;
        }
        let hash: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let entry = Entry { source: exists.then(|| file.source.clone()), target: name };
        let source = file.source.to_string_lossy().into_owned();
        found.insert(&file.source, Upload { hash, entry, source });
    }
    Ok(found.into_values().collect())
}

/// Where each source is on the host.
pub(super) fn places(uploads: &[Upload], directory: &str) -> BTreeMap<String, String> {
    uploads
        .iter()
        .map(|upload| (upload.source.clone(), format!("{directory}/files/{}/{}", upload.hash, upload.entry.target)))
        .collect()
}

/// Names, modes and contents, in order.
fn digest(hash: &mut Sha256, path: &Path, name: &str, total: &mut u64) -> std::io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let kind = metadata.file_type();
    let mode = metadata.permissions().mode() & 0o777;
    hash.update(format!("\0{name}\0{mode:o}\0"));
    if kind.is_symlink() {
        hash.update("l");
        hash.update(fs::read_link(path)?.as_os_str().as_encoded_bytes());
    } else if kind.is_dir() {
        hash.update("d");
        let mut children: Vec<_> = fs::read_dir(path)?.collect::<Result<_, _>>()?;
        children.sort_by_key(fs::DirEntry::file_name);
        for child in children {
            let child_name = child.file_name();
            let child_name = child_name.to_str().ok_or_else(|| std::io::Error::other("a name in it is not UTF-8"))?;
            digest(hash, &child.path(), &format!("{name}/{child_name}"), total)?;
        }
    } else if kind.is_file() {
        hash.update(format!("f{}\0", metadata.len()));
        *total += metadata.len();
        if *total > LARGEST {
            return Err(std::io::Error::other("more than 1 GB to upload: use an image or a volume for data"));
        }
        let mut file = fs::File::open(path)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
        }
    } else {
        let what = if kind.is_socket() { "a socket" } else { "a device or pipe" };
        return Err(std::io::Error::other(format!("{} is {what}, which cannot be uploaded", path.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn links_are_followed_before_the_policy_looks() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("innocent")).unwrap();
        let mut model = json!({"services": {"a": {"volumes": [{"type": "bind", "source": root.join("innocent")}]}}});
        canonical(&mut model, &BTreeSet::new()).unwrap();
        assert_eq!(model.pointer("/services/a/volumes/0/source"), Some(&json!("/etc")));
        assert_eq!(crate::stack::violations(&model, &root, None, &[]).len(), 1);
    }

    #[test]
    fn a_missing_source_is_an_empty_directory_only_where_compose_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let source = root.join("a/b");
        let mut model = json!({"services": {"a": {"volumes": [{"type": "bind", "source": source, "bind": {"create_host_path": true}}]}}});
        let uses = canonical(&mut model, &BTreeSet::new()).unwrap();
        let uploads = uploads(&uses).unwrap();
        assert_eq!((uploads[0].entry.source.as_ref(), uploads[0].entry.target.as_str()), (None, "b"));
        let mut model = json!({"services": {"a": {"volumes": [{"type": "bind", "source": source}]}}});
        let error = canonical(&mut model, &BTreeSet::new()).unwrap_err().to_string();
        assert!(error.contains("services.a.volumes") && error.contains("does not exist"), "{error}");
    }

    #[test]
    fn the_hash_sees_content_names_modes_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap().join("www");
        fs::create_dir(&root).unwrap();
        let hash = || {
            let uses =
                [FileUse { pointer: String::new(), key: "k".into(), source: root.clone(), place: Place::Content }];
            uploads(&uses).unwrap()[0].hash.clone()
        };
        let mut seen = std::collections::BTreeSet::from([hash()]);
        fs::write(root.join("a"), "1").unwrap();
        assert!(seen.insert(hash()));
        fs::write(root.join("a"), "2").unwrap();
        assert!(seen.insert(hash()));
        fs::rename(root.join("a"), root.join("b")).unwrap();
        assert!(seen.insert(hash()));
        fs::set_permissions(root.join("b"), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(seen.insert(hash()));
        std::os::unix::fs::symlink("b", root.join("l")).unwrap();
        assert!(seen.insert(hash()));
        assert_eq!(hash(), hash());
    }
}
