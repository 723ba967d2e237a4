//! Rolling updates: what the new containers wait for is there before they are, each generation has routers of its own, and what stands in the way is told.

use std::collections::BTreeMap;
use std::sync::Mutex;

use preview_core::engine::Engine as _;
use preview_core::lifecycle::{self, Event, Interrupt, Observer, Restored};
use preview_core::plan::Kind;
use preview_core::project::{Project, RouteSpec};
use preview_core::secret::Redactor;
use preview_core::state::Phase;
use serde_json::{Value, json};

use crate::sweep::sweeping;
use crate::world::{LOCK, World, failed, project, request, selector};

/// Keeps the notes.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Observer for Notes {
    fn event(&self, event: &Event<'_>) {
        if let Event::Note(text) = event {
            self.0.lock().expect("whole").push((*text).to_owned());
        }
    }
}

/// `web` starts after `migrate` has ended with this code.
fn stack(version: u32, code: &str) -> Value {
    let environment = json!({"VERSION": version.to_string()});
    // With a check of its own it is not asked by the run.
    let check = json!({"test": ["CMD", "true"]});
    let after = json!({"migrate": {"condition": "service_completed_successfully", "required": true}});
    json!({
        "services": {
            "web": {"image": "db:1", "environment": environment, "healthcheck": check, "depends_on": after, "networks": {"default": null}},
            "migrate": {"image": "db:1", "environment": {"VERSION": version.to_string(), "ONCE": code}, "networks": {"default": null}},
        },
        "networks": {"default": {}},
    })
}

type Done = (Result<lifecycle::Deployed, lifecycle::Error>, Vec<String>);

impl World {
    async fn roll(&self, model: Value, url: &str) -> Done {
        self.roll_for(i64::MAX, model, url).await
    }

    /// The run dies after so many changes.
    async fn roll_for(&self, life: i64, model: Value, url: &str) -> Done {
        self.runtime.set_model(model);
        let route = RouteSpec {
            service: "web".into(),
            port: 8080,
            url: Some(url.into()),
            rolling: true,
            ..RouteSpec::default()
        };
        let project = Project { routes: Some(vec![route]), ..project() };
        let connect = std::future::ready(Ok(self.client(life)));
        let (notes, redactor, never) = (Notes::default(), Redactor::default(), Interrupt::default());
        let done = lifecycle::deploy(connect, &self.runtime, &project, &request(), &notes, &redactor, &never).await;
        self.lock.lose(LOCK);
        (done, notes.0.into_inner().expect("whole"))
    }

    /// The names of the routers of each container of `web`.
    async fn routers(&self) -> Vec<String> {
        let containers = self.engine.containers(&selector()).await.expect("lists");
        let router =
            |label: &String| Some(label.strip_prefix("traefik.http.routers.")?.strip_suffix(".rule")?.to_owned());
        let web = containers.iter().filter(|container| container.service() == Some("web"));
        let mut all: Vec<String> = web.flat_map(|container| container.labels.keys().filter_map(router)).collect();
        all.sort();
        all
    }

    fn calls_since(&self, before: usize) -> Vec<&'static str> {
        self.runtime.calls().into_iter().skip(before).filter(|call| *call != "resolve").collect()
    }
}

const URL: &str = "https://pr-7.example.com";

#[tokio::test]
async fn new_containers_start_after_what_they_wait_for_has_ended_well() {
    let world = World::new();
    world.roll(stack(1, "0"), URL).await.0.expect("created");
    let before = world.runtime.calls().len();
    let (done, notes) = world.roll(stack(2, "0"), URL).await;
    done.expect("updated");
    assert_eq!(world.calls_since(before), ["up_only", "beside", "up"]);
    assert!(notes.iter().any(|note| note.contains("beside the old one")), "{notes:?}");

    // One that fails: no new container of the service was ever started, and the old one stays.
    let old = ids(&world).await;
    let before = world.runtime.calls().len();
    let report = failed(world.roll(stack(3, "3"), URL).await.0);
    assert!(report.message.contains("migrate exited with code 3"), "{}", report.message);
    assert!(!world.calls_since(before).contains(&"beside"), "{:?}", world.calls_since(before));
    assert_eq!(ids(&world).await["web"], old["web"]);
}

