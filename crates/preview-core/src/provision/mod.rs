//! A VM from a cloud provider: exactly one of a name pattern. Contract of every provider.
//!
//! **Existence**: [`servers`](Provider::servers) finds all servers of the account, on however many pages, whatever their state, but not those that are being deleted.
//! **Once**: [`create`](Provider::create) makes one server and waits until it runs; where the name is taken, by somebody who was quicker, it
//! is `Conflict` and nothing was made. **Errors**: a wrong token is `Denied`; a server that could not be made for lack of machines or quota is
//! `Failed` with the provider's words. No error shows the token or the user data.

pub mod hetzner;

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use serde::Serialize;

use crate::fault::{Fault, FaultKind};
use crate::secret::Secret;
use crate::setup::print::HostKey;

/// A server as its provider knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Server {
    /// The provider's number for it.
    pub id: String,
    /// Its name.
    pub name: String,
    /// How it is, in the provider's word.
    pub status: String,
    /// Its public address.
    pub address: Option<String>,
}

/// What is ordered.
#[derive(Clone, Debug)]
pub struct Order {
    /// The server's name.
    pub name: String,
    /// The provider's name of its size.
    pub kind: String,
    /// Where.
    pub location: String,
    /// With which system.
    pub image: String,
    /// Names of keys, known to the provider, with which root may log in.
    pub ssh_keys: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What it does when it first starts; holds a private host key.
    pub user_data: Secret<String>,
}

/// A cloud provider.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Its name, for people.
    fn name(&self) -> &'static str;

    /// All servers with these labels (`key=value,…`; empty for all), without those that are being deleted.
    async fn servers(&self, labels: &str) -> Result<Vec<Server>, Fault>;

    /// Makes a server, and waits until it runs.
    async fn create(&self, order: &Order) -> Result<Server, Fault>;
}

/// What to do about the servers that were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is exactly one: that is it.
    Adopt(Server),
    /// There is none.
    Create,
    /// There are several: somebody has to say which one is meant.
    Refuse(Vec<Server>),
}

/// One is adopted, none is created, two are refused. Pure.
#[must_use]
pub fn decide(pattern: &str, found: Vec<Server>) -> Decision {
    let mut found: Vec<Server> = found.into_iter().filter(|server| matches(pattern, &server.name)).collect();
    match found.len() {
        0 => Decision::Create,
        1 => Decision::Adopt(found.remove(0)),
        _ => Decision::Refuse(found),
    }
}

/// Whether a name fits a pattern, in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = rest.split('*').collect();
    let (last, middle) = parts.split_last().map_or(("", &[] as &[&str]), |(last, middle)| (*last, middle));
    for part in middle {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(last)
}

/// How a server came to be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It was there.
    Adopted,
    /// It was made.
    Created,
    /// It would be made.
    WouldCreate,
    /// There are several: somebody has to say which one is meant.
    Refused,
}

/// The one server, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Provisioned {
    /// Its provider.
    pub provider: &'static str,
    /// How it came to be ours.
    pub action: Action,
    /// The server, if there is one.
    pub server: Option<Server>,
    /// Those that fit, where there are several.
    pub candidates: Vec<Server>,
    /// The line that pins its host key, where we know it: we made the key of a server that we made.
    pub known_hosts: Option<String>,
}

impl Provisioned {
    /// The exit code of the command line: see the table in `docs/exit-codes.md`.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        if matches!(self.action, Action::Refused) { 3 } else { 0 }
    }
}

/// Adopts the one server of the pattern, creates it, or refuses where there are two.
///
/// `ordering` is called before one is ordered: whatever becomes of the answer, a server with this host key may be there from then on.
///
/// # Errors
/// `Invalid` if the order does not fit its own pattern or selector of labels: a second run would create a second
/// server; or if nobody could log in to the new one. Those of the provider.
pub async fn provision(
    provider: &dyn Provider,
    pattern: &str,
    labels: &str,
    order: &Order,
    host_key: &str,
    dry_run: bool,
    ordering: &(dyn Fn() + Sync),
) -> Result<Provisioned, Fault> {
    const OPERATION: &str = "provision a VM";
    if !matches(pattern, &order.name) {
        let context = format!(
            "the name {} does not fit the pattern {pattern}: the next run would not find the server",
            order.name
        );
        return Err(Fault::new(FaultKind::Invalid, OPERATION, context));
    }
    let done = |action, server, known_hosts| Provisioned {
        provider: provider.name(),
        action,
        server,
        candidates: Vec::new(),
        known_hosts,
    };
    let decision = decide(pattern, provider.servers(labels).await?);
    if decision == Decision::Create
        && let Some(wrong) = unselected(labels, &order.labels)
    {
        let context = format!("--label-selector: {wrong}: the next run would not find the server");
        return Err(Fault::new(FaultKind::Invalid, OPERATION, context));
    }
    if decision == Decision::Create && order.ssh_keys.is_empty() {
        let context = "no server is there, and a new one needs --ssh-key: with no key, root has a password that the provider sends by mail, and `preview vm setup` cannot log in";
        return Err(Fault::new(FaultKind::Invalid, OPERATION, context));
    }
    match decision {
        Decision::Adopt(server) => Ok(done(Action::Adopted, Some(server), None)),
        Decision::Create if dry_run => Ok(done(Action::WouldCreate, None, None)),
        Decision::Create => {
            ordering();
            let server = provider.create(order).await?;
            let line = server.address.as_ref().map(|address| format!("{address} {}", host_key.trim()));
            Ok(done(Action::Created, Some(server), line))
        }
        Decision::Refuse(candidates) => Ok(Provisioned { candidates, ..done(Action::Refused, None, None) }),
    }
}

