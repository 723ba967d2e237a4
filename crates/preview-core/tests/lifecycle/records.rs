//! DNS records in a preview's life: written, taken back, changed with its hosts, removed, swept; never somebody else's.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use preview_core::dns::Value;
use preview_core::failure::FailureCode;
use preview_core::fault::{Fault, FaultKind};
use preview_core::host::{Change, Host as _};
use preview_core::lifecycle::{self, Client, Error, Event, Interrupt, Observer, Restored};
use preview_core::plan::Kind;
use preview_core::project::Project;
use preview_core::secret::Redactor;
use preview_core::state::Phase;
use preview_core::testkit::dns::MemoryDns;

use crate::sweep::sweeping;
use crate::world::{ADDRESS, World, ZONE, destroy, failed, model, numbered, project, request};

/// Keeps the warnings.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Observer for Told {
    fn event(&self, event: &Event<'_>) {
        if let Event::Warning(text) = event {
            self.0.lock().expect("whole").push((*text).to_owned());
        }
    }
}

fn hosts(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| format!("{name}.{ZONE}")).collect()
}

impl World {
    async fn deploy_with(&self, version: u32, names: &[&str]) -> Result<lifecycle::Deployed, Error> {
        self.runtime.set_model(model(version, None));
        let project = Project { hosts: hosts(names), ..project() };
        self.run_with(i64::MAX, &project, &request(), &Interrupt::default()).await
    }

    fn zone_calls(&self, operation: &str) -> usize {
        self.zone.calls().iter().filter(|call| **call == operation).count()
    }
}

#[tokio::test]
async fn a_record_comes_stays_and_goes_with_its_preview() {
    let world = World::new();
    world.deploy(1, None).await.expect("created");
    assert_eq!(world.zone.records()[&format!("pr-7.{ZONE}")], ADDRESS);
    assert_eq!(world.state().expect("a state").records, hosts(&["pr-7"]));
    // Somebody removed it: a deploy that changes nothing else brings it back.
    let dns = MemoryDns::new(world.zone.clone(), ZONE, "vm", Value::parse(ADDRESS).expect("an address"));
    preview_core::dns::Dns::remove(&dns, &request().target, &hosts(&["pr-7"])).await.expect("removed");
    assert_eq!(world.deploy(1, None).await.expect("again").kind, Some(Kind::Unchanged));
    assert_eq!(world.hosts().len(), 1);
    let done = world.destroy_for(i64::MAX).await.expect("destroyed");
    assert_eq!(done.records, 1);
    world.assert_nothing_left("destroyed").await;
}

/// Nothing is built, so a deploy of what runs already ends early.
#[tokio::test]
async fn a_preview_that_stays_as_it_is_gets_its_records_right() {
    let world = World::new();
    let still = || {
        let service = serde_json::json!({"image": "db:1", "networks": {"default": null}});
        world.runtime.set_model(serde_json::json!({"services": {"db": service}, "networks": {"default": {}}}));
    };
    let deploy = async |names: &[&str]| {
        still();
        let project = Project { hosts: hosts(names), ..project() };
        world.run_with(i64::MAX, &project, &request(), &Interrupt::default()).await
    };
    assert_eq!(deploy(&["pr-7", "pr-7-old"]).await.expect("created").kind, Some(Kind::Create));
    assert_eq!(deploy(&["pr-7", "pr-7-new"]).await.expect("again").kind, Some(Kind::Unchanged));
    assert_eq!(world.hosts().into_iter().collect::<BTreeSet<_>>(), hosts(&["pr-7", "pr-7-new"]));
    let state = world.state().expect("a state");
    assert_eq!((&state.records, &state.good.expect("good").records), (&hosts(&["pr-7", "pr-7-new"]), &state.records));

    // In the way of the new host: the deploy fails, and nothing else happens.
    world.zone.put(&format!("pr-7-more.{ZONE}"), "192.0.2.99");
    let error = deploy(&["pr-7", "pr-7-more"]).await.expect_err("somebody's");
    assert_eq!(error.failure(), FailureCode::DnsFailed, "{}", error.chain());
    assert_eq!(world.state().expect("a state").phase, Phase::Ready);
    for life in 0..12 {
        still();
        let wish = Project { hosts: hosts(&["pr-7", "pr-7-next"]), ..project() };
        let _ = world.run_with(life, &wish, &request(), &Interrupt::default()).await;
        world.lock.lose(crate::world::LOCK);
        let known = world.state().expect("a state").records;
        let ours: BTreeSet<String> = world.hosts().into_iter().filter(|host| !host.contains("more")).collect();
        assert!(ours.is_subset(&known), "after {life} changes: {ours:?}, known {known:?}");
        deploy(&["pr-7", "pr-7-new"]).await.expect("the next run");
    }
    assert_eq!(world.destroy_for(i64::MAX).await.expect("destroyed").records, 2);
    assert_eq!(world.hosts(), [format!("pr-7-more.{ZONE}")], "somebody's");
}

