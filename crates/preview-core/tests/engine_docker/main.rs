//! The Docker engine of this machine keeps the contract of `Engine`.
//!
//! Needs an engine (`DOCKER_HOST` if that is a unix socket, else `/var/run/docker.sock`) with the image `busybox:1.36`.
//! Without an engine the tests do nothing and say so; with `PREVIEW_LAB=1` that is a failure.

#![expect(clippy::unwrap_used, reason = "a test panics where its preparations fail")]

mod registry;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use bollard::models::{
    ContainerConfig, ContainerCreateBody, HealthConfig, HostConfig, NetworkCreateRequest, PortBinding, RestartPolicy,
    RestartPolicyNameEnum, VolumeCreateRequest,
};
use bollard::query_parameters::{
    CommitContainerOptions, CreateContainerOptions, InspectContainerOptions, KillContainerOptions,
    ListContainersOptions, ListImagesOptions, ListNetworksOptions, ListVolumesOptions, RemoveContainerOptions,
    RemoveImageOptions, RemoveVolumeOptions, StartContainerOptions,
};
use futures_util::TryStreamExt as _;
use preview_core::engine::docker::DockerEngine;
use preview_core::engine::{Engine as _, ExecRequest, RegistryAuth, Removed};
use preview_core::fault::FaultKind;
use preview_core::ownership::{self, Selector};
use preview_core::testkit::conformance::engine::{Check, EngineFixture, PRINTED, Runs, Spec, suite};

const IMAGE: &str = "busybox:1.36";

fn socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock").into()
}

/// The engine, or none with the reason on standard error.
async fn engine() -> Option<DockerEngine> {
    let engine = DockerEngine::connect(&socket()).unwrap();
    match engine.info().await {
        Ok(info) => {
            eprintln!("engine {} with API {}", info.version, info.api_version);
            Some(engine)
        }
        Err(fault) if std::env::var("PREVIEW_LAB").is_ok_and(|lab| lab == "1") => {
            panic!("PREVIEW_LAB=1 and no engine: {}", fault.chain())
        }
        Err(fault) => {
            eprintln!("NOT TESTED: {} (PREVIEW_LAB=1 makes this a failure)", fault.chain());
            None
        }
    }
}

/// Objects whose names start with, and whose label of the application is, a random word. They go when it is dropped.
struct Fixture {
    docker: Docker,
    app: String,
}

impl Fixture {
    fn new() -> Self {
        let mut random = [0; 4];
        getrandom::fill(&mut random).unwrap();
        let app = format!("suite-{:08x}", u32::from_be_bytes(random));
        Self { docker: connect(), app }
    }
}

fn connect() -> Docker {
    Docker::connect_with_unix(socket().to_str().unwrap(), 120, bollard::API_DEFAULT_VERSION).unwrap()
}

fn words(words: &[&str]) -> Option<Vec<String>> {
    Some(words.iter().map(|&word| word.to_owned()).collect())
}

fn hashed(labels: BTreeMap<String, String>) -> HashMap<String, String> {
    labels.into_iter().collect()
}

#[async_trait]
impl EngineFixture for Fixture {
    fn app(&self) -> &str {
        &self.app
    }

