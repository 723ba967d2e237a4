//! A Docker engine behind a unix socket, local or forwarded through SSH; over bollard.

mod convert;
mod errors;
mod examine;
pub(crate) mod reference;
mod remove;
mod stream;
mod transport;
mod volume;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::StartExecResults;
use bollard::models::{EventMessage, ExecConfig, ImageSummary};
use bollard::query_parameters::{
    CreateImageOptions, InspectContainerOptions, ListContainersOptions, ListImagesOptions, ListNetworksOptions,
    ListVolumesOptions, PruneImagesOptions, RestartContainerOptions, StatsOptions, TagImageOptions,
};
use bytes::Bytes;
use futures_util::stream::{self as streams, BoxStream, StreamExt as _, TryStreamExt as _};
use hyper::Method;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

pub use self::examine::Examined;
pub use self::transport::Explain;
use self::transport::{LIMIT, Transport};
use crate::engine::{
    Archive, Chunk, Container, ContainerDetail, ContainerEvent, ContainerState, DiskUse, Engine, EngineInfo, Exec,
    ExecRequest, FileKind, ImageFacts, Inventory, LogOptions, Prune, PullProgress, RegistryAuth, Removed, Rights,
    Stats,
};
use crate::fault::{Fault, FaultKind};
use crate::ownership::{self, BASE, COMPOSE_PROJECT, Selector};

/// How many requests go out at the same time where there is one for each object.
const AT_ONCE: usize = 16;

/// An engine behind a unix socket.
pub struct DockerEngine {
    docker: Docker,
    transport: Transport,
}

impl DockerEngine {
    /// Those of these images that are here, by the name that was asked for.
    async fn known_images(&self, references: &BTreeSet<String>) -> Result<BTreeMap<String, ImageSummary>, Fault> {
        if references.is_empty() {
            return Ok(BTreeMap::new());
        }
        // The engine can filter by name; where an id is asked for, all images have to be looked at.
        let filters = if references.iter().any(|reference| reference::is_id(reference)) {
            None
        } else {
            filters([("reference", references.iter().map(|reference| reference::familiar(reference)).collect())])
        };
        let options = ListImagesOptions { filters, digests: true, ..Default::default() };
        let images = ask("list images", "", self.docker.list_images(Some(options))).await?;
        let mut known = HashMap::new();
        for image in &images {
            for name in image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id]) {
                known.insert(reference::familiar(name), image);
            }
        }
        let found = |asked: &String| Some((asked.clone(), (*known.get(&reference::familiar(asked))?).clone()));
        Ok(references.iter().filter_map(found).collect())
    }

    /// An engine behind this socket. Does no IO: the first request finds out whether one is there.
    ///
    /// # Errors
    /// None at present; the signature leaves room for a client that cannot be made.
    pub fn connect(socket: &Path) -> Result<Self, Fault> {
        let transport = Transport::new(socket);
        let carrier = transport.clone();
        // The transport knows version and address, so what bollard is told of them does not matter.
        let docker = Docker::connect_with_custom_transport(
            move |request| carrier.clone().carry(request),
            Some("http://docker"),
            LIMIT.as_secs(),
            bollard::API_DEFAULT_VERSION,
        )
        .map_err(|error| errors::fault("connect to the engine", &socket.display().to_string(), error))?;
        Ok(Self { docker, transport })
    }

    /// Asks who knows why nobody answers, where nobody ever did: its words stand in the fault.
    #[must_use]
    pub fn explained_by(self, explain: Explain) -> Self {
        self.transport.explained_by(explain);
        self
    }

    /// Opens so many connections ahead; where the socket is forwarded, that saves the first requests a round trip.
    pub async fn warm(&self, count: usize) {
        self.transport.warm(count).await;
    }

    /// How many connections were opened and how many requests were sent so far: each costs a round trip.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        self.transport.counts()
    }

    /// Containers that are meant, those that only hold on to a volume too.
    async fn all_containers(&self, selector: &Selector) -> Result<Vec<Container>, Fault> {
        let filters = filters([("label", label_values(selector))]);
        let options = ListContainersOptions { all: true, filters, ..Default::default() };
        let mut containers = self.list("list containers", options).await?;
        containers.retain(|container| selector.matches(&container.labels));
        Ok(containers)
    }

    /// Containers as the engine lists them, oldest first.
    async fn list(&self, operation: &'static str, options: ListContainersOptions) -> Result<Vec<Container>, Fault> {
        let listed = ask(operation, "", self.docker.list_containers(Some(options))).await?;
        let mut containers: Vec<_> = listed.into_iter().map(convert::container).collect();
        containers.sort_by(|a, b| a.created.cmp(&b.created).then_with(|| a.name.cmp(&b.name)));
        Ok(containers)
    }
}

