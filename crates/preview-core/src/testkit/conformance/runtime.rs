//! What [`Runtime`] promises.

use serde_json::{Value, json};

use crate::engine::Engine;
use crate::ownership::Selector;
use crate::runtime::{Runtime, Source, Stack, Variables};
use crate::secret::Secret;

/// Runs every check with stacks of the image `image` (which the engine has), that stays up by `command`. `source` is a project with one
/// service that resolves. Leaves nothing behind.
///
/// # Panics
/// Where the contract is not kept.
pub async fn suite(
    runtime: &dyn Runtime,
    engine: &dyn Engine,
    source: &Source,
    app: &str,
    image: &str,
    command: &[&str],
) {
    let model = runtime.resolve(source).await.expect("resolves").model;
    assert_eq!(model["name"], json!(source.project), "the project's name is ours");
    assert_eq!(runtime.resolve(source).await.expect("resolves again").model, model, "resolving has no effect");

    let selector = Selector::preview(app, "pr-1");
    let service = |colour: &str| json!({"image": image, "command": command, "labels": selector.labels(), "environment": {"COLOUR": colour}, "stop_grace_period": "0s"});
    let up = async |services: Value| {
        let model = json!({"name": source.project, "services": services});
        let stack = Stack {
            project: source.project.clone(),
            rendered: Secret::new(model.to_string()),
            variables: Variables::new(),
        };
        runtime.up(&stack, &|_| {}).await
    };
    let ids = async || {
        let found = engine.containers(&selector).await.expect("lists");
        crate::plan::container_ids(&found)
    };

    up(json!({"a": service("red"), "b": service("red")})).await.expect("comes up");
    let first = ids().await;
    assert_eq!(first.len(), 2, "both services run");
    up(json!({"a": service("red"), "b": service("red")})).await.expect("comes up again");
    assert_eq!(ids().await, first, "the same again changes nothing");
    up(json!({"a": service("red"), "b": service("blue")})).await.expect("one changed");
    let second = ids().await;
    assert_eq!(second["a"], first["a"], "what does not differ is kept");
    assert_ne!(second["b"], first["b"], "what differs is replaced");
    up(json!({"a": service("red")})).await.expect("one is gone");
    assert_eq!(ids().await.keys().collect::<Vec<_>>(), ["a"], "what is no longer in the stack is removed");
    let mut unknown = service("red");
    unknown["image"] = json!("preview.invalid/never:1");
    up(json!({"a": service("red"), "b": unknown})).await.expect_err("never pulls");
    assert_eq!(ids().await["a"], second["a"], "a failed start leaves the rest alone");
    engine.remove(&selector, &[]).await.expect("removed");
    assert!(ids().await.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::engine::MemoryEngine;
    use crate::testkit::runtime::MemoryRuntime;

    #[tokio::test]
    async fn the_memory_runtime_keeps_the_contract() {
        let engine = MemoryEngine::new();
        engine.add_image("busybox:1.36", &std::collections::BTreeMap::new());
        let runtime = MemoryRuntime::new(engine.clone());
        runtime.set_model(json!({"services": {"a": {"image": "busybox:1.36"}}}));
        let source = Source {
            files: vec![],
            directory: "/".into(),
            env_files: vec![],
            profiles: vec![],
            project: "app_pr-1".into(),
            variables: Variables::new(),
        };
        suite(&runtime, &engine, &source, "app", "busybox:1.36", &["sleep", "1000"]).await;
    }
}
