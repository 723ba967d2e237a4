//! How an application is deployed: the configuration after it was read and checked, without where it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::admission::{Limits, Weight};
use crate::proxy::Proxy;
use crate::registry::Logins;
use crate::route::Protocol;
use crate::secrets::SecretSource;
use crate::stack::{Allowance, Caps, Guardrails, Isolation};
use crate::state::Subject;
use crate::window::Window;

/// Which preview is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The application.
    pub app: String,
    /// The preview's name within the application: a DNS label.
    pub name: String,
    /// The Compose project.
    pub project: String,
}

/// Directories and files of one preview on the host.
impl Target {
    /// `<base>/<app>`.
    #[must_use]
    pub fn app_directory(&self, base: &str) -> String {
        format!("{base}/{}", self.app)
    }

    /// `<base>/<app>/<name>`.
    #[must_use]
    pub fn directory(&self, base: &str) -> String {
        format!("{base}/{}/{}", self.app, self.name)
    }

    /// A file of the preview on the host.
    #[must_use]
    pub fn file(&self, base: &str, name: &str) -> String {
        format!("{base}/{}/{}/{name}", self.app, self.name)
    }
}

/// A wish for a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteSpec {
    /// The service.
    pub service: String,
    /// The service's port.
    pub port: u16,
    /// The public address, resolved for the preview; needed behind a proxy.
    pub url: Option<String>,
    /// Whether the service sees paths without the prefix.
    pub strip_prefix: bool,
    /// What the service speaks.
    pub protocol: Protocol,
    /// Whether the new container is healthy before the old one goes.
    pub rolling: bool,
    /// Which of two routes wins that fit both.
    pub priority: Option<u32>,
    /// The proxy's entry point, where it is not the usual one.
    pub entrypoint: Option<String>,
    /// The name of TLS options.
    pub tls_options: Option<String>,
    /// Where the wish was written: `preview.toml:12: [[route]]`.
    pub place: String,
}

/// Who may come in through the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessSpec {
    /// A user, and the variable with the password.
    pub basic_auth: Option<(String, String)>,
    /// Where that was written.
    pub place: String,
    /// Addresses and networks; empty: all.
    pub allow_ips: Vec<String>,
    /// Whether search engines are asked to stay away.
    pub noindex: bool,
}

impl Default for AccessSpec {
    fn default() -> Self {
        Self { basic_auth: None, place: String::new(), allow_ips: Vec::new(), noindex: true }
    }
}

/// Limits of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Waiting for the preview's lock.
    pub lock: Duration,
    /// Building all images.
    pub build: Duration,
    /// Pulling all images.
    pub pull: Duration,
    /// Bringing the stack up.
    pub start: Duration,
    /// Becoming healthy and answering.
    pub verify: Duration,
    /// Each step after the start.
    pub step: Duration,
    /// Waiting for a place.
    pub queue: Duration,
    /// The whole run, waiting for a place and the way back not included.
    pub total: Duration,
}

impl Timeouts {
    /// The limit for becoming healthy where a stack's own checks may take so long. A limit that was set is meant; the default one gives way.
    #[must_use]
    pub fn verify_within(&self, patience: Duration) -> Duration {
        if self.verify == Self::default().verify { self.verify.max(patience) } else { self.verify }
    }

    /// The limit for the start where services wait so long for the health of others.
    #[must_use]
    pub fn start_within(&self, patience: Duration) -> Duration {
        if self.start == Self::default().start { self.start.saturating_add(patience) } else { self.start }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        Self {
            lock: minutes(1),
            build: minutes(15),
            pull: minutes(5),
            start: minutes(2),
            verify: minutes(1),
            step: minutes(5),
            queue: minutes(30),
            total: minutes(20),
        }
    }
}

/// Heavy deploys start only in a window of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heavy {
    /// When.
    pub window: Window,
    /// Only those that build images are heavy.
    pub builds_only: bool,
}

/// What happens to a wish that there is no place for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnFull {
    /// It is refused at once, naming the holders.
    #[default]
    Refuse,
    /// It waits: first come, first served.
    Queue,
    /// The longest unused preview that is not pinned makes room.
    ReplaceOldest,
}

/// When images are pulled that are not built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// When the host does not have them.
    #[default]
    Missing,
    /// At each deploy.
    Always,
}

/// A question to a service that must be answered with a status from 200 to 399.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthProbe {
    /// Path.
    pub path: String,
    /// Service; the first route's without it.
    pub service: Option<String>,
    /// Port; the first route's without it.
    pub port: Option<u16>,
    /// Where the wish was written.
    pub place: String,
}

/// A command in a container after the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepSpec {
    /// For people.
    pub name: String,
    /// The service.
    pub service: String,
    /// Program and arguments.
    pub run: Vec<String>,
    /// Limit of time, if it has its own.
    pub timeout: Option<Duration>,
    /// Where the wish was written.
    pub place: String,
}

