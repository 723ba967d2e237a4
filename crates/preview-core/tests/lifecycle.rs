//! The lifecycle on memory adapters: what may fail, fails at every place in turn, and what is left is looked at.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use preview_core::admission::{Limits, Weight};
use preview_core::engine::Engine as _;
use preview_core::fault::{Fault, FaultKind};
use preview_core::fence::Superseded;
use preview_core::history;
use preview_core::host::{Change, Entry, Guard, Host, Query, Stream, Survey};
use preview_core::lifecycle::{self, Client, Destroy, Error, Interrupt, Quiet, Refusal, Restored, Sweep, Wish};
use preview_core::lock::{Acquired, Holder, Lease, Lock};
use preview_core::ownership::Selector;
use preview_core::plan::Kind;
use preview_core::project::{Deploy, OnFull, Project, Proxy, PullPolicy, Target, Timeouts};
use preview_core::runtime::{Progress, Resolved, Runtime, Source, Stack};
use preview_core::secret::Redactor;
use preview_core::stack::{Guardrails, Isolation};
use preview_core::state::{Phase, State, Subject};
use preview_core::sweep::Open;
use preview_core::testkit::engine::MemoryEngine;
use preview_core::testkit::host::MemoryHost;
use preview_core::testkit::lock::MemoryLock;
use preview_core::testkit::runtime::MemoryRuntime;
use serde_json::{Value, json};

const BASE: &str = "/base";
const LOCK: &str = "/base/shop/pr-7/.lock";
const MOMENT: Duration = Duration::from_millis(200);
const STATE: &str = "/base/shop/pr-7/state.json";

/// Changes until the run dies; a life that is over never ends a change.
type Life = Arc<AtomicI64>;

fn alive(life: &Life) -> Result<(), Fault> {
    if life.fetch_sub(1, Ordering::SeqCst) > 0 {
        Ok(())
    } else {
        Err(Fault::new(FaultKind::Unreachable, "live", "killed"))
    }
}

struct World {
    engine: MemoryEngine,
    host: Arc<MemoryHost>,
    lock: MemoryLock,
    runtime: MemoryRuntime,
}

/// The world's adapters, until the life is over.
struct Mortal<T> {
    inner: T,
    life: Life,
}

#[async_trait]
impl Host for Mortal<Arc<MemoryHost>> {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    async fn survey(&self, base: &str, query: &Query) -> Result<Survey, Fault> {
        self.inner.survey(base, query).await
    }
    async fn apply(&self, changes: &[Change]) -> Result<(), Fault> {
        for change in changes {
            alive(&self.life)?;
            self.inner.apply(std::slice::from_ref(change)).await?;
        }
        Ok(())
    }
    async fn apply_if(&self, guard: &Guard, changes: &[Change]) -> Result<bool, Fault> {
        alive(&self.life)?;
        // A host that loses power may have made the changes without the guard's, which comes last.
        let between = if guard.expected.is_empty() { "0".to_owned() } else { guard.expected.clone() };
        let still = Guard { next: between.clone(), ..guard.clone() };
        if !self.inner.apply_if(&still, changes).await? {
            return Ok(false);
        }
        alive(&self.life)?;
        self.inner.apply_if(&Guard { expected: between, ..guard.clone() }, &[]).await
    }
    async fn upload(&self, directory: &str, entries: &[Entry]) -> Result<bool, Fault> {
        alive(&self.life)?;
        self.inner.upload(directory, entries).await
    }
    async fn socket(&self, path: &str) -> Result<PathBuf, Fault> {
        self.inner.socket(path).await
    }
    async fn dial(&self, address: &str, port: u16) -> Result<Box<dyn Stream>, Fault> {
        self.inner.dial(address, port).await
    }
    async fn close(&self) -> Result<(), Fault> {
        Ok(())
    }
}

#[async_trait]
impl Runtime for Mortal<MemoryRuntime> {
    async fn resolve(&self, source: &Source) -> Result<Resolved, Fault> {
        self.inner.resolve(source).await
    }
    async fn build(&self, stack: &Stack, services: &[String], progress: Progress<'_>) -> Result<(), Fault> {
        alive(&self.life)?;
        self.inner.build(stack, services, progress).await
    }
    async fn up(&self, stack: &Stack, progress: Progress<'_>) -> Result<(), Fault> {
        alive(&self.life)?;
        // A short life ends in the middle of the work.
        let left = self.life.load(Ordering::SeqCst).max(0);
        let before = self.inner.made();
        self.inner.stop_after(usize::try_from(left).expect("not negative"));
        let done = self.inner.up(stack, progress).await;
        let made = i64::try_from(self.inner.made() - before).expect("few");
        let died = done.is_err() && made >= left;
        self.life.fetch_sub(if died { left } else { made }, Ordering::SeqCst);
        done
    }
}

struct MortalLease {
    inner: Box<dyn Lease>,
    life: Life,
}

#[async_trait]
impl Lease for MortalLease {
    fn check(&self) -> Result<(), Fault> {
        if self.life.load(Ordering::SeqCst) > 0 {
            self.inner.check()
        } else {
            Err(Fault::new(FaultKind::LeaseLost, "hold the lock", "killed"))
        }
    }
    async fn lost(&self) {
        self.inner.lost().await;
    }
    async fn release(self: Box<Self>, remove: bool) -> Result<(), Fault> {
        self.inner.release(remove).await
    }
}

