//! The engine's models as ours. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, ContainerStatsResponse, ContainerSummary,
    ContainerSummaryHealthStatusEnum, ContainerSummaryStateEnum, EndpointSettings, Health as EngineHealth,
    HealthStatusEnum, ImageInspect, ImageSummary, MountPoint, Network, PortMap, PortSummary, RestartPolicyNameEnum,
    Volume,
};

use crate::engine::{
    Container, ContainerDetail, ContainerState, DiskUse, Health, ImageFacts, Object, PublishedPort, Stats,
};

/// A container as the list shows it.
pub(super) fn container(summary: ContainerSummary) -> Container {
    let health = match summary.health.and_then(|health| health.status) {
        Some(ContainerSummaryHealthStatusEnum::STARTING) => Health::Starting,
        Some(ContainerSummaryHealthStatusEnum::HEALTHY) => Health::Healthy,
        Some(ContainerSummaryHealthStatusEnum::UNHEALTHY) => Health::Unhealthy,
        // The field came with API 1.52.
        _ => health_of_status(summary.status.as_deref().unwrap_or_default()),
    };
    Container {
        id: summary.id.unwrap_or_default(),
        // Further names are those of links: `/other/alias`.
        name: summary
            .names
            .unwrap_or_default()
            .iter()
            .map(|name| name.trim_start_matches('/'))
            .find(|name| !name.contains('/'))
            .unwrap_or_default()
            .to_owned(),
        image: summary.image.unwrap_or_default(),
        image_id: summary.image_id.unwrap_or_default(),
        state: state_of_summary(summary.state),
        health,
        labels: sorted(summary.labels),
        created: summary.created.unwrap_or_default(),
        ports: ports_of_list(&summary.ports.unwrap_or_default()),
        networks: addresses(summary.network_settings.and_then(|settings| settings.networks)),
        volumes: volumes(summary.mounts),
    }
}

fn volumes(mounts: Option<Vec<MountPoint>>) -> BTreeSet<String> {
    let volumes = mounts.into_iter().flatten().filter(|mount| mount.typ.as_deref() == Some("volume"));
    volumes.filter_map(|mount| mount.name).filter(|name| !name.is_empty()).collect()
}

/// Health as the list's status text ends with it: `Up 5 minutes (healthy)`. All there is before API 1.52.
pub(super) fn health_of_status(status: &str) -> Health {
    // A stopped container shows its exit code in parentheses, and no health.
    if status.ends_with("(healthy)") {
        Health::Healthy
    } else if status.ends_with("(unhealthy)") {
        Health::Unhealthy
    } else if status.ends_with("(health: starting)") {
        Health::Starting
    } else {
        Health::None
    }
}

fn state_of_summary(state: Option<ContainerSummaryStateEnum>) -> ContainerState {
    match state {
        Some(ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::STOPPING) => ContainerState::Running,
        Some(ContainerSummaryStateEnum::PAUSED) => ContainerState::Paused,
        Some(ContainerSummaryStateEnum::RESTARTING) => ContainerState::Restarting,
        Some(ContainerSummaryStateEnum::REMOVING) => ContainerState::Removing,
        Some(ContainerSummaryStateEnum::EXITED) => ContainerState::Exited,
        Some(ContainerSummaryStateEnum::DEAD) => ContainerState::Dead,
        Some(ContainerSummaryStateEnum::CREATED | ContainerSummaryStateEnum::EMPTY) | None => ContainerState::Created,
    }
}

fn state_of_detail(state: Option<ContainerStateStatusEnum>) -> ContainerState {
    match state {
        Some(ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::STOPPING) => ContainerState::Running,
        Some(ContainerStateStatusEnum::PAUSED) => ContainerState::Paused,
        Some(ContainerStateStatusEnum::RESTARTING) => ContainerState::Restarting,
        Some(ContainerStateStatusEnum::REMOVING) => ContainerState::Removing,
        Some(ContainerStateStatusEnum::EXITED) => ContainerState::Exited,
        Some(ContainerStateStatusEnum::DEAD) => ContainerState::Dead,
        Some(ContainerStateStatusEnum::CREATED | ContainerStateStatusEnum::EMPTY) | None => ContainerState::Created,
    }
}

