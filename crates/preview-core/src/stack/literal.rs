//! Compose fills in variables once more in the stack that it is handed, so nothing in it may look like one.

use serde_json::Value;

use super::Violation;

/// Every text of a rendered model, keys too, in which a `$` stands alone. What the user meant as a variable is filled in by then, and two `$` mean one.
#[must_use]
pub fn not_literal(model: &Value) -> Vec<Violation> {
    let mut found = Vec::new();
    look(model, "", &mut found);
    found
}

fn look(value: &Value, key: &str, found: &mut Vec<Violation>) {
    match value {
        Value::String(text) => check(text, key, found),
        Value::Array(items) => items.iter().for_each(|item| look(item, key, found)),
        Value::Object(table) => {
            for (name, item) in table {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                check(name, &key, found);
                look(item, &key, found);
            }
        }
        _ => {}
    }
}

fn check(text: &str, key: &str, found: &mut Vec<Violation>) {
    if text.replace("$$", "").contains('$') {
        found.push(Violation {
            key: key.to_owned(),
            value: Some(text.to_owned()),
            why: "it has a `$`, which Compose would take for a variable".to_owned(),
            instead: "use a name without `$`".to_owned(),
            ..Violation::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_dollar_sign_has_to_be_doubled() {
        let keys = |model: Value| not_literal(&model).into_iter().map(|one| one.key).collect::<Vec<_>>();
        let fine =
            json!({"services": {"a": {"command": ["$$X", "$$$$", "5$$"], "labels": {"a$$b": "x"}, "init": true}}});
        assert_eq!(keys(fine), Vec::<String>::new());
        for (model, key) in [
            (json!({"services": {"a": {"volumes": [{"source": "/r/${EVIL}"}]}}}), "services.a.volumes.source"),
            (json!({"services": {"a": {"build": {"context": "/r/$X"}}}}), "services.a.build.context"),
            (json!({"services": {"a": {"labels": {"a$b": "x"}}}}), "services.a.labels.a$b"),
            (json!({"configs": {"c": {"file": "$$$X"}}}), "configs.c.file"),
            (json!({"x-a": "$"}), "x-a"),
        ] {
            assert_eq!(keys(model.clone()), [key], "{model}");
        }
    }
}
