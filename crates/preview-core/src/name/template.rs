//! Templates: text with placeholders, and the one that names previews.

use std::fmt;

use super::NameError;

/// A placeholder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Hole {
    /// `{number}`: the pull request's number.
    Number,
    /// `{slug}`: the branch's slug.
    Slug,
    /// `{app}`: the application.
    App,
    /// `{name}`: the preview's name.
    Name,
    /// `{service}`: the service that is routed.
    Service,
}

impl Hole {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "number" => Self::Number,
            "slug" => Self::Slug,
            "app" => Self::App,
            "name" => Self::Name,
            "service" => Self::Service,
            _ => return None,
        })
    }
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Piece {
    Text(String),
    Hole(Hole),
}

/// Splits a part of a template; the error is the reason alone.
pub(super) fn pieces(part: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = part;
    while let Some(open) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(open);
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        let inner = from.strip_prefix('{').ok_or("a `}` without its `{`")?;
        let close = inner.find('}').ok_or("a `{` without its `}`")?;
        let name = &inner[..close];
        let hole = Hole::parse(name).ok_or_else(|| {
            format!(
                "unknown placeholder `{{{name}}}`; there are {{name}}, {{number}}, {{slug}}, {{app}} and {{service}}"
            )
        })?;
        pieces.push(Piece::Hole(hole));
        rest = &inner[close + 1..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

/// Splits a part of a template that becomes one DNS label, and checks its fixed text.
pub(super) fn label(part: &str) -> Result<Vec<Piece>, String> {
    let pieces = pieces(part)?;
    for piece in &pieces {
        if let Piece::Text(text) = piece
            && !text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        {
            return Err(format!("`{text}` holds something else than a-z, 0-9 and -"));
        }
    }
    // What fills a placeholder starts and ends with a letter or a digit, so only the fixed text can get the ends wrong.
    let dash_first = matches!(pieces.first(), Some(Piece::Text(text)) if text.starts_with('-'));
    let dash_last = matches!(pieces.last(), Some(Piece::Text(text)) if text.ends_with('-'));
    if pieces.is_empty() {
        Err("a label is empty".to_owned())
    } else if dash_first || dash_last {
        Err(format!("`{part}` starts or ends with `-`"))
    } else {
        Ok(pieces)
    }
}

/// Whether a placeholder occurs.
pub(super) fn holds(pieces: &[Piece], hole: Hole) -> bool {
    pieces.contains(&Piece::Hole(hole))
}

/// A template for the names of previews: `pr-{number}`, `preview-{slug}`; `{app}` may occur beside these.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct NameTemplate {
    text: String,
    pub(super) pieces: Vec<Piece>,
}

impl NameTemplate {
    /// What names pull requests where nothing else is said.
    pub const PULLS: &str = "pr-{number}";
    /// What names branches where nothing else is said.
    pub const BRANCHES: &str = "preview-{slug}";

    /// Checks a template. It holds either `{number}` or `{slug}`: without one all previews would share a name, and no preview has both.
    pub fn parse(template: &str) -> Result<Self, NameError> {
        let error = |reason: String| NameError::Template { template: template.to_owned(), reason };
        let pieces = label(template).map_err(error)?;
        if holds(&pieces, Hole::Name) || holds(&pieces, Hole::Service) {
            return Err(error("a name is made of {number} or {slug}, and {app}".to_owned()));
        }
        match (holds(&pieces, Hole::Number), holds(&pieces, Hole::Slug)) {
            (false, false) => {
                Err(error("needs {number} or {slug}: without one, all previews would share one name".to_owned()))
            }
            (true, true) => Err(error(
                "{number} and {slug} exclude each other: a preview is for a pull request or for a branch".to_owned(),
            )),
            _ => Ok(Self { text: template.to_owned(), pieces }),
        }
    }

    /// Whether it names pull requests; otherwise it names branches.
    #[must_use]
    pub fn for_pulls(&self) -> bool {
        holds(&self.pieces, Hole::Number)
    }
}

impl fmt::Display for NameTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for NameTemplate {
    type Err = NameError;

    fn from_str(template: &str) -> Result<Self, NameError> {
        Self::parse(template)
    }
}

impl TryFrom<String> for NameTemplate {
    type Error = NameError;

    fn try_from(template: String) -> Result<Self, NameError> {
        Self::parse(&template)
    }
}
