//! The stages of a flight: building, pulling, starting, verifying, each under its limit of time while the state file says so.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use tracing::{Instrument as _, info_span};

use super::crash::{Crash, broken, known, with_output};
use super::diagnose::Problems;
use super::flight::{Begin, Flight};
use super::leading;
use super::observe::{Seen, by_name, changed_files, image_facts, pulls, timed};
use super::prepare::{self, Prepared, Wanted};
use super::run::{Halt, guarded};
use super::tree;
use super::up::up;
use super::verify::{Look, lock};
use super::wait::{self, Expected, Restarts, Verdict};
use super::{Event, Interrupt};
use super::{records, roll};
use crate::engine::{ContainerEvent, ImageFacts, Prune};
use crate::failure;
use crate::fault::{Fault, FaultKind};
use crate::host::Change;
use crate::ownership::Selector;
use crate::plan::{self, Kind, Plan, Running};
use crate::registry;
use crate::runtime::Stack;
use crate::secret::Secret;
use crate::stack;
use crate::stack::tree::Manifest;
use crate::state::{Address, Good, Phase, State};
use crate::sweep::Pulled;

/// Again at most so often, for what may go away by itself.
const RETRIES: u32 = 2;

/// Whether there is a version to go back to.
fn state_has_good(seen: &Seen) -> bool {
    seen.good.is_some() && seen.state.as_ref().is_some_and(|state| state.good.is_some())
}

/// What came of a run that changed something, or found nothing to change.
pub(super) struct Applied {
    pub(super) kind: Kind,
    pub(super) services: BTreeMap<String, plan::Change>,
    pub(super) addresses: Vec<Address>,
}

/// The images of a stack: their ids by name, and what they say of their containers by id.
struct Images {
    ids: BTreeMap<String, String>,
    facts: BTreeMap<String, ImageFacts>,
}

