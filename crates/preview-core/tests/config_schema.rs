//! `docs/preview.schema.json` is what the types say, and `docs/configuration.md` says what the schema says.

use std::collections::BTreeSet;
use std::path::PathBuf;

use preview_core::config::{ConfigFile, Environment, Overrides, Settings};
use serde_json::Value;

fn docs(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

fn schema() -> Value {
    preview_core::config::schema().to_value()
}

#[test]
fn the_schema_in_docs_is_up_to_date() {
    let wanted = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    let path = docs("preview.schema.json");
    if std::env::var_os("PREVIEW_REGENERATE").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/preview.schema.json is not what the types say. Regenerate it:\n\
         PREVIEW_REGENERATE=1 cargo test -p preview-core --all-features --test config_schema"
    );
}

/// All keys of tables, as `guardrails.memory`, and whether each has a description.
fn keys(schema: &Value, root: &Value, path: &str, found: &mut BTreeSet<(String, bool)>) {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        keys(root.pointer(reference.trim_start_matches('#')).expect("a definition of the schema"), root, path, found);
    }
    for (key, below) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        found.insert((path.clone(), below.get("description").is_some_and(Value::is_string)));
        keys(below, root, &path, found);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(below) = schema.get(key) {
            keys(below, root, path, found);
        }
    }
    for below in schema.get("anyOf").and_then(Value::as_array).into_iter().flatten() {
        keys(below, root, path, found);
    }
}

fn all_keys() -> BTreeSet<(String, bool)> {
    let schema = schema();
    let mut found = BTreeSet::new();
    keys(&schema, &schema, "", &mut found);
    found
}

#[test]
fn every_key_has_a_description() {
    let bare: Vec<_> = all_keys().into_iter().filter(|(_, described)| !described).collect();
    assert!(bare.is_empty(), "{bare:?}");
}

#[test]
fn every_key_is_in_the_documentation() {
    let text = std::fs::read_to_string(docs("configuration.md")).unwrap();
    let keys = all_keys();
    assert!(keys.len() > 40, "only {} keys were found in the schema", keys.len());
    let missing: Vec<_> = keys.iter().filter(|(key, _)| !text.contains(&format!("| `{key}` |"))).collect();
    assert!(missing.is_empty(), "docs/configuration.md has no row for {missing:?}");
    // And no row for a key that does not exist.
    for row in text.lines().filter_map(|line| line.strip_prefix("| `")) {
        let key = row.split('`').next().unwrap();
        let known = keys.iter().any(|(known, _)| known == key);
        let elsewhere = key.starts_with("PREVIEW_") || key.starts_with('{') || key == "secrets.names";
        assert!(known || elsewhere, "docs/configuration.md describes `{key}`, which does not exist");
    }
}

/// The fenced blocks of a language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("```{language}\n");
    text.split(open.as_str()).skip(1).map(|rest| rest.split_once("```").expect("a fence that ends").0).collect()
}

#[test]
fn every_example_in_the_documentation_is_valid() {
    let text = std::fs::read_to_string(docs("configuration.md")).unwrap();
    let blocks = blocks(&text, "toml");
    assert!(blocks.len() >= 5);
    for block in blocks {
        let settings = ConfigFile::parse(block, None)
            .and_then(|file| Settings::merge(file, &Environment::new(), &Overrides::default()));
        let config = settings.unwrap_or_else(|error| panic!("{error}\n{block}")).config;
        for table in &config.secrets {
            preview_core::secrets::from_table(table, &Environment::new())
                .unwrap_or_else(|error| panic!("{error}\n{block}"));
        }
    }
}

/// Blocks of the base branch's file.
#[test]
fn every_trusted_example_in_the_documentation_is_valid() {
    let text = std::fs::read_to_string(docs("configuration.md")).unwrap();
    let blocks = blocks(&text, "toml trusted");
    assert!(!blocks.is_empty());
    for block in blocks {
        let file = ConfigFile::parse(block, None).unwrap_or_else(|error| panic!("{error}\n{block}"));
        Settings::merge(ConfigFile::default().under(&file), &Environment::new(), &Overrides::default())
            .unwrap_or_else(|error| panic!("{error}\n{block}"));
    }
}

/// Blocks of wrong TOML, each followed by its message.
#[test]
fn every_error_in_the_documentation_is_the_real_one() {
    let text = std::fs::read_to_string(docs("configuration.md")).unwrap();
    let wrong = blocks(&text, "text wrong");
    assert!(wrong.len() >= 3);
    for block in wrong {
        let (toml, message) = block.split_once("\n=> ").unwrap();
        let error = ConfigFile::parse(toml, Some("preview.toml".as_ref()))
            .and_then(|file| Settings::merge(file, &Environment::new(), &Overrides::default()))
            .unwrap_err();
        assert_eq!(error.to_string(), message.trim_end(), "\n{block}");
    }
}
