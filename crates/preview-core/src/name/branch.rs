//! Branch names, by the rules of git.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{NameError, quoted};

/// Longest branch name that is accepted, in bytes.
const MAX_BRANCH: usize = 255;

/// A branch name that git accepts (`git check-ref-format --branch`).
///
/// Quotes, `$()`, `;`, `&` and most of Unicode are legal there and therefore here: a branch is data, and never becomes part
/// of a shell command, a path or a label other than through [`slug`](super::slug).
/// Stricter than git in two points: no control characters beyond ASCII either (terminals obey them), and 255 bytes at most.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Branch(String);

impl Branch {
    /// Checks a branch name.
    pub fn parse(branch: &str) -> Result<Self, NameError> {
        match fault(branch) {
            None => Ok(Self(branch.to_owned())),
            Some(reason) => Err(NameError::Branch { branch: quoted(branch), reason }),
        }
    }

    /// The name as git has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What git has against this name.
fn fault(branch: &str) -> Option<&'static str> {
    if branch.is_empty() {
        return Some("it is empty");
    }
    if branch.len() > MAX_BRANCH {
        return Some("it is longer than 255 bytes");
    }
    if branch == "HEAD" {
        return Some("HEAD is whatever is checked out, not a branch");
    }
    if branch.starts_with('-') {
        return Some("it starts with `-`, as options do");
    }
    for character in branch.chars() {
        match character {
            ' ' => return Some("it holds a space"),
            '~' | '^' | ':' | '?' | '*' | '[' | '\\' => return Some("git does not allow any of ~ ^ : ? * [ \\ in it"),
            _ if character.is_control() => return Some("it holds a control character, such as a line break"),
            _ => {}
        }
    }
    if branch.contains("..") {
        return Some("it holds `..`");
    }
    if branch.contains("@{") {
        return Some("it holds `@{`");
    }
    if branch.ends_with('.') {
        return Some("it ends with `.`");
    }
    for component in branch.split('/') {
        if component.is_empty() {
            return Some("it starts or ends with `/`, or holds `//`");
        }
        if component.starts_with('.') {
            return Some("a part of it starts with `.`");
        }
        if component.ends_with(".lock") {
            return Some("a part of it ends with `.lock`");
        }
    }
    None
}

impl AsRef<str> for Branch {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Branch {
    type Err = NameError;

    fn from_str(branch: &str) -> Result<Self, NameError> {
        Self::parse(branch)
    }
}

impl TryFrom<String> for Branch {
    type Error = NameError;

    fn try_from(branch: String) -> Result<Self, NameError> {
        Self::parse(&branch)
    }
}

impl From<Branch> for String {
    fn from(branch: Branch) -> Self {
        branch.0
    }
}
