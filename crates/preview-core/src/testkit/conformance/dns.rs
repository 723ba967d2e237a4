//! What the contract of [`Dns`] promises. [`suite`] panics at the first promise that an adapter does not keep.

use std::collections::BTreeSet;

use async_trait::async_trait;

use crate::dns::Dns;
use crate::fault::FaultKind;
use crate::project::Target;

/// Three adapters of one zone.
pub struct Subject<'a> {
    /// The one that is looked at.
    pub ours: &'a dyn Dns,
    /// That of the same VM after it has got another address.
    pub moved: &'a dyn Dns,
    /// That of another VM.
    pub other: &'a dyn Dns,
    /// Where the first one's records lead.
    pub address: &'a str,
    /// Where the second one's do.
    pub moved_to: &'a str,
}

/// The zone, past the adapters.
#[async_trait]
pub trait World: Send + Sync {
    /// Makes an A record that carries no mark.
    async fn put(&self, host: &str, address: &str);
    /// What a host's address records say.
    async fn look(&self, host: &str) -> Vec<String>;
}

fn preview(name: &str) -> Target {
    Target { app: "shop".to_owned(), name: name.to_owned(), project: format!("shop_{name}") }
}

/// Runs every check in a zone that has none of these names yet.
///
/// # Panics
/// Where the contract is not kept.
pub async fn suite(subject: &Subject<'_>, world: &dyn World, zone: &str) {
    let Subject { ours, moved, other, address, moved_to } = *subject;
    let host = |name: &str| format!("{name}.{zone}");
    let hosts = |names: &[&str]| names.iter().map(|name| host(name)).collect::<BTreeSet<String>>();
    let seven = preview("pr-7");
    assert!(!ours.describe().is_empty(), "it has a description");
    assert_eq!(ours.list().await.expect("an empty list"), [], "nothing is there yet");

    // Written once, and found again.
    let both = hosts(&["pr-7", "pr-7-api"]);
    assert_eq!(ours.write(&seven, &both).await.expect("two hosts are written"), 2);
    for name in ["pr-7", "pr-7-api"] {
        assert_eq!(world.look(&host(name)).await, [address], "{name} leads to the VM");
    }
    assert_eq!(ours.write(&seven, &both).await.expect("again"), 0, "what is right is not written");
    let mut listed = ours.list().await.expect("a list");
    listed.sort();
    let found: BTreeSet<String> = listed.iter().map(|owned| owned.host.clone()).collect();
    assert_eq!(found, both, "each host once: {listed:?}");
    assert!(listed.iter().all(|owned| owned.preview == Some(("shop".to_owned(), "pr-7".to_owned()))), "{listed:?}");
    assert_eq!(other.list().await.expect("a list"), [], "another VM's are not listed");

    // One host more, and another address.
    let three = hosts(&["pr-7", "pr-7-api", "pr-7-ui"]);
    assert_eq!(ours.write(&seven, &three).await.expect("one more"), 1, "only that one differs");
    assert_eq!(moved.write(&seven, &three).await.expect("moved"), 3);
    assert_eq!(world.look(&host("pr-7")).await, [moved_to], "one record, and the new one");
    assert_eq!(ours.write(&seven, &three).await.expect("and back"), 3);
    assert_eq!(world.look(&host("pr-7")).await, [address]);

    // Others' records: of another preview, of another VM, of somebody.
    world.put(&host("www"), "192.0.2.99").await;
    let eight = preview("pr-8");
    for (who, adapter, target, name) in
        [("another preview", ours, &eight, "pr-7"), ("another VM", other, &seven, "pr-7"), ("us", ours, &eight, "www")]
    {
        let fault = adapter.write(target, &hosts(&["pr-8", name])).await.expect_err(who);
        assert_eq!((fault.kind, fault.transient), (FaultKind::Conflict, false), "{who}: {fault}");
        assert!(fault.context.contains(&host(name)), "{who}: the host is named: {fault}");
        assert_eq!(world.look(&host("pr-8")).await, Vec::<String>::new(), "{who}: nothing of it was done");
        let removed = adapter.remove(target, &hosts(&["pr-8", name])).await.expect("nothing to remove is fine");
        assert_eq!(removed, 0, "{who}");
    }
    assert_eq!(world.look(&host("pr-7")).await, [address], "left as it was");
    assert_eq!(world.look(&host("www")).await, ["192.0.2.99"], "left as it was");

    // Removed, the ones that were asked for; again is fine.
    let asked = hosts(&["pr-7", "www", "never-made"]);
    assert_eq!(ours.remove(&seven, &asked).await.expect("removed"), 1);
    assert_eq!(world.look(&host("pr-7")).await, Vec::<String>::new());
    assert_eq!(world.look(&host("pr-7-api")).await, [address], "not asked for");
    assert_eq!(ours.remove(&seven, &asked).await.expect("again"), 0);
    assert_eq!(ours.remove(&seven, &three).await.expect("the rest"), 2);
    assert_eq!(ours.list().await.expect("a list"), [], "nothing is left");
    assert_eq!(world.look(&host("www")).await, ["192.0.2.99"], "somebody's");

    // Nothing wanted, nothing done; what cannot be is said without asking anybody.
    let none = BTreeSet::new();
    assert_eq!(ours.write(&seven, &none).await.expect("nothing"), 0);
    assert_eq!(ours.remove(&seven, &none).await.expect("nothing"), 0);
    let outside = BTreeSet::from(["pr-7.elsewhere.test".to_owned()]);
    assert_eq!(ours.check(&outside).expect_err("not in the zone").kind, FaultKind::Invalid);
    assert_eq!(ours.write(&seven, &outside).await.expect_err("not in the zone").kind, FaultKind::Invalid);
    assert_eq!(ours.check(&three).expect("fine"), Vec::<String>::new());
}
