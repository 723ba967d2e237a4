//! The files of a volume, through the engine's archive API on a container that is made and never started.
//!
//! The daemon unpacks with its own rights, so what a container wrote as root is changed and removed like anything else, whoever we are on
//! the engine's machine, and nothing has to run there.
//!
//! **Removal.** The API has no call for it. But whatever is at the path of an archive's entry goes before the entry is made, unless both
//! are directories; and an entry of a type that tar does not know is then not made but refused. So a removal is an archive with one such entry, and
//! its success is that refusal. Afterwards the path is looked at: an engine that does otherwise is found out, and nothing is taken for gone
//! that is there.

use std::collections::BTreeMap;
use std::time::Duration;

use bollard::errors::Error;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use hyper::Method;
use serde::Deserialize;
use serde_json::json;

use super::{AT_ONCE, DockerEngine, ask, errors};
use crate::engine::{Archive, FileKind, Rights};
use crate::fault::{Fault, FaultKind};
use crate::http::escape;
use crate::ownership;

/// Where the container has the volume.
const PLACE: &str = "/files";
/// The longest that the engine may take no piece of an archive.
const STALL: Duration = Duration::from_secs(60);
/// A type that tar does not know.
const UNKNOWN: u8 = b'Z';
/// A file that is read as a whole has at most so many bytes.
const LARGEST: usize = 64 << 20;

/// So much of an archive holds the header of its first entry, with whatever comes before that.
const BEGINNING: usize = 16 << 10;

const OPEN: &str = "open the volume of files";
const UNPACK: &str = "write files into the volume";
const REMOVE: &str = "remove files from the volume";
const LOOK: &str = "look at files of the volume";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Made {
    mountpoint: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Holder {
    #[serde(default)]
    mounts: Vec<Mount>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Mount {
    destination: String,
    source: String,
}

/// See [`Engine::open_volume`](crate::engine::Engine::open_volume). The container has the volume's name.
pub(super) async fn open(
    engine: &DockerEngine,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> Result<String, Fault> {
    let path = format!("/containers/{name}/json");
    let held = engine.transport.json::<Holder>(Method::GET, &path, Bytes::new());
    match ask(OPEN, name, held).await {
        Ok(held) => {
            let ours = held.mounts.into_iter().find(|mount| mount.destination == PLACE);
            return ours.map(|mount| mount.source).ok_or_else(|| {
                Fault::new(FaultKind::Conflict, OPEN, format!("a container {name} is there that is not ours"))
            });
        }
        Err(fault) if fault.kind == FaultKind::NotFound => {}
        Err(fault) => return Err(fault),
    }
    let body = json!({ "Name": name, "Labels": labels }).to_string();
    let made = engine.transport.json::<Made>(Method::POST, "/volumes/create", body.into());
    let (made, image) = tokio::try_join!(ask(OPEN, name, made), empty_image(engine, name, labels))?;
    let mut labels = labels.clone();
    labels.insert(ownership::FILES.to_owned(), "true".to_owned());
    let body = json!({
        "Image": image,
        // Needed to make it; never run.
        "Cmd": ["none"],
        "Labels": labels,
        "HostConfig": {
            "NetworkMode": "none",
            "Mounts": [{ "Type": "volume", "Source": name, "Target": PLACE }],
        },
    });
    let path = format!("/containers/create?name={}", escape(name));
    let created = engine.transport.json::<serde_json::Value>(Method::POST, &path, body.to_string().into());
    match ask(OPEN, name, created).await {
        Ok(_) => {}
        // A run that died has made it since.
        Err(fault) if fault.kind == FaultKind::Conflict => {}
        Err(fault) => return Err(fault),
    }
    Ok(made.mountpoint)
}

/// An image with nothing in it, which a container needs to be made: its id.
async fn empty_image(engine: &DockerEngine, name: &str, labels: &BTreeMap<String, String>) -> Result<String, Fault> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        status: String,
        #[serde(default)]
        error: String,
    }
    let failed = |why: &str| Fault::new(FaultKind::Failed, OPEN, format!("{name}: no empty image: {why}"));
    let mut path = "/images/create?fromSrc=-".to_owned();
    for (key, value) in labels.iter().chain([(&ownership::FILES.to_owned(), &"true".to_owned())]) {
        let quoted = value.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
        path.push_str(&format!("&changes={}", escape(&format!("LABEL \"{key}\"=\"{quoted}\""))));
    }
    let mut tar = tar::Builder::new(Vec::new());
    let mut directory = tar::Header::new_gnu();
    directory.set_entry_type(tar::EntryType::Directory);
    directory.set_mode(0o755);
    directory.set_size(0);
    let tar = tar.append_data(&mut directory, "files/", std::io::empty()).and_then(|()| tar.into_inner());
    let tar = tar.map_err(|error| failed("an archive cannot be made").caused_by(error))?;
    let answer = async {
        let body = engine.transport.open(Method::POST, &path, tar.into()).await?;
        Ok(body.collect().await?.to_bytes())
    };
    let answer = ask(OPEN, name, answer).await?;
    let last =
        answer.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok()).next_back();
    match last {
        Some(Line { status, error }) if error.is_empty() && status.starts_with("sha256:") => Ok(status),
        Some(Line { error, status }) => Err(failed(if error.is_empty() { &status } else { &error })),
        None => Err(failed("the engine said nothing")),
    }
}

