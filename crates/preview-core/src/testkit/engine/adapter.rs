//! The contract, kept in memory.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::{MemoryContainer, MemoryEngine, World};
use crate::engine::docker::reference::familiar;
use crate::engine::{
    Archive, Chunk, Container, ContainerDetail, ContainerEvent, ContainerState, DiskUse, Engine, EngineInfo, Exec,
    ExecRequest, FileKind, ImageFacts, Inventory, LogOptions, Object, Prune, PullProgress, RegistryAuth, Removed,
    Rights, Stats,
};
use crate::fault::{Fault, FaultKind};
use crate::ownership::{COMPOSE_PROJECT, Selector};

fn received<T: Send + 'static>(receiver: UnboundedReceiver<T>) -> BoxStream<'static, T> {
    stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }).boxed()
}

fn not_found(operation: &'static str, what: &str) -> Fault {
    Fault::new(FaultKind::NotFound, operation, what)
}

fn stamped(at: i64, chunk: Chunk) -> Chunk {
    let time = jiff::Timestamp::from_second(at).unwrap_or_default();
    let stamp = |bytes: Bytes| {
        let mut line = format!("{time:.9} ").into_bytes();
        line.extend_from_slice(&bytes);
        Bytes::from(line)
    };
    match chunk {
        Chunk::Stdout(bytes) => Chunk::Stdout(stamp(bytes)),
        Chunk::Stderr(bytes) => Chunk::Stderr(stamp(bytes)),
    }
}

impl World {
    fn listed(&self, selector: &Selector) -> Vec<Container> {
        let seen = self.containers.iter().map(|container| container.seen().container);
        let mut listed: Vec<_> = seen.filter(|container| selector.matches(&container.labels)).collect();
        listed.sort_by(|a, b| a.created.cmp(&b.created).then_with(|| a.name.cmp(&b.name)));
        listed
    }

    fn inventory(&self, selector: &Selector) -> Inventory {
        let object = |(name, labels): (&String, &BTreeMap<String, String>)| {
            let object = Object { id: name.clone(), name: name.clone(), labels: labels.clone() };
            selector.matches(labels).then_some(object)
        };
        let image = |image: &super::MemoryImage| {
            let name = image.tags.first().unwrap_or(&image.id).clone();
            let object = Object { id: image.id.clone(), name, labels: image.labels.clone() };
            selector.matches(&image.labels).then_some(object)
        };
        Inventory {
            containers: self.listed(selector),
            networks: self.networks.iter().filter_map(object).collect(),
            volumes: self.volumes.iter().filter_map(object).collect(),
            images: self.images.iter().filter_map(image).collect(),
        }
    }

    fn used_images(&self) -> BTreeSet<String> {
        self.containers.iter().map(|container| container.detail.container.image_id.clone()).collect()
    }

    fn holders(&self, holds: impl Fn(&MemoryContainer) -> bool) -> Vec<String> {
        let holders = self.containers.iter().filter(|container| holds(container));
        holders.map(|container| container.detail.container.name.clone()).collect()
    }

    /// Removes images that are meant and that no container uses; their number and bytes.
    fn remove_images(&mut self, meant: impl Fn(&super::MemoryImage) -> bool) -> (usize, u64) {
        let used = self.used_images();
        let (gone, left): (Vec<_>, Vec<_>) =
            self.images.drain(..).partition(|image| meant(image) && !used.contains(&image.id));
        self.images = left;
        (gone.len(), gone.iter().map(|image| image.size).sum())
    }

    fn running(&mut self, operation: &'static str, id: &str) -> Result<&mut MemoryContainer, Fault> {
        let container = self.container_mut(id).ok_or_else(|| not_found(operation, id))?;
        if container.detail.container.state == ContainerState::Running {
            Ok(container)
        } else {
            Err(Fault::new(FaultKind::Conflict, operation, format!("{id} is not running")))
        }
    }
}

fn held(operation: &'static str, object: &str, by: &[String]) -> Fault {
    Fault::new(FaultKind::Conflict, operation, format!("{object}: still used by {}", by.join(", ")))
}

#[async_trait]
impl Engine for MemoryEngine {
    async fn info(&self) -> Result<EngineInfo, Fault> {
        self.world().called("info")?;
        Ok(EngineInfo { version: "0.0.0-memory".into(), api_version: "1.41".into(), root: "/docker".into() })
    }

    async fn containers(&self, selector: &Selector) -> Result<Vec<Container>, Fault> {
        let mut world = self.world();
        world.called("containers")?;
        Ok(world.listed(selector))
    }

    async fn inventory(&self, selector: &Selector) -> Result<Inventory, Fault> {
        let mut world = self.world();
        world.called("inventory")?;
        Ok(world.inventory(selector))
    }

