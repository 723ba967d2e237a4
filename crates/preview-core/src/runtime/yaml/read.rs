//! From the parser's events to the tree.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, Span};

use super::{Content, Kind, Node, Scalar, Tag};

/// Nodes of one file once its aliases are expanded; Compose itself stops there.
const MOST_NODES: usize = 100_000;
/// Bytes of text of one file once its aliases are expanded.
const MOST_BYTES: usize = 8 << 20;
/// Tables and lists within each other.
const MOST_LEVELS: usize = 100;

/// Why a text is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// From 1.
    pub(crate) line: usize,
    pub(crate) why: String,
}

impl Wrong {
    fn at(span: Span, why: impl Into<String>) -> Self {
        Self { line: span.start.line(), why: why.into() }
    }
}

/// The documents of a text.
///
/// # Errors
/// It is not YAML, or has what Compose files have no use for.
pub(crate) fn read(text: &str) -> Result<Vec<Node>, Wrong> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some((line, character)) = control_character(text) {
        let why = format!("it has the control character U+{:04X}, which YAML does not allow", u32::from(character));
        return Err(Wrong { line, why });
    }
    let mut options = granit_parser::Options::default();
    options.set_emit_comments(false);
    let events = Box::new(Parser::new_from_str_with_options(text, options));
    let mut reader = Reader { events, anchors: HashMap::new(), nodes: 0, bytes: 0 };
    let mut documents = Vec::new();
    while let Some((event, span)) = reader.next()? {
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            Event::DocumentStart(..) => reader.anchors.clear(),
            event => documents.push(reader.node(event, span, 0)?.0),
        }
    }
    Ok(documents)
}

fn control_character(text: &str) -> Option<(usize, char)> {
    let allowed = |character: char| !character.is_control() || matches!(character, '\t' | '\n' | '\r' | '\u{85}');
    let (index, character) = text.char_indices().find(|(_, character)| !allowed(*character))?;
    Some((text.get(..index)?.lines().count().max(1), character))
}

/// How much a node comes to with its aliases expanded.
#[derive(Clone, Copy, Default)]
struct Size {
    nodes: usize,
    bytes: usize,
    /// Of tables and lists.
    levels: usize,
}

impl Size {
    fn add(&mut self, other: Self) {
        self.nodes += other.nodes;
        self.bytes += other.bytes;
        self.levels = self.levels.max(other.levels + 1);
    }
}

