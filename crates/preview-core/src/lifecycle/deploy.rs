//! Deploy and update: observe, plan, apply; what fails is taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::diagnose::{diagnose, last_lines};
use super::error::{FailureReport, Refusal};
use super::prepare::{self, Prepared, Wanted};
use super::probe::{self, Question};
use super::run::{Halt, acquire, guarded};
use super::undo;
use super::wait::{self, Expected, Verdict};
use super::{Client, Error, Event, Interrupt, Observer};
use crate::engine::{Chunk, Container, ExecRequest, Prune};
use crate::fault::{Fault, FaultKind};
use crate::generate;
use crate::host::{Change, Query, Survey};
use crate::lock::Lease;
use crate::ownership::Selector;
use crate::plan::{self, Action, Kind, Plan, Running};
use crate::project::{Deploy, Project, Proxy, PullPolicy, StepSpec, Target};
use crate::runtime::{Runtime, Stack, Variables};
use crate::secret::{Redactor, Secret};
use crate::state::{Address, Failure, Good, Phase, SCHEMA, State};
use crate::{ports, stack};

/// Again at most so often, for what may go away by itself.
const RETRIES: u32 = 2;

/// A deploy that is done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Deployed {
    /// The preview's name.
    pub name: String,
    /// The Compose project.
    pub project: String,
    /// `create`, `update`, `unchanged`, `resume`; `None` if there was nothing to update.
    pub kind: Option<Kind>,
    /// The first public address.
    pub url: Option<String>,
    /// All public addresses.
    pub addresses: Vec<Address>,
    /// What happened to each service.
    pub services: BTreeMap<String, plan::Change>,
    /// Whole seconds it took.
    pub seconds: f64,
}

/// Says what a deploy would do, and does nothing: no lock is taken, nothing is written.
pub async fn plan(
    connect: impl Future<Output = Result<Client, Error>>,
    resolver: &dyn Runtime,
    project: &Project,
    deploy: &Deploy,
    observer: &dyn Observer,
    redactor: &Redactor,
) -> Result<Plan, Error> {
    let early = early(resolver, project, deploy, observer, redactor);
    let (client, prepared) = futures_util::try_join!(connect, early)?;
    let seen = observe(&client, project, deploy, &prepared).await?;
    let (prepared, _) = with_generated(resolver, project, deploy, prepared, &seen, observer, redactor).await?;
    let (wanted, _) = want(&client, project, deploy, &prepared, &seen)?;
    Ok(draw(project, deploy, &prepared, &wanted, &seen))
}

/// Deploys or updates a preview.
///
/// `connect` is awaited while `resolver` reads the user's files: bad input is found before anything is sent.
/// A failed update goes back to the version before; a failed first deploy leaves nothing.
pub async fn deploy(
    connect: impl Future<Output = Result<Client, Error>>,
    resolver: &dyn Runtime,
    project: &Project,
    deploy: &Deploy,
    observer: &dyn Observer,
    redactor: &Redactor,
    interrupt: &Interrupt,
) -> Result<Deployed, Error> {
    let begun = Instant::now();
    observer.event(&Event::Stage(Phase::Preparing));
    let early = early(resolver, project, deploy, observer, redactor);
    let (client, prepared) = tokio::select! {
        both = async { futures_util::try_join!(connect, early) } => both?,
        () = interrupt.fired() => return Err(Fault::new(FaultKind::TimedOut, "prepare", "interrupted").into()),
    };
    for warning in &prepared.warnings {
        observer.event(&Event::Warning(&redactor.clean(warning)));
    }
    let lock_path = deploy.target.file(&client.base_dir, ".lock");
    let why = format!("deploy of {}", deploy.target.name);
    let lease =
        acquire(&*client.lock, &lock_path, &deploy.who, &why, project.timeouts.lock, observer, interrupt).await?;
    let mut flight = Flight {
        client: &client,
        resolver,
        project,
        deploy,
        observer,
        redactor,
        interrupt,
        lease: &*lease,
        deadline: begun + project.timeouts.total,
        begun,
    };
    let done = flight.fly(prepared).await;
    let empty = match &done {
        Ok(deployed) => deployed.kind.is_none(),
        Err(Landing::Error { nothing_left, .. }) => *nothing_left,
    };
    let released = release(&client, &deploy.target, lease, empty).await;
    match done {
        Ok(deployed) => {
            released?;
            Ok(deployed)
        }
        Err(Landing::Error { error, .. }) => Err(error),
    }
}

/// Gives the lock back; where nothing may be left of the preview, its directories go too if they are empty.
pub(super) async fn release(client: &Client, target: &Target, lease: Box<dyn Lease>, empty: bool) -> Result<(), Error> {
    // The file goes always: nobody has to wonder about locks that nobody holds.
    lease.release(true).await?;
    if empty {
        client.host.apply(&directories(client, target)).await?;
    }
    Ok(())
}

