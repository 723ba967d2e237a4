//! What a sweep removes, mends and leaves.

use std::collections::BTreeMap;
use std::time::Duration;

use preview_core::admission::Weight;
use preview_core::fault::FaultKind;
use preview_core::forge::PullState;
use preview_core::lifecycle::{self, Interrupt, Quiet, Sweep, Wish};
use preview_core::lock::{Holder, Lock};
use preview_core::plan::Kind;
use preview_core::project::{Deploy, Project, Target, Timeouts};
use preview_core::state::{Phase, Subject};
use preview_core::sweep::Open;
use preview_core::testkit::forge::MemoryForge;
use serde_json::json;

use crate::world::{LOCK, MOMENT, World, model, numbered, project, request};

pub(crate) fn sweeping() -> Sweep {
    Sweep {
        who: "the sweep".into(),
        run: "r".into(),
        dry_run: false,
        open: Open::default(),
        timeouts: Timeouts::default(),
        images_above: 80,
        images_older: Duration::from_secs(72 * 3600),
        build_cache: 10 << 30,
    }
}

impl World {
    pub(crate) async fn sweep(&self, wish: &Sweep) -> lifecycle::Swept {
        let client = self.client(i64::MAX);
        lifecycle::sweep(&client, wish, &Quiet, &Interrupt::default()).await.expect("swept")
    }
}

/// Wherever a run dies, one sweep brings the preview to a clean state: the version before, or nothing.
#[tokio::test]
async fn one_sweep_mends_what_a_dead_run_left() {
    let (mut removed, mut mended) = (0, 0);
    for life in 0..34 {
        let world = World::new();
        world.runtime.set_model(model(1, None));
        let _ = world.deploy_for(life, &request()).await;
        let ready = world.state().is_some_and(|state| state.phase == Phase::Ready);
        let swept = world.sweep(&sweeping()).await;
        assert_eq!(swept.exit_code(), 0, "after {life} changes: {swept:?}");
        removed += swept.removed.len();
        if !ready {
            world.assert_nothing_left(&format!("swept after {life} changes")).await;
        }
        assert_eq!(world.sweep(&sweeping()).await.removed, [], "after {life} changes, a second time");

        let world = World::new();
        world.deploy(1, None).await.expect("created");
        world.runtime.set_model(model(2, None));
        let heavier = Project { weight: Weight::places(2), ..project() };
        let _ = world.run_with(life, &heavier, &request(), &Interrupt::default()).await;
        world.lock.lose(LOCK);
        let before = world.state().expect("a state");
        let swept = world.sweep(&sweeping()).await;
        assert_eq!((swept.exit_code(), swept.removed.len()), (0, 0), "after {life} changes: {swept:?}");
        let state = world.state().expect("a state");
        if before.phase.in_flight() {
            mended += swept.mended.len();
            assert_eq!((state.phase, state.weight), (Phase::Failed, Weight::default()), "after {life} changes");
            assert!(state.failure.is_some_and(|failure| failure.message.contains("its run died while")));
            assert_eq!(world.running().await, state.good.expect("the version before").containers);
            assert_eq!(world.deploy(1, None).await.expect("that version").kind, Some(Kind::Unchanged));
        } else {
            assert_eq!((state.phase, swept.mended.len()), (Phase::Ready, 0), "after {life} changes");
        }

        let world = World::new();
        world.deploy(1, None).await.expect("created");
        let _ = world.destroy_for(life).await;
        let whole = world.state().is_some_and(|state| state.phase == Phase::Ready) && world.running().await.len() == 2;
        let swept = world.sweep(&sweeping()).await;
        assert_eq!(swept.exit_code(), 0, "destroyed after {life} changes: {swept:?}");
        if !whole {
            let half = world.state().is_some_and(|state| state.phase == Phase::Ready);
            if !half {
                world.assert_nothing_left(&format!("swept a destroy after {life} changes")).await;
            }
        }
    }
    assert!(removed > 3 && mended > 3, "runs died with something to sweep: {removed}, {mended}");
}