#[tokio::test]
async fn hosts_that_a_preview_no_longer_has_lose_their_record() {
    let world = World::new();
    world.deploy_with(1, &["pr-7", "pr-7-api"]).await.expect("created");
    assert_eq!(world.hosts().len(), 2);
    let updated = world.deploy_with(2, &["pr-7", "pr-7-ui"]).await.expect("updated");
    assert_eq!(updated.kind, Some(Kind::Update));
    assert_eq!(world.hosts().into_iter().collect::<BTreeSet<_>>(), hosts(&["pr-7", "pr-7-ui"]));
    assert_eq!(world.deploy_with(2, &["pr-7"]).await.expect("again").kind, Some(Kind::Unchanged));
    assert_eq!(world.hosts().into_iter().collect::<BTreeSet<_>>(), hosts(&["pr-7"]));
    assert_eq!(world.state().expect("a state").records, hosts(&["pr-7"]));

    // What does not go now stays in the state, and goes with the next run.
    world.deploy_with(3, &["pr-7", "pr-7-api"]).await.expect("updated");
    world.zone.fail_next("remove", Fault::new(FaultKind::Failed, "remove records", "no"));
    assert_eq!(world.deploy_with(4, &["pr-7"]).await.expect("as good without").kind, Some(Kind::Update));
    assert_eq!(world.hosts().len(), 2);
    assert_eq!(world.deploy_with(4, &["pr-7"]).await.expect("again").kind, Some(Kind::Unchanged));
    assert_eq!(world.hosts().len(), 1);
}

#[tokio::test]
async fn a_failed_update_takes_its_new_hosts_back_and_a_failed_first_deploy_all() {
    let world = World::new();
    let report = failed(world.deploy(1, Some("sick")).await);
    assert_eq!((report.restored, world.zone_calls("write")), (Restored::Removed, 1));
    world.assert_nothing_left("a first deploy that failed").await;

    world.deploy_with(1, &["pr-7"]).await.expect("created");
    world.runtime.set_model(model(2, Some("sick")));
    let wish = Project { hosts: hosts(&["pr-7", "pr-7-new"]), ..project() };
    let report = failed(world.run_with(i64::MAX, &wish, &request(), &Interrupt::default()).await);
    assert_eq!(report.restored, Restored::Previous);
    assert_eq!(world.hosts().into_iter().collect::<BTreeSet<_>>(), hosts(&["pr-7"]));
    assert_eq!(world.state().expect("a state").records, hosts(&["pr-7"]));
}

#[tokio::test]
async fn a_record_that_is_not_ours_fails_the_deploy_and_stays() {
    let world = World::new();
    let host = format!("pr-7.{ZONE}");
    world.zone.put(&host, "192.0.2.99");
    let report = failed(world.deploy(1, None).await);
    assert_eq!(
        (report.phase, report.failure, &report.restored),
        (Phase::Starting, FailureCode::DnsFailed, &Restored::Removed)
    );
    assert!(report.message.contains(&host) && report.services.is_empty(), "{}", report.message);
    assert_eq!(world.zone.records()[&host], "192.0.2.99");
    assert_eq!(
        (world.state(), world.zone_calls("write"), world.zone_calls("remove")),
        (None, 1, 0),
        "nothing to take back"
    );
    assert_eq!(world.destroy_for(i64::MAX).await.expect("nothing").records, 0);
    assert_eq!(world.zone.records()[&host], "192.0.2.99");
}

#[tokio::test]
async fn what_may_pass_is_tried_three_times_and_what_is_unsure_is_taken_back() {
    let late = || Fault::new(FaultKind::TimedOut, "write records", "no answer").transient();
    let world = World::new();
    world.zone.fail_next("write", late());
    world.zone.fail_next("write", late());
    world.deploy(1, None).await.expect("the third time");
    assert_eq!(world.zone_calls("write"), 3);

    let world = World::new();
    for _ in 0..3 {
        world.zone.fail_next("write", late());
    }
    let report = failed(world.deploy(1, None).await);
    assert_eq!((report.failure, report.restored), (FailureCode::DnsFailed, Restored::Removed));
    assert_eq!(world.zone_calls("remove"), 1, "one of them may have arrived");

    // A server that cannot be reached on the way back either: what may be there is remembered, and the next sweep ends it.
    let world = World::new();
    let gone = || Fault::new(FaultKind::Unreachable, "remove records", "gone").transient();
    for _ in 0..3 {
        world.zone.fail_next("write", late());
        world.zone.fail_next("remove", gone());
    }
    let report = failed(world.deploy(1, None).await);
    assert!(matches!(report.restored, Restored::NotYet(_)), "{:?}", report.restored);
    assert_eq!(world.state().expect("remembered").records, hosts(&["pr-7"]));
    assert_eq!(world.sweep(&sweeping()).await.removed.len(), 1);
    world.assert_nothing_left("swept").await;
}

