//! What `ssh` means by what it prints. The one place that reads its prose: it has no other way to say why it failed. Pure.

use super::destination::Destination;
use crate::fault::{Fault, FaultKind};

/// How a key that is not the pinned one is told.
const ANOTHER: &str = "has another host key than the one that was pinned";

/// Whether a fault of the kind `HostKey` is about a key that is not the pinned one, and not about one that nobody knows.
pub(crate) fn key_changed(fault: &Fault) -> bool {
    fault.kind == FaultKind::HostKey && fault.context.contains(ANOTHER)
}

/// The failure to connect that this output of `ssh` describes.
pub(super) fn classify(stderr: &str, destination: &Destination) -> Fault {
    const OPERATION: &str = "connect to the VM";
    let has = |text: &str| stderr.contains(text);
    let said = essence(stderr);
    let fault = |kind, hint: &str| {
        let context =
            if hint.is_empty() { format!("{destination}: {said}") } else { format!("{destination}: {said}; {hint}") };
        Fault::new(kind, OPERATION, context)
    };

    if has("IDENTIFICATION HAS CHANGED") || has("POSSIBLE DNS SPOOFING") {
        return Fault::new(
            FaultKind::HostKey,
            OPERATION,
            format!(
                "{destination} {ANOTHER}. If the VM was installed anew, {}; \
                     else somebody may stand between you and the VM",
                how_to_pin(stderr, destination)
            ),
        );
    }
    if has("Host key verification failed") || has("host key is known for") {
        return Fault::new(
            FaultKind::HostKey,
            OPERATION,
            format!("the host key of {destination} is not known: {}", how_to_pin(stderr, destination)),
        );
    }
    if has("revoked") && has("host key") {
        return fault(FaultKind::HostKey, "");
    }
    if has("UNPROTECTED PRIVATE KEY FILE") || has("bad permissions") {
        return fault(FaultKind::Denied, "the private key's file must be readable by its owner only (chmod 600)");
    }
    if has("Load key") && (has("invalid format") || has("error in libcrypto") || has("incorrect passphrase")) {
        let hint = "the private key cannot be read: PREVIEW_IDENTITY_KEY or the identity file has to hold all of it, without a passphrase";
        return Fault::new(FaultKind::Denied, OPERATION, format!("{destination}: {hint}"));
    }
    if has("Permission denied (")
        || has("Too many authentication failures")
        || has("No supported authentication methods")
    {
        return fault(FaultKind::Denied, "is the public key in ~/.ssh/authorized_keys of that user?");
    }
    if has("Unable to negotiate") || has("Bad configuration option") || has("terminating, ") && has("bad configuration")
    {
        return fault(FaultKind::Unsupported, "");
    }
    if has("Temporary failure in name resolution") || has("Try again") {
        return fault(FaultKind::Unreachable, "").transient();
    }
    let no_help = ["Could not resolve hostname", "No route to host", "Network is unreachable", "Bad port"];
    if no_help.iter().any(|text| has(text)) {
        return fault(FaultKind::Unreachable, "");
    }
    // Refused while sshd restarts, dropped by its MaxStartups, lost on the way: all may be over in a moment.
    let may_help = [
        "Connection refused",
        "timed out",
        "Connection reset",
        "Connection closed",
        "Broken pipe",
        "not responding",
        "kex_exchange_identification",
        "Exceeded MaxStartups",
        "banner exchange",
    ];
    if may_help.iter().any(|text| has(text)) {
        return fault(FaultKind::Unreachable, "").transient();
    }
    fault(FaultKind::Unreachable, "")
}

/// Whether this output of `ssh` says that too many are at the door: somebody answered and closed before a word, as an `sshd` does beyond
/// its `MaxStartups`, or did not get to say that word in time. Behind a jump host it may be anything.
pub(super) fn crowded(stderr: &str) -> bool {
    let words = ["kex_exchange_identification", "Exceeded MaxStartups", "timed out during banner exchange"];
    words.iter().any(|text| stderr.contains(text)) && !stderr.contains("UNKNOWN port")
}

/// Whether this output of `ssh` says that the other side led no connection on. Of unix sockets it does not say why.
pub(super) fn refuses_forwards(stderr: &str) -> bool {
    stderr.contains("administratively prohibited") || stderr.contains("open failed: connect failed: open failed")
}

/// The steps to a pinned key, for the host that `ssh` names: it may be a jump host.
fn how_to_pin(stderr: &str, destination: &Destination) -> String {
    let named = stderr.split_once("host key is known for ").and_then(|(_, rest)| rest.split_once(" and you have"));
    let (host, port) = match named.map(|(name, _)| name) {
        Some(name) => match name.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
            Some((host, port)) => (host.to_owned(), port.to_owned()),
            None => (name.to_owned(), "22".to_owned()),
        },
        None => (destination.host.clone(), destination.port.unwrap_or(22).to_string()),
    };
    format!(
        "run `ssh-keyscan -p {port} {host}`, compare `… | ssh-keygen -lf -` with what the VM itself says \
         (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`), and put the line in `[vm] known_hosts` or PREVIEW_KNOWN_HOSTS"
    )
}

