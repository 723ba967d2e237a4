//! `ssh://user@host:port`: parsed, checked and printed. Pure.

use std::fmt;
use std::str::FromStr;

use crate::fault::{Fault, FaultKind};

/// Where a VM is: what `ssh` is given, and nothing that `ssh` could take for an option or a command.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The user; `None` leaves it to `~/.ssh/config`, or is the user's own name.
    pub user: Option<String>,
    /// A host name, an alias of `~/.ssh/config`, or an address (IPv6 without brackets).
    pub host: String,
    /// The port; `None` leaves it to `~/.ssh/config`, or is 22.
    pub port: Option<u16>,
}

impl Destination {
    /// Reads `ssh://user@host:port`; user and port may be left out, an IPv6 address stands in brackets.
    ///
    /// ```
    /// use preview_core::host::ssh::Destination;
    /// let destination = Destination::parse("ssh://deploy@[2001:db8::7]:2222").unwrap();
    /// assert_eq!((destination.host.as_str(), destination.port), ("2001:db8::7", Some(2222)));
    /// assert!(Destination::parse("ssh://-oProxyCommand=true").is_err());
    /// ```
    ///
    /// # Errors
    /// `Invalid`, saying what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let wrong = |what: &str| {
            let context = format!("{what} in {text:?}; expected ssh://user@host:port");
            Fault::new(FaultKind::Invalid, "read the address of the VM", context)
        };
        let rest = text.strip_prefix("ssh://").ok_or_else(|| wrong("no ssh://"))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(wrong("a space or control character"));
        }
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, rest),
        };
        if user.is_some_and(|user| user.contains(':')) {
            // Not shown: it was meant to be secret.
            let context =
                "a password in the address; ssh takes a key (`[vm] identity_file`); expected ssh://user@host:port";
            return Err(Fault::new(FaultKind::Invalid, "read the address of the VM", context));
        }
        if user.is_some_and(|user| !sound(user, "._-+")) {
            return Err(wrong("a user name that is none"));
        }
        let (host, port) = if let Some(bracketed) = place.strip_prefix('[') {
            let (host, port) = bracketed.split_once(']').ok_or_else(|| wrong("no closing bracket"))?;
            if !host.contains(':') || !sound_address(host) {
                return Err(wrong("an IPv6 address that is none"));
            }
            (host, port)
        } else {
            let (host, port) = place.split_at(place.find(':').unwrap_or(place.len()));
            if !sound(host, "._-") {
                return Err(wrong("a host name that is none"));
            }
            (host, port)
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok().filter(|port| *port != 0).ok_or_else(|| wrong("a port out of range"))?)
            }
            _ => return Err(wrong("something after the host that is no port")),
        };
        Ok(Self { user: user.map(str::to_owned), host: host.to_owned(), port })
    }
}

/// Letters, digits and these; no dash in front, where a program would take it for an option.
fn sound(text: &str, others: &str) -> bool {
    !text.is_empty() && !text.starts_with('-') && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

fn sound_address(host: &str) -> bool {
    let (address, zone) = host.split_once('%').map_or((host, None), |(address, zone)| (address, Some(zone)));
    address.parse::<std::net::Ipv6Addr>().is_ok() && zone.is_none_or(|zone| sound(zone, "._-"))
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ssh://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?
        } else {
            f.write_str(&self.host)?
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        Ok(())
    }
}

impl FromStr for Destination {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(text: &str) -> (Option<String>, String, Option<u16>) {
        let Destination { user, host, port } = Destination::parse(text).expect(text);
        (user, host, port)
    }

    #[test]
    fn what_is_understood() {
        let user = || Some("deploy".to_owned());
        assert_eq!(parts("ssh://deploy@vm.example.com"), (user(), "vm.example.com".into(), None));
        assert_eq!(parts("ssh://deploy@vm.example.com:2222"), (user(), "vm.example.com".into(), Some(2222)));
        assert_eq!(parts("ssh://vm/"), (None, "vm".into(), None));
        assert_eq!(parts("ssh://deploy@[::1]:22"), (user(), "::1".into(), Some(22)));
        assert_eq!(parts("ssh://[fe80::1%eth0]"), (None, "fe80::1%eth0".into(), None));
    }

    #[test]
    fn what_is_refused() {
        for text in [
            "",
            "vm",
            "deploy@vm",
            "http://vm",
            "ssh://",
            "ssh://@vm",
            "ssh://deploy@",
            "ssh://-oProxyCommand=x",
            "ssh://-l@vm",
            "ssh://a@-vm",
            "ssh://a:b@vm",
            "ssh://vm:",
            "ssh://vm:0",
            "ssh://vm:65536",
            "ssh://vm:+22",
            "ssh://vm:22x",
            "ssh://vm/path",
            "ssh://vm\n",
            "ssh://v m",
            "ssh://vm\0",
            "ssh://::1",
            "ssh://[::1",
            "ssh://[vm]",
            "ssh://[::1]22",
            "ssh://[::g]",
            "ssh://a@b@c",
            "ssh://$(id)@vm",
            "ssh://vm;id",
            "ssh://`id`",
            "ssh://vm?x",
            "ssh://[fe80::1%-x]",
        ] {
            assert_eq!(Destination::parse(text).expect_err(text).kind, FaultKind::Invalid, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(user in proptest::option::of("[a-z_][a-z0-9_.-]{0,8}"), host in "[a-z0-9][a-z0-9.-]{0,20}",
                                        port in proptest::option::of(1u16..)) {
            let destination = Destination { user, host, port };
            prop_assert_eq!(Destination::parse(&destination.to_string()).expect("sound"), destination);
        }

        #[test]
        fn nothing_becomes_an_option(text in "ssh://[ -~]{0,30}") {
            if let Ok(destination) = Destination::parse(&text) {
                prop_assert!(!destination.host.starts_with('-'));
                prop_assert!(!destination.user.unwrap_or_default().starts_with('-'));
            }
        }
    }
}
