//! What goes away, and above all what does not.

use std::collections::BTreeMap;

use super::{Spec, Suite, fails, ok};
use crate::engine::{Inventory, Prune, Removed};
use crate::fault::FaultKind;
use crate::ownership::{self, Selector};

impl Suite<'_> {
    pub(super) async fn removal(&self) {
        self.networks_are_made_once().await;
        self.all_that_is_meant_goes_and_nothing_else().await;
        self.volumes_without_a_name_go_with_their_containers().await;
        self.volumes_that_were_noted_go_though_their_containers_are_gone().await;
        self.one_container_goes_alone().await;
        self.what_was_seen_before_may_be_old().await;
        self.removing_twice_at_the_same_time_is_no_error().await;
        self.what_others_hold_on_to_is_a_conflict_that_names_them().await;
        self.images_that_others_use_stay().await;
        self.a_name_goes_and_the_image_with_its_last_one().await;
        self.only_untagged_images_of_ours_are_pruned().await;
    }

    async fn networks_are_made_once(&self) {
        let name = self.name("made-once");
        let labels = self.preview("networks").labels();
        let there = async |name: &str| ok(self.engine.has_network(name).await, "a look for a network");
        assert!(!there(&name).await, "there is no such network yet");
        assert!(ok(self.engine.ensure_network(&name, &labels).await, "a network is made"), "made now");
        let others = BTreeMap::from([("other".to_owned(), "labels".to_owned())]);
        assert!(!ok(self.engine.ensure_network(&name, &others).await, "a network is there"), "not made again");
        assert!(there(&name).await, "it is found by its name");
        assert!(!there(&name[..name.len() - 1]).await, "and not by a part of its name");
        let found = ok(self.engine.inventory(&self.preview("networks")).await, "an inventory");
        assert_eq!(found.networks.len(), 1, "there is one network of that name: {found:#?}");
        assert_eq!((&found.networks[0].name, &found.networks[0].labels), (&name, &labels), "it is left as it was");
        self.clear("networks").await;
    }

    /// A preview with one object of each kind.
    async fn whole_preview(&self, preview: &str) {
        let labels = self.preview(preview).labels();
        let name = self.name(&format!("{preview}-object"));
        self.fixture.network(&name, labels.clone()).await;
        self.fixture.volume(&name, labels.clone()).await;
        let image = format!("{name}:1");
        self.fixture.build(Some(&image), labels).await;
        ok(self.engine.tag(&image, &format!("{name}:last-good")).await, "an image gets one more name");
        let spec = self.spec(preview, &format!("{preview}-object"));
        let (network, volume, image) = (Some(name.clone()), Some(name), Some(image));
        self.fixture.container(Spec { network, volume, image, restarts: true, ..spec }).await;
    }

    async fn all_that_is_meant_goes_and_nothing_else(&self) {
        self.whole_preview("gone").await;
        self.whole_preview("stays").await;
        let foreign = self.fixture.container(self.foreign("gone", "foreign")).await;
        let before = ok(self.engine.inventory(&self.preview("stays")).await, "an inventory");
        let kinds = (before.containers.len(), before.networks.len(), before.volumes.len(), before.images.len());
        assert_eq!(kinds, (1, 1, 1, 1), "an inventory has all kinds: {before:#?}");
        assert_eq!(before.volumes[0].name, self.name("stays-object"), "volumes have their name");
        assert_eq!(before.images[0].name, self.name("stays-object:1"), "images have their first name");

        let removed = ok(self.engine.remove(&self.preview("gone"), &[]).await, "a preview is removed");
        assert_eq!(removed, Removed { containers: 1, networks: 1, volumes: 1, images: 1 }, "an image counts once");
        let left = ok(self.engine.inventory(&self.preview("gone")).await, "an inventory");
        assert_eq!(left, Inventory::default(), "nothing is left");
        let after = ok(self.engine.inventory(&self.preview("stays")).await, "an inventory");
        assert_eq!(after, before, "another preview is as it was");
        ok(self.engine.inspect(&foreign).await, "what is not marked as ours stays");
        let again = ok(self.engine.remove(&self.preview("gone"), &[]).await, "removing again is no error");
        assert_eq!(again, Removed::default(), "nothing was there to remove");
        self.fixture.take(&foreign).await;
        self.clear("stays").await;
    }

    async fn what_was_seen_before_may_be_old(&self) {
        self.whole_preview("seen").await;
        let preview = self.preview("seen");
        let mut seen = ok(self.engine.inventory(&preview).await, "an inventory").containers;
        ok(self.engine.remove_container(&seen[0].id).await, "a container is removed");
        self.fixture.container(self.spec("seen", "seen-later")).await;
        let foreign = self.fixture.container(self.foreign("seen", "foreign")).await;
        let others = ok(self.engine.containers(&Selector::Managed).await, "a list");
        seen.extend(others.into_iter().filter(|container| container.id == foreign));
        ok(self.engine.remove(&preview, &seen).await, "a preview is removed");
        let left = ok(self.engine.inventory(&preview).await, "an inventory");
        assert_eq!(left, Inventory::default(), "what came later is gone too");
        ok(self.engine.inspect(&foreign).await, "what is not meant stays, whoever names it");
        self.fixture.take(&foreign).await;
    }

    async fn volumes_without_a_name_go_with_their_containers(&self) {
        // As it is after an update that took it over: mounted by its name, with no label that says whose it is.
        let random =
            format!("{:0>64}", self.fixture.app().bytes().map(|byte| format!("{byte:02x}")).collect::<String>());
        let anonymous = random[random.len() - 64..].to_owned();
        self.fixture.volume(&anonymous, self.preview("others").labels()).await;
        let spec = Spec { volume: Some(anonymous.clone()), ..self.spec("anonymous", "anonymous") };
        self.fixture.container(spec).await;
        let only = self.only("anonymous").await;
        assert_eq!(only.volumes, std::collections::BTreeSet::from([anonymous]), "a container tells what it mounts");
        let removed = ok(self.engine.remove(&self.preview("anonymous"), &[]).await, "a preview is removed");
        assert_eq!(removed, Removed { containers: 1, volumes: 1, ..Removed::default() }, "the volume counts");
        for preview in ["anonymous", "others"] {
            let left = ok(self.engine.inventory(&self.preview(preview)).await, "an inventory");
            assert_eq!(left, Inventory::default(), "nothing is left, no note either");
        }
    }

    async fn volumes_that_were_noted_go_though_their_containers_are_gone(&self) {
        let bytes: String = self.fixture.app().bytes().rev().map(|byte| format!("{byte:02x}")).collect();
        let random = format!("{bytes:a>64}");
        let anonymous = random[random.len() - 64..].to_owned();
        self.fixture.volume(&anonymous, self.preview("others").labels()).await;
        let spec = Spec { volume: Some(anonymous), ..self.spec("noted", "noted") };
        self.fixture.container(spec).await;
        let only = self.only("noted").await;
        for _ in 0..2 {
            ok(self.engine.note_anonymous(std::slice::from_ref(&only)).await, "a volume is noted, as often as wanted");
        }
        ok(self.engine.remove_container(&only.id).await, "a container is removed");
        let left = ok(self.engine.inventory(&self.preview("others")).await, "an inventory");
        assert_eq!(left.volumes.len(), 1, "the volume stays for now");
        let removed = ok(self.engine.remove(&self.preview("noted"), &[]).await, "a preview is removed");
        assert_eq!(removed, Removed { volumes: 1, ..Removed::default() }, "the volume counts, the note does not");
        let left = ok(self.engine.inventory(&self.preview("others")).await, "an inventory");
        assert_eq!(left, Inventory::default(), "nothing is left");
        ok(self.engine.note_anonymous(&[]).await, "nothing is noted");
    }

    async fn one_container_goes_alone(&self) {
        self.whole_preview("one").await;
        let preview = self.preview("one");
        let before = ok(self.engine.inventory(&preview).await, "an inventory");
        let id = &before.containers[0].id;
        assert!(ok(self.engine.remove_container(id).await, "a container is removed"), "it was there");
        assert!(!ok(self.engine.remove_container(id).await, "removing again is no error"), "it was gone");
        let after = ok(self.engine.inventory(&preview).await, "an inventory");
        assert_eq!((after.containers.len(), after.volumes), (0, before.volumes), "all else stays");
        self.clear("one").await;
    }

    async fn removing_twice_at_the_same_time_is_no_error(&self) {
        self.whole_preview("twice").await;
        let preview = self.preview("twice");
        let (first, second) = tokio::join!(self.engine.remove(&preview, &[]), self.engine.remove(&preview, &[]));
        let (first, second) = (ok(first, "one of two removals"), ok(second, "the other of two removals"));
        assert!(first.containers + second.containers <= 1, "nobody counts what another removed");
        let left = ok(self.engine.inventory(&preview).await, "an inventory");
        assert_eq!(left, Inventory::default(), "nothing is left");
    }

    async fn what_others_hold_on_to_is_a_conflict_that_names_them(&self) {
        self.whole_preview("held").await;
        let name = self.name("held-object");
        for (what, network, volume) in
            [("network", Some(name.clone()), None::<String>), ("volume", None, Some(name.clone()))]
        {
            if what == "volume" {
                self.fixture.volume(&name, self.preview("held").labels()).await;
            }
            let foreign = Spec { network, volume, ..self.foreign("held", "holder") };
            let foreign = self.fixture.container(foreign).await;
            let fault =
                fails(self.engine.remove(&self.preview("held"), &[]).await, FaultKind::Conflict, "a foreign container");
            assert!(fault.context.contains(&self.name("holder")), "the conflict names who holds on: {fault}");
            assert!(fault.context.contains(&name), "the conflict names what is held: {fault}");
            ok(self.engine.inspect(&foreign).await, "the foreign container stays");
            self.fixture.take(&foreign).await;
            let rest = ok(self.engine.remove(&self.preview("held"), &[]).await, "removal goes on where it stopped");
            assert_eq!(
                (rest.containers, rest.networks + rest.volumes),
                (0, 1),
                "all else was removed: {what}, {rest:?}"
            );
        }
    }

    async fn images_that_others_use_stay(&self) {
        let labels = self.preview("used").labels();
        let name = self.name("used:1");
        self.fixture.build(Some(&name), labels.clone()).await;
        ok(self.engine.tag(&name, &self.name("used:2")).await, "an image gets one more name");
        self.fixture.build(Some(&self.name("unused:1")), labels).await;
        for only_made in [false, true] {
            let mut user = Spec { image: Some(name.clone()), only_made, ..self.foreign("used", "user") };
            // A container has the labels of its image, unless it sets them otherwise.
            user.labels.insert(ownership::MANAGED.to_owned(), "false".to_owned());
            let user = self.fixture.container(user).await;
            let removed = ok(self.engine.remove(&self.preview("used"), &[]).await, "an image in use is no error");
            assert_eq!(removed.images, usize::from(!only_made), "only what is unused is removed");
            let left = ok(self.engine.inventory(&self.preview("used")).await, "an inventory");
            assert_eq!(left.images.len(), 1, "an image that a foreign container uses stays");
            assert_eq!(left.images[0].name, name, "with its names");
            self.fixture.take(&user).await;
        }
        let removed = ok(self.engine.remove(&self.preview("used"), &[]).await, "a preview is removed");
        assert_eq!(removed.images, 1, "an image that is not used any more goes");
    }

    async fn a_name_goes_and_the_image_with_its_last_one(&self) {
        let labels = self.preview("names").labels();
        let (one, two) = (self.name("names:1"), self.name("names:2"));
        self.fixture.build(Some(&one), labels).await;
        ok(self.engine.tag(&one, &two).await, "an image gets one more name");
        let user = Spec { image: Some(one.clone()), ..self.foreign("names", "user") };
        let user = self.fixture.container(user).await;
        assert!(ok(self.engine.remove_image(&two).await, "a name goes"), "it was there");
        assert!(!ok(self.engine.remove_image(&two).await, "a name goes again"), "it was not there");
        assert!(!ok(self.engine.remove_image(&one).await, "an image in use is no error"), "it stays");
        self.fixture.take(&user).await;
        assert!(ok(self.engine.remove_image(&one).await, "the last name goes"), "it was there");
        let left = ok(self.engine.inventory(&self.preview("names")).await, "an inventory");
        assert_eq!(left.images, [], "the image is gone with its last name");
    }

    async fn only_untagged_images_of_ours_are_pruned(&self) {
        let labels = self.preview("prune").labels();
        self.fixture.build(Some(&self.name("tagged:1")), labels.clone()).await;
        self.fixture.build(None, labels).await;
        self.fixture.build(None, self.preview("other").labels()).await;
        ok(self.engine.prune(&Prune::DanglingImages(self.preview("prune"))).await, "untagged images are pruned");
        let left = ok(self.engine.inventory(&self.preview("prune")).await, "an inventory");
        assert_eq!(left.images.len(), 1, "the untagged image is gone: {left:#?}");
        assert_eq!(left.images[0].name, self.name("tagged:1"), "the tagged one is not");
        let other = ok(self.engine.inventory(&self.preview("other")).await, "an inventory");
        assert_eq!(other.images.len(), 1, "untagged images of others are not");
        assert!(other.images[0].name.starts_with("sha256:"), "an image without a name has its id as name");
        let large = Prune::BuildCache { keep: 1 << 50 };
        assert_eq!(ok(self.engine.prune(&large).await, "pruning what is too much"), 0, "it is not too much");
        let left = ok(self.engine.inventory(&self.preview("prune")).await, "an inventory");
        assert_eq!(left.images.len(), 1, "what is young stays");
        self.clear("prune").await;
        self.clear("other").await;
    }
}
