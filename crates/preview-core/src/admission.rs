//! Who may have a place on the VM: places are counted by preview, by weight, in use and reserved; disk and memory have floors. Pure.
//!
//! A preview has its place from the moment its state file is written until that is removed, whatever it does meanwhile: a
//! reservation is a state file. So an update needs no place, unless it weighs more than what is there.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::host::Facts;
use crate::state::{Phase, State, Subject};
use crate::units::{about, age};

/// How much of the VM a preview takes: 1 is the usual one. Kept in thousandths, so that sums are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Weight(u32);

/// A weight that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a weight is a number from 0.001 to 1000")]
pub struct BadWeight;

impl Weight {
    /// A weight of whole places, at most 1000.
    #[must_use]
    pub const fn places(number: u16) -> Self {
        Self(if number > 1000 { 1_000_000 } else { number as u32 * 1000 })
    }

    fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(1000)
    }
}

impl std::iter::Sum for Weight {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        Self(all.fold(0, |sum, weight| sum.saturating_add(weight.0)))
    }
}

impl TryFrom<f64> for Weight {
    type Error = BadWeight;

    fn try_from(value: f64) -> Result<Self, BadWeight> {
        if !(0.001..=1000.0).contains(&value) {
            return Err(BadWeight);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
        Ok(Self((value * 1000.0).round() as u32))
    }
}

impl From<Weight> for f64 {
    fn from(weight: Weight) -> Self {
        Self::from(weight.0) / 1000.0
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&f64::from(*self), f)
    }
}

/// What a VM may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Places in all.
    pub places: Weight,
    /// Places of one owner.
    pub per_owner: Option<Weight>,
    /// Places of one application.
    pub per_app: Option<Weight>,
    /// A new preview needs so much free disk, bytes.
    pub free_disk: u64,
    /// A new preview needs so much memory that is available, bytes.
    pub free_memory: u64,
    /// All previews' containers together may be allowed so many percent of the VM's memory; `None`: that is not looked at.
    pub overcommit: Option<u32>,
}

/// Six places, 5 GB of disk and 1 GB of memory; as everywhere, units are powers of 1024.
impl Default for Limits {
    fn default() -> Self {
        Self {
            places: Weight::places(6),
            per_owner: None,
            per_app: None,
            free_disk: 5 << 30,
            free_memory: 1 << 30,
            overcommit: None,
        }
    }
}

/// Who wants a place.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Its application.
    pub app: &'a str,
    /// Its name within that.
    pub name: &'a str,
    /// Who asks.
    pub owner: Option<&'a str>,
    /// How much it takes.
    pub weight: Weight,
    /// What its containers may take at most in all, bytes.
    pub memory: u64,
}

/// A preview that has a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// The application.
    pub app: String,
    /// The preview.
    pub name: String,
    /// What it is of.
    pub subject: Subject,
    /// Who asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// How much it takes.
    pub weight: Weight,
    /// What its containers may take at most in all, bytes.
    pub memory: u64,
    /// What it is doing.
    pub phase: Phase,
    /// Never makes room for another.
    pub pinned: bool,
    /// When it was last deployed.
    pub updated_at: Timestamp,
}

impl From<&State> for Holder {
    fn from(state: &State) -> Self {
        Self {
            app: state.app.clone(),
            name: state.name.clone(),
            subject: state.subject.clone(),
            owner: state.owner.clone(),
            weight: state.weight,
            memory: state.memory,
            phase: state.phase,
            pinned: state.pinned,
            updated_at: state.updated_at,
        }
    }
}

/// What there is not enough of. Bytes where it is about bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Shortage {
    /// Places of the VM.
    Places {
        /// There are so many.
        limit: Weight,
        /// So many are taken.
        taken: Weight,
    },
    /// Places of the owner.
    Owner {
        /// Who.
        owner: String,
        /// There are so many.
        limit: Weight,
        /// So many are taken.
        taken: Weight,
    },
    /// Places of the application.
    App {
        /// There are so many.
        limit: Weight,
        /// So many are taken.
        taken: Weight,
    },
    /// Disk.
    Disk {
        /// Free now.
        free: u64,
        /// Needed.
        floor: u64,
    },
    /// Memory.
    Memory {
        /// Available now.
        free: u64,
        /// Needed.
        floor: u64,
    },
    /// Memory that containers may take at most, in all.
    Promised {
        /// May be promised.
        limit: u64,
        /// Is promised.
        taken: u64,
        /// Wanted.
        wanted: u64,
    },
}