fn archive(volume: &str, path: &str) -> String {
    format!("/containers/{volume}/archive?path={}", escape(path))
}

/// See [`Engine::unpack`](crate::engine::Engine::unpack).
pub(super) async fn unpack(engine: &DockerEngine, volume: &str, entries: Archive) -> Result<(), Fault> {
    let sent = engine.transport.put(&archive(volume, PLACE), entries, STALL).await?;
    sent.map_err(|error| match error {
        // Newer engines say so of whatever a hard link does not find; the container is there, or it would be named.
        Error::DockerResponseServerError { status_code: 404, message } if message.contains("find the file") => {
            Fault::new(
                FaultKind::Failed,
                UNPACK,
                format!("{volume}: a path that the archive names is not there: {message}"),
            )
        }
        error => errors::fault(UNPACK, volume, error),
    })
}

/// See [`Engine::remove_files`](crate::engine::Engine::remove_files).
pub(super) async fn remove(engine: &DockerEngine, volume: &str, paths: &[String]) -> Result<(), Fault> {
    let removals: Vec<_> = paths.iter().map(|path| remove_one(engine, volume, path)).collect();
    stream::iter(removals).buffer_unordered(AT_ONCE).try_collect().await
}

async fn remove_one(engine: &DockerEngine, volume: &str, path: &str) -> Result<(), Fault> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::new(UNKNOWN));
    header.set_mode(0);
    header.set_size(0);
    let mut tar = tar::Builder::new(Vec::new());
    let tar = tar.append_data(&mut header, path, std::io::empty()).and_then(|()| tar.into_inner());
    let tar = tar.map_err(|error| Fault::new(FaultKind::Invalid, REMOVE, path).caused_by(error))?;
    let pieces = stream::iter([Ok(Bytes::from(tar))]).boxed();
    match engine.transport.put(&archive(volume, PLACE), pieces, STALL).await? {
        Ok(()) => {}
        Err(Error::DockerResponseServerError { message, .. }) if message.contains("unhandled tar header") => {}
        Err(error) => return Err(errors::fault(REMOVE, path, error)),
    }
    match kind(engine, volume, path).await? {
        None => Ok(()),
        Some(_) => {
            let why = format!("{path} is still there: this engine does not remove files that way");
            Err(Fault::new(FaultKind::Unsupported, REMOVE, why))
        }
    }
}

/// See [`Engine::file_kinds`](crate::engine::Engine::file_kinds).
pub(super) async fn kinds(
    engine: &DockerEngine,
    volume: &str,
    paths: &[String],
) -> Result<BTreeMap<String, FileKind>, Fault> {
    of_each(paths, |path| kind(engine, volume, path)).await
}

