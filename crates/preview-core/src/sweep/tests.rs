use super::*;
use crate::engine::{Container, ContainerState, Health, Object};
use crate::fence::Cause;
use crate::host::Facts;
use crate::state::Good;

const BASE: &str = "/base";

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn hours(hours: i64) -> Timestamp {
    now().checked_add(SignedDuration::from_hours(hours)).unwrap()
}

fn open(pulls: &[u64]) -> Open {
    let pulls = Some(pulls.iter().copied().collect());
    Open {
        app: "shop".to_owned(),
        repository: Some("acme/shop".to_owned()),
        pulls,
        branches: None,
        grace: Duration::from_secs(600),
    }
}

fn ready(number: u64) -> State {
    let at = hours(-1);
    State {
        name: format!("pr-{number}"),
        project: format!("shop_pr-{number}"),
        subject: Subject::Pull(number),
        updated_at: at,
        good: Some(Good {
            addresses: vec![],
            routes: None,
            digest: String::new(),
            stack: String::new(),
            containers: BTreeMap::new(),
            images: BTreeMap::new(),
            facts: BTreeMap::new(),
            roots: BTreeMap::new(),
            tree: None,
            records: Default::default(),
            weight: None,
            commit: None,
            at,
        }),
        ..crate::state::tests::state()
    }
}

#[derive(Default)]
struct World {
    survey: Survey,
    inventory: Inventory,
}

impl World {
    fn new() -> Self {
        let facts = Facts { now: now().as_second(), ..Facts::default() };
        Self { survey: Survey { facts, ..Survey::default() }, ..Self::default() }
    }

    fn file(&mut self, path: &str, text: &str) -> &mut Self {
        self.survey.files.insert(path.to_owned(), text.to_owned());
        self.path(path)
    }

    fn path(&mut self, path: &str) -> &mut Self {
        self.survey.paths.insert(path.to_owned());
        for (at, _) in path.match_indices('/').skip(2) {
            self.survey.paths.insert(path[..at].to_owned());
        }
        self
    }

    fn state(&mut self, state: &State) -> &mut Self {
        let path = format!("{BASE}/{}/{}/state.json", state.app, state.name);
        self.file(&path, &String::from_utf8(state.to_json()).unwrap())
    }

    fn container(&mut self, base: &str, app: &str, name: &str) -> &mut Self {
        self.inventory.containers.push(Container {
            id: String::new(),
            name: format!("{app}-{name}"),
            image: String::new(),
            image_id: String::new(),
            state: ContainerState::Running,
            health: Health::None,
            labels: crate::ownership::Selector::preview(app, name).labels_below(base),
            created: 0,
            ports: vec![],
            networks: BTreeMap::new(),
            volumes: Default::default(),
        });
        self
    }

    /// A preview with its container.
    fn live(&mut self, state: &State) -> &mut Self {
        self.state(state).container(BASE, &state.app, &state.name)
    }

    fn decide(&self, open: &Open) -> Decision {
        decide(BASE, &self.survey, &self.inventory, open)
    }
}

fn names(suspects: &[Suspect]) -> Vec<(&str, String)> {
    suspects.iter().map(|suspect| (suspect.target.name.as_str(), suspect.why.to_string())).collect()
}

#[test]
fn what_is_well_is_left() {
    let mut world = World::new();
    world.live(&ready(1)).live(&State { expires_at: Some(hours(1)), ..ready(2) });
    assert_eq!(world.decide(&Open::default()), Decision::default());
    assert_eq!(world.decide(&open(&[1, 2])), Decision::default());
}

#[test]
fn time_is_over_unless_somebody_keeps_it() {
    let over = State { expires_at: Some(hours(-2)), ..ready(1) };
    let mut world = World::new();
    world
        .live(&over)
        .live(&State { keep_until: Some(hours(1)), ..over.clone() }.named(2))
        .live(&State { keep_until: Some(hours(-1)), ..over.clone() }.named(3))
        .live(&State { pinned: true, ..over.clone() }.named(4));
    let decision = world.decide(&Open::default());
    let expected = [("pr-1", format!("expired at {}", hours(-2))), ("pr-3", format!("expired at {}", hours(-1)))];
    assert_eq!(names(&decision.remove), expected);
}