/// The removal of a preview's directories where nothing is in them.
pub(super) fn directories(client: &Client, target: &Target) -> [Change; 2] {
    [target.directory(&client.base_dir), target.app_directory(&client.base_dir)]
        .map(|path| Change::RemoveEmpty { path })
}

/// Everything that can be found wrong without the host. Generated credentials are not known yet: something stands in for them.
async fn early(
    resolver: &dyn Runtime,
    project: &Project,
    deploy: &Deploy,
    observer: &dyn Observer,
    redactor: &Redactor,
) -> Result<Prepared, Error> {
    let stand_in = project.generate.keys().map(|name| (name.clone(), Secret::new("generated".to_owned()))).collect();
    // Not masked: the word is no secret, and masking it would hide it everywhere.
    let known = Redactor::default();
    let variables = prepare::variables(project, deploy, &Variables::new(), observer, redactor).await?;
    let variables = if project.generate.is_empty() {
        variables
    } else {
        prepare::variables(project, deploy, &stand_in, &super::Quiet, &known).await?
    };
    prepare::prepare(resolver, project, deploy, variables).await
}

/// What is on the host.
struct Seen {
    survey: Survey,
    state: Option<State>,
    good: Option<Value>,
    good_text: Option<String>,
    containers: Vec<Container>,
    images: BTreeMap<String, String>,
    published: BTreeSet<u16>,
}

async fn observe(client: &Client, project: &Project, deploy: &Deploy, prepared: &Prepared) -> Result<Seen, Error> {
    let target = &deploy.target;
    let own = format!("{}/{}", target.app, target.name);
    let query = Query {
        read: vec!["*/*/state.json".to_owned(), format!("{own}/stack.json"), format!("{own}/.env")],
        list: vec![format!("{own}/files/*")],
    };
    let selector = Selector::preview(&target.app, &target.name);
    let mut names: BTreeSet<String> = stack::images(&prepared.model).into_values().collect();
    names.extend(prepared.built.iter().map(|service| format!("{}-{service}", target.project)));
    let published = async {
        match project.proxy {
            Proxy::None => client.engine.published_ports().await,
            Proxy::Traefik(_) => Ok(BTreeSet::new()),
        }
    };
    let (survey, containers, images, published) = futures_util::try_join!(
        client.host.survey(&client.base_dir, &query),
        client.engine.containers(&selector),
        client.engine.image_ids(&names),
        published,
    )?;
    let state_path = target.file(&client.base_dir, "state.json");
    let state = match survey.files.get(&state_path) {
        Some(text) => Some(State::parse(&state_path, text).map_err(|error| {
            let hint = "; `preview destroy` removes the preview, whatever its state file says";
            Error::Fault(
                Fault::new(FaultKind::Invalid, "read the preview's state", format!("{error}{hint}")).caused_by(error),
            )
        })?),
        None => None,
    };
    let good_text = survey.files.get(&target.file(&client.base_dir, "stack.json")).cloned();
    let good = good_text.as_deref().and_then(|text| serde_json::from_str(text).ok());
    Ok(Seen { survey, state, good, good_text, containers, images, published })
}

impl Seen {
    fn running(&self) -> Running<'_> {
        Running {
            state: self.state.as_ref(),
            good: self.good.as_ref(),
            containers: &self.containers,
            images: &self.images,
        }
    }
}

/// With the credentials that the host keeps, or new ones; the second value is the new content of their file, if it changes.
async fn with_generated(
    resolver: &dyn Runtime,
    project: &Project,
    deploy: &Deploy,
    prepared: Prepared,
    seen: &Seen,
    observer: &dyn Observer,
    redactor: &Redactor,
) -> Result<(Prepared, Option<Secret<String>>), Error> {
    if project.generate.is_empty() {
        return Ok((prepared, None));
    }
    let path = seen
        .survey
        .files
        .iter()
        .find(|(path, _)| path.ends_with(&format!("/{}/{}/.env", deploy.target.app, deploy.target.name)));
    let (generated, file) =
        generate::merge(path.map(|(_, text)| text.as_str()).unwrap_or_default(), &project.generate)?;
    let variables = prepare::variables(project, deploy, &generated, observer, redactor).await?;
    Ok((prepare::prepare(resolver, project, deploy, variables).await?, file))
}

