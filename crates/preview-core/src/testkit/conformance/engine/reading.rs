//! What is seen: lists, inspection, health, ports, images, disk.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Check, PATIENCE, Runs, Spec, Suite, fails, next, ok};
use crate::engine::{ContainerState, Health, ImageFacts, Inventory, Removed};
use crate::fault::FaultKind;
use crate::ownership::Selector;

impl Suite<'_> {
    pub(super) async fn reading(&self) {
        self.versions_are_known().await;
        self.what_is_not_there_is_empty().await;
        self.lists_show_what_is_meant_and_nothing_else().await;
        self.states_and_exit_codes_are_shown().await;
        self.health_is_shown().await;
        self.ports_and_addresses_are_shown().await;
        self.use_of_resources_is_shown().await;
        self.images_are_known_by_every_spelling().await;
        self.images_say_what_they_declare().await;
        self.names_of_images_move().await;
        self.a_pull_that_fails_ends_with_an_error().await;
    }

    async fn versions_are_known(&self) {
        let info = ok(self.engine.info().await, "the engine tells its versions");
        assert!(info.version.contains('.'), "an engine's version: {info:?}");
        assert!(info.api_version.starts_with("1."), "an API version: {info:?}");
    }

    async fn what_is_not_there_is_empty(&self) {
        let nothing = self.preview("nothing");
        assert_eq!(ok(self.engine.containers(&nothing).await, "no containers is no error"), []);
        assert_eq!(ok(self.engine.inventory(&nothing).await, "an empty inventory is no error"), Inventory::default());
        assert_eq!(ok(self.engine.remove(&nothing, &[]).await, "removing nothing is no error"), Removed::default());
        for id in ["no-such-container", "", "../info", "a?b"] {
            fails(self.engine.inspect(id).await, FaultKind::NotFound, "inspecting what is not there");
            fails(self.engine.stats(id).await, FaultKind::NotFound, "statistics of what is not there");
        }
    }

    async fn lists_show_what_is_meant_and_nothing_else(&self) {
        // Names against the order of time, so that sorting by name would show.
        let older = self.fixture.container(self.spec("a", "z-older")).await;
        // An engine's lists count time in seconds.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let newer = self.fixture.container(self.spec("a", "a-newer")).await;
        let other = self.fixture.container(self.spec("b", "other")).await;
        let foreign = self.fixture.container(self.foreign("a", "foreign")).await;

        let ids = |containers: Vec<crate::engine::Container>| containers.into_iter().map(|c| c.id).collect::<Vec<_>>();
        let found = ok(self.engine.containers(&self.preview("a")).await, "containers of a preview are listed");
        let first = found[0].clone();
        assert_eq!(ids(found), [older.clone(), newer.clone()], "a preview's containers, oldest first");
        assert_eq!(first.name, self.name("z-older"), "a name has no slash");
        assert_eq!(first.service(), Some("z-older"), "labels are complete");
        assert_eq!(first.image, self.fixture.image(), "the image is as it was named");
        assert!(first.image_id.starts_with("sha256:"), "an image's id is complete: {}", first.image_id);
        assert!(first.created > 0, "the time of making is known");

        let app = Selector::App(self.fixture.app().to_owned());
        let found = ids(ok(self.engine.containers(&app).await, "containers of an application are listed"));
        assert_eq!(found.iter().collect::<BTreeSet<_>>(), BTreeSet::from([&older, &newer, &other]));
        let managed = ids(ok(self.engine.containers(&Selector::Managed).await, "all of ours are listed"));
        assert!(managed.contains(&other), "all of ours includes those of every preview");
        assert!(!managed.contains(&foreign), "what lacks the mark of ownership is never ours");

        let inspected = ok(self.engine.inspect(&older).await, "inspection by id");
        let by_name = ok(self.engine.inspect(&self.name("z-older")).await, "inspection by name");
        assert_eq!(inspected, by_name);
        assert_eq!(inspected.container, first, "inspection and list show the same");

        ok(self.engine.remove(&app, &[]).await, "an application is removed");
        self.fixture.take(&foreign).await;
    }

    async fn states_and_exit_codes_are_shown(&self) {
        self.fixture.container(Spec { only_made: true, ..self.spec("made", "made") }).await;
        assert_eq!(self.only("made").await.state, ContainerState::Created, "a container that was never started");
        let ended = self.fixture.container(Spec { runs: Runs::Exits(7), ..self.spec("ended", "ended") }).await;
        assert_eq!(self.only("ended").await.state, ContainerState::Exited, "a container that has ended");
        let detail = ok(self.engine.inspect(&ended).await, "inspection of a container that has ended");
        assert_eq!(detail.exit_code, 7, "its exit code");
        assert!(!detail.oom_killed && !detail.restarts_on_success && detail.health_output.is_none());
        let kept = self.fixture.container(Spec { restarts: true, ..self.spec("kept", "kept") }).await;
        let detail = ok(self.engine.inspect(&kept).await, "inspection of a container that runs");
        assert_eq!(detail.container.state, ContainerState::Running);
        assert!(detail.restarts_on_success, "a restart policy that covers success is told");
        for preview in ["made", "ended", "kept"] {
            self.clear(preview).await;
        }
    }

    async fn health_is_shown(&self) {
        for (check, expected) in [
            (None, Health::None),
            (Some(Check::Waits), Health::Starting),
            (Some(Check::Passes), Health::Healthy),
            (Some(Check::Fails), Health::Unhealthy),
        ] {
            let id = self.fixture.container(Spec { check, ..self.spec("health", "health") }).await;
            let since = Instant::now();
            while self.only("health").await.health != expected {
                assert!(since.elapsed() < PATIENCE, "health becomes {expected:?}: {:#?}", self.only("health").await);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let detail = ok(self.engine.inspect(&id).await, "inspection of a container with a health check");
            assert_eq!(detail.container.health, expected, "list and inspection agree on health");
            let output = detail.health_output.unwrap_or_default();
            assert_eq!(
                output.trim(),
                if expected == Health::Unhealthy { "refused" } else { "" },
                "output of the check"
            );
            self.clear("health").await;
        }
    }

    async fn ports_and_addresses_are_shown(&self) {
        let (running, made) = (self.fixture.free_port(), self.fixture.free_port());
        let network = self.name("front");
        self.fixture.network(&network, self.preview("ports").labels()).await;
        let attached = Spec { port: Some(running), network: Some(network.clone()), ..self.spec("ports", "runs") };
        self.fixture.container(attached).await;
        let foreign = Spec { port: Some(made), only_made: true, ..self.foreign("ports", "made") };
        let foreign = self.fixture.container(foreign).await;

        let container = self.only("ports").await;
        assert!(!container.ports.is_empty(), "a published port is shown");
        for port in &container.ports {
            assert_eq!((port.host_port, port.container_port, port.protocol.as_str()), (running, 80, "tcp"));
        }
        let networks: Vec<_> = container.networks.keys().collect();
        assert_eq!(networks, [&network], "an address in each network");
        let ports = ok(self.engine.published_ports().await, "published ports are listed");
        assert!(ports.contains(&running), "a port that is published");
        assert!(ports.contains(&made), "a port that a container, even a foreign one, will publish once it runs");
        self.fixture.take(&foreign).await;
        self.clear("ports").await;
        let ports = ok(self.engine.published_ports().await, "published ports are listed");
        assert!(!ports.contains(&running) && !ports.contains(&made), "ports of what is gone are free");
    }

    async fn use_of_resources_is_shown(&self) {
        let limit = 64 << 20;
        let limited = self.fixture.container(Spec { memory: Some(limit), ..self.spec("stats", "limited") }).await;
        let free = self.fixture.container(self.spec("stats", "free")).await;
        let stats = ok(self.engine.stats(&limited).await, "statistics of a container");
        assert_eq!(stats.memory_limit, limit, "the limit of memory");
        assert!(stats.pids >= 1 && stats.cpu_total > 0, "what a process uses: {stats:?}");
        let stats = ok(self.engine.stats(&free).await, "statistics of a container without a limit");
        assert_eq!(stats.memory_limit, 0, "no limit of memory is 0");
        self.clear("stats").await;
        let disk = ok(self.engine.disk_use().await, "the engine's disk is measured");
        assert!(disk.images > 0, "images have a size: {disk:?}");
    }

    async fn images_are_known_by_every_spelling(&self) {
        let name = self.name("image");
        let id = self.fixture.build(Some(&format!("{name}:latest")), self.preview("images").labels()).await;
        let spellings = [name.clone(), format!("{name}:latest"), format!("docker.io/library/{name}"), id.clone()];
        for spelling in &spellings {
            // One at a time too: an id changes how an engine has to be asked.
            let asked = BTreeSet::from([spelling.clone(), self.name("missing")]);
            let found = ok(self.engine.image_ids(&asked).await, "ids of images");
            assert_eq!(found.into_iter().collect::<Vec<_>>(), [(spelling.clone(), id.clone())]);
        }
        let asked = BTreeSet::from(spellings);
        let found = ok(self.engine.image_ids(&asked).await, "ids of many images");
        assert_eq!(found.len(), 4, "all spellings at once: {found:?}");
        let labels = ok(self.engine.image_labels(&asked).await, "labels of many images");
        let ours = self.preview("images");
        assert!(labels.len() == 4 && labels.values().all(|found| ours.matches(found)), "{labels:?}");
        let found = ok(self.engine.image_ids(&BTreeSet::new()).await, "ids of no images");
        assert!(found.is_empty(), "nothing was asked for");
        self.clear("images").await;
    }

    async fn images_say_what_they_declare(&self) {
        let labels = self.preview("facts").labels();
        let plain = self.fixture.build(Some(&self.name("facts:1")), labels.clone()).await;
        let declaring = self.fixture.declaring(labels, "/data").await;
        let missing = format!("sha256:{}", "0".repeat(64));
        let asked = BTreeSet::from([plain.clone(), declaring.clone(), missing]);
        let facts = ok(self.engine.image_facts(&asked).await, "what images declare");
        assert_eq!(facts.len(), 2, "an image that is not here is not told of: {facts:?}");
        assert_eq!(facts[&plain], ImageFacts::default(), "an image that declares nothing");
        let wanted = ImageFacts { volumes: BTreeSet::from(["/data".to_owned()]), exposes: true };
        assert_eq!(facts[&declaring], wanted, "an image that declares a volume and a port");
        assert!(ok(self.engine.image_facts(&BTreeSet::new()).await, "facts of no images").is_empty());
        self.clear("facts").await;
    }

    async fn names_of_images_move(&self) {
        let labels = self.preview("tags").labels();
        let first = self.fixture.build(Some(&self.name("first:1")), labels.clone()).await;
        let second = self.fixture.build(Some(&self.name("second:1")), labels).await;
        let name = self.name("moving:last-good");
        let asked = BTreeSet::from([name.clone()]);
        for (image, id) in [(&first, &first), (&self.name("second:1"), &second)] {
            ok(self.engine.tag(image, &name).await, "an image gets one more name, by id or by name");
            let found = ok(self.engine.image_ids(&asked).await, "ids of images");
            assert_eq!(found.get(&name), Some(id), "a name is taken from any other image");
        }
        ok(self.engine.tag(&second, &name).await, "giving a name again is no error");
        let fault = self.engine.tag(&self.name("missing:1"), &name).await;
        fails(fault, FaultKind::NotFound, "naming an image that is not there");
        self.clear("tags").await;
    }

    async fn a_pull_that_fails_ends_with_an_error(&self) {
        let reference = self.fixture.unreachable_image();
        let fault = match self.engine.pull(reference, None).await {
            Err(fault) => fault,
            Ok(mut progress) => loop {
                match tokio::time::timeout(PATIENCE, futures_util::StreamExt::next(&mut progress)).await {
                    Err(_) => panic!("a pull that fails ends within {PATIENCE:?}"),
                    Ok(None) => panic!("a pull that fails ends with an error, not without one"),
                    Ok(Some(Ok(_))) => {}
                    Ok(Some(Err(fault))) => {
                        assert!(next(&mut progress, "an error ends the stream").await.is_none());
                        break fault;
                    }
                }
            },
        };
        assert!(fault.transient, "a registry that does not answer may do so later: {}", fault.chain());
        let found = ok(self.engine.image_ids(&BTreeSet::from([reference.to_owned()])).await, "ids of images");
        assert!(found.is_empty(), "a failed pull leaves no image");
    }
}
