//! A Docker engine in memory: the contract of [`Engine`](crate::engine::Engine) without containers, and ways to script it.
//!
//! ```
//! # use preview_core::testkit::engine::{MemoryContainer, MemoryEngine};
//! # use preview_core::engine::{Engine, Health};
//! # use preview_core::ownership::{self, Selector};
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let engine = MemoryEngine::new();
//! engine.add(MemoryContainer::new("pr-7-web-1", "app:1").label(ownership::MANAGED, "true").health(Health::Starting));
//! engine.set_health("pr-7-web-1", Health::Healthy);
//! assert_eq!(engine.containers(&Selector::Managed).await.unwrap()[0].health, Health::Healthy);
//! assert!(engine.changes().is_empty());
//! # }
//! ```

mod adapter;
mod files;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use self::files::Files;
pub use self::files::MemoryFile;
use crate::engine::docker::reference::familiar;
use crate::engine::{
    Chunk, Container, ContainerDetail, ContainerEvent, ContainerState, ExecRequest, Health, ImageFacts, PublishedPort,
    Stats,
};
use crate::fault::Fault;
use crate::ownership::Selector;

/// Operations that change something; what [`MemoryEngine::changes`] looks for.
const CHANGES: [&str; 12] = [
    "pull",
    "tag",
    "exec",
    "ensure_network",
    "open_volume",
    "unpack",
    "remove_files",
    "note_anonymous",
    "restart",
    "remove_container",
    "remove",
    "prune",
];

/// An engine in memory. Clones are the same engine.
#[derive(Clone, Default)]
pub struct MemoryEngine(Arc<Mutex<World>>);

/// What answers to a process that is started in a container: the container's name, the request and all of its standard
/// input give its exit code and output.
type ExecHandler = Arc<dyn Fn(&str, &ExecRequest, &[u8]) -> (i64, Vec<Chunk>) + Send + Sync>;

#[derive(Default)]
struct World {
    containers: Vec<MemoryContainer>,
    networks: BTreeMap<String, BTreeMap<String, String>>,
    volumes: BTreeMap<String, BTreeMap<String, String>>,
    /// The files of volumes that were opened.
    files: BTreeMap<String, Files>,
    /// Volumes without a name that were noted, each with the labels of its container.
    noted: BTreeMap<String, BTreeMap<String, String>>,
    images: Vec<MemoryImage>,
    build_cache: Vec<(Duration, u64)>,
    unpullable: BTreeMap<String, VecDeque<Fault>>,
    watchers: Vec<(Selector, UnboundedSender<ContainerEvent>)>,
    exec: Option<ExecHandler>,
    exit_codes: BTreeMap<String, i64>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    calls: Vec<&'static str>,
    made: u64,
}

/// A container to be.
#[derive(Clone, Debug)]
pub struct MemoryContainer {
    /// What inspection shows; ports, addresses and health show only while it runs.
    pub detail: ContainerDetail,
    /// Networks that it is attached to, by name.
    pub networks: BTreeSet<String>,
    /// Volumes that it mounts, by name.
    pub volumes: BTreeSet<String>,
    /// What it uses while it runs.
    pub stats: Stats,
    logs: Vec<(i64, Chunk)>,
    followers: Vec<UnboundedSender<Chunk>>,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryImage {
    /// `sha256:…`.
    pub id: String,
    /// Names, `repository:tag`.
    pub tags: BTreeSet<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// How long ago it was made.
    pub age: Duration,
    /// Bytes.
    pub size: u64,
    /// What it says of its containers.
    pub facts: ImageFacts,
}

impl MemoryContainer {
    /// A running container without a health check.
    pub fn new(name: impl Into<String>, image: impl Into<String>) -> Self {
        let container = Container {
            id: String::new(),
            name: name.into(),
            image: image.into(),
            image_id: String::new(),
            state: ContainerState::Running,
            health: Health::None,
            labels: BTreeMap::new(),
            created: 0,
            ports: Vec::new(),
            networks: BTreeMap::new(),
            volumes: Default::default(),
        };
        Self {
            detail: ContainerDetail {
                container,
                exit_code: 0,
                oom_killed: false,
                error: String::new(),
                restarts: 0,
                restarts_on_success: false,
                health_output: None,
            },
            networks: BTreeSet::new(),
            volumes: BTreeSet::new(),
            stats: Stats { memory: 1 << 20, memory_limit: 0, cpu_total: 1, pids: 1 },
            logs: Vec::new(),
            followers: Vec::new(),
        }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.detail.container.labels.insert(key.into(), value.into());
        self
    }

