//! Capabilities that Docker gives to every container.

/// What a container has unless its file drops it.
const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Whether a capability, in any of Docker's spellings (`CAP_CHOWN`, `chown`), is the one of this name (`CHOWN`).
pub(super) fn is(given: &str, name: &str) -> bool {
    let upper = given.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper) == name
}

/// Whether a capability is one that every container has.
pub(super) fn is_default(given: &str) -> bool {
    DEFAULT.iter().any(|name| is(given, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_known_and_nothing_else() {
        for name in DEFAULT {
            assert!(
                is_default(name) && is_default(&name.to_lowercase()) && is_default(&format!("cap_{name}")),
                "{name}"
            );
        }
        for name in ["ALL", "SYS_ADMIN", "CAP_CAP_CHOWN", "CHOWN ", "", "CAP_", "NET_ADMIN", "SYS_PTRACE"] {
            assert!(!is_default(name), "{name}");
        }
    }
}