impl Flight<'_> {
    /// The stack with what is known of its images now, where that differs from what it was rendered with.
    fn rendered_anew(
        &self,
        prepared: &Prepared,
        wanted: &Wanted,
        seen: &Seen,
        ports: &BTreeMap<String, u16>,
        images: &BTreeMap<String, String>,
        facts: &BTreeMap<String, ImageFacts>,
    ) -> Option<Wanted> {
        let known = by_name(images, facts);
        if known == by_name(&seen.images, &seen.facts) {
            return None;
        }
        let generations = roll::generations(prepared, seen.good.as_ref());
        // The same was rendered before, so there is nothing to refuse.
        let anew =
            prepare::render(self.project, self.deploy, prepared, &seen.names(self.client), ports, &generations, &known);
        let mut anew = anew.ok()?;
        anew.addresses.clone_from(&wanted.addresses);
        (anew.digest != wanted.digest).then_some(anew)
    }

    /// Does the stage's work while the state file says so.
    pub(super) async fn stage<T>(
        &self,
        state: &mut State,
        phase: Phase,
        limit: Duration,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Halt> {
        let begun = Instant::now();
        // `next_state` begins with `preparing`, and the stages follow in order; one may have two parts.
        if state.phase == phase {
            state.updated_at = Timestamp::now();
        } else {
            self.observer.event(&Event::Stage(phase));
            state
                .advance(phase, Timestamp::now())
                .map_err(|error| Halt::Fault(Fault::new(FaultKind::Failed, "move on", error.to_string())))?;
        }
        let changes: Vec<Change> = [self.save(state)].into_iter().chain(self.show(state)).collect();
        let write = self.client.host.apply(&changes);
        let both = async { futures_util::try_join!(write, work) }.instrument(info_span!("stage", %phase));
        let ((), done) = self.guarded(self.limit(limit), both).await?;
        self.observer.event(&Event::StageDone(phase, begun.elapsed()));
        Ok(done)
    }

    fn stack(&self, wanted: &Wanted, prepared: &Prepared) -> Stack {
        wanted.stack(self.deploy, prepared)
    }

    pub(super) async fn apply(
        &self,
        plan: &Plan,
        prepared: &Prepared,
        wanted: &Wanted,
        seen: &Seen,
        state: &mut State,
        begin: Begin,
    ) -> Result<Applied, Crash> {
        let limits = &self.project.timeouts;
        let progress = |line: &str| self.observer.event(&Event::Progress(&self.redactor.clean(line)));
        let stack = self.stack(wanted, prepared);
        let selector = self.selector();
        let Begin { events, reserved, env_file } = begin;
        let changed = !changed_files(prepared, seen).is_empty();
        // The reservation says that much already, and often there is nothing to prepare.
        let idle = reserved && env_file.is_none() && !changed;
        let files = if changed { self.begin_files(state, prepared).await? } else { None };
        let prepare = async {
            if let Some(content) = env_file {
                let content = Secret::new(content.expose().clone().into_bytes());
                self.client.host.apply(&[Change::Write { path: self.path(".env"), content, mode: 0o600 }]).await?;
            }
            if let Some((before, after)) = &files {
                let (target, local, place) = (&self.deploy.target, &prepared.files, &seen.files_directory);
                let keep = state_has_good(seen);
                let changes = tree::put(self.client, target, local, before.as_ref(), after, place, keep).await?;
                if let Some(good) = seen.state.as_ref().and_then(|state| state.good.as_ref()).filter(|_| keep) {
                    tree::start_leftovers_again(self.client, &wanted.model, &changes, &seen.containers, good).await?;
                }
            }
            Ok(())
        };
        if idle {
            self.observer.event(&Event::StageDone(Phase::Preparing, self.begun.elapsed()));
        } else {
            self.stage(state, Phase::Preparing, limits.start, prepare).await?;
        }

        if !prepared.built.is_empty() {
            let built = self
                .stage(state, Phase::Building, limits.build, async {
                    self.keep_good_images(prepared, wanted, seen).await?;
                    let build = || self.client.runtime.build(&stack, &prepared.built, &progress);
                    self.retrying(build).await.map_err(failure::of_build)
                })
                .await;
            built.map_err(with_output)?;
        }
        let pulls = pulls(self.project, prepared, wanted, seen);
        if !pulls.is_empty() {
            self.stage(state, Phase::Pulling, limits.pull, async {
                let pulled = pulls.iter().map(|image| self.retrying(move || self.pull(image)));
                let pulled = futures_util::future::try_join_all(pulled);
                let pulled = async { pulled.await.map_err(failure::of_pull) };
                futures_util::try_join!(self.note_pulls(&pulls, false), pulled)?;
                let timed = timed(prepared).into_iter().filter(|image| pulls.contains(image)).collect::<Vec<_>>();
                if timed.is_empty() { Ok(()) } else { self.note_pulls(&timed, true).await }
            })
            .await?;
        }

        let images_changed = !prepared.built.is_empty() || !pulls.is_empty();
        let kind = plan.kind;
        let ports = state.ports.clone();
        let refused = AtomicBool::new(false);
        let broke = Mutex::new(None);
        let started = self
            .stage(
                state,
                Phase::Starting,
                // `up` waits for the health that services wait for.
                limits.start_within(stack::patience(&wanted.model).before),
                Box::pin(self.with_hosts(&refused, async {
                    let names = stack::images(&wanted.model).into_values().collect();
                    let ids = async {
                        if images_changed {
                            self.client.engine.image_ids(&names).await
                        } else {
                            Ok(seen.images.clone())
                        }
                    };
                    let (images, labels) = futures_util::try_join!(ids, self.client.engine.image_labels(&names))?;
                    let facts = image_facts(&*self.client.engine, &images, &seen.facts).await?;
                    // What an image declares is known for sure only once it is there.
                    let anew = self.rendered_anew(prepared, wanted, seen, &ports, &images, &facts);
                    let wanted = anew.as_ref().unwrap_or(wanted);
                    let running = Running { images: &images, ..seen.running(wanted) };
                    let services = plan::changes(&wanted.model, &running);
                    if plan::unchanged(&wanted.model, &wanted.digest, &running) {
                        return Ok((Images { ids: images, facts }, services, None, None, anew));
                    }
                    if let Some(why) = stack::router_labels(&labels) {
                        return Err(failure::of_up(Fault::new(FaultKind::Failed, "start the containers", why)));
                    }
                    self.warn_of_hidden(wanted, seen, &services);
                    let known = by_name(&images, &facts);
                    let rolling = self.rolling(prepared, wanted, &services, seen, &known);
                    if let Some((rolling, wanted)) = &rolling {
                        let stack = self.stack(wanted, prepared);
                        let beside = || self.beside(&stack, wanted, rolling, seen, &broke, &progress);
                        self.retrying(beside).await.map_err(failure::of_up)?;
                    } else {
                        let stack = self.stack(wanted, prepared);
                        let up = || up(self.client, &selector, &seen.containers, &stack, &progress);
                        self.retrying(up).await.map_err(failure::of_up)?;
                    }
                    Ok((Images { ids: images, facts }, services, Some(events), rolling, anew))
                })),
            )
            .await;
        if refused.into_inner() {
            // Nothing was written, so nothing is to be taken back, where that would be refused too.
            state.records = seen.state.as_ref().map(|before| before.records.clone()).unwrap_or_default();
        }
        let (images, services, events, rolling, anew) = match (started, lock(&broke).take()) {
            (Err(Halt::Fault(_)), Some(crash)) => return Err(crash),
            (started, _) => started.map_err(with_output)?,
        };
        let wanted = anew.as_ref().unwrap_or(wanted);
        let Some(events) = events else {
            // Who may come in, and by which address, is no part of the stack for a proxy that is told by files.
            if let Some(bundle) = &wanted.bundle {
                let led = leading::lead(self.client, &self.deploy.target.project, bundle);
                self.guarded(self.limit(limits.start), led).await?;
            }
            let containers = plan::container_ids(&seen.containers);
            self.settle(Kind::Unchanged, state, wanted, prepared, seen, containers, images).await?;
            if files.is_some() {
                self.forget_files().await;
            }
            return Ok(Applied { kind: Kind::Unchanged, services, addresses: wanted.addresses.clone() });
        };

        let wanted = match &rolling {
            None => wanted,
            Some((rolling, wanted)) => {
                let stack = self.stack(wanted, prepared);
                Box::pin(self.roll(state, &stack, wanted, rolling, &progress)).await?;
                wanted
            }
        };
        let expected = Expected::of(&wanted.model).routed(&wanted.routed);
        let (verified, addresses) =
            Box::pin(self.verified(state, wanted, prepared, &expected, &selector, events)).await?;
        let wanted = Wanted { addresses, ..wanted.clone() };
        state.addresses.clone_from(&wanted.addresses);
        if let Some(bundle) = &wanted.bundle {
            let led = leading::lead(self.client, &self.deploy.target.project, bundle);
            self.guarded(self.limit(limits.start), led).await?;
        }
        let containers = plan::container_ids(&verified);
        let stale_images = images.ids != seen.images;
        self.settle(kind, state, &wanted, prepared, seen, containers, images).await?;
        if stale_images {
            self.prune().await;
        }
        if files.is_some() {
            self.forget_files().await;
        }
        Ok(Applied { kind, services, addresses: wanted.addresses })
    }

    /// Says in the state which files the volume is about to have; what it has, and what it will have. The manifest of before is read only now, since
    /// it is large and most runs change no file.
    async fn begin_files(
        &self,
        state: &mut State,
        prepared: &Prepared,
    ) -> Result<Option<(Option<Manifest>, Manifest)>, Halt> {
        let target = &self.deploy.target;
        let there = state.good.as_ref().map_or(state.tree.as_ref(), |good| good.tree.as_ref()).cloned();
        let begun = async {
            let before = match &there {
                Some(file) => tree::read_manifest(self.client, target, file).await?,
                None => None,
            };
            let after = prepared.files.manifest.clone().with_unused(before.as_ref());
            state.tree = Some(after.file());
            let content = Secret::new(after.to_json());
            let write = Change::Write { path: self.path(&after.file()), content, mode: 0o600 };
            self.client.host.apply(&[write, self.save(state)]).await?;
            Ok((before, after))
        };
        self.guarded(self.limit(self.project.timeouts.start), begun).await.map(Some)
    }

    /// The new version is the good one: what was kept for the way back goes. Where that fails, the next change of files removes it.
    async fn forget_files(&self) {
        let forget = tree::forget(self.client, &self.deploy.target);
        let never = Interrupt::default();
        if let Err(Halt::Fault(fault)) = guarded(self.lease, &never, self.project.timeouts.start, forget).await {
            self.observer.event(&Event::Warning(&self.redactor.clean(&fault.chain())));
        }
    }

    /// Steps, health and the question: what runs is what was wanted, or it is said why not.
    async fn verified(
        &self,
        state: &mut State,
        wanted: &Wanted,
        prepared: &Prepared,
        expected: &Expected,
        selector: &Selector,
        events: BoxStream<'static, Result<ContainerEvent, Fault>>,
    ) -> Result<(Vec<crate::engine::Container>, Vec<Address>), Crash> {
        let limits = &self.project.timeouts;
        let limit = self.verify_limit(wanted);
        let steps_limit = self.project.steps.iter().map(|step| step.timeout.unwrap_or(limits.step)).sum::<Duration>();
        let last = Mutex::new(Problems::new());
        let failure = Mutex::new(None);
        let mut restarts = Restarts::since(state.good.as_ref());
        let verified = self
            // A little more than the limits inside: those can say what was not well.
            .stage(state, Phase::Verifying, limit + steps_limit + Duration::from_secs(5), async {
                let begun = Instant::now();
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
                    let (mut verdict, mut containers) =
                        wait::wait(&*self.client.engine, selector, expected, &mut restarts, events, &mut note).await?;
                    if !matches!(verdict, Verdict::Broken(_)) {
                        let look = Look { selector, expected, restarts: &mut restarts };
                        (verdict, containers) = self.asked(wanted, prepared, containers, look, &last).await?;
                    }
                    if let Verdict::Broken(problems) = verdict {
                        let text: Vec<_> = problems.iter().map(|(service, why)| format!("{service} {why}")).collect();
                        *lock(&failure) = Some(broken(text.join("; "), problems, vec![]));
                        return Err(known());
                    }
                    Ok(containers)
                };
                match tokio::time::timeout(limit, verify).await {
                    Ok(containers) => {
                        let containers = containers?;
                        let left = limit.saturating_sub(begun.elapsed());
                        let addresses = self.heard(wanted, prepared, &containers, left).await;
                        Ok((containers, addresses))
                    }
                    Err(_) => {
                        let mut problems = lock(&last).clone();
                        // Who takes a while to end looks well between two ends, and does not answer because of them.
                        if let Ok((Verdict::Broken(ended), _)) =
                            wait::look_closely(&*self.client.engine, selector, expected, &mut restarts).await
                        {
                            problems.extend(ended);
                        }
                        let text: Vec<_> = problems.iter().map(|(service, why)| format!("{service} {why}")).collect();
                        let message = format!("after {} s: {} ([timeouts] verify)", limit.as_secs(), text.join("; "));
                        *lock(&failure) = Some(broken(message, problems, vec![]));
                        Err(known())
                    }
                }
            })
            .await;
        match (verified, lock(&failure).take()) {
            (Err(Halt::Fault(_)), Some(crash)) => Err(crash),
            (verified, _) => Ok(verified?),
        }
    }

    /// How long a stack may take to become healthy and answer: what the file gives its health checks is waited for.
    pub(super) fn verify_limit(&self, wanted: &Wanted) -> Duration {
        self.project.timeouts.verify_within(stack::patience(&wanted.model).one)
    }

    /// Says what of the new version cannot be seen.
    fn warn_of_hidden(&self, wanted: &Wanted, seen: &Seen, services: &BTreeMap<String, plan::Change>) {
        let image_changed = |change: &plan::Change| match change {
            plan::Change::Recreate(because) => because.iter().any(|why| why == plan::IMAGE_CHANGED),
            _ => false,
        };
        let renewed = services.iter().filter(|(_, change)| image_changed(change)).map(|(service, _)| service.clone());
        let good = seen.good.as_ref();
        let texts = plan::without_effect(&wanted.model, good).into_iter();
        for text in texts.chain(plan::hidden(&wanted.model, good, &renewed.collect())) {
            self.observer.event(&Event::Warning(&self.redactor.clean(&text)));
        }
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
        images: Images,
    ) -> Result<(), Crash> {
        let (wanted_hosts, old_hosts) = (records::wanted(self.client, self.project), self.stale_hosts(state));
        // While files are kept for the way back, the next run must not begin.
        let moved = state.tree != state.good.as_ref().and_then(|good| good.tree.clone());
        let last = images.ids == seen.images && old_hosts.is_empty() && !moved;
        let now = Timestamp::now();
        let rendered = wanted.model.to_string();
        let file = plan::stack_file(&rendered);
        let base = &self.client.base_dir;
        let told = wanted.bundle.as_ref().map(|bundle| leading::remember(&self.deploy.target, base, bundle));
        let (routes, told) = told.unzip();
        let mut ready = state.clone();
        ready.phase = Phase::Ready;
        ready.weight = self.project.weight;
        ready.memory = stack::declared_memory(&wanted.model);
        ready.updated_at = now;
        ready.good = Some(Good {
            digest: wanted.digest.clone(),
            stack: file.clone(),
            containers,
            images: images.ids,
            facts: images.facts,
            roots: prepared.files.manifest.digests(),
            tree: state.tree.clone(),
            records: wanted_hosts.clone(),
            weight: Some(self.project.weight),
            commit: self.deploy.commit.clone(),
            routes: routes.clone(),
            addresses: wanted.addresses.clone(),
            at: now,
        });
        let path = self.path(&file);
        let content = Secret::new(rendered.into_bytes());
        let mut changes = vec![Change::Write { path: path.clone(), content, mode: 0o600 }];
        changes.extend(told);
        changes.push(self.save(&ready));
        changes.extend(self.turn_pages(seen, &ready));
        if ready.weight < state.weight || ready.memory < state.memory {
            changes.push(self.freed()?);
        }
        let kept = state.tree.iter().cloned().chain(routes);
        let kept: Vec<String> = kept.map(|name| self.path(&name)).chain([path]).collect();
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
        // After the new version is the good one: until then the way back leads to the old one and its hosts.
        if !old_hosts.is_empty() {
            let left = self.drop_hosts(old_hosts).await;
            state.records = wanted_hosts.union(&left).cloned().collect();
            let change = [self.save(state)];
            // If this fails, the next run removes once more what is gone.
            if let Err(Halt::Fault(fault)) = guarded(self.lease, &never, limit, self.client.host.apply(&change)).await {
                self.observer.event(&Event::Warning(&self.redactor.clean(&fault.chain())));
            }
        }
        Ok(())
    }

    /// Work at whose side the preview's hosts get their records.
    async fn with_hosts<T>(
        &self,
        refused: &AtomicBool,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let hosts = records::wanted(self.client, self.project);
        let write = records::write(self.client, &self.deploy.target, &hosts, self.observer);
        // Both to their end: the engine goes on with what it was asked for, whoever else fails.
        let (written, done) = futures_util::join!(write, work);
        refused.store(written.as_ref().is_err_and(records::definite), Ordering::Relaxed);
        let done = done?;
        written.map(|()| done)
    }

    /// What runs now keeps a name, so that nothing that prunes images takes away the way back.
    async fn keep_good_images(&self, prepared: &Prepared, wanted: &Wanted, seen: &Seen) -> Result<(), Fault> {
        let names = stack::images(&wanted.model);
        let tags = prepared.built.iter().filter_map(|service| {
            let image = names.get(service)?;
            let id = seen.images.get(image)?.clone();
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

    /// So that a sweep of a full disk knows what came for previews, and leaves what did not; once they are `done`, so that the next pull is not before its time.
    async fn note_pulls(&self, images: &[String], done: bool) -> Result<(), Fault> {
        let at = Timestamp::now();
        let note = |image: &String| Change::Write {
            path: Pulled::path(&self.client.base_dir, image),
            content: Secret::new(Pulled { image: image.clone(), at, done: done.then_some(at) }.to_json()),
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
