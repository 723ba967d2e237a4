//! A host, an engine and a runtime in memory, and adapters that die after a number of changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use preview_core::dns::{Dns, Owned, Value as Leads};
use preview_core::engine::Engine as _;
use preview_core::fault::{Fault, FaultKind};
use preview_core::host::{Change, Entry, Guard, Host, Query, Stream, Survey};
use preview_core::lifecycle::{self, Client, Destroy, Error, Interrupt, Quiet};
use preview_core::lock::{Acquired, Holder, Lease, Lock};
use preview_core::ownership::Selector;
use preview_core::project::{Deploy, Project, Target};
use preview_core::proxy::{Proxy, Traefik};
use preview_core::runtime::{Progress, Resolved, Runtime, Source, Stack};
use preview_core::secret::Redactor;
use preview_core::state::{State, Subject};
use preview_core::testkit::dns::{MemoryDns, MemoryZone};
use preview_core::testkit::engine::MemoryEngine;
use preview_core::testkit::host::MemoryHost;
use preview_core::testkit::lock::MemoryLock;
use preview_core::testkit::runtime::MemoryRuntime;
use serde_json::{Value, json};

pub(crate) const ADDRESS: &str = "192.0.2.7";
pub(crate) const BASE: &str = "/base";
pub(crate) const LOCK: &str = "/base/shop/pr-7/.lock";
pub(crate) const MOMENT: Duration = Duration::from_millis(200);
pub(crate) const STATE: &str = "/base/shop/pr-7/state.json";
pub(crate) const ZONE: &str = "example.com";

/// Changes until the run dies; a life that is over never ends a change.
pub(crate) type Life = Arc<AtomicI64>;

pub(crate) fn alive(life: &Life) -> Result<(), Fault> {
    if life.fetch_sub(1, Ordering::SeqCst) > 0 {
        Ok(())
    } else {
        Err(Fault::new(FaultKind::Unreachable, "live", "killed"))
    }
}

pub(crate) struct World {
    pub(crate) engine: MemoryEngine,
    pub(crate) host: Arc<MemoryHost>,
    pub(crate) lock: MemoryLock,
    pub(crate) runtime: MemoryRuntime,
    pub(crate) zone: MemoryZone,
}

/// The world's adapters, until the life is over.
pub(crate) struct Mortal<T> {
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
        self.inner.apply_if(&Guard { expected: between, beside: vec![], ..guard.clone() }, &[]).await
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
    async fn check(&self, stack: &Stack) -> Result<(), Fault> {
        self.inner.check(stack).await
    }
    async fn build(&self, stack: &Stack, services: &[String], progress: Progress<'_>) -> Result<(), Fault> {
        alive(&self.life)?;
        self.inner.build(stack, services, progress).await
    }
    async fn up(&self, stack: &Stack, progress: Progress<'_>) -> Result<(), Fault> {
        self.counted(self.inner.up(stack, progress)).await
    }
    async fn up_only(&self, stack: &Stack, progress: Progress<'_>) -> Result<(), Fault> {
        self.counted(self.inner.up_only(stack, progress)).await
    }
    async fn beside(
        &self,
        stack: &Stack,
        services: &BTreeMap<String, usize>,
        progress: Progress<'_>,
    ) -> Result<(), Fault> {
        self.counted(self.inner.beside(stack, services, progress)).await
    }
}

impl Mortal<MemoryRuntime> {
    async fn counted(&self, work: impl Future<Output = Result<(), Fault>>) -> Result<(), Fault> {
        alive(&self.life)?;
        // A short life ends in the middle of the work.
        let left = self.life.load(Ordering::SeqCst).max(0);
        let before = self.inner.made();
        self.inner.stop_after(usize::try_from(left).expect("not negative"));
        let done = work.await;
        let made = i64::try_from(self.inner.made() - before).expect("few");
        let died = done.is_err() && made >= left;
        self.life.fetch_sub(if died { left } else { made }, Ordering::SeqCst);
        done
    }
}

#[async_trait]
impl Dns for Mortal<MemoryDns> {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn check(&self, hosts: &BTreeSet<String>) -> Result<Vec<String>, Fault> {
        self.inner.check(hosts)
    }
    async fn write(&self, preview: &Target, hosts: &BTreeSet<String>) -> Result<usize, Fault> {
        alive(&self.life)?;
        let written = self.inner.write(preview, hosts).await?;
        // A run may die before it hears that it is done.
        alive(&self.life).map(|()| written)
    }
    async fn remove(&self, preview: &Target, hosts: &BTreeSet<String>) -> Result<usize, Fault> {
        alive(&self.life)?;
        let removed = self.inner.remove(preview, hosts).await?;
        alive(&self.life).map(|()| removed)
    }
    async fn list(&self) -> Result<Vec<Owned>, Fault> {
        self.inner.list().await
    }
}