#[async_trait]
impl Lock for Mortal<MemoryLock> {
    async fn acquire(
        &self,
        path: &str,
        holder: &Holder,
        wait: Duration,
        waiting: &(dyn Fn(Option<Holder>) + Send + Sync),
    ) -> Result<Acquired, Fault> {
        Ok(match self.inner.acquire(path, holder, wait, waiting).await? {
            Acquired::Held(inner) => Acquired::Held(Box::new(MortalLease { inner, life: self.life.clone() })),
            late @ Acquired::TimedOut(_) => late,
        })
    }
    async fn holder(&self, path: &str) -> Result<Option<Holder>, Fault> {
        self.inner.holder(path).await
    }
}

/// `web` is built, `db` has data; a version is a number, a sick one says why.
fn model(version: u32, sick: Option<&str>) -> Value {
    let mut environment = json!({"VERSION": version.to_string()});
    if let Some(sick) = sick {
        environment["SICK"] = json!(sick);
    }
    json!({
        "services": {
            "web": {"build": {"context": "/", "args": {"VERSION": version.to_string()}}, "environment": environment, "networks": {"default": null}},
            "db": {"image": "db:1", "networks": {"default": null}, "volumes": [{"type": "volume", "source": "data", "target": "/data"}]},
        },
        "networks": {"default": {}},
        "volumes": {"data": {}},
    })
}

impl World {
    fn new() -> Self {
        let engine = MemoryEngine::new();
        engine.add_image("db:1", &BTreeMap::new());
        let runtime = MemoryRuntime::new(engine.clone());
        Self { engine, host: Arc::new(MemoryHost::default()), lock: MemoryLock::default(), runtime }
    }

    fn client(&self, life: &Life) -> Client {
        Client {
            host: Arc::new(Mortal { inner: self.host.clone(), life: life.clone() }),
            engine: Arc::new(self.engine.clone()),
            lock: Arc::new(Mortal { inner: self.lock.clone(), life: life.clone() }),
            runtime: Arc::new(Mortal { inner: self.runtime.clone(), life: life.clone() }),
            base_dir: BASE.to_owned(),
        }
    }

    async fn deploy_for(&self, life: i64, deploy: &Deploy) -> Result<lifecycle::Deployed, Error> {
        let done = self.run(life, deploy).await;
        // The lock of a dead run is free.
        self.lock.lose(LOCK);
        done
    }

    async fn run(&self, life: i64, deploy: &Deploy) -> Result<lifecycle::Deployed, Error> {
        let life = Arc::new(AtomicI64::new(life));
        let client = self.client(&life);
        lifecycle::deploy(
            std::future::ready(Ok(client)),
            &self.runtime,
            &project(),
            deploy,
            &Quiet,
            &Redactor::default(),
            &Interrupt::default(),
        )
        .await
    }

    async fn deploy(&self, version: u32, sick: Option<&str>) -> Result<lifecycle::Deployed, Error> {
        self.runtime.set_model(model(version, sick));
        self.deploy_for(i64::MAX, &request()).await
    }

    async fn destroy_for(&self, life: i64) -> Result<lifecycle::Destroyed, Error> {
        let client = self.client(&Arc::new(AtomicI64::new(life)));
        let wish = Destroy {
            target: target(),
            who: "me".into(),
            wait: Duration::from_secs(1),
            event_at: None,
            run: Some("r".into()),
        };
        let done = lifecycle::destroy(&client, &wish, &Quiet, &Interrupt::default()).await;
        self.lock.lose(LOCK);
        done
    }

    fn state(&self) -> Option<State> {
        self.host.content(STATE).map(|text| State::parse(STATE, &text).expect("the state file is whole"))
    }

    /// Ids of the containers by service.
    async fn running(&self) -> BTreeMap<String, Vec<String>> {
        preview_core::plan::container_ids(&self.engine.containers(&selector()).await.expect("lists"))
    }

    async fn assert_nothing_left(&self, when: &str) {
        let inventory = self.engine.inventory(&selector()).await.expect("lists");
        assert!(inventory.is_empty(), "{when}: {inventory:?}");
        let left: Vec<_> = self.host.paths().into_iter().filter(|path| path.starts_with("/base/shop")).collect();
        assert!(left.is_empty(), "{when}: {left:?}");
        assert!(self.lock.held().is_empty(), "{when}");
    }
}

fn selector() -> Selector {
    Selector::preview("shop", "pr-7")
}

fn target() -> Target {
    Target { app: "shop".into(), name: "pr-7".into(), project: "shop_pr-7".into() }
}

fn request() -> Deploy {
    Deploy {
        target: target(),
        subject: Subject::Pull(7),
        repository: Some("acme/shop".into()),
        owner: Some("octocat".into()),
        commit: None,
        event_at: None,
        update_only: false,
        who: "me".into(),
        run: "r".into(),
    }
}

fn numbered(number: u64) -> Deploy {
    let name = format!("pr-{number}");
    let target = Target { app: "shop".into(), project: format!("shop_{name}"), name };
    Deploy { target, subject: Subject::Pull(number), ..request() }
}