/// A container as inspection shows it.
pub(super) fn detail(inspected: ContainerInspectResponse) -> ContainerDetail {
    let state = inspected.state.unwrap_or_default();
    let config = inspected.config.unwrap_or_default();
    let network_settings = inspected.network_settings.unwrap_or_default();
    let running = state_of_detail(state.status);
    let health = state.health.as_ref();
    let container = Container {
        id: inspected.id.unwrap_or_default(),
        name: inspected.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        image: config.image.unwrap_or_default(),
        image_id: inspected.image.unwrap_or_default(),
        state: running,
        // As in the list: a container that does not run has no health, whatever its last check said.
        health: match running {
            ContainerState::Running | ContainerState::Paused | ContainerState::Restarting => health_of_detail(health),
            _ => Health::None,
        },
        labels: sorted(config.labels),
        created: inspected
            .created
            .and_then(|time| time.parse::<jiff::Timestamp>().ok())
            .map_or(0, jiff::Timestamp::as_second),
        ports: ports_of_map(network_settings.ports.as_ref()),
        networks: addresses(network_settings.networks),
        volumes: volumes(inspected.mounts),
    };
    ContainerDetail {
        container,
        exit_code: state.exit_code.unwrap_or_default(),
        oom_killed: state.oom_killed.unwrap_or_default(),
        error: state.error.unwrap_or_default(),
        restarts: inspected.restart_count.unwrap_or_default(),
        restarts_on_success: matches!(
            inspected.host_config.and_then(|host| host.restart_policy).and_then(|policy| policy.name),
            Some(RestartPolicyNameEnum::ALWAYS | RestartPolicyNameEnum::UNLESS_STOPPED)
        ),
        health_output: state
            .health
            .and_then(|health| health.log)
            .unwrap_or_default()
            .into_iter()
            .rev()
            .find(|check| check.exit_code != Some(0))
            .and_then(|check| check.output),
    }
}

fn health_of_detail(health: Option<&EngineHealth>) -> Health {
    match health.and_then(|health| health.status) {
        Some(HealthStatusEnum::STARTING) => Health::Starting,
        Some(HealthStatusEnum::HEALTHY) => Health::Healthy,
        Some(HealthStatusEnum::UNHEALTHY) => Health::Unhealthy,
        _ => Health::None,
    }
}

fn ports_of_list(ports: &[PortSummary]) -> Vec<PublishedPort> {
    let published = ports.iter().filter_map(|port| {
        Some(PublishedPort {
            host_ip: port.ip.as_deref().and_then(|ip| ip.parse().ok()),
            host_port: port.public_port.filter(|&port| port != 0)?,
            container_port: port.private_port,
            protocol: port.typ.map(|protocol| protocol.to_string()).filter(|p| !p.is_empty()).unwrap_or("tcp".into()),
        })
    });
    tidy(published.collect())
}

fn ports_of_map(ports: Option<&PortMap>) -> Vec<PublishedPort> {
    let mut published = Vec::new();
    for (inside, bindings) in ports.into_iter().flatten() {
        let (port, protocol) = inside.split_once('/').unwrap_or((inside, "tcp"));
        let Ok(container_port) = port.parse() else { continue };
        for binding in bindings.iter().flatten() {
            let Some(host_port) = binding.host_port.as_deref().and_then(|port| port.parse().ok()) else { continue };
            published.push(PublishedPort {
                host_ip: binding.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                host_port,
                container_port,
                protocol: protocol.to_owned(),
            });
        }
    }
    tidy(published)
}

fn tidy(mut ports: Vec<PublishedPort>) -> Vec<PublishedPort> {
    ports.sort();
    ports.dedup();
    ports
}

/// Host ports that a container will ask for when it starts. Of a range (`8000-8010`) it takes one, so all of it counts.
pub(super) fn wanted_ports(bindings: Option<&PortMap>) -> Vec<u16> {
    let mut wanted = Vec::new();
    for binding in bindings.into_iter().flat_map(HashMap::values).flatten().flatten() {
        let text = binding.host_port.as_deref().unwrap_or_default();
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            wanted.extend((first..=last).filter(|&port| port != 0));
        }
    }
    wanted
}