#[tokio::test]
async fn a_sweep_leaves_who_is_at_work_and_says_what_it_would_do() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    let expiring = Project { ttl: Some(Duration::from_secs(1)), ..project() };
    for number in [1, 2] {
        world.run_with(i64::MAX, &expiring, &numbered(number), &Interrupt::default()).await.expect("created");
    }
    // The clock of the host in memory is ahead of today's.
    let client = world.client(i64::MAX);
    let me = Holder { who: "ada".into(), why: "deploy of pr-1".into(), since: "now".into() };
    let held = world.lock.acquire("/base/shop/pr-1/.lock", &me, Duration::ZERO, &|_| ()).await.expect("free");
    let files = world.host.paths();
    let planned = world.sweep(&Sweep { dry_run: true, ..sweeping() }).await;
    let names = |gone: &[lifecycle::Gone]| gone.iter().map(|gone| gone.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&planned.removed), ["pr-2"], "{planned:?}");
    assert_eq!((planned.stayed.len(), world.host.paths()), (1, files), "nothing was changed");
    assert!(planned.stayed[0].reason.contains("ada is at work on it"), "{planned:?}");
    let target = Target { app: "shop".into(), name: "pr-2".into(), project: "shop_pr-2".into() };
    let interrupt = Interrupt::default();
    let kept = lifecycle::keep(&client, &target, Wish::Pin, "me", MOMENT, &Quiet, &interrupt).await.expect("pinned");
    assert_eq!(kept.expiry(), None);
    assert_eq!(names(&world.sweep(&sweeping()).await.removed), Vec::<String>::new());
    lifecycle::keep(&client, &target, Wish::Unpin, "me", MOMENT, &Quiet, &interrupt).await.expect("unpinned");
    let span = Duration::from_secs(3600);
    lifecycle::keep(&client, &target, Wish::Keep { span }, "me", MOMENT, &Quiet, &interrupt).await.expect("kept");
    assert_eq!(names(&world.sweep(&sweeping()).await.removed), Vec::<String>::new());
    world.host.set_facts(|facts| facts.now += 3601);
    let swept = world.sweep(&sweeping()).await;
    assert_eq!(names(&swept.removed), ["pr-2"]);
    assert!(swept.removed[0].left.is_empty() && swept.removed[0].removed.containers == 2, "{swept:?}");
    assert_eq!((swept.stayed.len(), swept.stayed[0].code, swept.exit_code()), (1, 0, 0));
    drop(held);
    let missing = lifecycle::keep(&client, &target, Wish::Pin, "me", MOMENT, &Quiet, &interrupt).await;
    assert_eq!(missing.expect_err("gone").exit_code(), 2);
    assert_eq!(names(&world.sweep(&sweeping()).await.removed), ["pr-1"]);
    assert!(!world.host.paths().iter().any(|path| path.starts_with("/base/shop")));
}

/// Only what was pulled for previews goes, and only where the disk is short.
#[tokio::test]
async fn old_images_go_when_the_disk_is_full() {
    let world = World::new();
    world.runtime.set_model(json!({"services": {"web": {"image": "pulled:1"}}}));
    world.engine.add_image("foreign:1", &BTreeMap::new());
    world.deploy_for(i64::MAX, &request()).await.expect("created");
    let there = |image: &str| world.engine.images().iter().any(|found| found.tags.contains(image));
    world.host.set_facts(|facts| facts.disk_free = facts.disk_used / 9);
    assert_eq!(world.sweep(&sweeping()).await.images, Vec::<String>::new(), "in use");
    world.destroy_for(i64::MAX).await.expect("destroyed");
    let patient = Sweep { images_older: Duration::from_secs(1000 * 24 * 3600), ..sweeping() };
    assert_eq!(world.sweep(&patient).await.images, Vec::<String>::new(), "not old enough");
    assert!(there("pulled:1"));
    assert_eq!(world.sweep(&sweeping()).await.images, ["pulled:1"]);
    assert!(!there("pulled:1") && there("foreign:1"));
    assert!(!world.host.paths().iter().any(|path| path.starts_with("/base/.images/")), "its record is gone too");
}

/// What the forge says is closed goes; what it does not know, and what is of another repository, stays.
#[tokio::test]
async fn the_forge_is_asked_what_is_open() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    let forge = MemoryForge::default();
    for (number, state) in [(1, Some(PullState::Open)), (2, Some(PullState::Closed)), (3, None)] {
        world.deploy_for(i64::MAX, &numbered(number)).await.expect("there is a place");
        if let Some(state) = state {
            forge.set("acme/shop", number, state);
        }
    }
    let other = Deploy { repository: Some("acme/other".into()), ..numbered(4) };
    world.deploy_for(i64::MAX, &other).await.expect("there is a place");
    for (name, branch) in [("one", "feature/one"), ("two", "feature/two")] {
        let target = Target { app: "shop".into(), name: name.into(), project: format!("shop_{name}") };
        let deploy = Deploy { target, subject: Subject::Branch(branch.into()), ..request() };
        world.deploy_for(i64::MAX, &deploy).await.expect("there is a place");
    }
    forge.push("acme/shop", "feature/one");

    let client = world.client(i64::MAX);
    let hidden = lifecycle::still_there(&client, &forge, "shop", "acme/hidden", &Quiet).await;
    assert_eq!(hidden.map_err(|_| ()), Ok(Default::default()), "it has no previews of that repository");
    let asked = lifecycle::still_there(&client, &forge, "shop", "acme/shop", &Quiet).await.expect("it says");
    assert_eq!(asked, ([1, 3].into(), ["feature/one".to_owned()].into()));
    let (pulls, branches) = (Some(asked.0), Some(asked.1));
    let repository = Some("acme/shop".to_owned());
    let open = Open { app: "shop".into(), repository, pulls, branches, grace: Duration::ZERO };
    world.host.set_facts(|facts| facts.now += 1_000_000_000);
    let swept = world.sweep(&Sweep { open, ..sweeping() }).await;
    let names: Vec<&str> = swept.removed.iter().map(|gone| gone.name.as_str()).collect();
    assert_eq!(names, ["pr-2", "two"]);

    // A forge that does not answer says nothing of anything.
    let blind = MemoryForge::default();
    match lifecycle::still_there(&client, &blind, "shop", "acme/shop", &Quiet).await {
        Err(lifecycle::Error::Fault(fault)) => assert_eq!(fault.kind, FaultKind::Denied),
        other => panic!("{other:?}"),
    }
}