pub(crate) struct MortalLease {
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
pub(crate) fn model(version: u32, sick: Option<&str>) -> Value {
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
    pub(crate) fn new() -> Self {
        let engine = MemoryEngine::new();
        engine.add_network("proxy", &BTreeMap::new());
        engine.add_image("db:1", &BTreeMap::new());
        let runtime = MemoryRuntime::new(engine.clone());
        Self {
            engine,
            host: Arc::new(MemoryHost::default()),
            lock: MemoryLock::default(),
            runtime,
            zone: MemoryZone::default(),
        }
    }

    /// Adapters that die after so many changes.
    pub(crate) fn client(&self, life: i64) -> Client {
        let life: Life = Arc::new(AtomicI64::new(life));
        Client {
            host: Arc::new(Mortal { inner: self.host.clone(), life: life.clone() }),
            engine: Arc::new(self.engine.clone()),
            lock: Arc::new(Mortal { inner: self.lock.clone(), life: life.clone() }),
            runtime: Arc::new(Mortal { inner: self.runtime.clone(), life: life.clone() }),
            dns: Some(Arc::new(Mortal { inner: self.dns(), life: life.clone() })),
            base_dir: BASE.to_owned(),
            proxy: preview_core::proxy::Proxy::None,
        }
    }

    fn dns(&self) -> MemoryDns {
        MemoryDns::new(self.zone.clone(), ZONE, "vm", Leads::parse(ADDRESS).expect("an address"))
    }

    /// The hosts that have a record.
    pub(crate) fn hosts(&self) -> Vec<String> {
        self.zone.records().into_keys().collect()
    }

    pub(crate) async fn deploy_for(&self, life: i64, deploy: &Deploy) -> Result<lifecycle::Deployed, Error> {
        let done = self.run(life, deploy).await;
        // The lock of a dead run is free.
        self.lock.lose(LOCK);
        done
    }

    pub(crate) async fn run(&self, life: i64, deploy: &Deploy) -> Result<lifecycle::Deployed, Error> {
        self.run_with(life, &project(), deploy, &Interrupt::default()).await
    }

    pub(crate) async fn run_with(
        &self,
        life: i64,
        project: &Project,
        deploy: &Deploy,
        interrupt: &Interrupt,
    ) -> Result<lifecycle::Deployed, Error> {
        let connect = std::future::ready(Ok(self.client(life)));
        // Each preview has a host of its own, unless the test says which.
        let own = BTreeSet::from([format!("{}.{ZONE}", deploy.target.name)]);
        let hosts = if project.hosts == crate::world::project().hosts { own } else { project.hosts.clone() };
        let project = &Project { hosts, ..project.clone() };
        lifecycle::deploy(connect, &self.runtime, project, deploy, &Quiet, &Redactor::default(), interrupt).await
    }

    pub(crate) async fn deploy(&self, version: u32, sick: Option<&str>) -> Result<lifecycle::Deployed, Error> {
        self.runtime.set_model(model(version, sick));
        self.deploy_for(i64::MAX, &request()).await
    }

    pub(crate) async fn destroy_for(&self, life: i64) -> Result<lifecycle::Destroyed, Error> {
        let done = self.destroy_with(life, &destroy()).await;
        self.lock.lose(LOCK);
        done
    }

    pub(crate) async fn destroy_with(&self, life: i64, wish: &Destroy) -> Result<lifecycle::Destroyed, Error> {
        lifecycle::destroy(&self.client(life), wish, &Quiet, &Interrupt::default()).await
    }

    pub(crate) fn state(&self) -> Option<State> {
        self.host.content(STATE).map(|text| State::parse(STATE, &text).expect("the state file is whole"))
    }

    /// Ids of the containers by service.
    pub(crate) async fn running(&self) -> BTreeMap<String, Vec<String>> {
        preview_core::plan::container_ids(&self.engine.containers(&selector()).await.expect("lists"))
    }

    pub(crate) async fn assert_nothing_left(&self, when: &str) {
        let inventory = self.engine.inventory(&selector()).await.expect("lists");
        assert!(inventory.is_empty(), "{when}: {inventory:?}");
        let left: Vec<_> = self.host.paths().into_iter().filter(|path| path.starts_with("/base/shop")).collect();
        assert!(left.is_empty(), "{when}: {left:?}");
        assert!(self.lock.held().is_empty(), "{when}");
        assert!(!self.hosts().contains(&format!("pr-7.{ZONE}")), "{when}: {:?}", self.hosts());
    }
}

pub(crate) fn selector() -> Selector {
    Selector::preview("shop", "pr-7")
}

pub(crate) fn target() -> Target {
    Target { app: "shop".into(), name: "pr-7".into(), project: "shop_pr-7".into() }
}

pub(crate) fn request() -> Deploy {
    Deploy {
        repository: Some("acme/shop".into()),
        owner: Some("octocat".into()),
        ..Deploy::new(target(), Subject::Pull(7), "me", "r")
    }
}

pub(crate) fn destroy() -> Destroy {
    Destroy {
        target: target(),
        whose: None,
        who: "me".into(),
        wait: Duration::from_secs(1),
        event_at: None,
        run: Some("r".into()),
    }
}

pub(crate) fn numbered(number: u64) -> Deploy {
    let name = format!("pr-{number}");
    let target = Target { app: "shop".into(), project: format!("shop_{name}"), name };
    Deploy { target, subject: Subject::Pull(number), ..request() }
}

pub(crate) fn project() -> Project {
    let network = "proxy".to_owned();
    let traefik = Traefik { network, entrypoint: None, tls: None, cert_resolver: None };
    let hosts = BTreeSet::from([format!("pr-7.{ZONE}")]);
    Project { proxy: Proxy::Traefik(traefik), routes: Some(vec![]), hosts, ..Project::new("/", &[]) }
}

pub(crate) fn failed(done: Result<lifecycle::Deployed, Error>) -> Box<lifecycle::FailureReport> {
    match done {
        Err(Error::Failed(report)) => report,
        other => panic!("not a failed deploy: {other:?}"),
    }
}
