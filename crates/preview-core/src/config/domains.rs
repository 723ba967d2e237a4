//! Hosts that addresses may have, and networks that may come in: how they are written, and what fits.

use std::net::IpAddr;

/// Stands for the preview's name in a pattern.
const NAME: &str = "{name}";

/// What is wrong with a pattern for hosts.
pub(super) fn wrong(pattern: &str) -> Option<&'static str> {
    let legal = |label: &str| {
        let label = label.replace(NAME, "x").replace('*', "x");
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    let stars = pattern.split('.').any(|label| label.matches('*').count() > 1);
    let bare = pattern.split('.').all(|label| label == "*");
    (stars || bare || !pattern.split('.').all(legal)).then_some(
        "is not a host: `preview.example.com`, `{name}.preview.example.com`, or `*.preview.example.com` for all names one level below",
    )
}

/// Whether a preview of this name may have an address with this host and path; without patterns, any.
///
/// `*` stands for a part of one label. A host without either is all previews': there the path has to begin with the preview's name.
pub(super) fn allowed(name: &str, host: &str, path: &str, patterns: &[String]) -> bool {
    let own_path = || {
        let first = path.split('/').nth(1).unwrap_or_default();
        first.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    patterns.is_empty()
        || patterns.iter().any(|pattern| {
            let shared = !pattern.contains(NAME) && !pattern.contains('*');
            let (wanted, found): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), host.split('.').collect());
            wanted.len() == found.len()
                && wanted.iter().zip(&found).all(|(wanted, found)| fits(&wanted.replace(NAME, name), found))
                && (!shared || own_path())
        })
}

/// Whether a label fits a pattern with at most one `*`, which stands for at least one character.
fn fits(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((before, after)) => {
            label.len() > before.len() + after.len() && label.starts_with(before) && label.ends_with(after)
        }
    }
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

    fn fit(host: &str, path: &str, patterns: &[&str]) -> bool {
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        allowed("pr-7", host, path, &patterns)
    }

    #[test]
    fn a_star_stands_for_one_name() {
        let patterns = ["*.preview.example.com"];
        for (host, fits) in [
            ("pr-7.preview.example.com", true),
            ("preview.example.com", false),
            ("a.b.preview.example.com", false),
            ("pr-7.preview.example.com.evil.test", false),
            ("www.example.com", false),
        ] {
            assert_eq!(fit(host, "", &patterns), fits, "{host}");
        }
        assert!(fit("anything.test", "", &[]));
    }

    #[test]
    fn with_the_name_nobody_takes_the_address_of_another() {
        let patterns = ["{name}.preview.example.com", "{name}-*.preview.example.com", "example.com"];
        for (host, path, fits) in [
            ("pr-7.preview.example.com", "", true),
            ("pr-7.preview.example.com", "/api", true),
            ("pr-7-ui.preview.example.com", "", true),
            ("pr-8.preview.example.com", "/pr-7", false),
            ("pr-70.preview.example.com", "", false),
            ("pr-7-.preview.example.com", "", false),
            ("example.com", "/pr-7", true),
            ("example.com", "/pr-7-api/v1", true),
            ("example.com", "/pr-70", false),
            ("example.com", "/pr-8/pr-7", false),
            ("example.com", "", false),
        ] {
            assert_eq!(fit(host, path, &patterns), fits, "{host}{path}");
        }
    }

    #[test]
    fn how_they_are_written() {
        for good in ["example.com", "*.preview.example.com", "localhost", "{name}.x.test", "{name}-*.x.test", "a.*.b"] {
            assert_eq!(wrong(good), None, "{good}");
        }
        for bad in ["", "*", "*.*", "*.", "https://example.com", "Example.com", "-a.com", "a..b", "**.b", "{slug}.b"] {
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
