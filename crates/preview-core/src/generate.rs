//! Credentials that are made up once for each preview, and the file on the host that keeps them.

use std::collections::BTreeMap;

use crate::fault::{Fault, FaultKind};
use crate::runtime::Variables;
use crate::secret::Secret;

/// Letters first: a credential starts with one.
const ALPHABET: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
/// How many of them are letters.
const LETTERS: u8 = 52;

/// A random credential of so many characters: letters and digits, a letter first, so that it needs no quoting in shells, URLs and
/// YAML. About 5.95 bits a character.
pub fn generate(length: usize) -> Result<Secret<String>, Fault> {
    let mut text = String::with_capacity(length);
    let mut bytes = [0_u8; 64];
    while text.len() < length {
        getrandom::fill(&mut bytes).map_err(|error| {
            Fault::new(FaultKind::Failed, "generate a credential", "no random numbers").caused_by(error)
        })?;
        for byte in bytes {
            let choices = if text.is_empty() { LETTERS } else { 62 };
            // Bytes beyond the last whole multiple are thrown away: a remainder alone would prefer the first characters.
            if text.len() < length && byte < choices * (u8::MAX / choices) {
                text.push(char::from(ALPHABET[usize::from(byte % choices)]));
            }
        }
    }
    Ok(Secret::new(text))
}

/// The credentials that are wanted (by name, with their length): those that the file has, and new ones for the rest. The second value is
/// the file's new content, if it changes: what stood there stays as it is, wanted or not.
///
/// The file has lines `NAME=value`, values of letters and digits; empty lines and `#` lines may be in it. Anything else is refused
/// rather than overwritten: somebody changed a file that only we write.
pub fn merge(existing: &str, wanted: &BTreeMap<String, usize>) -> Result<(Variables, Option<Secret<String>>), Fault> {
    let mut kept = parse(existing)?;
    let mut variables = Variables::new();
    let mut added = String::new();
    for (name, length) in wanted {
        let value = match kept.remove(name.as_str()) {
            Some(value) => Secret::new(value.to_owned()),
            None => {
                let value = generate(*length)?;
                added.push_str(&format!("{name}={}\n", value.expose()));
                value
            }
        };
        variables.insert(name.clone(), value);
    }
    if added.is_empty() {
        return Ok((variables, None));
    }
    let mut content = existing.to_owned();
    if !content.is_empty() && !content.ends_with('\n') {
        content.push('\n');
    }
    content.push_str(&added);
    Ok((variables, Some(Secret::new(content))))
}

fn parse(text: &str) -> Result<BTreeMap<&str, &str>, Fault> {
    let mut values = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = line.split_once('=').filter(|(name, value)| {
            let named = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            named && !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        // The line is not shown: it may hold a credential.
        let Some((name, value)) = entry else {
            let context = format!("line {} is not NAME=value with letters and digits", index + 1);
            return Err(Fault::new(FaultKind::Invalid, "read the file with the preview's credentials", context));
        };
        values.insert(name, value);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn wanted(names: &[(&str, usize)]) -> BTreeMap<String, usize> {
        names.iter().map(|(name, length)| ((*name).to_owned(), *length)).collect()
    }

    #[test]
    fn every_character_occurs_about_as_often() {
        let text = generate(62_000).unwrap();
        let mut counts = BTreeMap::new();
        for character in text.expose().chars() {
            *counts.entry(character).or_insert(0_u32) += 1;
        }
        assert_eq!(counts.len(), 62);
        // 1000 on average, a standard deviation of about 32: a biased remainder would be off by 250.
        assert!(counts.values().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_letter_comes_first_and_none_is_like_another() {
        let all: BTreeSet<String> = (0..500).map(|_| generate(24).unwrap().expose().clone()).collect();
        assert_eq!(all.len(), 500);
        for text in all {
            assert_eq!(text.len(), 24);
            assert!(text.starts_with(|first: char| first.is_ascii_alphabetic()));
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        }
    }

    #[test]
    fn what_is_there_stays() {
        let (variables, file) = merge("", &wanted(&[("A", 24), ("B", 8)])).unwrap();
        let file = file.unwrap().expose().clone();
        assert_eq!(file, format!("A={}\nB={}\n", variables["A"].expose(), variables["B"].expose()));
        assert_eq!((variables["A"].expose().len(), variables["B"].expose().len()), (24, 8));

        // Again: nothing changes, whatever the length is now.
        let (again, none) = merge(&file, &wanted(&[("A", 40), ("B", 8)])).unwrap();
        assert_eq!((again, none), (variables, None));
    }

    #[test]
    fn nothing_is_dropped() {
        let old = "# ours\n\nOLD=abc\nA=first\nA=second";
        let (variables, file) = merge(old, &wanted(&[("A", 24), ("NEW", 24)])).unwrap();
        assert_eq!(variables["A"].expose(), "second");
        assert!(!variables.contains_key("OLD"));
        assert_eq!(file.unwrap().expose(), &format!("{old}\nNEW={}\n", variables["NEW"].expose()));
    }

    #[test]
    fn a_file_that_somebody_changed_is_refused_without_showing_it() {
        for line in ["hunter22", "A=hunter22!", "A=", "=hunter22", "A B=hunter22", "A='hunter22'", "export A=hunter22"]
        {
            let fault = merge(&format!("X=y\n{line}\n"), &wanted(&[("A", 24)])).unwrap_err();
            let said = fault.chain();
            assert_eq!(fault.kind, FaultKind::Invalid);
            assert!(said.contains("line 2") && !said.contains("hunter22"), "{said}");
        }
    }

    proptest! {
        #[test]
        fn merging_again_changes_nothing(names in prop::collection::btree_map("[A-Z_]{1,8}", 8_usize..40, 0..6), old in "([A-Z]{1,3}=[a-z0-9]{1,5}\n){0,4}") {
            let (first, file) = merge(&old, &names).unwrap();
            let content = file.map_or(old, |file| file.expose().clone());
            let (second, file) = merge(&content, &names).unwrap();
            prop_assert_eq!(first, second);
            prop_assert_eq!(file, None);
        }
    }
}
