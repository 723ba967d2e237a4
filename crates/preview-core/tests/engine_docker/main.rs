//! The Docker engine of this machine keeps the contract of `Engine`.
//!
//! Needs an engine (`DOCKER_HOST` if that is a unix socket, else `/var/run/docker.sock`) with the image `busybox:1.36`.
//! Without an engine the tests do nothing and say so; with `PREVIEW_LAB=1` that is a failure.

#![expect(clippy::unwrap_used, reason = "a test panics where its preparations fail")]

mod fixture;
mod registry;

use std::collections::BTreeSet;
use std::path::PathBuf;

use futures_util::TryStreamExt as _;
use preview_core::engine::docker::DockerEngine;
use preview_core::engine::{Engine as _, ExecRequest, RegistryAuth, Removed};
use preview_core::fault::FaultKind;
use preview_core::ownership::{self, Selector};
use preview_core::testkit::conformance::engine::{EngineFixture as _, Spec, suite};

use fixture::{Fixture, IMAGE};

fn socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock").into()
}

/// The engine, or none with the reason on standard error.
async fn engine() -> Option<DockerEngine> {
    let engine = DockerEngine::connect(&socket()).unwrap();
    match engine.info().await {
        Ok(info) => {
            eprintln!("engine {} with API {}", info.version, info.api_version);
            Some(engine)
        }
        Err(fault) if std::env::var("PREVIEW_LAB").is_ok_and(|lab| lab == "1") => {
            panic!("PREVIEW_LAB=1 and no engine: {}", fault.chain())
        }
        Err(fault) => {
            eprintln!("NOT TESTED: {} (PREVIEW_LAB=1 makes this a failure)", fault.chain());
            None
        }
    }
}

#[tokio::test]
async fn docker_engine_keeps_the_contract() {
    let Some(engine) = engine().await else { return };
    suite(&engine, &Fixture::at(&socket())).await;
}

#[tokio::test]
async fn images_are_pulled_with_credentials() {
    let Some(engine) = engine().await else { return };
    if std::env::var_os("DOCKER_HOST").is_some() {
        eprintln!("NOT TESTED: pulls, because the engine of DOCKER_HOST may not reach this machine's loopback");
        return;
    }
    let fixture = Fixture::at(&socket());
    let labels = serde_json::json!({ ownership::MANAGED: "true", ownership::APP: fixture.app });
    let registry = registry::serve(&labels).await;
    let right = registry::credentials();
    let wrong = RegistryAuth { username: Some("nobody".to_owned()), ..right.clone() };
    let pull = async |tag: &str, auth: Option<&RegistryAuth>| {
        let progress = engine.pull(&format!("{registry}/app:{tag}"), auth).await?;
        progress.try_collect::<Vec<_>>().await
    };
    for auth in [None, Some(&wrong)] {
        let fault = pull("1", auth).await.unwrap_err();
        assert_eq!((fault.kind, fault.transient), (FaultKind::Denied, false), "{}", fault.chain());
    }
    let fault = pull("2", Some(&right)).await.unwrap_err();
    assert_eq!((fault.kind, fault.transient), (FaultKind::NotFound, false), "{}", fault.chain());
    let progress = pull("1", Some(&right)).await.unwrap();
    assert!(!progress.is_empty());
    let asked = BTreeSet::from([format!("{registry}/app:1")]);
    assert_eq!(engine.image_ids(&asked).await.unwrap().len(), 1);
    let removed = engine.remove(&Selector::App(fixture.app.clone()), &[]).await.unwrap();
    assert_eq!(removed, Removed { images: 1, ..Removed::default() });
}

/// Each request is a round trip on a slow link, and each new connection another one.
#[tokio::test]
async fn requests_are_few_and_connections_are_kept() {
    let Some(_) = engine().await else { return };
    let fixture = Fixture::at(&socket());
    let selector = Selector::preview(&fixture.app, "count");
    let labels = selector.labels();
    let name = format!("{}-count", fixture.app);
    let engine = DockerEngine::connect(&socket()).unwrap();
    let mut counted = Vec::new();
    let mut before = engine.counts();
    let mut count = |what: &'static str| {
        let after = engine.counts();
        counted.push((what, after.0 - before.0, after.1 - before.1));
        before = after;
    };
    engine.containers(&selector).await.unwrap();
    count("containers");
    engine.containers(&selector).await.unwrap();
    count("containers again");
    assert!(engine.ensure_network(&name, &labels).await.unwrap());
    count("ensure_network");
    fixture.volume(&name, labels.clone()).await;
    let spec = Spec { name: name.clone(), labels, network: Some(name.clone()), ..Spec::default() };
    let id = fixture.container(spec).await;
    engine.inspect(&id).await.unwrap();
    count("inspect");
    engine.stats(&id).await.unwrap();
    count("stats");
    engine.image_ids(&BTreeSet::from([IMAGE.to_owned(), "missing".to_owned()])).await.unwrap();
    count("image_ids of two");
    let request = ExecRequest { argv: vec!["true".to_owned()], ..ExecRequest::default() };
    let exec = engine.exec(&id, &request).await.unwrap();
    exec.output.try_collect::<Vec<_>>().await.unwrap();
    engine.exec_exit_code(&exec.id).await.unwrap();
    count("exec and its exit code");
    engine.inventory(&selector).await.unwrap();
    count("inventory");
    let removed = engine.remove(&selector, &[]).await.unwrap();
    assert_eq!(removed, Removed { containers: 1, networks: 1, volumes: 1, images: 0 });
    count("remove of one container, network and volume");
    for (what, connections, requests) in &counted {
        eprintln!("{what}: {requests} requests, {connections} new connections");
    }
    let requests: Vec<_> = counted.iter().map(|(_, _, requests)| *requests).collect();
    assert_eq!(requests[..6], [1, 1, 1, 1, 2, 1], "requests are known in number");
    assert!((3..=5).contains(&requests[6]), "the exit code may have to be asked for again");
    assert_eq!(requests[7..], [4, 7]);
    assert_eq!((counted[0].1, counted[1].1), (1, 0), "a connection is used again");
}