#[tokio::test]
async fn each_update_of_a_service_is_a_generation_and_nothing_else_is() {
    let world = World::new();
    world.roll(stack(1, "0"), URL).await.0.expect("created");
    assert_eq!(world.routers().await, ["shop_pr-7-0"]);
    for (version, router) in [(2, "shop_pr-7-0-g1"), (3, "shop_pr-7-0-g2")] {
        let done = world.roll(stack(version, "0"), URL).await.0.expect("updated");
        assert_eq!((done.kind, world.routers().await), (Some(Kind::Update), vec![router.to_owned()]));
        let before = ids(&world).await;
        let done = world.roll(stack(version, "0"), URL).await.0.expect("again");
        assert_eq!((done.kind, ids(&world).await), (Some(Kind::Unchanged), before));
    }
    // Another service differs, this one does not.
    let before = ids(&world).await;
    let mut other = stack(3, "0");
    other["services"]["migrate"]["environment"]["MORE"] = json!("1");
    world.roll(other, URL).await.0.expect("updated");
    assert_eq!((&ids(&world).await["web"], world.routers().await), (&before["web"], vec!["shop_pr-7-0-g2".to_owned()]));
    // What it fails with is taken back, and its generation is gone; the next one is another.
    let mut sick = stack(4, "0");
    sick["services"]["web"]["environment"]["SICK"] = json!("no");
    let report = failed(world.roll(sick, URL).await.0);
    assert_eq!(report.restored, Restored::Previous);
    assert_eq!((&ids(&world).await["web"], world.routers().await), (&before["web"], vec!["shop_pr-7-0-g2".to_owned()]));
    world.roll(stack(5, "0"), URL).await.0.expect("updated");
    assert_eq!(world.routers().await, ["shop_pr-7-0-g3"]);
}

#[tokio::test]
async fn changed_routes_are_rolled_too_unless_nobody_knows_when_the_service_is_ready() {
    let world = World::new();
    world.roll(stack(1, "0"), URL).await.0.expect("created");
    let before = world.runtime.calls().len();
    world.roll(stack(2, "0"), "https://pr-7.example.com/app").await.0.expect("updated");
    assert_eq!(world.calls_since(before), ["up_only", "beside", "up"]);

    let unchecked = |version| {
        let mut model = stack(version, "0");
        model["services"]["web"]["healthcheck"] = json!({"test": ["NONE"]});
        model
    };
    world.roll(unchecked(3), "https://pr-7.example.com/app").await.0.expect("updated");
    let before = world.runtime.calls().len();
    world.roll(unchecked(4), "https://pr-7.example.com/app").await.0.expect("updated");
    assert_eq!(world.calls_since(before), ["up_only", "beside", "up"]);
    assert_eq!(world.routers().await, ["shop_pr-7-0-g1"], "both answer for a moment");
    let before = world.runtime.calls().len();
    let (done, notes) = world.roll(unchecked(5), "https://pr-7.example.com/other").await;
    done.expect("updated");
    assert_eq!(world.calls_since(before), ["up"]);
    assert!(notes.iter().any(|note| note.starts_with("web: ") && note.contains("routes changed")), "{notes:?}");
}

/// Wherever a rolling update dies, the next run and a sweep find their way from there, and no two generations are taken for one.
#[tokio::test]
async fn a_rolling_update_that_dies_anywhere_is_mended() {
    let each = (0..24).map(|life| async move {
        let begin = async || {
            let world = World::new();
            world.roll(stack(1, "0"), URL).await.0.expect("created");
            world.roll(stack(2, "0"), URL).await.0.expect("updated");
            let died = world.roll_for(life, stack(3, "0"), URL).await.0.is_err();
            (world, died)
        };
        let (world, died) = begin().await;
        let stood = world.routers().await;
        world.roll(stack(4, "0"), "https://pr-7.example.com/app").await.0.expect("the next");
        let routers = world.routers().await;
        assert_eq!(routers.len(), 1, "after {life} changes: {routers:?}");
        assert!(!stood.contains(&routers[0]), "after {life} changes: {stood:?}, {routers:?}");
        let again = world.roll(stack(4, "0"), "https://pr-7.example.com/app").await.0.expect("again");
        assert_eq!(again.kind, Some(Kind::Unchanged), "after {life} changes");

        let (world, _) = begin().await;
        let good = if world.state().expect("a state").phase == Phase::Ready && life > 0 { 3 } else { 2 };
        let mut sick = stack(4, "0");
        sick["services"]["web"]["environment"]["SICK"] = json!("no");
        let report = failed(world.roll(sick, URL).await.0);
        assert_eq!(report.restored, Restored::Previous, "after {life} changes");
        assert_eq!(world.routers().await, [format!("shop_pr-7-0-g{}", good - 1)], "after {life} changes");
        let again = world.roll(stack(good, "0"), URL).await.0.expect("the good one");
        assert_eq!(again.kind, Some(Kind::Unchanged), "after {life} changes");

        let (world, _) = begin().await;
        let in_flight = world.state().expect("a state").phase.in_flight();
        let swept = world.sweep(&sweeping()).await;
        assert_eq!((swept.exit_code(), swept.mended.len()), (0, usize::from(in_flight)), "after {life} changes");
        assert_eq!(world.routers().await.len(), 1, "after {life} changes");
        (died, stood.len())
    });
    let seen = futures_util::future::join_all(each).await;
    assert!(seen.iter().filter(|(died, _)| *died).count() > 6, "{seen:?}");
    assert!(seen.iter().any(|(_, stood)| *stood == 2), "one died while two generations stood: {seen:?}");
    assert!(seen.iter().any(|(died, _)| !died), "one lived: {seen:?}");
}

async fn ids(world: &World) -> BTreeMap<String, Vec<String>> {
    world.running().await
}
