//! Closes and pushes in any order.

use std::time::Duration;

use jiff::Timestamp;
use preview_core::fence::Superseded;
use preview_core::lifecycle::{self, Destroy, Error, Refusal};
use preview_core::lock::{Holder, Lock};
use preview_core::project::Deploy;
use preview_core::state::Phase;
use serde_json::json;

use crate::world::{LOCK, MOMENT, World, destroy, model, request};

pub(crate) fn event(minute: i64) -> Option<Timestamp> {
    Some(Timestamp::from_second(1_800_000_000 + minute * 60).expect("a time"))
}

pub(crate) fn late(done: Result<lifecycle::Deployed, Error>) -> Superseded {
    match done {
        Err(Error::Refused(Refusal::Superseded { by, .. })) => by,
        other => panic!("not too late: {other:?}"),
    }
}

impl World {
    pub(crate) async fn deploy_at(&self, minute: i64) -> Result<lifecycle::Deployed, Error> {
        self.deploy_for(i64::MAX, &Deploy { event_at: event(minute), ..request() }).await
    }

    pub(crate) async fn close_at(&self, minute: Option<i64>, wait: Duration) -> Result<lifecycle::Destroyed, Error> {
        let wish = Destroy { who: "the close".into(), wait, event_at: minute.and_then(event), ..destroy() };
        self.destroy_with(i64::MAX, &wish).await
    }

    /// What a close leaves is the word that it happened.
    pub(crate) async fn assert_only_tombstones_left(&self, number: usize) {
        self.assert_nothing_left("closed").await;
        let left: Vec<_> = self.host.paths().into_iter().filter(|path| path.contains("/.tombstones/shop/")).collect();
        assert_eq!(left.len(), number, "{left:?}");
    }
}

#[tokio::test]
async fn runs_that_come_in_the_wrong_order() {
    let world = World::new();
    world.runtime.set_model(model(2, None));
    world.deploy_at(20).await.expect("the second push arrives first");
    let (before, state) = (world.running().await, world.state());
    world.runtime.set_model(model(1, None));
    assert!(matches!(late(world.deploy_at(10).await), Superseded::Newer { .. }));
    assert_eq!((world.running().await, world.state()), (before, state), "nothing was changed");
    world.deploy_at(20).await.expect("the same event once more");

    // Closed, and what was pushed before that arrives; then it is opened again.
    world.close_at(Some(30), MOMENT).await.expect("closed");
    world.assert_only_tombstones_left(1).await;
    for minute in [10, 25, 30] {
        assert!(matches!(late(world.deploy_at(minute).await), Superseded::Closed { .. }));
        world.assert_only_tombstones_left(1).await;
    }
    world.deploy_at(40).await.expect("opened again");
    let (before, state) = (world.running().await, world.state());
    // A close of before the reopening arrives late.
    let error = world.close_at(Some(35), MOMENT).await.expect_err("it was opened since");
    assert!(matches!(&error, Error::Refused(Refusal::Superseded { by: Superseded::Newer { .. }, .. })), "{error}");
    assert_eq!((world.running().await, world.state(), error.exit_code()), (before, state, 3));
    assert!(world.lock.held().is_empty());
    world.close_at(Some(50), MOMENT).await.expect("closed");
    world.assert_only_tombstones_left(3).await;
    world.close_at(None, MOMENT).await.expect("by hand, and there is nothing");
    world.assert_only_tombstones_left(3).await;
}

/// A close while a run is at work stops that run, which leaves nothing; then the close has its lock.
#[tokio::test]
async fn a_close_stops_who_is_at_work() {
    let stopped = async |minute: Option<i64>, there: bool| {
        let world = World::new();
        if there {
            world.runtime.set_model(model(1, None));
            world.deploy_at(5).await.expect("the version before");
        }
        // Never healthy: the run would wait for a minute.
        let mut slow = model(2, None);
        slow["services"]["web"]["environment"]["SLOW"] = json!("yes");
        world.runtime.set_model(slow);
        let run = Deploy { event_at: event(10), ..request() };
        let (deployed, closed) = tokio::join!(world.run(i64::MAX, &run), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            world.close_at(minute, Duration::from_secs(30)).await
        });
        let error = deployed.expect_err("stopped");
        let stopped = matches!(&error, Error::Refused(Refusal::Stopped { phase: Phase::Verifying, .. }));
        assert!(stopped, "{minute:?}, {there}: {}", error.chain());
        closed.expect("closed");
        world.assert_only_tombstones_left(usize::from(minute.is_some())).await;
        if minute.is_none() {
            assert!(!world.host.paths().iter().any(|path| path.contains(".tombstones")), "a wish goes with its run");
        }
    };
    tokio::join!(stopped(Some(30), false), stopped(Some(30), true), stopped(None, false), stopped(None, true));
}

/// Who gives up waiting takes the wish back.
#[tokio::test]
async fn a_wish_that_was_given_up_concerns_nobody() {
    let world = World::new();
    world.deploy(1, None).await.expect("created");
    let me = Holder { who: "ada".into(), why: "something long".into(), since: String::new() };
    let held = world.lock.acquire(LOCK, &me, Duration::ZERO, &|_| ()).await.expect("free");
    assert_eq!(world.close_at(None, MOMENT).await.expect_err("locked").exit_code(), 7);
    assert!(!world.host.paths().iter().any(|path| path.contains(".tombstones")), "{:?}", world.host.paths());
    assert_eq!(world.close_at(Some(1), MOMENT).await.expect_err("locked").exit_code(), 7);
    drop(held);
    assert!(matches!(late(world.deploy_at(1).await), Superseded::Closed { .. }), "an event stays, whoever gave up");
}
