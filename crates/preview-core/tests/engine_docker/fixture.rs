//! Objects in a real engine for the suite of engines; the end-to-end tests use it for the engines of VMs.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
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
use preview_core::ownership;
use preview_core::testkit::conformance::engine::{Check, EngineFixture, PRINTED, Runs, Spec};

pub(crate) const IMAGE: &str = "busybox:1.36";

/// Objects whose names start with, and whose label of the application is, a random word. They go when it is dropped.
pub(crate) struct Fixture {
    docker: Docker,
    pub(crate) app: String,
}

impl Fixture {
    /// On the engine of this socket.
    pub(crate) fn at(socket: &Path) -> Self {
        let mut random = [0; 4];
        getrandom::fill(&mut random).unwrap();
        let app = format!("suite-{:08x}", u32::from_be_bytes(random));
        let path = socket.to_str().unwrap();
        Self { docker: Docker::connect_with_unix(path, 120, bollard::API_DEFAULT_VERSION).unwrap(), app }
    }

    async fn commit(&self, reference: Option<&str>, config: ContainerConfig) -> String {
        let body = ContainerCreateBody { image: Some(IMAGE.to_owned()), cmd: words(&["true"]), ..Default::default() };
        let base = self.docker.create_container(None::<CreateContainerOptions>, body).await.expect("make a base").id;
        let (repo, tag) = reference.map(|name| name.split_once(':').unwrap()).unzip();
        let options = CommitContainerOptions {
            container: Some(base.clone()),
            repo: repo.map(str::to_owned),
            tag: tag.map(str::to_owned),
            ..CommitContainerOptions::default()
        };
        let image = self.docker.commit_container(options, config).await;
        self.take(&base).await;
        image.expect("make an image").id
    }
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
        self.commit(reference, ContainerConfig { labels: Some(hashed(labels)), ..ContainerConfig::default() }).await
    }

    async fn declaring(&self, labels: BTreeMap<String, String>, volume: &str) -> String {
        let config = ContainerConfig {
            labels: Some(hashed(labels)),
            volumes: words(&[volume]),
            exposed_ports: words(&["80/tcp"]),
            ..ContainerConfig::default()
        };
        self.commit(Some(&format!("{}-declaring:1", self.app)), config).await
    }
}

impl Drop for Fixture {
    /// Also after a check has failed. A thread of its own, because a runtime is already running on this one.
    fn drop(&mut self) {
        let label = format!("{}={}", ownership::APP, self.app);
        let docker = self.docker.clone();
        let clean = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(clean_up(&docker, label));
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
