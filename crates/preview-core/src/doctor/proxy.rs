//! Judges the proxy: by its network and its ports, whatever kind it is. Pure.

use super::{Check, Finding};
use crate::engine::Container;
use crate::engine::docker::Examined;
use crate::ownership::MANAGED;

/// Ports on which browsers knock.
const PORTS: [u16; 2] = [80, 443];

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

pub(super) fn container(engine: &Examined, network: &str, listening: &std::collections::BTreeSet<u16>) -> Finding {
    const ID: Check = Check::ProxyContainer;
    let open = |container: &Container| {
        let mut ports: Vec<u16> =
            container.ports.iter().filter(|port| PORTS.contains(&port.host_port)).map(|port| port.host_port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    };
    // Previews are in that network too, and publish nothing.
    let others = || engine.running.iter().filter(|container| !container.labels.contains_key(MANAGED));
    let inside = |container: &&Container| container.networks.contains_key(network);
    let facing = others().find(|container| !open(container).is_empty());
    if let Some(proxy) = others().filter(inside).find(|container| !open(container).is_empty()) {
        let ports: Vec<String> = open(proxy).iter().map(u16::to_string).collect();
        return Finding::ok(
            ID,
            format!("{} ({}) is in `{network}` and has port {}", proxy.name, proxy.image, ports.join(" and ")),
        );
    }
    if let Some(apart) = facing {
        return Finding::failed(
            ID,
            format!("{} ({}) has the ports, and is not in the network `{network}`", apart.name, apart.image),
            format!(
                "on the VM: `docker network connect {network} {}`, and in the proxy's Compose file for good",
                apart.name
            ),
        );
    }
    if let Some(behind) = others().find(inside) {
        return Finding::warning(
            ID,
            format!("{} ({}) is in `{network}`, and has neither port 80 nor 443", behind.name, behind.image),
            "behind a tunnel that is right; else publish 80 and 443 in the proxy's Compose file",
        );
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
