//! The Compose CLI keeps the contract of a runtime, on a real engine.

use std::path::PathBuf;

use preview_core::engine::Engine as _;
use preview_core::engine::docker::DockerEngine;
use preview_core::fault::FaultKind;
use preview_core::ownership::Selector;
use preview_core::runtime::compose::{Compose, ComposeOptions};
use preview_core::runtime::{Runtime as _, Source, Variables};
use preview_core::secret::Secret;
use preview_core::testkit::conformance;

fn socket() -> PathBuf {
    let of_docker = std::env::var("DOCKER_HOST").ok();
    PathBuf::from(of_docker.as_deref().and_then(|host| host.strip_prefix("unix://")).unwrap_or("/var/run/docker.sock"))
}

fn compose() -> Compose {
    let docker_config = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    Compose::new(ComposeOptions {
        docker: "docker".into(),
        path: std::env::var_os("PATH").unwrap_or_default(),
        docker_config: docker_config.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker"))),
        socket: None,
        guardian: None,
    })
}

fn source(directory: &std::path::Path, project: &str) -> Source {
    Source {
        files: vec![directory.join("compose.yml")],
        directory: directory.to_owned(),
        env_files: vec![],
        profiles: vec![],
        project: project.to_owned(),
        variables: Variables::from([("IMAGE".to_owned(), Secret::new("busybox:1.36".to_owned()))]),
    }
}

#[tokio::test]
async fn compose_keeps_the_contract() {
    let engine = DockerEngine::connect(&socket()).expect("a socket");
    if let Err(fault) = engine.info().await {
        assert!(std::env::var_os("PREVIEW_LAB").is_none(), "the lab has no engine: {}", fault.chain());
        eprintln!("NOT TESTED: no engine answers ({})", fault.chain());
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("compose.yml"), "services: {a: {image: '${IMAGE}'}}\n").expect("written");
    let app = format!("rt{}", std::process::id());
    let project = format!("{app}_pr-1");
    let compose = compose();
    let runtime = compose.with_socket(socket(), None);
    let project_files = source(directory.path(), &project);
    let found = std::panic::AssertUnwindSafe(conformance::runtime::suite(
        &runtime,
        &engine,
        &project_files,
        &app,
        "busybox:1.36",
        &["sleep", "100000"],
    ));
    let done = futures_util::FutureExt::catch_unwind(found).await;
    // A suite that failed half-way leaves its containers; the network has Compose's labels alone.
    let _ = engine.remove(&Selector::preview(&app, "pr-1"), &[]).await;
    let network = format!("{project}_default");
    let removed = std::process::Command::new("docker").args(["network", "rm", &network]).output().expect("docker runs");
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
}

#[tokio::test]
async fn wrong_files_are_invalid_with_composes_own_words() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("compose.yml");
    let compose = compose();
    std::fs::write(&file, "services: {a: {image: x, colour: red}}\n").expect("written");
    let fault = compose.resolve(&source(directory.path(), "p")).await.expect_err("refused");
    assert_eq!(fault.kind, FaultKind::Invalid, "{}", fault.chain());
    assert!(fault.context.contains("colour"), "{}", fault.chain());
    std::fs::write(&file, "services: {a: {image: 'x:${TAG:?say which}'}}\n").expect("written");
    let fault = compose.resolve(&source(directory.path(), "p")).await.expect_err("refused");
    assert_eq!(fault.kind, FaultKind::Invalid, "{}", fault.chain());
    assert!(fault.context.contains("TAG") && fault.context.contains("say which"), "{}", fault.chain());
    std::fs::write(&file, "services: {a: {image: 'x:${TAG}', command: '${HOME}${GITHUB_TOKEN}'}}\n").expect("written");
    let resolved = compose.resolve(&source(directory.path(), "p")).await.expect("resolves");
    assert!(resolved.warnings.iter().any(|warning| warning.contains("TAG")), "{:?}", resolved.warnings);
    assert_eq!(resolved.model["services"]["a"]["image"], "x:");
    assert!(!resolved.model.to_string().contains("/root"), "nothing of this machine's environment: {}", resolved.model);
}
