//! From flags, environment and files to what the library wants: configuration, names, project, connection.

mod context;
mod names;
mod project;
mod reach;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use preview_core::checkout;
use preview_core::config::{self, Config, ConfigFile, Environment, Overrides, Settings};
use preview_core::engine::docker::DockerEngine;
use preview_core::host::ssh::Destination;
use preview_core::host::{Closed, Host, guardian::Guardian, local, ssh};
use preview_core::lifecycle::{Client, Error};
use preview_core::lock::Lock;
use preview_core::lock::shell::ShellLock;
use preview_core::name::{AppName, Key, Named, PreviewName, project_name};
use preview_core::project::Target;
use preview_core::runtime::compose::Compose;
use preview_core::secret::Secret;
use preview_core::stack::normal;
use preview_core::state::Subject;

use crate::ci;
use crate::cli::{Deploy, Global};
use crate::output::Ci;

/// Content of the private key, where CI has it in a variable. Never part of the configuration.
const IDENTITY_KEY: &str = "PREVIEW_IDENTITY_KEY";

/// When the event of the run happened, where the CI system does not tell.
const EVENT_TIME: &str = "PREVIEW_EVENT_TIME";

/// So many requests to the engine go out at once when a run begins to look around.
const AT_FIRST: usize = 4;

/// What a run of the program works with.
pub(crate) struct Session {
    pub(crate) config: Config,
    pub(crate) app: AppName,
    pub(crate) environment: Environment,
    pub(crate) warnings: Vec<String>,
    identity_key: Option<Secret<String>>,
    /// What adapters of DNS take from the environment, and nobody else may.
    dns_secrets: Environment,
    directory: PathBuf,
    /// The socket that the Docker CLI's environment names for this machine, if it names one.
    engine: Option<PathBuf>,
    /// Who removes temporary files and ends programs if this process is killed before it has reached a host.
    guardian: OnceLock<Option<Guardian>>,
}

fn invalid(error: impl std::fmt::Display) -> Error {
    Error::invalid(error.to_string())
}

/// What a configuration is read for.
#[derive(Clone, Copy)]
pub(crate) enum Purpose<'a> {
    /// A deploy, or the plan of one.
    Deploy(&'a Deploy),
    /// The removal of a preview.
    Destroy,
    /// Anything else.
    Look,
}

impl Session {
    /// Reads the configuration. Touches no network.
    pub(crate) fn load(global: &Global, purpose: Purpose<'_>, mut environment: Environment) -> Result<Self, Error> {
        let identity_key = environment.remove(IDENTITY_KEY).filter(|key| !key.trim().is_empty()).map(Secret::new);
        let directory = global.project_dir.as_deref().unwrap_or_else(|| Path::new("."));
        let of_pull_request = ci::checkout_of_pull_request(&environment, event_payload(&environment).as_deref());
        let directory = match (within_checkout("--project-dir", directory, &environment), purpose) {
            (Ok(directory), _) => directory,
            // Nothing of the checkout is needed for that, and a pull request may have removed the directory.
            (Err(_), Purpose::Destroy) if of_pull_request => directory.to_owned(),
            (Err(error), _) => return Err(error),
        };
        let (mut file, ignored) = configuration(global, purpose, &environment, &directory, of_pull_request)?;
        let deploy = match purpose {
            Purpose::Deploy(deploy) => Some(deploy),
            Purpose::Destroy | Purpose::Look => None,
        };
        if deploy.is_none() {
            file = file.deploying_nothing();
        }
        let mut flags = Overrides {
            host: global.host.clone(),
            base_dir: global.base_dir.clone(),
            known_hosts: global.known_hosts.clone(),
            known_hosts_file: global.known_hosts_file.clone(),
            identity_file: global.identity_file.clone(),
            app: global.app.clone(),
            timeout: global.timeout.clone(),
            ..Overrides::default()
        };
        if let Some(deploy) = deploy {
            flags.compose.clone_from(&deploy.compose);
            flags.env_file.clone_from(&deploy.env_file);
            flags.profiles.clone_from(&deploy.profile);
            flags.exclude.clone_from(&deploy.exclude);
            flags.url.clone_from(&deploy.url);
            flags.pull.clone_from(&deploy.pull);
        }
        let Settings { config, mut warnings } = Settings::merge(file, &environment, &flags).map_err(invalid)?;
        warnings.extend(ignored);
        let dns_secrets = names::secrets(&config, &mut environment);
        let mut engine = None;
        // Found before anything else is looked at, and with its place.
        match config.vm.host.as_deref() {
            None | Some("local") => engine = context::endpoint(&environment).map_err(invalid)?,
            Some(host) => {
                Destination::parse(host).map_err(|fault| {
                    let message = format!("{}; or `local` for this machine", fault.context);
                    invalid(config.error("vm.host", message))
                })?;
            }
        }
        let app = config.app.clone().unwrap_or_else(|| AppName::derive(&application(&environment, &directory)));
        Ok(Self {
            config,
            app,
            environment,
            warnings,
            identity_key,
            dns_secrets,
            directory,
            engine,
            guardian: OnceLock::new(),
        })
    }

