//! One run after another: what changes, what a run that dies at each change leaves, and what the next makes of it.

use std::time::Duration;

use preview_core::admission::{Limits, Weight};
use preview_core::engine::Engine as _;
use preview_core::fault::{Fault, FaultKind};
use preview_core::host::Change;
use preview_core::lifecycle::{Error, Interrupt, Refusal, Restored};
use preview_core::lock::{Holder, Lock};
use preview_core::plan::Kind;
use preview_core::project::{Deploy, Project, RouteSpec};
use preview_core::secret::Secret;
use preview_core::state::{Phase, State, Subject};

use crate::world::{LOCK, World, ZONE, failed, model, numbered, project, request, selector};

#[tokio::test]
async fn create_unchanged_update_destroy() {
    let world = World::new();
    assert_eq!(world.deploy(1, None).await.expect("created").kind, Some(Kind::Create));
    let first = world.running().await;
    let made = world.state().expect("a state").created_at;
    assert_eq!(world.deploy(1, None).await.expect("again").kind, Some(Kind::Unchanged));
    assert_eq!(world.running().await, first);
    assert_eq!(world.deploy(2, None).await.expect("updated").kind, Some(Kind::Update));
    let second = world.running().await;
    assert_eq!(second["db"], first["db"], "what does not differ is kept");
    assert_ne!(second["web"], first["web"]);
    assert_eq!(world.state().expect("a state").created_at, made, "the creation time survives");
    assert!(world.destroy_for(i64::MAX).await.expect("destroyed").existed);
    world.assert_nothing_left("destroyed").await;
    assert!(!world.destroy_for(i64::MAX).await.expect("again").existed);
    world.assert_nothing_left("destroyed twice").await;
}

#[tokio::test]
async fn a_sick_update_goes_back_and_a_sick_first_deploy_leaves_nothing() {
    let world = World::new();
    let report = failed(world.deploy(1, Some("no database")).await);
    assert_eq!(report.restored, Restored::Removed);
    assert_eq!(report.services[0].log, ["no database"]);
    world.assert_nothing_left("a first deploy that failed").await;

    world.deploy(1, None).await.expect("created");
    let first = world.running().await;
    let report = failed(world.deploy(2, Some("boom")).await);
    assert_eq!((report.restored, report.phase), (Restored::Previous, Phase::Verifying));
    assert_eq!(report.services[0].log, ["boom"], "the new version's log");
    let restored = world.running().await;
    assert_eq!(restored["db"], first["db"], "what the update did not touch is not recreated");
    let state = world.state().expect("a state");
    assert_eq!(state.phase, Phase::Failed);
    assert!(state.failure.expect("why").message.contains("unhealthy"));
    assert_eq!(world.deploy(1, None).await.expect("the old version").kind, Some(Kind::Unchanged));
    assert_eq!(world.running().await, restored);
    assert_eq!(world.deploy(3, None).await.expect("a better one").kind, Some(Kind::Update));
}

#[tokio::test]
async fn a_first_deploy_that_dies_anywhere_is_mended_by_the_next_run_and_by_destroy() {
    for life in 0..28 {
        let world = World::new();
        world.runtime.set_model(model(1, None));
        let died = world.deploy_for(life, &request()).await;
        assert!(life > 0 || died.is_err(), "the first change of all is a change");
        world.deploy(1, None).await.unwrap_or_else(|error| panic!("after {life} changes: {}", error.chain()));
        assert_eq!(world.running().await.len(), 2, "after {life} changes");
        assert_eq!(world.state().expect("a state").phase, Phase::Ready);

        let world = World::new();
        world.runtime.set_model(model(1, None));
        let _ = world.deploy_for(life, &request()).await;
        world.destroy_for(i64::MAX).await.expect("destroyed");
        world.assert_nothing_left(&format!("destroyed after {life} changes")).await;
    }
}

#[tokio::test]
async fn an_update_that_dies_anywhere_is_mended_by_the_next_run() {
    for life in 0..28 {
        let world = World::new();
        world.deploy(1, None).await.expect("created");
        let first = world.running().await;
        world.runtime.set_model(model(2, None));
        let _ = world.deploy_for(life, &request()).await;
        let done = world.deploy(2, None).await;
        done.unwrap_or_else(|error| panic!("after {life} changes: {}", error.chain()));
        assert_eq!(world.state().expect("a state").phase, Phase::Ready);
        let now = world.running().await;
        assert_eq!((now.len(), &now["db"]), (2, &first["db"]), "after {life} changes");
        let again = world.deploy(2, None).await.expect("again");
        assert_eq!(again.kind, Some(Kind::Unchanged), "after {life} changes");

        // A sick version after the death still goes back to the good one.
        let world = World::new();
        world.deploy(1, None).await.expect("created");
        world.runtime.set_model(model(2, None));
        let _ = world.deploy_for(life, &request()).await;
        // A run that dies while it tidies up has got its version through.
        let good = if world.state().expect("a state").phase == Phase::Ready && life > 0 { 2 } else { 1 };
        let report = failed(world.deploy(3, Some("sick")).await);
        assert_eq!(report.restored, Restored::Previous, "after {life} changes");
        assert_eq!(
            world.deploy(good, None).await.expect("the good one").kind,
            Some(Kind::Unchanged),
            "after {life} changes"
        );
    }
}

