//! The queue for places: first come, first served, within each owner's own limits. Pure.
//!
//! Who waits has a ticket: a file in the preview's directory, as long as its run holds the preview's lock. A ticket with a free lock
//! is of a dead run and counts for nothing.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::admission::{self, Full, Holder, Limits, Shortage, Weight, Wish};
use crate::host::Facts;
use crate::state::{Phase, Subject};

/// The ticket's file in the preview's directory.
pub const TICKET: &str = "queue.json";

/// The file below the base directory that changes when something becomes free.
pub const FREED: &str = ".freed";

/// Somebody who waits for a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Who comes first has the lower number.
    pub number: u64,
    /// The application.
    pub app: String,
    /// The preview.
    pub name: String,
    /// What it is of.
    pub subject: Subject,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// How many places it takes.
    pub weight: Weight,
    /// What its containers may take at most in all, bytes.
    #[serde(default)]
    pub memory: u64,
    /// Since when it waits, on the host's clock.
    pub since: Timestamp,
}

impl Ticket {
    /// Its content.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        crate::state::line(self)
    }

    /// What it waits for.
    #[must_use]
    pub fn wish(&self) -> Wish<'_> {
        Wish {
            app: &self.app,
            name: &self.name,
            owner: self.owner.as_deref(),
            weight: self.weight,
            memory: self.memory,
        }
    }

    fn is_of(&self, wish: &Wish<'_>) -> bool {
        self.app == wish.app && self.name == wish.name
    }
}

/// The pattern of all tickets below the base directory.
#[must_use]
pub fn pattern() -> String {
    format!("*/*/{TICKET}")
}

/// The tickets in the joined text of their files, the first first. What cannot be read is none.
#[must_use]
pub fn tickets(joined: &str) -> Vec<Ticket> {
    let mut all: Vec<Ticket> = joined.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    all.sort_by(|a, b| (a.number, &a.app, &a.name).cmp(&(b.number, &b.app, &b.name)));
    all
}

/// The number of the next ticket.
#[must_use]
pub fn next(tickets: &[Ticket]) -> u64 {
    tickets.last().map_or(1, |last| last.number.saturating_add(1))
}

/// Why it is not one's turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// So many come first.
    pub ahead: Vec<Ticket>,
    /// Those of them who have to move before it can be this one's turn: not those whom limits keep back that are not this one's.
    pub near: Vec<Ticket>,
    /// What there is not enough of, who comes first taken as there already.
    pub full: Full,
    /// There would be room, if it were not for those who come first.
    pub behind: bool,
}

/// Whether it is this one's turn. Who has no ticket yet comes after all who have one.
///
/// Who comes first and would fit is taken as there already; who comes first and does not fit holds up all who come later, unless it is
/// kept back by limits of its own owner or application alone: so a heavy one is not overtaken for ever by light ones.
///
/// # Errors
/// Why not.
pub fn turn(
    wish: &Wish<'_>,
    tickets: &[Ticket],
    holders: &[Holder],
    facts: &Facts,
    limits: &Limits,
) -> Result<(), Box<Wait>> {
    let own = tickets.iter().find(|ticket| ticket.is_of(wish)).map_or(u64::MAX, |ticket| ticket.number);
    let first: Vec<&Ticket> = tickets.iter().filter(|ticket| ticket.number < own && !ticket.is_of(wish)).collect();
    let (mut then, mut near, mut blocked) = (holders.to_vec(), Vec::new(), None);
    for ticket in &first {
        let admitted = admission::admit(&ticket.wish(), &then, facts, limits);
        let matters = match &admitted {
            Err(Full { shortage: Shortage::Owner { .. }, .. }) => ticket.owner.as_deref() == wish.owner,
            Err(Full { shortage: Shortage::App { .. }, .. }) => ticket.app == wish.app,
            _ => true,
        };
        if matters {
            near.push((*ticket).clone());
        }
        match admitted {
            Err(Full { shortage: Shortage::Owner { .. } | Shortage::App { .. }, .. }) => {}
            _ if blocked.is_some() => {}
            Err(full) => blocked = Some(full),
            Ok(()) => {
                then.retain(|holder| holder.app != ticket.app || holder.name != ticket.name);
                then.push(Holder {
                    app: ticket.app.clone(),
                    name: ticket.name.clone(),
                    subject: ticket.subject.clone(),
                    owner: ticket.owner.clone(),
                    weight: ticket.weight,
                    memory: ticket.memory,
                    phase: Phase::Queued,
                    pinned: false,
                    updated_at: ticket.since,
                });
            }
        }
    }
    let full = match blocked.map_or_else(|| admission::admit(wish, &then, facts, limits), Err) {
        Ok(()) => return Ok(()),
        Err(full) => full,
    };
    let own = admission::admit(wish, holders, facts, limits);
    let behind = own.is_ok();
    let ahead = first.into_iter().cloned().collect();
    Err(Box::new(Wait { ahead, near, full: own.err().unwrap_or(full), behind }))
}

impl Wait {
    /// What is worth saying again when it has changed: ages change all the time.
    #[must_use]
    pub fn gist(&self) -> String {
        let holders: Vec<String> =
            self.full.holders.iter().map(|holder| format!("{} {}", holder.app, holder.name)).collect();
        format!("{} {} {}", self.ahead.len(), self.behind, holders.join(","))
    }

