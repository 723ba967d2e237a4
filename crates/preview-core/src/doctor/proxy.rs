//! Judges the proxy: by its network and its ports, whatever kind it is, and by its name where the configuration gives one. Pure.

use super::{Check, Finding};
use crate::engine::Container;
use crate::engine::docker::Examined;
use crate::ownership::MANAGED;

/// Ports on which browsers knock.
const PORTS: [u16; 2] = [80, 443];
const ID: Check = Check::ProxyContainer;

pub(super) fn network(engine: &Examined, network: &str) -> Finding {
    const ID: Check = Check::ProxyNetwork;
    if engine.networks.iter().any(|name| name == network) {
        let found = format!("Docker has the network `{network}`");
        let Some(room) = engine.rooms.get(network) else { return Finding::ok(ID, found) };
        let taken = engine.running.iter().filter(|container| container.networks.contains_key(network)).count() as u64;
        let found = format!("{found}, with addresses for {room} containers, {taken} of them taken");
        let next = "each container of a routed service takes one: make the network anew with more addresses (docs/vm-setup.md, --proxy-subnet)";
        return match room.saturating_sub(taken) {
            0 => Finding::failed(ID, format!("{found}: no routed service can start"), next),
            left if left <= room / 5 => Finding::warning(ID, found, next),
            _ => Finding::ok(ID, found),
        };
    }
    Finding::failed(
        ID,
        format!("Docker has no network `{network}` (`[proxy] network`)"),
        format!("on the VM: `docker network create {network}`, and connect the proxy to it"),
    )
}

/// `named`: the container that is told of routes, where the proxy is one that is told by files.
pub(super) fn container(
    engine: &Examined,
    network: &str,
    named: Option<&str>,
    listening: &std::collections::BTreeSet<u16>,
) -> Finding {
    match named {
        Some(name) => the_named(engine, network, name),
        None => any(engine, network, listening),
    }
}

/// Ports on which browsers knock that a container has.
fn open(container: &Container) -> Vec<u16> {
    let mut ports: Vec<u16> =
        container.ports.iter().filter(|port| PORTS.contains(&port.host_port)).map(|port| port.host_port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Containers that run, and are no previews: those are in the network too, and publish nothing.
fn others(engine: &Examined) -> impl Iterator<Item = &Container> {
    engine.running.iter().filter(|container| !container.labels.contains_key(MANAGED))
}

fn well(proxy: &Container, network: &str) -> Finding {
    let ports: Vec<String> = open(proxy).iter().map(u16::to_string).collect();
    let found = format!("{} ({}) is in `{network}` and has port {}", proxy.name, proxy.image, ports.join(" and "));
    Finding::ok(ID, found)
}

fn connect(network: &str, name: &str) -> String {
    format!("on the VM: `docker network connect {network} {name}`, and in the proxy's Compose file for good")
}

/// It alone is told of routes: another one, however well it is placed, knows of none.
fn the_named(engine: &Examined, network: &str, name: &str) -> Finding {
    let instead = others(engine)
        .find(|other| other.name != name && other.networks.contains_key(network) && !open(other).is_empty())
        .map(|other| format!("{} ({})", other.name, other.image));
    let but =
        instead.as_ref().map_or_else(String::new, |other| format!("; {other} has the ports, and is told of no route"));
    let Some(proxy) = engine.running.iter().find(|container| container.name == name) else {
        let stopped = engine.stopped.iter().any(|container| container.name == name);
        let (found, next) = if stopped {
            (
                format!("the container `{name}` (`[proxy] container`) does not run{but}"),
                format!("on the VM: `docker logs {name}` says why, `docker start {name}`"),
            )
        } else {
            (
                format!("Docker has no container `{name}` (`[proxy] container`){but}"),
                "start the proxy under this name, or name the one that runs in `[proxy] container`".to_owned(),
            )
        };
        return Finding::failed(ID, found, next);
    };
    if !proxy.networks.contains_key(network) {
        let found = format!("{name} ({}) is not in the network `{network}`{but}", proxy.image);
        return Finding::failed(ID, found, connect(network, name));
    }
    if open(proxy).is_empty() {
        let found = format!("{name} ({}) is in `{network}`, and has neither port 80 nor 443{but}", proxy.image);
        return Finding::warning(ID, found, BEHIND);
    }
    well(proxy, network)
}

const BEHIND: &str = "behind a tunnel that is right; else publish 80 and 443 in the proxy's Compose file";

fn any(engine: &Examined, network: &str, listening: &std::collections::BTreeSet<u16>) -> Finding {
    let inside = |container: &&Container| container.networks.contains_key(network);
    let facing = others(engine).find(|container| !open(container).is_empty());
    if let Some(proxy) = others(engine).filter(inside).find(|container| !open(container).is_empty()) {
        return well(proxy, network);
    }
    if let Some(apart) = facing {
        return Finding::failed(
            ID,
            format!("{} ({}) has the ports, and is not in the network `{network}`", apart.name, apart.image),
            connect(network, &apart.name),
        );
    }
    if let Some(behind) = others(engine).find(inside) {
        let found = format!("{} ({}) is in `{network}`, and has neither port 80 nor 443", behind.name, behind.image);
        return Finding::warning(ID, found, BEHIND);
    }
    if let Some(port) = PORTS.iter().find(|port| listening.contains(port)) {
        return Finding::failed(
            ID,
            format!("no container is in the network `{network}`, and something else listens on port {port}"),
            format!("run the proxy as a container in `{network}`: only there it reaches previews by name"),
        );
    }
    Finding::failed(
        ID,
        format!("no proxy runs: no container in the network `{network}` has port 80 or 443"),
        "start the proxy's stack on the VM; `docker ps -a` there says why it stopped",
    )
}
