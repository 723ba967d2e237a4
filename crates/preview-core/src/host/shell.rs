//! A host as a POSIX shell sees it: one implementation for this machine and for the far end of a connection.
//!
//! An `exec` over SSH costs several round trips, a message to a running shell costs one. So `survey` and `apply` go to one
//! shell that stays: a script goes to its standard input, the answer comes back between random marks. A script is wrapped
//! in a group, which a shell runs only when it has read all of it: a connection that breaks in the middle runs nothing.
//! Locks and uploads need a process of their own: a spare shell is always started ahead, and is handed its script.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::guardian::Guardian;
use super::{Change, Closed, Entry, Guard, Host, Query, Stream, Survey, script, upload};
use crate::fault::{Fault, FaultKind};

/// A running program on the host, its ends not yet closed. Dropping all of it ends the program, at once on this machine, by
/// the end of its input elsewhere.
pub struct Process {
    /// Its standard input; dropping closes it.
    pub stdin: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// Its standard output.
    pub stdout: Box<dyn AsyncRead + Send + Sync + Unpin>,
    /// Its standard error.
    pub stderr: Box<dyn AsyncRead + Send + Sync + Unpin>,
    /// Its exit status; owns the program.
    pub wait: BoxFuture<'static, Result<i32, Fault>>,
}

/// How programs on a host are reached. Implemented for [this machine](super::local) and for [SSH](super::ssh).
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// How people call the host.
    fn describe(&self) -> String;
    /// Starts a program; the words reach it unchanged.
    async fn spawn(&self, argv: &[OsString]) -> Result<Process, Fault>;
    /// See [`Host::socket`].
    async fn socket(&self, path: &str) -> Result<PathBuf, Fault>;
    /// See [`Host::dial`].
    async fn dial(&self, address: &str, port: u16) -> Result<Box<dyn Stream>, Fault>;
    /// What a conversation that broke off means for `operation`.
    async fn broken(&self, operation: &'static str) -> Fault;
    /// Whether the other side refuses to lead to unix sockets.
    fn refuses_sockets(&self) -> bool {
        false
    }
    /// See [`Host::close`].
    async fn close(&self) -> Result<(), Fault>;
}

/// The shell that is spoken to; tests put others here.
pub(crate) fn default_shell() -> Vec<OsString> {
    vec!["sh".into()]
}

/// A host that is spoken to through a shell. Made by [`local::connect`](super::local::connect) and
/// [`ssh::connect`](super::ssh::connect).
pub struct ShellHost<T> {
    transport: Arc<T>,
    guardian: Guardian,
    shell_argv: Vec<OsString>,
    /// The shell that stays; empty before the first use, and after an exchange that failed or was dropped.
    shell: Mutex<Option<Shell>>,
    /// A shell that waits for a script of its own, started before anybody wants it.
    spare: std::sync::Mutex<Option<JoinHandle<Result<Process, Fault>>>>,
}

/// Ends a script for a spare shell. Nobody names a file like that.
const END_OF_SCRIPT: &str = "#END-OF-SCRIPT-7f3a91c2d4e85b60";
/// What a spare shell runs: it reads a script up to a line with this mark, and becomes that. `read` takes no byte too many
/// from a pipe, so what follows is the script's own input. One line: a login shell like `csh` may have to pass it on.
const SPARE: &str = r#"n=$(printf '\n_'); n=${n%_}; s=; while IFS= read -r l || exit 0; do [ "$l" != "$1" ] || break; s=$s$l$n; done; eval "$s""#;

/// A survey reads small files only.
const SURVEY_LIMIT: Duration = Duration::from_secs(60);
/// A look at one file.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// Removing a large directory may take a while.
const APPLY_LIMIT: Duration = Duration::from_secs(300);

impl<T: Transport> ShellHost<T> {
    /// Starts the shell at once, beside whatever the caller does next.
    pub(crate) fn start(transport: T, guardian: Guardian, shell_argv: Vec<OsString>) -> Arc<Self> {
        let transport = Arc::new(transport);
        let host = Arc::new(Self {
            transport,
            guardian,
            shell_argv,
            shell: Mutex::new(None),
            spare: std::sync::Mutex::new(None),
        });
        let early = Arc::clone(&host);
        tokio::spawn(async move {
            let mut shell = early.shell.lock().await;
            if shell.is_none() {
                // Its failure is met again, and reported, by whoever needs the shell.
                *shell = Shell::open(&*early.transport, &early.shell_argv).await.ok();
            }
        });
        *host.spare() = Some(host.start_spare());
        host
    }

