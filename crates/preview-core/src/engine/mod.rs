//! The Docker Engine as we need it: what exists, what it does, and its removal. Contract of every engine adapter.
//!
//! **Absence** is not an error where something is removed: what is gone counts as removed by someone else.
//! It is [`FaultKind::NotFound`](crate::fault::FaultKind::NotFound) where something is asked about or used.
//! **Selection** is always by ownership labels ([`Selector`]); an adapter never removes what does not carry them.
//! **Idempotence**: `ensure_network` and `remove` may be called again. **Cancellation**: dropping a future stops waiting;
//! what the engine has begun may still happen, so callers observe again before they conclude.
//! **Errors**: a daemon or a link that is down is `Unreachable` and transient; a registry that says no is `Denied`,
//! one that times out or answers 5xx is transient; a full disk is `NoSpace`.

pub mod docker;
pub mod pools;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::ownership::Selector;

/// Versions of the engine on the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// For example `28.5.2`.
    pub version: String,
    /// The API version that was agreed upon, for example `1.51`.
    pub api_version: String,
    /// The directory on the engine's machine where it keeps everything; empty if it does not say.
    pub root: String,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Its process runs.
    Running,
    /// Paused by someone.
    Paused,
    /// Between an exit and the next start.
    Restarting,
    /// Being removed.
    Removing,
    /// Its process ended.
    Exited,
    /// Could not be removed.
    Dead,
}

/// What a container's health check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// The container has no health check.
    None,
    /// The check has not passed yet.
    Starting,
    /// The last check passed.
    Healthy,
    /// As many checks in a row as its `retries` failed.
    Unhealthy,
}

/// A port of a container that is published on the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublishedPort {
    /// Address on the host.
    pub host_ip: Option<IpAddr>,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the container.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// One container, as a list shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// Full id.
    pub id: String,
    /// Name, without the leading slash.
    pub name: String,
    /// The image as it was named when the container was made.
    pub image: String,
    /// The id of that image (`sha256:…`).
    pub image_id: String,
    /// Where it is in its life.
    pub state: ContainerState,
    /// What its health check says.
    pub health: Health,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// Ports that are published on the host; only while it runs.
    pub ports: Vec<PublishedPort>,
    /// Address in each network that it is attached to; only while it runs.
    pub networks: BTreeMap<String, IpAddr>,
    /// Names of the volumes that it mounts.
    pub volumes: BTreeSet<String>,
}

impl Container {
    /// Names of the volumes that it mounts which nobody gave a name.
    pub fn anonymous_volumes(&self) -> impl Iterator<Item = &String> {
        self.volumes.iter().filter(|name| is_anonymous(name))
    }

    /// The Compose service that the container belongs to.
    #[must_use]
    pub fn service(&self) -> Option<&str> {
        self.labels.get(crate::ownership::COMPOSE_SERVICE).map(String::as_str)
    }
}

/// Whether this is the name of a volume that nobody gave one: engines up to 22 do not mark them otherwise.
#[must_use]
pub fn is_anonymous(volume: &str) -> bool {
    volume.len() == 64 && volume.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What only a closer look at one container tells.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerDetail {
    /// As in the list; `ports` and `networks` too.
    pub container: Container,
    /// Exit code of the last run; meaningful once it has exited.
    pub exit_code: i64,
    /// Whether the kernel ended it for lack of memory.
    pub oom_killed: bool,
    /// The engine's own word on why it could not start; empty if there is none.
    pub error: String,
    /// How often the engine has started it again.
    pub restarts: i64,
    /// Whether the engine starts it again when it ends with success.
    pub restarts_on_success: bool,
    /// Output of the last health check that failed.
    pub health_output: Option<String>,
}

/// A network, volume or image that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Id for networks and images, name for volumes.
    pub id: String,
    /// Name; for images the first tag, or the id.
    pub name: String,
    /// All labels.
    pub labels: BTreeMap<String, String>,
}

/// What an image says of the containers that are made from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageFacts {
    /// Paths of its volumes (`VOLUME`): each container has an anonymous volume there, unless something else is mounted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
    /// Whether it says that it listens on a port (`EXPOSE`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exposes: bool,
}

/// Everything of ours that a selector means.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    /// Containers, stopped ones too.
    pub containers: Vec<Container>,
    /// Networks.
    pub networks: Vec<Object>,
    /// Volumes.
    pub volumes: Vec<Object>,
    /// Images that were built for a preview (they carry its labels).
    pub images: Vec<Object>,
}

impl Inventory {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.networks.is_empty() && self.volumes.is_empty() && self.images.is_empty()
    }
}

impl std::ops::AddAssign for Removed {
    fn add_assign(&mut self, more: Self) {
        self.containers += more.containers;
        self.networks += more.networks;
        self.volumes += more.volumes;
        self.images += more.images;
    }
}