/// There is no room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Full {
    /// What there is not enough of.
    pub shortage: Shortage,
    /// What the wish weighs.
    pub weight: Weight,
    /// Who has the places that the wish would need, the longest untouched first.
    pub holders: Vec<Holder>,
}

/// Whether there is a place. What cannot be had at all comes first, then what the wish's owner can do most about.
///
/// # Errors
/// The first thing that there is not enough of.
pub fn admit(wish: &Wish<'_>, holders: &[Holder], facts: &Facts, limits: &Limits) -> Result<(), Full> {
    let own = holders.iter().find(|holder| holder.app == wish.app && holder.name == wish.name);
    let has = own.map_or(Weight(0), |own| own.weight);
    let promised = own.map_or(0, |own| own.memory);
    if own.is_some() && wish.weight <= has && (limits.overcommit.is_none() || wish.memory <= promised) {
        return Ok(());
    }
    let more = wish.weight.saturating_sub(has);
    let full = |shortage, of: &dyn Fn(&Holder) -> bool| {
        let mut holders: Vec<Holder> =
            holders.iter().filter(|holder| Some(*holder) != own && of(holder)).cloned().collect();
        holders.sort_by_key(|holder| holder.updated_at);
        Err(Full { shortage, weight: wish.weight, holders })
    };
    let taken = |of: &dyn Fn(&Holder) -> bool| holders.iter().filter(|holder| of(holder)).map(|h| h.weight).sum();
    let short = |limit: Weight, taken: Weight| taken.0.saturating_add(more.0) > limit.0;

    if let (Some(limit), Some(owner)) = (limits.per_owner, wish.owner) {
        let of = |holder: &Holder| holder.owner.as_deref() == Some(owner);
        let taken = taken(&of);
        if short(limit, taken) {
            return full(Shortage::Owner { owner: owner.to_owned(), limit, taken }, &of);
        }
    }
    if let Some(limit) = limits.per_app {
        let of = |holder: &Holder| holder.app == wish.app;
        let taken = taken(&of);
        if short(limit, taken) {
            return full(Shortage::App { limit, taken }, &of);
        }
    }
    let everyone = |_: &Holder| true;
    let (limit, taken) = (limits.places, taken(&everyone));
    if short(limit, taken) {
        return full(Shortage::Places { limit, taken }, &everyone);
    }
    if let Some(percent) = limits.overcommit {
        let limit = u64::try_from(u128::from(facts.memory_total) * u128::from(percent) / 100).unwrap_or(u64::MAX);
        let taken = holders.iter().map(|holder| holder.memory).fold(0, u64::saturating_add);
        let more = wish.memory.saturating_sub(promised);
        if taken.saturating_add(more) > limit {
            return full(Shortage::Promised { limit, taken, wanted: wish.memory }, &everyone);
        }
    }
    // What is there has its disk and memory already.
    if own.is_none() {
        if facts.disk_free < limits.free_disk {
            return full(Shortage::Disk { free: facts.disk_free, floor: limits.free_disk }, &everyone);
        }
        if facts.memory_available < limits.free_memory {
            return full(Shortage::Memory { free: facts.memory_available, floor: limits.free_memory }, &everyone);
        }
    }
    Ok(())
}

/// The previews that would have to go for a wish, the longest unused first: those that hold what is short, are not pinned and have
/// nobody at work on them. `None` where that would not help.
#[must_use]
pub fn replaceable(
    wish: &Wish<'_>,
    holders: &[Holder],
    full: &Full,
    facts: &Facts,
    limits: &Limits,
) -> Option<Vec<Holder>> {
    let mut left = holders.to_vec();
    let mut gone = Vec::new();
    for holder in full.holders.iter().filter(|holder| !holder.pinned && !holder.phase.in_flight()) {
        left.retain(|other| other != holder);
        gone.push(holder.clone());
        match admit(wish, &left, facts, limits) {
            Ok(()) => return Some(gone),
            // Only as long as it is about the same: nobody goes for what does not help.
            Err(now) if std::mem::discriminant(&now.shortage) != std::mem::discriminant(&full.shortage) => return None,
            Err(_) => {}
        }
    }
    None
}