/// Waits for one answer, with a limit that covers its body too.
async fn ask<T>(
    operation: &'static str,
    subject: &str,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(LIMIT, answer).await {
        Ok(answer) => answer.map_err(|error| errors::fault(operation, subject, error)),
        Err(_) => Err(errors::timed_out(operation, subject)),
    }
}

/// Filters in the form that bollard wants.
fn filters<const N: usize>(filters: [(&str, Vec<String>); N]) -> Option<HashMap<String, Vec<String>>> {
    Some(filters.into_iter().map(|(key, values)| (key.to_owned(), values)).collect())
}

fn label_values(selector: &Selector) -> Vec<String> {
    selector.labels().into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

/// What cannot be an id or name is not there.
fn plain<'a>(operation: &'static str, id: &'a str) -> Result<&'a str, Fault> {
    if reference::is_plain(id) { Ok(id) } else { Err(Fault::new(FaultKind::NotFound, operation, format!("{id:?}"))) }
}

fn image_name<'a>(operation: &'static str, name: &'a str) -> Result<&'a str, Fault> {
    if reference::is_image(name) {
        Ok(name)
    } else {
        Err(Fault::new(FaultKind::Invalid, operation, format!("{name:?} does not name an image")))
    }
}

fn chunk(output: LogOutput) -> Chunk {
    match output {
        LogOutput::StdErr { message } => Chunk::Stderr(message),
        LogOutput::StdOut { message } | LogOutput::StdIn { message } | LogOutput::Console { message } => {
            Chunk::Stdout(message)
        }
    }
}

/// The writing end of a process's standard input. Dropping bollard's own does not close the process's side,
/// and closing takes a wait, which dropping cannot do: so a task copies, and closes when there is no more.
fn closing_input(mut engine_side: std::pin::Pin<Box<dyn AsyncWrite + Send>>) -> impl AsyncWrite + Send {
    let (ours, mut theirs) = tokio::io::duplex(16 * 1024);
    tokio::spawn(async move {
        // A process that ends without reading everything is no failure of ours.
        if let Err(error) = tokio::io::copy(&mut theirs, &mut engine_side).await {
            tracing::debug!(%error, "standard input of a process ended early");
        }
        engine_side.shutdown().await.ok();
    });
    ours
}

#[async_trait]
impl Engine for DockerEngine {
    async fn info(&self) -> Result<EngineInfo, Fault> {
        let info = ask("ask the engine about itself", "", self.docker.info()).await?;
        Ok(EngineInfo {
            version: info.server_version.unwrap_or_default(),
            api_version: self.transport.version(),
            root: info.docker_root_dir.unwrap_or_default(),
        })
    }

    async fn containers(&self, selector: &Selector) -> Result<Vec<Container>, Fault> {
        let mut containers = self.all_containers(selector).await?;
        containers.retain(|container| !ownership::is_holder(&container.labels));
        Ok(containers)
    }

    async fn inventory(&self, selector: &Selector) -> Result<Inventory, Fault> {
        let filters = filters([("label", label_values(selector))]);
        let networks = ListNetworksOptions { filters: filters.clone() };
        let volumes = ListVolumesOptions { filters: filters.clone() };
        let images = ListImagesOptions { filters, ..Default::default() };
        let (containers, networks, volumes, images) = tokio::try_join!(
            self.all_containers(selector),
            ask("list networks", "", self.docker.list_networks(Some(networks))),
            ask("list volumes", "", self.docker.list_volumes(Some(volumes))),
            ask("list images", "", self.docker.list_images(Some(images))),
        )?;
        let mut inventory = Inventory {
            containers,
            networks: networks.into_iter().map(convert::network).collect(),
            volumes: volumes.volumes.unwrap_or_default().into_iter().map(convert::volume).collect(),
            images: images.into_iter().map(convert::image).collect(),
        };
        for objects in [&mut inventory.networks, &mut inventory.volumes, &mut inventory.images] {
            objects.retain(|object| selector.matches(&object.labels));
            objects.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(inventory)
    }

    async fn project_objects(&self, project: &str, beside: Option<&str>) -> Result<Inventory, Fault> {
        let label = format!("{COMPOSE_PROJECT}={project}");
        let of_project =
            ListContainersOptions { all: true, filters: filters([("label", vec![label])]), ..Default::default() };
        let prefix = format!("{project}_");
        // The engine looks for a part of the name.
        let names = [prefix.clone()].into_iter().chain(beside.map(str::to_owned)).collect();
        let networks = ListNetworksOptions { filters: filters([("name", names)]) };
        let volumes = ListVolumesOptions { filters: filters([("name", vec![prefix.clone()])]) };
        let (mut containers, networks, volumes) = tokio::try_join!(
            self.list("list containers of a project", of_project),
            ask("list networks", "", self.docker.list_networks(Some(networks))),
            ask("list volumes", "", self.docker.list_volumes(Some(volumes))),
        )?;
        containers.retain(|container| container.labels.get(COMPOSE_PROJECT).is_some_and(|of| of == project));
        let mut found = Inventory {
            containers,
            networks: networks.into_iter().map(convert::network).collect(),
            volumes: volumes.volumes.unwrap_or_default().into_iter().map(convert::volume).collect(),
            images: Vec::new(),
        };
        found.networks.retain(|network| network.name.starts_with(&prefix) || Some(network.name.as_str()) == beside);
        found.volumes.retain(|volume| volume.name.starts_with(&prefix));
        Ok(found)
    }

    async fn built_images(&self, selector: &Selector) -> Result<BTreeMap<String, String>, Fault> {
        let filters = filters([("label", label_values(selector))]);
        let options = ListImagesOptions { filters, ..Default::default() };
        let images = ask("list images", "", self.docker.list_images(Some(options))).await?;
        let mut found = BTreeMap::new();
        for image in images.into_iter().filter(|image| selector.matches(&image.labels.clone().into_iter().collect())) {
            // Without its tag where that is the usual one, as stacks name it.
            let names = image.repo_tags.iter().map(|name| name.strip_suffix(":latest").unwrap_or(name).to_owned());
            found.extend(names.map(|name| (name, image.id.clone())));
        }
        Ok(found)
    }

    async fn inspect(&self, id: &str) -> Result<ContainerDetail, Fault> {
        const OPERATION: &str = "inspect container";
        let id = plain(OPERATION, id)?;
        let inspected = ask(OPERATION, id, self.docker.inspect_container(id, None::<InspectContainerOptions>)).await?;
        Ok(convert::detail(inspected))
    }

    async fn published_ports(&self) -> Result<BTreeSet<u16>, Fault> {
        const OPERATION: &str = "list published ports";
        let containers = self.list(OPERATION, ListContainersOptions { all: true, ..Default::default() }).await?;
        let mut ports: BTreeSet<u16> = containers.iter().flat_map(|c| &c.ports).map(|port| port.host_port).collect();
        // The list shows the ports of containers that run. What the others will take when they start is in their configuration.
        let stopped = containers
            .into_iter()
            .filter(|container| container.state != ContainerState::Running)
            .filter(|container| !ownership::is_holder(&container.labels));
        let mut wanted = streams::iter(stopped)
            .map(|container| async move {
                let inspected = self.docker.inspect_container(&container.id, None::<InspectContainerOptions>);
                match ask(OPERATION, &container.name, inspected).await {
                    Ok(inspected) => {
                        Ok(convert::wanted_ports(inspected.host_config.and_then(|host| host.port_bindings).as_ref()))
                    }
                    // Removed since the list was made.
                    Err(fault) if fault.kind == FaultKind::NotFound => Ok(Vec::new()),
                    Err(fault) => Err(fault),
                }
            })
            .buffer_unordered(AT_ONCE);
        while let Some(more) = wanted.try_next().await? {
            ports.extend(more);
        }
        Ok(ports)
    }

    async fn image_ids(&self, references: &BTreeSet<String>) -> Result<BTreeMap<String, String>, Fault> {
        let found = self.known_images(references).await?;
        Ok(found.into_iter().map(|(name, image)| (name, image.id)).collect())
    }

    async fn image_labels(
        &self,
        references: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, BTreeMap<String, String>>, Fault> {
        let found = self.known_images(references).await?;
        Ok(found.into_iter().map(|(name, image)| (name, image.labels.into_iter().collect())).collect())
    }

    async fn image_facts(&self, ids: &BTreeSet<String>) -> Result<BTreeMap<String, ImageFacts>, Fault> {
        const OPERATION: &str = "inspect image";
        let asked = ids.clone().into_iter().map(|id| async move {
            match ask(OPERATION, &id, self.docker.inspect_image(image_name(OPERATION, &id)?)).await {
                Ok(image) => Ok(Some((id, convert::image_facts(image)))),
                Err(fault) if fault.kind == FaultKind::NotFound => Ok(None),
                Err(fault) => Err(fault),
            }
        });
        let found: Vec<_> = streams::iter(asked).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn pull(
        &self,
        reference: &str,
        auth: Option<&RegistryAuth>,
    ) -> Result<BoxStream<'static, Result<PullProgress, Fault>>, Fault> {
        let reference = image_name("pull image", reference)?.to_owned();
        // Without a tag the engine would pull every one.
        let (repository, tag) = reference::split(&reference);
        let options = CreateImageOptions {
            from_image: Some(repository.to_owned()),
            tag: Some(tag.to_owned()),
            ..Default::default()
        };
        let credentials = auth.map(|auth| DockerCredentials {
            username: auth.username.clone(),
            password: auth.password.as_ref().map(|password| password.expose().clone()),
            identitytoken: auth.identity_token.as_ref().map(|token| token.expose().clone()),
            serveraddress: Some(reference::registry(&reference).to_owned()),
            ..Default::default()
        });
        let pulled = self.docker.create_image(Some(options), None, credentials);
        let progress = pulled.scan((stream::Layers::default(), false), move |(layers, failed), info| {
            let item = (!*failed).then(|| info.map(|info| layers.add(info)));
            *failed |= matches!(item, Some(Err(_)));
            let item = item.map(|item| item.map_err(|error| errors::pull_fault(&reference, error)));
            futures_util::future::ready(item)
        });
        Ok(progress.boxed())
    }

    async fn tag(&self, image: &str, reference: &str) -> Result<(), Fault> {
        const OPERATION: &str = "tag image";
        let (image, reference) = (image_name(OPERATION, image)?, image_name(OPERATION, reference)?);
        let (repository, tag) = reference::split(reference);
        let options = TagImageOptions { repo: Some(repository.to_owned()), tag: Some(tag.to_owned()) };
        ask(OPERATION, &format!("{image} as {reference}"), self.docker.tag_image(image, Some(options))).await
    }

    async fn remove_image(&self, reference: &str) -> Result<bool, Fault> {
        remove::unname(self, reference).await
    }

    async fn watch(&self, selector: &Selector) -> Result<BoxStream<'static, Result<ContainerEvent, Fault>>, Fault> {
        const OPERATION: &str = "watch containers";
        let filters = serde_json::json!({ "type": ["container"], "label": label_values(selector) });
        let path = format!("/events?filters={}", crate::http::escape(&filters.to_string()));
        let body = ask(OPERATION, "", self.transport.open(Method::GET, &path, Bytes::new())).await?;
        let selector = selector.clone();
        let events = stream::lines::<EventMessage>(body).filter_map(move |event| {
            let event = match event {
                Ok(event) => {
                    let actor = event.actor.unwrap_or_default();
                    let labels = actor.attributes.unwrap_or_default().into_iter().collect();
                    selector.matches(&labels).then(|| {
                        Ok(ContainerEvent {
                            id: actor.id.unwrap_or_default(),
                            action: event.action.unwrap_or_default(),
                        })
                    })
                }
                Err(error) => Some(Err(errors::fault(OPERATION, "", error))),
            };
            futures_util::future::ready(event)
        });
        Ok(events.boxed())
    }

    async fn logs(&self, id: &str, options: &LogOptions) -> Result<BoxStream<'static, Result<Chunk, Fault>>, Fault> {
        const OPERATION: &str = "read logs";
        let id = plain(OPERATION, id)?.to_owned();
        let mut path = format!("/containers/{id}/logs?stdout=1&stderr=1");
        for (set, parameter) in [
            (options.follow, "follow=1".to_owned()),
            (options.timestamps, "timestamps=1".to_owned()),
            (options.tail.is_some(), format!("tail={}", options.tail.unwrap_or_default())),
            (options.since.is_some(), format!("since={}", options.since.unwrap_or_default())),
        ] {
            if set {
                path.push('&');
                path.push_str(&parameter);
            }
        }
        let body = ask(OPERATION, &id, self.transport.open(Method::GET, &path, Bytes::new())).await?;
        Ok(stream::output(body).map_err(move |error| errors::fault(OPERATION, &id, error)).boxed())
    }

    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Exec, Fault> {
        const OPERATION: &str = "start process in container";
        let id = plain(OPERATION, id)?.to_owned();
        let config = ExecConfig {
            attach_stdin: Some(request.stdin),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(request.argv.clone()),
            env: Some(request.env.clone()),
            user: request.user.clone(),
            working_dir: request.workdir.clone(),
            ..Default::default()
        };
        let created = ask(OPERATION, &id, self.docker.create_exec(&id, config)).await?;
        match ask(OPERATION, &id, self.docker.start_exec(&created.id, None)).await? {
            StartExecResults::Attached { output, input } => Ok(Exec {
                output: output.map_ok(chunk).map_err(move |error| errors::fault(OPERATION, &id, error)).boxed(),
                input: if request.stdin { Some(Box::pin(closing_input(input))) } else { None },
                id: created.id,
            }),
            // Only an answer to `detach`, which was not asked for.
            StartExecResults::Detached => Err(Fault::new(FaultKind::Failed, OPERATION, id)),
        }
    }

    async fn exec_exit_code(&self, exec_id: &str) -> Result<i64, Fault> {
        const OPERATION: &str = "read exit code of process";
        let exec_id = plain(OPERATION, exec_id)?;
        // The engine closes the output a moment before it notes the exit code.
        for pause in [10, 20, 50, 100, 200, 500, 1000, 2000] {
            let process = ask(OPERATION, exec_id, self.docker.inspect_exec(exec_id)).await?;
            if let (Some(false), Some(code)) = (process.running, process.exit_code) {
                return Ok(code);
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Err(Fault::new(FaultKind::Conflict, OPERATION, format!("{exec_id}: still running")))
    }

    async fn stats(&self, id: &str) -> Result<Stats, Fault> {
        const OPERATION: &str = "read use of resources";
        let id = plain(OPERATION, id)?;
        let options = StatsOptions { stream: false, one_shot: true };
        let mut answers = std::pin::pin!(self.docker.stats(id, Some(options)));
        let used = async {
            answers.next().await.unwrap_or_else(|| {
                Err(Error::DockerResponseServerError { status_code: 404, message: "no answer".to_owned() })
            })
        };
        // Without a limit of its own a container's statistics show the memory of the host, so the limit is looked up.
        let (stats, inspected) = tokio::try_join!(
            ask(OPERATION, id, used),
            ask(OPERATION, id, self.docker.inspect_container(id, None::<InspectContainerOptions>)),
        )?;
        let limit = inspected.host_config.and_then(|host| host.memory).unwrap_or(0);
        Ok(convert::stats(stats, u64::try_from(limit).unwrap_or(0)))
    }

    async fn disk_use(&self) -> Result<DiskUse, Fault> {
        let account = self.transport.json(Method::GET, "/system/df", Bytes::new());
        Ok(convert::disk_use(&ask("measure the engine's disk", "", account).await?))
    }

    async fn ensure_network(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<bool, Fault> {
        #[derive(serde::Deserialize)]
        struct Created {}
        // bollard does not know `CheckDuplicate` any more, without which engines before 25 make a second network of that name.
        let body = serde_json::json!({ "Name": name, "Driver": "bridge", "CheckDuplicate": true, "Labels": labels });
        let body = Bytes::from(body.to_string());
        match ask("make network", name, self.transport.json::<Created>(Method::POST, "/networks/create", body)).await {
            Ok(Created {}) => Ok(true),
            Err(fault) if fault.kind == FaultKind::Conflict => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    async fn open_volume(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<String, Fault> {
        volume::open(self, name, labels).await
    }

    async fn unpack(&self, volume: &str, archive: Archive) -> Result<(), Fault> {
        volume::unpack(self, volume, archive).await
    }

    async fn remove_files(&self, volume: &str, paths: &[String]) -> Result<(), Fault> {
        volume::remove(self, volume, paths).await
    }

    async fn file_kinds(&self, volume: &str, paths: &[String]) -> Result<BTreeMap<String, FileKind>, Fault> {
        volume::kinds(self, volume, paths).await
    }

    async fn file_rights(&self, volume: &str, paths: &[String]) -> Result<BTreeMap<String, Rights>, Fault> {
        volume::rights(self, volume, paths).await
    }

    async fn read_file(&self, volume: &str, path: &str) -> Result<Option<Vec<u8>>, Fault> {
        volume::read(self, volume, path).await
    }

    async fn has_network(&self, name: &str) -> Result<bool, Fault> {
        // The filter also finds networks that have the name as a part of theirs.
        let networks = ListNetworksOptions { filters: filters([("name", vec![name.to_owned()])]) };
        let found = ask("list networks", "", self.docker.list_networks(Some(networks))).await?;
        Ok(found.iter().any(|network| network.name.as_deref() == Some(name)))
    }

    async fn note_anonymous(&self, containers: &[Container]) -> Result<(), Fault> {
        remove::note_anonymous(self, containers).await.map(|_| ())
    }

    async fn restart(&self, id: &str) -> Result<(), Fault> {
        const RESTART: &str = "restart a container";
        let inspected = self.docker.inspect_container(id, None::<InspectContainerOptions>);
        let inspected = match ask(RESTART, id, inspected).await {
            Err(fault) if fault.kind == FaultKind::NotFound => return Ok(()),
            inspected => inspected?,
        };
        // Of a process that has no time to end, engine 20.10 may take the end twice, and unmount the new one's files the second time.
        let time = inspected.config.and_then(|config| config.stop_timeout).map(|time| i32::try_from(time.max(1)));
        let options = RestartContainerOptions { t: time.and_then(Result::ok), ..RestartContainerOptions::default() };
        match ask(RESTART, id, self.docker.restart_container(id, Some(options))).await {
            Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
            done => done,
        }
    }

    async fn remove_container(&self, id: &str) -> Result<bool, Fault> {
        remove::remove_container(self, id, id).await
    }

    async fn remove(&self, selector: &Selector, seen: &[Container]) -> Result<Removed, Fault> {
        remove::remove(self, selector, seen).await
    }

    async fn prune(&self, what: &Prune) -> Result<u64, Fault> {
        let reclaimed = match what {
            Prune::DanglingImages(selector) => {
                let mut labels = label_values(selector);
                // Pruning looks at labels alone: what has none of the base directory stays.
                if let Selector::Preview { base: Some(base), .. } = selector {
                    labels.push(format!("{BASE}={base}"));
                }
                let filters = filters([("dangling", vec!["true".to_owned()]), ("label", labels)]);
                let options = PruneImagesOptions { filters };
                ask("prune untagged images", "", self.docker.prune_images(Some(options))).await?.space_reclaimed
            }
            Prune::BuildCache { keep } => {
                #[derive(serde::Deserialize)]
                struct Pruned {
                    #[serde(rename = "SpaceReclaimed", default)]
                    bytes: Option<i64>,
                }
                // The first name up to API 1.47, the second one from then on.
                let path = format!("/build/prune?all=true&keep-storage={keep}&reserved-space={keep}");
                let pruned = self.transport.json::<Pruned>(Method::POST, &path, Bytes::new());
                ask("prune build cache", "", pruned).await?.bytes
            }
        };
        Ok(reclaimed.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0))
    }
}
