//! Tests of admission: who gets a place, and what refusals say.

use super::*;

const LIMITS: Limits = Limits {
    places: Weight::places(3),
    per_owner: Some(Weight::places(2)),
    per_app: None,
    free_disk: 5 << 30,
    free_memory: 1 << 30,
    overcommit: None,
};

fn facts() -> Facts {
    Facts { disk_free: 10 << 30, memory_available: 2 << 30, ..Facts::default() }
}

fn holder(name: &str, owner: &str, weight: f64, minute: i64) -> Holder {
    Holder {
        app: "shop".to_owned(),
        name: name.to_owned(),
        subject: Subject::Pull(7),
        owner: Some(owner.to_owned()),
        weight: Weight::try_from(weight).unwrap(),
        memory: 1 << 30,
        phase: Phase::Ready,
        pinned: false,
        updated_at: Timestamp::from_second(minute * 60).unwrap(),
    }
}

fn wish(name: &'static str, owner: &'static str, weight: f64) -> Wish<'static> {
    Wish { app: "shop", name, owner: Some(owner), weight: Weight::try_from(weight).unwrap(), memory: 1 << 30 }
}

#[test]
fn halves_fill_up_exactly() {
    let limits = Limits { per_owner: None, ..LIMITS };
    let held = [holder("a", "ada", 0.5, 1), holder("b", "bob", 2.0, 2)];
    assert_eq!(admit(&wish("c", "cem", 0.5), &held, &facts(), &limits), Ok(()));
    let full = admit(&wish("c", "cem", 1.0), &held, &facts(), &limits).unwrap_err();
    let shortage = Shortage::Places { limit: Weight::places(3), taken: Weight::try_from(2.5).unwrap() };
    assert_eq!(full.shortage, shortage);
    assert_eq!(full.holders.len(), 2);
}

#[test]
fn an_owner_has_a_limit_of_their_own() {
    let held = [holder("a", "ada", 1.0, 2), holder("b", "ada", 1.0, 1)];
    assert_eq!(admit(&wish("c", "bob", 1.0), &held, &facts(), &LIMITS), Ok(()));
    let full = admit(&wish("c", "ada", 0.5), &held, &facts(), &LIMITS).unwrap_err();
    assert!(matches!(full.shortage, Shortage::Owner { .. }));
    let names: Vec<_> = full.holders.iter().map(|holder| holder.name.as_str()).collect();
    assert_eq!(names, ["b", "a"], "the longest untouched first");
}

#[test]
fn an_application_has_a_limit_of_its_own() {
    let limits = Limits { per_app: Some(Weight::places(1)), ..LIMITS };
    let mut held = [holder("a", "ada", 1.0, 1)];
    assert!(matches!(
        admit(&wish("b", "bob", 1.0), &held, &facts(), &limits).unwrap_err().shortage,
        Shortage::App { .. }
    ));
    held[0].app = "blog".to_owned();
    assert_eq!(admit(&wish("b", "bob", 1.0), &held, &facts(), &limits), Ok(()));
}

#[test]
fn promises_of_memory_have_a_limit_of_their_own() {
    let facts = Facts { memory_total: 4 << 30, ..facts() };
    let limits = Limits { overcommit: Some(75), per_owner: None, ..LIMITS };
    let held = [holder("a", "ada", 0.5, 1), holder("b", "bob", 0.5, 2)];
    assert_eq!(admit(&wish("c", "cem", 0.5), &held, &facts, &limits), Ok(()));
    let tight = Limits { overcommit: Some(74), ..limits };
    let full = admit(&wish("c", "cem", 0.5), &held, &facts, &tight).unwrap_err();
    assert!(matches!(full.shortage, Shortage::Promised { taken, .. } if taken == 2 << 30));
    // What it has already is promised already; what grows needs the difference.
    assert_eq!(admit(&wish("a", "ada", 0.5), &held, &facts, &tight), Ok(()));
    let grown = Wish { memory: 3 << 30, ..wish("a", "ada", 0.5) };
    assert!(admit(&grown, &held, &facts, &limits).is_err());
}

#[test]
fn the_longest_unused_makes_room_unless_it_is_pinned_or_at_work() {
    let limits = Limits { per_owner: None, ..LIMITS };
    let mut held = [holder("a", "ada", 1.0, 3), holder("b", "bob", 1.0, 1), holder("c", "cem", 1.0, 2)];
    let names = |held: &[Holder], weight: f64| {
        let wish = wish("d", "dan", weight);
        let full = admit(&wish, held, &facts(), &limits).unwrap_err();
        let gone = replaceable(&wish, held, &full, &facts(), &limits)?;
        Some(gone.into_iter().map(|holder| holder.name).collect::<Vec<_>>())
    };
    assert_eq!(names(&held, 1.0).unwrap(), ["b"]);
    assert_eq!(names(&held, 2.0).unwrap(), ["b", "c"]);
    assert_eq!(names(&held, 4.0), None, "that never fits");
    held[1].pinned = true;
    assert_eq!(names(&held, 1.0).unwrap(), ["c"]);
    held[2].phase = Phase::Starting;
    assert_eq!(names(&held, 1.0).unwrap(), ["a"]);
    assert_eq!(names(&held, 2.0), None);
    // Memory that is short now does not come back by that as far as anybody knows.
    let wish = wish("d", "dan", 1.0);
    let poor = Facts { memory_available: 0, ..facts() };
    let full = admit(&wish, &held[..1], &poor, &limits).unwrap_err();
    assert_eq!(replaceable(&wish, &held[..1], &full, &poor, &limits), None);
}