    async fn project_objects(&self, project: &str, beside: Option<&str>) -> Result<Inventory, Fault> {
        let mut world = self.world();
        world.called("project_objects")?;
        let object = |(name, labels): (&String, &BTreeMap<String, String>)| Object {
            id: name.clone(),
            name: name.clone(),
            labels: labels.clone(),
        };
        let prefix = format!("{project}_");
        let containers = world.containers.iter().map(|container| container.seen().container);
        let of_project = |container: &Container| container.labels.get(COMPOSE_PROJECT).is_some_and(|of| of == project);
        let network = |(name, _): &(&String, _)| name.starts_with(&prefix) || Some(name.as_str()) == beside;
        let volume = |(name, _): &(&String, _)| name.starts_with(&prefix);
        Ok(Inventory {
            containers: containers.filter(of_project).collect(),
            networks: world.networks.iter().filter(network).map(object).collect(),
            volumes: world.volumes.iter().filter(volume).map(object).collect(),
            images: Vec::new(),
        })
    }

    async fn built_images(&self, selector: &Selector) -> Result<BTreeMap<String, String>, Fault> {
        let mut world = self.world();
        world.called("built_images")?;
        let built = world.images.iter().filter(|image| selector.matches(&image.labels));
        let names = built.flat_map(|image| image.tags.iter().map(|tag| (tag.clone(), image.id.clone())));
        Ok(names.map(|(tag, id)| (tag.strip_suffix(":latest").unwrap_or(&tag).to_owned(), id)).collect())
    }

    async fn inspect(&self, id: &str) -> Result<ContainerDetail, Fault> {
        let mut world = self.world();
        world.called("inspect")?;
        let container = world.container_mut(id).ok_or_else(|| not_found("inspect container", id))?;
        Ok(container.seen())
    }

    async fn published_ports(&self) -> Result<BTreeSet<u16>, Fault> {
        let mut world = self.world();
        world.called("published_ports")?;
        Ok(world.containers.iter().flat_map(|c| &c.detail.container.ports).map(|port| port.host_port).collect())
    }

    async fn image_ids(&self, references: &BTreeSet<String>) -> Result<BTreeMap<String, String>, Fault> {
        let mut world = self.world();
        world.called("image_ids")?;
        let known = |asked: &String| Some((asked.clone(), world.images[world.find_image(asked)?].id.clone()));
        Ok(references.iter().filter_map(known).collect())
    }

    async fn image_labels(
        &self,
        references: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, BTreeMap<String, String>>, Fault> {
        let mut world = self.world();
        world.called("image_labels")?;
        let known = |asked: &String| Some((asked.clone(), world.images[world.find_image(asked)?].labels.clone()));
        Ok(references.iter().filter_map(known).collect())
    }

    async fn image_facts(&self, ids: &BTreeSet<String>) -> Result<BTreeMap<String, ImageFacts>, Fault> {
        let mut world = self.world();
        world.called("image_facts")?;
        let known = |id: &String| Some((id.clone(), world.images[world.find_image(id)?].facts.clone()));
        Ok(ids.iter().filter_map(known).collect())
    }

    async fn pull(
        &self,
        reference: &str,
        _auth: Option<&RegistryAuth>,
    ) -> Result<BoxStream<'static, Result<PullProgress, Fault>>, Fault> {
        let mut world = self.world();
        world.called("pull")?;
        let fault = world.unpullable.get_mut(&familiar(reference)).and_then(std::collections::VecDeque::pop_front);
        let end = match fault {
            Some(fault) => Err(fault),
            None => {
                world.image_of(reference);
                Ok(PullProgress { current: 1000, total: 1000, status: "Pull complete".into() })
            }
        };
        let start = Ok(PullProgress { current: 0, total: 1000, status: "Downloading".into() });
        Ok(stream::iter([start, end]).boxed())
    }

    async fn tag(&self, image: &str, reference: &str) -> Result<(), Fault> {
        let mut world = self.world();
        world.called("tag")?;
        let at = world.find_image(image).ok_or_else(|| not_found("tag image", image))?;
        let id = world.images[at].id.clone();
        world.name_image(&id, reference);
        Ok(())
    }

    async fn remove_image(&self, reference: &str) -> Result<bool, Fault> {
        let mut world = self.world();
        world.called("remove_image")?;
        let used: Vec<String> =
            world.containers.iter().map(|container| container.detail.container.image_id.clone()).collect();
        let Some(at) = world.images.iter().position(|image| image.tags.contains(reference)) else { return Ok(false) };
        if world.images[at].tags.len() == 1 {
            if used.contains(&world.images[at].id) {
                return Ok(false);
            }
            world.images.remove(at);
        } else {
            world.images[at].tags.remove(reference);
        }
        Ok(true)
    }

