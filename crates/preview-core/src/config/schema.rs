//! The JSON Schema of `preview.toml`, for editors.

use schemars::transform::{Transform, transform_subschemas};
use schemars::{Schema, generate::SchemaSettings};
use serde_json::Value;

use super::file::ConfigFile;

/// The JSON Schema of `preview.toml` (draft 2020-12).
#[must_use]
pub fn schema() -> Schema {
    SchemaSettings::draft2020_12().with_transform(Toml).into_generator().into_root_schema_for::<ConfigFile>()
}

/// TOML has no `null`: a key is there or not. And line breaks of source code are none of a reader's business.
#[derive(Clone, Debug)]
struct Toml;

impl Transform for Toml {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        if schema.get("default").is_some_and(Value::is_null) {
            schema.remove("default");
        }
        if let Some(Value::String(text)) = schema.get_mut("description") {
            *text = text.replace('\n', " ");
        }
        if let Some(Value::Array(types)) = schema.get_mut("type") {
            types.retain(|kind| kind != "null");
            if let [one] = types.as_slice() {
                let one = one.clone();
                schema.insert("type".to_owned(), one);
            }
        }
        if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
            choices.retain(|choice| choice.get("type").is_none_or(|kind| kind != "null"));
            if let [Value::Object(one)] = choices.as_slice() {
                let one = one.clone();
                schema.remove("anyOf");
                for (key, value) in one {
                    schema.ensure_object().entry(key).or_insert(value);
                }
            }
        }
    }
}