    /// Adds labels.
    #[must_use]
    pub fn labels(mut self, labels: &BTreeMap<String, String>) -> Self {
        self.detail.container.labels.extend(labels.clone());
        self
    }

    /// Sets the state.
    #[must_use]
    pub fn state(mut self, state: ContainerState) -> Self {
        self.detail.container.state = state;
        self
    }

    /// Gives it a health check that says this.
    #[must_use]
    pub fn health(mut self, health: Health) -> Self {
        self.detail.container.health = health;
        self
    }

    /// Publishes a port on the host.
    #[must_use]
    pub fn port(mut self, host_port: u16, container_port: u16) -> Self {
        let protocol = "tcp".to_owned();
        self.detail.container.ports.push(PublishedPort { host_ip: None, host_port, container_port, protocol });
        self
    }

    /// Attaches it to a network.
    #[must_use]
    pub fn network(mut self, name: impl Into<String>) -> Self {
        self.networks.insert(name.into());
        self
    }

    /// Mounts a volume.
    #[must_use]
    pub fn volume(mut self, name: impl Into<String>) -> Self {
        self.volumes.insert(name.into());
        self
    }

    fn is_up(&self) -> bool {
        matches!(self.detail.container.state, ContainerState::Running | ContainerState::Paused)
    }

    /// What the engine shows of it now.
    fn seen(&self) -> ContainerDetail {
        let mut detail = self.detail.clone();
        let container = &mut detail.container;
        if !self.is_up() {
            container.ports.clear();
            container.networks.clear();
        }
        if !self.is_up() && container.state != ContainerState::Restarting {
            container.health = Health::None;
        }
        detail
    }
}

impl MemoryEngine {
    /// An engine that holds nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a container, in place of one of the same name; returns its id. Its image comes to exist if it did not.
    pub fn add(&self, mut container: MemoryContainer) -> String {
        let mut world = self.world();
        let name = container.detail.container.name.clone();
        world.take_container(&name);
        let image = container.detail.container.image.clone();
        let image_id = world.image_of(&image);
        let number = world.next();
        let made = &mut container.detail.container;
        made.id = format!("{number:064x}");
        made.image_id = image_id;
        made.created = i64::try_from(number).unwrap_or_default();
        // Addresses of the form that Docker gives out.
        for (at, network) in (0..).zip(&container.networks) {
            let address = std::net::Ipv4Addr::new(172, 18 + at, (number >> 8) as u8, number as u8);
            made.networks.insert(network.clone(), address.into());
        }
        let id = made.id.clone();
        made.volumes.clone_from(&container.volumes);
        let is_up = container.is_up();
        world.containers.push(container);
        world.emit(&id, "create");
        if is_up {
            world.emit(&id, "start");
        }
        id
    }

    /// Removes one container, as `docker rm -f` would.
    pub fn take(&self, name: &str) {
        self.world().take_container(name);
    }

    /// Changes a container in any way, without an event. False if it is not there.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut MemoryContainer)) -> bool {
        self.world().container_mut(name).map(change).is_some()
    }