fn project() -> Project {
    Project {
        files: vec![],
        directory: "/".into(),
        repository: "/".into(),
        env_files: vec![],
        profiles: vec![],
        pull: PullPolicy::Missing,
        logins: BTreeMap::new(),
        routes: None,
        url: None,
        proxy: Proxy::None,
        limits: Limits::default(),
        on_full: OnFull::Refuse,
        weight: Weight::default(),
        ttl: None,
        guardrails: Guardrails::default(),
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

fn failed(done: Result<lifecycle::Deployed, Error>) -> Box<lifecycle::FailureReport> {
    match done {
        Err(Error::Failed(report)) => report,
        other => panic!("not a failed deploy: {other:?}"),
    }
}

#[tokio::test]
async fn create_unchanged_update_destroy() {
    let world = World::new();
    assert_eq!(world.deploy(1, None).await.expect("created").kind, Some(Kind::Create));
    let first = world.running().await;
    let made = world.state().expect("a state").created_at;
    assert_eq!(world.deploy(1, None).await.expect("again").kind, Some(Kind::Unchanged));
    assert_eq!(world.running().await, first);
    assert_eq!(world.deploy(2, None).await.expect("updated").kind, Some(Kind::Update));
    let second = world.running().await;
    assert_eq!(second["db"], first["db"], "what does not differ is kept");
    assert_ne!(second["web"], first["web"]);
    assert_eq!(world.state().expect("a state").created_at, made, "the creation time survives");
    assert!(world.destroy_for(i64::MAX).await.expect("destroyed").existed);
    world.assert_nothing_left("destroyed").await;
    assert!(!world.destroy_for(i64::MAX).await.expect("again").existed);
    world.assert_nothing_left("destroyed twice").await;
}

#[tokio::test]
async fn a_sick_update_goes_back_and_a_sick_first_deploy_leaves_nothing() {
    let world = World::new();
    let report = failed(world.deploy(1, Some("no database")).await);
    assert_eq!(report.restored, Restored::Removed);
    assert_eq!(report.services[0].log, ["no database"]);
    world.assert_nothing_left("a first deploy that failed").await;

    world.deploy(1, None).await.expect("created");
    let first = world.running().await;
    let report = failed(world.deploy(2, Some("boom")).await);
    assert_eq!((report.restored, report.phase), (Restored::Previous, Phase::Verifying));
    assert_eq!(report.services[0].log, ["boom"], "the new version's log");
    let restored = world.running().await;
    assert_eq!(restored["db"], first["db"], "what the update did not touch is not recreated");
    let state = world.state().expect("a state");
    assert_eq!(state.phase, Phase::Failed);
    assert!(state.failure.expect("why").message.contains("unhealthy"));
    assert_eq!(world.deploy(1, None).await.expect("the old version").kind, Some(Kind::Unchanged));
    assert_eq!(world.running().await, restored);
    assert_eq!(world.deploy(3, None).await.expect("a better one").kind, Some(Kind::Update));
}

#[tokio::test]
async fn a_first_deploy_that_dies_anywhere_is_mended_by_the_next_run_and_by_destroy() {
    for life in 0..24 {
        let world = World::new();
        world.runtime.set_model(model(1, None));
        let died = world.deploy_for(life, &request()).await;
        assert!(life > 0 || died.is_err(), "the first change of all is a change");
        world.deploy(1, None).await.unwrap_or_else(|error| panic!("after {life} changes: {}", error.chain()));
        assert_eq!(world.running().await.len(), 2, "after {life} changes");
        assert_eq!(world.state().expect("a state").phase, Phase::Ready);

        let world = World::new();
        world.runtime.set_model(model(1, None));
        let _ = world.deploy_for(life, &request()).await;
        world.destroy_for(i64::MAX).await.expect("destroyed");
        world.assert_nothing_left(&format!("destroyed after {life} changes")).await;
    }
}

#[tokio::test]
async fn an_update_that_dies_anywhere_is_mended_by_the_next_run() {
    for life in 0..24 {
        let world = World::new();
        world.deploy(1, None).await.expect("created");
        let first = world.running().await;
        world.runtime.set_model(model(2, None));
        let _ = world.deploy_for(life, &request()).await;
        let done = world.deploy(2, None).await;
        done.unwrap_or_else(|error| panic!("after {life} changes: {}", error.chain()));
        assert_eq!(world.state().expect("a state").phase, Phase::Ready);
        let now = world.running().await;
        assert_eq!((now.len(), &now["db"]), (2, &first["db"]), "after {life} changes");
        let again = world.deploy(2, None).await.expect("again");
        assert_eq!(again.kind, Some(Kind::Unchanged), "after {life} changes");

        // A sick version after the death still goes back to the good one.
        let world = World::new();
        world.deploy(1, None).await.expect("created");
        world.runtime.set_model(model(2, None));
        let _ = world.deploy_for(life, &request()).await;
        // A run that dies while it tidies up has got its version through.
        let good = if world.state().expect("a state").phase == Phase::Ready && life > 0 { 2 } else { 1 };
        let report = failed(world.deploy(3, Some("sick")).await);
        assert_eq!(report.restored, Restored::Previous, "after {life} changes");
        assert_eq!(
            world.deploy(good, None).await.expect("the good one").kind,
            Some(Kind::Unchanged),
            "after {life} changes"
        );
    }
}

#[tokio::test]
async fn a_destroy_that_dies_anywhere_is_ended_by_the_next() {
    for life in 0..12 {
        let world = World::new();
        world.deploy(1, None).await.expect("created");
        let _ = world.destroy_for(life).await;
        world.destroy_for(i64::MAX).await.expect("destroyed");
        world.assert_nothing_left(&format!("after {life} changes")).await;
    }
}

#[tokio::test]
async fn a_lost_lease_ends_the_run_and_changes_nothing_more() {
    let world = World::new();
    world.deploy(1, None).await.expect("created");
    world.runtime.set_model(model(2, None));
    // The lease is lost with the third change.
    let error = world.deploy_for(3, &request()).await.expect_err("lost");
    assert_eq!(error.exit_code(), 6, "{}", error.chain());
    assert!(error.report().is_none(), "nothing was taken back: somebody else may be at work");
}

#[tokio::test]
async fn another_subject_of_the_same_name_is_refused_and_changes_nothing() {
    let world = World::new();
    world.deploy(1, None).await.expect("created");
    let (before, state) = (world.running().await, world.state());
    for deploy in [
        Deploy { subject: Subject::Branch("pr-7".into()), ..request() },
        Deploy { repository: Some("acme/other".into()), ..request() },
    ] {
        let error = world.deploy_for(i64::MAX, &deploy).await.expect_err("refused");
        assert!(matches!(error, Error::Refused(Refusal::NameTaken { .. })), "{error}");
    }
    assert_eq!((world.running().await, world.state()), (before, state));
}

#[tokio::test]
async fn update_only_makes_nothing() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    let deploy = Deploy { update_only: true, ..request() };
    assert_eq!(world.deploy_for(i64::MAX, &deploy).await.expect("done").kind, None);
    world.assert_nothing_left("nothing was there").await;
    world.deploy(1, None).await.expect("created");
    world.runtime.set_model(model(2, None));
    assert_eq!(world.deploy_for(i64::MAX, &deploy).await.expect("done").kind, Some(Kind::Update));
}

#[tokio::test]
async fn transient_failures_are_tried_again_and_others_are_not() {
    let world = World::new();
    let fault = || Fault::new(FaultKind::Unreachable, "bring the stack up", "the daemon blinked").transient();
    world.runtime.fail_next("up", fault());
    world.runtime.fail_next("up", fault());
    assert_eq!(world.deploy(1, None).await.expect("the third time").kind, Some(Kind::Create));
    let before = world.runtime.calls().iter().filter(|call| **call == "up").count();
    assert_eq!(before, 3);
    let broken = Fault::new(FaultKind::Failed, "build the images", "exit code 1");
    world.runtime.fail_next("build", broken.with_output(vec!["syntax error".to_owned()]));
    let report = failed(world.deploy(2, None).await);
    assert_eq!((report.phase, &report.restored), (Phase::Building, &Restored::Previous));
    assert_eq!(report.output, ["syntax error"]);
    let builds = world.runtime.calls().iter().filter(|call| **call == "build").count();
    assert_eq!(builds, 2, "one for each deploy");
}

#[tokio::test]
async fn who_finds_no_place_changes_nothing() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    for other in 1..=6 {
        world.deploy_for(i64::MAX, &numbered(other)).await.expect("there is a place");
    }
    let work = || world.runtime.calls().into_iter().filter(|call| *call != "resolve").count();
    let (files, before) = (world.host.paths(), work());
    let error = world.deploy_for(i64::MAX, &numbered(7)).await.expect_err("there is none");
    let Error::Refused(Refusal::Full { name, full, .. }) = &error else { panic!("{error}") };
    let holders: Vec<_> = full.holders.iter().map(|holder| holder.name.as_str()).collect();
    assert_eq!((name.as_str(), holders.len(), error.exit_code()), ("pr-7", 6, 3));
    assert_eq!((world.host.paths(), work()), (files, before), "nothing was made");
    world.deploy_for(i64::MAX, &numbered(3)).await.expect("an update has its place");

    // Who knew the host as it was a moment ago looks again.
    world.host.set_facts(|facts| facts.memory_available = 0);
    let error = world.deploy_for(i64::MAX, &numbered(7)).await.expect_err("there is none");
    assert!(error.to_string().contains("6 of 6 places"), "places come before floors: {error}");
}

