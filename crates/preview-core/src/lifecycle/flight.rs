//! A run under its lease: the stages, one after the other, each with its limit of time and its place in the state file.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use jiff::{SignedDuration, Timestamp};
use tracing::{Instrument as _, info_span};

use super::crash::{Crash, Landing, broken, grounded, halt_error, known, with_output};
use super::deploy::Deployed;
use super::diagnose::Problems;
use super::fence::{self as watch, Watch};
use super::observe::{Seen, draw, missing_uploads, observe, pulls, want, with_generated};
use super::place::{Asking, Reserved};
use super::prepare::{Prepared, Wanted};
use super::run::{Halt, guarded};
use super::up::up;
use super::verify::lock;
use super::wait::{self, Expected, Verdict};
use super::{Client, Error, Event, Interrupt, Observer, Refusal};
use crate::engine::{ContainerEvent, Prune};
use crate::failure;
use crate::fault::{Fault, FaultKind};
use crate::fence::{self, Order, Superseded};
use crate::host::Change;
use crate::lock::Lease;
use crate::ownership::Selector;
use crate::plan::{self, Kind, Plan, Running};
use crate::project::{Deploy, Project};
use crate::registry;
use crate::runtime::{Runtime, Stack};
use crate::secret::{Redactor, Secret};
use crate::stack;
use crate::state::{Address, Good, Phase, SCHEMA, State};
use crate::sweep::Pulled;

/// Again at most so often, for what may go away by itself.
const RETRIES: u32 = 2;

/// What a run has in hand when it begins to change things.
struct Begin {
    events: BoxStream<'static, Result<ContainerEvent, Fault>>,
    /// The state file was written just now, with the place.
    reserved: bool,
    /// New content of the generated credentials' file.
    env_file: Option<Secret<String>>,
}

/// A run under its lease.
pub(super) struct Flight<'a> {
    pub(super) client: &'a Client,
    pub(super) resolver: &'a dyn Runtime,
    pub(super) project: &'a Project,
    pub(super) deploy: &'a Deploy,
    pub(super) observer: &'a dyn Observer,
    pub(super) redactor: &'a Redactor,
    pub(super) interrupt: &'a Interrupt,
    pub(super) lease: &'a dyn Lease,
    pub(super) deadline: Instant,
    pub(super) begun: Instant,
    /// Looks for what stops the run, once it is known what would.
    pub(super) watch: Option<Watch>,
    /// How far it has come with asking for a place.
    pub(super) asking: Asking,
}

