//! What [`Runtime`] promises.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::engine::Engine;
use crate::fault::FaultKind;
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

    check(runtime, source, image).await;

    let selector = Selector::preview(app, "pr-1");
    let service = |colour: &str| json!({"image": image, "command": command, "labels": selector.labels(), "environment": {"COLOUR": colour}, "stop_grace_period": "0s"});
    let stack = |services: Value| {
        let model = json!({"name": source.project, "services": services});
        Stack { project: source.project.clone(), rendered: Secret::new(model.to_string()), variables: Variables::new() }
    };
    let up = async |services: Value| runtime.up(&stack(services), &|_| {}).await;
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
    let both = stack(json!({"a": service("green"), "b": service("green")}));
    runtime.up_only(&stack(json!({"b": service("green")})), &|_| {}).await.expect("one alone");
    let alone = ids().await;
    assert_eq!(alone["a"], second["a"], "what is not in this stack is kept, though it differs");
    assert_ne!(alone["b"], second["b"], "what is in it is replaced");
    runtime.beside(&both, &BTreeMap::from([("a".to_owned(), 2)]), &|_| {}).await.expect("one more");
    let beside = ids().await;
    assert_eq!((beside["a"].len(), &beside["b"]), (2, &alone["b"]), "one more of what was named");
    assert!(beside["a"].contains(&second["a"][0]), "the one that ran stays");
    runtime.up(&both, &|_| {}).await.expect("the old one goes");
    let rolled = ids().await;
    assert_eq!(rolled["a"].len(), 1, "one too many goes");
    assert_ne!(rolled["a"], second["a"], "the one that differs went");
    assert!(beside["a"].contains(&rolled["a"][0]), "the new one was not started again");
    let second = rolled;
    up(json!({"a": service("green")})).await.expect("one is gone");
    assert_eq!(ids().await.keys().collect::<Vec<_>>(), ["a"], "what is no longer in the stack is removed");
    let mut unknown = service("red");
    unknown["image"] = json!("preview.invalid/never:1");
    up(json!({"a": service("green"), "b": unknown})).await.expect_err("never pulls");
    assert_eq!(ids().await["a"], second["a"], "a failed start leaves the rest alone");
    engine.remove(&selector, &[]).await.expect("removed");
    assert!(ids().await.is_empty());
}

/// A stack that is whole is taken, and one with a dependency on nobody is not; neither has an effect.
async fn check(runtime: &dyn Runtime, source: &Source, image: &str) {
    let stack = |depends_on: Value| {
        let model = json!({"name": source.project, "services": {"app": {"image": image, "depends_on": depends_on}}});
        Stack { project: source.project.clone(), rendered: Secret::new(model.to_string()), variables: Variables::new() }
    };
    runtime.check(&stack(json!({}))).await.expect("a whole stack is taken");
    let dangling = stack(json!({"nobody": {"condition": "service_started", "required": true}}));
    let fault = runtime.check(&dangling).await.expect_err("a dependency on nobody is told");
    assert_eq!(fault.kind, FaultKind::Invalid, "{fault}");
    assert!(fault.to_string().contains("nobody"), "{fault}");
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
            readable: vec![],
        };
        suite(&runtime, &engine, &source, "app", "busybox:1.36", &["sleep", "1000"]).await;
    }
}
