//! Hosts that addresses may have, and networks that may come in: how they are written, and what fits.

use std::net::IpAddr;

/// What is wrong with a pattern for hosts.
pub(super) fn wrong(pattern: &str) -> Option<&'static str> {
    let host = pattern.strip_prefix("*.").unwrap_or(pattern);
    let legal = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    (!host.split('.').all(legal))
        .then_some("is not a host: `preview.example.com`, or `*.preview.example.com` for all names one level below")
}

/// Whether a host fits one of the patterns; without any, all do.
#[must_use]
pub(super) fn allowed(host: &str, patterns: &[String]) -> bool {
    patterns.is_empty()
        || patterns.iter().any(|pattern| match pattern.strip_prefix("*.") {
            Some(parent) => host.split_once('.').is_some_and(|(first, rest)| !first.is_empty() && rest == parent),
            None => host == pattern,
        })
}

/// What is wrong with an address or network.
pub(super) fn wrong_network(text: &str) -> Option<&'static str> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let good = address.parse::<IpAddr>().is_ok_and(|address| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        bits.is_none_or(|bits| bits.parse::<u8>().is_ok_and(|bits| bits <= most))
    });
    (!good).then_some("is neither an address nor a network: `203.0.113.7`, `203.0.113.0/24`, `2001:db8::/32`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_name() {
        let patterns = ["*.preview.example.com".to_owned(), "example.com".to_owned()];
        for (host, fits) in [
            ("pr-7.preview.example.com", true),
            ("example.com", true),
            ("preview.example.com", false),
            ("a.b.preview.example.com", false),
            ("pr-7.preview.example.com.evil.test", false),
            ("www.example.com", false),
        ] {
            assert_eq!(allowed(host, &patterns), fits, "{host}");
        }
        assert!(allowed("anything.test", &[]));
    }

    #[test]
    fn how_they_are_written() {
        for good in ["example.com", "*.preview.example.com", "localhost"] {
            assert_eq!(wrong(good), None, "{good}");
        }
        for bad in ["", "*", "*.", "a.*.b", "https://example.com", "Example.com", "-a.com", "a..b"] {
            assert!(wrong(bad).is_some(), "{bad}");
        }
        for good in ["203.0.113.7", "203.0.113.0/24", "2001:db8::/32", "::1"] {
            assert_eq!(wrong_network(good), None, "{good}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0", "example.com", "10.0.0.0/8,1.2.3.4"] {
            assert!(wrong_network(bad).is_some(), "{bad}");
        }
    }
}
