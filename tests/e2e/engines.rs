//! The contracts of engine and runtime, kept by the engines of VMs and by both major versions of Compose.

#![expect(clippy::unwrap_used, reason = "a test panics where its preparations fail")]

#[path = "../../crates/preview-core/tests/engine_docker/fixture.rs"]
mod fixture;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fixture::{Fixture, IMAGE};
use preview_core::engine::Engine as _;
use preview_core::engine::docker::DockerEngine;
use preview_core::fault::FaultKind;
use preview_core::ownership::Selector;
use preview_core::runtime::compose::{Compose, ComposeOptions};
use preview_core::runtime::{Runtime as _, Source, Variables};
use preview_core::secret::Secret;
use preview_core::testkit::conformance;
use preview_tests::{Lab, Site, VmEngine, Where, eventually, lab};

/// The socket of a VM's engine, here.
struct Forwarded {
    ssh: Child,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Forwarded {
    fn of(site: &Site) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker.sock");
        let mut ssh = site.vm().expect("it is a VM").ssh();
        ssh.args(["-N", "-o", "ExitOnForwardFailure=yes", "-L"])
            .arg(format!("{}:/var/run/docker.sock", socket.display()));
        let ssh = ssh.stdin(Stdio::null()).spawn().expect("ssh starts");
        eventually("the socket is forwarded", || socket.exists());
        Self { ssh, socket, _directory: directory }
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

fn engine_of_a_vm(version: VmEngine, begins: &str) {
    let Some(site) = Site::new(Where::Vm(version), "") else { return };
    let forwarded = Forwarded::of(&site);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let engine = DockerEngine::connect(&forwarded.socket).unwrap();
        let found = engine.info().await.expect("the engine answers").version;
        assert!(found.starts_with(begins), "{found}");
        conformance::engine::suite(&engine, &Fixture::at(&forwarded.socket)).await;
    });
}

#[test]
fn engine_28_keeps_the_contract() {
    engine_of_a_vm(VmEngine::V28, "28.");
}

#[test]
fn engine_29_keeps_the_contract() {
    engine_of_a_vm(VmEngine::V29, "29.");
}

/// The lab's Compose, and the other major version where it can be had; each with what its version begins with.
fn composes(lab: &Lab) -> Vec<(String, Compose)> {
    let other = lab.other_compose().expect("Compose is built or fetched");
    if other.is_none() {
        eprintln!("NOT TESTED: Compose 5 is built by Go, and there is no `go`, or no module proxy");
    }
    let configs = [Some(lab.docker_config.clone()), other];
    let made = configs.into_iter().flatten().map(|config| {
        let mut version = Command::new(&lab.docker);
        version.env("DOCKER_CONFIG", &config).args(["compose", "version", "--short"]);
        let version = String::from_utf8(version.output().expect("docker runs").stdout).unwrap();
        let options = ComposeOptions {
            docker: lab.docker.clone(),
            path: std::env::var_os("PATH").unwrap_or_default(),
            docker_config: Some(config),
            socket: None,
            guardian: None,
        };
        (version.trim().trim_start_matches('v').to_owned(), Compose::new(options))
    });
    made.collect()
}

fn source(directory: &Path, project: &str, image: &str) -> Source {
    Source {
        files: vec![directory.join("compose.yml")],
        directory: directory.to_owned(),
        env_files: vec![],
        profiles: vec![],
        project: project.to_owned(),
        variables: Variables::from([("IMAGE".to_owned(), Secret::new(image.to_owned()))]),
        readable: vec![],
    }
}

#[test]
fn each_compose_keeps_the_contract() {
    let Some(lab) = lab() else { return };
    let socket = lab.docker_host.as_deref().and_then(|host| host.strip_prefix("unix://"));
    let socket = PathBuf::from(socket.unwrap_or("/var/run/docker.sock"));
    let composes = composes(lab);
    let majors: Vec<&str> = composes.iter().filter_map(|(version, _)| version.split('.').next()).collect();
    assert_ne!(majors.first(), majors.get(1), "they are two versions");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (number, (version, compose)) in composes.iter().enumerate() {
        eprintln!("Compose {version}");
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("compose.yml"), "services: {a: {image: '${IMAGE}'}}\n").unwrap();
        let app = xtask::lab::test_app(9000 + u32::try_from(number).unwrap());
        let project = format!("{app}_pr-1");
        let source = source(directory.path(), &project, IMAGE);
        let done = runtime.block_on(async {
            let engine = DockerEngine::connect(&socket).unwrap();
            let adapter = compose.with_socket(socket.clone(), None);
            let command = ["sleep", "100000"];
            let suite = conformance::runtime::suite(&adapter, &engine, &source, &app, IMAGE, &command);
            let done = futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(suite)).await;
            // A suite that failed half-way leaves its containers; the network has Compose's labels alone.
            let _ = engine.remove(&Selector::preview(&app, "pr-1"), &[]).await;
            done
        });
        let removed = lab.docker(["network", "rm", &format!("{project}_default")]).output().expect("docker runs");
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    }
}

#[test]
fn each_compose_says_what_is_wrong_in_words_that_are_understood() {
    let Some(lab) = lab() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (version, compose) in composes(lab) {
        let directory = tempfile::tempdir().unwrap();
        let resolve = |text: &str| {
            std::fs::write(directory.path().join("compose.yml"), text).unwrap();
            runtime.block_on(compose.resolve(&source(directory.path(), "p", "x:1")))
        };
        for (text, words) in [
            ("services: {a: {image: x, colour: red}}\n", "colour"),
            ("services: {a: {image: 'x:${TAG:?say which}'}}\n", "say which"),
            ("services: {a: {image: x, depends_on: [b]}}\n", "b"),
            ("services: [a]\n", "services"),
        ] {
            let fault = resolve(text).expect_err("it is refused");
            assert_eq!(fault.kind, FaultKind::Invalid, "Compose {version}: {}", fault.chain());
            assert!(fault.context.contains(words), "Compose {version}: {}", fault.chain());
        }
        let resolved = resolve("services: {a: {image: 'x:${TAG}', command: '${HOME}'}}\n").expect("it resolves");
        assert!(
            resolved.warnings.iter().any(|warning| warning.contains("TAG")),
            "Compose {version}: {:?}",
            resolved.warnings
        );
        assert_eq!(resolved.model["services"]["a"]["image"], "x:", "Compose {version}");
    }
}