    /// What must end with this process; its directory is this run's private one.
    pub fn guardian(&self) -> &Guardian {
        &self.guardian
    }

    /// The way to programs on the host.
    pub(crate) fn transport(&self) -> &T {
        &self.transport
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<Result<Process, Fault>>>> {
        self.spare.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The spare shell, for who counts what can be open at once.
    pub(super) async fn take_spare(&self) -> Option<Process> {
        let spare = self.spare().take();
        spare?.await.ok()?.ok()
    }

    fn start_spare(&self) -> JoinHandle<Result<Process, Fault>> {
        let transport = Arc::clone(&self.transport);
        let mut argv = self.shell_argv.clone();
        argv.extend(["-c", SPARE, "preview", END_OF_SCRIPT].map(OsString::from));
        tokio::spawn(async move { transport.spawn(&argv).await })
    }

    /// Runs a script with these arguments in a process of its own, whose input and output are the caller's.
    pub(crate) async fn run(
        &self,
        operation: &'static str,
        script: &str,
        arguments: &[&str],
    ) -> Result<Process, Fault> {
        let words: Vec<String> = arguments.iter().map(|word| script::quote(word)).collect();
        let text = format!("set -- {}\n{script}\n{END_OF_SCRIPT}\n", words.join(" "));
        let started = self.spare().take().unwrap_or_else(|| self.start_spare());
        let mut process = match started.await {
            Ok(process) => process?,
            Err(error) => return Err(Fault::new(FaultKind::Failed, operation, "").caused_by(error)),
        };
        *self.spare() = Some(self.start_spare());
        if let Err(error) = process.stdin.write_all(text.as_bytes()).await {
            return Err(self.transport.broken(operation).await.caused_by(error));
        }
        Ok(process)
    }

    /// One exchange with the shell that stays; `script` is handed the mark that no content can hold.
    pub(crate) async fn exchange(
        &self,
        operation: &'static str,
        limit: Duration,
        script: impl FnOnce(&str) -> Result<String, Fault>,
    ) -> Result<Answer, Fault> {
        let token = random_token()?;
        let mark = format!("#M{token}");
        let text = script(&mark)?;
        let mut place = self.shell.lock().await;
        // Taken out: if this future is dropped half-way, the shell goes with it and nobody reads its stale answers.
        let mut shell = match place.take() {
            Some(shell) => shell,
            None => Shell::open(&*self.transport, &self.shell_argv).await?,
        };
        let begun = Instant::now();
        match tokio::time::timeout(limit, shell.exchange(&text, &token)).await {
            Ok(Ok((status, stdout, stderr))) => {
                tracing::debug!(operation, status, took = ?begun.elapsed(), "asked the host");
                *place = Some(shell);
                Ok(Answer { status, stdout, stderr: String::from_utf8_lossy(&stderr).trim().to_owned(), mark })
            }
            Ok(Err(error)) => {
                drop(shell);
                drop(place);
                Err(self.transport.broken(operation).await.caused_by(error))
            }
            Err(_) => Err(Fault::new(
                FaultKind::TimedOut,
                operation,
                format!("{} gave no answer within {} s", self.transport.describe(), limit.as_secs()),
            )),
        }
    }
}

/// What a look at a socket means. `refused`: the other side leads nobody to sockets.
fn closed(said: &str, path: &str, host: &str, refused: bool) -> Option<Closed> {
    let mut words = said.split_whitespace();
    match words.next()? {
        "missing" => Some(Closed::Missing(format!(
            "no Docker engine answers: there is no socket {path} on {host}; is Docker installed and running there (`systemctl status docker`), and is \
             `[vm] docker_socket` its socket?"
        ))),
        "closed" => {
            let user = words.next().unwrap_or("this user");
            Some(Closed::Denied(format!(
                "the user {user} may not use {path} on {host}: put it into the group `docker` there (`sudo usermod -aG docker {user}`), then run this again"
            )))
        }
        "listening" if refused => Some(Closed::Denied(format!(
            "the sshd of {host} does not lead to unix sockets, which is how Docker is reached: set `AllowStreamLocalForwarding yes` in its sshd_config \
             (and no `DisableForwarding yes`), then `systemctl reload ssh`"
        ))),
        _ => None,
    }
}

/// What a script printed.
pub(crate) struct Answer {
    /// Its exit status.
    pub(crate) status: i32,
    /// Its output.
    pub(crate) stdout: Vec<u8>,
    /// What it complained about.
    pub(crate) stderr: String,
    /// The mark it was made with.
    pub(crate) mark: String,
}

pub(crate) fn random_token() -> Result<String, Fault> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Fault::new(FaultKind::Failed, "get random bytes", "").caused_by(error.to_string()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

struct Shell {
    process: Process,
}

impl Shell {
    async fn open<T: Transport>(transport: &T, argv: &[OsString]) -> Result<Self, Fault> {
        let mut process = transport.spawn(argv).await?;
        // Messages in English: they are read by `kind_of`.
        process
            .stdin
            .write_all(b"LC_ALL=C; export LC_ALL; cd /\n")
            .await
            .map_err(|error| Fault::new(FaultKind::Unreachable, "start a shell", "").caused_by(error))?;
        Ok(Self { process })
    }

    async fn exchange(&mut self, text: &str, token: &str) -> std::io::Result<(i32, Vec<u8>, Vec<u8>)> {
        let Process { stdin, stdout, stderr, .. } = &mut self.process;
        let end = format!("\n#F{token} ");
        let start = format!("#S{token}\n");
        // The newline before the closing bracket ends a comment or a here document of the script. What stands before the
        // start is noise: of a login shell's start-up files, for example.
        let whole = format!(
            "{{ echo '#S{token}'; (\n{text}\n) </dev/null; printf '\\n%s %s\\n' '#F{token}' \"$?\"; \
             printf '\\n%s \\n' '#F{token}' >&2; }}\n"
        );
        let write = async {
            stdin.write_all(whole.as_bytes()).await?;
            stdin.flush().await
        };
        let ((), (mut stdout, status), (stderr, _)) =
            tokio::try_join!(write, read_until(stdout, end.as_bytes()), read_until(stderr, end.as_bytes()))?;
        let begin = script::find(&stdout, start.as_bytes()).map_or(0, |at| at + start.len());
        stdout.drain(..begin);
        let status = std::str::from_utf8(&status).ok().and_then(|text| text.trim().parse().ok());
        Ok((status.ok_or_else(|| std::io::Error::other("the shell's answer has no status"))?, stdout, stderr))
    }
}

/// What came before `end`, and the rest of its line.
async fn read_until(
    from: &mut (dyn AsyncRead + Send + Sync + Unpin),
    end: &[u8],
) -> std::io::Result<(Vec<u8>, Vec<u8>)> {
    let mut all: Vec<u8> = Vec::with_capacity(8192);
    let mut searched = 0;
    let mut found = None;
    loop {
        if found.is_none() {
            found = script::find(&all[searched..], end).map(|at| searched + at);
            searched = all.len().saturating_sub(end.len() - 1);
        }
        if let Some(at) = found
            && let Some(line) = all[at + end.len()..].iter().position(|byte| *byte == b'\n')
        {
            let rest = all[at + end.len()..at + end.len() + line].to_vec();
            all.truncate(at);
            return Ok((all, rest));
        }
        if from.read_buf(&mut all).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[async_trait]
impl<T: Transport> Host for ShellHost<T> {
    fn describe(&self) -> String {
        self.transport.describe()
    }

    async fn survey(&self, base: &str, query: &Query) -> Result<Survey, Fault> {
        const OPERATION: &str = "read the host's state";
        script::checked(OPERATION, base)?;
        let nul = query.read.iter().chain(&query.list).chain(&query.joined).any(|pattern| pattern.contains('\0'));
        if nul {
            return Err(Fault::new(FaultKind::Invalid, OPERATION, "a pattern holds a NUL byte"));
        }
        let answer = self.exchange(OPERATION, SURVEY_LIMIT, |mark| Ok(script::survey(base, query, mark))).await?;
        if answer.status != 0 {
            return Err(Fault::new(script::kind_of(&answer.stderr), OPERATION, answer.stderr));
        }
        script::parse_survey(&answer.stdout, &answer.mark, query.files_only).map_err(|source| {
            let context = format!("{}: {source} was not understood: {}", self.transport.describe(), answer.stderr);
            Fault::new(FaultKind::Unsupported, OPERATION, context)
        })
    }

    async fn apply(&self, changes: &[Change]) -> Result<(), Fault> {
        const OPERATION: &str = "change files on the host";
        if changes.is_empty() {
            return Ok(());
        }
        let answer = self.exchange(OPERATION, APPLY_LIMIT, |mark| script::apply(changes, mark)).await?;
        script::trace_unnoted(&answer.stderr);
        if answer.status == 0 {
            return Ok(());
        }
        // Each change that is done printed one newline.
        let failed = changes.get(answer.stdout.len()).map(script::describe).unwrap_or_default();
        Err(Fault::new(script::kind_of(&answer.stderr), OPERATION, format!("{failed}: {}", answer.stderr)))
    }

    async fn apply_if(&self, guard: &Guard, changes: &[Change]) -> Result<bool, Fault> {
        const OPERATION: &str = "change files on the host";
        let answer = self.exchange(OPERATION, APPLY_LIMIT, |mark| script::apply_if(guard, changes, mark)).await?;
        script::trace_unnoted(&answer.stderr);
        if answer.status == 0 {
            return Ok(answer.stdout != script::MOVED);
        }
        let change = changes.get(answer.stdout.len()).filter(|_| answer.status != script::GUARD);
        let failed = change.map_or_else(|| guard.path.clone(), script::describe);
        Err(Fault::new(script::kind_of(&answer.stderr), OPERATION, format!("{failed}: {}", answer.stderr)))
    }

    async fn upload(&self, directory: &str, entries: &[Entry]) -> Result<bool, Fault> {
        upload::upload(self, directory, entries).await
    }

    async fn socket(&self, path: &str) -> Result<PathBuf, Fault> {
        self.transport.socket(path).await
    }

    async fn why_closed(&self, path: &str) -> Option<Closed> {
        let script = format!(
            "p={}; if [ ! -S \"$p\" ]; then echo missing; elif [ ! -r \"$p\" ] || [ ! -w \"$p\" ]; then echo closed; id -un; \
             elif grep -q \" 00010000 .*/${{p##*/}}$\" /proc/net/unix 2>/dev/null; then echo listening; else echo open; fi",
            script::quote(path)
        );
        let answer = self.exchange("look at a socket", LOOK_LIMIT, |_| Ok(script)).await.ok()?;
        let text = String::from_utf8_lossy(&answer.stdout);
        closed(&text, path, &self.transport.describe(), self.transport.refuses_sockets())
    }

    async fn dial(&self, address: &str, port: u16) -> Result<Box<dyn Stream>, Fault> {
        self.transport.dial(address, port).await
    }

    async fn close(&self) -> Result<(), Fault> {
        drop(self.shell.lock().await.take());
        let spare = self.spare().take();
        if let Some(spare) = spare {
            spare.abort();
        }
        let closed = self.transport.close().await;
        self.guardian.finish().await;
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_cannot_be_used_says_why() {
        let told = |said: &str, refused| closed(said, "/run/d.sock", "vm", refused);
        let Some(Closed::Denied(rights)) = told("closed\nada\n", false) else { panic!("the rights are not told") };
        assert!(rights.contains("usermod -aG docker ada"), "{rights}");
        let Some(Closed::Denied(sshd)) = told("listening\n", true) else { panic!("the sshd is not told") };
        assert!(sshd.contains("AllowStreamLocalForwarding yes"), "{sshd}");
        assert!(matches!(told("missing\n", false), Some(Closed::Missing(why)) if why.contains("/run/d.sock")));
        // Somebody may have left the socket: then sshd is not to blame.
        assert_eq!((told("open\n", true), told("listening\n", false), told("", true)), (None, None, None));
    }

    #[tokio::test]
    async fn the_end_is_found_wherever_it_is_cut() {
        let text = b"abc\n#F\n#Fx 7\nrest";
        for size in 1..text.len() {
            let mut mock: Box<dyn AsyncRead + Send + Sync + Unpin> = Box::new(Chunks { text: text.to_vec(), size });
            let (before, line) = read_until(&mut mock, b"\n#Fx ").await.expect("found");
            assert_eq!((before.as_slice(), line.as_slice()), (b"abc\n#F" as &[u8], b"7" as &[u8]), "{size}");
        }
    }

    struct Chunks {
        text: Vec<u8>,
        size: usize,
    }

    impl AsyncRead for Chunks {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            let size = self.size.min(self.text.len());
            buf.put_slice(&self.text.drain(..size).collect::<Vec<_>>());
            std::task::Poll::Ready(Ok(()))
        }
    }
}
