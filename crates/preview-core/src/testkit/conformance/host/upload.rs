//! Uploads.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::{apply, kind, names, read, remove, set, survey, write};
use crate::fault::FaultKind;
use crate::host::{Entry, Host};

fn local_tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path();
    std::fs::create_dir_all(path.join("tree/empty")).expect("makes directories");
    std::fs::create_dir_all(path.join("tree/sub dir")).expect("makes directories");
    std::fs::write(path.join("tree/sub dir/it's"), "quoted").expect("writes");
    std::fs::write(path.join(format!("tree/{}", "long".repeat(50))), "long").expect("writes");
    std::fs::write(path.join("tree/large"), "0123456789abcdef".repeat(50_000)).expect("writes");
    symlink("sub dir/it's", path.join("tree/link")).expect("links");
    symlink("/no/such/file", path.join("tree/dangling")).expect("links");
    std::fs::write(path.join("single"), "single").expect("writes");
    dir
}

pub(super) fn entry(source: Option<&Path>, target: &str) -> Entry {
    Entry { source: source.map(Path::to_owned), target: target.to_owned() }
}

pub(super) async fn upload_brings_trees_files_links_and_empty_directories(host: &dyn Host, base: &str) {
    let local = local_tree();
    let entries = [
        entry(Some(&local.path().join("tree")), "here/tree"),
        entry(Some(&local.path().join("single")), "single file"),
        entry(Some(&local.path().join("single")), "here/tree/large"),
        entry(None, "nothing in it"),
    ];
    assert!(host.upload(&format!("{base}/files/1"), &entries).await.expect("uploads"));
    let base = &format!("{base}/files");
    assert_eq!(names(host, base, "*").await, set(&["1"]));
    assert_eq!(names(host, base, ".*").await.iter().filter(|name| name.len() > 2).count(), 0, "no temporary directory");
    assert_eq!(names(host, base, "1/*").await, set(&["1/here", "1/single file", "1/nothing in it"]));
    let long = format!("1/here/tree/{}", "long".repeat(50));
    let tree = [
        "1/here/tree/sub dir",
        "1/here/tree/empty",
        "1/here/tree/large",
        "1/here/tree/link",
        "1/here/tree/dangling",
        &long,
    ];
    assert_eq!(names(host, base, "1/here/tree/*").await, set(&tree));
    let files = survey(host, base, &["1/*", "1/here/tree/*", "1/here/tree/sub dir/*"], &[]).await.files;
    let content = |name: &str| files.get(&format!("{base}/{name}")).map(String::as_str);
    assert_eq!(content("1/single file"), Some("single"));
    assert_eq!(content("1/here/tree/sub dir/it's"), Some("quoted"));
    assert_eq!(content("1/here/tree/link"), Some("quoted"));
    assert_eq!(content(&long), Some("long"));
    assert_eq!(content("1/here/tree/large").map(str::len), Some(800_000));
}

pub(super) async fn upload_happens_once(host: &dyn Host, base: &str) {
    let local = local_tree();
    let single = local.path().join("single");
    let directory = format!("{base}/files");
    assert!(host.upload(&directory, &[entry(Some(&single), "f")]).await.expect("uploads"));
    std::fs::write(&single, "changed").expect("writes");
    assert!(!host.upload(&directory, &[entry(Some(&single), "f")]).await.expect("is there"));
    assert_eq!(read(host, base, "files/f").await.as_deref(), Some("single"));
    apply(host, &[remove(&*directory)]).await;
    assert!(host.upload(&directory, &[entry(Some(&single), "f")]).await.expect("uploads"));
    assert_eq!(read(host, base, "files/f").await.as_deref(), Some("changed"));
}

pub(super) async fn upload_of_nothing_makes_a_directory(host: &dyn Host, base: &str) {
    assert!(host.upload(&format!("{base}/d"), &[]).await.expect("uploads"));
    assert_eq!(names(host, base, "*").await, set(&["d"]));
    assert_eq!(names(host, base, "d/*").await, set(&[]));
}

pub(super) async fn upload_that_fails_leaves_nothing(host: &dyn Host, base: &str) {
    let local = local_tree();
    let good = entry(Some(&local.path().join("tree")), "tree");
    let bad = entry(Some(&local.path().join("none")), "none");
    assert_eq!(kind(host.upload(&format!("{base}/d"), &[good.clone(), bad]).await), FaultKind::NotFound);
    assert_eq!(names(host, base, "*").await, set(&[]));
    assert!(host.upload(&format!("{base}/d"), &[good]).await.expect("uploads"));
    assert_eq!(names(host, base, "*").await, set(&["d"]));
    assert_eq!(names(host, base, ".preview*").await, set(&[]));
}

pub(super) async fn upload_refuses_what_leaves_the_directory(host: &dyn Host, base: &str) {
    let local = local_tree();
    let single = local.path().join("single");
    for target in ["", "/abs", "../up", "a/../../up", ".", "a//b"] {
        assert_eq!(
            kind(host.upload(&format!("{base}/d"), &[entry(Some(&single), target)]).await),
            FaultKind::Invalid,
            "{target}"
        );
    }
    let behind = [entry(Some(&local.path().join("tree")), "tree"), entry(Some(&single), "tree/link/x")];
    assert_eq!(kind(host.upload(&format!("{base}/d"), &behind).await), FaultKind::Invalid);
    assert_eq!(names(host, base, "*").await, set(&[]));
}

pub(super) async fn upload_over_a_file_is_refused(host: &dyn Host, base: &str) {
    apply(host, &[write(format!("{base}/f"), "x")]).await;
    assert_eq!(kind(host.upload(&format!("{base}/f"), &[]).await), FaultKind::Conflict);
    assert_eq!(read(host, base, "f").await.as_deref(), Some("x"));
}
