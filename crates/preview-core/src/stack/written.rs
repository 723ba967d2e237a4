//! Values as the files have them: Compose makes every path absolute, and nobody finds those in their files.

use std::path::Path;

use serde_json::Value;

use super::{Violation, normal};

/// Puts the text of the files in place of the absolute paths that Compose made of it. `documents` are the files as they are written, `directory` is what
/// relative paths refer to.
pub fn as_written(violations: &mut [Violation], documents: &[Value], directory: &Path) {
    let mut texts = Vec::new();
    for document in documents {
        collect(document, &mut texts);
    }
    for violation in violations {
        let Some(value) = violation.value.as_mut().filter(|value| value.starts_with('/')) else { continue };
        if let Some(text) = find(&texts, value, directory) {
            // A relative path means a place of the machine that deploys: there is none of that name on the host.
            if !text.starts_with('/') {
                violation.allow = None;
            }
            *value = text;
        }
    }
}

fn collect<'a>(value: &'a Value, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect(item, texts)),
        Value::Object(table) => table.values().for_each(|item| collect(item, texts)),
        _ => {}
    }
}

/// The text that becomes this path: a whole value, or the source of a mount in its short form. Without one, the path from the directory.
fn find(texts: &[&str], path: &str, directory: &Path) -> Option<String> {
    let means = |text: &str| {
        !text.is_empty()
            && (text.starts_with(['/', '.', '~']) || !text.contains("://"))
            && (normal(&directory.join(text)) == Path::new(path))
    };
    let sources = texts.iter().flat_map(|text| [Some(*text), text.split_once(':').map(|(source, _)| source)]);
    let found = sources.flatten().find(|text| means(text)).map(str::to_owned);
    found.or_else(|| {
        let below = Path::new(path).strip_prefix(directory).ok()?.to_str()?;
        Some(if below.is_empty() { ".".to_owned() } else { format!("./{below}") })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::stack::AllowLine;

    #[test]
    fn paths_are_shown_as_they_are_written() {
        let files = [json!({"services": {"app": {
            "volumes": ["../other:/other:ro", {"type": "bind", "source": "./conf/../lnk"}, "/var/run/docker.sock:/s"],
            "build": {"context": ".."}, "image": "registry.example.com:5000/x",
        }}})];
        for (path, shown) in [
            ("/home/runner/work/other", "../other"),
            ("/home/runner/work/shop/lnk", "./conf/../lnk"),
            ("/var/run/docker.sock", "/var/run/docker.sock"),
            ("/home/runner/work", ".."),
            ("/home/runner/work/shop/of-a-variable", "./of-a-variable"),
            ("/home/runner/elsewhere", "/home/runner/elsewhere"),
            ("host", "host"),
        ] {
            let allow = AllowLine { values: vec![path.to_owned()], ..AllowLine::default() };
            let mut found = [Violation { value: Some(path.to_owned()), allow: Some(allow), ..Violation::default() }];
            as_written(&mut found, &files, Path::new("/home/runner/work/shop"));
            assert_eq!(found[0].value.as_deref(), Some(shown));
            assert_eq!(found[0].allow.is_some(), !shown.starts_with('.'), "{shown}");
        }
    }
}