#[tokio::test]
async fn a_destroy_that_dies_anywhere_is_ended_by_the_next() {
    for life in 0..16 {
        let world = World::new();
        world.deploy(1, None).await.expect("created");
        let _ = world.destroy_for(life).await;
        world.destroy_for(i64::MAX).await.expect("destroyed");
        world.assert_nothing_left(&format!("after {life} changes")).await;
    }
}

#[tokio::test]
async fn a_lost_lease_ends_the_run_and_changes_nothing_more() {
    let world = World::new();
    world.deploy(1, None).await.expect("created");
    world.runtime.set_model(model(2, None));
    // The lease is lost with the third change.
    let error = world.deploy_for(3, &request()).await.expect_err("lost");
    assert_eq!(error.exit_code(), 6, "{}", error.chain());
    assert!(error.report().is_none(), "nothing was taken back: somebody else may be at work");
}

#[tokio::test]
async fn another_subject_of_the_same_name_is_refused_and_changes_nothing() {
    let world = World::new();
    world.deploy(1, None).await.expect("created");
    let (before, state) = (world.running().await, world.state());
    for deploy in [
        Deploy { subject: Subject::Branch("pr-7".into()), ..request() },
        Deploy { repository: Some("acme/other".into()), ..request() },
    ] {
        let error = world.deploy_for(i64::MAX, &deploy).await.expect_err("refused");
        assert!(matches!(error, Error::Refused(Refusal::NameTaken { .. })), "{error}");
    }
    assert_eq!((world.running().await, world.state()), (before, state));
}

#[tokio::test]
async fn update_only_makes_nothing() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    let deploy = Deploy { update_only: true, ..request() };
    assert_eq!(world.deploy_for(i64::MAX, &deploy).await.expect("done").kind, None);
    world.assert_nothing_left("nothing was there").await;
    world.deploy(1, None).await.expect("created");
    world.runtime.set_model(model(2, None));
    assert_eq!(world.deploy_for(i64::MAX, &deploy).await.expect("done").kind, Some(Kind::Update));
}

#[tokio::test]
async fn transient_failures_are_tried_again_and_others_are_not() {
    let world = World::new();
    let fault = || Fault::new(FaultKind::Unreachable, "bring the stack up", "the daemon blinked").transient();
    world.runtime.fail_next("up", fault());
    world.runtime.fail_next("up", fault());
    assert_eq!(world.deploy(1, None).await.expect("the third time").kind, Some(Kind::Create));
    let before = world.runtime.calls().iter().filter(|call| **call == "up").count();
    assert_eq!(before, 3);
    let broken = Fault::new(FaultKind::Failed, "build the images", "exit code 1");
    world.runtime.fail_next("build", broken.with_output(vec!["syntax error".to_owned()]));
    let report = failed(world.deploy(2, None).await);
    assert_eq!((report.phase, &report.restored), (Phase::Building, &Restored::Previous));
    assert_eq!(report.output, ["syntax error"]);
    let builds = world.runtime.calls().iter().filter(|call| **call == "build").count();
    assert_eq!(builds, 2, "one for each deploy");
}

#[tokio::test]
async fn who_finds_no_place_changes_nothing() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    for other in 1..=6 {
        world.deploy_for(i64::MAX, &numbered(other)).await.expect("there is a place");
    }
    let work = || world.runtime.calls().into_iter().filter(|call| *call != "resolve").count();
    let (files, before) = (world.host.paths(), work());
    let error = world.deploy_for(i64::MAX, &numbered(7)).await.expect_err("there is none");
    let Error::Refused(Refusal::Full { name, full, .. }) = &error else { panic!("{error}") };
    let holders: Vec<_> = full.holders.iter().map(|holder| holder.name.as_str()).collect();
    assert_eq!((name.as_str(), holders.len(), error.exit_code()), ("pr-7", 6, 3));
    assert_eq!((world.host.paths(), work()), (files, before), "nothing was made");
    world.deploy_for(i64::MAX, &numbered(3)).await.expect("an update has its place");

    // Who knew the host as it was a moment ago looks again.
    world.host.set_facts(|facts| facts.memory_available = 0);
    let error = world.deploy_for(i64::MAX, &numbered(7)).await.expect_err("there is none");
    assert!(error.to_string().contains("6 of 6 places"), "places come before floors: {error}");
}