#[test]
fn an_update_has_its_place_unless_it_grows() {
    let held = [holder("a", "ada", 1.0, 1), holder("b", "bob", 1.0, 2), holder("c", "bob", 1.0, 3)];
    let poor = Facts::default();
    assert_eq!(admit(&wish("a", "ada", 1.0), &held, &poor, &LIMITS), Ok(()));
    assert_eq!(admit(&wish("a", "ada", 0.5), &held, &poor, &LIMITS), Ok(()));
    let full = admit(&wish("a", "ada", 2.0), &held, &poor, &LIMITS).unwrap_err();
    assert!(matches!(full.shortage, Shortage::Places { .. }));
    assert!(full.holders.iter().all(|holder| holder.name != "a"), "nobody waits for themselves");
    assert_eq!(admit(&wish("a", "ada", 2.0), &held[..2], &poor, &LIMITS), Ok(()), "its disk and memory are there");
}

#[test]
fn floors_hold_for_what_is_new() {
    let disk = Facts { disk_free: 4_999 << 20, ..facts() };
    let memory = Facts { memory_available: 900 << 20, ..facts() };
    let shortage = |facts: &Facts| admit(&wish("a", "ada", 1.0), &[], facts, &LIMITS).unwrap_err();
    let full = shortage(&disk);
    assert_eq!(full.text(Timestamp::UNIX_EPOCH), "4.8 GB of disk are free on the VM, a new preview needs 5.0 GB");
    let full = shortage(&memory);
    assert_eq!(
        full.text(Timestamp::UNIX_EPOCH),
        "900 MB of memory are available on the VM, a new preview needs 1.0 GB"
    );
}

#[test]
fn people_are_told_who_has_the_places() {
    let limits = Limits { places: Weight::places(2), per_owner: None, ..LIMITS };
    let held = [holder("pr-2", "bob", 0.5, 170), holder("pr-1", "ada", 1.0, 0)];
    let full = admit(&wish("pr-3", "cem", 1.0), &held, &facts(), &limits).unwrap_err();
    assert_eq!(
        full.text(Timestamp::from_second(3 * 3600).unwrap()),
        "1.5 of 2 places on the VM are taken, held by\n  \
         shop pr-1 of ada: pull request 7, ready, last deployed 3h ago\n  \
         shop pr-2 of bob: pull request 7, ready, last deployed 10m ago, weight 0.5"
    );
}

#[test]
fn what_others_wrote_stays_on_its_line() {
    let held = [holder("pr-1", "ada\n::error::x\u{1b}[31m", 3.0, 0)];
    let text = admit(&wish("pr-2", "bob", 1.0), &held, &facts(), &LIMITS).unwrap_err().text(Timestamp::UNIX_EPOCH);
    assert!(text.contains("of ada?::error::x?[31m: "), "{text}");
}

#[test]
fn what_never_fits_is_told() {
    let limits = Limits { per_owner: None, ..LIMITS };
    let full = admit(&wish("a", "ada", 4.0), &[], &facts(), &limits).unwrap_err();
    assert_eq!(full.text(Timestamp::UNIX_EPOCH), "0 of 3 places on the VM are taken, 4 wanted");
    assert!(full.advice().starts_with("It can never fit"), "{}", full.advice());
}

#[test]
fn a_damaged_state_file_still_has_a_place() {
    let files = BTreeMap::from([
        ("/b/shop/pr-1/state.json".to_owned(), "{".to_owned()),
        ("/b/shop/pr-1/stack-1.json".to_owned(), "{}".to_owned()),
    ]);
    let held = holders(&files);
    assert_eq!(held.len(), 1);
    assert_eq!((held[0].app.as_str(), held[0].name.as_str(), held[0].weight), ("shop", "pr-1", Weight::default()));
}

#[test]
fn weights_are_numbers_within_limits() {
    for bad in [0.0, -1.0, 1000.1, f64::NAN, f64::INFINITY] {
        assert_eq!(Weight::try_from(bad), Err(BadWeight), "{bad}");
    }
    assert_eq!(serde_json::to_string(&Weight::try_from(0.5).unwrap()).unwrap(), "0.5");
    assert_eq!(serde_json::from_str::<Weight>("2").unwrap().to_string(), "2");
}
