//! Where each key stands, so that errors found late can point at it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;

/// Line and column, both from 1.
type Position = (u32, u32);

/// Where a key and its value stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    key: Position,
    value: Position,
}

/// Where the configuration comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Origin {
    file: Option<PathBuf>,
    places: BTreeMap<String, Place>,
    /// Keys whose value comes from a flag or a variable, and its name.
    overridden: BTreeMap<&'static str, &'static str>,
    /// Keys at the top that come from another file, and that file's places.
    elsewhere: Option<(Vec<&'static str>, Arc<Origin>)>,
}

/// The path of a key below another one.
pub(super) fn child(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The path of an element of a list.
pub(super) fn element(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

impl Origin {
    /// Reads a document and notes where everything stands.
    pub(super) fn parse(text: &str, file: Option<&Path>) -> Result<(Self, toml::Table), ConfigError> {
        let mut origin = Self { file: file.map(Path::to_owned), ..Self::default() };
        let broken = |error: &toml::de::Error| {
            let position = error.span().map(|span| position(text, span.start));
            ConfigError {
                file: file.map(Path::to_owned),
                line: position.map(|(line, _)| line),
                column: position.map(|(_, column)| column),
                key: None,
                message: format!("not valid TOML: {}", error.message().replace('\n', ", ")),
                help: None,
            }
        };
        let document = DeTable::parse(text).map_err(|error| broken(&error))?;
        origin.note_table(text, "", document.get_ref());
        let table = toml::from_str(text).map_err(|error| broken(&error))?;
        Ok((origin, table))
    }

    fn note_table(&mut self, text: &str, path: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = child(path, key.get_ref());
            let place = Place { key: position(text, key.span().start), value: position(text, value.span().start) };
            self.places.insert(path.clone(), place);
            self.note(text, &path, value.get_ref());
        }
    }

    fn note(&mut self, text: &str, path: &str, value: &DeValue<'_>) {
        match value {
            DeValue::Table(table) => self.note_table(text, path, table),
            DeValue::Array(array) => {
                for (index, value) in array.iter().enumerate() {
                    let path = element(path, index);
                    let start = position(text, value.span().start);
                    self.places.insert(path.clone(), Place { key: start, value: start });
                    self.note(text, &path, value.get_ref());
                }
            }
            _ => {}
        }
    }

    /// Notes that a flag or variable gave this key its value.
    pub(super) fn override_key(&mut self, key: &'static str, by: &'static str) {
        self.overridden.insert(key, by);
    }

    /// Notes that these keys at the top come from another file.
    pub(super) fn take_from(&mut self, keys: Vec<&'static str>, other: Arc<Self>) {
        self.elsewhere = Some((keys, other));
    }

    /// Whether keys come from another file.
    pub(super) fn is_overruled(&self) -> bool {
        self.elsewhere.is_some()
    }

    /// Whether the file itself says something about a key.
    pub(super) fn says(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// The file, for messages.
    pub(super) fn shown(&self, otherwise: &str) -> String {
        self.file.as_ref().map_or_else(|| otherwise.to_owned(), |file| file.display().to_string())
    }

    /// An error at the value of a key.
    pub(super) fn at(&self, key: &str, message: impl Into<String>) -> ConfigError {
        self.error(key, message.into(), |place| place.value)
    }

    /// An error at a key itself.
    pub(super) fn at_key(&self, key: &str, message: impl Into<String>) -> ConfigError {
        self.error(key, message.into(), |place| place.key)
    }

    /// Where a key is set: `preview.toml:12: route[0]`.
    pub(super) fn place(&self, key: &str) -> String {
        let found = self.at_key(key, String::new());
        match (found.file, found.line, found.key) {
            (Some(file), Some(line), _) => format!("{}:{line}: {key}", file.display()),
            (_, _, key) => key.unwrap_or_default(),
        }
    }

    fn error(&self, key: &str, message: String, of: fn(&Place) -> Position) -> ConfigError {
        let overridden = self.overridden.iter().find(|(overridden, _)| {
            key.strip_prefix(**overridden).is_some_and(|rest| rest.is_empty() || rest.starts_with(['[', '.']))
        });
        if let Some((_, by)) = overridden {
            return ConfigError::new(*by, message);
        }
        if let Some((keys, other)) = &self.elsewhere
            && keys.contains(&key.split(['.', '[']).next().unwrap_or(key))
        {
            return other.error(key, message, of);
        }
        // What is missing has no place: the closest thing around it has.
        let mut around = key;
        let position = loop {
            if let Some(place) = self.places.get(around) {
                break Some(of(place));
            }
            match around.rfind(['.', '[']) {
                Some(end) => around = &around[..end],
                None => break None,
            }
        };
        let position = position.or_else(|| self.file.is_some().then_some((1, 1)));
        ConfigError {
            file: self.file.clone(),
            line: position.map(|(line, _)| line),
            column: position.map(|(_, column)| column),
            key: (!key.is_empty()).then(|| key.to_owned()),
            message,
            help: None,
        }
    }
}

/// Line and column of a byte.
fn position(text: &str, offset: usize) -> Position {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let from_one = |count: usize| u32::try_from(count).map_or(u32::MAX, |count| count.saturating_add(1));
    (from_one(before.matches('\n').count()), from_one(before[line_start..].chars().count()))
}
