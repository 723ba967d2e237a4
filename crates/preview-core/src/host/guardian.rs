//! What must end with this process, even when it is killed: a child that only waits for our death and then cleans up.
//!
//! `kill -9` gives no time for destructors. The connection's ssh process, a running `docker compose` and the directory with
//! the forwarded sockets would outlive us, and the program would go on changing things after its lock is free. The
//! guardian is a tiny `sh` in a process group of its own (so Ctrl-C does not reach it) that blocks on a pipe which only we
//! hold; when that pipe closes, for whatever reason, it kills what is left and removes the directory.
//!
//! A process that is stopped is not dead, but its lease ends all the same, and its children would go on beside the next holder. So
//! while a lease is held the guardian wants to hear of us, and takes silence for death: see [`Guardian::pulse`].

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::fault::{Fault, FaultKind};

/// What the guardian does. One line, one wish:
/// `pid N` kills the process group N at the end, `done N` takes that back, `dir PATH` removes a directory at the end. After `beat N`,
/// N seconds without a line are the end as well, until `calm`.
///
/// The start time of a group's leader is kept beside its number: a leader that ended and whose number was given to
/// another process is told apart by it. While a leader is gone but its group is not, the kernel does not reuse the number.
const SCRIPT: &str = r#"
trap '' INT HUP TERM QUIT PIPE
started() {
  stat=
  { IFS= read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 0
  set -- ${stat##*) }
  shift 19 2>/dev/null || return 0
  printf %s "$1"
}
groups=' '
nl='
'
dirs=
limit=
# `read -t` is not POSIX: bash and busybox have it, dash does not. Without either nobody is timed.
if ( echo x | read -r -t 1 x ) 2>/dev/null; then
  timed() { IFS= read -r -t "$limit" line; }
elif command -v timeout >/dev/null; then
  timed() { line=$(timeout "$limit" sh -c 'IFS= read -r line && printf %s "$line"'); }
else
  timed() { IFS= read -r line; }
fi
hear() { if [ -n "$limit" ]; then timed; else IFS= read -r line; fi; }
while hear; do
  verb=${line%% *}; arg=${line#* }
  case $verb in
    beat) limit=$arg ;;
    calm) limit= ;;
    pid) groups="$groups$arg:$(started "$arg") " ;;
    done) case $groups in *" $arg:"*) rest=${groups#*" $arg:"}; groups="${groups%%" $arg:"*} ${rest#* }" ;; esac ;;
    dir) dirs="$dirs$arg$nl" ;;
  esac
done
for entry in $groups; do
  pid=${entry%%:*}
  now=$(started "$pid")
  if [ -z "$now" ] || [ "$now" = "${entry#*:}" ]; then kill -KILL "-$pid" 2>/dev/null; fi
done
printf %s "$dirs" | while IFS= read -r dir; do rm -rf "$dir"; done
"#;

/// A run's private directory and the list of what must end with this process. Clones share it.
///
/// ```no_run
/// # async fn example() -> Result<(), preview_core::fault::Fault> {
/// use std::process::Stdio;
/// use preview_core::host::guardian::Guardian;
///
/// let guardian = Guardian::start()?;
/// let mut command = tokio::process::Command::new("docker");
/// command.arg("compose").arg("version").stdin(Stdio::null()).process_group(0);
/// let mut child = command.spawn().expect("docker is installed");
/// let ward = child.id().map(|pgid| guardian.watch(pgid));
/// child.wait().await.expect("waits");
/// drop(ward); // the same as guardian.child_ended(pgid)
/// guardian.finish().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Guardian {
    inner: Arc<Inner>,
}

struct Inner {
    /// `None` after the end. Held by nobody else: the standard library opens it close-on-exec.
    pipe: Mutex<Option<std::fs::File>>,
    child: Mutex<Option<Child>>,
    run_dir: PathBuf,
    /// How many pulses there are.
    pulses: AtomicUsize,
}

impl Guardian {
    /// Starts the guardian with a new directory (0700) under `XDG_RUNTIME_DIR`, or the directory for temporary files.
    ///
    /// # Errors
    /// `Failed` if the directory cannot be made, `Unsupported` if `sh` cannot be started.
    pub fn start() -> Result<Self, Fault> {
        let run_dir = make_run_dir()?;
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(SCRIPT)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| {
                Fault::new(FaultKind::Unsupported, "start the guardian process", "sh is needed").caused_by(error)
            })?;
        let pipe = child.stdin.take().and_then(|stdin| stdin.into_owned_fd().ok()).map(std::fs::File::from);
        let guardian = Self {
            inner: Arc::new(Inner {
                pipe: Mutex::new(pipe),
                child: Mutex::new(Some(child)),
                run_dir,
                pulses: AtomicUsize::new(0),
            }),
        };
        guardian.tell(&format!("dir {}\n", guardian.run_dir().display()));
        Ok(guardian)
    }

    /// The private directory of this run (0700); removed at the end. Its path is short enough for unix sockets in it.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.inner.run_dir
    }

    /// From now on this process group dies with us. The process must have been started with `process_group(0)`.
    pub fn child_started(&self, pgid: u32) {
        self.tell(&format!("pid {pgid}\n"));
    }

    /// This process group ended, or may live on.
    pub fn child_ended(&self, pgid: u32) {
        self.tell(&format!("done {pgid}\n"));
    }

    /// [`child_started`](Self::child_started) now, [`child_ended`](Self::child_ended) when the value is dropped.
    #[must_use]
    pub fn watch(&self, pgid: u32) -> Ward {
        self.child_started(pgid);
        Ward { guardian: self.clone(), pgid }
    }

    /// As long as the value lives, this process has to be heard of: after `limit` of silence (whole seconds, at least one) everything
    /// ends as if it had died. Shows life every `rhythm` by itself; inside a tokio runtime.
    #[must_use]
    pub fn pulse(&self, rhythm: Duration, limit: Duration) -> Pulse {
        let guardian = self.clone();
        guardian.inner.pulses.fetch_add(1, Ordering::AcqRel);
        let beat = format!("beat {}\n", limit.as_secs().max(1));
        let beats = tokio::spawn({
            let guardian = guardian.clone();
            async move {
                loop {
                    guardian.tell(&beat);
                    tokio::time::sleep(rhythm).await;
                }
            }
        });
        Pulse { guardian, beats }
    }

    /// Lets the guardian clean up now and waits until it did (a few seconds at most). May be called again.
    pub async fn finish(&self) {
        drop(self.inner.pipe.lock().unwrap_or_else(PoisonError::into_inner).take());
        let child = self.inner.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            let _ = tokio::time::timeout(Duration::from_secs(5), child.wait()).await;
        }
    }

    /// A line is far shorter than what a pipe takes at once, so this does not block in practice.
    fn tell(&self, line: &str) {
        let pipe = self.inner.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = pipe.as_ref().map(|mut file| file.write_all(line.as_bytes())) {
            tracing::warn!(%error, "the guardian process is gone; a killed run may leave something behind");
        }
    }
}