    /// The repository's name on its forge, where CI tells.
    pub(crate) fn repository(&self) -> Option<String> {
        // A job of GitLab's may have a variable of that name, where the project is mirrored.
        let gitlab = self.environment.get("GITLAB_CI").is_some_and(|said| !said.is_empty());
        let names =
            if gitlab { ["CI_PROJECT_PATH", "GITHUB_REPOSITORY"] } else { ["GITHUB_REPOSITORY", "CI_PROJECT_PATH"] };
        names.iter().find_map(|name| self.environment.get(*name).filter(|value| !value.is_empty())).cloned()
    }

    /// When the event happened that this run is for, on the forge's clock; `None` where nothing but a person asked for it.
    /// `said` is the flag.
    pub(crate) fn event_at(&self, said: Option<&str>) -> Result<Option<Timestamp>, Error> {
        let (name, text) = match (said, self.environment.get(EVENT_TIME).filter(|text| !text.is_empty())) {
            (Some(said), _) => ("--event-time", said),
            (None, Some(said)) => (EVENT_TIME, said.as_str()),
            (None, None) => {
                let payload = event_payload(&self.environment);
                return Ok(ci::event_at(&self.environment, payload.as_deref()));
            }
        };
        let form = |error| invalid(format!("{name}: `{text}` is no time such as `2026-03-01T12:30:00Z`: {error}"));
        text.parse().map(Some).map_err(form)
    }

    /// Who holds locks.
    pub(crate) fn who(&self) -> String {
        let get = |name: &str| self.environment.get(name).filter(|value| !value.is_empty());
        if let (Some(actor), Some(run)) = (get("GITHUB_ACTOR"), get("GITHUB_RUN_ID")) {
            return format!("{actor}, run {run} of {}", get("GITHUB_REPOSITORY").map_or("GitHub", String::as_str));
        }
        if let (Some(user), Some(job)) = (get("GITLAB_USER_LOGIN"), get("CI_JOB_URL")) {
            return format!("{user}, {job}");
        }
        let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
        let user = get("USER").or_else(|| get("LOGNAME")).map_or("somebody", String::as_str);
        let host = host.trim();
        format!("{user}@{} (process {})", if host.is_empty() { "this machine" } else { host }, std::process::id())
    }

    /// Names and addresses of a preview.
    pub(crate) fn named(&self, key: &Key) -> Result<Named, Error> {
        self.config.naming(&self.app).map_err(invalid)?.resolve(key).map_err(invalid)
    }

    /// The preview of a pull request or branch.
    pub(crate) fn target(&self, key: &Key) -> Result<Target, Error> {
        let named = self.named(key)?;
        Ok(Target { app: self.app.to_string(), name: named.name.to_string(), project: named.project })
    }

    /// The preview of a name.
    pub(crate) fn target_by_name(&self, name: &str) -> Result<Target, Error> {
        let name = PreviewName::parse(name).map_err(invalid)?;
        Ok(Target { app: self.app.to_string(), project: project_name(&self.app, &name), name: name.to_string() })
    }

    /// The Docker CLI's configuration directory.
    pub(crate) fn docker_config(&self) -> Option<PathBuf> {
        context::directory(&self.environment)
    }

