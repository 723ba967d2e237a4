//! The tree as text that every parser reads alike: JSON, but for scalars without quotes, the escapes of YAML and the two tags of Compose.

use std::fmt::Write as _;

use super::{Content, Kind, Node, Scalar, Tag};

/// These documents as one text.
pub(crate) fn write(documents: &[Node]) -> String {
    let mut text = String::new();
    for (index, document) in documents.iter().enumerate() {
        if index > 0 {
            text.push_str("---\n");
        }
        node(&mut text, document);
        text.push('\n');
    }
    text
}

fn node(text: &mut String, of: &Node) {
    match of.tag {
        Some(Tag::Reset) => text.push_str("!reset "),
        Some(Tag::Override) => text.push_str("!override "),
        None => {}
    }
    match &of.content {
        Content::Scalar(of) => scalar(text, of),
        Content::List(list) => {
            text.push('[');
            for (index, of) in list.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                node(text, of);
            }
            text.push(']');
        }
        Content::Table(entries) => {
            text.push('{');
            for (index, (key, of)) in entries.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                // A key of more than 1024 characters would be none without the mark.
                text.push_str(if key.text.len() > 100 { "? " } else { "" });
                scalar(text, key);
                text.push_str(": ");
                node(text, of);
            }
            text.push('}');
        }
    }
}

fn scalar(text: &mut String, of: &Scalar) {
    match of.kind {
        Kind::Text => quoted(text, &of.text),
        Kind::Plain if of.text.is_empty() => text.push_str("null"),
        Kind::Plain => text.push_str(&of.text),
        Kind::Float => {
            text.push_str("!!float ");
            text.push_str(&of.text);
        }
    }
}

/// Every character outside of printable ASCII by its number; YAML has no pairs of surrogates as JSON has.
fn quoted(text: &mut String, of: &str) {
    text.push('"');
    for character in of.chars() {
        let number = u32::from(character);
        // Writing to a text does not fail.
        let _ = match character {
            '"' | '\\' => write!(text, "\\{character}"),
            ' '..='~' => write!(text, "{character}"),
            _ if number <= 0xffff => write!(text, "\\u{number:04x}"),
            _ => write!(text, "\\U{number:08x}"),
        };
    }
    text.push('"');
}
