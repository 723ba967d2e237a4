//! What the history says of runs that ended.

use std::time::Duration;

use preview_core::admission::Weight;
use preview_core::history;
use preview_core::host::{Change, Host};
use preview_core::lifecycle::{Destroy, Sweep};
use preview_core::lock::{Holder, Lock};
use preview_core::project::Deploy;
use preview_core::state::{Phase, Subject};

use crate::sweep::sweeping;
use crate::world::{LOCK, World, destroy, failed, model, request};

impl World {
    /// The runs that ended, in order: what, how, why, while doing what.
    pub(crate) fn history(&self) -> Vec<String> {
        let text = self.host.content("/base/.history.jsonl").unwrap_or_default();
        let entries = history::parse(&text);
        assert_eq!(entries.len(), text.lines().count(), "{text}");
        let say = |entry: history::Entry| {
            let code = entry.code.map_or("-", preview_core::failure::FailureCode::as_str);
            let phase = entry.phase.map_or("-", Phase::as_str);
            format!("{} {} {code} {phase}", entry.command, entry.outcome)
        };
        entries.into_iter().map(say).collect()
    }
}

#[tokio::test]
async fn each_run_that_ended_is_noted_once() {
    let world = World::new();
    world.deploy(1, None).await.expect("created");
    world.deploy(1, None).await.expect("again");
    failed(world.deploy(2, Some("boom")).await);
    let other = Deploy { subject: Subject::Branch("pr-7".into()), ..request() };
    world.deploy_for(i64::MAX, &other).await.expect_err("refused");
    world.destroy_for(i64::MAX).await.expect("destroyed");
    world.destroy_for(i64::MAX).await.expect("again");
    failed(world.deploy(1, Some("boom")).await);
    world.deploy_for(i64::MAX, &Deploy { update_only: true, ..request() }).await.expect("nothing to update");
    world.sweep(&Sweep { dry_run: true, ..sweeping() }).await;
    world.sweep(&sweeping()).await;
    assert_eq!(
        world.history(),
        [
            "deploy ready - -",
            "deploy unchanged - -",
            "deploy failed unhealthy verifying",
            "deploy refused name_taken preparing",
            "destroy destroyed - -",
            "destroy absent - -",
            "deploy failed unhealthy verifying",
            "deploy absent - -",
            "sweep swept - -",
        ]
    );
    let text = world.host.content("/base/.history.jsonl").expect("a history");
    let entries = history::parse(&text);
    assert_eq!((entries[4].owner.as_deref(), entries[4].subject.as_deref()), (Some("octocat"), Some("pull request 7")));
    assert_eq!((entries[0].preview.as_deref(), entries[0].weight), (Some("pr-7"), Some(Weight::default())));

    // What cannot be noted fails nothing.
    world.host.apply(&[Change::Remove { path: "/base/.history.jsonl".into() }]).await.expect("removed");
    world.host.put("/base/.history.jsonl/x", "a directory is in the way");
    world.deploy(1, None).await.expect("created");
    failed(world.deploy(2, Some("boom")).await);
    world.destroy_for(i64::MAX).await.expect("destroyed");
    world.assert_nothing_left("with no history").await;
}

#[tokio::test]
async fn nothing_is_noted_after_the_lease_is_lost_and_locked_is() {
    let world = World::new();
    world.deploy(1, None).await.expect("created");
    world.runtime.set_model(model(2, None));
    for life in 0..12 {
        let before = world.history().len();
        let ended = world.deploy_for(life, &request()).await;
        assert_eq!(world.history().len() - before, usize::from(ended.is_ok()), "after {life} changes");
    }
    let before = world.history().len();
    let holder = Holder { who: "ada".into(), why: "deploy".into(), since: "now".into() };
    let held = world.lock.acquire(LOCK, &holder, Duration::ZERO, &|_| ()).await.expect("answers");
    let wish = Destroy { wait: Duration::ZERO, ..destroy() };
    world.destroy_with(i64::MAX, &wish).await.expect_err("locked");
    drop(held);
    assert_eq!(world.history()[before..], ["destroy refused locked destroying"]);
}
