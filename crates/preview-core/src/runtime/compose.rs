//! The Compose CLI: command lines as values, and the meaning of what it prints.

mod process;
mod sandbox;
mod words;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use process::{Call, Ran, run};
pub(crate) use sandbox::available as can_be_closed_in;
pub(crate) use words::parse_version;
use words::{classify, of_files, warning};

use super::{Progress, Resolved, Runtime, Source, Stack, Variables};
use crate::fault::{Fault, FaultKind};
use crate::host::guardian::Guardian;

/// The oldest Compose whose `config --format json` has the form that we read.
pub(crate) const OLDEST: (u64, u64) = (2, 24);

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

    /// Why the CLI failed: it may be missing or too old, which its own message does not say well.
    async fn explain(&self, operation: &'static str, ran: &Ran) -> Fault {
        let call = Call {
            operation: "ask Compose for its version",
            args: args(["compose", "version", "--short"]),
            variables: &Variables::new(),
            directory: Path::new("/"),
            input: None,
            progress: None,
            files: vec![],
            builds: false,
        };
        let version = run(&self.options, call).await;
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

fn args<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
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
        // Containers are named with `_` between project, service and number. Names of previews hold no `_`, but with `-` the service
        // `2024-api` of `app_release` and the service `api` of `app_release-2024` would have one name.
        "--compatibility",
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

/// What builds of a stack read of this machine: contexts, directories of Dockerfiles, files of secrets.
fn of_builds(stack: &Stack) -> Vec<PathBuf> {
    let model: serde_json::Value = serde_json::from_str(stack.rendered.expose()).unwrap_or_default();
    let text = |value: Option<&serde_json::Value>| Some(value?.as_str()?.replace("$$", "$"));
    let mut found: Vec<PathBuf> = Vec::new();
    for (_, service) in crate::stack::services(&model) {
        let Some(build) = service.get("build") else { continue };
        let contexts = build.get("additional_contexts").and_then(serde_json::Value::as_object).into_iter().flatten();
        found.extend(contexts.filter_map(|(_, value)| text(Some(value))).map(PathBuf::from));
        let Some(context) = text(build.get("context")).map(PathBuf::from) else { continue };
        let dockerfile = text(build.get("dockerfile")).unwrap_or_default();
        found.extend(crate::stack::normal(&context.join(dockerfile)).parent().map(Path::to_owned));
        found.push(context);
    }
    found.extend(
        crate::stack::entries(&model, "secrets").filter_map(|(_, secret)| text(secret.get("file"))).map(PathBuf::from),
    );
    found.retain(|path| path.is_absolute());
    found
}

impl Compose {
    async fn run_stack(
        &self,
        operation: &'static str,
        args: Vec<OsString>,
        stack: &Stack,
        files: Option<Vec<PathBuf>>,
        progress: Progress<'_>,
    ) -> Result<Ran, Fault> {
        let call = Call {
            operation,
            args,
            variables: &stack.variables,
            directory: Path::new("/"),
            input: Some(stack.rendered.expose()),
            progress: Some(progress),
            builds: files.is_some(),
            files: files.unwrap_or_default(),
        };
        run(&self.options, call).await
    }

    async fn bring_up(&self, stack: &Stack, verb: &[&str], progress: Progress<'_>) -> Result<(), Fault> {
        const OPERATION: &str = "bring the stack up";
        let fixed = ["up", "--detach", "--no-build", "--pull", "never"];
        let line = stack_args(stack, &[&fixed, verb].concat());
        let ran = self.run_stack(OPERATION, line, stack, None, progress).await?;
        if ran.status.success() { Ok(()) } else { Err(self.explain(OPERATION, &ran).await) }
    }
}

#[async_trait]
impl Runtime for Compose {
    fn scratch(&self) -> Option<&Path> {
        self.options.guardian.as_ref().map(Guardian::run_dir)
    }

    async fn resolve(&self, source: &Source) -> Result<Resolved, Fault> {
        const OPERATION: &str = "resolve the Compose files";
        let call = Call {
            operation: OPERATION,
            args: config_args(source),
            variables: &source.variables,
            directory: &source.directory,
            input: None,
            progress: None,
            files: [&source.files, &source.env_files, &source.readable].into_iter().flatten().cloned().collect(),
            builds: false,
        };
        let ran = run(&self.options, call).await?;
        if !ran.status.success() {
            let mut fault = self.explain(OPERATION, &ran).await;
            if fault.kind == FaultKind::Failed {
                fault.kind = FaultKind::Invalid;
                fault.context = of_files(fault.context, &source.files);
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

    async fn check(&self, stack: &Stack) -> Result<(), Fault> {
        const OPERATION: &str = "check the rendered stack";
        let line = stack_args(stack, &["config", "--quiet"]);
        let ran = self.run_stack(OPERATION, line, stack, None, &|_| ()).await?;
        if ran.status.success() {
            return Ok(());
        }
        let mut fault = self.explain(OPERATION, &ran).await;
        if fault.kind == FaultKind::Failed {
            fault.kind = FaultKind::Invalid;
            fault.context = format!(
                "Compose does not take the preview's stack: {}. `preview plan` lists how it differs from your files; where Compose names a key that \
                 your files do not have, please report it as a mistake of preview",
                fault.context
            );
        }
        Err(fault)
    }

    async fn build(&self, stack: &Stack, services: &[String], progress: Progress<'_>) -> Result<(), Fault> {
        const OPERATION: &str = "build the images";
        let mut verb = vec!["build", "--"];
        verb.extend(services.iter().map(String::as_str));
        let line = stack_args(stack, &verb);
        let ran = self.run_stack(OPERATION, line, stack, Some(of_builds(stack)), progress).await?;
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
            readable: vec![],
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
                "--compatibility",
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

    #[test]
    fn builds_read_their_contexts_and_dockerfiles() {
        let rendered = serde_json::json!({
            "services": {
                "a": {"build": {"context": "/r/a$$b", "dockerfile": "../docker/Dockerfile", "additional_contexts": {"x": "/r/x", "y": "service:b"}}},
                "b": {"image": "x"},
            },
            "secrets": {"s": {"file": "/r/s.txt"}, "e": {"environment": "E"}},
        });
        let rendered = Secret::new(rendered.to_string());
        let stack = Stack { project: "p".into(), rendered, variables: Variables::new() };
        assert_eq!(of_builds(&stack), ["/r/x", "/r/docker", "/r/a$b", "/r/s.txt"].map(PathBuf::from));
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
            readable: vec![],
        };
        let fault = compose.resolve(&source).await.unwrap_err();
        assert_eq!(fault.kind, FaultKind::Unsupported);
        assert!(fault.to_string().contains("/nonexistent/docker"), "{fault}");
    }
}