    fn image(&self) -> &'static str {
        IMAGE
    }

    fn unreachable_image(&self) -> &'static str {
        // Nobody listens on port 1 of the engine's own machine.
        "127.0.0.1:1/preview/app:1"
    }

    fn free_port(&self) -> u16 {
        std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
    }

    async fn container(&self, spec: Spec) -> String {
        let script = match spec.runs {
            Runs::Idle => "trap exit TERM; sleep 600 & wait".to_owned(),
            // Apart in time: the two streams reach the engine on ways of their own.
            Runs::Prints => {
                let [one, two, three] = PRINTED.map(str::trim);
                format!("echo {one}; sleep 0.2; echo {two} >&2; sleep 0.2; echo {three}; sleep 600 & wait")
            }
            Runs::Exits(code) => format!("exit {code}"),
        };
        let check = |test: &str, interval: Duration| HealthConfig {
            test: words(&["CMD-SHELL", test]),
            interval: Some(i64::try_from(interval.as_nanos()).unwrap()),
            retries: Some(1),
            ..HealthConfig::default()
        };
        let soon = Duration::from_secs(1);
        let healthcheck = spec.check.map(|wanted| match wanted {
            Check::Passes => check("true", soon),
            Check::Fails => check("echo refused; exit 1", soon),
            Check::Waits => check("true", Duration::from_secs(600)),
        });
        let ports = spec.port.map(|port| {
            let binding = PortBinding { host_ip: None, host_port: Some(port.to_string()) };
            HashMap::from([("80/tcp".to_owned(), Some(vec![binding]))])
        });
        let restart = if spec.restarts { RestartPolicyNameEnum::ALWAYS } else { RestartPolicyNameEnum::NO };
        let body = ContainerCreateBody {
            image: Some(spec.image.unwrap_or_else(|| IMAGE.to_owned())),
            cmd: words(&["sh", "-c", &script]),
            labels: Some(hashed(spec.labels)),
            healthcheck,
            exposed_ports: ports.as_ref().map(|ports| ports.keys().cloned().collect()),
            host_config: Some(HostConfig {
                port_bindings: ports,
                network_mode: spec.network,
                binds: spec.volume.map(|volume| vec![format!("{volume}:/data")]),
                memory: spec.memory.map(|limit| i64::try_from(limit).unwrap()),
                restart_policy: Some(RestartPolicy { name: Some(restart), maximum_retry_count: None }),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptions { name: Some(spec.name), ..CreateContainerOptions::default() };
        let id = self.docker.create_container(Some(options), body).await.expect("make a container").id;
        if !spec.only_made {
            self.docker.start_container(&id, None::<StartContainerOptions>).await.expect("start a container");
        }
        let ends = matches!(spec.runs, Runs::Exits(_));
        loop {
            let seen = self.docker.inspect_container(&id, None::<InspectContainerOptions>).await.unwrap();
            if !ends || seen.state.and_then(|state| state.running) == Some(false) {
                return id;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn kill(&self, container: &str) {
        self.docker.kill_container(container, None::<KillContainerOptions>).await.expect("kill a container");
    }

    async fn take(&self, container: &str) {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        self.docker.remove_container(container, Some(options)).await.expect("remove a container");
    }

    async fn network(&self, name: &str, labels: BTreeMap<String, String>) {
        let body = NetworkCreateRequest { name: name.to_owned(), labels: Some(hashed(labels)), ..Default::default() };
        self.docker.create_network(body).await.expect("make a network");
    }

    async fn volume(&self, name: &str, labels: BTreeMap<String, String>) {
        let body = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(hashed(labels)),
            ..VolumeCreateRequest::default()
        };
        self.docker.create_volume(body).await.expect("make a volume");
    }

    async fn build(&self, reference: Option<&str>, labels: BTreeMap<String, String>) -> String {
        let body = ContainerCreateBody { image: Some(IMAGE.to_owned()), cmd: words(&["true"]), ..Default::default() };
        let base = self.docker.create_container(None::<CreateContainerOptions>, body).await.expect("make a base").id;
        let (repo, tag) = reference.map(|name| name.split_once(':').unwrap()).unzip();
        let options = CommitContainerOptions {
            container: Some(base.clone()),
            repo: repo.map(str::to_owned),
            tag: tag.map(str::to_owned),
            ..CommitContainerOptions::default()
        };
        let config = ContainerConfig { labels: Some(hashed(labels)), ..ContainerConfig::default() };
        let image = self.docker.commit_container(options, config).await;
        self.take(&base).await;
        image.expect("make an image").id
    }
}

impl Drop for Fixture {
    /// Also after a check has failed. A thread of its own, because a runtime is already running on this one.
    fn drop(&mut self) {
        let label = format!("{}={}", ownership::APP, self.app);
        let clean = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(clean_up(&connect(), label));
        };
        std::thread::spawn(clean).join().expect("objects of the test are removed");
    }
}

async fn clean_up(docker: &Docker, label: String) {
    let filters = Some(HashMap::from([("label".to_owned(), vec![label])]));
    let options = ListContainersOptions { all: true, filters: filters.clone(), ..Default::default() };
    for container in docker.list_containers(Some(options)).await.unwrap() {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        docker.remove_container(&container.id.unwrap(), Some(options)).await.ok();
    }
    for network in docker.list_networks(Some(ListNetworksOptions { filters: filters.clone() })).await.unwrap() {
        docker.remove_network(&network.id.unwrap()).await.ok();
    }
    let volumes = docker.list_volumes(Some(ListVolumesOptions { filters: filters.clone() })).await.unwrap();
    for volume in volumes.volumes.unwrap_or_default() {
        docker.remove_volume(&volume.name, None::<RemoveVolumeOptions>).await.ok();
    }
    let options = ListImagesOptions { filters, ..Default::default() };
    for image in docker.list_images(Some(options)).await.unwrap() {
        let options = RemoveImageOptions { force: true, ..Default::default() };
        docker.remove_image(&image.id, Some(options), None).await.ok();
    }
}

#[tokio::test]
async fn docker_engine_keeps_the_contract() {
    let Some(engine) = engine().await else { return };
    suite(&engine, &Fixture::new()).await;
}

#[tokio::test]
async fn images_are_pulled_with_credentials() {
    let Some(engine) = engine().await else { return };
    if std::env::var_os("DOCKER_HOST").is_some() {
        eprintln!("NOT TESTED: pulls, because the engine of DOCKER_HOST may not reach this machine's loopback");
        return;
    }
    let fixture = Fixture::new();
    let labels = serde_json::json!({ ownership::MANAGED: "true", ownership::APP: fixture.app });
    let registry = registry::serve(&labels).await;
    let right = registry::credentials();
    let wrong = RegistryAuth { username: Some("nobody".to_owned()), ..right.clone() };
    let pull = async |tag: &str, auth: Option<&RegistryAuth>| {
        let progress = engine.pull(&format!("{registry}/app:{tag}"), auth).await?;
        progress.try_collect::<Vec<_>>().await
    };
    for auth in [None, Some(&wrong)] {
        let fault = pull("1", auth).await.unwrap_err();
        assert_eq!((fault.kind, fault.transient), (FaultKind::Denied, false), "{}", fault.chain());
    }
    let fault = pull("2", Some(&right)).await.unwrap_err();
    assert_eq!((fault.kind, fault.transient), (FaultKind::NotFound, false), "{}", fault.chain());
    let progress = pull("1", Some(&right)).await.unwrap();
    assert!(!progress.is_empty());
    let asked = BTreeSet::from([format!("{registry}/app:1")]);
    assert_eq!(engine.image_ids(&asked).await.unwrap().len(), 1);
    let removed = engine.remove(&Selector::App(fixture.app.clone()), &[]).await.unwrap();
    assert_eq!(removed, Removed { images: 1, ..Removed::default() });
}

/// Each request is a round trip on a slow link, and each new connection another one.
#[tokio::test]
async fn requests_are_few_and_connections_are_kept() {
    let Some(_) = engine().await else { return };
    let fixture = Fixture::new();
    let selector = Selector::preview(&fixture.app, "count");
    let labels = selector.labels();
    let name = format!("{}-count", fixture.app);
    let engine = DockerEngine::connect(&socket()).unwrap();
    let mut counted = Vec::new();
    let mut before = engine.counts();
    let mut count = |what: &'static str| {
        let after = engine.counts();
        counted.push((what, after.0 - before.0, after.1 - before.1));
        before = after;
    };
    engine.containers(&selector).await.unwrap();
    count("containers");
    engine.containers(&selector).await.unwrap();
    count("containers again");
    assert!(engine.ensure_network(&name, &labels).await.unwrap());
    count("ensure_network");
    fixture.volume(&name, labels.clone()).await;
    let spec = Spec { name: name.clone(), labels, network: Some(name.clone()), ..Spec::default() };
    let id = fixture.container(spec).await;
    engine.inspect(&id).await.unwrap();
    count("inspect");
    engine.stats(&id).await.unwrap();
    count("stats");
    engine.image_ids(&BTreeSet::from([IMAGE.to_owned(), "missing".to_owned()])).await.unwrap();
    count("image_ids of two");
    let request = ExecRequest { argv: vec!["true".to_owned()], ..ExecRequest::default() };
    let exec = engine.exec(&id, &request).await.unwrap();
    exec.output.try_collect::<Vec<_>>().await.unwrap();
    engine.exec_exit_code(&exec.id).await.unwrap();
    count("exec and its exit code");
    engine.inventory(&selector).await.unwrap();
    count("inventory");
    let removed = engine.remove(&selector, &[]).await.unwrap();
    assert_eq!(removed, Removed { containers: 1, networks: 1, volumes: 1, images: 0 });
    count("remove of one container, network and volume");
    for (what, connections, requests) in &counted {
        eprintln!("{what}: {requests} requests, {connections} new connections");
    }
    let requests: Vec<_> = counted.iter().map(|(_, _, requests)| *requests).collect();
    assert_eq!(requests[..6], [1, 1, 1, 1, 2, 1], "requests are known in number");
    assert!((3..=5).contains(&requests[6]), "the exit code may have to be asked for again");
    assert_eq!(requests[7..], [4, 7]);
    assert_eq!((counted[0].1, counted[1].1), (1, 0), "a connection is used again");
}