/// A place is not held by the dead, unless there is something to go back to; and never taken from the living.
#[tokio::test]
async fn the_dead_hold_no_place() {
    let mut places = 0;
    for life in 1..40 {
        let world = World::new();
        world.runtime.set_model(model(1, None));
        for other in 1..=5 {
            world.deploy_for(i64::MAX, &numbered(other)).await.expect("there is a place");
        }
        let _ = world.deploy_for(life, &request()).await;
        let Some(state) = world.state() else { continue };
        let done = world.deploy_for(i64::MAX, &numbered(8)).await;
        if state.good.is_some() {
            assert!(matches!(done, Err(Error::Refused(Refusal::Full { .. }))), "after {life} changes");
            continue;
        }
        done.unwrap_or_else(|error| panic!("after {life} changes: {}", error.chain()));
        let inventory = world.engine.inventory(&selector()).await.expect("lists");
        let left = world.host.paths().into_iter().find(|path| path.starts_with("/base/shop/pr-7"));
        assert!(inventory.is_empty() && left.is_none(), "after {life} changes: {inventory:?}, {left:?}");
        places += 1;
    }
    assert!(places > 3, "runs died with a place: {places}");

    let world = World::new();
    world.runtime.set_model(model(1, None));
    let _ = world.deploy_for(4, &request()).await;
    let before = world.state().expect("it died with a place");
    let me = Holder { who: "ada".into(), why: "deploy of pr-7".into(), since: String::new() };
    let held = world.lock.acquire(LOCK, &me, Duration::ZERO, &|_| ()).await.expect("free");
    let client = world.client(&Arc::new(AtomicI64::new(i64::MAX)));
    let one = Project { limits: Limits { places: Weight::places(1), ..Limits::default() }, ..project() };
    let (redactor, interrupt) = (Redactor::default(), Interrupt::default());
    let connect = std::future::ready(Ok(client));
    let done = lifecycle::deploy(connect, &world.runtime, &one, &numbered(8), &Quiet, &redactor, &interrupt).await;
    assert!(matches!(done, Err(Error::Refused(Refusal::Full { .. }))), "somebody is at work on it");
    assert_eq!(world.state(), Some(before));
    drop(held);
}

fn event(minute: i64) -> Option<Timestamp> {
    Some(Timestamp::from_second(1_800_000_000 + minute * 60).expect("a time"))
}

fn late(done: Result<lifecycle::Deployed, Error>) -> Superseded {
    match done {
        Err(Error::Refused(Refusal::Superseded { by, .. })) => by,
        other => panic!("not too late: {other:?}"),
    }
}

