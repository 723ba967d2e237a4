//! What a record says, and the mark by which we know it for ours. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sha2::{Digest as _, Sha256};

/// A comment has at most so many characters at Cloudflare.
const LONGEST: usize = 100;

/// What a host's record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// An address.
    A(Ipv4Addr),
    /// An address.
    Aaaa(Ipv6Addr),
    /// Another name, in lower case, without the last dot.
    Cname(String),
}

impl Value {
    /// An address, or a name. The error is the reason alone.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => return Ok(Self::A(address)),
            Ok(IpAddr::V6(address)) => return Ok(Self::Aaaa(address)),
            Err(_) => {}
        }
        let name = text.trim_end_matches('.').to_ascii_lowercase();
        if !name.contains('.') {
            return Err(
                "is neither an address nor a full name such as vm.example.com: say where records lead with [dns] target",
            );
        }
        if name.len() > 253 || !name.split('.').all(is_label) {
            return Err("is neither an address nor a name");
        }
        Ok(Self::Cname(name))
    }

    /// The record's type.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::A(_) => "A",
            Self::Aaaa(_) => "AAAA",
            Self::Cname(_) => "CNAME",
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::A(address) => address.fmt(f),
            Self::Aaaa(address) => address.fmt(f),
            Self::Cname(name) => f.write_str(name),
        }
    }
}

/// Whether this may be a label of a name; the underscore is for names that are no hosts.
pub(super) fn is_label(label: &str) -> bool {
    let dashes = label.starts_with('-') || label.ends_with('-');
    let legal = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    (1..=63).contains(&label.len()) && legal && !dashes
}

/// A record of a preview of this VM.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owned {
    /// The host.
    pub host: String,
    /// The mark.
    pub mark: String,
    /// Application and name of the preview; `None` where the mark was too long to hold them.
    pub preview: Option<(String, String)>,
}

/// The marks of one VM's records: `preview 3f2a90bc shop/pr-7`. The eight digits are of the VM and of the directory of its previews,
/// so two VMs that share a zone leave each other's records alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    prefix: String,
}

impl Marks {
    /// Those of the VM that is reached as `host`, for the previews below `base_dir`.
    #[must_use]
    pub fn new(host: &str, base_dir: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(host.to_ascii_lowercase());
        hash.update([0]);
        hash.update(base_dir);
        Self { prefix: format!("preview {} ", hex(&hash.finalize(), 4)) }
    }

    /// What all of them start with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// That of one preview, at most 100 characters.
    #[must_use]
    pub fn of(&self, app: &str, name: &str) -> String {
        let mark = format!("{}{app}/{name}", self.prefix);
        if mark.len() <= LONGEST {
            return mark;
        }
        let hash = Sha256::digest(format!("{app}/{name}"));
        format!("{}#{}", self.prefix, hex(&hash, 16))
    }

    /// A record with this mark, if it is one of this VM's.
    #[must_use]
    pub fn owned(&self, host: &str, mark: &str) -> Option<Owned> {
        let preview = mark.strip_prefix(&self.prefix)?.split_once('/');
        let preview = preview.map(|(app, name)| (app.to_owned(), name.to_owned()));
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        Some(Owned { host, mark: mark.to_owned(), preview })
    }
}

fn hex(bytes: &[u8], count: usize) -> String {
    bytes.iter().take(count).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_address_or_a_full_name() {
        assert_eq!(Value::parse("192.0.2.7"), Ok(Value::A(Ipv4Addr::new(192, 0, 2, 7))));
        assert_eq!(Value::parse("2001:db8::7").map(|value| value.kind()), Ok("AAAA"));
        assert_eq!(Value::parse("VM.Example.com."), Ok(Value::Cname("vm.example.com".to_owned())));
        for wrong in ["vm", "", "vm.exa mple.com", "-a.com", "a..b", "http://a.b"] {
            assert!(Value::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn marks_name_the_preview_and_tell_vms_apart() {
        let marks = Marks::new("vm.example.com", "/opt/previews");
        let mark = marks.of("shop", "pr-7");
        assert_eq!(mark, format!("{}shop/pr-7", marks.prefix()));
        assert_eq!(marks.prefix().len(), "preview ".len() + 8 + 1);
        let owned = marks.owned("PR-7.Example.com.", &mark).unwrap();
        assert_eq!((owned.host.as_str(), owned.preview), ("pr-7.example.com", Some(("shop".into(), "pr-7".into()))));
        assert_eq!(marks, Marks::new("VM.example.com", "/opt/previews"));
        for (host, base) in [("vm2.example.com", "/opt/previews"), ("vm.example.com", "/opt/others")] {
            assert_eq!(Marks::new(host, base).owned("x", &mark), None);
        }
        assert_eq!(marks.owned("x", "written by hand"), None);
    }

    #[test]
    fn a_mark_that_is_too_long_is_a_hash_and_still_one_of_ours() {
        let marks = Marks::new("vm.example.com", "/opt/previews");
        let (long, other) = (marks.of(&"a".repeat(40), &"b".repeat(63)), marks.of(&"a".repeat(40), &"c".repeat(63)));
        assert!(long.len() <= LONGEST && other.len() <= LONGEST && long != other, "{long}");
        let owned = marks.owned("x", &long).unwrap();
        assert_eq!(owned.preview, None);
    }
}
