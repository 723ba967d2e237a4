//! `kind = "env"`: secrets that the environment of the run holds, by name. This is how CI systems hand them over.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::Deserialize;

use super::SecretSource;
use crate::config::{AdapterTable, ConfigError, Environment, VariableName};
use crate::fault::{Fault, FaultKind};
use crate::secret::Secret;

/// Keys of the table beside `kind`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    names: Vec<VariableName>,
}

/// Variables of this run's environment. Holds only those that were asked for.
#[derive(Clone, Debug)]
pub struct EnvSource {
    held: BTreeMap<String, Secret<String>>,
    unset: Vec<String>,
    empty: Vec<String>,
}

impl EnvSource {
    /// The variables of these names.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a VariableName>, environment: &Environment) -> Self {
        let (mut held, mut unset, mut empty) = (BTreeMap::new(), Vec::new(), Vec::new());
        for name in names {
            let name = name.to_string();
            match environment.get(&name) {
                None => unset.push(name),
                // What CI systems make of a secret that does not exist, or that this run may not see.
                Some(value) if value.is_empty() => empty.push(name),
                Some(value) => {
                    held.insert(name, Secret::new(value.clone()));
                }
            }
        }
        Self { held, unset, empty }
    }

    pub(super) fn from_table(table: &AdapterTable, environment: &Environment) -> Result<Self, ConfigError> {
        let names = table.parse::<Table>()?.names;
        if names.is_empty() {
            return Err(table.error("names", "is an empty list: name the variables that hold the secrets"));
        }
        Ok(Self::new(&names, environment))
    }
}

#[async_trait]
impl SecretSource for EnvSource {
    fn describe(&self) -> String {
        "environment of this run".to_owned()
    }

    async fn fetch(&self) -> Result<BTreeMap<String, Secret<String>>, Fault> {
        let mut missing = Vec::new();
        if !self.unset.is_empty() {
            missing.push(format!("not set: {}", self.unset.join(", ")));
        }
        if !self.empty.is_empty() {
            missing.push(format!("empty: {}", self.empty.join(", ")));
        }
        if missing.is_empty() {
            Ok(self.held.clone())
        } else {
            Err(Fault::new(FaultKind::NotFound, "read secrets from the environment of this run", missing.join("; ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::from_table;
    use super::*;
    use crate::testkit::conformance;

    #[tokio::test]
    async fn conforms() {
        conformance::secrets::suite(|held, names| {
            let environment = held.iter().map(|(name, value)| (name.clone(), value.expose().clone())).collect();
            let names: Vec<_> = names.iter().map(|name| VariableName::parse(name).unwrap()).collect();
            Arc::new(EnvSource::new(&names, &environment))
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_missing_is_named_all_at_once() {
        let names = ["A", "B", "C", "D"].map(|name| VariableName::parse(name).unwrap());
        let environment = Environment::from([("A".into(), "hunter22".into()), ("C".into(), String::new())]);
        let fault = EnvSource::new(&names, &environment).fetch().await.unwrap_err();
        assert_eq!(fault.to_string(), "cannot read secrets from the environment of this run: not set: B, D; empty: C");
    }

    #[test]
    fn tables() {
        let table = |text: &str| {
            let mut table: toml::Table = toml::from_str(text).unwrap();
            let kind = table.remove("kind").unwrap();
            from_table(&AdapterTable::new(kind.as_str().unwrap(), table), &Environment::new())
                .map(|source| source.describe())
        };
        assert_eq!(table("kind = 'env'\nnames = ['A']").unwrap(), "environment of this run");
        let error = |text: &str| table(text).unwrap_err().to_string();
        assert_eq!(error("kind = 'env'"), "`names` is missing");
        assert_eq!(
            error("kind = 'env'\nnames = []"),
            "names: is an empty list: name the variables that hold the secrets"
        );
        assert_eq!(error("kind = 'env'\nnames = ['A']\nname = 'B'"), "unknown key `name`; did you mean `names`?");
        assert_eq!(error("kind = 'vault'"), "kind: `vault` is not known here; there are: `env`");
    }
}