/// The stack as it should be, and its host ports.
fn want(
    client: &Client,
    project: &Project,
    deploy: &Deploy,
    prepared: &Prepared,
    seen: &Seen,
) -> Result<(Wanted, BTreeMap<String, u16>), Error> {
    if let Some(state) = &seen.state {
        let other_repository = matches!((&state.repository, &deploy.repository), (Some(a), Some(b)) if a != b);
        if state.subject != deploy.subject || other_repository {
            let by = match (&state.repository, other_repository) {
                (Some(repository), true) => format!("{} of {repository}", state.subject),
                _ => state.subject.to_string(),
            };
            return Err(Refusal::NameTaken { name: deploy.target.name.clone(), by }.into());
        }
    }
    let ports = match project.proxy {
        Proxy::Traefik(_) => BTreeMap::new(),
        Proxy::None => {
            let remembered = seen.state.as_ref().map(|state| state.ports.clone()).unwrap_or_default();
            let mut taken: BTreeSet<u16> = seen.published.union(&seen.survey.facts.listening).copied().collect();
            let own = deploy.target.file(&client.base_dir, "state.json");
            for (path, text) in
                seen.survey.files.iter().filter(|(path, _)| path.ends_with("/state.json") && **path != own)
            {
                if let Ok(other) = State::parse(path, text) {
                    taken.extend(other.ports.values());
                }
            }
            ports::allocate(&deploy.target.project, &prepared.wanted, &remembered, &taken).map_err(|error| {
                Error::Fault(Fault::new(FaultKind::PortTaken, "find a free port", error.to_string()))
            })?
        }
    };
    let directory = deploy.target.directory(&client.base_dir);
    Ok((prepare::render(project, deploy, prepared, &directory, &ports), ports))
}

/// Names of upload directories that the host does not have.
fn missing_uploads<'a>(prepared: &'a Prepared, deploy: &Deploy, seen: &Seen) -> Vec<&'a super::files::Upload> {
    let there = |hash: &str| {
        let end = format!("/{}/{}/files/{hash}", deploy.target.app, deploy.target.name);
        seen.survey.paths.iter().any(|path| path.ends_with(&end))
    };
    prepared.uploads.iter().filter(|upload| !there(&upload.hash)).collect()
}

fn pulls(project: &Project, prepared: &Prepared, wanted: &Wanted, images: &BTreeMap<String, String>) -> Vec<String> {
    let built: BTreeSet<&String> = prepared.built.iter().collect();
    let own: BTreeSet<String> = stack::images(&wanted.model)
        .into_iter()
        .filter(|(service, _)| built.contains(service))
        .map(|(_, image)| image)
        .collect();
    let all: BTreeSet<String> =
        stack::images(&wanted.model).into_values().filter(|image| !own.contains(image)).collect();
    all.into_iter().filter(|image| project.pull == PullPolicy::Always || !images.contains_key(image)).collect()
}

fn draw(project: &Project, deploy: &Deploy, prepared: &Prepared, wanted: &Wanted, seen: &Seen) -> Plan {
    let running = seen.running();
    let uploads = missing_uploads(prepared, deploy, seen);
    let pulls = pulls(project, prepared, wanted, &seen.images);
    let same = plan::unchanged(&wanted.model, &wanted.digest, &running);
    let kind = match &seen.state {
        None => Kind::Create,
        Some(state) if state.good.is_none() => Kind::Resume,
        Some(_) if same && prepared.built.is_empty() && pulls.is_empty() => Kind::Unchanged,
        Some(_) => Kind::Update,
    };
    let mut actions = Vec::new();
    if !uploads.is_empty() {
        actions.push(Action::Upload { files: uploads.iter().map(|upload| upload.source.clone()).collect() });
    }
    if !prepared.built.is_empty() {
        actions.push(Action::Build { services: prepared.built.clone() });
    }
    if !pulls.is_empty() {
        actions.push(Action::Pull { images: pulls });
    }
    if kind != Kind::Unchanged {
        actions.push(Action::Up);
        actions.extend(
            project.steps.iter().map(|step| Action::Step { name: step.name.clone(), service: step.service.clone() }),
        );
        actions.push(Action::Verify);
    }
    Plan {
        name: deploy.target.name.clone(),
        project: deploy.target.project.clone(),
        kind,
        actions,
        services: plan::changes(&wanted.model, &running),
        addresses: wanted.addresses.clone(),
        differences: wanted.differences.clone(),
        warnings: prepared.warnings.clone(),
    }
}

/// How a run ended before `ready`.
enum Landing {
    Error { error: Error, nothing_left: bool },
}

/// Nothing was changed yet; whether anything of the preview exists decides whether its directory stays.
fn grounded(error: impl Into<Error>, exists: bool) -> Landing {
    Landing::Error { error: error.into(), nothing_left: !exists }
}

/// Why the new version does not work.
struct Crash {
    halt: Halt,
    problems: BTreeMap<String, String>,
    output: Vec<String>,
}

