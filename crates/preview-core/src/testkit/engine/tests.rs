//! The engine in memory keeps the contract.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU16, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::engine::Engine as _;
use crate::fault::FaultKind;
use crate::testkit::conformance::engine::{Check, EngineFixture, PRINTED, Runs, Spec, suite};

struct Fixture {
    engine: MemoryEngine,
    port: AtomicU16,
}

fn out(text: impl Into<String>) -> Vec<Chunk> {
    vec![Chunk::Stdout(Bytes::from(text.into()))]
}

/// The few programs that the suite starts.
fn program(_container: &str, request: &ExecRequest, stdin: &[u8]) -> (i64, Vec<Chunk>) {
    let argv: Vec<_> = request.argv.iter().map(String::as_str).collect();
    match argv.as_slice() {
        ["echo", words @ ..] => (0, out(words.join(" ") + "\n")),
        ["cat"] => (0, vec![Chunk::Stdout(Bytes::copy_from_slice(stdin))]),
        ["pwd"] => (0, out(format!("{}\n", request.workdir.as_deref().unwrap_or("/")))),
        ["sh", "-c", "echo $WORD"] => {
            (0, out(request.env.iter().filter_map(|pair| pair.strip_prefix("WORD=")).collect::<String>() + "\n"))
        }
        ["sh", "-c", "echo no >&2; exit 3"] => (3, vec![Chunk::Stderr(Bytes::from_static(b"no\n"))]),
        _ => (127, out("not found\n")),
    }
}

#[async_trait]
impl EngineFixture for Fixture {
    fn app(&self) -> &'static str {
        "suite"
    }

    fn image(&self) -> &'static str {
        "busybox:1.36"
    }

    fn unreachable_image(&self) -> &'static str {
        "registry.invalid/app:1"
    }

    fn free_port(&self) -> u16 {
        self.port.fetch_add(1, Ordering::Relaxed)
    }

    async fn container(&self, spec: Spec) -> String {
        let image = spec.image.as_deref().unwrap_or(self.image());
        let mut made = MemoryContainer::new(&spec.name, image).labels(&spec.labels);
        if let Some(network) = spec.network {
            made = made.network(network);
        }
        if let Some(volume) = spec.volume {
            made = made.volume(volume);
        }
        if let Some(port) = spec.port {
            made = made.port(port, 80);
        }
        made.stats.memory_limit = spec.memory.unwrap_or(0);
        made.detail.restarts_on_success = spec.restarts;
        made = match spec.check {
            None => made,
            Some(Check::Passes) => made.health(Health::Healthy),
            Some(Check::Waits) => made.health(Health::Starting),
            Some(Check::Fails) => {
                made.detail.health_output = Some("refused\n".into());
                made.health(Health::Unhealthy)
            }
        };
        if spec.only_made {
            made = made.state(ContainerState::Created);
        }
        if let Runs::Exits(code) = spec.runs {
            made.detail.exit_code = code;
            made = made.state(ContainerState::Exited);
        }
        let id = self.engine.add(made);
        if spec.runs == Runs::Prints {
            for (at, line) in PRINTED.into_iter().enumerate() {
                let line = Bytes::from_static(line.as_bytes());
                let chunk = if at == 1 { Chunk::Stderr(line) } else { Chunk::Stdout(line) };
                self.engine.log(&id, 1_700_000_000, &chunk);
            }
        }
        id
    }

    async fn kill(&self, container: &str) {
        self.engine.set_state(container, ContainerState::Exited, 137);
    }

    async fn take(&self, container: &str) {
        self.engine.take(container);
    }

    async fn network(&self, name: &str, labels: BTreeMap<String, String>) {
        self.engine.add_network(name, &labels);
    }

    async fn volume(&self, name: &str, labels: BTreeMap<String, String>) {
        self.engine.add_volume(name, &labels);
    }

    async fn build(&self, reference: Option<&str>, labels: BTreeMap<String, String>) -> String {
        let id = self.engine.add_image(reference.unwrap_or("untagged:1"), &labels);
        if reference.is_none() {
            self.engine.edit_image(&id, |image| image.tags.clear());
        }
        id
    }

    async fn declaring(&self, labels: BTreeMap<String, String>, volume: &str) -> String {
        let id = self.build(Some("declaring:1"), labels).await;
        let facts = ImageFacts { volumes: BTreeSet::from([volume.to_owned()]), exposes: true };
        assert!(self.engine.edit_image(&id, |image| image.facts = facts));
        id
    }
}

#[tokio::test]
async fn memory_engine_keeps_the_contract() {
    let engine = MemoryEngine::new();
    engine.on_exec(program);
    let unreachable = Fault::new(FaultKind::TimedOut, "pull image", "registry.invalid/app:1").transient();
    engine.fail_pull("registry.invalid/app:1", unreachable);
    let fixture = Fixture { engine: engine.clone(), port: AtomicU16::new(8000) };
    suite(&engine, &fixture).await;
}

#[tokio::test]
async fn faults_are_used_once_and_calls_are_noted() {
    let engine = MemoryEngine::new();
    engine.fail_next("containers", Fault::new(FaultKind::Unreachable, "list containers", "").transient());
    assert_eq!(engine.containers(&Selector::Managed).await.unwrap_err().kind, FaultKind::Unreachable);
    assert!(engine.containers(&Selector::Managed).await.is_ok());
    assert_eq!(engine.calls(), ["containers", "containers"]);
    assert!(engine.changes().is_empty());
    engine.remove(&Selector::Managed, &[]).await.unwrap();
    assert_eq!(engine.changes(), ["remove"]);
}