#[test]
fn what_another_directory_has_the_name_of_is_left() {
    let over = State { expires_at: Some(hours(-2)), ..ready(1) };
    let mut world = World::new();
    world.live(&over).live(&over.clone().named(2)).container("/elsewhere", "shop", "pr-1");
    let decision = world.decide(&Open::default());
    assert_eq!(names(&decision.remove), [("pr-2", format!("expired at {}", hours(-2)))]);
    assert_eq!(decision.left.len(), 1, "{decision:?}");
    assert!(decision.left[0].why.ends_with("belong to the previews below /elsewhere"), "{decision:?}");
}

#[test]
fn lists_are_about_one_repository() {
    let of = |repository: &str, number| State { repository: Some(repository.to_owned()), ..ready(number) };
    let mut world = World::new();
    world.live(&of("acme/shop", 1)).live(&of("beta/shop", 2)).live(&ready(3));
    let gone: Vec<_> = world.decide(&open(&[])).remove.into_iter().map(|suspect| suspect.target.name).collect();
    assert_eq!(gone, ["pr-1", "pr-3"], "of whose repository nothing is known is judged too");
}

trait Named {
    fn named(self, number: u64) -> Self;
}

impl Named for State {
    fn named(self, number: u64) -> Self {
        let State { name, project, subject, .. } = ready(number);
        Self { name, project, subject, ..self }
    }
}

#[test]
fn what_is_not_open_goes_but_not_what_the_list_cannot_know() {
    let mut world = World::new();
    let just_now = State { updated_at: hours(0), ..ready(3) };
    let branch = State { subject: Subject::Branch("x".to_owned()), name: "preview-x".to_owned(), ..ready(4) };
    let other = State { app: "blog".to_owned(), ..ready(5) };
    world.live(&ready(1)).live(&ready(2)).live(&just_now).live(&branch).live(&other);
    let decision = world.decide(&open(&[2]));
    assert_eq!(names(&decision.remove), [("pr-1", "pull request 1 is not open any more".to_owned())]);
    let branches = Open { branches: Some(BTreeSet::from(["y".to_owned()])), ..open(&[1, 2]) };
    assert_eq!(names(&world.decide(&branches).remove), [("preview-x", "branch x is not open any more".to_owned())]);
    assert_eq!(world.decide(&Open { app: "shop".to_owned(), ..Open::default() }), Decision::default());
}

#[test]
fn a_run_that_died_is_mended_where_there_is_something_to_go_back_to() {
    let mut world = World::new();
    world
        .live(&State { phase: Phase::Starting, ..ready(1) })
        .live(&State { phase: Phase::Starting, good: None, ..ready(2) })
        .live(&State { phase: Phase::Destroying, ..ready(3) })
        .live(&State { phase: Phase::Failed, ..ready(4) });
    let decision = world.decide(&Open::default());
    assert_eq!(names(&decision.mend), [("pr-1", "its run died while starting".to_owned())]);
    let expected =
        [("pr-2", "its run died while starting".to_owned()), ("pr-3", "its run died while destroying".to_owned())];
    assert_eq!(names(&decision.remove), expected);
}

#[test]
fn a_close_whose_destroy_died_is_carried_out() {
    let mut world = World::new();
    let tombstone = Tombstone { cause: Cause::Closed, at: hours(-1), who: "ada".to_owned() };
    let text = String::from_utf8(tombstone.to_json()).unwrap();
    world.live(&State { event_at: Some(hours(-2)), ..ready(1) }).live(&State { event_at: Some(hours(0)), ..ready(2) });
    for number in [1, 2] {
        world.file(&tombstone.path(BASE, "shop", &format!("pr-{number}"), ""), &text);
    }
    let decision = world.decide(&Open::default());
    assert_eq!(decision.remove.len(), 1);
    assert_eq!(
        (decision.remove[0].target.name.as_str(), &decision.remove[0].why),
        ("pr-1", &Why::Closed { at: hours(-1) })
    );
    assert_eq!(decision.tombstones, Vec::<String>::new());
}

#[test]
fn tickets_of_previews_that_stand_are_asked_about() {
    let mut world = World::new();
    world.live(&ready(1)).live(&ready(2)).path("/base/shop/pr-2/queue.json");
    let decision = world.decide(&Open::default());
    assert_eq!(decision.tickets.iter().map(|target| target.name.as_str()).collect::<Vec<_>>(), ["pr-2"]);
    assert_eq!((decision.remove, decision.mend), (vec![], vec![]));
}

