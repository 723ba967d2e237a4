//! The types of single values: paths on the host, names of variables, one or many.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{SeqAccess, Visitor, value::StrDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

/// The name of an environment variable that a stack may be given: `[A-Za-z_][A-Za-z0-9_]*`.
///
/// Names that Docker, Compose, git or the loader obey are refused: the Compose CLI gets these variables as its environment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VariableName(String);

/// Families of names that programs on the runner obey.
const OBEYED_PREFIXES: [&str; 7] = ["DOCKER_", "COMPOSE_", "BUILDX_", "BUILDKIT_", "LD_", "DYLD_", "GIT_CONFIG"];
/// Single names that programs on the runner obey, in upper case.
const OBEYED: [&str; 28] = [
    "ALL_PROXY",
    "BASH_ENV",
    "FTP_PROXY",
    "GIT_ASKPASS",
    "GIT_DIR",
    "GIT_EXEC_PATH",
    "GIT_EXTERNAL_DIFF",
    "GIT_PROXY_COMMAND",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GIT_TEMPLATE_DIR",
    "GIT_WORK_TREE",
    "GODEBUG",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "IFS",
    "NO_PROXY",
    "PATH",
    "PWD",
    "SHELL",
    "SSH_ASKPASS",
    "SSH_AUTH_SOCK",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
];

/// What every stack is told about itself.
const SET_BY_US: [&str; 2] = ["PREVIEW_NAME", "PREVIEW_URL"];

impl VariableName {
    /// Checks a name.
    pub fn parse(name: &str) -> Result<Self, String> {
        let shown: String = name.chars().take(60).flat_map(char::escape_debug).collect();
        let mut bytes = name.bytes();
        let legal = bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !legal {
            return Err(format!("`{shown}` is not the name of a variable: letters, digits and _, not a digit first"));
        }
        // Proxies are obeyed in both cases.
        let upper = name.to_ascii_uppercase();
        if OBEYED.contains(&upper.as_str()) || OBEYED_PREFIXES.iter().any(|prefix| upper.starts_with(prefix)) {
            return Err(format!(
                "`{shown}` cannot be set here: the Docker CLI on the runner would obey it; set it in the Compose file, under `environment`"
            ));
        }
        if SET_BY_US.contains(&upper.as_str()) {
            return Err(format!("`{shown}` cannot be set here: every stack gets it from preview itself"));
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An absolute path on the host: `/`-separated, without `..`, not `/` itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPath(String);

impl HostPath {
    /// Checks a path; slashes at its end and doubled ones are dropped.
    pub fn parse(path: &str) -> Result<Self, String> {
        let shown = || path.chars().take(80).flat_map(char::escape_debug).collect::<String>();
        if !path.starts_with('/') {
            return Err(format!("`{}` is not an absolute path: it has to start with `/`", shown()));
        }
        if path.chars().any(char::is_control) {
            return Err(format!("`{}` holds a control character", shown()));
        }
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        if parts.iter().any(|part| matches!(*part, "." | "..")) {
            return Err(format!("`{}` holds `.` or `..`", shown()));
        }
        if parts.is_empty() {
            return Err("`/` is the whole host".to_owned());
        }
        Ok(Self(format!("/{}", parts.join("/"))))
    }

    /// Where Docker's socket is unless someone moved it.
    pub(super) fn docker_socket() -> Self {
        Self("/var/run/docker.sock".to_owned())
    }

    /// Where a proxy that `preview vm setup` made has its routes.
    pub(super) fn proxy_routes() -> Self {
        Self("/etc/preview/routes".to_owned())
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text {
    ($name:ident) => {
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

text!(VariableName);
text!(HostPath);

/// One value, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(OneOrMany(vec![T::deserialize(StrDeserializer::new(text))?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = elements.next_element()? {
                    values.push(value);
                }
                Ok(OneOrMany(values))
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

#[cfg(feature = "schema")]
impl<T: schemars::JsonSchema> schemars::JsonSchema for OneOrMany<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("OneOrMany{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let one = generator.subschema_for::<T>();
        schemars::json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
    }
}

/// A variable's value: a string; numbers and booleans stand for their text.
struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a number or a boolean")
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(text.to_owned()))
            }

            fn visit_bool<E>(self, yes: bool) -> Result<Scalar, E> {
                Ok(Scalar(yes.to_string()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Scalar, E> {
                // `1.0` stays `1.0`.
                Ok(Scalar(format!("{number:?}")))
            }
        }

        deserializer.deserialize_any(Text)
    }
}

/// For `#[serde(deserialize_with)]`: a table of variables.
pub(super) fn variables<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<VariableName, String>, D::Error> {
    let scalars = BTreeMap::<VariableName, Scalar>::deserialize(deserializer)?;
    for value in scalars.values() {
        if value.0.contains('\0') {
            return Err(serde::de::Error::custom("a value holds a NUL character, which no variable can"));
        }
    }
    Ok(scalars.into_iter().map(|(name, value)| (name, value.0)).collect())
}