impl World {
    async fn deploy_at(&self, minute: i64) -> Result<lifecycle::Deployed, Error> {
        self.deploy_for(i64::MAX, &Deploy { event_at: event(minute), ..request() }).await
    }

    async fn close_at(&self, minute: Option<i64>, wait: Duration) -> Result<lifecycle::Destroyed, Error> {
        let client = self.client(&Arc::new(AtomicI64::new(i64::MAX)));
        let event_at = minute.and_then(event);
        let wish = Destroy { target: target(), who: "the close".into(), wait, event_at, run: Some("r".into()) };
        lifecycle::destroy(&client, &wish, &Quiet, &Interrupt::default()).await
    }

    /// What a close leaves is the word that it happened.
    async fn assert_only_tombstones_left(&self, number: usize) {
        self.assert_nothing_left("closed").await;
        let left: Vec<_> = self.host.paths().into_iter().filter(|path| path.contains("/.tombstones/shop/")).collect();
        assert_eq!(left.len(), number, "{left:?}");
    }
}

#[tokio::test]
async fn runs_that_come_in_the_wrong_order() {
    let world = World::new();
    world.runtime.set_model(model(2, None));
    world.deploy_at(20).await.expect("the second push arrives first");
    let (before, state) = (world.running().await, world.state());
    world.runtime.set_model(model(1, None));
    assert!(matches!(late(world.deploy_at(10).await), Superseded::Newer { .. }));
    assert_eq!((world.running().await, world.state()), (before, state), "nothing was changed");
    world.deploy_at(20).await.expect("the same event once more");

    // Closed, and what was pushed before that arrives; then it is opened again.
    world.close_at(Some(30), MOMENT).await.expect("closed");
    world.assert_only_tombstones_left(1).await;
    for minute in [10, 25, 30] {
        assert!(matches!(late(world.deploy_at(minute).await), Superseded::Closed { .. }));
        world.assert_only_tombstones_left(1).await;
    }
    world.deploy_at(40).await.expect("opened again");
    let (before, state) = (world.running().await, world.state());
    // A close of before the reopening arrives late.
    let error = world.close_at(Some(35), MOMENT).await.expect_err("it was opened since");
    assert!(matches!(&error, Error::Refused(Refusal::Superseded { by: Superseded::Newer { .. }, .. })), "{error}");
    assert_eq!((world.running().await, world.state(), error.exit_code()), (before, state, 3));
    assert!(world.lock.held().is_empty());
    world.close_at(Some(50), MOMENT).await.expect("closed");
    world.assert_only_tombstones_left(3).await;
    world.close_at(None, MOMENT).await.expect("by hand, and there is nothing");
    world.assert_only_tombstones_left(3).await;
}

/// A close while a run is at work stops that run, which leaves nothing; then the close has its lock.
#[tokio::test]
async fn a_close_stops_who_is_at_work() {
    let stopped = async |minute: Option<i64>, there: bool| {
        let world = World::new();
        if there {
            world.runtime.set_model(model(1, None));
            world.deploy_at(5).await.expect("the version before");
        }
        // Never healthy: the run would wait for a minute.
        let mut slow = model(2, None);
        slow["services"]["web"]["environment"]["SLOW"] = json!("yes");
        world.runtime.set_model(slow);
        let run = Deploy { event_at: event(10), ..request() };
        let (deployed, closed) = tokio::join!(world.run(i64::MAX, &run), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            world.close_at(minute, Duration::from_secs(30)).await
        });
        let error = deployed.expect_err("stopped");
        let stopped = matches!(&error, Error::Refused(Refusal::Stopped { phase: Phase::Verifying, .. }));
        assert!(stopped, "{minute:?}, {there}: {}", error.chain());
        closed.expect("closed");
        world.assert_only_tombstones_left(usize::from(minute.is_some())).await;
        if minute.is_none() {
            assert!(!world.host.paths().iter().any(|path| path.contains(".tombstones")), "a wish goes with its run");
        }
    };
    tokio::join!(stopped(Some(30), false), stopped(Some(30), true), stopped(None, false), stopped(None, true));
}

/// Who gives up waiting takes the wish back.
#[tokio::test]
async fn a_wish_that_was_given_up_concerns_nobody() {
    let world = World::new();
    world.deploy(1, None).await.expect("created");
    let me = Holder { who: "ada".into(), why: "something long".into(), since: String::new() };
    let held = world.lock.acquire(LOCK, &me, Duration::ZERO, &|_| ()).await.expect("free");
    assert_eq!(world.close_at(None, MOMENT).await.expect_err("locked").exit_code(), 7);
    assert!(!world.host.paths().iter().any(|path| path.contains(".tombstones")), "{:?}", world.host.paths());
    assert_eq!(world.close_at(Some(1), MOMENT).await.expect_err("locked").exit_code(), 7);
    drop(held);
    assert!(matches!(late(world.deploy_at(1).await), Superseded::Closed { .. }), "an event stays, whoever gave up");
}

fn sweeping() -> Sweep {
    Sweep {
        who: "the sweep".into(),
        run: "r".into(),
        dry_run: false,
        open: Open::default(),
        timeouts: Timeouts::default(),
        images_above: 80,
        images_older: Duration::from_secs(72 * 3600),
        build_cache: 10 << 30,
    }
}

impl World {
    async fn sweep(&self, wish: &Sweep) -> lifecycle::Swept {
        let client = self.client(&Arc::new(AtomicI64::new(i64::MAX)));
        lifecycle::sweep(&client, wish, &Quiet, &Interrupt::default()).await.expect("swept")
    }
}

