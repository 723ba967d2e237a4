//! Files of a volume: what is written, removed and read with the engine's own rights.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;

use super::{Suite, fails, ok};
use crate::engine::{Archive, FileKind, Inventory, Removed, Rights};
use crate::fault::FaultKind;

/// An entry of an archive.
enum Entry<'a> {
    Directory(&'a str),
    File(&'a str, &'a str),
    Symlink(&'a str, &'a str),
    HardLink(&'a str, &'a str),
}

fn archive(entries: &[Entry<'_>]) -> Archive {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        header.set_uid(1000);
        header.set_gid(1001);
        match entry {
            Entry::Directory(path) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o755);
                tar.append_data(&mut header, format!("{path}/"), std::io::empty()).expect("packs");
            }
            Entry::File(path, content) => {
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, content.as_bytes()).expect("packs");
            }
            Entry::Symlink(path, to) => {
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, path, to).expect("packs");
            }
            Entry::HardLink(path, to) => {
                header.set_entry_type(tar::EntryType::Link);
                tar.append_link(&mut header, path, to).expect("packs");
            }
        }
    }
    let packed = tar.into_inner().expect("packs");
    let pieces: Vec<_> = packed.chunks(700).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces).boxed()
}

impl Suite<'_> {
    pub(super) async fn volumes(&self) {
        let volume = self.name("files");
        let labels = self.preview("files").labels();
        let place = ok(self.engine.open_volume(&volume, &labels).await, "a volume is opened");
        assert!(place.starts_with('/') && place.contains(&volume), "its directory: {place}");
        let again = ok(self.engine.open_volume(&volume, &labels).await, "opening it again is no error");
        assert_eq!(again, place, "it is the same directory");
        self.files_are_written_merged_and_replaced(&volume).await;
        self.hard_links_keep_what_is_replaced(&volume).await;
        self.files_are_removed_whoever_owns_them(&volume).await;
        self.an_open_volume_goes_with_its_preview(&volume).await;
    }

    async fn read(&self, volume: &str, path: &str) -> Option<String> {
        let content = ok(self.engine.read_file(volume, path).await, "a file is read");
        content.map(|content| String::from_utf8(content).expect("text"))
    }

    async fn kind(&self, volume: &str, path: &str) -> Option<FileKind> {
        let found = ok(self.engine.file_kinds(volume, &[path.to_owned()]).await, "a path is looked at");
        found.get(path).copied()
    }

    async fn files_are_written_merged_and_replaced(&self, volume: &str) {
        use Entry::{Directory, File, Symlink};
        let first = archive(&[
            Directory("a"),
            File("a/one", "1"),
            File("a/two", "2"),
            File("deep/er/f", "made with its directories"),
            Symlink("a/link", "../elsewhere"),
        ]);
        ok(self.engine.unpack(volume, first).await, "an archive is unpacked");
        let second = archive(&[Directory("a"), File("a/one", "changed"), File("a/link", "a file now")]);
        ok(self.engine.unpack(volume, second).await, "another one is unpacked");
        let paths = ["a/one", "a/two", "deep/er/f", "a/link"];
        let mut found = Vec::new();
        for path in paths {
            found.push(self.read(volume, path).await);
        }
        let right = ["changed", "2", "made with its directories", "a file now"].map(|text| Some(text.to_owned()));
        assert_eq!(found, right, "directories are merged, files replaced");
        ok(self.engine.unpack(volume, archive(&[Symlink("a/link", "/etc")])).await, "a link is unpacked");
        let kinds = [self.kind(volume, "a").await, self.kind(volume, "a/one").await, self.kind(volume, "a/link").await];
        let right = [FileKind::Directory, FileKind::File, FileKind::Link].map(Some);
        assert_eq!(kinds, right, "links are not followed");
        assert_eq!(self.kind(volume, "a/none").await, None, "what is not there is left out");
        assert_eq!(self.read(volume, "a/none").await, None, "and is no error");
    }

    async fn hard_links_keep_what_is_replaced(&self, volume: &str) {
        use Entry::{File, HardLink};
        ok(self.engine.unpack(volume, archive(&[File("t/f", "before")])).await, "a file is written");
        let replaced = archive(&[HardLink("u/t/f", "t/f"), File("t/f", "after")]);
        ok(self.engine.unpack(volume, replaced).await, "it is linked and replaced in one archive");
        let both = (self.read(volume, "u/t/f").await, self.read(volume, "t/f").await);
        assert_eq!(both, (Some("before".to_owned()), Some("after".to_owned())), "the link keeps the content of before");
        ok(self.engine.unpack(volume, archive(&[HardLink("t/f", "u/t/f")])).await, "it is linked back");
        assert_eq!(self.read(volume, "t/f").await.as_deref(), Some("before"), "the content of before is back");
        let paths = ["t/f".to_owned(), "t/none".to_owned()];
        let rights = ok(self.engine.file_rights(volume, &paths).await, "rights are looked at");
        let right = Rights { mode: 0o644, uid: 1000, gid: 1001 };
        assert_eq!(
            rights,
            BTreeMap::from([("t/f".to_owned(), right)]),
            "those of the entry; what is not there is left out"
        );
        let broken = archive(&[HardLink("u/none", "t/none"), File("t/later", "x")]);
        fails(self.engine.unpack(volume, broken).await, FaultKind::Failed, "a link to nothing fails");
        assert_eq!(self.kind(volume, "t/later").await, None, "what comes after a failure is not unpacked");
    }

    async fn files_are_removed_whoever_owns_them(&self, volume: &str) {
        use Entry::{Directory, File};
        ok(
            self.engine.unpack(volume, archive(&[Directory("gone"), File("gone/f", "x"), File("stays/f", "x")])).await,
            "files are written",
        );
        let paths = ["gone".to_owned(), "never/there".to_owned()];
        ok(self.engine.remove_files(volume, &paths).await, "files are removed, and absence is fine");
        assert_eq!(self.kind(volume, "gone").await, None, "a directory goes with all that is in it");
        assert_eq!(self.kind(volume, "stays/f").await, Some(FileKind::File), "nothing else goes");
    }

    async fn an_open_volume_goes_with_its_preview(&self, volume: &str) {
        let containers = ok(self.engine.containers(&self.preview("files")).await, "containers are listed");
        assert_eq!(containers, [], "what holds on to the volume is no container of the preview");
        let removed = ok(self.engine.remove(&self.preview("files"), &[]).await, "a preview is removed");
        assert_eq!(removed, Removed { volumes: 1, ..Removed::default() }, "the volume alone counts");
        let left = ok(self.engine.inventory(&self.preview("files")).await, "an inventory");
        assert_eq!(left, Inventory::default(), "nothing is left");
        assert_eq!(self.read(volume, "stays/f").await, None, "its files are gone");
    }
}