fn addresses(networks: Option<HashMap<String, EndpointSettings>>) -> BTreeMap<String, IpAddr> {
    let address = |endpoint: &EndpointSettings| {
        [&endpoint.ip_address, &endpoint.global_ipv6_address]
            .into_iter()
            .find_map(|address| address.as_deref()?.parse().ok())
    };
    networks.into_iter().flatten().filter_map(|(name, endpoint)| Some((name, address(&endpoint)?))).collect()
}

fn sorted(labels: Option<HashMap<String, String>>) -> BTreeMap<String, String> {
    labels.into_iter().flatten().collect()
}

/// A network of ours.
pub(super) fn network(network: Network) -> Object {
    Object {
        id: network.id.unwrap_or_default(),
        name: network.name.unwrap_or_default(),
        labels: sorted(network.labels),
    }
}

/// A volume of ours.
pub(super) fn volume(volume: Volume) -> Object {
    Object { id: volume.name.clone(), name: volume.name, labels: sorted(Some(volume.labels)) }
}

/// An image of ours.
pub(super) fn image(image: ImageSummary) -> Object {
    let name = image.repo_tags.into_iter().find(|tag| !tag.starts_with("<none>"));
    Object { name: name.unwrap_or_else(|| image.id.clone()), id: image.id, labels: sorted(Some(image.labels)) }
}

/// What an image says of its containers.
pub(super) fn image_facts(image: ImageInspect) -> ImageFacts {
    let config = image.config.unwrap_or_default();
    ImageFacts {
        volumes: config.volumes.unwrap_or_default().into_iter().collect(),
        exposes: config.exposed_ports.is_some_and(|ports| !ports.is_empty()),
    }
}

/// What a container uses; `limit` is the one that it was made with.
pub(super) fn stats(stats: ContainerStatsResponse, limit: u64) -> Stats {
    let memory = stats.memory_stats.unwrap_or_default();
    let used = memory.usage.unwrap_or_default();
    let details = memory.stats.unwrap_or_default();
    // Page cache that the kernel can take back at once: cgroup v1 and v2 name it differently.
    let cache = details.get("total_inactive_file").or_else(|| details.get("inactive_file")).copied().unwrap_or(0);
    Stats {
        memory: used.saturating_sub(cache),
        memory_limit: limit,
        cpu_total: stats.cpu_stats.and_then(|cpu| cpu.cpu_usage).and_then(|cpu| cpu.total_usage).unwrap_or_default(),
        pids: stats.pids_stats.and_then(|pids| pids.current).unwrap_or_default(),
    }
}

/// The engine's account of its disk. bollard knows only the totals that came with API 1.52.
#[derive(serde::Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Account {
    layers_size: u64,
    containers: Option<Vec<Size>>,
    volumes: Option<Vec<VolumeSize>>,
    build_cache: Option<Vec<Size>>,
    image_usage: Total,
    container_usage: Total,
    volume_usage: Total,
    build_cache_usage: Total,
}

#[derive(serde::Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Total {
    total_size: u64,
}

#[derive(serde::Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Size {
    size: i64,
    size_rw: i64,
    /// A shared record of the build cache lies in an image and counts there.
    shared: bool,
}

#[derive(serde::Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct VolumeSize {
    usage_data: Option<Size>,
}

