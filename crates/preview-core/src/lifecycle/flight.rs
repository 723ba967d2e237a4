//! A run under its lease: the stages, one after the other, each with its limit of time and its place in the state file.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::stream::BoxStream;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::crash::{Landing, grounded, halt_error};
use super::deploy::Deployed;
use super::fence::{self as watch, Watch};
use super::leading;
use super::observe::{Seen, draw, hide_token, observe, want, with_generated};
use super::place::{Asking, Reserved};
use super::prepare::{Prepared, Wanted};
use super::records;
use super::run::{Halt, guarded};
use super::stages::Applied;
use super::tree;
use super::{Client, Error, Event, Interrupt, Observer, Refusal};
use crate::engine::ContainerEvent;
use crate::fault::Fault;
use crate::fence::{self, Order, Superseded};
use crate::host::Change;
use crate::lock::Lease;
use crate::ownership::Selector;
use crate::plan::{self, Kind, Plan};
use crate::project::{Deploy, Project};
use crate::runtime::Runtime;
use crate::secret::{Redactor, Secret};
use crate::stack;
use crate::state::{Address, Good, Phase, SCHEMA, State};

/// What a run has in hand when it begins to change things.
pub(super) struct Begin {
    pub(super) events: BoxStream<'static, Result<ContainerEvent, Fault>>,
    /// The state file was written just now, with the place.
    pub(super) reserved: bool,
    /// New content of the generated credentials' file.
    pub(super) env_file: Option<Secret<String>>,
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
    /// Whether the host keeps status pages.
    pub(super) pages: bool,
    /// What becomes the preview's image token, if it has none.
    pub(super) fresh_token: Secret<String>,
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
    pub(super) async fn guarded<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Halt> {
        tokio::select! {
            biased;
            superseded = self.superseded() => Err(Halt::Superseded(superseded)),
            done = guarded(self.lease, self.interrupt, limit, work) => done,
        }
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.deploy.target.file(&self.client.base_dir, name)
    }

    pub(super) fn selector(&self) -> Selector {
        self.client.objects_of(&self.deploy.target)
    }