#[test]
fn tombstones_past_their_time_go() {
    let mut world = World::new();
    let mut put = |cause, at, name: &str| {
        let tombstone = Tombstone { cause, at, who: String::new() };
        let path = tombstone.path(BASE, "shop", name, "t");
        world.file(&path, &String::from_utf8(tombstone.to_json()).unwrap());
        path
    };
    let old = put(Cause::Closed, hours(-36 * 24), "pr-1");
    put(Cause::Closed, hours(-34 * 24), "pr-2");
    let wish = put(Cause::Wanted, hours(-25), "pr-3");
    world.file("/base/.tombstones/shop/pr-4@1.json", "{");
    let expected = [old, wish, "/base/.tombstones/shop/pr-4@1.json".to_owned()];
    assert_eq!(world.decide(&Open::default()).tombstones, expected);
}

#[test]
fn orphans_in_every_direction() {
    let mut world = World::new();
    // A stack without a state, a network alone, an image alone; files without a state; a state without a stack.
    world.container(BASE, "shop", "pr-1");
    let object = |name: &str| Object {
        id: name.to_owned(),
        name: name.to_owned(),
        labels: crate::ownership::Selector::preview("shop", name).labels_below(BASE),
    };
    world.inventory.networks.push(object("pr-2"));
    world.inventory.images.push(object("pr-3"));
    world
        .path("/base/shop/pr-4/.lock")
        .path("/base/shop/pr-5/files")
        .path("/base/shop/pr-6/stack-0.json")
        .path("/base/shop/pr-6/routes-0.json");
    world.state(&ready(7));
    // Data is left, although its containers are gone.
    world.state(&ready(8));
    world.inventory.volumes.push(object("pr-8"));
    world.path("/base/shop/pr-9");
    let decision = world.decide(&Open::default());
    let gone: Vec<_> = names(&decision.remove).into_iter().map(|(name, _)| name).collect();
    assert_eq!(gone, ["pr-7", "pr-1", "pr-2", "pr-3", "pr-4", "pr-6"]);
    // Anybody may have a directory that holds one of the name `files`.
    let left: Vec<_> = decision.left.iter().map(|left| left.what.as_str()).collect();
    assert_eq!(left, ["/base/shop/pr-5", "shop pr-8"]);
    assert_eq!(decision.empty, ["/base/shop/pr-9"]);
}

#[test]
fn what_is_not_ours_is_never_touched() {
    let mut world = World::new();
    // Another base directory's, one without the label, and files of others.
    world.container("/other", "shop", "pr-1").container(BASE, "shop", "pr-2").container(BASE, "Sh op", "..");
    world.inventory.containers[1].labels.remove(ownership::BASE);
    world.path("/base/shop/pr-3/.env").path("/base/shop/pr-4/.lock").path("/base/shop/pr-4/data");
    world.path("/base/lib/modules/x").path("/base/.cache/thing/.lock").path("/base/Lib/x/.lock");
    world.file("/base/shop/pr-5/state.json", "{").file("/base/shop/pr-6/state.json", r#"{"schema": 99}"#);
    let decision = world.decide(&open(&[]));
    assert_eq!(decision.remove, [], "{decision:?}");
    let left: Vec<_> = decision.left.iter().map(|left| left.what.as_str()).collect();
    let expected = [
        "\"Sh op\" \"..\"",
        "/base/lib/modules",
        "/base/shop/pr-3",
        "/base/shop/pr-4",
        "/base/shop/pr-5/state.json",
        "/base/shop/pr-6/state.json",
        "1 objects of the engine",
    ];
    assert_eq!(left, expected);
    assert_eq!(decision.empty, Vec::<String>::new());
}

#[test]
fn the_proof_finds_whatever_is_left() {
    let mut world = World::new();
    world.container(BASE, "shop", "pr-1").container("/other", "shop", "pr-1").path("/base/shop/pr-1/.env");
    world.path("/base/shop/pr-10/.env");
    let target = Target { app: "shop".to_owned(), name: "pr-1".to_owned(), project: String::new() };
    let left = remains(BASE, &target, &world.survey, &world.inventory);
    assert_eq!(left, ["container shop-pr-1", "file /base/shop/pr-1", "file /base/shop/pr-1/.env"]);
}

#[test]
fn images_go_by_when_they_were_pulled() {
    let mut world = World::new();
    for (image, at) in [("redis:7", hours(-80)), ("app:1", hours(-1))] {
        let text = String::from_utf8(Pulled { image: image.to_owned(), at, done: None }.to_json()).unwrap();
        world.file(&Pulled::path(BASE, image), &text);
    }
    world.file("/base/.images/x.json", "{");
    let old = old_images(&world.survey, Duration::from_secs(72 * 3600));
    assert_eq!(old.into_iter().map(|(_, pulled)| pulled.image).collect::<Vec<_>>(), ["redis:7"]);
}
