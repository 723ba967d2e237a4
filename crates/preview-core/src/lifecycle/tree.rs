//! The files of a preview's volume: brought to those of a commit, and back.
//!
//! The state names the manifest before the first file changes. What is replaced or goes is kept in the volume by hard links, in the archive that
//! replaces it: first the links, then the plan of the way back, then the new files. So a run may die anywhere: where the plan is there, everything that
//! it names is kept; where it is not, nothing has changed yet.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc;

use super::Client;
use super::files::Local;
use crate::engine::{Archive, Container, ContainerState, FileKind, Rights};
use crate::fault::{Fault, FaultKind};
use crate::host::Query;
use crate::host::upload::Pieces;
use crate::ownership::Selector;
use crate::project::Target;
use crate::stack::tree::{
    Changes, Entry, Kind, Manifest, OF_COMMIT, UNDO, UndoPlan, kept_path, undo_path, users, volume_path,
};
use crate::state::{Good, State};

const OPERATION: &str = "send the repository's files";
/// Owner and group of the files.
const OWNER: u64 = OF_COMMIT.uid;
/// What is kept for the way back, and with what rights it was there: an engine gives what a hard link leads to those of the link's entry.
type Kept = BTreeMap<String, Rights>;

/// The volume with a preview's files.
pub(super) fn volume(target: &Target) -> String {
    // No project's own volume is called so: projects' names have no dot.
    format!("files.{}", target.project)
}

/// Its directory on the engine's machine, where the engine keeps everything below `root`.
pub(super) fn directory(target: &Target, root: &str) -> String {
    format!("{}/volumes/{}/_data", root.trim_end_matches('/'), volume(target))
}

/// Whether a run began to change the files, and it is not known how far it came.
pub(super) fn is_between(state: &State) -> bool {
    state.tree.is_some() && state.tree != state.good.as_ref().and_then(|good| good.tree.clone())
}

/// The manifest in a file of the host.
pub(super) async fn read_manifest(client: &Client, target: &Target, file: &str) -> Result<Option<Manifest>, Fault> {
    let name = format!("{}/{}/{file}", target.app, target.name);
    let query = Query { read: vec![name], files_only: true, ..Query::default() };
    let survey = client.host.survey(&client.base_dir, &query).await?;
    let text = survey.files.get(&target.file(&client.base_dir, file));
    Ok(text.and_then(|text| serde_json::from_str(text).ok()))
}

/// Brings the volume, which holds `before`, to `after`; what that changed. `keep`: what is replaced is kept for the way back.
pub(super) async fn put(
    client: &Client,
    target: &Target,
    local: &Local,
    before: Option<&Manifest>,
    after: &Manifest,
    expected: &str,
    keep: bool,
) -> Result<Changes, Fault> {
    let volume = volume(target);
    let labels = Selector::preview(&target.app, &target.name).labels_below(&client.base_dir);
    let place = client.engine.open_volume(&volume, &labels).await?;
    if place != expected {
        let why = format!("the engine has the volume {volume} at {place}, not at {expected}");
        return Err(Fault::new(FaultKind::Unsupported, OPERATION, why));
    }
    let mut changes = after.changes(before);
    if !keep {
        // What a dead first deploy put there is not known to be whole.
        changes.write = after.changes(None).write;
    }
    let mut kept = Kept::new();
    if keep {
        let there = client.engine.file_kinds(&volume, &changes.added).await?;
        let there = there.into_iter().filter(|(_, kind)| *kind != FileKind::Directory).map(|(path, _)| path);
        kept = client.engine.file_rights(&volume, &there.collect::<Vec<_>>()).await?;
        // Those of a commit are known, and may be many.
        let mode = |path: &String| before.and_then(|before| before.mode(path)).unwrap_or(OF_COMMIT.mode);
        kept.extend(changes.replaced.iter().map(|path| (path.clone(), Rights { mode: mode(path), ..OF_COMMIT })));
    }
    let send = |kept: &Kept| {
        let plan = keep.then(|| way_back(&changes, kept));
        client.engine.unpack(&volume, pack(local, after, &changes, plan))
    };
    match send(&kept).await {
        // Maybe the application removed a file that the commit has: then there is nothing to keep.
        Err(fault) if fault.kind == FaultKind::Failed && !kept.is_empty() => {
            let there = client.engine.file_kinds(&volume, &kept.keys().cloned().collect::<Vec<_>>()).await?;
            let before = kept.len();
            kept.retain(|path, _| there.get(path).is_some_and(|kind| *kind != FileKind::Directory));
            if kept.len() == before {
                return Err(fault);
            }
            send(&kept).await?;
        }
        sent => sent?,
    }
    client.engine.remove_files(&volume, &changes.remove).await?;
    Ok(changes)
}