/// Wherever a run dies, one sweep brings the preview to a clean state: the version before, or nothing.
#[tokio::test]
async fn one_sweep_mends_what_a_dead_run_left() {
    let (mut removed, mut mended) = (0, 0);
    for life in 0..30 {
        let world = World::new();
        world.runtime.set_model(model(1, None));
        let _ = world.deploy_for(life, &request()).await;
        let ready = world.state().is_some_and(|state| state.phase == Phase::Ready);
        let swept = world.sweep(&sweeping()).await;
        assert_eq!(swept.exit_code(), 0, "after {life} changes: {swept:?}");
        removed += swept.removed.len();
        if !ready {
            world.assert_nothing_left(&format!("swept after {life} changes")).await;
        }
        assert_eq!(world.sweep(&sweeping()).await.removed, [], "after {life} changes, a second time");

        let world = World::new();
        world.deploy(1, None).await.expect("created");
        world.runtime.set_model(model(2, None));
        let _ = world.deploy_for(life, &request()).await;
        let before = world.state().expect("a state");
        let swept = world.sweep(&sweeping()).await;
        assert_eq!((swept.exit_code(), swept.removed.len()), (0, 0), "after {life} changes: {swept:?}");
        let state = world.state().expect("a state");
        if before.phase.in_flight() {
            mended += swept.mended.len();
            assert_eq!(state.phase, Phase::Failed, "after {life} changes");
            assert!(state.failure.is_some_and(|failure| failure.message.contains("its run died while")));
            assert_eq!(world.running().await, state.good.expect("the version before").containers);
            assert_eq!(world.deploy(1, None).await.expect("that version").kind, Some(Kind::Unchanged));
        } else {
            assert_eq!((state.phase, swept.mended.len()), (Phase::Ready, 0), "after {life} changes");
        }

        let world = World::new();
        world.deploy(1, None).await.expect("created");
        let _ = world.destroy_for(life).await;
        let whole = world.state().is_some_and(|state| state.phase == Phase::Ready) && world.running().await.len() == 2;
        let swept = world.sweep(&sweeping()).await;
        assert_eq!(swept.exit_code(), 0, "destroyed after {life} changes: {swept:?}");
        if !whole {
            let half = world.state().is_some_and(|state| state.phase == Phase::Ready);
            if !half {
                world.assert_nothing_left(&format!("swept a destroy after {life} changes")).await;
            }
        }
    }
    assert!(removed > 3 && mended > 3, "runs died with something to sweep: {removed}, {mended}");
}

#[tokio::test]
async fn a_sweep_leaves_who_is_at_work_and_says_what_it_would_do() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    let expiring = Project { ttl: Some(Duration::from_secs(1)), ..project() };
    let (redactor, interrupt) = (Redactor::default(), Interrupt::default());
    for number in [1, 2] {
        let client = world.client(&Arc::new(AtomicI64::new(i64::MAX)));
        let connect = std::future::ready(Ok(client));
        lifecycle::deploy(connect, &world.runtime, &expiring, &numbered(number), &Quiet, &redactor, &interrupt)
            .await
            .expect("created");
    }
    // The clock of the host in memory is ahead of today's.
    let client = world.client(&Arc::new(AtomicI64::new(i64::MAX)));
    let me = Holder { who: "ada".into(), why: "deploy of pr-1".into(), since: "now".into() };
    let held = world.lock.acquire("/base/shop/pr-1/.lock", &me, Duration::ZERO, &|_| ()).await.expect("free");
    let files = world.host.paths();
    let planned = world.sweep(&Sweep { dry_run: true, ..sweeping() }).await;
    let names = |gone: &[lifecycle::Gone]| gone.iter().map(|gone| gone.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&planned.removed), ["pr-2"], "{planned:?}");
    assert_eq!((planned.stayed.len(), world.host.paths()), (1, files), "nothing was changed");
    assert!(planned.stayed[0].reason.contains("ada is at work on it"), "{planned:?}");
    let target = Target { app: "shop".into(), name: "pr-2".into(), project: "shop_pr-2".into() };
    let kept = lifecycle::keep(&client, &target, Wish::Pin, "me", MOMENT, &Quiet, &interrupt).await.expect("pinned");
    assert_eq!(kept.expiry(), None);
    assert_eq!(names(&world.sweep(&sweeping()).await.removed), Vec::<String>::new());
    lifecycle::keep(&client, &target, Wish::Unpin, "me", MOMENT, &Quiet, &interrupt).await.expect("unpinned");
    let span = Duration::from_secs(3600);
    lifecycle::keep(&client, &target, Wish::Keep { span }, "me", MOMENT, &Quiet, &interrupt).await.expect("kept");
    assert_eq!(names(&world.sweep(&sweeping()).await.removed), Vec::<String>::new());
    world.host.set_facts(|facts| facts.now += 3601);
    let swept = world.sweep(&sweeping()).await;
    assert_eq!(names(&swept.removed), ["pr-2"]);
    assert!(swept.removed[0].left.is_empty() && swept.removed[0].removed.containers == 2, "{swept:?}");
    assert_eq!((swept.stayed.len(), swept.stayed[0].code, swept.exit_code()), (1, 0, 0));
    drop(held);
    let missing = lifecycle::keep(&client, &target, Wish::Pin, "me", MOMENT, &Quiet, &interrupt).await;
    assert_eq!(missing.expect_err("gone").exit_code(), 2);
    assert_eq!(names(&world.sweep(&sweeping()).await.removed), ["pr-1"]);
    assert!(!world.host.paths().iter().any(|path| path.starts_with("/base/shop")));
}

