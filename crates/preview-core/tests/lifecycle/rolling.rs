//! Rolling updates: what the new containers wait for is there before they are, and what stands in the way is told.

use std::collections::BTreeMap;
use std::sync::Mutex;

use preview_core::lifecycle::{self, Event, Interrupt, Observer};
use preview_core::project::{Project, RouteSpec};
use preview_core::secret::Redactor;
use serde_json::{Value, json};

use crate::world::{LOCK, World, failed, project, request};

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

impl World {
    async fn roll(&self, model: Value, url: &str) -> (Result<lifecycle::Deployed, lifecycle::Error>, Vec<String>) {
        self.runtime.set_model(model);
        let route = RouteSpec {
            service: "web".into(),
            port: 8080,
            url: Some(url.into()),
            rolling: true,
            ..RouteSpec::default()
        };
        let project = Project { routes: Some(vec![route]), ..project() };
        let connect = std::future::ready(Ok(self.client(i64::MAX)));
        let (notes, redactor, never) = (Notes::default(), Redactor::default(), Interrupt::default());
        let done = lifecycle::deploy(connect, &self.runtime, &project, &request(), &notes, &redactor, &never).await;
        self.lock.lose(LOCK);
        (done, notes.0.into_inner().expect("whole"))
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
async fn a_service_whose_routes_change_is_replaced_at_once_and_that_is_told() {
    let world = World::new();
    world.roll(stack(1, "0"), URL).await.0.expect("created");
    let before = world.runtime.calls().len();
    let (done, notes) = world.roll(stack(2, "0"), "https://pr-7.example.com/app").await;
    done.expect("updated");
    assert_eq!(world.calls_since(before), ["up"]);
    assert!(notes.iter().any(|note| note.starts_with("web: ") && note.contains("routes changed")), "{notes:?}");
}

async fn ids(world: &World) -> BTreeMap<String, Vec<String>> {
    use preview_core::engine::Engine as _;
    preview_core::plan::container_ids(&world.engine.containers(&crate::world::selector()).await.expect("lists"))
}
