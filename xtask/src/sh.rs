//! Running programs: output, time limits, and errors that name the command and repeat what it said.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The command line as a person would type it, near enough for a message.
#[must_use]
pub fn line(cmd: &Command) -> String {
    let mut words = vec![cmd.get_program().to_string_lossy().into_owned()];
    words.extend(cmd.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// The absolute path of a program in `PATH`, or in the `sbin` folders that a plain user's `PATH` lacks.
#[must_use]
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Runs a program with this process's own output; fails unless it exits with 0.
///
/// # Errors
/// When the program cannot be started or fails.
pub fn run(cmd: &mut Command) -> Result<()> {
    let status = cmd.status().with_context(|| format!("cannot start `{}`", line(cmd)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(cmd));
    }
    Ok(())
}

/// Runs a program and returns its standard output, trimmed; its standard error is in the error.
///
/// # Errors
/// When the program cannot be started or fails.
pub fn text(cmd: &mut Command) -> Result<String> {
    let out = cmd.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", line(cmd)))?;
    checked(cmd, &out)
}

/// Like [`text`], but kills the program when `limit` is over.
///
/// # Errors
/// When the program cannot be started, fails or takes too long.
pub fn text_within(cmd: &mut Command, limit: Duration) -> Result<String> {
    let out = output_within(cmd, limit)?;
    checked(cmd, &out)
}

/// Whether a program runs and exits with 0; its output is dropped.
#[must_use]
pub fn succeeds(cmd: &mut Command) -> bool {
    cmd.stdin(Stdio::null()).output().is_ok_and(|out| out.status.success())
}

/// Sends a signal to a process, by the shell's own `kill`: a small machine has no other.
///
/// # Errors
/// When there is no such process, or no right to it.
pub fn kill(signal: &str, pid: &str) -> Result<()> {
    text(&mut cmd("sh", ["-c", "kill -s \"$1\" \"$2\"", "sh", signal, pid])).map(drop)
}

/// Runs a program whose chatter matters only when it fails: it goes to a file, and its end to the error.
///
/// # Errors
/// When the program cannot be started or fails.
pub fn logged(cmd: &mut Command, log: &Path) -> Result<()> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = cmd
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot start `{}`", line(cmd)))?;
    if !status.success() {
        let said = fs::read_to_string(log).unwrap_or_default();
        bail!("`{}` failed: {status}; the end of {}:\n{}", short(&line(cmd)), log.display(), tail(&said, 25));
    }
    Ok(())
}

/// The last `count` lines of a text.
#[must_use]
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Calls `ready` until it says yes, at most for `limit`.
///
/// # Errors
/// When the limit is over; the message names `what`.
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !ready() {
        if start.elapsed() > limit {
            bail!("{what}: not ready after {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Does one step and says on standard error what it was, what came of it and how long it took.
///
/// # Errors
/// Those of the step, with its name.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
    let start = Instant::now();
    match work() {
        Ok((value, note)) => {
            eprintln!("{name:<22} {:>6.1} s  {note}", start.elapsed().as_secs_f64());
            Ok(value)
        }
        Err(error) => {
            eprintln!("{name:<22} {:>6.1} s  failed", start.elapsed().as_secs_f64());
            Err(error.context(name.to_owned()))
        }
    }
}

fn output_within(cmd: &mut Command, limit: Duration) -> Result<Output> {
    let mut child = cmd
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", line(cmd)))?;
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("`{}` took more than {} s", line(cmd), limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    Ok(Output { status, stdout: stdout.join().unwrap_or_default(), stderr: stderr.join().unwrap_or_default() })
}

fn reader<R: Read + Send + 'static>(from: Option<R>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            // What was read before an error is still worth showing.
            let _ = from.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn checked(cmd: &Command, out: &Output) -> Result<String> {
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!("`{}` failed: {}: {}", short(&line(cmd)), out.status, tail(&said, 10));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn short(line: &str) -> String {
    match line.char_indices().nth(200) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}

/// A command with its arguments.
pub fn cmd<I, S>(program: impl AsRef<OsStr>, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_ends_a_program() {
        let start = Instant::now();
        let error = text_within(&mut cmd("sleep", ["30"]), Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("took more than"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn an_error_repeats_what_the_program_said() {
        let error = text(&mut cmd("sh", ["-c", "echo no such thing >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("no such thing"), "{error}");
    }

    #[test]
    fn tail_takes_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
