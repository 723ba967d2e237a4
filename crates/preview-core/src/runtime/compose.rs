//! The Compose CLI: command lines as values, and the meaning of what it prints.

mod words;

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

pub(crate) use words::parse_version;
use words::{classify, name_files, warning};

use super::{Progress, Resolved, Runtime, Source, Stack, Variables};
use crate::fault::{Fault, FaultKind};
use crate::host::guardian::Guardian;

/// The oldest Compose whose `config --format json` has the form that we read.
pub(crate) const OLDEST: (u64, u64) = (2, 24);
/// Lines of output that are kept for an error message.
const TAIL: usize = 40;

/// Where the Compose CLI is and what it may see.
#[derive(Clone)]
pub struct ComposeOptions {
    /// The Docker CLI; `docker` is looked up in `path`.
    pub docker: PathBuf,
    /// `PATH` of the CLI.
    pub path: OsString,
    /// The CLI's own configuration directory, with its plugins and registry logins.
    pub docker_config: Option<PathBuf>,
    /// The engine's unix socket; not needed to resolve.
    pub socket: Option<PathBuf>,
    /// Who ends the CLI if we are killed.
    pub guardian: Option<Guardian>,
}

/// The Compose CLI.
#[derive(Clone)]
pub struct Compose {
    options: ComposeOptions,
}

impl Compose {
    /// An adapter; nothing is run.
    #[must_use]
    pub const fn new(options: ComposeOptions) -> Self {
        Self { options }
    }

    /// The same with an engine.
    #[must_use]
    pub fn with_socket(&self, socket: PathBuf, guardian: Option<Guardian>) -> Self {
        Self { options: ComposeOptions { socket: Some(socket), guardian, ..self.options.clone() } }
    }

    async fn run(
        &self,
        operation: &'static str,
        args: Vec<OsString>,
        variables: &Variables,
        directory: &Path,
        input: Option<&str>,
        progress: Option<Progress<'_>>,
    ) -> Result<Ran, Fault> {
        let mut command = Command::new(&self.options.docker);
        command.args(&args).current_dir(directory).env_clear().env("PATH", &self.options.path);
        for (key, value) in environment(&self.options) {
            command.env(key, value);
        }
        for (key, value) in variables {
            command.env(key, value.expose());
        }
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                Fault::new(
                    FaultKind::Unsupported,
                    operation,
                    format!(
                        "`{}` was not found; install the Docker CLI with its Compose plugin on this machine",
                        self.options.docker.display()
                    ),
                )
            } else {
                Fault::new(FaultKind::Failed, operation, format!("`{}` does not start", self.options.docker.display()))
                    .caused_by(error)
            }
        })?;
        let group = Group::new(child.id(), self.options.guardian.clone());
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

    /// Why the CLI failed: it may be missing or too old, which its own message does not say well.
    async fn explain(&self, operation: &'static str, ran: &Ran) -> Fault {
        let version = self
            .run(
                "ask Compose for its version",
                args(["compose", "version", "--short"]),
                &Variables::new(),
                Path::new("/"),
                None,
                None,
            )
            .await;
        match version {
            Ok(version) => {
                let text = String::from_utf8_lossy(&version.stdout).trim().to_owned();
                match parse_version(&text) {
                    Some(found) if version.status.success() && found >= OLDEST => classify(operation, &ran.stderr),
                    Some(_) if version.status.success() => Fault::new(
                        FaultKind::Unsupported,
                        operation,
                        format!(
                            "Docker Compose {text} is too old: {}.{} or newer is needed on this machine",
                            OLDEST.0, OLDEST.1
                        ),
                    ),
                    _ => Fault::new(
                        FaultKind::Unsupported,
                        operation,
                        "`docker compose` is missing: install the Compose plugin (v2) of the Docker CLI on this machine",
                    ),
                }
            }
            Err(fault) => fault,
        }
    }
}

/// What the CLI left.
struct Ran {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<String>,
    /// The last lines of both, in the order in which they came.
    said: Vec<String>,
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

fn args<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
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
    ];
    if let Some(config) = &options.docker_config {
        environment.push(("DOCKER_CONFIG", config.into()));
    }
    if let Some(socket) = &options.socket {
        let mut host = OsString::from("unix://");
        host.push(socket);
        environment.push(("DOCKER_HOST", host));
    }
    environment
}

/// `docker compose … config --format json`.
fn config_args(source: &Source) -> Vec<OsString> {
    let mut line = args(["compose", "--project-name"]);
    line.push(source.project.clone().into());
    line.push("--project-directory".into());
    line.push(source.directory.clone().into());
    for file in &source.files {
        line.push("--file".into());
        line.push(file.into());
    }
    for file in &source.env_files {
        line.push("--env-file".into());
        line.push(file.into());
    }
    for profile in &source.profiles {
        line.push("--profile".into());
        line.push(profile.into());
    }
    line.extend(args(["config", "--format", "json"]));
    line
}

/// `docker compose … -f - <verb>`: the rendered model comes on standard input, so that no file on this machine holds it.
fn stack_args(stack: &Stack, verb: &[&str]) -> Vec<OsString> {
    // The model has absolute paths only; `/` and the empty env file keep the CLI from reading a `.env` somewhere.
    let mut line = args([
        "compose",
        "--project-directory",
        "/",
        "--env-file",
        "/dev/null",
        "--progress",
        "plain",
        // Those of services whose profiles are off are not in the model any more.
        "--profile",
        "*",
        "--project-name",
    ]);
    line.push(stack.project.clone().into());
    line.extend(args(["--file", "-"]));
    line.extend(verb.iter().map(OsString::from));
    line
}

