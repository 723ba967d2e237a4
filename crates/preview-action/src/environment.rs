//! The environment of the run, kept out of the process's own environment block.
//!
//! Everything of the same user can read `/proc/<pid>/environ` for as long as a process lives, and there stand keys and tokens. So the program moves its environment
//! to memory that has no name, starts itself anew (same process, same arguments) with the few variables that libraries and SSH look up, reads
//! the rest from there, and empties it.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use preview_core::config::Environment;
use rustix::fs::MemfdFlags;

/// The number of the file with the environment, after the program has started itself anew.
const FILE: &str = "PREVIEW_ENVIRONMENT_FILE";
const NAME: &str = "preview-environment";

/// What stays: where things are, how to print, how to reach others. Nothing of it is a secret, or it is one that a library has to find there (a proxy's password).
const KEPT: &[&str] = &[
    "ALL_PROXY",
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "KRB5CCNAME",
    "LANG",
    "LC_ALL",
    "LOGNAME",
    "NO_PROXY",
    "PATH",
    "RUST_BACKTRACE",
    "SSH_ASKPASS",
    "SSH_ASKPASS_REQUIRE",
    "SSH_AUTH_SOCK",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
    "WAYLAND_DISPLAY",
    "XDG_RUNTIME_DIR",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

type Variables = Vec<(OsString, OsString)>;

/// The environment that the program was started with. May start the program anew; where that cannot be done, the environment stays where it is.
pub(crate) fn take() -> Environment {
    let variables = moved().unwrap_or_else(|| {
        let variables: Variables = std::env::vars_os().filter(|(name, _)| name != FILE).collect();
        if std::env::var_os(FILE).is_none() && variables.iter().any(|(name, _)| !is_kept(name)) {
            // Comes back only if it could not be done.
            let _ = start_anew(&variables);
        }
        variables
    });
    // Variables that are not UTF-8 cannot be ours.
    variables
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn is_kept(name: &OsString) -> bool {
    name.to_str().is_some_and(|name| KEPT.contains(&name) || name.starts_with("LC_"))
}

/// Replaces this program by itself, with its environment in memory.
fn start_anew(variables: &Variables) -> std::io::Result<()> {
    // Not closed by the start; nothing else of this process is running yet.
    let memory = rustix::fs::memfd_create(NAME, MemfdFlags::empty())?;
    let mut memory = std::fs::File::from(memory);
    memory.write_all(&packed(variables))?;
    let number = memory.as_raw_fd().to_string();
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let arguments: Vec<OsString> = arguments.collect();
    let mut failed = std::io::Error::other("no program");
    for program in std::env::current_exe().into_iter().chain([PathBuf::from("/proc/self/exe")]) {
        let mut command = std::process::Command::new(program);
        command.arg0(&name).args(&arguments).env_clear().env(FILE, &number);
        command.envs(variables.iter().filter(|(name, _)| is_kept(name)).map(|(name, value)| (name, value)));
        failed = command.exec();
    }
    Err(failed)
}

/// What was put into memory before the program started itself anew. The memory stays open under its number, and is empty from now on.
fn moved() -> Option<Variables> {
    let number: u32 = std::env::var(FILE).ok()?.parse().ok()?;
    let path = format!("/proc/self/fd/{number}");
    let target = std::fs::read_link(&path).ok()?;
    if !target.to_string_lossy().starts_with(&format!("/memfd:{NAME}")) {
        return None;
    }
    let mut memory = std::fs::File::options().read(true).write(true).open(path).ok()?;
    let mut content = Vec::new();
    memory.read_to_end(&mut content).ok()?;
    memory.set_len(0).ok()?;
    Some(unpacked(&content)).filter(|variables| !variables.is_empty())
}

fn packed(variables: &Variables) -> Vec<u8> {
    variables.iter().flat_map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat()).collect()
}

fn unpacked(content: &[u8]) -> Variables {
    let entries = content.split(|byte| *byte == 0).filter(|entry| !entry.is_empty());
    entries
        .filter_map(|entry| {
            let at = entry.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (entry.get(..at)?, entry.get(at + 1..)?);
            Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_survive_the_way_through_memory() {
        let variables: Variables = [("A", "1"), ("EMPTY", ""), ("LINES", "a\nb=c\n"), ("É", "é😀")]
            .map(|(name, value)| (name.into(), value.into()))
            .into();
        assert_eq!(unpacked(&packed(&variables)), variables);
    }

    #[test]
    fn keys_and_tokens_do_not_stay() {
        for name in [
            "PREVIEW_IDENTITY_KEY",
            "GITHUB_TOKEN",
            "CLOUDFLARE_API_TOKEN",
            "CI_JOB_TOKEN",
            "ACTIONS_RUNTIME_TOKEN",
            FILE,
        ] {
            assert!(!is_kept(&name.into()), "{name}");
        }
        assert!(is_kept(&"LC_CTYPE".into()) && is_kept(&"PATH".into()));
    }
}
