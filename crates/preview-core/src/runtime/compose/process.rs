//! One run of the CLI: what it may see, how it ends, what it says.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use super::sandbox::Sandbox;
use super::{ComposeOptions, Progress, Variables};
use crate::fault::{Fault, FaultKind};
use crate::host::guardian::Guardian;

/// Lines of output that are kept for an error message.
const TAIL: usize = 40;

/// A run of the CLI.
pub(super) struct Call<'a> {
    pub(super) operation: &'static str,
    pub(super) args: Vec<OsString>,
    pub(super) variables: &'a Variables,
    pub(super) directory: &'a Path,
    pub(super) input: Option<&'a str>,
    pub(super) progress: Option<Progress<'a>>,
    /// What it may read of this machine, besides itself.
    pub(super) files: Vec<PathBuf>,
    /// Whether it builds: builders keep notes beside the CLI's configuration.
    pub(super) builds: bool,
}

/// Runs the CLI.
pub(super) async fn run(options: &ComposeOptions, call: Call<'_>) -> Result<Ran, Fault> {
    let Call { operation, args, variables, directory, input, progress, files, builds } = call;
    let mut command = Command::new(&options.docker);
    command.args(&args).current_dir(directory).env_clear().env("PATH", &options.path);
    for (key, value) in environment(options) {
        command.env(key, value);
    }
    for (key, value) in variables {
        command.env(key, value.expose());
    }
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let scratch = options.guardian.as_ref().map(Guardian::run_dir);
    let mut own = tempfile::Builder::new();
    own.prefix("preview-cli-");
    let own = scratch.map_or_else(|| own.tempdir(), |scratch| own.tempdir_in(scratch)).map_err(|error| {
        Fault::new(FaultKind::Failed, operation, "the directory for temporary files cannot be used").caused_by(error)
    })?;
    command.env("TMPDIR", own.path());
    let configuration = configuration(options);
    let mut sandbox = Sandbox::new(&options.docker, &options.path, configuration.as_deref());
    sandbox =
        sandbox.reading(files).reading([directory.to_owned()].into_iter().filter(|_| directory != Path::new("/")));
    sandbox = sandbox.writing(own.path());
    if let Some(configuration) = configuration.filter(|_| builds) {
        sandbox = sandbox.writing(&configuration);
    }
    let mut child = sandbox.spawn(command).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            Fault::new(
                FaultKind::Unsupported,
                operation,
                format!(
                    "`{}` was not found; install the Docker CLI with its Compose plugin on this machine",
                    options.docker.display()
                ),
            )
        } else {
            Fault::new(FaultKind::Failed, operation, format!("`{}` does not start", options.docker.display()))
                .caused_by(error)
        }
    })?;
    let group = Group::new(child.id(), options.guardian.clone());
    let stdin = child.stdin.take();
    let feed = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A program that fails early closes its input; its own words say why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let said = Tail::default();
    let out = async {
        let mut text = Vec::new();
        if let Some(mut stdout) = child.stdout.take() {
            if let Some(progress) = progress {
                lines(stdout, |line| {
                    progress(line);
                    said.push(line);
                })
                .await;
            } else {
                let _ = stdout.read_to_end(&mut text).await;
            }
        }
        text
    };
    let err = async {
        let kept = Tail::default();
        if let Some(stderr) = child.stderr.take() {
            lines(stderr, |line| {
                if let Some(progress) = progress {
                    progress(line);
                }
                kept.push(line);
                said.push(line);
            })
            .await;
        }
        kept.lines()
    };
    let ((), stdout, stderr) = futures_util::join!(feed, out, err);
    let status = child
        .wait()
        .await
        .map_err(|error| Fault::new(FaultKind::Failed, operation, "its end cannot be awaited").caused_by(error))?;
    group.ended();
    Ok(Ran { status, stdout, stderr, said: said.lines() })
}

/// The CLI's configuration directory. It has no home directory where it would find it.
fn configuration(options: &ComposeOptions) -> Option<PathBuf> {
    let of_the_user = || std::env::home_dir().map(|home| home.join(".docker"));
    options.docker_config.clone().or_else(of_the_user)
}

/// The CLI's own environment: nothing of the runner's but what it needs to find itself and the engine.
fn environment(options: &ComposeOptions) -> Vec<(&'static str, OsString)> {
    let mut environment: Vec<(&'static str, OsString)> = vec![
        // Files of a pull request must not make this machine fetch from elsewhere.
        ("COMPOSE_EXPERIMENTAL_GIT_REMOTE", "false".into()),
        ("COMPOSE_EXPERIMENTAL_OCI_REMOTE", "false".into()),
        ("COMPOSE_MENU", "false".into()),
        ("DOCKER_CLI_HINTS", "false".into()),
        // Attestations would give equal builds different ids.
        ("BUILDX_NO_DEFAULT_ATTESTATIONS", "1".into()),
        // A build context can be a repository whose configuration names programs: nobody asks git about it. Where somebody does, there is none.
        ("BUILDX_GIT_INFO", "false".into()),
        ("GIT_DIR", "/dev/null".into()),
        ("GIT_CONFIG_NOSYSTEM", "1".into()),
        ("GIT_CONFIG_GLOBAL", "/dev/null".into()),
        ("GIT_CONFIG_COUNT", "0".into()),
        ("GIT_TERMINAL_PROMPT", "0".into()),
    ];
    if let Some(config) = configuration(options) {
        environment.push(("DOCKER_CONFIG", config.into()));
    }
    if let Some(socket) = &options.socket {
        let mut host = OsString::from("unix://");
        host.push(socket);
        environment.push(("DOCKER_HOST", host));
    }
    environment
}

/// What the CLI left.
pub(super) struct Ran {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<String>,
    /// The last lines of both, in the order in which they came.
    pub(super) said: Vec<String>,
}

/// The last lines of something that is read.
#[derive(Default)]
struct Tail(Mutex<VecDeque<String>>);

impl Tail {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == TAIL {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    fn lines(self) -> Vec<String> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).into()
    }
}

/// A process group that ends with us: when this is dropped early, or, if we are killed, by the guardian.
struct Group {
    id: Option<u32>,
    guardian: Option<Guardian>,
}

impl Group {
    fn new(id: Option<u32>, guardian: Option<Guardian>) -> Self {
        if let (Some(id), Some(guardian)) = (id, &guardian) {
            guardian.child_started(id);
        }
        Self { id, guardian }
    }

    fn ended(mut self) {
        if let (Some(id), Some(guardian)) = (self.id.take(), &self.guardian) {
            guardian.child_ended(id);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        // The CLI runs its plugin as a child: killing the CLI alone would leave that at work.
        if let Some(pid) = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        if let Some(guardian) = &self.guardian {
            guardian.child_ended(id);
        }
    }
}

async fn lines(reader: impl AsyncRead + Unpin, mut each: impl FnMut(&str)) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line).await, Ok(read) if read > 0) {
        each(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}