/// Only what was pulled for previews goes, and only where the disk is short.
#[tokio::test]
async fn old_images_go_when_the_disk_is_full() {
    let world = World::new();
    world.runtime.set_model(json!({"services": {"web": {"image": "pulled:1"}}}));
    world.engine.add_image("foreign:1", &BTreeMap::new());
    world.deploy_for(i64::MAX, &request()).await.expect("created");
    let there = |image: &str| world.engine.images().iter().any(|found| found.tags.contains(image));
    world.host.set_facts(|facts| facts.disk_free = facts.disk_used / 9);
    assert_eq!(world.sweep(&sweeping()).await.images, Vec::<String>::new(), "in use");
    world.destroy_for(i64::MAX).await.expect("destroyed");
    let patient = Sweep { images_older: Duration::from_secs(1000 * 24 * 3600), ..sweeping() };
    assert_eq!(world.sweep(&patient).await.images, Vec::<String>::new(), "not old enough");
    assert!(there("pulled:1"));
    assert_eq!(world.sweep(&sweeping()).await.images, ["pulled:1"]);
    assert!(!there("pulled:1") && there("foreign:1"));
    assert!(!world.host.paths().iter().any(|path| path.starts_with("/base/.images/")), "its record is gone too");
}

impl World {
    /// A deploy where one place is all there is, and who finds none waits, or removes another.
    async fn deploy_in(
        &self,
        number: u64,
        places: u16,
        on_full: OnFull,
        interrupt: &Interrupt,
    ) -> Result<lifecycle::Deployed, Error> {
        let client = self.client(&Arc::new(AtomicI64::new(i64::MAX)));
        let limits = Limits { places: Weight::places(places), ..Limits::default() };
        let timeouts = Timeouts { queue: Duration::from_secs(40), ..Timeouts::default() };
        let narrow = Project { limits, on_full, timeouts, ..project() };
        let (redactor, connect) = (Redactor::default(), std::future::ready(Ok(client)));
        lifecycle::deploy(connect, &self.runtime, &narrow, &numbered(number), &Quiet, &redactor, interrupt).await
    }

    async fn destroy_number(&self, number: u64) {
        let client = self.client(&Arc::new(AtomicI64::new(i64::MAX)));
        let target = numbered(number).target;
        let wish =
            Destroy { target, who: "me".into(), wait: Duration::from_secs(1), event_at: None, run: Some("r".into()) };
        lifecycle::destroy(&client, &wish, &Quiet, &Interrupt::default()).await.expect("destroyed");
    }

    fn tickets(&self) -> Vec<String> {
        self.host.paths().into_iter().filter(|path| path.ends_with("/queue.json")).collect()
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 30 s");
}

/// First come, first served; who dies or gives up waiting keeps nobody back.
#[tokio::test]
async fn a_queue() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    let (never, gives_up) = (Interrupt::default(), Interrupt::default());
    world.deploy_in(1, 1, OnFull::Queue, &never).await.expect("there is a place");
    let order = std::sync::Mutex::new(Vec::new());
    let wait = async |number: u64, interrupt: &Interrupt| {
        let done = world.deploy_in(number, 1, OnFull::Queue, interrupt).await;
        order.lock().expect("not poisoned").push(number);
        done
    };
    // A run that was killed while it waited in front of all: its ticket stays, its lock is free.
    let mut dead = Box::pin(wait(9, &never));
    tokio::select! {
        done = &mut dead => panic!("there is no place: {done:?}"),
        () = until(|| world.tickets().len() == 1) => {}
    }
    drop(dead);
    world.lock.lose("/base/shop/pr-9/.lock");
    let (second, third, fourth, ()) = tokio::join!(
        wait(2, &never),
        async {
            until(|| world.tickets().len() == 2).await;
            wait(3, &gives_up).await
        },
        async {
            until(|| world.tickets().len() == 3).await;
            wait(4, &never).await
        },
        async {
            until(|| world.tickets().len() == 4).await;
            world.destroy_number(1).await;
            until(|| world.host.content("/base/shop/pr-2/state.json").is_some()).await;
            gives_up.fire();
            until(|| order.lock().expect("not poisoned").contains(&3)).await;
            world.destroy_number(2).await;
        },
    );
    second.expect("its turn");
    assert_eq!(third.expect_err("interrupted").exit_code(), 5);
    fourth.expect("its turn");
    assert_eq!(*order.lock().expect("not poisoned"), [2, 3, 4]);
    assert_eq!(world.tickets(), Vec::<String>::new());
    let left: Vec<_> =
        world.host.paths().into_iter().filter(|path| path.contains("/pr-3") || path.contains("/pr-9")).collect();
    assert_eq!(left, Vec::<String>::new());
}

/// Who waits is told the time limit, and leaves nothing; a close ends the waiting.
#[tokio::test]
async fn the_queue_ends() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    let never = Interrupt::default();
    world.deploy_in(1, 1, OnFull::Queue, &never).await.expect("there is a place");
    let before = world.host.paths();
    let closed = async {
        until(|| world.tickets().len() == 2).await;
        world.close_at(None, Duration::from_secs(20)).await.expect("closed");
    };
    let (out_of_time, stopped, ()) = tokio::join!(
        world.deploy_in(2, 1, OnFull::Queue, &never),
        world.deploy_in(7, 1, OnFull::Queue, &never),
        closed
    );
    let error = out_of_time.expect_err("nothing became free");
    assert_eq!(error.exit_code(), 5);
    assert!(error.chain().contains("position 1 in the queue: 1 of 1 places on the VM are taken"), "{}", error.chain());
    assert!(matches!(stopped, Err(Error::Refused(Refusal::Superseded { .. }))), "{stopped:?}");
    let after: Vec<_> = world.host.paths().into_iter().filter(|path| path != "/base/.freed").collect();
    assert_eq!(after, before);
    let hopeless = world.deploy_in(3, 0, OnFull::Queue, &never).await.expect_err("it never fits");
    assert_eq!(hopeless.exit_code(), 3);
}