/// Who has a place, out of the state files of a survey. A file that cannot be read counts as a usual preview: it may be one.
#[must_use]
pub fn holders(files: &BTreeMap<String, String>) -> Vec<Holder> {
    let states = files.iter().filter(|(path, _)| path.ends_with("/state.json"));
    states
        .map(|(path, text)| match State::parse(path, text) {
            Ok(state) => Holder::from(&state),
            Err(_) => {
                let mut parts = path.rsplit('/').skip(1).map(str::to_owned);
                let (name, app) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                Holder {
                    subject: Subject::Branch(name.clone()),
                    app,
                    name,
                    owner: None,
                    weight: Weight::default(),
                    memory: 0,
                    phase: Phase::Failed,
                    pinned: false,
                    updated_at: Timestamp::UNIX_EPOCH,
                }
            }
        })
        .collect()
}

impl Full {
    /// For people: what to do about it.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match &self.shortage {
            Shortage::Places { limit, .. } | Shortage::Owner { limit, .. } | Shortage::App { limit, .. }
                if self.weight > *limit =>
            {
                "It can never fit: lower `limits.weight`, or raise the limit"
            }
            Shortage::Places { .. } => "Destroy one of them, wait until one goes, or raise `limits.max_previews`",
            Shortage::Owner { .. } => "Destroy one of them, wait until one goes, or raise `limits.max_per_owner`",
            Shortage::App { .. } => "Destroy one of them, wait until one goes, or raise `limits.max_per_app`",
            Shortage::Disk { .. } => {
                "Free some, for example with `docker system df` and `docker image prune -a`, or lower `limits.min_free_disk`"
            }
            Shortage::Promised { limit, wanted, .. } if wanted > limit => {
                "It can never fit: lower the memory limits of its services, or raise `limits.memory_overcommit`"
            }
            Shortage::Promised { .. } => {
                "Destroy one of them, lower the memory limits of the services, or raise `limits.memory_overcommit`"
            }
            Shortage::Memory { .. } => "Destroy one of them, stop something else, or lower `limits.min_free_memory`",
        }
    }

    /// For people: what is missing, and who has it.
    #[must_use]
    pub fn text(&self, now: Timestamp) -> String {
        // Another repository may have written this, and a line of its own would be a command to some CI systems.
        let clean = |text: &str| text.replace(char::is_control, "?");
        let places = |limit: &Weight, taken: &Weight, whose: &str| {
            let wish =
                if self.weight == Weight::default() { String::new() } else { format!(", {} wanted", self.weight) };
            format!("{taken} of {limit} places {whose} are taken{wish}")
        };
        let what = match &self.shortage {
            Shortage::Places { limit, taken } => places(limit, taken, "on the VM"),
            Shortage::Owner { owner, limit, taken } => places(limit, taken, &format!("of {}", clean(owner))),
            Shortage::App { limit, taken } => places(limit, taken, "of this application"),
            Shortage::Disk { free, floor } => {
                format!("{} of disk are free on the VM, a new preview needs {}", about(*free), about(*floor))
            }
            Shortage::Memory { free, floor } => {
                format!("{} of memory are available on the VM, a new preview needs {}", about(*free), about(*floor))
            }
            Shortage::Promised { limit, taken, wanted } => format!(
                "{} of {} of memory are promised to containers by their limits, {} wanted",
                about(*taken),
                about(*limit),
                about(*wanted)
            ),
        };
        let mut text = what;
        if !self.holders.is_empty() {
            let floor = matches!(self.shortage, Shortage::Disk { .. } | Shortage::Memory { .. });
            text.push_str(if floor { "; the previews there:" } else { ", held by" });
        }
        for holder in &self.holders {
            let owner = holder.owner.as_ref().map(|owner| format!(" of {}", clean(owner))).unwrap_or_default();
            let (app, name, subject) = (clean(&holder.app), clean(&holder.name), clean(&holder.subject.to_string()));
            let weight =
                if holder.weight == Weight::default() { String::new() } else { format!(", weight {}", holder.weight) };
            let age = age(holder.updated_at, now);
            let _ = fmt::Write::write_fmt(
                &mut text,
                format_args!("\n  {app} {name}{owner}: {subject}, {}, last deployed {age} ago{weight}", holder.phase),
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
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
}