/// How an application is deployed.
#[derive(Clone)]
pub struct Project {
    /// Compose files, in order.
    pub files: Vec<PathBuf>,
    /// What relative paths in them refer to.
    pub directory: PathBuf,
    /// The canonical directory that mounts, contexts and files must lie in.
    pub repository: PathBuf,
    /// Files with variables for interpolation.
    pub env_files: Vec<PathBuf>,
    /// Active profiles.
    pub profiles: Vec<String>,
    /// Services that are left out, with what only they use.
    pub exclude: BTreeSet<String>,
    /// Where that was written.
    pub exclude_place: String,
    /// What to know about the files, for people; told with what Compose says when it refuses them, too.
    pub file_notes: Vec<String>,
    /// When images are pulled.
    pub pull: PullPolicy,
    /// Logins for private registries.
    pub logins: Logins,
    /// Routes; `None`: every TCP port that the files publish gets one (behind a proxy: the only one).
    pub routes: Option<Vec<RouteSpec>>,
    /// The public address of the only route, where none is named.
    pub url: Option<String>,
    /// Hosts of the preview's addresses that no other preview has: they get DNS records.
    pub hosts: BTreeSet<String>,
    /// The reverse proxy.
    pub proxy: Proxy,
    /// Who may come in through it.
    pub access: AccessSpec,
    /// What the host may hold.
    pub limits: Limits,
    /// What happens where there is no place.
    pub on_full: OnFull,
    /// What is heavy, and when that may start.
    pub heavy: Option<Heavy>,
    /// How many places a preview takes.
    pub weight: Weight,
    /// A sweep may remove a preview so long after its last deploy; `None`: never.
    pub ttl: Option<Duration>,
    /// Limits of each container.
    pub guardrails: Guardrails,
    /// Where that was written.
    pub guardrails_place: String,
    /// How much of each kind a preview may have.
    pub caps: Caps,
    /// What containers may not do beyond that.
    pub isolation: Isolation,
    /// Where that was written.
    pub isolation_place: String,
    /// What services may have although it is refused otherwise.
    pub allowed: Vec<Allowance>,
    /// Limits of time.
    pub timeouts: Timeouts,
    /// The question that the preview must answer.
    pub health: Option<HealthProbe>,
    /// Where secrets come from; later ones win.
    pub secrets: Vec<Arc<dyn SecretSource>>,
    /// Credentials to generate, by name, with their length.
    pub generate: BTreeMap<String, usize>,
    /// Fixed variables; they win over secrets.
    pub env: BTreeMap<String, String>,
    /// Services that get all variables, with the place of the wish.
    pub env_services: Vec<String>,
    /// Where that wish was written.
    pub env_services_place: String,
    /// Commands after the start, in order.
    pub steps: Vec<StepSpec>,
}

impl Project {
    /// These files of a directory, which holds everything that they refer to; all else as it is without configuration, but with no `ttl`.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, files: &[&str]) -> Self {
        let directory = directory.into();
        Self {
            files: files.iter().map(|file| directory.join(file)).collect(),
            repository: directory.clone(),
            directory,
            env_files: vec![],
            profiles: vec![],
            exclude: BTreeSet::new(),
            exclude_place: "`exclude`".to_owned(),
            file_notes: vec![],
            pull: PullPolicy::default(),
            logins: Logins::default(),
            routes: None,
            url: None,
            hosts: BTreeSet::new(),
            proxy: Proxy::default(),
            access: AccessSpec::default(),
            limits: Limits::default(),
            on_full: OnFull::default(),
            heavy: None,
            weight: Weight::default(),
            ttl: None,
            guardrails: Guardrails::default(),
            guardrails_place: String::new(),
            caps: Caps::default(),
            isolation: Isolation::default(),
            isolation_place: String::new(),
            allowed: vec![],
            timeouts: Timeouts::default(),
            health: None,
            secrets: vec![],
            generate: BTreeMap::new(),
            env: BTreeMap::new(),
            env_services: vec![],
            env_services_place: String::new(),
            steps: vec![],
        }
    }
}

/// What a run was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deploy {
    /// Which preview.
    pub target: Target,
    /// What it is of.
    pub subject: Subject,
    /// The repository, where known.
    pub repository: Option<String>,
    /// The project's directory within its repository, `.` for the top, where known: a repository may hold several projects.
    pub directory: Option<String>,
    /// Who asks.
    pub owner: Option<String>,
    /// The commit, where known.
    pub commit: Option<String>,
    /// When the event happened that this is for, on the forge's clock; `None`: nothing but somebody's wish, made now.
    pub event_at: Option<Timestamp>,
    /// Do nothing unless the preview exists.
    pub update_only: bool,
    /// Who holds the locks of this run, for those who wait.
    pub who: String,
    /// The name of this run, for the host's history.
    pub run: String,
}

impl Deploy {
    /// A wish of somebody, made now: `who` is shown to those who wait for it, `run` names it in the host's history.
    #[must_use]
    pub fn new(target: Target, subject: Subject, who: &str, run: &str) -> Self {
        Self {
            target,
            subject,
            repository: None,
            directory: None,
            owner: None,
            commit: None,
            event_at: None,
            update_only: false,
            who: who.to_owned(),
            run: run.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_limits_that_nobody_set_give_way_to_a_stacks_own_checks() {
        let seconds = Duration::from_secs;
        let default = Timeouts::default();
        assert_eq!(default.verify_within(seconds(150)), seconds(150));
        assert_eq!(default.verify_within(seconds(10)), default.verify);
        assert_eq!(default.start_within(seconds(30)), default.start + seconds(30));
        let set = Timeouts { verify: seconds(3), start: seconds(5), ..default };
        assert_eq!((set.verify_within(seconds(150)), set.start_within(seconds(150))), (seconds(3), seconds(5)));
    }
}