/// How to go back from these changes, where the content of these paths is kept.
fn way_back(changes: &Changes, kept: &Kept) -> UndoPlan {
    let new = changes.added.iter().chain(&changes.replaced).filter(|path| !kept.contains_key(*path));
    let remove = new.chain(&changes.new_roots).cloned().collect();
    UndoPlan { restore: kept.keys().cloned().collect(), rights: kept.clone(), remove }
}

/// Gives the volume the files of before back. Where nothing was changed, or all is back already, nothing happens.
///
/// `model` is the stack of the good version. Programs that read their files anew as these change have the failed version's by now, and many do not notice the way
/// back, since the files of before are the older ones. So the containers of the good version that use what was changed are started again; true if there are any.
pub(super) async fn roll_back(
    client: &Client,
    target: &Target,
    model: Option<&Value>,
    good: &Good,
) -> Result<bool, Fault> {
    let volume = volume(target);
    let Some(text) = client.engine.read_file(&volume, &undo_path()).await? else { return Ok(false) };
    let plan: UndoPlan = serde_json::from_slice(&text).map_err(|error| {
        Fault::new(FaultKind::Invalid, "go back to the files of before", undo_path()).caused_by(error)
    })?;
    // Younger than what it replaces, to whoever looks at times.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let link = |path: &String| Line::Keep {
        at: path.clone(),
        of: kept_path(path),
        rights: plan.rights_of(path),
        modified: now,
    };
    let links = plan.restore.iter().map(link).collect();
    client.engine.unpack(&volume, stream_of(links)).await?;
    client.engine.remove_files(&volume, &plan.remove).await?;
    let changed: Vec<&str> = plan.restore.iter().chain(&plan.remove).map(String::as_str).collect();
    let users = model.map(|model| users(model, &changed)).unwrap_or_default();
    let again = if users.is_empty() {
        false
    } else {
        let containers = client.engine.containers(&client.objects_of(target)).await?;
        start_again(client, &users, &containers, |container| is_of(good, container)).await?
    };
    // Last: a run that dies before this does all of it again.
    forget(client, target).await?;
    Ok(again)
}

/// Starts the containers again that a dead run left and that use what changed in the volume: where the stack is the same as then, they are taken over as they are,
/// and may have read the files of before in between.
pub(super) async fn start_leftovers_again(
    client: &Client,
    model: &Value,
    changes: &Changes,
    containers: &[Container],
    good: &Good,
) -> Result<(), Fault> {
    let changed: Vec<&str> = changes.replaced.iter().chain(&changes.added).map(String::as_str).collect();
    start_again(client, &users(model, &changed), containers, |container| !is_of(good, container)).await.map(|_| ())
}

fn is_of(good: &Good, container: &Container) -> bool {
    good.containers.values().flatten().any(|id| *id == container.id)
}

/// Starts those of these containers again that run, in the order of their services; what does not start is for whoever brings the stack up.
async fn start_again(
    client: &Client,
    services: &[String],
    containers: &[Container],
    is_meant: impl Fn(&Container) -> bool,
) -> Result<bool, Fault> {
    let mut again = false;
    for service in services {
        let theirs = containers.iter().filter(|container| container.service() == Some(service));
        for container in theirs.filter(|one| one.state == ContainerState::Running && is_meant(one)) {
            again = true;
            match client.engine.restart(&container.id).await {
                Err(fault) if fault.kind == FaultKind::Unreachable => return Err(fault),
                _ => {}
            }
        }
    }
    Ok(again)
}

/// Removes what was kept: there is no way back any more.
pub(super) async fn forget(client: &Client, target: &Target) -> Result<(), Fault> {
    client.engine.remove_files(&volume(target), &[UNDO.to_owned()]).await
}

/// An entry of an archive to be.
enum Line {
    Directory {
        at: String,
        mode: u32,
    },
    /// The file `from` of this machine.
    File {
        at: String,
        mode: u32,
        from: PathBuf,
    },
    Text {
        at: String,
        text: Vec<u8>,
    },
    Link {
        at: String,
        to: String,
    },
    /// A hard link at one path of the volume to what is at another, which gets these rights and this time by that.
    Keep {
        at: String,
        of: String,
        rights: Rights,
        modified: u64,
    },
}

