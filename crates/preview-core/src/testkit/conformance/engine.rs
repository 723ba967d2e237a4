//! What the contract of [`Engine`] promises. [`suite`] panics at the first promise that an adapter does not keep.

mod processes;
mod reading;
mod removal;
mod volumes;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;

use crate::engine::{Container, Engine};
use crate::fault::{Fault, FaultKind};
use crate::ownership::{self, Selector};

/// How long something may take that an engine does by itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the process of a container does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Runs {
    /// Waits until it is stopped.
    #[default]
    Idle,
    /// Prints the lines [`PRINTED`], alternately on standard output and standard error, then waits.
    Prints,
    /// Ends at once with this exit code.
    Exits(i64),
}

/// What [`Runs::Prints`] prints; the second line goes to standard error.
pub const PRINTED: [&str; 3] = ["one\n", "two\n", "three\n"];

/// What the health check of a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Passes.
    Passes,
    /// Fails, and prints `refused`.
    Fails,
    /// Has not run yet, and does not within the next minutes.
    Waits,
}

/// A container that a check needs.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What its process does.
    pub runs: Runs,
    /// Its health check, if it has one.
    pub check: Option<Check>,
    /// Whether it is made only, and not started.
    pub only_made: bool,
    /// The image; the fixture's own without it.
    pub image: Option<String>,
    /// A network to attach it to.
    pub network: Option<String>,
    /// A volume to mount.
    pub volume: Option<String>,
    /// A port of the host to publish port 80 on, over TCP.
    pub port: Option<u16>,
    /// Limit of memory, bytes.
    pub memory: Option<u64>,
    /// Whether the engine starts it again whenever it ends (`always`).
    pub restarts: bool,
}

/// Makes on the engine what the trait itself cannot make, and takes all of it away when it is dropped.
///
/// Processes that the suite starts: `echo`, `cat`, `pwd`, `sh -c 'echo $WORD'`, `sh -c 'echo no >&2; exit 3'`, `/no/such/program`.
#[async_trait]
pub trait EngineFixture: Send + Sync {
    /// The name of an application that nothing else on this engine uses; also the start of the names of all objects.
    fn app(&self) -> &str;

    /// An image that is here, with a shell in it.
    fn image(&self) -> &str;

    /// An image in a registry that does not answer.
    fn unreachable_image(&self) -> &str;

    /// A port of the host that is free.
    fn free_port(&self) -> u16;

    /// Makes a container (and starts it); returns its id. One that [exits](Runs::Exits) has done so on return.
    async fn container(&self, spec: Spec) -> String;

    /// Kills the process of a container.
    async fn kill(&self, container: &str);

    /// Removes a container that is not ours.
    async fn take(&self, container: &str);

    /// Makes a network.
    async fn network(&self, name: &str, labels: BTreeMap<String, String>);

    /// Makes a volume.
    async fn volume(&self, name: &str, labels: BTreeMap<String, String>);

    /// Makes an image with labels, different from every other one; without a name if `reference` is `None`. Returns its id.
    async fn build(&self, reference: Option<&str>, labels: BTreeMap<String, String>) -> String;

    /// Makes an image with labels that declares a volume at this path, and a port; returns its id.
    async fn declaring(&self, labels: BTreeMap<String, String>, volume: &str) -> String;
}

/// Checks every promise, one after the other, on an engine where only objects of the fixture's application are touched.
///
/// # Panics
/// At the first promise that is not kept, with its wording.
pub async fn suite(engine: &dyn Engine, fixture: &dyn EngineFixture) {
    let suite = Suite { engine, fixture };
    suite.reading().await;
    suite.processes().await;
    suite.removal().await;
    suite.volumes().await;
}

struct Suite<'a> {
    engine: &'a dyn Engine,
    fixture: &'a dyn EngineFixture,
}

impl Suite<'_> {
    fn preview(&self, name: &str) -> Selector {
        Selector::preview(self.fixture.app(), name)
    }

    fn name(&self, rest: &str) -> String {
        format!("{}-{rest}", self.fixture.app())
    }

    /// A container of a preview.
    fn spec(&self, preview: &str, name: &str) -> Spec {
        let mut labels = self.preview(preview).labels();
        labels.insert(ownership::COMPOSE_SERVICE.to_owned(), name.to_owned());
        Spec { name: self.name(name), labels, ..Spec::default() }
    }

    /// A container that looks like one of a preview, but is not ours.
    fn foreign(&self, preview: &str, name: &str) -> Spec {
        let mut spec = self.spec(preview, name);
        spec.labels.remove(ownership::MANAGED);
        spec
    }

    async fn only(&self, preview: &str) -> Container {
        let mut found = ok(self.engine.containers(&self.preview(preview)).await, "containers are listed");
        assert_eq!(found.len(), 1, "one container in preview {preview}: {found:#?}");
        found.remove(0)
    }

    /// Removes a preview between checks.
    async fn clear(&self, preview: &str) {
        ok(self.engine.remove(&self.preview(preview), &[]).await, "a preview is removed");
    }
}

/// The value, or a panic that tells the promise and the whole fault.
#[track_caller]
fn ok<T>(result: Result<T, Fault>, promise: &str) -> T {
    match result {
        Ok(value) => value,
        Err(fault) => panic!("{promise}: {} ({:?})", fault.chain(), fault.kind),
    }
}

/// The fault, which must be of this kind.
#[track_caller]
fn fails<T>(result: Result<T, Fault>, kind: FaultKind, promise: &str) -> Fault {
    match result {
        Ok(_) => panic!("{promise}: there was no fault"),
        Err(fault) => {
            assert_eq!(fault.kind, kind, "{promise}: {}", fault.chain());
            fault
        }
    }
}

/// The next item of a stream, which must come soon; `None` at its end.
async fn next<T>(stream: &mut BoxStream<'static, Result<T, Fault>>, promise: &str) -> Option<T> {
    match tokio::time::timeout(PATIENCE, stream.next()).await {
        Ok(item) => item.map(|item| ok(item, promise)),
        Err(_) => panic!("{promise}: nothing came for {PATIENCE:?}"),
    }
}
