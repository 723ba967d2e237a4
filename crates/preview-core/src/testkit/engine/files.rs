//! The files of volumes, in memory.

use std::collections::BTreeMap;
use std::io::{self, Read as _};

use crate::engine::{FileKind, Rights};

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

/// Files by path, and the rights of those that were unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Files(pub(super) BTreeMap<String, MemoryFile>, BTreeMap<String, Rights>);

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

    /// Those of the last entry that was unpacked there.
    pub(super) fn rights(&self, path: &str) -> Rights {
        self.1.get(path).copied().unwrap_or(Rights { mode: 0o644, uid: 0, gid: 0 })
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
            let header = entry.header();
            let rights = Rights { mode: header.mode()?, uid: header.uid()?, gid: header.gid()? };
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
            self.1.insert(path, rights);
        }
        Ok(())
    }
}
