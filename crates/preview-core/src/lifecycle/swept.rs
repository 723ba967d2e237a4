//! What a sweep says at its end.

use jiff::Timestamp;
use serde::Serialize;

use crate::engine::Removed;
use crate::sweep::{Left, Why};

/// A preview that went, or would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gone {
    /// The application.
    pub app: String,
    /// The preview.
    pub name: String,
    /// Why.
    pub why: Why,
    /// What was removed on the engine.
    pub removed: Removed,
    /// Files that were removed.
    pub files: usize,
    /// Its hosts that had DNS records.
    pub records: Vec<String>,
    /// What was found of it afterwards: the proof that nothing is left is that this is empty.
    pub left: Vec<String>,
}

/// A preview whose run died, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mended {
    /// The application.
    pub app: String,
    /// The preview.
    pub name: String,
    /// Why.
    pub why: Why,
}

/// A preview that was left, although it should have gone or been mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unswept {
    /// The application.
    pub app: String,
    /// The preview.
    pub name: String,
    /// What it was suspected of.
    pub why: Why,
    /// Why it was left.
    pub reason: String,
    /// The exit code that this deserves; 0 where it is as it should be: somebody is at work on it.
    pub code: u8,
}

/// What a sweep did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Swept {
    /// Nothing was changed: this is what would be.
    pub dry_run: bool,
    /// Previews that went.
    pub removed: Vec<Gone>,
    /// Previews that run again in the version before.
    pub mended: Vec<Mended>,
    /// Previews that stayed.
    pub stayed: Vec<Unswept>,
    /// Tickets of runs that died while they waited for a place.
    pub tickets: usize,
    /// Tombstones past their time.
    pub tombstones: usize,
    /// Projects whose routes the proxy still had.
    pub routes: Vec<String>,
    /// Status pages that went.
    pub pages: usize,
    /// Images that went.
    pub images: Vec<String>,
    /// Bytes of build cache that went.
    pub build_cache: u64,
    /// What looks wrong, and is left alone.
    pub left: Vec<Left>,
    /// Bytes that the engine holds less than before, where it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freed: Option<u64>,
    /// How full the engine's disk was, in percent.
    pub disk: u8,
    /// Previews that stand now.
    pub previews: usize,
    /// When that was, on the host's clock.
    pub now: Timestamp,
}

impl Swept {
    /// The exit code: that of the first preview that could not be removed or mended, or of which something is left.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let left = self.removed.iter().any(|gone| !gone.left.is_empty());
        self.stayed.iter().map(|unswept| unswept.code).find(|code| *code != 0).unwrap_or(u8::from(left))
    }
}

impl Swept {
    pub(super) fn empty(now: Timestamp) -> Self {
        Self {
            dry_run: false,
            removed: Vec::new(),
            mended: Vec::new(),
            stayed: Vec::new(),
            tickets: 0,
            tombstones: 0,
            routes: Vec::new(),
            pages: 0,
            images: Vec::new(),
            build_cache: 0,
            left: Vec::new(),
            freed: None,
            disk: 0,
            previews: 0,
            now,
        }
    }
}
