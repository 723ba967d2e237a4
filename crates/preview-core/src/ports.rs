//! Host ports of previews without a proxy: chosen once, kept for the preview's whole life. Pure.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use crate::stack::Port;

/// Ports are taken from here: below the range that Linux gives to outgoing connections.
pub const RANGE: std::ops::RangeInclusive<u16> = 20_000..=29_999;

/// Every port of the range is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("every port from {} to {} of the host is taken", RANGE.start(), RANGE.end())]
pub struct NoPort;

/// A host port for each wanted port, by [`Port::key`]. A remembered port stays; a new one is not in `taken`.
///
/// The search begins at a place given by the names, so that a preview that was removed tends to get its old port again.
pub fn allocate(
    project: &str,
    wanted: &BTreeSet<Port>,
    remembered: &BTreeMap<String, u16>,
    taken: &BTreeSet<u16>,
) -> Result<BTreeMap<String, u16>, NoPort> {
    let mut ports = BTreeMap::new();
    let mut used: BTreeSet<u16> = taken.union(&remembered.values().copied().collect()).copied().collect();
    let size = RANGE.end() - RANGE.start() + 1;
    for port in wanted {
        let key = port.key();
        if let Some(host_port) = remembered.get(&key) {
            ports.insert(key, *host_port);
            continue;
        }
        let hash = Sha256::digest(format!("{project}\0{key}"));
        let start = u16::from_be_bytes([hash[0], hash[1]]) % size;
        let free = (0..size).map(|step| RANGE.start() + (start + step) % size).find(|port| !used.contains(port));
        let free = free.ok_or(NoPort)?;
        used.insert(free);
        ports.insert(key, free);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(target: u16) -> Port {
        Port { service: "web".into(), target, protocol: "tcp".into() }
    }

    #[test]
    fn the_same_names_get_the_same_port_and_taken_ones_are_left() {
        let wanted = BTreeSet::from([port(80)]);
        let first = allocate("p", &wanted, &BTreeMap::new(), &BTreeSet::new()).unwrap();
        assert_eq!(first, allocate("p", &wanted, &BTreeMap::new(), &BTreeSet::new()).unwrap());
        let taken = first.values().copied().collect();
        let second = allocate("p", &wanted, &BTreeMap::new(), &taken).unwrap();
        assert_ne!(first, second);
        assert!(RANGE.contains(&second["web:80/tcp"]));
    }

    #[test]
    fn a_remembered_port_stays_although_it_is_in_use() {
        let wanted = BTreeSet::from([port(80), port(81)]);
        let remembered = BTreeMap::from([("web:80/tcp".to_owned(), 20_007)]);
        let ports = allocate("p", &wanted, &remembered, &BTreeSet::from([20_007])).unwrap();
        assert_eq!(ports["web:80/tcp"], 20_007);
        assert_ne!(ports["web:81/tcp"], 20_007);
    }

    #[test]
    fn a_full_range_is_an_error() {
        let taken = RANGE.collect();
        assert_eq!(allocate("p", &BTreeSet::from([port(80)]), &BTreeMap::new(), &taken), Err(NoPort));
    }
}
