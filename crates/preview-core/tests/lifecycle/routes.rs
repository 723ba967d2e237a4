//! A proxy that is told by files: its routes are those of the version that runs, wherever a run fails or dies.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::{Arc, Mutex};

use preview_core::fault::{Fault, FaultKind};
use preview_core::lifecycle::{self, Error, Interrupt, Quiet, Restored};
use preview_core::plan::Kind;
use preview_core::project::{AccessSpec, Project, RouteSpec};
use preview_core::proxy::{FileKind, FileProxy, Proxy};
use preview_core::secret::Redactor;
use preview_core::testkit::engine::MemoryContainer;
use preview_core::testkit::host::HostCall;
use serde_json::{Value, json};

use crate::sweep::sweeping;
use crate::world::{LOCK, World, failed, project, request};

const PROXY: &str = "preview-proxy";

fn proxy() -> Proxy {
    Proxy::Files(FileProxy {
        kind: FileKind::Caddy,
        network: "proxy".into(),
        container: PROXY.into(),
        routes: "/routes".into(),
        certificate: None,
        tls: None,
        pages: None,
    })
}

fn stack(version: u32, sick: bool) -> Value {
    let mut web = json!({
        "image": "db:1", "environment": {"VERSION": version.to_string()}, "healthcheck": {"test": ["CMD", "true"]},
        "networks": {"default": null},
    });
    if sick {
        web["environment"]["SICK"] = json!("no");
    }
    json!({"services": {"web": web}, "networks": {"default": {}}})
}

/// A world with a proxy, which keeps what it is told.
struct Town {
    world: World,
    told: Arc<Mutex<BTreeMap<String, String>>>,
    /// What the host answers to the first change after the proxy was told.
    after: Arc<Mutex<Option<Fault>>>,
}

impl Town {
    fn new() -> Self {
        let (world, after) = (World::new(), Arc::<Mutex<Option<Fault>>>::default());
        let told: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
        world.engine.add(MemoryContainer::new(PROXY, "caddy:2"));
        let (memory, fault, host) = (told.clone(), after.clone(), world.host.clone());
        world.engine.on_exec(move |container, request, typed| {
            assert_eq!(container, PROXY);
            if request.argv.len() > 5 {
                let mut files = BTreeMap::new();
                for entry in tar::Archive::new(typed).entries().expect("a stream") {
                    let (mut entry, mut text) = (entry.expect("whole"), String::new());
                    entry.read_to_string(&mut text).expect("text");
                    files.insert(entry.path().expect("a path").display().to_string(), text);
                }
                *memory.lock().expect("whole") = files;
                if let Some(fault) = fault.lock().expect("whole").take() {
                    host.fail_next(HostCall::Apply, fault);
                }
            }
            (0, vec![])
        });
        Self { world, told, after }
    }

    /// Which version's routes the proxy knows: each lets in an address of its own.
    fn told(&self) -> Option<u32> {
        let told = self.told.lock().expect("whole");
        (1..9).find(|version| told.values().any(|text| text.contains(&format!("192.0.2.{version}"))))
    }

    async fn deploy(&self, life: i64, model: Value, routes: u32) -> Result<lifecycle::Deployed, Error> {
        self.world.runtime.set_model(model);
        let url = Some("https://pr-7.example.com".to_owned());
        let route = RouteSpec { service: "web".into(), port: 8080, url, ..RouteSpec::default() };
        let access = AccessSpec { allow_ips: vec![format!("192.0.2.{routes}")], ..AccessSpec::default() };
        let project = Project { proxy: proxy(), routes: Some(vec![route]), access, ..project() };
        let client = lifecycle::Client { proxy: proxy(), ..self.world.client(life) };
        let (connect, redactor, never) = (std::future::ready(Ok(client)), Redactor::default(), Interrupt::default());
        let runtime = &self.world.runtime;
        let done = lifecycle::deploy(connect, runtime, &project, &request(), &Quiet, &redactor, &never).await;
        self.world.lock.lose(LOCK);
        done
    }

    async fn sweep(&self) -> lifecycle::Swept {
        let client = lifecycle::Client { proxy: proxy(), ..self.world.client(i64::MAX) };
        lifecycle::sweep(&client, &sweeping(), &Quiet, &Interrupt::default()).await.expect("swept")
    }

    fn remembered(&self) -> usize {
        self.world.host.paths().iter().filter(|path| path.contains("/pr-7/routes-")).count()
    }
}

const ALL: i64 = i64::MAX;

#[tokio::test]
async fn a_failure_after_the_proxy_was_told_gives_it_back_what_it_knew() {
    let town = Town::new();
    town.deploy(ALL, stack(1, false), 1).await.expect("created");
    assert_eq!((town.told(), town.remembered()), (Some(1), 1));
    *town.after.lock().expect("whole") = Some(Fault::new(FaultKind::NoSpace, "write", "the disk is full"));
    let report = failed(town.deploy(ALL, stack(2, false), 2).await);
    assert_eq!((report.restored, town.told()), (Restored::Previous, Some(1)));
    assert_eq!(town.deploy(ALL, stack(1, false), 1).await.expect("again").kind, Some(Kind::Unchanged));

    // What concerns the proxy alone is part of what is good, too.
    assert_eq!(town.deploy(ALL, stack(1, false), 3).await.expect("again").kind, Some(Kind::Unchanged));
    assert_eq!((town.told(), town.remembered()), (Some(3), 1));
    *town.after.lock().expect("whole") = Some(Fault::new(FaultKind::NoSpace, "write", "the disk is full"));
    let report = failed(town.deploy(ALL, stack(2, false), 2).await);
    assert_eq!((report.restored, town.told()), (Restored::Previous, Some(3)));
    town.deploy(ALL, stack(4, false), 4).await.expect("updated");
    assert_eq!((town.told(), town.remembered()), (Some(4), 1));
    town.world.destroy_for(ALL).await.expect("destroyed");
    town.world.assert_nothing_left("destroyed").await;
}

#[tokio::test]
async fn a_run_that_dies_after_the_proxy_was_told_is_mended() {
    let each = (0..20).map(|life| async move {
        let begin = async || {
            let town = Town::new();
            town.deploy(ALL, stack(1, false), 1).await.expect("created");
            let _ = town.deploy(life, stack(2, false), 2).await;
            town
        };
        let town = begin().await;
        let (state, told) = (town.world.state().expect("a state"), town.told());
        let path = format!("/base/shop/pr-7/{}", state.good.as_ref().expect("there was one").stack);
        let good = town.world.host.content(&path).expect("its stack");
        let good = if good.contains(r#""VERSION":"2""#) { 2 } else { 1 };
        let report = failed(town.deploy(ALL, stack(3, true), 3).await);
        assert_eq!((report.restored, town.told()), (Restored::Previous, Some(good)), "after {life} changes");

        let town = begin().await;
        assert_eq!(town.sweep().await.exit_code(), 0, "after {life} changes");
        assert_eq!(town.told(), Some(good), "after {life} changes");
        state.phase.in_flight() && told == Some(2)
    });
    let torn = futures_util::future::join_all(each).await;
    assert!(torn.contains(&true), "a run died after the proxy knew what it brought");
}
