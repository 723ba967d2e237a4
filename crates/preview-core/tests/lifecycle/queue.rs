//! Who finds no place, and heavy work outside its window.

use std::time::Duration;

use preview_core::admission::{Limits, Weight};
use preview_core::engine::Engine as _;
use preview_core::host::Change;
use preview_core::lifecycle::{self, Destroy, Error, Interrupt, Quiet, Refusal, Wish};
use preview_core::lock::{Holder, Lock};
use preview_core::ownership::Selector;
use preview_core::plan::Kind;
use preview_core::project::{Deploy, Heavy, OnFull, Project, Timeouts};
use preview_core::secret::Secret;
use serde_json::json;

use crate::world::{MOMENT, World, destroy, model, numbered, project, request};

impl World {
    /// A deploy where one place is all there is, and who finds none waits, or removes another.
    pub(crate) async fn deploy_in(
        &self,
        number: u64,
        places: u16,
        on_full: OnFull,
        interrupt: &Interrupt,
    ) -> Result<lifecycle::Deployed, Error> {
        let limits = Limits { places: Weight::places(places), ..Limits::default() };
        let timeouts = Timeouts { queue: Duration::from_secs(40), ..Timeouts::default() };
        let narrow = Project { limits, on_full, timeouts, ..project() };
        self.run_with(i64::MAX, &narrow, &numbered(number), interrupt).await
    }

    pub(crate) async fn destroy_number(&self, number: u64) {
        let wish = Destroy { target: numbered(number).target, ..destroy() };
        self.destroy_with(i64::MAX, &wish).await.expect("destroyed");
    }

    pub(crate) fn tickets(&self) -> Vec<String> {
        self.host.paths().into_iter().filter(|path| path.ends_with("/queue.json")).collect()
    }
}

pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 30 s");
}

/// First come, first served; who dies or gives up waiting keeps nobody back.
#[tokio::test]
async fn a_queue() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    let (never, gives_up) = (Interrupt::default(), Interrupt::default());
    world.deploy_in(1, 1, OnFull::Queue, &never).await.expect("there is a place");
    let order = std::sync::Mutex::new(Vec::new());
    let wait = async |number: u64, interrupt: &Interrupt| {
        let done = world.deploy_in(number, 1, OnFull::Queue, interrupt).await;
        order.lock().expect("not poisoned").push(number);
        done
    };
    // A run that was killed while it waited in front of all: its ticket stays, its lock is free.
    let mut dead = Box::pin(wait(9, &never));
    tokio::select! {
        done = &mut dead => panic!("there is no place: {done:?}"),
        () = until(|| world.tickets().len() == 1) => {}
    }
    drop(dead);
    world.lock.lose("/base/shop/pr-9/.lock");
    let (second, third, fourth, ()) = tokio::join!(
        wait(2, &never),
        async {
            until(|| world.tickets().len() == 2).await;
            wait(3, &gives_up).await
        },
        async {
            until(|| world.tickets().len() == 3).await;
            wait(4, &never).await
        },
        async {
            until(|| world.tickets().len() == 4).await;
            world.destroy_number(1).await;
            until(|| world.host.content("/base/shop/pr-2/state.json").is_some()).await;
            gives_up.fire();
            until(|| order.lock().expect("not poisoned").contains(&3)).await;
            world.destroy_number(2).await;
        },
    );
    second.expect("its turn");
    assert_eq!(third.expect_err("interrupted").exit_code(), 5);
    fourth.expect("its turn");
    assert_eq!(*order.lock().expect("not poisoned"), [2, 3, 4]);
    assert_eq!(world.tickets(), Vec::<String>::new());
    let left: Vec<_> =
        world.host.paths().into_iter().filter(|path| path.contains("/pr-3") || path.contains("/pr-9")).collect();
    assert_eq!(left, Vec::<String>::new());
}

/// A place becomes free between a run's look at the host and its taking a place: who was kept back by a limit of their own until then
/// comes first.
#[tokio::test]
async fn nobody_is_overtaken_by_who_looked_too_early() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    let run = async |number: u64, weight: u16, owner: &str| {
        let limits = Limits { places: Weight::places(2), per_owner: Some(Weight::places(2)), ..Limits::default() };
        let timeouts = Timeouts { queue: Duration::from_secs(40), ..Timeouts::default() };
        let weight = Weight::places(weight);
        let narrow = Project { limits, weight, on_full: OnFull::Queue, timeouts, ..project() };
        let deploy = Deploy { owner: Some(owner.to_owned()), ..numbered(number) };
        world.run_with(i64::MAX, &narrow, &deploy, &Interrupt::default()).await
    };
    run(1, 1, "ada").await.expect("there is a place");
    let (second, third, ()) = tokio::join!(
        run(2, 2, "ada"),
        async {
            until(|| world.tickets() == ["/base/shop/pr-2/queue.json"]).await;
            // The end of a destroy. What it made free is enough for ada, and then there is nothing left for bob.
            let (path, freed) = ("/base/shop/pr-1/state.json".to_owned(), Secret::new(b"f4eed".to_vec()));
            let freed = Change::Write { path: "/base/.freed".to_owned(), content: freed, mode: 0o600 };
            world.host.meanwhile(vec![Change::Remove { path }, freed]);
            run(3, 1, "bob").await
        },
        async {
            until(|| world.tickets().iter().any(|path| path.contains("pr-3"))).await;
            until(|| world.host.content("/base/shop/pr-2/state.json").is_some_and(|text| text.contains("ready"))).await;
            assert_eq!(world.host.content("/base/shop/pr-3/state.json"), None, "it is not its turn");
            world.destroy_number(2).await;
        }
    );
    second.expect("its turn");
    third.expect("its turn");
}