struct Reader<'a> {
    events: Box<dyn Iterator<Item = Result<(Event<'a>, Span), granit_parser::ScanError>> + 'a>,
    anchors: HashMap<usize, (Node, Size)>,
    nodes: usize,
    bytes: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, Wrong> {
        self.events.next().transpose().map_err(|error| {
            let marker = error.marker();
            let why = format!("it is not valid YAML: {} (column {})", error.info(), marker.col() + 1);
            Wrong { line: marker.line(), why }
        })
    }

    /// The next event within a table or list.
    fn within(&mut self) -> Result<(Event<'a>, Span), Wrong> {
        self.next()?.ok_or(Wrong { line: 1, why: "it is not valid YAML: it ends too early".to_owned() })
    }

    fn node(&mut self, event: Event<'a>, span: Span, level: usize) -> Result<(Node, Size), Wrong> {
        let (node, size, anchor) = match event {
            Event::Alias(id) => {
                let Some((node, size)) = self.anchors.get(&id).cloned() else {
                    return Err(Wrong::at(span, "an alias stands inside of what it means"));
                };
                self.count(span, size)?;
                self.check_levels(span, level + size.levels)?;
                return Ok((node, size));
            }
            Event::Scalar(text, style, anchor, tag) => {
                let (tag, core) = known(tag.as_deref(), span)?;
                // The parser writes `~` for what is not there.
                let text =
                    if style == ScalarStyle::Plain && span.is_empty() { String::new() } else { text.into_owned() };
                let scalar = scalar(text, style, core, span)?;
                let size = Size { nodes: 1, bytes: scalar.text.len(), levels: 0 };
                self.count(span, size)?;
                (Node { tag, content: Content::Scalar(scalar) }, size, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                let (tag, core) = known(tag.as_deref(), span)?;
                of_kind(core, Core::Seq, "a list", span)?;
                self.check_levels(span, level + 1)?;
                let (list, size) = self.list(span, level)?;
                (Node { tag, content: Content::List(list) }, size, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                let (tag, core) = known(tag.as_deref(), span)?;
                of_kind(core, Core::Map, "a table", span)?;
                self.check_levels(span, level + 1)?;
                let (table, size) = self.table(span, level)?;
                (Node { tag, content: Content::Table(table) }, size, anchor)
            }
            _ => return Err(Wrong::at(span, "it is not YAML that can be checked")),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok((node, size))
    }

    fn list(&mut self, start: Span, level: usize) -> Result<(Vec<Node>, Size), Wrong> {
        let mut size = Size { nodes: 1, ..Size::default() };
        self.count(start, size)?;
        let mut list = Vec::new();
        loop {
            let (event, span) = self.within()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok((list, size));
            }
            let (node, of_node) = self.node(event, span, level + 1)?;
            size.add(of_node);
            list.push(node);
        }
    }

    fn table(&mut self, start: Span, level: usize) -> Result<(Vec<(Scalar, Node)>, Size), Wrong> {
        let mut size = Size { nodes: 1, ..Size::default() };
        self.count(start, size)?;
        let mut table: Vec<(Scalar, Node)> = Vec::new();
        let mut lines: HashMap<String, usize> = HashMap::new();
        let mut merged = None;
        loop {
            let (event, span) = self.within()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let merge = is_merge(&event, span)?;
            let (key, of_key) = self.node(event, span, level + 1)?;
            let Node { tag: None, content: Content::Scalar(key) } = key else {
                return Err(Wrong::at(span, "a key has to be a plain text, without a tag of Compose"));
            };
            if let Some(before) = lines.insert(key.text.clone(), span.start.line()) {
                let why = format!(
                    "the key `{}` stands in line {before} already, and YAML keeps only one of them: remove one, or put what both say into one",
                    key.text
                );
                return Err(Wrong::at(span, why));
            }
            let (event, of_value) = self.within()?;
            let (node, of_node) = self.node(event, of_value, level + 1)?;
            size.add(of_key);
            size.add(of_node);
            if merge {
                merged = Some((node, of_value));
            } else {
                table.push((key, node));
            }
        }
        if let Some((node, span)) = merged {
            merge(&mut table, node, span)?;
        }
        Ok((table, size))
    }

    fn count(&mut self, span: Span, size: Size) -> Result<(), Wrong> {
        self.nodes = self.nodes.saturating_add(size.nodes);
        self.bytes = self.bytes.saturating_add(size.bytes);
        if self.nodes > MOST_NODES || self.bytes > MOST_BYTES {
            let why = format!(
                "with its aliases (`*name`) written out, the file has more than {MOST_NODES} values or 8 MB of text up to here: use fewer aliases of large parts"
            );
            return Err(Wrong::at(span, why));
        }
        Ok(())
    }

    fn check_levels(&self, span: Span, levels: usize) -> Result<(), Wrong> {
        if levels > MOST_LEVELS {
            return Err(Wrong::at(span, format!("tables and lists are nested more than {MOST_LEVELS} levels deep")));
        }
        Ok(())
    }
}

/// Whether a key is the merge key. In quotes it is a text to some parsers alone, so it is refused.
fn is_merge(event: &Event<'_>, span: Span) -> Result<bool, Wrong> {
    match event {
        Event::Scalar(text, ScalarStyle::Plain, _, None) => Ok(text == "<<"),
        Event::Scalar(text, ..) if text == "<<" => {
            Err(Wrong::at(span, "write the merge key `<<` without quotes and tags"))
        }
        _ => Ok(false),
    }
}

/// What a table says itself counts before what is merged into it, and what comes first in a list of tables before the rest.
fn merge(table: &mut Vec<(Scalar, Node)>, node: Node, span: Span) -> Result<(), Wrong> {
    let wrong = || Wrong::at(span, "the merge key `<<` takes a table, or a list of tables");
    let sources = match node {
        Node { tag: None, content: Content::List(list) } => list,
        node => vec![node],
    };
    for source in sources {
        let Node { tag: None, content: Content::Table(entries) } = source else { return Err(wrong()) };
        for (key, node) in entries {
            if !table.iter().any(|(own, _)| own.text == key.text) {
                table.push((key, node));
            }
        }
    }
    Ok(())
}

/// The tags of YAML itself that Compose files may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Core {
    Str,
    Plain,
    Float,
    Seq,
    Map,
}

fn known(tag: Option<&granit_parser::Tag>, span: Span) -> Result<(Option<Tag>, Option<Core>), Wrong> {
    let Some(tag) = tag else { return Ok((None, None)) };
    let (handle, suffix) = tag.parts();
    Ok(match format!("{handle}{suffix}").as_str() {
        "!reset" => (Some(Tag::Reset), None),
        "!override" => (Some(Tag::Override), None),
        "tag:yaml.org,2002:str" => (None, Some(Core::Str)),
        "tag:yaml.org,2002:int" | "tag:yaml.org,2002:bool" | "tag:yaml.org,2002:null" => (None, Some(Core::Plain)),
        "tag:yaml.org,2002:float" => (None, Some(Core::Float)),
        "tag:yaml.org,2002:seq" => (None, Some(Core::Seq)),
        "tag:yaml.org,2002:map" => (None, Some(Core::Map)),
        _ => {
            let why = format!(
                "the tag `{}` means nothing in a Compose file: remove it (`!reset` and `!override` are known)",
                tag.original()
            );
            return Err(Wrong::at(span, why));
        }
    })
}

fn of_kind(core: Option<Core>, wanted: Core, what: &str, span: Span) -> Result<(), Wrong> {
    match core {
        Some(core) if core != wanted => Err(Wrong::at(span, format!("the tag does not fit {what}: remove it"))),
        _ => Ok(()),
    }
}

fn scalar(text: String, style: ScalarStyle, core: Option<Core>, span: Span) -> Result<Scalar, Wrong> {
    let plain = style == ScalarStyle::Plain && may_be_more_than_text(&text);
    let kind = match core {
        Some(Core::Str) => Kind::Text,
        None if plain => Kind::Plain,
        None => Kind::Text,
        Some(Core::Plain) if plain => Kind::Plain,
        Some(Core::Float) if plain => Kind::Float,
        Some(_) => return Err(Wrong::at(span, format!("the tag does not fit `{text}`: remove it"))),
    };
    Ok(Scalar { text, kind })
}

/// Whether some parser may take a scalar without quotes for a number, a boolean, a date or nothing. Such ones are written as they stand, and what they are is left to Compose.
fn may_be_more_than_text(text: &str) -> bool {
    const WORDS: [&str; 10] = ["", "~", "null", "true", "false", "y", "n", "yes", "no", "on"];
    let lower = text.to_ascii_lowercase();
    if WORDS.contains(&lower.as_str()) || lower == "off" {
        return true;
    }
    if matches!(lower.trim_start_matches(['+', '-']), ".inf" | ".nan") {
        return true;
    }
    let number = |character: char| character.is_ascii_alphanumeric() || matches!(character, '+' | '-' | '.' | '_');
    let starts = text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '.'));
    if starts && text.chars().all(number) && text.contains(|any: char| any.is_ascii_digit()) {
        return true;
    }
    let date = |character: char| {
        character.is_ascii_digit() || matches!(character, 'T' | 't' | 'Z' | ' ' | ':' | '.' | '+' | '-')
    };
    let year =
        text.get(..5).is_some_and(|year| year.ends_with('-') && year.bytes().take(4).all(|byte| byte.is_ascii_digit()));
    year && text.chars().all(date) && !text.ends_with(':') && !text.contains(": ")
}