    pub(super) fn limit(&self, stage: Duration) -> Duration {
        stage.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    /// The preview's status pages, where the host keeps any.
    pub(super) fn show(&self, state: &State) -> Vec<Change> {
        if self.pages { leading::show(&self.client.base_dir, state) } else { Vec::new() }
    }

    /// The status pages of a state that follows the one that was seen: addresses that it has no more lose theirs.
    pub(super) fn turn_pages(&self, seen: &Seen, state: &State) -> Vec<Change> {
        if !self.pages {
            return Vec::new();
        }
        let before = seen.state.iter().flat_map(|before| &before.addresses);
        let gone = before.filter(|address| !state.addresses.iter().any(|other| other.url == address.url));
        let gone: Vec<Address> = gone.cloned().collect();
        let mut changes = leading::hide(&self.client.base_dir, &gone);
        changes.extend(self.show(state));
        changes
    }

    pub(super) fn save(&self, state: &State) -> Change {
        Change::Write { path: self.path("state.json"), content: Secret::new(state.to_json()), mode: 0o600 }
    }

    /// What is on the host, all at once.
    async fn look(&self, prepared: &Prepared, exists: bool) -> Result<Seen, Landing> {
        let seen = self.guarded(self.limit(self.project.timeouts.start), async {
            Ok(observe(self.client, self.project, self.deploy, prepared, &self.fresh_token).await)
        });
        let seen = seen.await.map_err(|halt| grounded(self.halt_error(halt), exists))?;
        seen.map_err(|error| grounded(error, exists))
    }

    pub(super) async fn fly(&mut self, prepared: Prepared) -> Result<Deployed, Landing> {
        let mut seen = self.look(&prepared, false).await?;
        self.pages = seen.pages;
        hide_token(&seen.token, self.observer, self.redactor);
        let exists = seen.state.is_some() || !seen.containers.is_empty() || seen.good.is_some();
        if self.deploy.update_only && !exists {
            return Ok(self.deployed(None, vec![], BTreeMap::new()));
        }
        let order = Order { event: self.deploy.event_at, begun: watch::begun(&seen.survey.facts, self.begun) };
        if let Err(by) = fence::deploy(&order, seen.state.as_ref(), &seen.tombstones) {
            let name = self.deploy.target.name.clone();
            return Err(grounded(Error::Refused(Refusal::Superseded { name, by }), exists));
        }
        let between = seen.state.as_ref().filter(|state| tree::is_between(state));
        if let Some((state, good)) = between.and_then(|state| Some((state, state.good.as_ref()?))) {
            // A run died while it changed files: what is built on from here is the good version.
            let mended = self
                .mend_files(state, good, seen.good.as_ref())
                .await
                .map_err(|halt| grounded(self.halt_error(halt), exists))?;
            seen.state = Some(mended);
        }
        self.watch = Some(Watch::start(self.client, &self.deploy.target, order));
        let generated = self.guarded(self.limit(self.project.timeouts.start), async {
            let (resolver, observer, redactor) = (self.resolver, self.observer, self.redactor);
            Ok(with_generated(resolver, self.project, self.deploy, prepared, &seen, observer, redactor).await)
        });
        let generated = generated.await.map_err(|halt| grounded(self.halt_error(halt), exists))?;
        let (prepared, env_file) = generated.map_err(|error| grounded(error, exists))?;
        let deadline = self.deadline;
        // Ports, images and places may be taken while a place is asked for: then all of it is looked at again.
        loop {
            let (wanted, host_ports) = want(self.client, self.project, self.deploy, &prepared, &seen)
                .map_err(|error| grounded(error, exists))?;
            let plan = draw(self.project, self.deploy, &prepared, &wanted, &seen);
            let state = self.next_state(&seen, &wanted, host_ports, Timestamp::now(), &order);
            if plan.kind != Kind::Unchanged && !self.may_start(&prepared, &seen, exists).await? {
                self.deadline = deadline + self.asking.waited;
                seen = self.look(&prepared, exists).await?;
                continue;
            }
            self.check_stack(&prepared, &wanted, &seen).await.map_err(|error| grounded(error, exists))?;
            let tried = if plan.kind == Kind::Unchanged {
                Box::pin(self.keep(plan, state, &wanted, &seen)).await?
            } else {
                Box::pin(self.change(plan, state, &prepared, &wanted, &seen, env_file.as_ref(), exists)).await?
            };
            if let Some(deployed) = tried {
                return Ok(deployed);
            }
            // Waiting for a place is not counted.
            self.deadline = deadline + self.asking.waited;
            seen = self.look(&prepared, exists).await?;
        }
    }

    /// Brings the files back to those of the good version; the state that says so.
    async fn mend_files(&self, state: &State, good: &Good, model: Option<&Value>) -> Result<State, Halt> {
        let mut mended = state.clone();
        mended.tree.clone_from(&good.tree);
        self.guarded(self.limit(self.project.timeouts.start), async {
            tree::roll_back(self.client, &self.deploy.target, model, good).await?;
            self.client.host.apply(&[self.save(&mended)]).await
        })
        .await?;
        Ok(mended)
    }

    /// Has the runtime look at the stack before anything is changed, unless it is the one that runs: that costs a new program and no round trip.
    async fn check_stack(&self, prepared: &Prepared, wanted: &Wanted, seen: &Seen) -> Result<(), Error> {
        let good = seen.state.as_ref().and_then(|state| state.good.as_ref());
        if good.is_some_and(|good| good.digest == wanted.digest) {
            return Ok(());
        }
        let stack = wanted.stack(self.deploy, prepared);
        let checked = self.guarded(self.limit(self.project.timeouts.start), self.client.runtime.check(&stack)).await;
        checked.map_err(|halt| self.halt_error(halt))
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
            let addresses = wanted.addresses.clone();
            let more = State { weight: state.weight, memory: state.memory, addresses, ..before.clone() };
            let mut asking = std::mem::take(&mut self.asking);
            let reserved = self.reserve(&more, seen, &mut asking).await;
            self.asking = asking;
            match reserved.map_err(|halt| grounded(self.halt_error(halt), true))? {
                Reserved::Taken(_) => {}
                Reserved::Moved => return Ok(None),
                Reserved::Refused(error) => return Err(grounded(error, true)),
            }
        }
        if let Some(before) = &seen.state {
            let kept = self.keep_hosts(before).await;
            state.records = kept.map_err(|halt| grounded(self.halt_error(halt), true))?;
        }
        let begun = Instant::now();
        // A proxy that has lost what it was told gets it back.
        if let Some(bundle) = &wanted.bundle {
            let led = leading::lead(self.client, &self.deploy.target.project, bundle);
            let led = self.guarded(self.limit(self.project.timeouts.start), led).await;
            led.map_err(|halt| grounded(self.halt_error(halt), true))?;
        }
        state.weight = self.project.weight;
        state.memory = stack::declared_memory(&wanted.model);
        state.phase = Phase::Ready;
        state.failure = None;
        if let Some(good) = &mut state.good {
            good.records = records::wanted(self.client, self.project);
            good.commit.clone_from(&self.deploy.commit);
            good.addresses.clone_from(&wanted.addresses);
        }
        let mut last = Vec::new();
        if let (Some(bundle), Some(good)) = (&wanted.bundle, &mut state.good) {
            let (routes, told) = leading::remember(&self.deploy.target, &self.client.base_dir, bundle);
            let now = self.path(&routes);
            good.routes = Some(routes);
            last.extend([told, self.save(&state)]);
            // Also what a run left that died before it could name it.
            let is_old = |path: &&String| **path != now && path.starts_with(&self.path("routes-"));
            let old = seen.survey.paths.iter().filter(is_old);
            last.extend(old.map(|path| Change::Remove { path: path.clone() }));
        } else {
            last.push(self.save(&state));
        }
        last.push(self.ending(Kind::Unchanged));
        last.extend(self.turn_pages(seen, &state));
        let written = self.guarded(self.limit(self.project.timeouts.start), async {
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
                return Err(Box::pin(self.crash(halt.into(), seen, prepared, wanted, state)).await);
            }
        };
        match Box::pin(self.apply(&plan, prepared, wanted, seen, &mut state, begin)).await {
            Ok(Applied { kind, services, addresses }) => Ok(Some(self.deployed(Some(kind), addresses, services))),
            Err(crash) => Err(Box::pin(self.crash(crash, seen, prepared, wanted, state)).await),
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
            url: Address::first(&addresses),
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
            directory: self.deploy.directory.clone().or_else(|| before?.directory.clone()),
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
            image_token: Some(seen.token.expose().clone()),
            records: before
                .map(|state| state.records.clone())
                .into_iter()
                .flatten()
                .chain(records::wanted(self.client, self.project))
                .collect(),
            tree: before.and_then(|state| state.tree.clone()),
            // Without its stack there is nothing to go back to.
            good: before.and_then(|state| state.good.clone()).filter(|_| seen.good.is_some()),
            failure: None,
        }
    }
}
