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

/// A host port for each container of each wanted port, by [`Port::keys`]; those of one port follow one another, since Docker takes ranges. A remembered port
/// stays; a new one is not in `taken`.
///
/// The search begins at a place given by the names, so that a preview that was removed tends to get its old port again.
pub fn allocate(
    project: &str,
    wanted: &BTreeSet<Port>,
    containers: &BTreeMap<String, usize>,
    remembered: &BTreeMap<String, u16>,
    taken: &BTreeSet<u16>,
) -> Result<BTreeMap<String, u16>, NoPort> {
    let mut ports = BTreeMap::new();
    let mut used: BTreeSet<u16> = taken.union(&remembered.values().copied().collect()).copied().collect();
    let size = RANGE.end() - RANGE.start() + 1;
    for port in wanted {
        let key = port.key();
        let count = containers.get(&port.service).copied().unwrap_or(1).clamp(1, usize::from(size));
        let keys: Vec<String> = port.keys(count).collect();
        // Those of its own are as good as free.
        let own: BTreeSet<u16> = keys.iter().filter_map(|key| remembered.get(key)).copied().collect();
        let block = |first: u16| first..=first.saturating_add(u16::try_from(count - 1).unwrap_or(u16::MAX));
        let fits = |first: &u16| {
            RANGE.contains(block(*first).end())
                && block(*first).all(|port| own.contains(&port) || !used.contains(&port))
        };
        let hash = Sha256::digest(format!("{project}\0{key}"));
        let start = u16::from_be_bytes([hash[0], hash[1]]) % size;
        let all = (0..size).map(|step| RANGE.start() + (start + step) % size);
        let first =
            remembered.get(&key).copied().into_iter().filter(|first| count == 1 || fits(first)).chain(all.filter(fits));
        let first = first.into_iter().next().ok_or(NoPort)?;
        used.extend(block(first));
        ports.extend(keys.into_iter().zip(block(first)));
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: BTreeMap<String, usize> = BTreeMap::new();

    fn port(target: u16) -> Port {
        Port { service: "web".into(), target, protocol: "tcp".into() }
    }

    #[test]
    fn the_same_names_get_the_same_port_and_taken_ones_are_left() {
        let wanted = BTreeSet::from([port(80)]);
        let first = allocate("p", &wanted, &ONE, &BTreeMap::new(), &BTreeSet::new()).unwrap();
        assert_eq!(first, allocate("p", &wanted, &ONE, &BTreeMap::new(), &BTreeSet::new()).unwrap());
        let taken = first.values().copied().collect();
        let second = allocate("p", &wanted, &ONE, &BTreeMap::new(), &taken).unwrap();
        assert_ne!(first, second);
        assert!(RANGE.contains(&second["web:80/tcp"]));
    }

    #[test]
    fn a_remembered_port_stays_although_it_is_in_use() {
        let wanted = BTreeSet::from([port(80), port(81)]);
        let remembered = BTreeMap::from([("web:80/tcp".to_owned(), 20_007)]);
        let ports = allocate("p", &wanted, &ONE, &remembered, &BTreeSet::from([20_007])).unwrap();
        assert_eq!(ports["web:80/tcp"], 20_007);
        assert_ne!(ports["web:81/tcp"], 20_007);
    }

    #[test]
    fn a_full_range_is_an_error() {
        let taken = RANGE.collect();
        assert_eq!(allocate("p", &BTreeSet::from([port(80)]), &ONE, &BTreeMap::new(), &taken), Err(NoPort));
    }

    #[test]
    fn each_container_gets_a_port_and_they_follow_one_another() {
        let wanted = BTreeSet::from([port(80)]);
        let three = BTreeMap::from([("web".to_owned(), 3)]);
        let none = BTreeSet::new();
        let ports = allocate("p", &wanted, &three, &BTreeMap::new(), &none).unwrap();
        let numbers: Vec<u16> = port(80).keys(3).map(|key| ports[&key]).collect();
        assert_eq!(numbers, [numbers[0], numbers[0] + 1, numbers[0] + 2]);
        assert_eq!(
            allocate("p", &wanted, &three, &ports, &numbers.iter().copied().collect()).unwrap(),
            ports,
            "they stay"
        );
        // More of them: the first stays where the next ones are free, and moves where they are not.
        let one = BTreeMap::from([("web:80/tcp".to_owned(), 20_007)]);
        let grown = allocate("p", &wanted, &three, &one, &BTreeSet::from([20_007])).unwrap();
        assert_eq!(grown["web:80/tcp+2"], 20_009);
        let moved = allocate("p", &wanted, &three, &one, &BTreeSet::from([20_008])).unwrap();
        assert!(!moved.values().any(|port| *port == 20_008), "{moved:?}");
        // Fewer: the first one stays.
        assert_eq!(
            allocate("p", &wanted, &ONE, &ports, &none).unwrap(),
            BTreeMap::from([("web:80/tcp".into(), numbers[0])])
        );
    }
}