/// Who waits is told the time limit, and leaves nothing; a close ends the waiting.
#[tokio::test]
async fn the_queue_ends() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    let never = Interrupt::default();
    world.deploy_in(1, 1, OnFull::Queue, &never).await.expect("there is a place");
    let before = world.host.paths();
    let closed = async {
        until(|| world.tickets().len() == 2).await;
        world.close_at(None, Duration::from_secs(20)).await.expect("closed");
    };
    let (out_of_time, stopped, ()) = tokio::join!(
        world.deploy_in(2, 1, OnFull::Queue, &never),
        world.deploy_in(7, 1, OnFull::Queue, &never),
        closed
    );
    let error = out_of_time.expect_err("nothing became free");
    assert_eq!(error.exit_code(), 5);
    assert!(error.chain().contains("position 1 in the queue: 1 of 1 places on the VM are taken"), "{}", error.chain());
    assert!(matches!(stopped, Err(Error::Refused(Refusal::Superseded { .. }))), "{stopped:?}");
    let after: Vec<_> = world.host.paths().into_iter().filter(|path| path != "/base/.freed").collect();
    assert_eq!(after, before);
    let hopeless = world.deploy_in(3, 0, OnFull::Queue, &never).await.expect_err("it never fits");
    assert_eq!(hopeless.exit_code(), 3);
}

/// The longest unused makes room, unless it is pinned or somebody is at work on it.
#[tokio::test]
async fn the_oldest_is_replaced() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    let never = Interrupt::default();
    for number in [1, 2, 3] {
        world.deploy_in(number, 3, OnFull::ReplaceOldest, &never).await.expect("there is a place");
    }
    let client = world.client(i64::MAX);
    lifecycle::keep(&client, &numbered(1).target, Wish::Pin, "me", MOMENT, &Quiet, &never).await.expect("pinned");
    world.deploy_in(3, 3, OnFull::ReplaceOldest, &never).await.expect("an update needs no place");
    world.deploy_in(4, 3, OnFull::ReplaceOldest, &never).await.expect("2 makes room");
    let there = || {
        let state = |number: &u64| world.host.content(&format!("/base/shop/pr-{number}/state.json")).is_some();
        [1, 2, 3, 4, 5, 6].into_iter().filter(state).collect::<Vec<u64>>()
    };
    assert_eq!(there(), [1, 3, 4]);
    assert!(world.engine.inventory(&Selector::preview("shop", "pr-2")).await.expect("lists").is_empty());
    let me = Holder { who: "ada".into(), why: "deploy of pr-3".into(), since: String::new() };
    let held = world.lock.acquire("/base/shop/pr-3/.lock", &me, Duration::ZERO, &|_| ()).await.expect("free");
    let error = world.deploy_in(5, 2, OnFull::ReplaceOldest, &never).await.expect_err("too few may go");
    assert_eq!(error.exit_code(), 3, "{error}");
    drop(held);
    assert!(there().contains(&1) && there().contains(&3), "{:?}", there());
}

/// Heavy work waits for its window, or is refused; what changes nothing is never heavy.
#[tokio::test]
async fn heavy_work_in_its_window() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    let deploy = async |on_full: OnFull, window: &str| {
        let heavy = Some(Heavy { window: window.parse().expect("a window"), builds_only: true });
        let timeouts = Timeouts { queue: Duration::from_secs(20), ..Timeouts::default() };
        let project = Project { heavy, on_full, timeouts, ..project() };
        world.run_with(i64::MAX, &project, &request(), &Interrupt::default()).await
    };
    // It is 08:00 there.
    let error = deploy(OnFull::Refuse, "09:00-10:00 UTC").await.expect_err("too early");
    assert_eq!((error.exit_code(), error.failure().as_str()), (3, "outside_window"));
    assert!(error.to_string().contains("09:00-10:00 UTC, which opens at 2027-01-15T09:00:00Z"), "{error}");
    let error = deploy(OnFull::Queue, "09:00-10:00 UTC").await.expect_err("that is too long");
    assert!(error.to_string().contains("longer than 20 s ([timeouts] queue)"), "{error}");
    world.assert_nothing_left("refused").await;
    world.host.set_facts(|facts| facts.now += 3600 - 1);
    let (done, ()) = tokio::join!(deploy(OnFull::Queue, "09:00-10:00 UTC"), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.host.set_facts(|facts| facts.now += 1);
    });
    assert_eq!(done.expect("its time has come").kind, Some(Kind::Create));
    // Without a build it is not heavy.
    world.runtime.set_model(json!({"services": {"db": {"image": "db:1"}}}));
    deploy(OnFull::Refuse, "02:00-03:00 UTC").await.expect("light");
}
