//! A source of secrets in memory.

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::fault::{Fault, FaultKind};
use crate::secret::Secret;
use crate::secrets::SecretSource;

/// Holds its secrets itself.
#[derive(Clone, Debug, Default)]
pub struct MemorySecrets {
    held: BTreeMap<String, Secret<String>>,
    names: Vec<String>,
    fails: Option<(FaultKind, bool)>,
}

impl MemorySecrets {
    /// A source that is asked for all that it holds.
    pub fn new<'a>(held: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let held: BTreeMap<_, _> =
            held.into_iter().map(|(name, value)| (name.to_owned(), Secret::new(value.to_owned()))).collect();
        Self { names: held.keys().cloned().collect(), held, fails: None }
    }

    /// The same source, asked for these names.
    #[must_use]
    pub fn asked_for(mut self, names: &[&str]) -> Self {
        self.names = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// The same source, failing from now on.
    #[must_use]
    pub const fn failing(mut self, kind: FaultKind, transient: bool) -> Self {
        self.fails = Some((kind, transient));
        self
    }
}

#[async_trait]
impl SecretSource for MemorySecrets {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    async fn fetch(&self) -> Result<BTreeMap<String, Secret<String>>, Fault> {
        const OPERATION: &str = "read secrets from memory";
        if let Some((kind, transient)) = self.fails {
            let fault = Fault::new(kind, OPERATION, "told to fail");
            return Err(if transient { fault.transient() } else { fault });
        }
        let missing: Vec<&str> =
            self.names.iter().filter(|name| !self.held.contains_key(*name)).map(String::as_str).collect();
        if !missing.is_empty() {
            return Err(Fault::new(FaultKind::NotFound, OPERATION, missing.join(", ")));
        }
        Ok(self
            .held
            .iter()
            .filter(|(name, _)| self.names.contains(name))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testkit::conformance;

    #[tokio::test]
    async fn conforms() {
        conformance::secrets::suite(|held, names| {
            let held = held.iter().map(|(name, value)| (name.as_str(), value.expose().as_str()));
            Arc::new(MemorySecrets::new(held).asked_for(names))
        })
        .await;
    }

    #[tokio::test]
    async fn fails_as_told() {
        let fault = MemorySecrets::new([]).failing(FaultKind::Unreachable, true).fetch().await.unwrap_err();
        assert_eq!((fault.kind, fault.transient), (FaultKind::Unreachable, true));
    }
}
