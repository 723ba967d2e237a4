//! Names: branch to slug, DNS labels, project names, URLs.
//!
//! A preview is made for a pull request or for a branch ([`Key`]). From that key and two kinds of templates follow its name
//! (one DNS label), its Compose project and its public addresses, the same ones for the preview's whole life:
//!
//! ```
//! use preview_core::name::{AppName, Key, Naming, UrlTemplate};
//!
//! let app = AppName::parse("shop")?;
//! let url = UrlTemplate::parse("https://{name}.example.com")?;
//! let naming = Naming::new(&app, None, &[url])?;
//!
//! let pull = naming.resolve(&Key::pull(7)?)?;
//! assert_eq!(pull.name.as_str(), "pr-7");
//! assert_eq!(pull.project, "shop_pr-7");
//! assert_eq!(pull.urls[0].to_string(), "https://pr-7.example.com");
//!
//! let branch = naming.resolve(&Key::branch("feature/Login_page")?)?;
//! assert_eq!(branch.urls[0].to_string(), "https://preview-feature-login-page.example.com");
//! # Ok::<(), preview_core::name::NameError>(())
//! ```
//!
//! Two branches may have one slug (`feature/x`, `feature-x`). That is not decided here: whoever finds a preview of that name
//! whose [`Key`] is another one refuses.

mod branch;
mod label;
mod naming;
mod slug;
mod template;
mod url;

use std::fmt;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

pub use branch::Branch;
pub use label::{AppName, PreviewName, project_name};
pub use naming::{Named, Naming};
pub use slug::{MIN_SLUG, slug};
pub use template::NameTemplate;
pub use url::{Url, UrlTemplate};

/// Longest label of a DNS name, in bytes.
pub const MAX_LABEL: usize = 63;
/// Longest DNS name, in bytes.
pub const MAX_HOST: usize = 253;

/// What a preview is made for. Two previews are the same if and only if their keys are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// A pull or merge request, by number.
    Pull(NonZeroU64),
    /// A branch.
    Branch(Branch),
}

impl Key {
    /// The key of a pull request. Numbers start at 1.
    pub fn pull(number: u64) -> Result<Self, NameError> {
        NonZeroU64::new(number).map(Self::Pull).ok_or(NameError::PullNumber)
    }

    /// The key of a branch.
    pub fn branch(branch: &str) -> Result<Self, NameError> {
        Branch::parse(branch).map(Self::Branch)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pull(number) => write!(f, "pull request {number}"),
            Self::Branch(branch) => write!(f, "branch {branch}"),
        }
    }
}

/// Why something is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a branch name.
    #[error("{branch} is not a branch name: {reason}")]
    Branch {
        /// What was given, quoted and with control characters escaped; cut if it is long.
        branch: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not the number of a pull request.
    #[error("pull request numbers start at 1")]
    PullNumber,
    /// Not the name of an application.
    #[error("{app} is not a name for an application: {reason}")]
    App {
        /// What was given, quoted.
        app: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not the name of a preview.
    #[error("{name} is not the name of a preview: {reason}")]
    Preview {
        /// What was given, quoted.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A template that makes no sense whatever the key is.
    #[error("template `{template}`: {reason}")]
    Template {
        /// The template.
        template: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The fixed part of a template leaves too little room.
    #[error("template `{template}` leaves {room} characters for {what}, and {need} are needed: {limit}")]
    NoRoom {
        /// The template.
        template: String,
        /// Characters left.
        room: usize,
        /// What has to fit.
        what: &'static str,
        /// Characters needed.
        need: usize,
        /// The limit that would be broken.
        limit: &'static str,
    },
    /// The fixed part of a template is too long by itself.
    #[error("template `{template}` is too long: {limit}")]
    TooLong {
        /// The template.
        template: String,
        /// The limit that would be broken.
        limit: &'static str,
    },
    /// A template that fits the other kind of key only.
    #[error("template `{template}` cannot be used for {key}, which has no {{{placeholder}}}; {{name}} works for all")]
    WrongKind {
        /// The template.
        template: String,
        /// What the preview is for.
        key: String,
        /// The placeholder that has no value.
        placeholder: &'static str,
    },
    /// Two addresses of one preview are equal.
    #[error("two routes have the same URL `{template}`: give each its own, or use {{service}} in it")]
    SameUrl {
        /// The template that occurs twice.
        template: String,
    },
}

impl NameError {
    /// The template that is wrong, where it is one.
    #[must_use]
    pub fn template(&self) -> Option<&str> {
        match self {
            Self::Template { template, .. }
            | Self::NoRoom { template, .. }
            | Self::TooLong { template, .. }
            | Self::WrongKind { template, .. }
            | Self::SameUrl { template } => Some(template),
            Self::Branch { .. } | Self::PullNumber | Self::App { .. } | Self::Preview { .. } => None,
        }
    }
}

/// What was given, for a message: quoted, control characters escaped, cut at 60 characters.
fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("`{}`", short.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\""))
}

#[cfg(test)]
mod tests;
