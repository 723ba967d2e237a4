//! What has to be known of a machine before its steps can be drawn up: asked in one script, read here. Pure.

use base64::Engine as _;

use super::proxy::Present;
use crate::fault::{Fault, FaultKind};

/// Prints the facts, a line each. Runs as root. Of secrets only the hash.
pub(super) const SCRIPT: &str = r#"
. /etc/os-release
printf 'os %s\nversion %s\nname %s\n' "$ID" "${VERSION_ID:-}" "${PRETTY_NAME:-$ID}"
[ ! -s /var/lib/docker/swarm/docker-state.json ] || echo swarm yes
[ ! -e /etc/docker/daemon.json ] || printf 'daemon %s\n' "$(base64 </etc/docker/daemon.json | tr -d '\n')"
cd /opt/preview-proxy 2>/dev/null && {
  [ ! -e traefik.yml ] || printf 'traefik %s\n' "$(base64 <traefik.yml | tr -d '\n')"
  [ ! -e dynamic/tls.yml ] || printf 'tls %s\n' "$(base64 <dynamic/tls.yml | tr -d '\n')"
  for file in acme.env certs/*; do [ ! -f "$file" ] || printf 'file %s %s\n' "$(sha256sum <"$file" | cut -c 1-64)" "$file"; done
}
echo end
"#;

/// Systems that the steps were made for, as `ID VERSION_ID` of `/etc/os-release`.
pub(super) const SYSTEMS: [&str; 4] = ["debian 12", "debian 13", "ubuntu 22.04", "ubuntu 24.04"];

/// What a machine is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `ID VERSION_ID` of `/etc/os-release`; empty for a machine that does not exist yet.
    pub system: String,
    /// How the system calls itself.
    pub name: String,
    /// Content of `/etc/docker/daemon.json`.
    pub daemon: Option<String>,
    /// Whether the engine belongs to a swarm.
    pub swarm: bool,
    /// What the proxy has of certificates.
    pub proxy: Present,
}

impl Facts {
    /// Reads what [`SCRIPT`] printed.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        const OPERATION: &str = "look at the machine";
        let unclear = |what: &str| Fault::new(FaultKind::Failed, OPERATION, format!("{what} was not understood"));
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        if !text.lines().any(|line| line == "end") {
            return Err(unclear("what it is"));
        }
        let content = |key: &str, path: &str| -> Result<Option<String>, Fault> {
            let Some(encoded) = value(key) else { return Ok(None) };
            let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).ok();
            bytes.and_then(|bytes| String::from_utf8(bytes).ok()).map(Some).ok_or_else(|| unclear(path))
        };
        let hashes = text.lines().filter_map(|line| line.strip_prefix("file ")?.split_once(' '));
        let proxy = Present {
            traefik: content("traefik", "traefik.yml of the proxy")?.unwrap_or_default(),
            tls: content("tls", "dynamic/tls.yml of the proxy")?.unwrap_or_default(),
            files: hashes.map(|(hash, path)| (path.to_owned(), hash.to_owned())).collect(),
        };
        let daemon = content("daemon", "/etc/docker/daemon.json")?;
        let facts = Self {
            system: format!("{} {}", value("os").unwrap_or_default(), value("version").unwrap_or_default()),
            name: value("name").unwrap_or_default().to_owned(),
            daemon,
            swarm: value("swarm").is_some(),
            proxy,
        };
        if SYSTEMS.contains(&facts.system.as_str()) {
            return Ok(facts);
        }
        let context = format!(
            "it runs {}; this command knows Debian 12 and 13, Ubuntu 22.04 and 24.04. docs/vm-setup.md says what a machine needs, to do it by hand",
            facts.name
        );
        Err(Fault::new(FaultKind::Unsupported, OPERATION, context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_says() {
        let facts = Facts::parse("os debian\nversion 12\nname Debian GNU/Linux 12 (bookworm)\ndaemon e30K\nend\n")
            .expect("sound");
        assert_eq!(facts.system, "debian 12");
        assert_eq!((facts.daemon.as_deref(), facts.swarm), (Some("{}\n"), false));
        assert_eq!(facts.proxy, Present::default());
        let more =
            "os debian\nversion 12\nname x\ntraefik e30K\ntls e30K\nfile 12ab acme.env\nfile 34cd certs/a b.key\nend\n";
        let proxy = Facts::parse(more).expect("sound").proxy;
        assert_eq!((proxy.traefik.as_str(), proxy.tls.as_str()), ("{}\n", "{}\n"));
        assert_eq!(
            proxy.files.into_iter().collect::<Vec<_>>(),
            [("acme.env".to_owned(), "12ab".to_owned()), ("certs/a b.key".to_owned(), "34cd".to_owned())]
        );
    }

    #[test]
    fn other_systems_and_broken_answers_are_refused() {
        let other = Facts::parse("os alpine\nversion 3.20\nname Alpine Linux v3.20\nend\n").expect_err("refused");
        assert_eq!(other.kind, FaultKind::Unsupported);
        assert!(other.context.contains("Alpine Linux v3.20") && other.context.contains("by hand"), "{}", other.context);
        assert_eq!(Facts::parse("os debian\nversion 12\n").expect_err("cut off").kind, FaultKind::Failed);
        assert!(Facts::parse("os debian\nversion 12\ndaemon %\nend\n").is_err());
    }
}
