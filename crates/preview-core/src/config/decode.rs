//! From TOML values to types, with errors that know the key and never quote a value.
//!
//! serde's own messages quote what they did not expect, which may be a secret in the wrong place, and know no place.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use toml::Value;

use super::error::ConfigError;
use super::origin::{Origin, child, element};

/// Reads a type from the table that stands at `path`.
pub(super) fn decode<T: DeserializeOwned>(table: &toml::Table, origin: &Origin, path: &str) -> Result<T, ConfigError> {
    let value = Value::Table(table.clone());
    T::deserialize(Reader { value: &value, path: path.to_owned() }).map_err(|fault| {
        let key = fault.path.as_deref().unwrap_or(path);
        let place = if fault.on_key { Origin::at_key } else { Origin::at };
        match fault.what {
            What::UnknownKey { expected } => {
                let error = place(origin, key, format!("unknown key `{key}`"));
                let last = key.rsplit('.').next().unwrap_or(key);
                error.with_help(suggestion(last, expected))
            }
            What::UnknownValue { value, expected } => {
                place(origin, key, format!("`{}` is not known here", value.escape_debug()))
                    .with_help(suggestion(&value, expected))
            }
            What::MissingKey(missing) if key.is_empty() => place(origin, key, format!("`{missing}` is missing")),
            What::MissingKey(missing) => place(origin, key, format!("`{key}` needs `{missing}`")),
            What::Other(message) => {
                let brackets = brackets(key, &message);
                let error = place(origin, key, message);
                match brackets {
                    Some(help) => error.with_help(help),
                    None => error,
                }
            }
        }
    })
}

/// A table where a list of tables belongs, or the other way round: the number of brackets is wrong.
fn brackets(key: &str, message: &str) -> Option<String> {
    let is_path = key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) && !key.is_empty();
    match message {
        "expected a list, found a table" if is_path => {
            Some(format!("there may be several: write `[[{key}]]`, with two brackets on each side, above each of them"))
        }
        "expected a table, found a list" if is_path => {
            Some(format!("there is one: write `[{key}]`, with one bracket on each side"))
        }
        _ => None,
    }
}

/// What else it could have been.
pub(crate) fn suggestion(found: &str, expected: &[&str]) -> String {
    let close = expected.iter().map(|known| (distance(found, known), known)).min();
    match close {
        Some((distance, known)) if distance <= found.len().max(known.len()).div_ceil(3) => {
            format!("did you mean `{known}`?")
        }
        _ => format!("there are: {}", expected.iter().map(|known| format!("`{known}`")).collect::<Vec<_>>().join(", ")),
    }
}

/// How many letters have to change (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], cost);
        }
    }
    row[b.len()]
}

/// What a reader met.
#[derive(Debug)]
struct Fault {
    path: Option<String>,
    on_key: bool,
    what: What,
}

#[derive(Debug)]
enum What {
    UnknownKey { expected: &'static [&'static str] },
    UnknownValue { value: String, expected: &'static [&'static str] },
    MissingKey(&'static str),
    Other(String),
}

impl From<What> for Fault {
    fn from(what: What) -> Self {
        Self { path: None, on_key: false, what }
    }
}

impl Fault {
    /// The innermost place is the right one.
    fn at(mut self, path: impl FnOnce() -> String) -> Self {
        self.path.get_or_insert_with(path);
        self
    }

    fn at_key(mut self, path: impl FnOnce() -> String) -> Self {
        self.on_key |= self.path.is_none();
        self.at(path)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.what)
    }
}

impl std::error::Error for Fault {}

impl serde::de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        What::Other(message.to_string()).into()
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Bool(_) => "a boolean",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) => "a whole number",
            Unexpected::Float(_) => "a number",
            Unexpected::Str(_) | Unexpected::Char(_) => "a string",
            Unexpected::Seq => "a list",
            Unexpected::Map => "a table",
            _ => "something else",
        };
        What::Other(format!("expected {}, found {found}", plain(expected))).into()
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        What::Other(format!("expected {}", plain(expected))).into()
    }

    fn unknown_variant(value: &str, expected: &'static [&'static str]) -> Self {
        What::UnknownValue { value: value.chars().take(40).collect(), expected }.into()
    }

    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        What::UnknownKey { expected }.into()
    }

    fn missing_field(field: &'static str) -> Self {
        What::MissingKey(field).into()
    }
}

/// serde's names of Rust's types, for people who write TOML.
fn plain(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "u16" => "a whole number from 0 to 65535".to_owned(),
        "a nonzero u16" => "a whole number from 1 to 65535".to_owned(),
        "u32" | "u64" | "usize" => "a whole number, not negative".to_owned(),
        "a nonzero u32" | "a nonzero u64" => "a whole number, at least 1".to_owned(),
        "f64" => "a number".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a table".to_owned(),
        "a boolean" => "`true` or `false`".to_owned(),
        _ if text.starts_with("struct ") => "a table".to_owned(),
        _ if text.starts_with("enum ") || text == "path string" => "a string".to_owned(),
        _ => text,
    }
}

/// One value and where it stands.
struct Reader<'a> {
    value: &'a Value,
    path: String,
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let path = &self.path;
        match self.value {
            Value::String(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(yes) => visitor.visit_bool(*yes),
            Value::Datetime(time) => visitor.visit_string(time.to_string()),
            Value::Array(values) => visitor.visit_seq(Elements { values: values.iter().enumerate(), path }),
            Value::Table(table) => visitor.visit_map(Entries { entries: table.iter(), current: None, path }),
        }
        .map_err(|fault| fault.at(|| self.path.clone()))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        // serde's own types would take the keys' values in their order from a list.
        match self.value {
            Value::Array(_) => Err(Fault::custom("expected a table, found a list").at(|| self.path)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.value {
            Value::String(text) => visitor.visit_enum(Word(text)).map_err(|fault| fault.at(|| self.path)),
            _ => Err(Fault::custom("expected a string").at(|| self.path)),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// A word that stands for one of a few.
struct Word<'a>(&'a str);

impl<'de> EnumAccess<'de> for Word<'_> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        let word: StrDeserializer<'_, Fault> = self.0.into_deserializer();
        Ok((seed.deserialize(word)?, self))
    }
}

impl<'de> VariantAccess<'de> for Word<'_> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Fault> {
        Err(Fault::custom("expected a table"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Fault> {
        Err(Fault::custom("expected a table"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Fault> {
        Err(Fault::custom("expected a table"))
    }
}

struct Elements<'a> {
    values: std::iter::Enumerate<std::slice::Iter<'a, Value>>,
    path: &'a str,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some((index, value)) = self.values.next() else { return Ok(None) };
        let path = element(self.path, index);
        seed.deserialize(Reader { value, path: path.clone() }).map(Some).map_err(|fault| fault.at(|| path))
    }
}

struct Entries<'a> {
    entries: toml::map::Iter<'a, String, Value>,
    current: Option<(&'a String, &'a Value)>,
    path: &'a str,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.current = self.entries.next();
        let Some((key, _)) = self.current else { return Ok(None) };
        let text: StrDeserializer<'_, Fault> = key.as_str().into_deserializer();
        seed.deserialize(text).map(Some).map_err(|fault| fault.at_key(|| child(self.path, key)))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, value) = self.current.take().ok_or_else(|| Fault::custom("a value without its key"))?;
        let path = child(self.path, key);
        seed.deserialize(Reader { value, path: path.clone() }).map_err(|fault| fault.at(|| path))
    }
}