/// How many objects of each kind were removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    /// Containers.
    pub containers: usize,
    /// Networks.
    pub networks: usize,
    /// Volumes.
    pub volumes: usize,
    /// Images.
    pub images: usize,
}

/// Something happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerEvent {
    /// Full id.
    pub id: String,
    /// The engine's word: `start`, `die`, `oom`, `health_status: healthy`, `destroy`, ….
    pub action: String,
}

/// A step of a pull, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullProgress {
    /// Bytes that are here.
    pub current: u64,
    /// Bytes in all, as far as known.
    pub total: u64,
    /// What is going on.
    pub status: String,
}

/// Name and password for a registry. `None` fields are not sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    /// User.
    pub username: Option<String>,
    /// Password or token.
    pub password: Option<crate::secret::Secret<String>>,
    /// Identity token.
    pub identity_token: Option<crate::secret::Secret<String>>,
}

/// Which part of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Only the last so many lines; all without it.
    pub tail: Option<u32>,
    /// Go on with what is written from now on.
    pub follow: bool,
    /// Put the time in front of each line.
    pub timestamps: bool,
    /// Only what was written after this time, seconds since 1970.
    pub since: Option<i64>,
}

/// Bytes from a process in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Standard output.
    Stdout(bytes::Bytes),
    /// Standard error.
    Stderr(bytes::Bytes),
}

/// A process to run in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments; no shell looks at them.
    pub argv: Vec<String>,
    /// User, as in `docker exec --user`.
    pub user: Option<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// Additional environment, `KEY=value`.
    pub env: Vec<String>,
    /// Whether standard input is attached.
    pub stdin: bool,
}

/// A process that runs in a container.
pub struct Exec {
    /// What it prints, until it ends.
    pub output: BoxStream<'static, Result<Chunk, Fault>>,
    /// Its standard input, if that was asked for; dropping it closes it.
    pub input: Option<std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>>,
    /// Its id, for [`Engine::exec_exit_code`].
    pub id: String,
}

/// What a container uses at this moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Memory in use without the page cache, bytes.
    pub memory: u64,
    /// The limit of memory, bytes; 0 without one.
    pub memory_limit: u64,
    /// CPU time used since the start, nanoseconds.
    pub cpu_total: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// Bytes on the engine's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DiskUse {
    /// Images.
    pub images: u64,
    /// Writable layers of containers.
    pub containers: u64,
    /// Volumes.
    pub volumes: u64,
    /// Build cache.
    pub build_cache: u64,
}

/// What to prune.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prune {
    /// Untagged images that carry the selector's labels.
    DanglingImages(Selector),
    /// Build cache beyond so many bytes, the longest unused first.
    BuildCache {
        /// Bytes that may stay.
        keep: u64,
    },
}

/// A tar archive, piece by piece.
pub type Archive = BoxStream<'static, Result<bytes::Bytes, Fault>>;

/// What is at a path of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; where it leads does not matter.
    Link,
    /// A device, a socket, a pipe.
    Other,
}

/// Whose a file is, and what they may do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// The bits of its mode.
    pub mode: u32,
    /// Its owner.
    pub uid: u64,
    /// Its group.
    pub gid: u64,
}

