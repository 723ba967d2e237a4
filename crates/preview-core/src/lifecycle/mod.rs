//! Deploy, destroy, list and the rest: observe, plan, apply. Knows neither argv nor CI, neither Docker nor SSH.

mod crash;
mod deploy;
mod destroy;
mod diagnose;
mod dockerfiles;
mod error;
mod fence;
mod files;
mod flight;
mod footprint;
mod judge;
mod keep;
mod leading;
mod metrics;
mod neighbours;
mod note;
mod observe;
mod place;
mod prepare;
mod probe;
mod query;
mod reclaim;
mod records;
mod roll;
mod run;
mod stages;
mod sweep;
mod swept;
mod tree;
mod undo;
mod up;
mod verify;
mod wait;

pub use deploy::{Deployed, deploy, plan};
pub use destroy::{Destroy, Destroyed, Whose, destroy};
pub use diagnose::Diagnosis;
pub use error::{Error, FailureReport, Refusal, Restored};
pub use footprint::{Footprint, footprint};
pub use keep::{Wish, keep};
pub use metrics::publish;
pub use query::{Listed, Queued, Status, history, list, log_containers, pick_container, status, still_there};
pub use run::{Event, Interrupt, Observer, Quiet};
pub use sweep::{Sweep, sweep};
pub use swept::{Gone, Mended, Swept, Unswept};

use std::sync::Arc;

use crate::dns::Dns;
use crate::engine::Engine;
use crate::host::Host;
use crate::lock::Lock;
use crate::ownership::Selector;
use crate::project::Target;
use crate::proxy::Proxy;
use crate::runtime::Runtime;

/// A host that was reached: everything that changes things.
#[derive(Clone)]
pub struct Client {
    /// Its files.
    pub host: Arc<dyn Host>,
    /// Its engine.
    pub engine: Arc<dyn Engine>,
    /// Its locks.
    pub lock: Arc<dyn Lock>,
    /// What brings stacks up on it.
    pub runtime: Arc<dyn Runtime>,
    /// What writes records of the hosts of its previews; `None`: nobody does, and a wildcard record answers.
    pub dns: Option<Arc<dyn Dns>>,
    /// The directory of all previews on it.
    pub base_dir: String,
    /// The proxy that leads to them.
    pub proxy: Proxy,
}

impl Client {
    /// The objects of a preview of this base directory: those of another one on the same engine are not touched.
    pub(crate) fn objects_of(&self, target: &Target) -> Selector {
        Selector::preview(&target.app, &target.name).below(&self.base_dir)
    }
}