/// Ends the watch over a process group when dropped.
pub struct Ward {
    guardian: Guardian,
    pgid: u32,
}

impl Drop for Ward {
    fn drop(&mut self) {
        self.guardian.child_ended(self.pgid);
    }
}

/// Shows the guardian that this process is alive, until it is dropped.
pub struct Pulse {
    guardian: Guardian,
    beats: tokio::task::JoinHandle<()>,
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.beats.abort();
        if self.guardian.inner.pulses.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.guardian.tell("calm\n");
        }
    }
}

/// A unix socket's path has 108 bytes at most on Linux, 104 on macOS; leave room for names in the directory.
const LONGEST_RUN_DIR: usize = 70;

fn make_run_dir() -> Result<PathBuf, Fault> {
    let candidates =
        [std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), Some(std::env::temp_dir()), Some("/tmp".into())];
    let mut last = None;
    for parent in candidates.into_iter().flatten() {
        let text = parent.as_os_str().as_encoded_bytes();
        let usable = parent.is_absolute() && text.len() + 16 <= LONGEST_RUN_DIR && !text.contains(&b'\n');
        if !usable {
            continue;
        }
        let made = tempfile::Builder::new()
            .prefix("preview-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir_in(&parent);
        match made {
            Ok(dir) => return Ok(dir.keep()),
            Err(error) => last = Some(error),
        }
    }
    let fault = Fault::new(FaultKind::Failed, "make a directory for this run", "no usable place for temporary files");
    Err(match last {
        Some(error) => fault.caused_by(error),
        None => fault,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alive(pid: u32) -> bool {
        // A zombie that nobody reaped yet still has its directory in /proc.
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
    }

    fn sleeper() -> (Child, u32) {
        let child = Command::new("sleep").arg("600").process_group(0).spawn().expect("sleep");
        let pid = child.id().expect("runs");
        (child, pid)
    }

    #[tokio::test]
    async fn what_is_left_is_killed_and_what_is_done_is_not() {
        let guardian = Guardian::start().expect("starts");
        let dir = guardian.run_dir().to_owned();
        assert_eq!(std::fs::metadata(&dir).expect("exists").permissions().mode() & 0o7777, 0o700);
        std::fs::write(dir.join("file"), "x").expect("writes");
        let (_a, doomed) = sleeper();
        let (mut b, spared) = sleeper();
        let (_c, also_doomed) = sleeper();
        guardian.child_started(doomed);
        drop(guardian.watch(spared));
        guardian.child_started(also_doomed);
        guardian.clone().finish().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!alive(doomed) && !alive(also_doomed));
        assert!(alive(spared));
        assert!(!dir.exists());
        b.kill().await.expect("kills");
        guardian.finish().await;
    }

    #[tokio::test]
    async fn silence_is_death_while_there_is_a_pulse() {
        let guardian = Guardian::start().expect("starts");
        let (_a, doomed) = sleeper();
        guardian.child_started(doomed);
        // Shows life, and may then be silent for as long as it likes.
        let (second, rhythm) = (Duration::from_secs(1), Duration::from_millis(100));
        let pulse = guardian.pulse(rhythm, second);
        tokio::time::sleep(2 * second).await;
        drop(pulse);
        tokio::time::sleep(2 * second).await;
        assert!(alive(doomed));
        // A stopped process shows none.
        let _silent = guardian.pulse(Duration::from_secs(600), second);
        for _ in 0..100 {
            if !alive(doomed) {
                break;
            }
            tokio::time::sleep(rhythm).await;
        }
        assert!(!alive(doomed) && !guardian.run_dir().exists());
    }

    #[tokio::test]
    async fn members_of_a_group_die_after_their_leader_ended() {
        let guardian = Guardian::start().expect("starts");
        let mut leader = Command::new("sh")
            .args(["-c", "sleep 600 & echo $!"])
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("sh");
        guardian.child_started(leader.id().expect("runs"));
        let mut line = String::new();
        let stdout = leader.stdout.take().expect("piped");
        tokio::io::AsyncBufReadExt::read_line(&mut tokio::io::BufReader::new(stdout), &mut line).await.expect("reads");
        leader.wait().await.expect("ends");
        let member: u32 = line.trim().parse().expect("a number");
        assert!(alive(member));
        guardian.finish().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!alive(member));
    }
}