    /// For people: one's place in the queue, and what one waits for.
    #[must_use]
    pub fn text(&self, now: Timestamp) -> String {
        let position = self.ahead.len() + 1;
        if self.behind {
            let first: Vec<String> =
                self.ahead.iter().map(|ticket| format!("{} {}", ticket.app, ticket.name)).collect();
            return format!("position {position} in the queue, behind {}", first.join(", "))
                .replace(char::is_control, "?");
        }
        format!("position {position} in the queue: {}", self.full.text(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        places: Weight::places(3),
        per_owner: Some(Weight::places(2)),
        per_app: None,
        free_disk: 0,
        free_memory: 0,
        overcommit: None,
    };

    fn at() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn ticket(number: u64, name: &str, owner: &str, weight: f64) -> Ticket {
        Ticket {
            number,
            app: "shop".to_owned(),
            name: name.to_owned(),
            subject: Subject::Pull(number),
            owner: Some(owner.to_owned()),
            weight: Weight::try_from(weight).unwrap(),
            memory: 0,
            since: at(),
        }
    }

    fn holder(name: &str, owner: &str, weight: f64) -> Holder {
        let Ticket { app, name, subject, owner, weight, memory, since, .. } = ticket(0, name, owner, weight);
        Holder { app, name, subject, owner, weight, memory, phase: Phase::Ready, pinned: false, updated_at: since }
    }

    fn ask(me: &Ticket, tickets: &[Ticket], holders: &[Holder]) -> Result<(), Box<Wait>> {
        turn(&me.wish(), tickets, holders, &Facts::default(), &LIMITS)
    }

    #[test]
    fn first_come_first_served() {
        let held = [holder("a", "ada", 2.0)];
        let (one, two) = (ticket(1, "b", "bob", 1.0), ticket(2, "c", "cem", 1.0));
        let tickets = [one.clone(), two.clone()];
        assert_eq!(ask(&one, &tickets, &held), Ok(()));
        let wait = ask(&two, &tickets, &held).unwrap_err();
        assert!(wait.behind && wait.ahead == [one.clone()], "{wait:?}");
        assert_eq!(wait.text(at()), "position 2 in the queue, behind shop b");
        // Where there is room for both, nobody waits for the other to move.
        assert_eq!(ask(&two, &tickets, &[]), Ok(()));
        // Who has no ticket comes last.
        assert!(ask(&ticket(0, "new", "dan", 1.0), &[one], &held).is_err());
    }

    #[test]
    fn a_heavy_one_is_not_overtaken() {
        let held = [holder("a", "ada", 2.0)];
        let (heavy, light) = (ticket(1, "h", "bob", 2.0), ticket(2, "l", "cem", 0.5));
        let tickets = [heavy.clone(), light.clone()];
        let wait = ask(&heavy, &tickets, &held).unwrap_err();
        assert!(!wait.behind && wait.ahead.is_empty());
        assert!(wait.text(at()).starts_with("position 1 in the queue: 2 of 3 places on the VM are taken, 2 wanted"));
        assert!(ask(&light, &tickets, &held).unwrap_err().behind);
    }

    #[test]
    fn who_is_kept_back_by_limits_of_their_own_keeps_nobody_back() {
        let held = [holder("a", "ada", 1.0), holder("b", "ada", 1.0)];
        let (third, other) = (ticket(1, "c", "ada", 1.0), ticket(2, "d", "bob", 1.0));
        let tickets = [third.clone(), other.clone()];
        let wait = ask(&third, &tickets, &held).unwrap_err();
        assert!(matches!(wait.full.shortage, Shortage::Owner { .. }));
        assert_eq!(ask(&other, &tickets, &held), Ok(()));

        // Only those count as in front who have to move first.
        let tickets = [third.clone(), ticket(2, "e", "ada", 1.0), other.clone(), ticket(4, "f", "eve", 1.0)];
        let full = [held.as_slice(), &[holder("g", "gil", 1.0)]].concat();
        let near = |number: usize| ask(&tickets[number], &tickets, &full).unwrap_err().near.len();
        assert_eq!([near(0), near(1), near(2), near(3)], [0, 1, 0, 1]);
    }

    #[test]
    fn an_update_that_grows_waits_for_the_difference() {
        let held = [holder("a", "ada", 1.0), holder("b", "bob", 2.0)];
        let grow = ticket(1, "a", "ada", 2.0);
        assert!(ask(&grow, std::slice::from_ref(&grow), &held).is_err());
        assert_eq!(ask(&grow, std::slice::from_ref(&grow), &held[..1]), Ok(()));
        // What it has already is not counted twice for those behind.
        let next = ticket(2, "c", "cem", 1.0);
        assert_eq!(ask(&next, &[grow, next.clone()], &held[..1]), Ok(()));
    }

    #[test]
    fn tickets_are_read_in_order() {
        let file = |ticket: &Ticket| String::from_utf8(ticket.to_json()).unwrap();
        let (one, two) = (ticket(1, "b", "bob", 1.0), ticket(2, "a", "cem", 1.0));
        let tickets = tickets(&format!("{}{{\n{}", file(&two), file(&one)));
        assert_eq!(tickets, [one, two]);
        assert_eq!((next(&tickets), next(&[])), (3, 1));
    }
}