/// A Docker engine.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Versions; also the proof that the engine answers.
    async fn info(&self) -> Result<EngineInfo, Fault>;

    /// Containers that are meant, stopped ones too, oldest first.
    async fn containers(&self, selector: &Selector) -> Result<Vec<Container>, Fault>;

    /// Everything that is meant; the four kinds are asked for at the same time.
    async fn inventory(&self, selector: &Selector) -> Result<Inventory, Fault>;

    /// What already has the names that a Compose project of this name uses, whoever made it: containers that Compose counts to the
    /// project, volumes and networks whose names begin with `<project>_`, and the network `beside`. Images are not looked for.
    async fn project_objects(&self, project: &str, beside: Option<&str>) -> Result<Inventory, Fault>;

    /// The ids of the images that were built for what is meant (they carry its labels), by each of their names.
    async fn built_images(&self, selector: &Selector) -> Result<BTreeMap<String, String>, Fault>;

    /// A closer look at one container, by id or name.
    async fn inspect(&self, id: &str) -> Result<ContainerDetail, Fault>;

    /// Ports that any container of this engine, ours or not, publishes or will publish on the host.
    async fn published_ports(&self) -> Result<BTreeSet<u16>, Fault>;

    /// The ids of those of these images that are here, by the name that was asked for. One request, however many.
    async fn image_ids(&self, references: &BTreeSet<String>) -> Result<BTreeMap<String, String>, Fault>;

    /// The labels of those of these images that are here, by the name that was asked for: their containers inherit them. One request.
    async fn image_labels(
        &self,
        references: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, BTreeMap<String, String>>, Fault>;

    /// What those of these images (by id) that are here say of their containers. One request for each, at the same time.
    async fn image_facts(&self, ids: &BTreeSet<String>) -> Result<BTreeMap<String, ImageFacts>, Fault>;

    /// Pulls an image; the stream ends with the pull, at the latest with an error.
    async fn pull(
        &self,
        reference: &str,
        auth: Option<&RegistryAuth>,
    ) -> Result<BoxStream<'static, Result<PullProgress, Fault>>, Fault>;

    /// Gives an image (by id or name) one more name, `repository:tag`, taking that name from any other.
    async fn tag(&self, image: &str, reference: &str) -> Result<(), Fault>;

    /// Takes this name from an image, and removes the image with its last name; true if the name is gone by that. An image that
    /// a container was made from keeps its last name.
    async fn remove_image(&self, reference: &str) -> Result<bool, Fault>;

    /// What happens to the containers that are meant, from now on. The subscription stands when this returns:
    /// nothing that happens afterwards is missed.
    async fn watch(&self, selector: &Selector) -> Result<BoxStream<'static, Result<ContainerEvent, Fault>>, Fault>;

    /// Output of a container, its standard output and error in the order written.
    async fn logs(&self, id: &str, options: &LogOptions) -> Result<BoxStream<'static, Result<Chunk, Fault>>, Fault>;

    /// Starts a process in a running container.
    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Exec, Fault>;

    /// Exit code of a process that [`exec`](Self::exec) started, once its output has ended.
    async fn exec_exit_code(&self, exec_id: &str) -> Result<i64, Fault>;

    /// What a running container uses.
    async fn stats(&self, id: &str) -> Result<Stats, Fault>;

    /// What the engine holds on disk.
    async fn disk_use(&self) -> Result<DiskUse, Fault>;

    /// Makes sure that a bridge network of this name exists; true if it was made now. An existing one is left as it is.
    async fn ensure_network(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<bool, Fault>;

    /// Makes sure that a volume exists and that its files can be changed from here; returns its directory on the engine's machine.
    ///
    /// The engine changes the files with its own rights, whoever owns them. For that, a container holds on to the volume that is never
    /// started and runs nothing; [`containers`](Self::containers) leaves it out, [`remove`](Self::remove) takes it away with the rest.
    async fn open_volume(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<String, Fault>;

    /// Unpacks a tar archive into an [open](Self::open_volume) volume, entry by entry, in order. A directory is merged with one that is there; anything
    /// else takes the place of what is there, whatever that is. Hard links lead to paths of the volume; what they lead to gets the owner of the link's entry, and on
    /// newer engines its mode and time. Directories that are missing are made.
    /// A symbolic link that is relative and leads out of the volume is an error, as is a hard link to nothing. A failure leaves what was unpacked before it.
    async fn unpack(&self, volume: &str, archive: Archive) -> Result<(), Fault>;

    /// Removes files, and directories with all that is in them, from an open volume; absence is fine.
    async fn remove_files(&self, volume: &str, paths: &[String]) -> Result<(), Fault>;

    /// What is at these paths of an open volume; those at which nothing is are left out. Links are not followed.
    async fn file_kinds(&self, volume: &str, paths: &[String]) -> Result<BTreeMap<String, FileKind>, Fault>;

    /// The rights of the files and links at these paths of an open volume; those at which nothing is are left out. No path is a directory.
    async fn file_rights(&self, volume: &str, paths: &[String]) -> Result<BTreeMap<String, Rights>, Fault>;

    /// The content of a small regular file of an open volume, if it is there.
    async fn read_file(&self, volume: &str, path: &str) -> Result<Option<Vec<u8>>, Fault>;

    /// Whether there is a network of exactly this name.
    async fn has_network(&self, name: &str) -> Result<bool, Fault>;

    /// Remembers, as an object of their preview, which volumes that nobody named these containers mount. Whoever removes the preview removes these volumes too, even
    /// where their containers have long gone. Nothing is written where there are none.
    async fn note_anonymous(&self, containers: &[Container]) -> Result<(), Fault>;

    /// Ends a container's processes, by their signal and within their time, and starts it again; one that is gone is none to start. The caller knows that
    /// it is ours.
    async fn restart(&self, id: &str) -> Result<(), Fault>;

    /// Removes one container by its full id, as [`remove`](Self::remove) does; true if it was there. The caller knows that it is ours.
    async fn remove_container(&self, id: &str) -> Result<bool, Fault>;

    /// Removes everything that is meant: containers (killed, with all volumes that they mount and nobody named), then networks, volumes and images.
    /// What others hold on to (a foreign container in our network) is a `Conflict` that names it.
    ///
    /// `seen` are containers of the same selection that an earlier look found: they go at once, while the engine is asked what there is
    /// now. The others go then, so what is `seen` may be old, or nothing.
    async fn remove(&self, selector: &Selector, seen: &[Container]) -> Result<Removed, Fault>;

    /// Frees disk; returns the bytes freed.
    async fn prune(&self, what: &Prune) -> Result<u64, Fault>;
}
