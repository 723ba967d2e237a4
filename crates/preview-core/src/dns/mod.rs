//! What resolves the hosts of previews: the contract of [`Dns`], and the table that says who keeps it.
//!
//! # The contract
//! - **Ours and others'.** Each record carries a mark: which VM wrote it, and for which preview ([`Marks`]). Only what carries the mark of this VM
//!   and of this preview is changed or removed. An address record (A, AAAA, CNAME) of a wanted host without it is a
//!   [`Conflict`](crate::fault::FaultKind::Conflict) that names the host and says what to do; then nothing at all was changed.
//! - **All or nothing.** [`write`](Dns::write) changes all hosts or none. A fault that is neither transient, nor
//!   [`TimedOut`](crate::fault::FaultKind::TimedOut) or [`Unreachable`](crate::fault::FaultKind::Unreachable) means: none.
//! - **Idempotence.** What is as it should be is not written. Writing twice is writing once; what was changed by hand, but still has the mark, is set right.
//! - **Absence.** Removing what is not there, or is not ours, is fine and removes nothing.
//! - **Errors.** [`Denied`](crate::fault::FaultKind::Denied): the credentials, or their rights. Transient ones may be tried again; that is the caller's
//!   business. An adapter only waits where the other side says how long, and then at most [`PATIENCE`].
//! - **Cancellation.** A call that is dropped may have happened. Writing or removing again is always right.

pub mod cloudflare;
mod record;
pub mod rfc2136;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use record::{Marks, Owned, Value};

use crate::config::{AdapterTable, ConfigError, Environment, Tunnel};
use crate::fault::{Fault, FaultKind};
use crate::lock::Lock;
use crate::project::Target;

/// An adapter waits at most so long in all where a server asks it to.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Seconds that resolvers may keep a record, where nothing else is said.
const TTL: u32 = 120;

/// Records of the hosts that are previews' own. See the [module](self) for the contract.
#[async_trait]
pub trait Dns: Send + Sync {
    /// Who keeps the records, for people: `Cloudflare, zone example.com`.
    fn describe(&self) -> String;

    /// What must not happen twice at once on this VM happens under locks of these, below this directory. Said before anything is written; most adapters
    /// need none.
    fn under(&self, lock: &Arc<dyn Lock>, base_dir: &str) {
        let _ = (lock, base_dir);
    }

    /// Whether records of these hosts can be had at all, as far as that can be told without asking anybody; the warnings are for people.
    fn check(&self, hosts: &BTreeSet<String>) -> Result<Vec<String>, Fault>;

    /// Makes these hosts lead to the VM. How many of them were not as they should be.
    async fn write(&self, preview: &Target, hosts: &BTreeSet<String>) -> Result<usize, Fault>;

    /// Removes the preview's records of these hosts. How many hosts had one.
    async fn remove(&self, preview: &Target, hosts: &BTreeSet<String>) -> Result<usize, Fault>;

    /// The records of all previews of this VM. [`Unsupported`](FaultKind::Unsupported) where the server does not tell.
    async fn list(&self) -> Result<Vec<Owned>, Fault>;
}

/// For which VM records are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The VM's name or address; `None`: this machine.
    pub host: Option<String>,
    /// The port of its `sshd`, where one is named: two VMs may stand behind one address.
    pub port: Option<u16>,
    /// The directory of all previews on it.
    pub base_dir: String,
    /// The tunnel that requests come through, if they do.
    pub tunnel: Option<Tunnel>,
}

/// Secrets that adapters take from the environment. They are for nobody else: not for `[[secrets]]`, which a pull request may write.
pub const SECRETS: [&str; 3] = [cloudflare::TOKEN, cloudflare::OWN_TOKEN, rfc2136::KEY];

/// The adapter that a `[dns]` table describes: one line an adapter. `None`: nobody writes records, a wildcard record answers.
pub fn from_table(
    table: &AdapterTable,
    place: &Place,
    environment: &Environment,
) -> Result<Option<Arc<dyn Dns>>, ConfigError> {
    match table.kind() {
        "none" => Ok(None),
        "cloudflare" => Ok(Some(Arc::new(cloudflare::Cloudflare::from_table(table, place, environment)?))),
        "rfc2136" => Ok(Some(Arc::new(rfc2136::Rfc2136::from_table(table, place, environment)?))),
        _ => Err(table.unknown_kind(&["none", "cloudflare", "rfc2136"])),
    }
}

/// What the records lead to, and by which mark they are known.
fn value_and_marks(table: &AdapterTable, place: &Place, target: Option<&str>) -> Result<(Value, Marks), ConfigError> {
    let Some(text) = target.or(place.host.as_deref()) else {
        return Err(table.error("target", "is needed where the VM is this machine: its public address or name"));
    };
    let value = Value::parse(text).map_err(|why| table.error("target", format!("`{}` {why}", text.escape_debug())))?;
    let host = match (&place.host, place.port) {
        // The usual port, named or not, is the same VM.
        (Some(host), Some(port)) if port != 22 => format!("{host}:{port}"),
        (Some(host), _) => host.clone(),
        // Two machines that call themselves so are told apart by what leads to them.
        (None, _) => format!("local {value}"),
    };
    Ok((value, Marks::new(&host, &place.base_dir)))
}

/// The zone, as it is compared: in lower case, without the last dot.
fn zone(table: &AdapterTable, zone: &str) -> Result<String, ConfigError> {
    let zone = zone.trim_end_matches('.').to_ascii_lowercase();
    if zone.split('.').all(record::is_label) {
        Ok(zone)
    } else {
        Err(table.error("zone", format!("`{}` is not the name of a zone", zone.escape_debug())))
    }
}

/// Each host has to lie in the zone.
fn check_zone(zone: &str, hosts: &BTreeSet<String>) -> Result<(), Fault> {
    let inside = |host: &str| host == zone || host.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.'));
    match hosts.iter().find(|host| !inside(host)) {
        None => Ok(()),
        Some(host) => {
            Err(Fault::new(FaultKind::Invalid, WRITE, format!("{host} does not lie in the zone {zone} ([dns] zone)")))
        }
    }
}

/// An address record that is not this preview's.
fn foreign(host: &str, found: &str) -> Fault {
    Fault::new(
        FaultKind::Conflict,
        WRITE,
        format!(
            "{host} has a record already that is not this preview's ({found}), and it was left as it is: remove that record, or choose \
             another address (`url`)"
        ),
    )
}

const WRITE: &str = "write the preview's DNS records";
const REMOVE: &str = "remove the preview's DNS records";
const LIST: &str = "list the DNS records of previews";