/// What of a selector (`key=value,key`) these labels do not fit; pure. Other forms of selectors are not for something that is to be made.
fn unselected(selector: &str, labels: &BTreeMap<String, String>) -> Option<String> {
    selector.split(',').map(str::trim).filter(|part| !part.is_empty()).find_map(|part| {
        let plain =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
        let (key, value) = match part.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value.trim_start_matches('=').trim())),
            None => (part, None),
        };
        if !plain(key) || !value.is_none_or(|value| value.is_empty() || plain(value)) {
            return Some(format!(
                "`{part}` is neither KEY=VALUE nor KEY, so it cannot be said whether a new server fits"
            ));
        }
        match (labels.get(key), value) {
            (Some(_), None) => None,
            (Some(label), Some(value)) if label == value => None,
            _ => Some(format!("a new server lacks the label `{part}`, give it with --label")),
        }
    })
}

/// A new host key, made by `ssh-keygen` in a directory of ours. The server gets it with its user data, and so its key is known before the first contact.
///
/// # Errors
/// `Unsupported` where there is no `ssh-keygen`.
pub async fn host_key(directory: &Path) -> Result<HostKey, Fault> {
    const OPERATION: &str = "make a host key";
    let file = directory.join("host_key");
    let made = tokio::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "preview", "-f"])
        .arg(&file)
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .map_err(|error| {
            Fault::new(FaultKind::Unsupported, OPERATION, "ssh-keygen cannot be started").caused_by(error)
        })?;
    if !made.status.success() {
        return Err(Fault::new(FaultKind::Failed, OPERATION, String::from_utf8_lossy(&made.stderr).trim().to_owned()));
    }
    let read = |path: std::path::PathBuf| async move {
        tokio::fs::read_to_string(&path)
            .await
            .map_err(|error| Fault::new(FaultKind::Failed, OPERATION, path.display().to_string()).caused_by(error))
    };
    let public = read(file.with_extension("pub")).await?;
    // Without its comment, which says nothing.
    let public = public.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    Ok(HostKey { private: Secret::new(read(file).await?), public })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str) -> Server {
        Server { id: format!("id-{name}"), name: name.to_owned(), status: "running".to_owned(), address: None }
    }

    fn found(names: &[&str]) -> Vec<Server> {
        names.iter().map(|name| server(name)).collect()
    }

    #[test]
    fn one_is_adopted_none_created_two_refused() {
        assert_eq!(decide("preview*", found(&["db", "preview-1"])), Decision::Adopt(server("preview-1")));
        assert_eq!(decide("preview*", found(&["db", "my-preview"])), Decision::Create);
        assert_eq!(
            decide("preview*", found(&["preview-1", "db", "preview-2"])),
            Decision::Refuse(found(&["preview-1", "preview-2"]))
        );
    }

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("*a", "ba", true),
            ("*a", "ab", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-c", false),
            ("a*a", "a", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_new_server_is_one_that_the_selector_finds() {
        let labels = BTreeMap::from([("team".to_owned(), "a".to_owned()), ("preview".to_owned(), String::new())]);
        for selector in ["", "team=a", "team==a", "team", "team=a,preview", "preview=, team=a"] {
            assert_eq!(unselected(selector, &labels), None, "{selector}");
        }
        for selector in ["team=b", "other", "team=a,other=x", "!team", "team!=b", "team in (a,b)"] {
            assert!(unselected(selector, &labels).is_some(), "{selector}");
        }
    }

    #[tokio::test]
    async fn a_host_key_is_a_pair_of_its_own() {
        let directory = tempfile::tempdir().expect("a directory");
        let key = host_key(directory.path()).await.expect("a key");
        assert!(key.private.expose().starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
        let (kind, public) = key.public.split_once(' ').expect("two words");
        assert_eq!(kind, "ssh-ed25519");
        assert!(public.len() > 60 && !public.contains(' '));
        let other = tempfile::tempdir().expect("a directory");
        assert_ne!(host_key(other.path()).await.expect("a key").public, key.public);
    }
}
