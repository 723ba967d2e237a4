//! A look at the engine as a whole, beyond what is ours: for `doctor` and `capacity`.

use std::collections::BTreeMap;

use bollard::query_parameters::{ListContainersOptions, ListNetworksOptions};

use super::{DockerEngine, ask};
use crate::engine::pools::{self, Pool, Subnet};
use crate::engine::{Container, ContainerState};
use crate::fault::Fault;

/// What an engine is and holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Examined {
    /// For example `28.5.2`.
    pub version: String,
    /// The newest API version that it speaks.
    pub api_version: String,
    /// The oldest.
    pub min_api_version: String,
    /// What containers log with if they do not say.
    pub log_driver: String,
    /// Its address pools.
    pub pools: Vec<Pool>,
    /// Names of its networks.
    pub networks: Vec<String>,
    /// What those take of the pools.
    pub subnets: Vec<Subnet>,
    /// How many containers each network has addresses for.
    pub rooms: BTreeMap<String, u64>,
    /// The containers that run, ours or not.
    pub running: Vec<Container>,
    /// Those that do not.
    pub stopped: Vec<Container>,
}

impl Examined {
    /// How many networks it can make in all, and how many more.
    #[must_use]
    pub fn networks_left(&self) -> (u64, u64) {
        pools::left(&self.pools, &self.subnets)
    }
}

impl DockerEngine {
    /// Looks at the engine; four requests at the same time.
    ///
    /// # Errors
    /// As [`Engine`](crate::engine::Engine): what cannot be asked is `Unreachable`.
    pub async fn examine(&self) -> Result<Examined, Fault> {
        const OPERATION: &str = "ask the engine about itself";
        let (version, info, networks, containers) = tokio::try_join!(
            ask(OPERATION, "", self.docker.version()),
            ask(OPERATION, "", self.docker.info()),
            ask("list networks", "", self.docker.list_networks(None::<ListNetworksOptions>)),
            self.list("list containers", ListContainersOptions { all: true, ..ListContainersOptions::default() }),
        )?;
        // A container that is held still is there, with its ports.
        let there = |container: &Container| {
            matches!(container.state, ContainerState::Running | ContainerState::Paused | ContainerState::Restarting)
        };
        let (running, stopped) = containers.into_iter().partition(there);
        // It names its pools only where it was told of some.
        let told = info.default_address_pools.filter(|pools| !pools.is_empty()).map(|pools| {
            let pool = |base: Option<String>, size: Option<i64>| {
                Some(Pool { range: Subnet::parse(&base?)?, size: u8::try_from(size?).ok()? })
            };
            pools.into_iter().filter_map(|told| pool(told.base, told.size)).collect()
        });
        let subnets = networks.iter().filter_map(|network| network.ipam.as_ref()?.config.as_ref()).flatten();
        let rooms = networks.iter().filter_map(|network| {
            let ranges = network.ipam.as_ref()?.config.as_ref()?.iter();
            let room = ranges.filter_map(|config| Subnet::parse(config.subnet.as_deref()?)).map(Subnet::room).sum();
            Some((network.name.clone()?, room)).filter(|(_, room)| *room > 0)
        });
        Ok(Examined {
            rooms: rooms.collect(),
            version: version.version.unwrap_or_default(),
            api_version: version.api_version.unwrap_or_default(),
            min_api_version: version.min_api_version.unwrap_or_default(),
            log_driver: info.logging_driver.unwrap_or_default(),
            pools: told.unwrap_or_else(pools::defaults),
            subnets: subnets.filter_map(|config| Subnet::parse(config.subnet.as_deref()?)).collect(),
            networks: networks.into_iter().filter_map(|network| network.name).collect(),
            running,
            stopped,
        })
    }
}
