//! Values that must not be seen: a type that cannot be printed, and a filter for text that may hold them.

use std::fmt;
use std::sync::{Arc, RwLock};

/// A value that is never shown: `Debug` and `Display` print `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Takes the value into custody.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself, for the one place that hands it on.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Takes known secrets out of text that comes from elsewhere: logs of containers, output of programs, errors.
///
/// Clones share what they know.
#[derive(Clone, Default)]
pub struct Redactor {
    known: Arc<RwLock<Vec<String>>>,
}

impl Redactor {
    /// Learns a value. Values shorter than four characters are not replaced: hiding every `1` would hide the text.
    pub fn learn(&self, secret: &Secret<String>) {
        let mut known = self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A value of several lines is printed line by line, so each line is a secret of its own.
        for part in std::iter::once(secret.expose().as_str()).chain(secret.expose().lines()) {
            let part = part.trim();
            if part.len() < 4 {
                continue;
            }
            // Programs that complain about a value quote it, and Compose doubles its dollar signs.
            let escaped = part.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\t', "\\t");
            for form in [part.replace('$', "$$"), escaped.replace('$', "$$"), escaped, part.to_owned()] {
                if !known.contains(&form) {
                    known.push(form);
                }
            }
        }
        // Longest first: a secret that contains another is hidden as a whole.
        known.sort_by_key(|value| std::cmp::Reverse(value.len()));
    }

    /// The text with every known secret replaced by `***`.
    #[must_use]
    pub fn clean(&self, text: &str) -> String {
        let known = self.known.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut clean = text.to_owned();
        for secret in known.iter() {
            if clean.contains(secret.as_str()) {
                clean = clean.replace(secret.as_str(), "***");
            }
        }
        clean
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print() {
        let secret = Secret::new("hunter22".to_owned());
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
    }

    #[test]
    fn known_secrets_are_cleaned_longest_first() {
        let redactor = Redactor::default();
        redactor.learn(&Secret::new("abcd".into()));
        redactor.learn(&Secret::new("abcdefgh".into()));
        redactor.learn(&Secret::new("x".into()));
        assert_eq!(redactor.clean("x=abcdefgh y=abcd"), "x=*** y=***");
    }

    #[test]
    fn quoted_forms_are_hidden() {
        let redactor = Redactor::default();
        redactor.learn(&Secret::new("a\"b$c\\d".into()));
        assert_eq!(redactor.clean(r#"a"b$c\d, "a\"b$c\\d", a"b$$c\d, "a\"b$$c\\d""#), r#"***, "***", ***, "***""#);
    }

    #[test]
    fn each_line_of_a_key_is_hidden() {
        let redactor = Redactor::default();
        redactor.learn(&Secret::new("-----BEGIN KEY-----\nc2VjcmV0\n-----END KEY-----".into()));
        assert_eq!(redactor.clean("log: c2VjcmV0"), "log: ***");
    }
}