/// The first attempt was carried out and its answer was lost; the second is refused for good. What the first wrote is not forgotten.
#[tokio::test]
async fn a_refusal_after_an_attempt_that_may_have_arrived_forgets_nothing() {
    let late = || Fault::new(FaultKind::TimedOut, "write records", "no answer").transient();
    let denied = || Fault::new(FaultKind::Denied, "write records", "the token was revoked");
    let world = World::new();
    world.zone.lose_answer(late());
    world.zone.fail_next("write", denied());
    let report = failed(world.deploy(1, None).await);
    assert_eq!((report.failure, report.restored), (FailureCode::DnsFailed, Restored::Removed));
    assert_eq!((world.zone_calls("write"), world.zone_calls("remove")), (2, 1));
    world.assert_nothing_left("what the first attempt wrote went").await;

    // An update: the way back takes the new host's record away, or remembers it.
    for unreachable in [false, true] {
        let world = World::new();
        world.deploy_with(1, &["pr-7"]).await.expect("created");
        world.zone.lose_answer(late());
        world.zone.fail_next("write", denied());
        if unreachable {
            world.zone.fail_next("remove", Fault::new(FaultKind::Denied, "remove records", "revoked"));
        }
        let error = world.deploy_with(2, &["pr-7", "pr-7-new"]).await;
        assert_eq!(failed(error).restored, Restored::Previous);
        let there: BTreeSet<String> = world.hosts().into_iter().collect();
        let expected = if unreachable { hosts(&["pr-7", "pr-7-new"]) } else { hosts(&["pr-7"]) };
        assert_eq!((&there, &world.state().expect("a state").records), (&expected, &expected));
        assert_eq!(usize::from(unreachable) + 1, world.destroy_for(i64::MAX).await.expect("destroyed").records);
    }
}

/// After `[dns] zone` was changed, an update cannot take the old hosts' records away: they stay in the state until a run can.
#[tokio::test]
async fn records_of_a_zone_that_was_configured_earlier_stay_remembered() {
    let world = World::new();
    world.deploy_with(1, &["pr-7"]).await.expect("created");
    let value = Value::parse(ADDRESS).expect("an address");
    let moved = Arc::new(MemoryDns::new(world.zone.clone(), "example.org", "vm", value));
    let wish = Project { hosts: BTreeSet::from(["pr-7.example.org".to_owned()]), ..project() };
    let both: BTreeSet<String> = BTreeSet::from([format!("pr-7.{ZONE}"), "pr-7.example.org".to_owned()]);
    for version in [2, 2] {
        world.runtime.set_model(model(version, None));
        let connect = std::future::ready(Ok(Client { dns: Some(moved.clone()), ..world.client(i64::MAX) }));
        let told = Told::default();
        let (request, never) = (request(), Interrupt::default());
        lifecycle::deploy(connect, &world.runtime, &wish, &request, &told, &Redactor::default(), &never)
            .await
            .expect("as good without");
        let told = told.0.into_inner().expect("whole");
        assert!(told.iter().any(|text| text.contains(&format!("pr-7.{ZONE}"))), "{told:?}");
        assert_eq!(world.state().expect("a state").records, both);
    }
    // Back in the first zone, one run more takes away what it may.
    world.deploy_with(3, &["pr-7"]).await.expect("updated");
    assert_eq!(world.state().expect("a state").records, both);
    assert_eq!(world.destroy_for(i64::MAX).await.expect("destroyed").records_left, ["pr-7.example.org"]);
}

#[tokio::test]
async fn a_destroy_without_a_state_finds_records_by_their_mark_and_one_without_dns_names_them() {
    let world = World::new();
    world.deploy(1, None).await.expect("created");
    let gone = Change::Remove { path: crate::world::STATE.to_owned() };
    world.host.apply(&[gone]).await.expect("removed by hand");
    assert_eq!(world.destroy_for(i64::MAX).await.expect("destroyed").records, 1);
    assert!(world.hosts().is_empty());

    world.deploy(1, None).await.expect("created");
    let told = Told::default();
    let client = Client { dns: None, ..world.client(i64::MAX) };
    let done = lifecycle::destroy(&client, &destroy(), &told, &Interrupt::default()).await.expect("destroyed");
    assert_eq!((done.existed, done.records), (true, 0));
    let told = told.0.into_inner().expect("whole");
    assert!(told.len() == 1 && told[0].contains(&format!("pr-7.{ZONE}")), "{told:?}");
    assert_eq!(world.hosts().len(), 1);

    // A sweep that may removes it: its preview has no state any more.
    let dry = world.sweep(&lifecycle::Sweep { dry_run: true, ..sweeping() }).await;
    assert_eq!((dry.removed.len(), &dry.removed[0].records), (1, &vec![format!("pr-7.{ZONE}")]));
    assert_eq!(world.hosts().len(), 1, "a dry run changes nothing");
    let swept = world.sweep(&sweeping()).await;
    assert_eq!((swept.removed.len(), swept.exit_code()), (1, 0), "{swept:?}");
    assert!(world.hosts().is_empty());
}