/// What is said of each of these paths; those of which nothing is said are left out.
async fn of_each<'a, T, F>(paths: &'a [String], look: impl Fn(&'a str) -> F) -> Result<BTreeMap<String, T>, Fault>
where
    F: Future<Output = Result<Option<T>, Fault>>,
{
    let looks: Vec<_> = paths
        .iter()
        .map(|path| {
            let looked = look(path);
            async move { Ok(looked.await?.map(|found| (path.clone(), found))) }
        })
        .collect();
    let found: Vec<Option<_>> = stream::iter(looks).buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// The `mode` of a path's description is that of Go's `os.FileMode`.
async fn kind(engine: &DockerEngine, volume: &str, path: &str) -> Result<Option<FileKind>, Fault> {
    const DIRECTORY: u32 = 1 << 31;
    const LINK: u32 = 1 << 27;
    const OTHER: u32 = 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21;
    #[derive(Deserialize)]
    struct Described {
        mode: u32,
    }
    let at = archive(volume, &format!("{PLACE}/{path}"));
    let Some(text) = ask(LOOK, path, engine.transport.describe(&at)).await? else { return Ok(None) };
    let Described { mode } = serde_json::from_slice(&text).map_err(|error| {
        Fault::new(FaultKind::Unsupported, LOOK, format!("{path}: an answer of another form")).caused_by(error)
    })?;
    Ok(Some(match mode {
        mode if mode & DIRECTORY != 0 => FileKind::Directory,
        mode if mode & LINK != 0 => FileKind::Link,
        mode if mode & OTHER != 0 => FileKind::Other,
        _ => FileKind::File,
    }))
}

/// See [`Engine::file_rights`](crate::engine::Engine::file_rights). The engine says whose a file is only in an archive of it, of which the beginning is enough.
pub(super) async fn rights(
    engine: &DockerEngine,
    volume: &str,
    paths: &[String],
) -> Result<BTreeMap<String, Rights>, Fault> {
    of_each(paths, |path| rights_of(engine, volume, path)).await
}

async fn rights_of(engine: &DockerEngine, volume: &str, path: &str) -> Result<Option<Rights>, Fault> {
    let asked = async {
        let at = archive(volume, &format!("{PLACE}/{path}"));
        let mut body = engine.transport.open(Method::GET, &at, Bytes::new()).await?;
        let mut beginning = Vec::new();
        while beginning.len() < BEGINNING {
            let Some(frame) = body.frame().await else { break };
            if let Ok(piece) = frame.map_err(std::io::Error::other)?.into_data() {
                beginning.extend_from_slice(&piece);
            }
        }
        Ok(beginning)
    };
    let beginning = match ask(LOOK, path, asked).await {
        Ok(beginning) => beginning,
        Err(fault) if fault.kind == FaultKind::NotFound => return Ok(None),
        Err(fault) => return Err(fault),
    };
    let read = || {
        let mut archive = tar::Archive::new(&beginning[..]);
        let entry = archive.entries()?.next().ok_or(std::io::ErrorKind::UnexpectedEof)??;
        let header = entry.header();
        Ok::<_, std::io::Error>(Rights { mode: header.mode()? & 0o7777, uid: header.uid()?, gid: header.gid()? })
    };
    read().map(Some).map_err(|error| Fault::new(FaultKind::Failed, LOOK, path).caused_by(error))
}

/// See [`Engine::read_file`](crate::engine::Engine::read_file).
pub(super) async fn read(engine: &DockerEngine, volume: &str, path: &str) -> Result<Option<Vec<u8>>, Fault> {
    let asked = async {
        let body =
            engine.transport.open(Method::GET, &archive(volume, &format!("{PLACE}/{path}")), Bytes::new()).await?;
        Ok(http_body_util::Limited::new(body, LARGEST).collect().await.map_err(std::io::Error::other)?.to_bytes())
    };
    let packed = match ask(LOOK, path, asked).await {
        Ok(packed) => packed,
        Err(fault) if fault.kind == FaultKind::NotFound => return Ok(None),
        Err(fault) => return Err(fault),
    };
    let content = || {
        let mut archive = tar::Archive::new(&packed[..]);
        let mut entry = archive.entries()?.next().ok_or(std::io::ErrorKind::UnexpectedEof)??;
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content)?;
        Ok::<_, std::io::Error>(content)
    };
    content().map(Some).map_err(|error| Fault::new(FaultKind::Failed, LOOK, path).caused_by(error))
}