    async fn watch(&self, selector: &Selector) -> Result<BoxStream<'static, Result<ContainerEvent, Fault>>, Fault> {
        let mut world = self.world();
        world.called("watch")?;
        let (sender, receiver) = mpsc::unbounded_channel();
        world.watchers.push((selector.clone(), sender));
        Ok(received(receiver).map(Ok).boxed())
    }

    async fn logs(&self, id: &str, options: &LogOptions) -> Result<BoxStream<'static, Result<Chunk, Fault>>, Fault> {
        let mut world = self.world();
        world.called("logs")?;
        let container = world.container_mut(id).ok_or_else(|| not_found("read logs", id))?;
        let since = options.since.unwrap_or(i64::MIN);
        let mut lines: Vec<_> = container.logs.iter().filter(|(at, _)| *at >= since).cloned().collect();
        if let Some(tail) = options.tail {
            lines.drain(..lines.len().saturating_sub(tail as usize));
        }
        let timestamps = options.timestamps;
        let written = stream::iter(lines).map(move |(at, line)| Ok(if timestamps { stamped(at, line) } else { line }));
        if !options.follow || !container.is_up() {
            return Ok(written.boxed());
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        container.followers.push(sender);
        let now = jiff::Timestamp::now().as_second();
        let coming = received(receiver).map(move |line| Ok(if timestamps { stamped(now, line) } else { line }));
        Ok(written.chain(coming).boxed())
    }

    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Exec, Fault> {
        let mut world = self.world();
        world.called("exec")?;
        let container = world.running("start process in container", id)?;
        let name = container.detail.container.name.clone();
        let exec_id = format!("{:064x}", world.next());
        let handler = world.exec.clone();
        let (input, mut stdin) = if request.stdin {
            let (ours, theirs) = tokio::io::duplex(16 * 1024);
            (Some(Box::pin(ours) as _), Some(theirs))
        } else {
            (None, None)
        };
        let (engine, request, process) = (self.clone(), request.clone(), exec_id.clone());
        // As with a real process, nothing ends before its standard input does.
        let output = async move {
            let mut typed = Vec::new();
            if let Some(stdin) = &mut stdin {
                stdin.read_to_end(&mut typed).await.ok();
            }
            let (code, chunks) = handler.map_or((0, Vec::new()), |handler| handler(&name, &request, &typed));
            engine.world().exit_codes.insert(process, code);
            stream::iter(chunks).map(Ok)
        };
        Ok(Exec { output: stream::once(output).flatten().boxed(), input, id: exec_id })
    }

    async fn exec_exit_code(&self, exec_id: &str) -> Result<i64, Fault> {
        let mut world = self.world();
        world.called("exec_exit_code")?;
        world.exit_codes.get(exec_id).copied().ok_or_else(|| not_found("read exit code of process", exec_id))
    }

    async fn stats(&self, id: &str) -> Result<Stats, Fault> {
        let mut world = self.world();
        world.called("stats")?;
        let container = world.container_mut(id).ok_or_else(|| not_found("read use of resources", id))?;
        Ok(if container.is_up() { container.stats.clone() } else { Stats::default() })
    }

    async fn disk_use(&self) -> Result<DiskUse, Fault> {
        let mut world = self.world();
        world.called("disk_use")?;
        Ok(DiskUse {
            images: world.images.iter().map(|image| image.size).sum(),
            containers: 0,
            volumes: 0,
            build_cache: world.build_cache.iter().map(|(_, bytes)| bytes).sum(),
        })
    }

    async fn ensure_network(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<bool, Fault> {
        let mut world = self.world();
        world.called("ensure_network")?;
        let is_new = !world.networks.contains_key(name);
        world.networks.entry(name.to_owned()).or_insert_with(|| labels.clone());
        Ok(is_new)
    }

    async fn open_volume(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<String, Fault> {
        let mut world = self.world();
        world.called("open_volume")?;
        world.volumes.entry(name.to_owned()).or_insert_with(|| labels.clone());
        world.files.entry(name.to_owned()).or_default();
        Ok(format!("/docker/volumes/{name}/_data"))
    }

    async fn unpack(&self, volume: &str, archive: Archive) -> Result<(), Fault> {
        let packed: Vec<Bytes> = archive.try_collect().await?;
        let mut world = self.world();
        world.called("unpack")?;
        let files = world.files.get_mut(volume).ok_or_else(|| not_found("write files into the volume", volume))?;
        files
            .unpack(&packed.concat())
            .map_err(|error| Fault::new(FaultKind::Failed, "write files into the volume", volume).caused_by(error))
    }

    async fn remove_files(&self, volume: &str, paths: &[String]) -> Result<(), Fault> {
        let mut world = self.world();
        world.called("remove_files")?;
        let files = world.files.get_mut(volume).ok_or_else(|| not_found("remove files from the volume", volume))?;
        paths.iter().for_each(|path| files.remove(path));
        Ok(())
    }

    async fn file_kinds(&self, volume: &str, paths: &[String]) -> Result<BTreeMap<String, FileKind>, Fault> {
        let mut world = self.world();
        world.called("file_kinds")?;
        let files = world.files.get(volume).ok_or_else(|| not_found("look at files of the volume", volume))?;
        Ok(paths.iter().filter_map(|path| Some((path.clone(), files.kind(path)?))).collect())
    }

    async fn file_rights(&self, volume: &str, paths: &[String]) -> Result<BTreeMap<String, Rights>, Fault> {
        let mut world = self.world();
        world.called("file_rights")?;
        let files = world.files.get(volume).ok_or_else(|| not_found("look at files of the volume", volume))?;
        let there = paths.iter().filter(|path| files.0.contains_key(*path));
        Ok(there.map(|path| (path.clone(), files.rights(path))).collect())
    }

    async fn read_file(&self, volume: &str, path: &str) -> Result<Option<Vec<u8>>, Fault> {
        let mut world = self.world();
        world.called("read_file")?;
        Ok(match world.files.get(volume).and_then(|files| files.0.get(path)) {
            Some(super::MemoryFile::File(content)) => Some(content.clone()),
            _ => None,
        })
    }

    async fn has_network(&self, name: &str) -> Result<bool, Fault> {
        let mut world = self.world();
        world.called("has_network")?;
        Ok(world.networks.contains_key(name))
    }

    async fn note_anonymous(&self, containers: &[Container]) -> Result<(), Fault> {
        let mut world = self.world();
        for container in containers.iter().filter(|container| container.anonymous_volumes().next().is_some()) {
            world.called("note_anonymous")?;
            let noted = container.anonymous_volumes().map(|volume| (volume.clone(), container.labels.clone()));
            world.noted.extend(noted);
        }
        Ok(())
    }

    async fn restart(&self, id: &str) -> Result<(), Fault> {
        let mut world = self.world();
        world.called("restart")?;
        world.emit(id, "die");
        if let Some(container) = world.container_mut(id) {
            container.detail.container.state = ContainerState::Running;
        }
        world.emit(id, "start");
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<bool, Fault> {
        let mut world = self.world();
        world.called("remove_container")?;
        let there = world.container_mut(id).is_some();
        world.take_container(id);
        Ok(there)
    }

    async fn remove(&self, selector: &Selector, _: &[Container]) -> Result<Removed, Fault> {
        let mut world = self.world();
        world.called("remove")?;
        let found = world.inventory(selector);
        let noted = world.noted.iter().filter(|(_, labels)| selector.matches(labels)).map(|(volume, _)| volume.clone());
        let mut anonymous: BTreeSet<String> = noted.collect();
        world.noted.retain(|volume, _| !anonymous.contains(volume));
        for container in &found.containers {
            anonymous.extend(container.anonymous_volumes().cloned());
            world.take_container(&container.id);
        }
        let mut removed = Removed { containers: found.containers.len(), ..Removed::default() };
        for volume in anonymous {
            if world.holders(|container| container.volumes.contains(&volume)).is_empty() {
                removed.volumes += usize::from(world.volumes.remove(&volume).is_some());
            }
        }
        let mut faults = Vec::new();
        for network in &found.networks {
            let holders = world.holders(|container| container.is_up() && container.networks.contains(&network.name));
            if holders.is_empty() {
                world.networks.remove(&network.name);
                removed.networks += 1;
            } else {
                faults.push(held("remove network", &network.name, &holders));
            }
        }
        for volume in &found.volumes {
            let holders = world.holders(|container| container.volumes.contains(&volume.name));
            if holders.is_empty() {
                world.volumes.remove(&volume.name);
                world.files.remove(&volume.name);
                removed.volumes += 1;
            } else {
                faults.push(held("remove volume", &volume.name, &holders));
            }
        }
        removed.images = world.remove_images(|image| selector.matches(&image.labels)).0;
        // All are tried before the first failure counts, as with a real engine.
        faults.into_iter().next().map_or(Ok(removed), Err)
    }

    async fn prune(&self, what: &Prune) -> Result<u64, Fault> {
        let mut world = self.world();
        world.called("prune")?;
        Ok(match what {
            Prune::DanglingImages(selector) => {
                world.remove_images(|image| image.tags.is_empty() && selector.matches(&image.labels)).1
            }
            Prune::BuildCache { keep } => {
                let all: u64 = world.build_cache.iter().map(|(_, bytes)| bytes).sum();
                let mut left = all;
                // The longest unused goes first.
                world.build_cache.sort();
                while left > *keep
                    && let Some((_, bytes)) = world.build_cache.pop()
                {
                    left -= bytes;
                }
                all - left
            }
        })
    }
}
