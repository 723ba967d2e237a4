//! A table that belongs to an adapter: `kind`, and keys that only the adapter knows.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::decode::decode;
use super::error::ConfigError;
use super::origin::{Origin, child};

/// One `[[secrets]]` table: its kind, and what the adapter of that kind reads by itself, with errors as good as ours.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterTable {
    kind: String,
    table: toml::Table,
    path: String,
    origin: Arc<Origin>,
}

impl AdapterTable {
    /// A table that stands at `path` (`secrets[0]`).
    pub(super) fn from_file(table: &toml::Table, path: String, origin: Arc<Origin>) -> Result<Self, ConfigError> {
        let mut table = table.clone();
        let kind = match table.remove("kind") {
            Some(toml::Value::String(kind)) => kind,
            Some(_) => return Err(origin.at(&child(&path, "kind"), "expected a string")),
            None => return Err(origin.at(&path, format!("`{path}` needs `kind`"))),
        };
        Ok(Self { kind, table, path, origin })
    }

    /// A table without a file, for tests and for programs that embed the library.
    pub fn new(kind: impl Into<String>, table: toml::Table) -> Self {
        Self { kind: kind.into(), table, path: String::new(), origin: Arc::default() }
    }

    /// Which adapter is meant.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The keys beside `kind`, as the adapter's own type. `deny_unknown_fields` on that type gives errors with suggestions.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        decode(&self.table, &self.origin, &self.path)
    }

    /// An error at one of the keys of this table.
    pub fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        self.origin.at(&child(&self.path, key), message)
    }

    /// The error of a kind that is none of `known`.
    #[must_use]
    pub fn unknown_kind(&self, known: &[&str]) -> ConfigError {
        let known = known.iter().map(|kind| format!("`{kind}`")).collect::<Vec<_>>().join(", ");
        self.error("kind", format!("`{}` is not known here", self.kind.escape_debug()))
            .with_help(format!("there are: {known}"))
    }
}

/// Those of a list of tables.
pub(super) fn tables(
    key: &str,
    tables: &[toml::Table],
    origin: &Arc<Origin>,
) -> Result<Vec<AdapterTable>, ConfigError> {
    tables
        .iter()
        .enumerate()
        .map(|(index, table)| AdapterTable::from_file(table, super::origin::element(key, index), Arc::clone(origin)))
        .collect()
}

/// The environment of the run, as a value.
pub type Environment = BTreeMap<String, String>;
