//! What may pass is tried again, at most twice; what cannot is not; and either ends with its failure code.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use preview_core::failure::FailureCode;
use preview_core::fault::{Fault, FaultKind};
use preview_core::lifecycle::{self, Client, Deployed, Error, Event, Interrupt, Observer};
use preview_core::secret::Redactor;
use preview_core::state::State;
use preview_core::testkit::engine::MemoryEngine;
use preview_core::testkit::host::MemoryHost;
use preview_core::testkit::lock::MemoryLock;
use preview_core::testkit::runtime::MemoryRuntime;
use serde_json::{Value, json};

use crate::world::{project, request};

struct World {
    engine: MemoryEngine,
    host: Arc<MemoryHost>,
    runtime: MemoryRuntime,
    warnings: Mutex<Vec<String>>,
}

impl Observer for World {
    fn event(&self, event: &Event<'_>) {
        if let Event::Warning(text) = event {
            self.warnings.lock().expect("whole").push((*text).to_owned());
        }
    }
}

/// `web` is built, `db` is pulled.
fn model(sick: bool) -> Value {
    let environment = if sick { json!({"SICK": "no database"}) } else { json!({}) };
    json!({
        "services": {
            "web": {"build": {"context": "/"}, "environment": environment, "networks": {"default": null}},
            "db": {"image": "db:1", "networks": {"default": null}},
        },
        "networks": {"default": {}},
    })
}

impl World {
    fn new() -> Self {
        let engine = MemoryEngine::new();
        engine.add_network("proxy", &BTreeMap::new());
        let runtime = MemoryRuntime::new(engine.clone());
        runtime.set_model(model(false));
        Self { engine, host: Arc::default(), runtime, warnings: Mutex::default() }
    }

    async fn deploy(&self) -> Result<Deployed, Error> {
        let client = Client {
            host: self.host.clone(),
            engine: Arc::new(self.engine.clone()),
            lock: Arc::new(MemoryLock::default()),
            runtime: Arc::new(self.runtime.clone()),
            dns: None,
            base_dir: "/base".to_owned(),
            proxy: preview_core::proxy::Proxy::None,
        };
        let (connect, redactor, interrupt) =
            (std::future::ready(Ok(client)), Redactor::default(), Interrupt::default());
        lifecycle::deploy(connect, &self.runtime, &project(), &request(), self, &redactor, &interrupt).await
    }

    fn fail(&self, operation: &'static str, fault: Fault) {
        match operation {
            "pull" => self.engine.fail_next("pull", fault),
            _ => self.runtime.fail_next(operation, fault),
        }
    }

    fn calls(&self, operation: &str) -> usize {
        self.engine.calls().iter().chain(&self.runtime.calls()).filter(|call| **call == operation).count()
    }

    fn retries(&self) -> usize {
        self.warnings.lock().expect("whole").iter().filter(|text| text.ends_with("trying again")).count()
    }
}

const OPERATIONS: [&str; 3] = ["pull", "build", "up"];

#[tokio::test]
async fn what_may_pass_is_tried_three_times_in_all() {
    let fault = || Fault::new(FaultKind::Unreachable, "do it", "the daemon blinked").transient();
    let each = OPERATIONS.map(|operation| async move {
        let world = World::new();
        for _ in 0..2 {
            world.fail(operation, fault());
        }
        let begun = std::time::Instant::now();
        world.deploy().await.unwrap_or_else(|error| panic!("{operation}: {}", error.chain()));
        assert_eq!((world.calls(operation), world.retries()), (3, 2), "{operation}");
        assert!(begun.elapsed().as_millis() >= 1_500, "{operation} is not tried again at once");

        let world = World::new();
        for _ in 0..3 {
            world.fail(operation, fault());
        }
        let error = world.deploy().await.expect_err("it does not pass");
        assert_eq!(error.failure(), FailureCode::EngineUnreachable, "{operation}");
        assert_eq!(world.retries(), 2, "{operation}");
    });
    futures_util::future::join_all(each).await;
}

#[tokio::test]
async fn what_cannot_pass_is_tried_once_and_has_its_code() {
    for (operation, kind, code) in [
        ("pull", FaultKind::Denied, FailureCode::ImagePullDenied),
        ("pull", FaultKind::NotFound, FailureCode::ImageNotFound),
        ("pull", FaultKind::Failed, FailureCode::ImagePullFailed),
        ("pull", FaultKind::NoSpace, FailureCode::DiskFull),
        ("build", FaultKind::Failed, FailureCode::BuildFailed),
        ("build", FaultKind::Denied, FailureCode::ImagePullDenied),
        ("build", FaultKind::NoSpace, FailureCode::DiskFull),
        ("up", FaultKind::Failed, FailureCode::StartFailed),
        ("up", FaultKind::NotFound, FailureCode::ImageNotFound),
        ("up", FaultKind::Denied, FailureCode::VmDenied),
    ] {
        let world = World::new();
        world.fail(operation, Fault::new(kind, "do it", "again the same"));
        let error = world.deploy().await.expect_err("it fails");
        let report = error.report().expect("a report");
        assert_eq!((error.failure(), report.failure), (code, code), "{operation} {kind:?}");
        assert_eq!((world.calls(operation), world.retries()), (1, 0), "{operation} {kind:?}");
    }
}

#[tokio::test]
async fn a_sick_version_is_not_brought_up_again_and_the_state_says_why() {
    let world = World::new();
    world.deploy().await.expect("it works");
    let before = world.calls("up");
    world.runtime.set_model(model(true));
    let error = world.deploy().await.expect_err("it is sick");
    let report = error.report().expect("a report");
    assert_eq!((error.failure(), report.services[0].failure), (FailureCode::Unhealthy, FailureCode::Unhealthy));
    assert_eq!((world.calls("up") - before, world.retries()), (2, 0), "up, and up of the version before");
    let path = "/base/shop/pr-7/state.json";
    let state = State::parse(path, &world.host.content(path).expect("a state")).expect("whole");
    assert_eq!(state.failure.expect("why").code, Some(FailureCode::Unhealthy));
}

#[tokio::test]
async fn what_compose_gives_up_on_has_the_code_of_the_service_that_is_to_blame() {
    let world = World::new();
    world.deploy().await.expect("it works");
    // Compose fails while a service is broken already.
    world.engine.set_health("shop_pr-7-db-1", preview_core::engine::Health::Unhealthy);
    world.fail("up", Fault::new(FaultKind::Failed, "bring the stack up", "dependency failed to start"));
    world.runtime.set_model(model(true));
    let error = world.deploy().await.expect_err("it fails");
    assert_eq!(error.failure(), FailureCode::Unhealthy, "{}", error.chain());
}
