//! Where secrets come from. Contract of every secrets adapter.
//!
//! **Absence**: a name that was asked for and does not exist is `NotFound`, and the message names it (never a value).
//! **Effects**: none. **Errors**: rights that are missing are `Denied`; a service that cannot be reached is transient.

use std::collections::BTreeMap;

use async_trait::async_trait;

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
