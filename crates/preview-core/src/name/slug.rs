//! Branch to slug: the one implementation.

use sha1::{Digest, Sha1};

/// Hexadecimal digits of the hash that tells long branches apart.
const HASH: usize = 8;

/// The least room that a slug needs: one character, a dash and the hash.
pub const MIN_SLUG: usize = HASH + 2;

/// The slug of a branch: `[a-z0-9]`, inside also single dashes, never empty, at most `limit` bytes.
///
/// Lower case; `/` and `_` become `-`; anything else that is not `[a-z0-9-]` is dropped; dashes are collapsed and trimmed.
/// What is longer than the limit is cut and gets `-` and eight hexadecimal digits of the branch's SHA-1; a branch without a usable
/// character is these digits alone. Limits below [`MIN_SLUG`] count as [`MIN_SLUG`].
///
/// ```
/// use preview_core::name::slug;
/// assert_eq!(slug("Feature/new_Thing!", 40), "feature-new-thing");
/// assert_eq!(slug("feature/a-rather-long-branch", 20), "feature-a-r-cd304caf");
/// assert_eq!(slug("機能", 40), "e5b8788a");
/// ```
#[must_use]
pub fn slug(branch: &str, limit: usize) -> String {
    let clean = clean(branch);
    if clean.is_empty() {
        hash(branch)
    } else if clean.len() > limit.max(MIN_SLUG) {
        marked(&clean, branch, limit)
    } else {
        clean
    }
}

/// As [`slug`], with the hash even where the branch would fit without.
pub(super) fn slug_marked(branch: &str, limit: usize) -> String {
    let clean = clean(branch);
    if clean.is_empty() { hash(branch) } else { marked(&clean, branch, limit) }
}

/// The usable characters.
pub(super) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        match character.to_ascii_lowercase() {
            usable @ ('a'..='z' | '0'..='9') => clean.push(usable),
            // A dash is never the first, and never follows another one.
            '/' | '_' | '-' if !clean.is_empty() && !clean.ends_with('-') => clean.push('-'),
            _ => {}
        }
    }
    clean.truncate(clean.trim_end_matches('-').len());
    clean
}

fn marked(clean: &str, branch: &str, limit: usize) -> String {
    // `clean` is ASCII: every index is a boundary.
    let room = limit.max(MIN_SLUG) - HASH - 1;
    let cut = clean[..room.min(clean.len())].trim_end_matches('-');
    format!("{cut}-{}", hash(branch))
}

fn hash(branch: &str) -> String {
    use std::fmt::Write as _;
    Sha1::digest(branch.as_bytes()).iter().take(HASH / 2).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
