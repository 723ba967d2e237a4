//! Where secrets come from. Contract of every secrets adapter.
//!
//! **Absence**: a name that was asked for and does not exist is `NotFound`, and the message names it (never a value).
//! **Effects**: none. **Errors**: rights that are missing are `Denied`; a service that cannot be reached is transient.

mod env;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

pub use env::EnvSource;

use crate::config::{AdapterTable, ConfigError, Environment};
use crate::fault::Fault;
use crate::secret::Secret;

/// A source of secrets.
#[async_trait]
pub trait SecretSource: Send + Sync {
    /// How people call it: `environment of this run`.
    fn describe(&self) -> String;

    /// All values of this source.
    async fn fetch(&self) -> Result<BTreeMap<String, Secret<String>>, Fault>;
}

/// The source that a `[[secrets]]` table describes: one line an adapter.
pub fn from_table(table: &AdapterTable, environment: &Environment) -> Result<Arc<dyn SecretSource>, ConfigError> {
    match table.kind() {
        "env" => Ok(Arc::new(EnvSource::from_table(table, environment)?)),
        _ => Err(table.unknown_kind(&["env"])),
    }
}