/// A sweep takes all applications; the one that it is started for may write records elsewhere, or nowhere.
#[tokio::test]
async fn a_sweep_without_access_to_records_says_which_it_leaves() {
    let elsewhere = |world: &World| {
        let value = Value::parse(ADDRESS).expect("an address");
        let dns = MemoryDns::new(world.zone.clone(), "example.org", "another", value);
        Arc::new(dns) as Arc<dyn preview_core::dns::Dns>
    };
    for reaches_another in [false, true] {
        let world = World::new();
        // A first deploy that died with its record written.
        let life = 8;
        world.runtime.set_model(model(1, None));
        let _ = world.run(life, &request()).await;
        world.lock.lose(crate::world::LOCK);
        let host = format!("pr-7.{ZONE}");
        assert_eq!(world.hosts(), [host.as_str()], "{:?}", world.state());
        let dns = reaches_another.then(|| elsewhere(&world));
        let client = Client { dns, ..world.client(i64::MAX) };
        let swept =
            lifecycle::sweep(&client, &sweeping(), &Told::default(), &Interrupt::default()).await.expect("swept");
        assert_eq!((swept.removed.len(), swept.exit_code()), (1, 1), "{swept:?}");
        let left = &swept.removed[0].left;
        assert!(left.len() == 1 && left[0].contains(&host) && left[0].contains("[dns]"), "{left:?}");
        assert_eq!((world.state(), world.hosts().len()), (None, 1), "everything else went");

        // The one that may finds it by its mark.
        let swept = world.sweep(&sweeping()).await;
        assert_eq!((swept.removed.len(), swept.exit_code()), (1, 0), "{swept:?}");
        world.assert_nothing_left("swept").await;
    }
}

#[tokio::test]
async fn a_sweep_leaves_records_of_the_living_of_other_vms_and_of_others() {
    let world = World::new();
    world.runtime.set_model(model(1, None));
    world.deploy_for(i64::MAX, &numbered(1)).await.expect("created");
    world.zone.put(&format!("www.{ZONE}"), "192.0.2.99");
    let other = MemoryDns::new(world.zone.clone(), ZONE, "another", Value::parse(ADDRESS).expect("an address"));
    preview_core::dns::Dns::write(&other, &request().target, &hosts(&["pr-7"])).await.expect("written");
    let before = world.zone.records();
    assert_eq!(world.sweep(&sweeping()).await.removed, []);
    assert_eq!(world.zone.records(), before);

    // A zone that cannot be listed is a warning, not the end of the sweep.
    let told = Arc::new(Told::default());
    world.zone.fail_next("list", Fault::new(FaultKind::Unsupported, "list records", "no transfer"));
    let client = world.client(i64::MAX);
    lifecycle::sweep(&client, &sweeping(), &*told, &Interrupt::default()).await.expect("swept");
    let told = told.0.lock().expect("whole").clone();
    assert!(told.len() == 1 && told[0].contains("cannot be seen"), "{told:?}");
}

/// Wherever a run dies, records never outlive what remembers them: the next run, a destroy or a sweep ends well.
#[tokio::test]
async fn a_run_that_dies_anywhere_leaves_no_record_behind() {
    for life in 0..34 {
        let world = World::new();
        world.deploy_with(1, &["pr-7", "pr-7-old"]).await.expect("created");
        world.runtime.set_model(model(2, None));
        let wish = Project { hosts: hosts(&["pr-7", "pr-7-new"]), ..project() };
        let _ = world.run_with(life, &wish, &request(), &Interrupt::default()).await;
        world.lock.lose(crate::world::LOCK);
        let known = world.state().expect("a state").records;
        let there: BTreeSet<String> = world.hosts().into_iter().collect();
        assert!(there.is_subset(&known), "after {life} changes: {there:?}, known {known:?}");
        world.sweep(&sweeping()).await;
        world.deploy_with(2, &["pr-7", "pr-7-new"]).await.expect("the next run");
        world.deploy_with(2, &["pr-7", "pr-7-new"]).await.expect("and one more");
        let there: BTreeSet<String> = world.hosts().into_iter().collect();
        assert_eq!(there, hosts(&["pr-7", "pr-7-new"]), "after {life} changes");
        world.destroy_for(i64::MAX).await.expect("destroyed");
        assert!(world.hosts().is_empty(), "after {life} changes");
    }
}