/// A place is not held by the dead, unless there is something to go back to; and never taken from the living.
#[tokio::test]
async fn the_dead_hold_no_place() {
    let mut places = 0;
    for life in 1..40 {
        let world = World::new();
        world.runtime.set_model(model(1, None));
        for other in 1..=5 {
            world.deploy_for(i64::MAX, &numbered(other)).await.expect("there is a place");
        }
        let _ = world.deploy_for(life, &request()).await;
        let Some(state) = world.state() else { continue };
        let done = world.deploy_for(i64::MAX, &numbered(8)).await;
        if state.good.is_some() {
            assert!(matches!(done, Err(Error::Refused(Refusal::Full { .. }))), "after {life} changes");
            continue;
        }
        done.unwrap_or_else(|error| panic!("after {life} changes: {}", error.chain()));
        let inventory = world.engine.inventory(&selector()).await.expect("lists");
        let left = world.host.paths().into_iter().find(|path| path.starts_with("/base/shop/pr-7"));
        assert!(inventory.is_empty() && left.is_none(), "after {life} changes: {inventory:?}, {left:?}");
        places += 1;
    }
    assert!(places > 3, "runs died with a place: {places}");

    let world = World::new();
    world.runtime.set_model(model(1, None));
    let _ = world.deploy_for(4, &request()).await;
    let before = world.state().expect("it died with a place");
    let me = Holder { who: "ada".into(), why: "deploy of pr-7".into(), since: String::new() };
    let held = world.lock.acquire(LOCK, &me, Duration::ZERO, &|_| ()).await.expect("free");
    let one = Project { limits: Limits { places: Weight::places(1), ..Limits::default() }, ..project() };
    let done = world.run_with(i64::MAX, &one, &numbered(8), &Interrupt::default()).await;
    assert!(matches!(done, Err(Error::Refused(Refusal::Full { .. }))), "somebody is at work on it");
    assert_eq!(world.state(), Some(before));
    drop(held);
}

/// Nobody gets an address that another preview has, goes back to, or takes at the same moment.
#[tokio::test]
async fn an_address_is_one_previews_alone() {
    let world = World::new();
    let mut checked = model(1, None);
    checked["services"]["web"]["healthcheck"] = serde_json::json!({"test": ["CMD", "true"]});
    world.runtime.set_model(checked);
    let at = async |number: u64, path: &str| {
        let url = Some(format!("https://all.{ZONE}{path}"));
        let route = RouteSpec { service: "web".into(), port: 80, url, ..RouteSpec::default() };
        let project = Project { routes: Some(vec![route]), ..project() };
        world.run_with(i64::MAX, &project, &numbered(number), &Interrupt::default()).await
    };
    let taken = |done: Result<_, Error>, by: &str| match done {
        Err(Error::Refused(Refusal::NameTaken { by: other, .. })) => assert_eq!(other, format!("{by} of shop")),
        other => panic!("{other:?}"),
    };
    at(1, "/one").await.expect("it is free");
    taken(at(2, "/one").await, "pr-1");
    taken(at(2, "/one/below").await, "pr-1");
    taken(at(2, "").await, "pr-1");
    at(2, "/ones").await.expect("it is another");
    at(2, "/two").await.expect("it is free");
    at(3, "/ones").await.expect("it is free again");

    // An update that moves away may come back.
    let file = |number: u64| format!("/base/shop/pr-{number}/state.json");
    let mut moving: State = serde_json::from_str(&world.host.content(&file(2)).expect("a state")).expect("parses");
    moving.addresses[0].url = format!("https://all.{ZONE}/elsewhere");
    world.host.put(&file(2), moving.to_json());
    taken(at(4, "/two").await, "pr-2");

    // Somebody else takes it between the look and the writing.
    let first = |number: u64, path: &str| {
        let mut other = moving.clone();
        other.name = format!("pr-{number}");
        other.addresses[0].url = format!("https://all.{ZONE}{path}");
        let write = |path: String, content: Vec<u8>| Change::Write { path, content: Secret::new(content), mode: 0o600 };
        vec![write(file(number), other.to_json()), write("/base/.places".to_owned(), b"0ther".to_vec())]
    };
    world.host.meanwhile(first(5, "/new"));
    taken(at(3, "/new").await, "pr-5");
    assert!(world.host.content(&file(3)).expect("a state").contains("/ones"), "nothing was changed");
}
