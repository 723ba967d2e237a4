//! Files of a checkout that belongs to somebody else: opened so that no link, pipe or device can lead elsewhere.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

/// The largest file that is read as configuration, in bytes.
pub const LARGEST: u64 = 1 << 20;
/// Links that are followed for one path, as Linux does.
const MOST_LINKS: usize = 40;

/// Why a file of a checkout is not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A link on the way leads out of the checkout.
    #[error("a link leads outside the repository")]
    Outside,
    /// It is a directory, a pipe, a socket or a device.
    #[error("it is {0}, not a file")]
    NotAFile(&'static str),
    /// It is larger than [`LARGEST`].
    #[error("it is larger than 1 MB")]
    TooLarge,
    /// The system refused.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// The content of a regular file of at most [`LARGEST`] bytes below `root`, which is canonical; `None` where there is no such file. Links are
/// followed as long as they stay below `root`.
///
/// # Errors
/// A link leads out, or it is no such file.
pub fn read(root: &Path, path: &Path) -> Result<Option<Vec<u8>>, ReadError> {
    let found = resolve(root, path).ok_or(ReadError::Outside)?;
    let Some(file) = absent(open_below(root, &found))? else { return Ok(None) };
    regular(file).map(Some)
}

/// The content of a regular file of at most [`LARGEST`] bytes that the pipeline itself named, wherever its links lead; `None` where there is none.
///
/// # Errors
/// It is no such file.
pub fn read_named(path: &Path) -> Result<Option<Vec<u8>>, ReadError> {
    let Some(file) = absent(open(CWD, path, OFlags::NONBLOCK))? else { return Ok(None) };
    regular(file).map(Some)
}

fn absent<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

fn regular(file: File) -> Result<Vec<u8>, ReadError> {
    use std::os::unix::fs::FileTypeExt as _;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() {
        let what = match kind {
            _ if kind.is_dir() => "a directory",
            _ if kind.is_fifo() => "a pipe",
            _ if kind.is_socket() => "a socket",
            _ => "a device",
        };
        return Err(ReadError::NotAFile(what));
    }
    // The size that the system tells is not believed: a file of /proc has none.
    let mut content = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LARGEST { Err(ReadError::TooLarge) } else { Ok(content) }
}

/// Opens a path without links, part by part: a link that was put there meanwhile is an error.
fn open_below(root: &Path, path: &Path) -> io::Result<File> {
    let mut parts = parts(path.strip_prefix(root).map_err(io::Error::other)?);
    let last = parts.pop_back();
    let mut directory = open(CWD, root, OFlags::DIRECTORY)?;
    for part in parts {
        directory = open(&directory, Path::new(&part), OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
    }
    match last {
        Some(last) => open(&directory, Path::new(&last), OFlags::NOFOLLOW | OFlags::NONBLOCK),
        None => Ok(directory),
    }
}

fn open(at: impl std::os::fd::AsFd, path: &Path, flags: OFlags) -> io::Result<File> {
    let opened = rustix::fs::openat(at, path, flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty());
    Ok(File::from(opened?))
}

/// The path with its links followed, as far as it exists; `None` once it leaves `root`. Each step is looked at by itself: a link through
/// `/proc/self` means another place to another process.
#[must_use]
pub fn resolve(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut rest = parts(path.strip_prefix(root).ok()?);
    let mut found = root.to_owned();
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            if found == root {
                return None;
            }
            found.pop();
            continue;
        }
        found.push(&part);
        let Ok(target) = std::fs::read_link(&found) else { continue };
        links += 1;
        if links > MOST_LINKS {
            return None;
        }
        found.pop();
        let mut parts = if target.is_absolute() {
            found = root.to_owned();
            parts(target.strip_prefix(root).ok()?)
        } else {
            parts(&target)
        };
        parts.append(&mut rest);
        rest = parts;
    }
    Some(found)
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_small_regular_files_of_the_checkout_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let outer = std::fs::canonicalize(dir.path()).unwrap();
        let root = outer.join("repo");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(outer.join("secret"), "planted").unwrap();
        std::fs::write(root.join("sub/file"), "text").unwrap();
        std::fs::write(root.join("large"), vec![b'x'; (1 << 20) + 1]).unwrap();
        for (name, target) in [
            ("inner", "sub/file"),
            ("up", "../secret"),
            ("absolute", "/etc/hostname"),
            ("process", "/proc/self/environ"),
            ("zero", "/dev/zero"),
            ("round", "round"),
            ("directory", ".."),
        ] {
            symlink(target, root.join(name)).unwrap();
        }
        symlink(root.join("sub/file"), root.join("own")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let said = |name: &str| match read(&root, &root.join(name)) {
            Ok(Some(content)) => String::from_utf8(content).unwrap(),
            Ok(None) => "nothing".to_owned(),
            Err(error) => error.to_string(),
        };
        for name in ["sub/file", "inner", "own", "sub/../sub/file"] {
            assert_eq!(said(name), "text", "{name}");
        }
        for name in ["up", "absolute", "process", "zero", "round", "directory/secret"] {
            assert_eq!(said(name), "a link leads outside the repository", "{name}");
        }
        assert_eq!(said("missing"), "nothing");
        assert_eq!(said("sub/file/below"), "nothing");
        assert_eq!(said("sub"), "it is a directory, not a file");
        assert_eq!(said("large"), "it is larger than 1 MB");
        assert!(said("socket").starts_with("it cannot be read"), "{}", said("socket"));
        drop(socket);
        assert!(matches!(read_named(Path::new("/dev/zero")), Err(ReadError::NotAFile("a device"))));
        assert!(matches!(read_named(&root.join("inner")), Ok(Some(_))));
    }

    #[test]
    fn a_link_that_appears_between_the_look_and_the_opening_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(dir.path()).unwrap();
        symlink("/etc", root.join("sub")).unwrap();
        assert!(open_below(&root, &root.join("sub/hostname")).is_err());
        assert!(open_below(&root, &root.join("sub")).is_err());
    }
}