impl From<Halt> for Crash {
    fn from(halt: Halt) -> Self {
        Self { halt, problems: BTreeMap::new(), output: Vec::new() }
    }
}

impl From<Fault> for Crash {
    fn from(fault: Fault) -> Self {
        Halt::from(fault).into()
    }
}

fn broken(message: impl Into<String>, problems: BTreeMap<String, String>, output: Vec<String>) -> Crash {
    Crash { halt: Halt::Fault(Fault::new(FaultKind::Failed, "bring up the new version", message)), problems, output }
}

/// A run under its lease.
struct Flight<'a> {
    client: &'a Client,
    resolver: &'a dyn Runtime,
    project: &'a Project,
    deploy: &'a Deploy,
    observer: &'a dyn Observer,
    redactor: &'a Redactor,
    interrupt: &'a Interrupt,
    lease: &'a dyn Lease,
    deadline: Instant,
    begun: Instant,
}

impl Flight<'_> {
    fn path(&self, name: &str) -> String {
        self.deploy.target.file(&self.client.base_dir, name)
    }

    fn selector(&self) -> Selector {
        Selector::preview(&self.deploy.target.app, &self.deploy.target.name)
    }

    fn limit(&self, stage: Duration) -> Duration {
        stage.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    fn save(&self, state: &State) -> Change {
        Change::Write { path: self.path("state.json"), content: Secret::new(state.to_json()), mode: 0o600 }
    }

    async fn fly(&mut self, prepared: Prepared) -> Result<Deployed, Landing> {
        let begun = Instant::now();
        let seen = guarded(self.lease, self.interrupt, self.limit(self.project.timeouts.start), async {
            Ok(observe(self.client, self.project, self.deploy, &prepared).await)
        })
        .await
        .map_err(|halt| grounded(halt_error(halt), false))?
        .map_err(|error| grounded(error, false))?;
        let exists = seen.state.is_some() || !seen.containers.is_empty() || seen.good.is_some();
        if self.deploy.update_only && !exists {
            return Ok(self.deployed(None, vec![], BTreeMap::new()));
        }
        let (prepared, env_file) =
            with_generated(self.resolver, self.project, self.deploy, prepared, &seen, self.observer, self.redactor)
                .await
                .map_err(|error| grounded(error, exists))?;
        let (wanted, host_ports) =
            want(self.client, self.project, self.deploy, &prepared, &seen).map_err(|error| grounded(error, exists))?;
        let plan = draw(self.project, self.deploy, &prepared, &wanted, &seen);
        let now = Timestamp::now();
        let mut state = self.next_state(&seen, &wanted, host_ports, now);
        if plan.kind == Kind::Unchanged {
            state.phase = Phase::Ready;
            state.failure = None;
            if let Some(good) = &mut state.good {
                good.commit.clone_from(&self.deploy.commit);
            }
            let written = guarded(self.lease, self.interrupt, self.limit(self.project.timeouts.start), async {
                self.lease.conclude(&*self.client.host, &[self.save(&state)], &[]).await
            });
            written.await.map_err(|halt| grounded(halt_error(halt), true))?;
            self.observer.event(&Event::StageDone(Phase::Preparing, begun.elapsed()));
            return Ok(self.deployed(Some(Kind::Unchanged), wanted.addresses, plan.services));
        }
        match self.apply(&plan, &prepared, &wanted, &seen, &mut state, env_file).await {
            Ok((kind, services)) => Ok(self.deployed(Some(kind), wanted.addresses, services)),
            Err(crash) => Err(self.crash(crash, &seen, &prepared, &wanted, state).await),
        }
    }

    fn deployed(
        &self,
        kind: Option<Kind>,
        addresses: Vec<Address>,
        services: BTreeMap<String, plan::Change>,
    ) -> Deployed {
        Deployed {
            name: self.deploy.target.name.clone(),
            project: self.deploy.target.project.clone(),
            kind,
            url: addresses.first().map(|address| address.url.clone()),
            addresses,
            services,
            seconds: (self.begun.elapsed().as_secs_f64() * 100.0).round() / 100.0,
        }
    }

    /// The state at the beginning of this run; the creation time survives.
    fn next_state(&self, seen: &Seen, wanted: &Wanted, ports: BTreeMap<String, u16>, now: Timestamp) -> State {
        let before = seen.state.as_ref();
        State {
            schema: SCHEMA,
            app: self.deploy.target.app.clone(),
            name: self.deploy.target.name.clone(),
            project: self.deploy.target.project.clone(),
            subject: self.deploy.subject.clone(),
            repository: self.deploy.repository.clone().or_else(|| before?.repository.clone()),
            owner: before.and_then(|state| state.owner.clone()).or_else(|| self.deploy.owner.clone()),
            phase: Phase::Preparing,
            created_at: before.map_or(now, |state| state.created_at),
            updated_at: now,
            commit: self.deploy.commit.clone(),
            addresses: wanted.addresses.clone(),
            ports,
            // Without its stack there is nothing to go back to.
            good: before.and_then(|state| state.good.clone()).filter(|_| seen.good.is_some()),
            failure: None,
        }
    }

    /// Does the stage's work while the state file says so.
    async fn stage<T>(
        &self,
        state: &mut State,
        phase: Phase,
        limit: Duration,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Halt> {
        let begun = Instant::now();
        if state.phase != phase {
            self.observer.event(&Event::Stage(phase));
        }
        // `next_state` begins with `preparing`, and the stages follow in order.
        state
            .advance(phase, Timestamp::now())
            .map_err(|error| Halt::Fault(Fault::new(FaultKind::Failed, "move on", error.to_string())))?;
        let change = [self.save(state)];
        let write = self.client.host.apply(&change);
        let both = async { futures_util::try_join!(write, work) };
        let ((), done) = guarded(self.lease, self.interrupt, self.limit(limit), both).await?;
        self.observer.event(&Event::StageDone(phase, begun.elapsed()));
        Ok(done)
    }

    fn stack(&self, wanted: &Wanted, prepared: &Prepared) -> Stack {
        Stack {
            project: self.deploy.target.project.clone(),
            rendered: Secret::new(wanted.model.to_string()),
            variables: prepared.variables.clone(),
        }
    }

    async fn apply(
        &self,
        plan: &Plan,
        prepared: &Prepared,
        wanted: &Wanted,
        seen: &Seen,
        state: &mut State,
        env_file: Option<Secret<String>>,
    ) -> Result<(Kind, BTreeMap<String, plan::Change>), Crash> {
        let limits = &self.project.timeouts;
        let progress = |line: &str| self.observer.event(&Event::Progress(&self.redactor.clean(line)));
        let stack = self.stack(wanted, prepared);
        let directory = self.deploy.target.directory(&self.client.base_dir);

        let selector = self.selector();
        // Subscribed before anything starts, and beside the rest: it is a round trip.
        let watch = self.client.engine.watch(&selector);
        let prepare = async {
            if let Some(content) = env_file {
                let content = Secret::new(content.expose().clone().into_bytes());
                self.client.host.apply(&[Change::Write { path: self.path(".env"), content, mode: 0o600 }]).await?;
            }
            let missing = missing_uploads(prepared, self.deploy, seen);
            let sent = missing.into_iter().map(|upload| async {
                let place = format!("{directory}/files/{}", upload.hash);
                self.client.host.upload(&place, std::slice::from_ref(&upload.entry)).await
            });
            futures_util::future::try_join_all(sent).await.map(|_| ())
        };
        let both = async { futures_util::try_join!(watch, prepare) };
        let (events, ()) = self.stage(state, Phase::Preparing, limits.start, both).await?;

        if !prepared.built.is_empty() {
            let built = self
                .stage(state, Phase::Building, limits.build, async {
                    self.keep_good_images(prepared, seen).await?;
                    self.retrying(|| self.client.runtime.build(&stack, &prepared.built, &progress)).await
                })
                .await;
            built.map_err(with_output)?;
        }
        let pulls = pulls(self.project, prepared, wanted, &seen.images);
        if !pulls.is_empty() {
            self.stage(state, Phase::Pulling, limits.pull, async {
                let pulled = pulls.iter().map(|image| self.retrying(move || self.pull(image)));
                futures_util::future::try_join_all(pulled).await.map(|_| ())
            })
            .await?;
        }

        let expected = Expected::of(&wanted.model);
        let images_changed = !prepared.built.is_empty() || !pulls.is_empty();
        let kind = plan.kind;
        let started = self
            .stage(state, Phase::Starting, limits.start, async {
                let names = stack::images(&wanted.model).into_values().collect();
                let images =
                    if images_changed { self.client.engine.image_ids(&names).await? } else { seen.images.clone() };
                let running = Running { images: &images, ..seen.running() };
                let services = plan::changes(&wanted.model, &running);
                if plan::unchanged(&wanted.model, &wanted.digest, &running) {
                    return Ok((images, services, None));
                }
                self.retrying(|| self.client.runtime.up(&stack, &progress)).await?;
                Ok((images, services, Some(events)))
            })
            .await;
        let (images, services, events) = started.map_err(with_output)?;
        let Some(events) = events else {
            let containers = plan::container_ids(&seen.containers);
            self.settle(state, wanted, prepared, seen, containers, images).await?;
            return Ok((Kind::Unchanged, services));
        };

        let steps_limit = self.project.steps.iter().map(|step| step.timeout.unwrap_or(limits.step)).sum::<Duration>();
        let last = Mutex::new(BTreeMap::new());
        let failure = Mutex::new(None);
        let verified = self
            .stage(state, Phase::Verifying, limits.verify + steps_limit, async {
                for step in &self.project.steps {
                    if let Err(crash) = self.step(step).await? {
                        *lock(&failure) = Some(crash);
                        return Ok(None);
                    }
                }
                let verify = async {
                    let mut note = |reasons: &BTreeMap<String, String>| {
                        lock(&last).clone_from(reasons);
                        let text: Vec<_> = reasons.iter().map(|(service, why)| format!("{service} {why}")).collect();
                        self.observer.event(&Event::Progress(&text.join(", ")));
                    };
                    let (verdict, containers) =
                        wait::wait(&*self.client.engine, &selector, &expected, events, &mut note).await?;
                    if let Verdict::Broken(problems) = verdict {
                        let text: Vec<_> = problems.iter().map(|(service, why)| format!("{service} {why}")).collect();
                        *lock(&failure) = Some(broken(text.join("; "), problems, vec![]));
                        return Ok(None);
                    }
                    self.ask(wanted, prepared, &containers, &last).await?;
                    Ok(Some(containers))
                };
                match tokio::time::timeout(limits.verify, verify).await {
                    Ok(done) => done,
                    Err(_) => {
                        let problems = lock(&last).clone();
                        let text: Vec<_> = problems.iter().map(|(service, why)| format!("{service} {why}")).collect();
                        let message = format!("after {} s: {}", limits.verify.as_secs(), text.join("; "));
                        *lock(&failure) = Some(broken(message, problems, vec![]));
                        Ok(None)
                    }
                }
            })
            .await?;
        let failure = lock(&failure).take();
        if let Some(crash) = failure {
            return Err(crash);
        }
        let containers = plan::container_ids(&verified.unwrap_or_default());
        let images_changed = images != seen.images;
        self.settle(state, wanted, prepared, seen, containers, images).await?;
        if images_changed {
            self.prune().await;
        }
        Ok((kind, services))
    }

    /// Records the new version as the good one, and removes files that only the old one used. Where no image is to be pruned
    /// after that, the lock may be given back with it.
    async fn settle(
        &self,
        state: &mut State,
        wanted: &Wanted,
        prepared: &Prepared,
        seen: &Seen,
        containers: BTreeMap<String, Vec<String>>,
        images: BTreeMap<String, String>,
    ) -> Result<(), Crash> {
        let last = images == seen.images;
        let now = Timestamp::now();
        let files: Vec<String> = prepared.uploads.iter().map(|upload| upload.hash.clone()).collect();
        let mut ready = state.clone();
        ready.phase = Phase::Ready;
        ready.updated_at = now;
        ready.good = Some(Good {
            digest: wanted.digest.clone(),
            containers,
            images,
            files: files.clone(),
            commit: self.deploy.commit.clone(),
            at: now,
        });
        let content = Secret::new(wanted.model.to_string().into_bytes());
        let mut changes =
            vec![Change::Write { path: self.path("stack.json"), content, mode: 0o600 }, self.save(&ready)];
        for path in &seen.survey.paths {
            if !files.iter().any(|hash| path.ends_with(&format!("/files/{hash}"))) {
                changes.push(Change::Remove { path: path.clone() });
            }
        }
        let limit = self.project.timeouts.start;
        if last {
            // Once the lock may have been given back there is no way back, so an interrupt comes too late.
            let conclusion = self.lease.conclude(&*self.client.host, &changes, &[]);
            guarded(self.lease, &Interrupt::default(), limit, conclusion).await?;
        } else {
            guarded(self.lease, self.interrupt, limit, self.client.host.apply(&changes)).await?;
        }
        *state = ready;
        Ok(())
    }

    /// What runs now keeps a name, so that nothing that prunes images takes away the way back.
    async fn keep_good_images(&self, prepared: &Prepared, seen: &Seen) -> Result<(), Fault> {
        let tags = prepared.built.iter().filter_map(|service| {
            let image = format!("{}-{service}", self.deploy.target.project);
            let id = seen.images.get(&image)?.clone();
            Some(async move { self.client.engine.tag(&id, &format!("{image}:last-good")).await })
        });
        futures_util::future::try_join_all(tags).await.map(|_| ())
    }

    async fn prune(&self) {
        // Images of versions before the last: a failure costs disk, not the deploy.
        if let Err(fault) = self.client.engine.prune(&Prune::DanglingImages(self.selector())).await {
            self.observer.event(&Event::Warning(&self.redactor.clean(&fault.chain())));
        }
    }

    async fn pull(&self, image: &str) -> Result<(), Fault> {
        let mut stream = self.client.engine.pull(image, None).await?;
        let mut told = Instant::now();
        while let Some(progress) = stream.next().await {
            let progress = progress?;
            if told.elapsed() > Duration::from_secs(2) {
                told = Instant::now();
                let line =
                    format!("{image}: {} {} of {} MB", progress.status, progress.current >> 20, progress.total >> 20);
                self.observer.event(&Event::Progress(&line));
            }
        }
        Ok(())
    }

    /// Again, at most twice, what may go away by itself.
    async fn retrying<T, F: Future<Output = Result<T, Fault>>>(&self, work: impl Fn() -> F) -> Result<T, Fault> {
        let mut tried = 0;
        loop {
            match work().await {
                Err(fault) if fault.transient && tried < RETRIES => {
                    tried += 1;
                    self.observer
                        .event(&Event::Warning(&self.redactor.clean(&format!("{}; trying again", fault.chain()))));
                    let mut byte = [0];
                    let _ = getrandom::fill(&mut byte);
                    tokio::time::sleep(Duration::from_millis(500 * u64::from(tried) + u64::from(byte[0]))).await;
                }
                done => return done,
            }
        }
    }

    /// Runs a step in its service. An outer error is the host's, an inner one the step's.
    async fn step(&self, step: &StepSpec) -> Result<Result<(), Crash>, Fault> {
        self.observer.event(&Event::Note(&format!("step {}", step.name)));
        let limit = step.timeout.unwrap_or(self.project.timeouts.step);
        let mut output = Vec::new();
        let run = async {
            let containers = self.client.engine.containers(&self.selector()).await?;
            let Some(container) = super::pick_container(&containers, &step.service) else {
                return Ok(Err("its service does not run".to_owned()));
            };
            let request = ExecRequest { argv: step.run.clone(), ..ExecRequest::default() };
            let mut exec = match self.client.engine.exec(&container.id, &request).await {
                Ok(exec) => exec,
                Err(fault) if matches!(fault.kind, FaultKind::Conflict | FaultKind::NotFound | FaultKind::Invalid) => {
                    return Ok(Err(fault.chain()));
                }
                Err(fault) => return Err(fault),
            };
            while let Some(chunk) = exec.output.next().await {
                let (Chunk::Stdout(bytes) | Chunk::Stderr(bytes)) = chunk?;
                output.extend_from_slice(&bytes);
                // The last lines are what is shown; a step that prints for hours must not fill the memory.
                if output.len() > 1 << 20 {
                    output.drain(..512 << 10);
                }
            }
            Ok(match self.client.engine.exec_exit_code(&exec.id).await? {
                0 => Ok(()),
                code => Err(format!("it exited with code {code}")),
            })
        };
        let ended = match tokio::time::timeout(limit, run).await {
            Ok(ended) => ended?,
            Err(_) => Err(format!("it took longer than {} s", limit.as_secs())),
        };
        let text = self.redactor.clean(&String::from_utf8_lossy(&output));
        let lines = last_lines(&text);
        Ok(match ended {
            Ok(()) => {
                for line in &lines {
                    self.observer.event(&Event::Progress(line));
                }
                Ok(())
            }
            Err(why) => {
                let problems = BTreeMap::from([(step.service.clone(), format!("step `{}` failed", step.name))]);
                Err(broken(format!("step `{}` in {}: {why}", step.name, step.service), problems, lines))
            }
        })
    }

    /// Asks the services that must answer.
    async fn ask(
        &self,
        wanted: &Wanted,
        prepared: &Prepared,
        containers: &[Container],
        last: &Mutex<BTreeMap<String, String>>,
    ) -> Result<(), Fault> {
        let questions = questions(self.project, wanted, prepared);
        let asked = questions.iter().map(|question| async move {
            let Some(container) = super::pick_container(containers, &question.service) else { return Ok(()) };
            let word = Mutex::new(String::new());
            let answer = probe::ask(&*self.client.host, container, question, &word);
            tokio::pin!(answer);
            loop {
                tokio::select! {
                    done = &mut answer => return done,
                    () = tokio::time::sleep(Duration::from_millis(200)) => {
                        let word = lock(&word).clone();
                        if !word.is_empty() {
                            lock(last).insert(question.service.clone(), format!("does not answer: {word}"));
                        }
                    }
                }
            }
        });
        lock(last).clear();
        futures_util::future::try_join_all(asked).await.map(|_| ())
    }

    /// The new version does not work: the report is made while it is still there, then it is taken back.
    async fn crash(&self, crash: Crash, seen: &Seen, prepared: &Prepared, wanted: &Wanted, state: State) -> Landing {
        let phase = state.phase;
        let Crash { halt, mut problems, output } = crash;
        let (message, timed_out, aborted) = match halt {
            Halt::LeaseLost(fault) => {
                // Somebody else may be at work: nothing may be changed any more.
                return Landing::Error { error: fault.into(), nothing_left: false };
            }
            Halt::TimedOut(limit) => (format!("it took longer than {} s", limit.as_secs()), true, false),
            Halt::Aborted => ("interrupted".to_owned(), false, true),
            Halt::Fault(fault) => (self.redactor.clean(&say(&fault)), false, false),
        };
        let message = first_lines(&message);
        let expected = Expected::of(&wanted.model);
        let mut services = Vec::new();
        let looked = async {
            let (verdict, containers) = wait::look(&*self.client.engine, &self.selector(), &expected).await?;
            if let (Verdict::Broken(found) | Verdict::Waiting(found), Phase::Starting | Phase::Verifying) =
                (verdict, phase)
            {
                for (service, why) in found {
                    problems.entry(service).or_insert(why);
                }
            }
            Ok::<_, Fault>(diagnose(&*self.client.engine, &containers, &problems, self.redactor).await)
        };
        if !aborted && let Ok(Ok(found)) = tokio::time::timeout(Duration::from_secs(30), looked).await {
            services = found;
        }
        self.observer.event(&Event::Note(&format!("{message}; taking it back")));
        let failure = Failure { phase, message: message.clone(), at: Timestamp::now() };
        let end = if timed_out {
            Phase::TimedOut
        } else if aborted {
            Phase::Aborted
        } else {
            Phase::Failed
        };
        let directory = self.deploy.target.directory(&self.client.base_dir);
        let uploaded = prepared.uploads.iter().map(|upload| format!("{directory}/files/{}", upload.hash));
        let restored = undo::undo(&undo::Undo {
            client: self.client,
            project: self.project,
            target: &self.deploy.target,
            lease: self.lease,
            observer: self.observer,
            redactor: self.redactor,
            good: seen.good_text.as_deref().zip(state.good.as_ref()),
            state: &state,
            end,
            failure,
            files: seen.survey.paths.iter().cloned().chain(uploaded).collect(),
            variables: &prepared.variables,
        })
        .await;
        let nothing_left = restored == super::Restored::Removed;
        let report = Box::new(FailureReport {
            name: self.deploy.target.name.clone(),
            phase,
            message,
            services,
            output,
            restored,
        });
        let error = if timed_out {
            Error::TimedOut(report)
        } else if aborted {
            Error::Aborted(report)
        } else {
            Error::Failed(report)
        };
        Landing::Error { error, nothing_left }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What has to answer: the configured question, and routed services without a health check.
fn questions(project: &Project, wanted: &Wanted, prepared: &Prepared) -> Vec<Question> {
    let mut questions = Vec::new();
    let first = prepared.routes.first();
    if let Some(health) = &project.health
        && let Some(service) = health.service.clone().or_else(|| Some(first?.service.clone()))
        && let Some(port) =
            health.port.or_else(|| Some(prepared.routes.iter().find(|route| route.service == service)?.port))
    {
        questions.push(Question { service, port, path: Some(health.path.clone()) });
    }
    for route in &prepared.routes {
        let checked = wanted.model.pointer(&format!("/services/{}/healthcheck/test", route.service)).is_some();
        let asked = questions.iter().any(|question| question.service == route.service && question.port == route.port);
        if !checked && !asked {
            questions.push(Question { service: route.service.clone(), port: route.port, path: None });
        }
    }
    questions
}

/// Our own words for our own failures, the adapter's for its.
fn say(fault: &Fault) -> String {
    if fault.operation == "bring up the new version" { fault.context.clone() } else { fault.chain() }
}

/// A message is a few lines; the rest stands in the output.
fn first_lines(message: &str) -> String {
    let lines: Vec<&str> = message.lines().collect();
    if lines.len() <= 6 {
        message.to_owned()
    } else {
        format!("{}\n…\n{}", lines[0], lines[lines.len() - 4..].join("\n"))
    }
}

/// The words of a program that failed are the output of the report.
fn with_output(halt: Halt) -> Crash {
    let output = match &halt {
        Halt::Fault(fault) => last_lines(&fault.context),
        _ => Vec::new(),
    };
    Crash { halt, problems: BTreeMap::new(), output }
}

/// How a run ends that was stopped before its first change.
fn halt_error(halt: Halt) -> Error {
    match halt {
        Halt::Fault(fault) | Halt::LeaseLost(fault) => fault.into(),
        Halt::TimedOut(limit) => {
            Fault::new(FaultKind::TimedOut, "read the host's state", format!("no answer within {} s", limit.as_secs()))
                .into()
        }
        Halt::Aborted => Fault::new(FaultKind::TimedOut, "read the host's state", "interrupted").into(),
    }
}
