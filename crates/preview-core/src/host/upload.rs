//! A tree of files to the host: one tar stream into a directory beside its place, then one rename.
//!
//! The stream is made in a blocking task and handed over in small pieces, so memory stays small whatever is uploaded. A
//! stream that breaks off between two files still looks like a whole archive to `tar`; so the last entry is a marker, and
//! only a directory that has it is moved into place.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::shell::{Process, ShellHost, Transport, random_token};
use super::{Entry, script};
use crate::fault::{Fault, FaultKind};

const OPERATION: &str = "upload files";
/// Temporary directories begin so. Each is locked by the shell that fills it: one that is not locked belongs to a dead run.
const TEMPORARY: &str = ".preview-upload-";
/// The last entry of an archive.
pub(crate) const MARKER: &str = ".preview-upload-is-complete";
/// Between two pieces that are taken over; the link is dead if nothing moves for so long.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// `$1` the directory, `$2` the name of the temporary one beside it. Prints `sent` or `have`.
const RECEIVE: &str = r#"
LC_ALL=C; export LC_ALL; umask 077
parent=${1%/*}; temporary=$parent/$2
mkdir -p "$parent" || exit 1
if command -v flock >/dev/null; then :; else echo 'flock: not found' >&2; exit 1; fi
# Between mkdir and flock somebody might take it for abandoned: whoever looks for those holds the parent's lock.
exec 8<"$parent"
flock 8
mkdir "$temporary" || exit 1
exec 9<"$temporary"
flock 9
flock -u 8
undo() { rm -rf "$temporary" 2>/dev/null || { chmod -R u+rwX "$temporary"; rm -rf "$temporary"; }; exit 1; }
tar -xpof - -C "$temporary" || undo
cat >/dev/null
[ -f "$temporary"/.preview-upload-is-complete ] || { echo 'the stream broke off' >&2; undo; }
rm -f "$temporary"/.preview-upload-is-complete
flock 8
if [ -e "$1" ]; then rm -rf "$temporary"; echo have; else mv "$temporary" "$1" && echo sent || undo; fi
"#;

/// Prints `have` if the directory exists; else removes what dead runs left beside it.
fn probe(directory: &str) -> String {
    let word = script::quote(directory);
    format!(
        "d={word}; p=${{d%/*}}\n\
         if [ -d \"$d\" ]; then echo have; exit 0; fi\n\
         if [ -e \"$d\" ] || [ -h \"$d\" ]; then printf '%s: Not a directory\\n' \"$d\" >&2; exit 1; fi\n\
         for t in \"$p\"/{TEMPORARY}*; do [ ! -d \"$t\" ] || ( exec 8<\"$p\" && flock 8 && exec 9<\"$t\" && flock -n 9 && \
         {{ rm -rf \"$t\" 2>/dev/null || {{ chmod -R u+rwX \"$t\"; rm -rf \"$t\"; }}; }} ); done\n:\n"
    )
}

pub(super) async fn upload<T: Transport>(
    host: &ShellHost<T>,
    directory: &str,
    entries: &[Entry],
) -> Result<bool, Fault> {
    script::checked(OPERATION, directory)?;
    for entry in entries {
        script::checked(OPERATION, &format!("/{}", entry.target))?;
    }
    let answer = host.exchange(OPERATION, STALL_LIMIT, |_| Ok(probe(directory))).await?;
    if answer.status != 0 {
        return Err(failed(directory, &answer.stderr));
    }
    if answer.stdout.starts_with(b"have") {
        return Ok(false);
    }

    let temporary = format!("{TEMPORARY}{}", random_token()?);
    let process = host.run(OPERATION, RECEIVE, &[directory, &temporary]).await?;
    let Process { mut stdin, mut stdout, mut stderr, wait } = process;
    let (pieces, mut queue) = mpsc::channel::<Bytes>(4);
    let entries = entries.to_vec();
    let packing = tokio::task::spawn_blocking(move || pack(&entries, pieces));

    let send = async {
        let mut sent = Ok(());
        while let Some(piece) = queue.recv().await {
            sent = match tokio::time::timeout(STALL_LIMIT, stdin.write_all(&piece)).await {
                Ok(written) => written,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            if sent.is_err() {
                break;
            }
        }
        // Ends the packing as well, if it is not at its end.
        drop(queue);
        let packed =
            packing.await.unwrap_or_else(|error| Err(Fault::new(FaultKind::Failed, OPERATION, error.to_string())));
        drop(stdin);
        (sent, packed)
    };
    let (mut out, mut complaint) = (Vec::new(), Vec::new());
    let ((sent, packed), read, complained) =
        tokio::join!(send, stdout.read_to_end(&mut out), stderr.read_to_end(&mut complaint));
    let complaint = String::from_utf8_lossy(&complaint).trim().to_owned();
    // The last line: a login shell's start-up files may have said something before.
    match out.trim_ascii().rsplit(|byte| *byte == b'\n').next() {
        Some(b"sent") => return Ok(true),
        Some(b"have") => return Ok(false),
        _ => {}
    }
    // What the host says explains a broken pipe better than the pipe does; what could not be read here explains both.
    if sent.is_ok() {
        packed?;
    }
    if !complaint.is_empty() {
        return Err(failed(directory, &complaint));
    }
    match sent.and(read).and(complained) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Err(Fault::new(FaultKind::TimedOut, OPERATION, directory).caused_by(error))
        }
        result => {
            let fault = match wait.await {
                Ok(status) if status >= 0 => failed(directory, &format!("exit status {status}")),
                _ => host.transport().broken(OPERATION).await,
            };
            Err(match result {
                Err(error) => fault.caused_by(error),
                Ok(_) => fault,
            })
        }
    }
}

fn failed(directory: &str, complaint: &str) -> Fault {
    let kind = script::kind_of(complaint);
    let unsaid = kind == FaultKind::NoSpace && !complaint.contains("No space left");
    let why = if unsaid { "No space left on device: " } else { "" };
    Fault::new(kind, OPERATION, format!("{directory}: {why}{complaint}"))
}

/// Small writes are collected into pieces of this size, bytes.
const PIECE: usize = 64 * 1024;

pub(crate) struct Pieces {
    queue: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

impl Pieces {
    pub(crate) fn new(queue: mpsc::Sender<Bytes>) -> Self {
        Self { queue, buffer: Vec::with_capacity(PIECE) }
    }

    fn hand_over(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.queue.blocking_send(piece.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.hand_over()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hand_over()
    }
}

/// The whole archive in memory, for hosts that are not real; the end marker is [`MARKER`].
#[cfg(any(test, feature = "testkit"))]
pub(crate) async fn archive(entries: &[Entry]) -> Result<Vec<u8>, Fault> {
    for entry in entries {
        script::checked(OPERATION, &format!("/{}", entry.target))?;
    }
    let (pieces, mut queue) = mpsc::channel::<Bytes>(4);
    let entries = entries.to_vec();
    let packing = tokio::task::spawn_blocking(move || pack(&entries, pieces));
    let mut all = Vec::new();
    while let Some(piece) = queue.recv().await {
        all.extend_from_slice(&piece);
    }
    packing.await.unwrap_or_else(|error| Err(Fault::new(FaultKind::Failed, OPERATION, error.to_string())))?;
    Ok(all)
}

fn pack(entries: &[Entry], queue: mpsc::Sender<Bytes>) -> Result<(), Fault> {
    let mut packer =
        Packer { archive: tar::Builder::new(Pieces::new(queue)), packed: BTreeSet::new(), links: BTreeSet::new() };
    for entry in entries {
        packer.entry(entry).map_err(|error| {
            let source = entry.source.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
            let kind = match error.kind() {
                io::ErrorKind::NotFound => FaultKind::NotFound,
                io::ErrorKind::PermissionDenied => FaultKind::Denied,
                io::ErrorKind::InvalidInput => FaultKind::Invalid,
                _ => FaultKind::Failed,
            };
            Fault::new(kind, OPERATION, format!("{source} to {}", entry.target)).caused_by(error)
        })?;
    }
    let ended = packer.file(MARKER, 0o600, 0, 0, io::empty()).and_then(|()| packer.archive.into_inner()?.flush());
    ended.map_err(|error| Fault::new(FaultKind::Failed, OPERATION, "").caused_by(error))
}

struct Packer {
    archive: tar::Builder<Pieces>,
    /// Two entries may name the same file, once by itself and once in a directory.
    packed: BTreeSet<String>,
    /// Nothing may be put behind a link: it could lead out of the directory.
    links: BTreeSet<String>,
}

impl Packer {
    fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let target = entry.target.as_str();
        for (at, _) in target.match_indices('/') {
            if self.links.contains(&target[..at]) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is a link", &target[..at])));
            }
            self.directory(&target[..at], 0o755)?;
        }
        match &entry.source {
            None => self.directory(target, 0o755),
            // What the caller names itself is followed, as a bind mount would; links inside stay links.
            Some(source) => self.tree(source, target, &fs::metadata(source)?),
        }
    }

    fn tree(&mut self, source: &Path, target: &str, metadata: &fs::Metadata) -> io::Result<()> {
        let kind = metadata.file_type();
        let mode = metadata.mode() & 0o7777;
        if kind.is_dir() {
            self.directory(target, mode)?;
            let mut children = fs::read_dir(source)?.collect::<io::Result<Vec<_>>>()?;
            children.sort_by_key(fs::DirEntry::file_name);
            for child in children {
                let name = child.file_name();
                let name = name.to_str().ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidInput, format!("not UTF-8: {}", child.path().display()))
                })?;
                self.tree(&child.path(), &format!("{target}/{name}"), &child.path().symlink_metadata()?)?;
            }
            Ok(())
        } else if kind.is_symlink() {
            self.link(source, target)
        } else if kind.is_file() {
            self.file(target, mode, metadata.len(), metadata.mtime().max(0).unsigned_abs(), fs::File::open(source)?)
        } else {
            // Sockets and pipes have no content to upload.
            tracing::debug!(path = %source.display(), "not a file, not uploaded");
            Ok(())
        }
    }

    fn directory(&mut self, target: &str, mode: u32) -> io::Result<()> {
        if !self.packed.insert(target.to_owned()) {
            return Ok(());
        }
        let mut header = header(tar::EntryType::Directory, mode, 0, 0);
        self.archive.append_data(&mut header, format!("{target}/"), io::empty())
    }

    fn link(&mut self, source: &Path, target: &str) -> io::Result<()> {
        if !self.packed.insert(target.to_owned()) {
            return Ok(());
        }
        self.links.insert(target.to_owned());
        let mut header = header(tar::EntryType::Symlink, 0o777, 0, 0);
        self.archive.append_link(&mut header, target, fs::read_link(source)?)
    }

    fn file(&mut self, target: &str, mode: u32, size: u64, mtime: u64, content: impl Read) -> io::Result<()> {
        if !self.packed.insert(target.to_owned()) {
            return Ok(());
        }
        let mut header = header(tar::EntryType::Regular, mode, size, mtime);
        // A file that grows or shrinks meanwhile must not shift what comes after it.
        self.archive.append_data(&mut header, target, content.chain(io::repeat(0)).take(size))
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64, mtime: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(mtime);
    header
}