impl Flight<'_> {
    /// How a run ends that was stopped before its first change.
    pub(super) fn halt_error(&self, halt: Halt) -> Error {
        halt_error(halt, &self.deploy.target.name)
    }

    /// Ends when something later came, or the preview is to go.
    pub(super) async fn superseded(&self) -> Superseded {
        match &self.watch {
            Some(watch) => watch.fired().await,
            None => std::future::pending().await,
        }
    }

    /// Does work under the lease, as long as it is wanted.
    async fn guarded<T>(&self, limit: Duration, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Halt> {
        tokio::select! {
            biased;
            superseded = self.superseded() => Err(Halt::Superseded(superseded)),
            done = guarded(self.lease, self.interrupt, limit, work) => done,
        }
    }

    fn path(&self, name: &str) -> String {
        self.deploy.target.file(&self.client.base_dir, name)
    }

    pub(super) fn selector(&self) -> Selector {
        Selector::preview(&self.deploy.target.app, &self.deploy.target.name)
    }

    pub(super) fn limit(&self, stage: Duration) -> Duration {
        stage.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    pub(super) fn save(&self, state: &State) -> Change {
        Change::Write { path: self.path("state.json"), content: Secret::new(state.to_json()), mode: 0o600 }
    }

    /// What is on the host, all at once.
    async fn look(&self, prepared: &Prepared, exists: bool) -> Result<Seen, Landing> {
        let seen = self.guarded(self.limit(self.project.timeouts.start), async {
            Ok(observe(self.client, self.project, self.deploy, prepared).await)
        });
        let seen = seen.await.map_err(|halt| grounded(self.halt_error(halt), exists))?;
        seen.map_err(|error| grounded(error, exists))
    }

    pub(super) async fn fly(&mut self, prepared: Prepared) -> Result<Deployed, Landing> {
        let mut seen = self.look(&prepared, false).await?;
        let exists = seen.state.is_some() || !seen.containers.is_empty() || seen.good.is_some();
        if self.deploy.update_only && !exists {
            return Ok(self.deployed(None, vec![], BTreeMap::new()));
        }
        let order = Order { event: self.deploy.event_at, begun: watch::begun(&seen.survey.facts, self.begun) };
        if let Err(by) = fence::deploy(&order, seen.state.as_ref(), &seen.tombstones) {
            let name = self.deploy.target.name.clone();
            return Err(grounded(Error::Refused(Refusal::Superseded { name, by }), exists));
        }
        self.watch = Some(Watch::start(self.client, &self.deploy.target, order));
        let (prepared, env_file) =
            with_generated(self.resolver, self.project, self.deploy, prepared, &seen, self.observer, self.redactor)
                .await
                .map_err(|error| grounded(error, exists))?;
        let deadline = self.deadline;
        // Ports, images and places may be taken while a place is asked for: then all of it is looked at again.
        loop {
            let (wanted, host_ports) = want(self.client, self.project, self.deploy, &prepared, &seen)
                .map_err(|error| grounded(error, exists))?;
            let plan = draw(self.project, self.deploy, &prepared, &wanted, &seen);
            let state = self.next_state(&seen, &wanted, host_ports, Timestamp::now(), &order);
            let tried = if plan.kind == Kind::Unchanged {
                self.keep(plan, state, &wanted, &seen).await?
            } else {
                self.change(plan, state, &prepared, &wanted, &seen, env_file.as_ref(), exists).await?
            };
            if let Some(deployed) = tried {
                return Ok(deployed);
            }
            // Waiting for a place is not counted.
            self.deadline = deadline + self.asking.waited;
            seen = self.look(&prepared, exists).await?;
        }
    }

    /// Nothing differs: that is written down. `None` if the host has to be looked at again.
    async fn keep(
        &mut self,
        plan: Plan,
        mut state: State,
        wanted: &Wanted,
        seen: &Seen,
    ) -> Result<Option<Deployed>, Landing> {
        // What runs stays as it is, but it may count for more than before.
        if let Some(before) = &seen.state {
            let more = State { weight: state.weight, memory: state.memory, ..before.clone() };
            let mut asking = std::mem::take(&mut self.asking);
            let reserved = self.reserve(&more, seen, &mut asking).await;
            self.asking = asking;
            match reserved.map_err(|halt| grounded(self.halt_error(halt), true))? {
                Reserved::Taken(_) => {}
                Reserved::Moved => return Ok(None),
                Reserved::Refused(error) => return Err(grounded(error, true)),
            }
        }
        let begun = Instant::now();
        state.weight = self.project.weight;
        state.memory = stack::declared_memory(&wanted.model);
        state.phase = Phase::Ready;
        state.failure = None;
        if let Some(good) = &mut state.good {
            good.commit.clone_from(&self.deploy.commit);
        }
        let written = self.guarded(self.limit(self.project.timeouts.start), async {
            let last = [self.save(&state), self.ending(Kind::Unchanged)];
            self.lease.conclude(&*self.client.host, &last, &[]).await
        });
        written.await.map_err(|halt| grounded(self.halt_error(halt), true))?;
        self.observer.event(&Event::StageDone(Phase::Preparing, begun.elapsed()));
        Ok(Some(self.deployed(Some(Kind::Unchanged), wanted.addresses.clone(), plan.services)))
    }

    /// Makes the changes. `None` if the host has to be looked at again before.
    #[expect(clippy::too_many_arguments, reason = "they are what the run has in hand")]
    async fn change(
        &mut self,
        plan: Plan,
        mut state: State,
        prepared: &Prepared,
        wanted: &Wanted,
        seen: &Seen,
        env_file: Option<&Secret<String>>,
        exists: bool,
    ) -> Result<Option<Deployed>, Landing> {
        // Subscribed before anything starts, and beside the rest: it is a round trip.
        let selector = self.selector();
        let limit = self.limit(self.project.timeouts.start);
        let mut asking = std::mem::take(&mut self.asking);
        let watch = self.guarded(limit, self.client.engine.watch(&selector));
        // Both to their end: a reservation that nobody waits for could be written after it was taken back.
        let (events, reserved) = futures_util::join!(watch, self.reserve(&state, seen, &mut asking));
        let waits = asking.ticket;
        self.asking = asking;
        let begin = match (events, reserved) {
            (_, Ok(Reserved::Refused(error))) => return Err(grounded(error, exists)),
            (_, Ok(Reserved::Moved)) => return Ok(None),
            (Ok(events), Ok(Reserved::Taken(reserved))) => Begin { events, reserved, env_file: env_file.cloned() },
            // Who only waited has changed nothing.
            (_, Err(halt @ (Halt::Aborted | Halt::Superseded(_) | Halt::LeaseLost(_)))) if waits => {
                return Err(grounded(self.halt_error(halt), exists));
            }
            // The place may have been taken all the same.
            (Err(halt), _) | (_, Err(halt)) => {
                return Err(self.crash(halt.into(), seen, prepared, wanted, state).await);
            }
        };
        match self.apply(&plan, prepared, wanted, seen, &mut state, begin).await {
            Ok((kind, services)) => Ok(Some(self.deployed(Some(kind), wanted.addresses.clone(), services))),
            Err(crash) => Err(self.crash(crash, seen, prepared, wanted, state).await),
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
    fn next_state(
        &self,
        seen: &Seen,
        wanted: &Wanted,
        ports: BTreeMap<String, u16>,
        now: Timestamp,
        order: &Order,
    ) -> State {
        let before = seen.state.as_ref();
        let ttl = self.project.ttl.and_then(|ttl| SignedDuration::try_from(ttl).ok());
        State {
            schema: SCHEMA,
            app: self.deploy.target.app.clone(),
            name: self.deploy.target.name.clone(),
            project: self.deploy.target.project.clone(),
            subject: self.deploy.subject.clone(),
            repository: self.deploy.repository.clone().or_else(|| before?.repository.clone()),
            owner: before.and_then(|state| state.owner.clone()).or_else(|| self.deploy.owner.clone()),
            // While old and new may both be there, and until it is known which one stays, the heavier counts.
            weight: before.map_or(self.project.weight, |state| state.weight.max(self.project.weight)),
            memory: stack::declared_memory(&wanted.model).max(before.map_or(0, |state| state.memory)),
            phase: Phase::Preparing,
            created_at: before.map_or(now, |state| state.created_at),
            updated_at: now,
            event_at: Some(order.after(before.and_then(|state| state.event_at))),
            expires_at: ttl.and_then(|ttl| now.checked_add(ttl).ok()),
            keep_until: before.and_then(|state| state.keep_until),
            pinned: before.is_some_and(|state| state.pinned),
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
        let both = async { futures_util::try_join!(write, work) }.instrument(info_span!("stage", %phase));
        let ((), done) = self.guarded(self.limit(limit), both).await?;
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
        begin: Begin,
    ) -> Result<(Kind, BTreeMap<String, plan::Change>), Crash> {
        let limits = &self.project.timeouts;
        let progress = |line: &str| self.observer.event(&Event::Progress(&self.redactor.clean(line)));
        let stack = self.stack(wanted, prepared);
        let directory = self.deploy.target.directory(&self.client.base_dir);

        let selector = self.selector();
        let Begin { events, reserved, env_file } = begin;
        let missing = missing_uploads(prepared, self.deploy, seen);
        // The reservation says that much already, and often there is nothing to prepare.
        let idle = reserved && env_file.is_none() && missing.is_empty();
        let prepare = async {
            if let Some(content) = env_file {
                let content = Secret::new(content.expose().clone().into_bytes());
                self.client.host.apply(&[Change::Write { path: self.path(".env"), content, mode: 0o600 }]).await?;
            }
            let sent = missing.into_iter().map(|upload| async {
                let place = format!("{directory}/files/{}", upload.hash);
                self.client.host.upload(&place, std::slice::from_ref(&upload.entry)).await
            });
            futures_util::future::try_join_all(sent).await.map(|_| ())
        };
        if idle {
            self.observer.event(&Event::StageDone(Phase::Preparing, self.begun.elapsed()));
        } else {
            self.stage(state, Phase::Preparing, limits.start, prepare).await?;
        }

        if !prepared.built.is_empty() {
            let built = self
                .stage(state, Phase::Building, limits.build, async {
                    self.keep_good_images(prepared, seen).await?;
                    let build = || self.client.runtime.build(&stack, &prepared.built, &progress);
                    self.retrying(build).await.map_err(failure::of_build)
                })
                .await;
            built.map_err(with_output)?;
        }
        let pulls = pulls(self.project, prepared, wanted, &seen.images);
        if !pulls.is_empty() {
            self.stage(state, Phase::Pulling, limits.pull, async {
                let pulled = pulls.iter().map(|image| self.retrying(move || self.pull(image)));
                let pulled = futures_util::future::try_join_all(pulled);
                let pulled = async { pulled.await.map_err(failure::of_pull) };
                futures_util::try_join!(self.note_pulls(&pulls), pulled).map(|_| ())
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
                let up = || up(self.client, &selector, &seen.containers, &stack, &progress);
                self.retrying(up).await.map_err(failure::of_up)?;
                Ok((images, services, Some(events)))
            })
            .await;
        let (images, services, events) = started.map_err(with_output)?;
        let Some(events) = events else {
            let containers = plan::container_ids(&seen.containers);
            self.settle(Kind::Unchanged, state, wanted, prepared, seen, containers, images).await?;
            return Ok((Kind::Unchanged, services));
        };

        let steps_limit = self.project.steps.iter().map(|step| step.timeout.unwrap_or(limits.step)).sum::<Duration>();
        let last = Mutex::new(Problems::new());
        let failure = Mutex::new(None);
        let verified = self
            // A little more than the limits inside: those can say what was not well.
            .stage(state, Phase::Verifying, limits.verify + steps_limit + Duration::from_secs(5), async {
                for step in &self.project.steps {
                    if let Err(crash) = self.step(step).await? {
                        *lock(&failure) = Some(crash);
                        return Err(known());
                    }
                }
                let verify = async {
                    let mut note = |reasons: &Problems| {
                        lock(&last).clone_from(reasons);
                        let text: Vec<_> = reasons.iter().map(|(service, why)| format!("{service} {why}")).collect();
                        self.observer.event(&Event::Progress(&text.join(", ")));
                    };
                    let (verdict, containers) =
                        wait::wait(&*self.client.engine, &selector, &expected, events, &mut note).await?;
                    if let Verdict::Broken(problems) = verdict {
                        let text: Vec<_> = problems.iter().map(|(service, why)| format!("{service} {why}")).collect();
                        *lock(&failure) = Some(broken(text.join("; "), problems, vec![]));
                        return Err(known());
                    }
                    self.ask(wanted, prepared, &containers, &last).await?;
                    Ok(containers)
                };
                match tokio::time::timeout(limits.verify, verify).await {
                    Ok(done) => done,
                    Err(_) => {
                        let problems = lock(&last).clone();
                        let text: Vec<_> = problems.iter().map(|(service, why)| format!("{service} {why}")).collect();
                        let message = format!("after {} s: {}", limits.verify.as_secs(), text.join("; "));
                        *lock(&failure) = Some(broken(message, problems, vec![]));
                        Err(known())
                    }
                }
            })
            .await;
        let verified = match (verified, lock(&failure).take()) {
            (Err(Halt::Fault(_)), Some(crash)) => return Err(crash),
            (verified, _) => verified?,
        };
        let containers = plan::container_ids(&verified);
        let stale_images = images != seen.images;
        self.settle(kind, state, wanted, prepared, seen, containers, images).await?;
        if stale_images {
            self.prune().await;
        }
        Ok((kind, services))
    }

    /// Records the new version as the good one, and removes files that only the old one used. Where no image is to be pruned
    /// after that, the lock may be given back with it.
    #[expect(clippy::too_many_arguments, reason = "they are what the run has come to")]
    async fn settle(
        &self,
        kind: Kind,
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
        let rendered = wanted.model.to_string();
        let file = plan::stack_file(&rendered);
        let mut ready = state.clone();
        ready.phase = Phase::Ready;
        ready.weight = self.project.weight;
        ready.memory = stack::declared_memory(&wanted.model);
        ready.updated_at = now;
        ready.good = Some(Good {
            digest: wanted.digest.clone(),
            stack: file.clone(),
            containers,
            images,
            files: files.clone(),
            commit: self.deploy.commit.clone(),
            at: now,
        });
        let path = self.path(&file);
        let content = Secret::new(rendered.into_bytes());
        let mut changes = vec![Change::Write { path: path.clone(), content, mode: 0o600 }, self.save(&ready)];
        if ready.weight < state.weight || ready.memory < state.memory {
            changes.push(self.freed()?);
        }
        let kept: Vec<String> = files.iter().map(|hash| self.path(&format!("files/{hash}"))).chain([path]).collect();
        let stale = seen.survey.paths.iter().filter(|path| !kept.contains(path));
        changes.extend(stale.map(|path| Change::Remove { path: path.clone() }));
        changes.push(self.ending(kind));
        // The version before loses its files here, so there is no way back any more: an interrupt comes too late.
        let (never, limit) = (Interrupt::default(), self.project.timeouts.start);
        if last {
            guarded(self.lease, &never, limit, self.lease.conclude(&*self.client.host, &changes, &[])).await?;
        } else {
            guarded(self.lease, &never, limit, self.client.host.apply(&changes)).await?;
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

    /// So that a sweep of a full disk knows what came for previews, and leaves what did not.
    async fn note_pulls(&self, images: &[String]) -> Result<(), Fault> {
        let at = Timestamp::now();
        let note = |image: &String| Change::Write {
            path: Pulled::path(&self.client.base_dir, image),
            content: Secret::new(Pulled { image: image.clone(), at }.to_json()),
            mode: 0o600,
        };
        self.client.host.apply(&images.iter().map(note).collect::<Vec<_>>()).await
    }

    async fn pull(&self, image: &str) -> Result<(), Fault> {
        let login = registry::login(&self.project.logins, image);
        let mut stream = self.client.engine.pull(image, login).await?;
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
}