fn pack(local: &Local, after: &Manifest, changes: &Changes, plan: Option<UndoPlan>) -> Archive {
    // A file in its place, then a directory in place of that: what an earlier run kept goes.
    let mut lines = vec![
        Line::Text { at: UNDO.to_owned(), text: Vec::new() },
        Line::Directory { at: UNDO.to_owned(), mode: 0o700 },
    ];
    if let Some(plan) = plan {
        // In its place it is not to look as if it had changed just now, before it does.
        lines.extend(plan.restore.iter().map(|path| Line::Keep {
            at: kept_path(path),
            of: path.clone(),
            rights: plan.rights_of(path),
            modified: 0,
        }));
        // Strings always serialise.
        lines.push(Line::Text { at: undo_path(), text: serde_json::to_vec(&plan).unwrap_or_default() });
    }
    for (id, path) in &changes.write {
        let at = volume_path(id, path);
        let Some(Entry(kind, mode, value)) = after.roots.get(id).and_then(|root| root.get(path)) else { continue };
        let Some(source) = local.sources.get(id) else { continue };
        let from = if path.is_empty() { source.clone() } else { source.join(path) };
        lines.push(match kind {
            Kind::Directory => Line::Directory { at, mode: *mode },
            Kind::Link => Line::Link { at, to: value.clone() },
            Kind::File => Line::File { at, mode: *mode, from },
        });
    }
    stream_of(lines)
}

fn stream_of(lines: Vec<Line>) -> Archive {
    let (queue, mut pieces) = mpsc::channel::<Bytes>(4);
    let packing = tokio::task::spawn_blocking(move || write(lines, queue));
    let sent = stream::poll_fn(move |context| pieces.poll_recv(context)).map(Ok);
    // A failure comes last: what was packed before it is no whole archive, and the engine must not take it for one.
    let end = stream::once(packing).filter_map(|packed| async move {
        match packed {
            Ok(Ok(())) => None,
            Ok(Err(fault)) => Some(Err(fault)),
            Err(error) => Some(Err(Fault::new(FaultKind::Failed, OPERATION, "the reader died").caused_by(error))),
        }
    });
    sent.chain(end).boxed()
}

fn write(lines: Vec<Line>, queue: mpsc::Sender<Bytes>) -> Result<(), Fault> {
    let mut tar = tar::Builder::new(Pieces::new(queue));
    for line in lines {
        let (Line::Directory { at, .. }
        | Line::File { at, .. }
        | Line::Text { at, .. }
        | Line::Link { at, .. }
        | Line::Keep { at, .. }) = &line;
        let at = at.clone();
        add(&mut tar, line).map_err(|error| Fault::new(FaultKind::Failed, OPERATION, at).caused_by(error))?;
    }
    let ended = tar.into_inner().and_then(|mut pieces| pieces.flush());
    ended.map_err(|error| Fault::new(FaultKind::Failed, OPERATION, "").caused_by(error))
}

fn add(tar: &mut tar::Builder<Pieces>, line: Line) -> io::Result<()> {
    let header = |kind: tar::EntryType, mode: u32, size: u64, modified: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(modified);
        header.set_uid(OWNER);
        header.set_gid(OWNER);
        header
    };
    match line {
        Line::Directory { at, mode } => {
            tar.append_data(&mut header(tar::EntryType::Directory, mode, 0, 0), format!("{at}/"), io::empty())
        }
        Line::Text { at, text } => {
            tar.append_data(&mut header(tar::EntryType::Regular, 0o600, text.len() as u64, 0), at, &text[..])
        }
        Line::File { at, mode, from } => {
            let file = fs::File::open(&from)?;
            let metadata = file.metadata()?;
            let mut header =
                header(tar::EntryType::Regular, mode, metadata.len(), metadata.mtime().max(0).unsigned_abs());
            // A file that grows or shrinks meanwhile must not shift what comes after it.
            tar.append_data(&mut header, at, io::Read::take(io::Read::chain(file, io::repeat(0)), metadata.len()))
        }
        Line::Link { at, to } => tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0, 0), at, to),
        Line::Keep { at, of, rights, modified } => {
            let mut header = header(tar::EntryType::Link, rights.mode, 0, modified);
            header.set_uid(rights.uid);
            header.set_gid(rights.gid);
            tar.append_link(&mut header, at, of)
        }
    }
}
