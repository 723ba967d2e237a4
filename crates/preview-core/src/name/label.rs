//! The names of applications, previews and Compose projects.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{MAX_LABEL, NameError, quoted, slug};

/// Longest name of an application, in bytes: with a preview's name it has to fit in one label.
const MAX_APP: usize = 40;
/// Directories of ours beside those of the applications.
const RESERVED: [&str; 2] = ["queue", "tombstones"];

/// What is wrong with a label of at most `limit` bytes.
fn fault(label: &str, limit: usize) -> Option<&'static str> {
    if label.is_empty() {
        return Some("it is empty");
    }
    if !label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        return Some("only a-z, 0-9 and - are allowed");
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Some("it starts or ends with `-`");
    }
    if label.len() > limit {
        return Some(if limit == MAX_APP {
            "it is longer than 40 characters"
        } else {
            "it is longer than 63 characters"
        });
    }
    None
}

/// The name of an application: it keeps repositories that share a host apart. `[a-z0-9-]`, at most 40 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppName(String);

impl AppName {
    /// Checks a name.
    pub fn parse(app: &str) -> Result<Self, NameError> {
        let reason = fault(app, MAX_APP)
            .or_else(|| RESERVED.contains(&app).then_some("the host keeps a directory of ours under that name"));
        match reason {
            None => Ok(Self(app.to_owned())),
            Some(reason) => Err(NameError::App { app: quoted(app), reason }),
        }
    }

    /// A name from that of a repository (`acme/shop`) or a directory: never fails, the same for the same text.
    #[must_use]
    pub fn derive(from: &str) -> Self {
        if slug::clean(from).is_empty() {
            return Self("app".to_owned());
        }
        let name = slug::slug(from, MAX_APP);
        Self(if RESERVED.contains(&name.as_str()) { format!("app-{name}") } else { name })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a preview within its application: one DNS label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PreviewName(String);

impl PreviewName {
    /// Checks a name.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        match fault(name, MAX_LABEL) {
            None => Ok(Self(name.to_owned())),
            Some(reason) => Err(NameError::Preview { name: quoted(name), reason }),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The Compose project of a preview. Different pairs have different projects, as neither part can hold the `_` between them.
#[must_use]
pub fn project_name(app: &AppName, name: &PreviewName) -> String {
    format!("{app}_{name}")
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

        impl std::str::FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

text!(AppName);
text!(PreviewName);
