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

    /// How many times this is in it, whole.
    #[must_use]
    pub fn times(self, other: Self) -> u64 {
        self.0.checked_div(other.0).map_or(0, u64::from)
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
mod tests;
