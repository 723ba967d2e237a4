//! The files of volumes, in memory.

use std::collections::BTreeMap;
use std::io::{self, Read as _};

use crate::engine::FileKind;

/// What is at a path of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryFile {
    /// A directory.
    Directory,
    /// A file with this content.
    File(Vec<u8>),
    /// A symbolic link to this.
    Link(String),
}

/// Files by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Files(pub(super) BTreeMap<String, MemoryFile>);

impl Files {
    /// Removes what is at a path, with all below it.
    pub(super) fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.0.retain(|known, _| known != path && !known.starts_with(&below));
    }

    /// Puts something at a path, in place of what is there; a directory is merged with a directory.
    pub(super) fn put(&mut self, path: &str, file: MemoryFile) {
        if file == MemoryFile::Directory && self.0.get(path) == Some(&MemoryFile::Directory) {
            return;
        }
        self.remove(path);
        for (at, _) in path.match_indices('/') {
            self.0.entry(path[..at].to_owned()).or_insert(MemoryFile::Directory);
        }
        self.0.insert(path.to_owned(), file);
    }

    pub(super) fn kind(&self, path: &str) -> Option<FileKind> {
        self.0.get(path).map(|file| match file {
            MemoryFile::Directory => FileKind::Directory,
            MemoryFile::File(_) => FileKind::File,
            MemoryFile::Link(_) => FileKind::Link,
        })
    }

    /// Unpacks an archive, entry by entry; a failure leaves what came before it.
    pub(super) fn unpack(&mut self, archive: &[u8]) -> io::Result<()> {
        for entry in tar::Archive::new(archive).entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().trim_end_matches('/').to_owned();
            let link = entry.link_name()?.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let file = match entry.header().entry_type() {
                tar::EntryType::Directory => MemoryFile::Directory,
                tar::EntryType::Symlink => MemoryFile::Link(link),
                tar::EntryType::Link => {
                    let linked = self.0.get(&link).cloned();
                    linked
                        .filter(|file| *file != MemoryFile::Directory)
                        .ok_or_else(|| io::Error::other(format!("link {link} {path}: no such file or directory")))?
                }
                tar::EntryType::Regular => {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content)?;
                    MemoryFile::File(content)
                }
                other => return Err(io::Error::other(format!("an entry of type {other:?}"))),
            };
            self.put(&path, file);
        }
        Ok(())
    }
}