    /// Without a word about the host, a person means this machine; a job's machine is gone after the job, with all previews on it.
    pub(crate) fn check_host(&self) -> Result<(), Error> {
        if self.config.vm.host.is_some() || !Ci::is_ci(&self.environment) {
            return Ok(());
        }
        Err(Error::invalid(
            "no machine is given: in CI, say where previews are, with `[vm] host = \"ssh://user@host\"` in the base branch's \
             configuration, --host, PREVIEW_HOST or the action's input `host`; the machine that runs this job itself is used only \
             where `local` is asked for by name (--host local)",
        ))
    }

    /// Reaches the host: one connection, over which the engine's socket is forwarded too.
    pub(crate) async fn connect(&self) -> Result<Client, Error> {
        let vm = &self.config.vm;
        self.check_host()?;
        let wish = vm.host.as_deref().unwrap_or("local");
        let compose = self.compose();
        if wish == "local" {
            let host = local::connect()?;
            let base = self.base_dir()?;
            let guardian = host.guardian().clone();
            let lock = Arc::new(ShellLock::new(Arc::clone(&host)));
            return self
                .client(host, lock, guardian, self.local_socket().to_string_lossy().as_ref(), base, compose)
                .await;
        }
        let host = ssh::connect(self.ssh_options(Destination::parse(wish)?)).await?;
        let base = self.base_dir()?;
        let guardian = host.guardian().clone();
        let lock = Arc::new(ShellLock::new(Arc::clone(&host)));
        self.client(host, lock, guardian, vm.docker_socket.as_str(), base, compose).await
    }

    async fn client<H: Host + 'static, L: Lock + 'static>(
        &self,
        host: Arc<H>,
        lock: Arc<L>,
        guardian: Guardian,
        docker_socket: &str,
        base_dir: String,
        compose: Compose,
    ) -> Result<Client, Error> {
        let socket = host.socket(docker_socket).await?;
        let (looks, path) = (Arc::clone(&host), docker_socket.to_owned());
        let engine = DockerEngine::connect(&socket)?.explained_by(Arc::new(move || {
            let (host, path) = (Arc::clone(&looks), path.clone());
            Box::pin(async move {
                Some(match host.why_closed(&path).await? {
                    Closed::Denied(why) => (why, true),
                    Closed::Missing(why) => (why, false),
                })
            })
        }));
        engine.warm(AT_FIRST).await;
        let runtime = compose.with_socket(socket, Some(guardian));
        Ok(Client {
            host,
            engine: Arc::new(engine),
            lock,
            runtime: Arc::new(runtime),
            dns: None,
            base_dir,
            proxy: self.proxy(),
        })
    }
}

/// What a key says in state files.
pub(crate) fn subject(key: &Key) -> Subject {
    match key {
        Key::Pull(number) => Subject::Pull(number.get()),
        Key::Branch(branch) => Subject::Branch(branch.to_string()),
    }
}

/// The content of the file with GitHub's event.
pub(crate) fn event_payload(environment: &Environment) -> Option<String> {
    environment.get("GITHUB_EVENT_PATH").and_then(|path| std::fs::read_to_string(path).ok())
}

/// The configuration's file under that of the base branch, and a word about what does not count of it.
fn configuration(
    global: &Global,
    purpose: Purpose<'_>,
    environment: &Environment,
    directory: &Path,
    of_pull_request: bool,
) -> Result<(ConfigFile, Option<String>), Error> {
    let trusted = trusted_config(global)?;
    let own = global.config.clone().unwrap_or_else(|| directory.join(config::FILE));
    if trusted.is_some() && Ci::is_ci(environment) && same_file(&own, global.trusted_config.as_deref()) {
        return Err(Error::invalid(
            "--trusted-config names the pull request's own file: take that of the base branch instead, for example with \
             `git show origin/main:preview.toml`",
        ));
    }
    if matches!(purpose, Purpose::Destroy) && of_pull_request {
        // A pull request that breaks its file, or names another application in it, does not keep its preview by that.
        let nothing = || ConfigFile::parse("", None).map_err(invalid);
        return Ok(match trusted {
            Some(trusted) => (nothing()?.under(&trusted), None),
            None => (
                nothing()?,
                read_config(global.config.as_deref(), directory, environment).ok().and_then(|own| own.ignored()),
            ),
        });
    }
    let file = read_config(global.config.as_deref(), directory, environment)?;
    match trusted {
        Some(trusted) => Ok((file.under(&trusted), None)),
        None if of_pull_request => Ok((file.without_trusted().map_err(invalid)?, None)),
        None => Ok((file, None)),
    }
}