    /// Brings a container into another state, with its exit code, and tells those who watch.
    pub fn set_state(&self, name: &str, state: ContainerState, exit_code: i64) {
        let mut world = self.world();
        let Some(container) = world.container_mut(name) else { return };
        container.detail.container.state = state;
        container.detail.exit_code = exit_code;
        if !container.is_up() {
            container.followers.clear();
        }
        let id = container.detail.container.id.clone();
        let action = match state {
            ContainerState::Running => "start",
            ContainerState::Paused => "pause",
            ContainerState::Created | ContainerState::Removing => return,
            ContainerState::Restarting | ContainerState::Exited | ContainerState::Dead => "die",
        };
        world.emit(&id, action);
    }

    /// Changes what a container's health check says, and tells those who watch.
    pub fn set_health(&self, name: &str, health: Health) {
        let mut world = self.world();
        let Some(container) = world.container_mut(name) else { return };
        container.detail.container.health = health;
        let id = container.detail.container.id.clone();
        match health {
            Health::Healthy => world.emit(&id, "health_status: healthy"),
            Health::Unhealthy => world.emit(&id, "health_status: unhealthy"),
            Health::None | Health::Starting => {}
        }
    }

    /// Tells those who watch a container that something happened to it.
    pub fn emit(&self, name: &str, action: &str) {
        let mut world = self.world();
        if let Some(id) = world.container_mut(name).map(|container| container.detail.container.id.clone()) {
            world.emit(&id, action);
        }
    }

    /// Adds a line (or several) to a container's log. `at` is seconds since 1970.
    pub fn log(&self, name: &str, at: i64, chunk: &Chunk) {
        let mut world = self.world();
        let Some(container) = world.container_mut(name) else { return };
        let (bytes, is_error) = match chunk {
            Chunk::Stdout(bytes) => (bytes, false),
            Chunk::Stderr(bytes) => (bytes, true),
        };
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            let line = bytes.slice_ref(line);
            let line = if is_error { Chunk::Stderr(line) } else { Chunk::Stdout(line) };
            container.followers.retain(|follower| follower.send(line.clone()).is_ok());
            container.logs.push((at, line));
        }
    }

    /// Sets what answers to processes; without it every process ends with 0 and prints nothing.
    pub fn on_exec(&self, handler: impl Fn(&str, &ExecRequest, &[u8]) -> (i64, Vec<Chunk>) + Send + Sync + 'static) {
        self.world().exec = Some(Arc::new(handler));
    }

    /// Adds an image under a name, which it takes from any other; returns its id.
    pub fn add_image(&self, reference: &str, labels: &BTreeMap<String, String>) -> String {
        let mut world = self.world();
        let id = world.new_image(labels.clone());
        world.name_image(&id, reference);
        id
    }

    /// Changes an image (by id or name) in any way. False if it is not there.
    pub fn edit_image(&self, image: &str, change: impl FnOnce(&mut MemoryImage)) -> bool {
        let mut world = self.world();
        let Some(at) = world.find_image(image) else { return false };
        change(&mut world.images[at]);
        true
    }

    /// All images.
    #[must_use]
    pub fn images(&self) -> Vec<MemoryImage> {
        self.world().images.clone()
    }

    /// Adds a network.
    pub fn add_network(&self, name: impl Into<String>, labels: &BTreeMap<String, String>) {
        self.world().networks.insert(name.into(), labels.clone());
    }

    /// Names of all networks.
    #[must_use]
    pub fn networks(&self) -> Vec<String> {
        self.world().networks.keys().cloned().collect()
    }

    /// Adds a volume.
    pub fn add_volume(&self, name: impl Into<String>, labels: &BTreeMap<String, String>) {
        self.world().volumes.insert(name.into(), labels.clone());
    }

    /// Names of all volumes.
    #[must_use]
    pub fn volumes(&self) -> Vec<String> {
        self.world().volumes.keys().cloned().collect()
    }

    /// The files of a volume, by path, as they would be seen in a container.
    #[must_use]
    pub fn files(&self, volume: &str) -> BTreeMap<String, MemoryFile> {
        self.world().files.get(volume).map(|files| files.0.clone()).unwrap_or_default()
    }

    /// Writes a file into a volume, as a container would.
    pub fn write_file(&self, volume: &str, path: &str, content: &[u8]) {
        let mut world = self.world();
        world.files.entry(volume.to_owned()).or_default().put(path, MemoryFile::File(content.to_vec()));
    }

    /// Removes a file from a volume, as a container would.
    pub fn drop_file(&self, volume: &str, path: &str) {
        self.world().files.entry(volume.to_owned()).or_default().remove(path);
    }

    /// Adds a record to the build cache that was last used so long ago.
    pub fn add_build_cache(&self, unused_for: Duration, bytes: u64) {
        self.world().build_cache.push((unused_for, bytes));
    }

    /// Makes the next call of an operation fail; several faults are used one after the other.
    /// The operation is the name of a method of the trait, for example `pull`.
    pub fn fail_next(&self, operation: &str, fault: Fault) {
        self.world().faults.entry(operation.to_owned()).or_default().push_back(fault);
    }

    /// Makes the next pull of this image end its stream with an error. Every other pull succeeds.
    pub fn fail_pull(&self, reference: &str, fault: Fault) {
        self.world().unpullable.entry(familiar(reference)).or_default().push_back(fault);
    }

    /// The operations that were called so far, by the names of the methods.
    #[must_use]
    pub fn calls(&self) -> Vec<&'static str> {
        self.world().calls.clone()
    }

    /// The calls so far that change something.
    #[must_use]
    pub fn changes(&self) -> Vec<&'static str> {
        self.calls().into_iter().filter(|call| CHANGES.contains(call)).collect()
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        self.world().calls.clear();
    }
}

