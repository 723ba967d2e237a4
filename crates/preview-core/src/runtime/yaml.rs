//! YAML as a tree of our own, and the tree as text again.
//!
//! Two parsers need not agree on what a YAML text means, and Compose has another one than we. So a text is read once, here: anchors, aliases and merge keys are
//! resolved, tags that are not known are refused. What is [`written`](write) has strings in double quotes and ASCII alone, so that no parser can read it otherwise.

mod read;
mod write;

#[cfg(test)]
mod tests;

pub(crate) use read::read;
pub(crate) use write::write;

/// A node of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) tag: Option<Tag>,
    pub(crate) content: Content,
}

/// The tags that mean something to Compose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// `!reset`
    Reset,
    /// `!override`
    Override,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Scalar(Scalar),
    List(Vec<Node>),
    Table(Vec<(Scalar, Node)>),
}

/// A text, number, boolean or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scalar {
    pub(crate) text: String,
    pub(crate) kind: Kind,
}

/// What a scalar may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A string, whatever it looks like.
    Text,
    /// Written without quotes, in a form that may be a number, a boolean, a date or nothing.
    Plain,
    /// The same with the tag `!!float`: `1` is meant as `1.0`.
    Float,
}

impl Node {
    pub(crate) fn text(text: &str) -> Self {
        Self { tag: None, content: Content::Scalar(Scalar { text: text.to_owned(), kind: Kind::Text }) }
    }

    pub(crate) fn table<const N: usize>(entries: [(&str, Self); N]) -> Self {
        let key = |text: &str| Scalar { text: text.to_owned(), kind: Kind::Text };
        let entries = entries.into_iter().map(|(name, node)| (key(name), node)).collect();
        Self { tag: None, content: Content::Table(entries) }
    }

    /// Adds an entry to a table.
    pub(crate) fn insert(&mut self, key: &str, node: Self) {
        if let Content::Table(entries) = &mut self.content {
            entries.push((Scalar { text: key.to_owned(), kind: Kind::Text }, node));
        }
    }

    /// The value of a key of a table.
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        self.entries_mut().find_map(|(name, node)| (name == key).then_some(node))
    }

    /// The entries of a table; nothing for anything else.
    pub(crate) fn entries_mut(&mut self) -> impl Iterator<Item = (&str, &mut Self)> {
        let entries = match &mut self.content {
            Content::Table(entries) => entries.as_mut_slice(),
            _ => &mut [],
        };
        entries.iter_mut().map(|(key, node)| (key.text.as_str(), node))
    }

    /// The elements of a list; nothing for anything else.
    pub(crate) fn elements_mut(&mut self) -> std::slice::IterMut<'_, Self> {
        match &mut self.content {
            Content::List(elements) => elements.iter_mut(),
            _ => [].iter_mut(),
        }
    }

    /// What it looks like in JSON, without tags. Numbers stay texts, as they are written.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.content {
            Content::Scalar(scalar) if scalar.is_nothing() => serde_json::Value::Null,
            Content::Scalar(scalar) => scalar.text.as_str().into(),
            Content::List(elements) => elements.iter().map(Self::to_json).collect(),
            Content::Table(entries) => {
                let entries = entries.iter().map(|(key, node)| (key.text.clone(), node.to_json()));
                serde_json::Value::Object(entries.collect())
            }
        }
    }

    /// The text of a scalar that is something.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match &self.content {
            Content::Scalar(scalar) if !scalar.is_nothing() => Some(&scalar.text),
            _ => None,
        }
    }
}

impl Scalar {
    fn is_nothing(&self) -> bool {
        self.kind != Kind::Text && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }
}