fn read_config(path: Option<&Path>, directory: &Path, environment: &Environment) -> Result<ConfigFile, Error> {
    let (path, needed) = path.map_or_else(|| (directory.join(config::FILE), false), |path| (path.to_owned(), true));
    let shown = path.strip_prefix(directory).unwrap_or(&path).to_owned();
    let content = if needed {
        checkout::read_named(&within_checkout("--config", &path, environment)?)
    } else {
        checkout::read(&project::repository(directory), &path)
    };
    match content {
        Ok(Some(content)) => ConfigFile::parse(&utf8(content, &shown)?, Some(&shown)).map_err(invalid),
        Ok(None) if !needed => ConfigFile::parse("", None).map_err(invalid),
        Ok(None) => Err(invalid(format!("{}: there is no such file", path.display()))),
        Err(error) => Err(invalid(format!("{}: {error}", shown.display()))),
    }
}

fn utf8(content: Vec<u8>, shown: &Path) -> Result<String, Error> {
    String::from_utf8(content).map_err(|_| invalid(format!("{}: it is not UTF-8", shown.display())))
}

/// The canonical form of a path that the pipeline names. One that lies in a checkout must not be led out of it by a link: the pull request wrote that link.
fn within_checkout(flag: &str, path: &Path, environment: &Environment) -> Result<PathBuf, Error> {
    let wrong = |why: &dyn std::fmt::Display| invalid(format!("{flag} {}: {why}", path.display()));
    let canonical = std::fs::canonicalize(path).map_err(|error| wrong(&error))?;
    let named = normal(&std::path::absolute(path).map_err(|error| wrong(&error))?);
    let real = |path: &Path| std::fs::canonicalize(path).is_ok_and(|found| found == path);
    let of_git = named.ancestors().find(|path| path.join(".git").exists() && real(path)).map(Path::to_owned);
    let workspaces = ["GITHUB_WORKSPACE", "CI_PROJECT_DIR"].into_iter().filter_map(|name| environment.get(name));
    let workspaces = workspaces.filter_map(|path| std::fs::canonicalize(path).ok());
    for checkout in workspaces.chain(of_git) {
        if named.starts_with(&checkout) && !canonical.starts_with(&checkout) {
            return Err(wrong(&format!(
                "a link leads outside the checkout, to {}; name a path inside it",
                canonical.display()
            )));
        }
    }
    Ok(canonical)
}

/// The base branch's file, if one is given.
fn trusted_config(global: &Global) -> Result<Option<ConfigFile>, Error> {
    let Some(path) = &global.trusted_config else { return Ok(None) };
    let wrong = |why: &dyn std::fmt::Display| invalid(format!("--trusted-config {}: {why}", path.display()));
    let content = checkout::read_named(path).map_err(|error| wrong(&error))?;
    let text = utf8(content.ok_or_else(|| wrong(&"there is no such file"))?, path)?;
    let mut file = ConfigFile::parse(&text, Some(path)).map_err(invalid)?;
    // What it names lies beside it, not in the pull request's directory.
    let whole =
        std::path::absolute(path).map_err(|error| invalid(format!("--trusted-config {}: {error}", path.display())))?;
    for named in [&mut file.vm.known_hosts_file, &mut file.vm.identity_file].into_iter().flatten() {
        *named = whole.with_file_name(&*named);
    }
    Ok(Some(file))
}

fn same_file(one: &Path, other: Option<&Path>) -> bool {
    let canonical = |path: &Path| std::fs::canonicalize(path).ok();
    canonical(one).is_some() && canonical(one) == other.and_then(canonical)
}

/// Whether the base branch allows deploys from forks.
pub(crate) fn forks_are_welcome(global: &Global) -> Result<bool, Error> {
    Ok(trusted_config(global)?.is_some_and(|trusted| trusted.policy.forks))
}

/// The name of the repository, or of the directory.
fn application(environment: &Environment, directory: &Path) -> String {
    let full = ["GITHUB_REPOSITORY", "CI_PROJECT_PATH"].iter().find_map(|name| environment.get(*name));
    let of_forge = full.and_then(|name| name.rsplit('/').next()).filter(|name| !name.is_empty());
    of_forge.map_or_else(
        || directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        str::to_owned,
    )
}