/// The longest unused makes room, unless it is pinned or somebody is at work on it.
#[tokio::test]
async fn the_oldest_is_replaced() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    let never = Interrupt::default();
    for number in [1, 2, 3] {
        world.deploy_in(number, 3, OnFull::ReplaceOldest, &never).await.expect("there is a place");
    }
    let client = world.client(&Arc::new(AtomicI64::new(i64::MAX)));
    lifecycle::keep(&client, &numbered(1).target, Wish::Pin, "me", MOMENT, &Quiet, &never).await.expect("pinned");
    world.deploy_in(3, 3, OnFull::ReplaceOldest, &never).await.expect("an update needs no place");
    world.deploy_in(4, 3, OnFull::ReplaceOldest, &never).await.expect("2 makes room");
    let there = || {
        let state = |number: &u64| world.host.content(&format!("/base/shop/pr-{number}/state.json")).is_some();
        [1, 2, 3, 4, 5, 6].into_iter().filter(state).collect::<Vec<u64>>()
    };
    assert_eq!(there(), [1, 3, 4]);
    assert!(world.engine.inventory(&Selector::preview("shop", "pr-2")).await.expect("lists").is_empty());
    let me = Holder { who: "ada".into(), why: "deploy of pr-3".into(), since: String::new() };
    let held = world.lock.acquire("/base/shop/pr-3/.lock", &me, Duration::ZERO, &|_| ()).await.expect("free");
    let error = world.deploy_in(5, 2, OnFull::ReplaceOldest, &never).await.expect_err("too few may go");
    assert_eq!(error.exit_code(), 3, "{error}");
    drop(held);
    assert!(there().contains(&1) && there().contains(&3), "{:?}", there());
}

impl World {
    /// The runs that ended, in order: what, how, why, while doing what.
    fn history(&self) -> Vec<String> {
        let text = self.host.content("/base/.history.jsonl").unwrap_or_default();
        let entries = history::parse(&text);
        assert_eq!(entries.len(), text.lines().count(), "{text}");
        let say = |entry: history::Entry| {
            let code = entry.code.map_or("-", preview_core::failure::FailureCode::as_str);
            let phase = entry.phase.map_or("-", Phase::as_str);
            format!("{} {} {code} {phase}", entry.command, entry.outcome)
        };
        entries.into_iter().map(say).collect()
    }
}

#[tokio::test]
async fn each_run_that_ended_is_noted_once() {
    let world = World::new();
    world.deploy(1, None).await.expect("created");
    world.deploy(1, None).await.expect("again");
    failed(world.deploy(2, Some("boom")).await);
    let other = Deploy { subject: Subject::Branch("pr-7".into()), ..request() };
    world.deploy_for(i64::MAX, &other).await.expect_err("refused");
    world.destroy_for(i64::MAX).await.expect("destroyed");
    world.destroy_for(i64::MAX).await.expect("again");
    failed(world.deploy(1, Some("boom")).await);
    world.deploy_for(i64::MAX, &Deploy { update_only: true, ..request() }).await.expect("nothing to update");
    world.sweep(&Sweep { dry_run: true, ..sweeping() }).await;
    world.sweep(&sweeping()).await;
    assert_eq!(
        world.history(),
        [
            "deploy ready - -",
            "deploy unchanged - -",
            "deploy failed unhealthy verifying",
            "deploy refused name_taken preparing",
            "destroy destroyed - -",
            "destroy absent - -",
            "deploy failed unhealthy verifying",
            "deploy absent - -",
            "sweep swept - -",
        ]
    );
    let text = world.host.content("/base/.history.jsonl").expect("a history");
    let entries = history::parse(&text);
    assert_eq!((entries[4].owner.as_deref(), entries[4].subject.as_deref()), (Some("octocat"), Some("pull request 7")));
    assert_eq!((entries[0].preview.as_deref(), entries[0].weight), (Some("pr-7"), Some(Weight::default())));

    // What cannot be noted fails nothing.
    world.host.apply(&[Change::Remove { path: "/base/.history.jsonl".into() }]).await.expect("removed");
    world.host.put("/base/.history.jsonl/x", "a directory is in the way");
    world.deploy(1, None).await.expect("created");
    failed(world.deploy(2, Some("boom")).await);
    world.destroy_for(i64::MAX).await.expect("destroyed");
    world.assert_nothing_left("with no history").await;
}

#[tokio::test]
async fn nothing_is_noted_after_the_lease_is_lost_and_locked_is() {
    let world = World::new();
    world.deploy(1, None).await.expect("created");
    world.runtime.set_model(model(2, None));
    for life in 0..12 {
        let before = world.history().len();
        let ended = world.deploy_for(life, &request()).await;
        assert_eq!(world.history().len() - before, usize::from(ended.is_ok()), "after {life} changes");
    }
    let before = world.history().len();
    let holder = Holder { who: "ada".into(), why: "deploy".into(), since: "now".into() };
    let held = world.lock.acquire(LOCK, &holder, Duration::ZERO, &|_| ()).await.expect("answers");
    let client = world.client(&Arc::new(AtomicI64::new(i64::MAX)));
    let wish =
        Destroy { target: target(), who: "me".into(), wait: Duration::ZERO, event_at: None, run: Some("r".into()) };
    lifecycle::destroy(&client, &wish, &Quiet, &Interrupt::default()).await.expect_err("locked");
    drop(held);
    assert_eq!(world.history()[before..], ["destroy refused locked destroying"]);
}