/// Sizes by kind. An engine answers in the old way or in the new one, so one of each two numbers is 0.
pub(super) fn disk_use(account: &Account) -> DiskUse {
    let sum = |sizes: &mut dyn Iterator<Item = i64>| sizes.map(|size| u64::try_from(size).unwrap_or(0)).sum::<u64>();
    let volumes = account.volumes.iter().flatten().filter_map(|volume| volume.usage_data.as_ref());
    DiskUse {
        images: account.layers_size + account.image_usage.total_size,
        containers: account.container_usage.total_size
            + sum(&mut account.containers.iter().flatten().map(|container| container.size_rw)),
        volumes: account.volume_usage.total_size + sum(&mut volumes.map(|usage| usage.size)),
        build_cache: account.build_cache_usage.total_size
            + sum(&mut account.build_cache.iter().flatten().filter(|record| !record.shared).map(|record| record.size)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> T {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn health_is_read_from_the_end_of_the_status() {
        assert_eq!(health_of_status("Up 5 minutes (healthy)"), Health::Healthy);
        assert_eq!(health_of_status("Up 5 minutes (unhealthy)"), Health::Unhealthy);
        assert_eq!(health_of_status("Up 1 second (health: starting)"), Health::Starting);
        assert_eq!(health_of_status("Up 5 minutes"), Health::None);
        assert_eq!(health_of_status("Exited (0) 2 seconds ago"), Health::None);
        assert_eq!(health_of_status(""), Health::None);
    }

    #[test]
    fn a_container_of_the_list() {
        let made = container(parse(serde_json::json!({
            "Id": "abc", "Names": ["/other/link", "/pr-7-web-1"], "Image": "busybox", "ImageID": "sha256:1",
            "State": "running", "Status": "Up 1 second", "Health": {"Status": "unhealthy", "FailingStreak": 3},
            "Created": 17, "Labels": {"a": "b"},
            "Ports": [
                {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                {"PrivatePort": 81, "Type": "tcp"},
            ],
            "NetworkSettings": {"Networks": {
                "front": {"IPAddress": "172.18.0.2"}, "off": {"IPAddress": ""}, "six": {"IPAddress": "", "GlobalIPv6Address": "fd00::2"},
            }},
        })));
        assert_eq!(made.name, "pr-7-web-1");
        assert_eq!(made.health, Health::Unhealthy, "the summary wins over the text");
        assert_eq!(made.ports.len(), 2);
        assert_eq!(made.networks.keys().collect::<Vec<_>>(), ["front", "six"]);
    }

    #[test]
    fn an_inspected_container() {
        let made = detail(parse(serde_json::json!({
            "Id": "abc", "Name": "/web", "Created": "2026-11-20T10:00:00.5Z", "Image": "sha256:1", "RestartCount": 2,
            "State": {"Status": "running", "ExitCode": 137, "OOMKilled": true, "Error": "", "Health": {"Status": "starting", "Log": [
                {"ExitCode": 1, "Output": "old"}, {"ExitCode": 2, "Output": "refused"}, {"ExitCode": 0, "Output": "fine"}]}},
            "Config": {"Image": "busybox", "Labels": {"a": "b"}},
            "HostConfig": {"RestartPolicy": {"Name": "unless-stopped"}},
            "NetworkSettings": {"Ports": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}], "53/udp": null}, "Networks": {}},
        })));
        assert_eq!(made.container.created, 1_795_168_800);
        assert_eq!(made.health_output.as_deref(), Some("refused"));
        assert_eq!((made.restarts, made.restarts_on_success, made.oom_killed), (2, true, true));
        assert_eq!(made.container.health, Health::Starting);
        assert_eq!(made.container.ports[0].host_port, 8080);
    }

    #[test]
    fn ports_that_a_stopped_container_will_take() {
        let mut wanted = wanted_ports(Some(&parse(serde_json::json!({
            "80/tcp": [{"HostPort": "8080"}], "81/tcp": [{"HostPort": "9000-9002"}], "82/tcp": [{"HostPort": ""}, {"HostPort": "0"}], "83/tcp": null,
        }))));
        wanted.sort_unstable();
        assert_eq!(wanted, [8080, 9000, 9001, 9002]);
    }

    #[test]
    fn memory_without_the_page_cache() {
        for key in ["total_inactive_file", "inactive_file"] {
            let made = stats(parse(serde_json::json!({"memory_stats": {"usage": 100, "stats": {key: 30}}})), 5);
            assert_eq!((made.memory, made.memory_limit), (70, 5));
        }
    }

    #[test]
    fn both_accounts_of_the_disk() {
        let old = disk_use(&parse(serde_json::json!({
            "LayersSize": 10, "Images": [], "Containers": [{"SizeRw": 3}, {}],
            "Volumes": [{"UsageData": {"Size": 5}}, {"UsageData": {"Size": -1}}, {"UsageData": null}],
            "BuildCache": [{"Size": 7, "Shared": false}, {"Size": 9, "Shared": true}],
        })));
        assert_eq!(old, DiskUse { images: 10, containers: 3, volumes: 5, build_cache: 7 });
        let new = disk_use(&parse(serde_json::json!({
            "ImageUsage": {"TotalSize": 10}, "ContainerUsage": {"TotalSize": 3}, "VolumeUsage": {"TotalSize": 5}, "BuildCacheUsage": {"TotalSize": 7},
        })));
        assert_eq!(new, old);
        assert_eq!(disk_use(&parse(serde_json::json!({"Containers": null}))), DiskUse::default());
    }
}