impl Compose {
    async fn bring_up(&self, stack: &Stack, verb: &[&str], progress: Progress<'_>) -> Result<(), Fault> {
        const OPERATION: &str = "bring the stack up";
        let fixed = ["up", "--detach", "--no-build", "--pull", "never"];
        let line = stack_args(stack, &[&fixed, verb].concat());
        let ran = self
            .run(OPERATION, line, &stack.variables, Path::new("/"), Some(stack.rendered.expose()), Some(progress))
            .await?;
        if ran.status.success() { Ok(()) } else { Err(self.explain(OPERATION, &ran).await) }
    }
}

#[async_trait]
impl Runtime for Compose {
    async fn resolve(&self, source: &Source) -> Result<Resolved, Fault> {
        const OPERATION: &str = "resolve the Compose files";
        let ran = self.run(OPERATION, config_args(source), &source.variables, &source.directory, None, None).await?;
        if !ran.status.success() {
            let mut fault = self.explain(OPERATION, &ran).await;
            if fault.kind == FaultKind::Failed {
                fault.kind = FaultKind::Invalid;
                name_files(&mut fault.context, &source.files);
            }
            return Err(fault);
        }
        let mut warnings: Vec<String> = ran.stderr.iter().filter_map(|line| warning(line)).collect();
        warnings.sort();
        warnings.dedup();
        let model = match serde_json::from_slice(&ran.stdout) {
            Ok(model) => model,
            Err(error) => {
                let fault = self.explain(OPERATION, &ran).await;
                if fault.kind == FaultKind::Unsupported {
                    return Err(fault);
                }
                let said = "`docker compose config` printed something that is not JSON";
                return Err(Fault::new(FaultKind::Unsupported, OPERATION, said).caused_by(error));
            }
        };
        Ok(Resolved { model, warnings })
    }

    async fn build(&self, stack: &Stack, services: &[String], progress: Progress<'_>) -> Result<(), Fault> {
        const OPERATION: &str = "build the images";
        let mut verb = vec!["build", "--"];
        verb.extend(services.iter().map(String::as_str));
        let line = stack_args(stack, &verb);
        let ran = self
            .run(OPERATION, line, &stack.variables, Path::new("/"), Some(stack.rendered.expose()), Some(progress))
            .await?;
        if ran.status.success() { Ok(()) } else { Err(self.explain(OPERATION, &ran).await.with_output(ran.said)) }
    }

    async fn up(&self, stack: &Stack, progress: Progress<'_>) -> Result<(), Fault> {
        self.bring_up(stack, &["--remove-orphans"], progress).await
    }

    async fn up_only(&self, stack: &Stack, progress: Progress<'_>) -> Result<(), Fault> {
        // The whole of a smaller stack: `--no-deps` would drop the conditions of `depends_on` even among the services that are named.
        self.bring_up(stack, &[], progress).await
    }

    async fn beside(
        &self,
        stack: &Stack,
        services: &BTreeMap<String, usize>,
        progress: Progress<'_>,
    ) -> Result<(), Fault> {
        let scales: Vec<String> = services.iter().map(|(service, count)| format!("{service}={count}")).collect();
        let mut verb = vec!["--no-deps", "--no-recreate"];
        verb.extend(scales.iter().flat_map(|scale| ["--scale", scale]));
        verb.push("--");
        verb.extend(services.keys().map(String::as_str));
        self.bring_up(stack, &verb, progress).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn words(line: &[OsString]) -> Vec<&str> {
        line.iter().map(|word| word.to_str().unwrap()).collect()
    }

    #[test]
    fn command_lines() {
        let source = Source {
            files: vec!["/r/compose.yml".into(), "/r/compose.preview.yml".into()],
            directory: "/r".into(),
            env_files: vec!["/r/x.env".into()],
            profiles: vec!["parser".into()],
            project: "shop_pr-7".into(),
            variables: Variables::new(),
        };
        assert_eq!(
            words(&config_args(&source)),
            [
                "compose",
                "--project-name",
                "shop_pr-7",
                "--project-directory",
                "/r",
                "--file",
                "/r/compose.yml",
                "--file",
                "/r/compose.preview.yml",
                "--env-file",
                "/r/x.env",
                "--profile",
                "parser",
                "config",
                "--format",
                "json"
            ]
        );
        let stack = Stack { project: "p".into(), rendered: Secret::new("{}".into()), variables: Variables::new() };
        assert_eq!(
            words(&stack_args(&stack, &["up"])),
            [
                "compose",
                "--project-directory",
                "/",
                "--env-file",
                "/dev/null",
                "--progress",
                "plain",
                "--profile",
                "*",
                "--project-name",
                "p",
                "--file",
                "-",
                "up"
            ]
        );
    }

    #[tokio::test]
    async fn a_missing_cli_is_named() {
        let compose = Compose::new(ComposeOptions {
            docker: "/nonexistent/docker".into(),
            path: "/usr/bin:/bin".into(),
            docker_config: None,
            socket: None,
            guardian: None,
        });
        let source = Source {
            files: vec![],
            directory: "/".into(),
            env_files: vec![],
            profiles: vec![],
            project: "p".into(),
            variables: Variables::new(),
        };
        let fault = compose.resolve(&source).await.unwrap_err();
        assert_eq!(fault.kind, FaultKind::Unsupported);
        assert!(fault.to_string().contains("/nonexistent/docker"), "{fault}");
    }
}
