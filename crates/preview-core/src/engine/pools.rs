//! Docker's address pools: how many networks an engine can still make. Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// A range of addresses that is cut into networks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The range.
    pub range: Subnet,
    /// The networks are `/size`.
    pub size: u8,
}

/// An IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    address: u32,
    prefix: u8,
}

impl Subnet {
    /// Reads `172.17.0.0/16`; `None` for anything else, IPv6 among it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.trim().split_once('/')?;
        let (address, prefix) = (address.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?);
        (prefix <= 32).then(|| Self { address: u32::from(address) & mask(prefix), prefix })
    }

    /// A line of `/proc/net/route`: where its destination and mask stand, in the byte order of the machine; `None` for its head and for the default route.
    #[must_use]
    pub fn of_route(line: &str) -> Option<Self> {
        let mut columns = line.split_whitespace();
        // Every machine that Docker runs on keeps its low byte first.
        let mut hex = |skip| u32::from_str_radix(columns.nth(skip)?, 16).ok().map(u32::swap_bytes);
        let (address, mask) = (hex(1)?, hex(5)?);
        (mask != 0).then(|| Self { address, prefix: u8::try_from(mask.leading_ones()).unwrap_or(32) })
    }

    /// `new([172, 17, 0, 0], 16)`.
    #[must_use]
    pub const fn new(address: [u8; 4], prefix: u8) -> Self {
        Self { address: u32::from_be_bytes(address) & mask(prefix), prefix }
    }

    /// How many bits all its addresses share.
    #[must_use]
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// Its first address, the gateway's as a rule.
    #[must_use]
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from(self.address | 1)
    }

    /// Addresses for containers: without those of the network, of all in it, and of the gateway.
    #[must_use]
    pub fn room(self) -> u64 {
        (1_u64 << (32 - u32::from(self.prefix))).saturating_sub(3)
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.holds(u32::from(address))
    }

    fn holds(self, address: u32) -> bool {
        address & mask(self.prefix) == self.address
    }

    fn overlaps(self, other: Self) -> bool {
        self.holds(other.address) || other.holds(self.address)
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.address), self.prefix)
    }
}

const fn mask(prefix: u8) -> u32 {
    if prefix == 0 { 0 } else { u32::MAX << (32 - prefix as u32) }
}

/// The pools of an engine that was told of none: 31 networks.
#[must_use]
pub fn defaults() -> Vec<Pool> {
    let pools = [
        ("172.17.0.0/16", 16),
        ("172.18.0.0/16", 16),
        ("172.19.0.0/16", 16),
        ("172.20.0.0/14", 16),
        ("172.24.0.0/14", 16),
        ("172.28.0.0/14", 16),
        ("192.168.0.0/16", 20),
    ];
    pools.into_iter().filter_map(|(range, size)| Some(Pool { range: Subnet::parse(range)?, size })).collect()
}

/// How many networks the pools have in all, and how many are left beside these.
#[must_use]
pub fn left(pools: &[Pool], taken: &[Subnet]) -> (u64, u64) {
    let (mut all, mut gone) = (0, 0);
    for pool in pools.iter().filter(|pool| (pool.range.prefix..=32).contains(&pool.size)) {
        all += 1_u64 << (pool.size - pool.range.prefix);
        let mut used = BTreeSet::new();
        for subnet in taken.iter().filter(|subnet| subnet.overlaps(pool.range)) {
            // A larger network takes several pieces, a smaller one part of one.
            let wide = subnet.prefix.clamp(pool.range.prefix, pool.size);
            let first =
                if subnet.prefix < pool.range.prefix { pool.range.address } else { subnet.address & mask(wide) };
            let step = 1_u64 << (32 - u32::from(pool.size));
            used.extend(
                (0..1_u64 << (pool.size - wide)).map(|piece| u64::from(first & mask(pool.size)) + piece * step),
            );
        }
        gone += used.len() as u64;
    }
    (all, all.saturating_sub(gone))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnets(texts: &[&str]) -> Vec<Subnet> {
        texts.iter().map(|text| Subnet::parse(text).expect(text)).collect()
    }

    #[test]
    fn the_default_pools_have_31_networks() {
        assert_eq!(left(&defaults(), &[]), (31, 31));
        let taken = subnets(&["172.17.0.0/16", "172.18.0.0/16", "192.168.16.0/20", "10.0.0.0/24"]);
        assert_eq!(left(&defaults(), &taken), (31, 28), "what lies outside takes nothing");
    }

    #[test]
    fn larger_and_smaller_networks() {
        let pool = [Pool { range: Subnet::parse("10.10.0.0/22").expect("sound"), size: 24 }];
        assert_eq!(left(&pool, &subnets(&["10.10.0.0/23"])), (4, 2), "two pieces");
        assert_eq!(left(&pool, &subnets(&["10.10.1.0/26", "10.10.1.64/26"])), (4, 3), "two halves of one piece");
        assert_eq!(left(&pool, &subnets(&["10.0.0.0/8"])), (4, 0), "all of it");
        assert_eq!(left(&pool, &subnets(&["0.0.0.0/0"])), (4, 0));
        let odd = [Pool { range: Subnet::parse("10.0.0.0/24").expect("sound"), size: 16 }];
        assert_eq!(left(&odd, &[]), (0, 0), "pieces larger than the pool");
    }

    #[test]
    fn routes() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let found: Vec<Subnet> = table.lines().filter_map(Subnet::of_route).collect();
        assert_eq!(found, subnets(&["172.17.0.0/16"]));
    }

    #[test]
    fn what_is_no_subnet() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "fd00::/8", "x/8"] {
            assert_eq!(Subnet::parse(text), None, "{text}");
        }
        assert_eq!(Subnet::parse("10.1.2.3/8"), Subnet::parse("10.0.0.0/8"));
    }
}
