//! Published ports: which one is the page's, and which speak something else.

use std::collections::BTreeSet;

use super::Port;

/// Ports on which something other than HTTP is usual.
const OTHERS: [u16; 52] = [
    21, 22, 23, 25, 53, 110, 111, 143, 389, 443, 465, 514, 587, 636, 873, 993, 995, 1025, 1433, 1521, 1883, 2049, 2181,
    2379, 2380, 3306, 3389, 4222, 5005, 5222, 5432, 5433, 5671, 5672, 5678, 5900, 6379, 6380, 6432, 7687, 8883, 9042,
    9092, 9093, 9229, 9300, 11211, 26257, 26379, 27017, 28015, 50000,
];

/// Ports on which pages are usual, the most usual first.
const PAGES: [u16; 14] = [80, 8080, 8000, 3000, 5000, 4200, 5173, 8888, 8081, 8001, 3001, 4000, 8008, 9000];

/// Whether something other than HTTP is usual on a port.
#[must_use]
pub fn is_unlikely_http(port: u16) -> bool {
    OTHERS.contains(&port)
}

/// The port that the address leads to where no route says it: of the published TCP ports that may be HTTP, the most usual one of a service that is built, then
/// of any.
#[must_use]
pub fn page<'a>(published: &'a BTreeSet<Port>, built: &[String]) -> Option<&'a Port> {
    let rank = |port: &&Port| {
        let usual = PAGES.iter().position(|page| *page == port.target).unwrap_or(PAGES.len());
        (!built.contains(&port.service), usual)
    };
    // Of equals the first one, which is the first by name.
    published.iter().filter(|port| may_be_http(port)).min_by_key(rank)
}

/// The published ports that may be HTTP.
pub fn may_be_http(port: &Port) -> bool {
    port.protocol == "tcp" && !is_unlikely_http(port.target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(all: &[(&str, u16, &str)]) -> BTreeSet<Port> {
        let port = |(service, target, protocol): &(&str, u16, &str)| Port {
            service: (*service).to_owned(),
            target: *target,
            protocol: (*protocol).to_owned(),
        };
        all.iter().map(port).collect()
    }

    fn chosen(all: &[(&str, u16, &str)], built: &[&str]) -> Option<String> {
        let built: Vec<String> = built.iter().map(|name| (*name).to_owned()).collect();
        page(&ports(all), &built).map(Port::key)
    }

    #[test]
    fn databases_mail_and_tls_are_no_pages() {
        assert_eq!(chosen(&[("db", 5432, "tcp"), ("web", 443, "tcp"), ("dns", 53, "udp")], &[]), None);
        assert_eq!(chosen(&[("db", 5432, "tcp"), ("web", 7777, "tcp")], &[]).as_deref(), Some("web:7777/tcp"));
        assert_eq!(chosen(&[("game", 8000, "udp")], &[]), None);
    }

    #[test]
    fn what_is_built_comes_first_then_what_is_usual() {
        let all = [("admin", 80, "tcp"), ("api", 8000, "tcp"), ("front", 3000, "tcp")];
        assert_eq!(chosen(&all, &[]).as_deref(), Some("admin:80/tcp"));
        assert_eq!(chosen(&all, &["api", "front"]).as_deref(), Some("api:8000/tcp"));
        assert_eq!(chosen(&[("b", 7001, "tcp"), ("a", 7002, "tcp")], &[]).as_deref(), Some("a:7002/tcp"));
    }

    #[test]
    fn the_table_is_in_order() {
        assert!(OTHERS.is_sorted());
    }
}