/// The lines that say something, as one line of bounded length; the last ones say why it ended.
pub(super) fn essence(stderr: &str) -> String {
    const LINES: usize = 4;
    const CHARACTERS: usize = 600;
    let noise = |line: &&str| {
        line.is_empty()
            || line.starts_with("@@@")
            || line.starts_with("Warning: Permanently added")
            || line.starts_with("debug")
    };
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !noise(line)).collect();
    let text = lines[lines.len().saturating_sub(LINES)..].join("; ");
    if text.is_empty() {
        return "ssh ended without a word".to_owned();
    }
    let skip = text.chars().count().saturating_sub(CHARACTERS);
    text.chars().skip(skip).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_message() {
        use FaultKind::{Denied, HostKey, Unreachable, Unsupported};
        let destination = Destination::parse("ssh://deploy@vm:2222").expect("sound");
        for (stderr, kind, transient) in [
            (
                "No ED25519 host key is known for [vm]:2222 and you have requested strict checking.\r\nHost key verification failed.",
                HostKey,
                false,
            ),
            (
                "@@@@@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n@@@@@@@\nHost key verification failed.",
                HostKey,
                false,
            ),
            ("deploy@vm: Permission denied (publickey).", Denied, false),
            ("Received disconnect from ::1 port 22:2: Too many authentication failures", Denied, false),
            ("@ WARNING: UNPROTECTED PRIVATE KEY FILE! @\ndeploy@vm: Permission denied (publickey).", Denied, false),
            ("Load key \"/k\": error in libcrypto\ndeploy@vm: Permission denied (publickey).", Denied, false),
            ("ssh: connect to host vm port 2222: Connection refused", Unreachable, true),
            ("ssh: connect to host vm port 2222: Connection timed out", Unreachable, true),
            ("Connection timed out during banner exchange", Unreachable, true),
            ("kex_exchange_identification: Connection closed by remote host", Unreachable, true),
            ("Connection reset by 10.0.0.1 port 22", Unreachable, true),
            ("Timeout, server vm not responding.", Unreachable, true),
            ("ssh: Could not resolve hostname vm: Name or service not known", Unreachable, false),
            ("ssh: Could not resolve hostname vm: Temporary failure in name resolution", Unreachable, true),
            ("ssh: connect to host vm port 2222: No route to host", Unreachable, false),
            ("ssh: connect to host vm port 2222: Network is unreachable", Unreachable, false),
            ("Unable to negotiate with 10.0.0.1 port 22: no matching host key type found.", Unsupported, false),
            ("/root/.ssh/config: line 1: Bad configuration option: foo", Unsupported, false),
            ("", Unreachable, false),
        ] {
            let fault = classify(stderr, &destination);
            assert_eq!((fault.kind, fault.transient), (kind, transient), "{stderr}");
            assert!(fault.context.contains("vm"), "{stderr}");
            assert_eq!(key_changed(&fault), stderr.contains("HAS CHANGED"), "{stderr}");
        }
    }

    #[test]
    fn a_crowd_at_the_door_is_told_from_nobody_there() {
        assert!(crowded(
            "kex_exchange_identification: Connection closed by remote host\r\nConnection closed by ::1 port 22"
        ));
        assert!(crowded("kex_exchange_identification: read: Connection reset by peer"));
        assert!(crowded("Connection timed out during banner exchange\r\nConnection to ::1 port 22 timed out"));
        assert!(!crowded(
            "kex_exchange_identification: Connection closed by remote host\nConnection closed by UNKNOWN port 65535"
        ));
        assert!(!crowded("ssh: connect to host vm port 2222: Connection refused"));
        assert!(!crowded("ssh: connect to host vm port 2222: Connection timed out"));
        assert!(!crowded("Connection closed by ::1 port 22"));
    }

    #[test]
    fn an_unknown_key_says_what_to_do_for_the_host_that_is_unknown() {
        let destination = Destination::parse("ssh://deploy@vm").expect("sound");
        let direct = classify("Host key verification failed.", &destination).context;
        assert!(direct.contains("ssh-keyscan -p 22 vm") && direct.contains("known_hosts"), "{direct}");
        let jump = "No ED25519 host key is known for [jump]:2200 and you have requested strict checking.\nHost key verification failed.";
        assert!(classify(jump, &destination).context.contains("ssh-keyscan -p 2200 jump`"));
    }

    #[test]
    fn the_essence_is_short_and_on_one_line() {
        assert_eq!(essence("@@@@\n\n a\r\n b\n"), "a; b");
        assert!(essence(&"x".repeat(5000)).len() <= 600);
        assert_eq!(essence("@@@"), "ssh ended without a word");
    }
}