impl World {
    fn next(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// Notes a call; the fault that it is to fail with, if there is one.
    fn called(&mut self, operation: &'static str) -> Result<(), Fault> {
        self.calls.push(operation);
        match self.faults.get_mut(operation).and_then(VecDeque::pop_front) {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    fn container_mut(&mut self, name: &str) -> Option<&mut MemoryContainer> {
        self.containers.iter_mut().find(|made| made.detail.container.name == name || made.detail.container.id == name)
    }

    fn emit(&mut self, id: &str, action: &str) {
        let Some(labels) = self.container_mut(id).map(|container| container.detail.container.labels.clone()) else {
            return;
        };
        let event = ContainerEvent { id: id.to_owned(), action: action.to_owned() };
        self.watchers.retain(|(selector, watcher)| {
            if selector.matches(&labels) { watcher.send(event.clone()).is_ok() } else { !watcher.is_closed() }
        });
    }

    fn take_container(&mut self, name: &str) {
        let Some(container) = self.container_mut(name) else { return };
        let id = container.detail.container.id.clone();
        if container.is_up() {
            self.emit(&id, "kill");
            self.emit(&id, "die");
        }
        self.emit(&id, "destroy");
        self.containers.retain(|made| made.detail.container.id != id);
    }

    fn new_image(&mut self, labels: BTreeMap<String, String>) -> String {
        let id = format!("sha256:{:064x}", self.next());
        let (tags, age) = (BTreeSet::new(), Duration::ZERO);
        let facts = ImageFacts::default();
        self.images.push(MemoryImage { id: id.clone(), tags, labels, age, size: 1000, facts });
        id
    }

    fn find_image(&self, image: &str) -> Option<usize> {
        let name = familiar(image);
        self.images.iter().position(|known| known.id == image || known.tags.contains(&name))
    }

    fn name_image(&mut self, id: &str, reference: &str) {
        let name = familiar(reference);
        for image in &mut self.images {
            image.tags.remove(&name);
            if image.id == id {
                image.tags.insert(name.clone());
            }
        }
    }

    /// The id of an image that is or comes to be there.
    fn image_of(&mut self, reference: &str) -> String {
        if let Some(at) = self.find_image(reference) {
            return self.images[at].id.clone();
        }
        let id = self.new_image(BTreeMap::new());
        self.name_image(&id, reference);
        id
    }
}
