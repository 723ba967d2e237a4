//! Which of two runs is the later one: a run of an earlier event changes nothing after a later one, and a close wins. Pure.
//!
//! Runs of one preview may start in any order: CI systems queue, and people press "re-run". What decides is when the event
//! happened that a run is for, on the forge's clock. A run that no event asked for (by hand) is as late as its begin, on the
//! host's clock, and follows whatever was deployed. Seconds between the two clocks do no harm: events of one preview come from one forge.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::state::State;

/// The directory of tombstones below the base directory. No application's name begins with a dot.
pub const TOMBSTONES: &str = ".tombstones";

/// So long a tombstone is kept: CI systems end a run that has waited or gone on for 35 days, at the latest.
pub const KEPT: SignedDuration = SignedDuration::from_hours(35 * 24);

/// Why a preview went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// An event said so: runs of events before it come too late, whenever they start.
    Closed,
    /// Somebody wants it gone, and waits for who is at work on it: whoever began before has to stop. Goes with the wish.
    Wanted,
}

/// Says that a preview went, or is to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Why.
    pub cause: Cause,
    /// When: that of the event, on the forge's clock; else of the wish, on the host's.
    pub at: Timestamp,
    /// Who.
    pub who: String,
}

impl Tombstone {
    /// Its file: each has its own, so that none takes another's place. `token` tells wishes apart.
    #[must_use]
    pub fn path(&self, base: &str, app: &str, name: &str, token: &str) -> String {
        let file = match self.cause {
            Cause::Closed => self.at.as_millisecond().to_string(),
            Cause::Wanted => format!("wanted-{token}"),
        };
        format!("{base}/{TOMBSTONES}/{app}/{name}@{file}.json")
    }

    /// Its content.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        crate::state::line(self)
    }
}

/// The pattern, below the base directory, of a preview's tombstones.
#[must_use]
pub fn pattern(app: &str, name: &str) -> String {
    format!("{TOMBSTONES}/{app}/{name}@*.json")
}

/// The application and name in a tombstone's path.
#[must_use]
pub fn of_path(path: &str) -> Option<(&str, &str)> {
    let (directory, file) = path.rsplit_once('/')?;
    let (above, app) = directory.rsplit_once('/')?;
    let (name, _) = file.split_once('@')?;
    above.ends_with(TOMBSTONES).then_some((app, name))
}

/// The tombstones of a preview in a survey's files. What cannot be read is no tombstone.
#[must_use]
pub fn tombstones(files: &BTreeMap<String, String>, app: &str, name: &str) -> Vec<Tombstone> {
    let own = files.iter().filter(|(path, _)| of_path(path) == Some((app, name)));
    own.filter_map(|(_, text)| serde_json::from_str(text).ok()).collect()
}

/// When a run counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// When the event happened that the run is for.
    pub event: Option<Timestamp>,
    /// When the run began, on the host's clock.
    pub begun: Timestamp,
}

impl Order {
    /// What is compared with a close.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        self.event.unwrap_or(self.begun)
    }

    /// What later runs are compared with. It never goes back: the host's clock is read in whole seconds.
    #[must_use]
    pub fn after(&self, before: Option<Timestamp>) -> Timestamp {
        before.map_or(self.at(), |before| before.max(self.at()))
    }
}

/// A run that comes too late, and what came before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "by", content = "detail")]
pub enum Superseded {
    /// The preview is closed.
    #[error("it was closed at {} by {}, and this run is for an event {}", .tombstone.at, clean(&.tombstone.who), of(*.event))]
    Closed {
        /// The close.
        tombstone: Tombstone,
        /// When the run's own event was.
        event: Timestamp,
    },
    /// Somebody wants it gone.
    #[error("{} asked at {} for it to be destroyed", clean(&.0.who), .0.at)]
    Wanted(Tombstone),
    /// A later run was here.
    #[error("a run for a later event ({later}) was here before, and this one is for an event {}", of(*.event))]
    Newer {
        /// When that run's event was.
        later: Timestamp,
        /// When the run's own event was.
        event: Timestamp,
    },
}

fn of(event: Timestamp) -> String {
    format!("of {event}")
}

/// Others wrote this, and a line of its own would be a command to some CI systems.
fn clean(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// Whether a deploy may go on, after these tombstones and this state.
///
/// # Errors
/// What came before it.
pub fn deploy(order: &Order, state: Option<&State>, tombstones: &[Tombstone]) -> Result<(), Superseded> {
    let event = order.at();
    let wins = |tombstone: &&Tombstone| match tombstone.cause {
        Cause::Closed => tombstone.at >= event,
        Cause::Wanted => tombstone.at >= order.begun,
    };
    if let Some(tombstone) = tombstones.iter().filter(wins).max_by_key(|tombstone| tombstone.at) {
        let tombstone = tombstone.clone();
        return Err(match tombstone.cause {
            Cause::Closed => Superseded::Closed { tombstone, event },
            Cause::Wanted => Superseded::Wanted(tombstone),
        });
    }
    match order.event {
        Some(event) => newer(event, state),
        // A wish of now comes after whatever was.
        None => Ok(()),
    }
}

/// Whether a destroy for an event may go on: not if the preview was deployed for a later one.
///
/// # Errors
/// What came before it.
pub fn destroy(event: Timestamp, state: Option<&State>) -> Result<(), Superseded> {
    newer(event, state)
}

fn newer(event: Timestamp, state: Option<&State>) -> Result<(), Superseded> {
    match state.and_then(|state| state.event_at) {
        Some(later) if later > event => Err(Superseded::Newer { later, event }),
        _ => Ok(()),
    }
}

/// Whether a preview that stands was closed after its last deploy: its destroy died.
#[must_use]
pub fn closed<'a>(state: &State, tombstones: &'a [Tombstone]) -> Option<&'a Tombstone> {
    let event = state.event_at.unwrap_or(state.updated_at);
    tombstones.iter().find(|tombstone| tombstone.cause == Cause::Closed && tombstone.at >= event)
}

/// Whether a tombstone has been there long enough. A wish lives as long as its run, which is never a day.
#[must_use]
pub fn past(tombstone: &Tombstone, now: Timestamp) -> bool {
    let kept = match tombstone.cause {
        Cause::Closed => KEPT,
        Cause::Wanted => SignedDuration::from_hours(24),
    };
    now.duration_since(tombstone.at) > kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + minute * 60).unwrap()
    }

    fn order(event: i64, begun: i64) -> Order {
        Order { event: Some(at(event)), begun: at(begun) }
    }

    fn by_hand(begun: i64) -> Order {
        Order { event: None, begun: at(begun) }
    }

    fn tombstone(cause: Cause, minute: i64) -> Tombstone {
        Tombstone { cause, at: at(minute), who: "ada".to_owned() }
    }

    fn state(event: i64) -> State {
        let mut state = crate::state::tests::state();
        state.event_at = Some(at(event));
        state
    }

    #[test]
    fn a_close_wins_over_what_happened_before_it_whenever_that_starts() {
        let closed = [tombstone(Cause::Closed, 10)];
        for (event, begun) in [(9, 8), (9, 60), (10, 60)] {
            let late = deploy(&order(event, begun), None, &closed).unwrap_err();
            assert!(matches!(late, Superseded::Closed { .. }), "{late}");
        }
        assert_eq!(deploy(&order(11, 12), None, &closed), Ok(()), "opened again");
        assert_eq!(deploy(&by_hand(11), None, &closed), Ok(()), "by hand, afterwards");
        assert!(deploy(&by_hand(9), None, &closed).is_err(), "by hand, before");
    }

    #[test]
    fn of_several_closes_the_last_counts() {
        let closed = [tombstone(Cause::Closed, 20), tombstone(Cause::Closed, 10)];
        assert!(deploy(&order(15, 30), None, &closed).is_err());
        assert_eq!(deploy(&order(21, 30), None, &closed), Ok(()));
    }

    #[test]
    fn who_wants_it_gone_stops_only_those_who_began_before() {
        let wanted = [tombstone(Cause::Wanted, 10)];
        assert!(matches!(deploy(&order(1, 9), None, &wanted), Err(Superseded::Wanted(_))));
        assert_eq!(deploy(&order(1, 11), None, &wanted), Ok(()), "a re-run of the same event is a new wish");
    }

    #[test]
    fn an_older_run_never_follows_a_newer_one() {
        assert!(matches!(deploy(&order(9, 60), Some(&state(10)), &[]), Err(Superseded::Newer { .. })));
        assert_eq!(deploy(&order(10, 60), Some(&state(10)), &[]), Ok(()), "the same event once more");
        assert_eq!(deploy(&order(11, 60), Some(&state(10)), &[]), Ok(()));
        assert_eq!(deploy(&by_hand(9), Some(&state(10)), &[]), Ok(()), "clocks differ, and a person wants it now");
        assert_eq!((by_hand(9).after(Some(at(10))), by_hand(9).after(None)), (at(10), at(9)));
        assert!(matches!(destroy(at(9), Some(&state(10))), Err(Superseded::Newer { .. })), "opened again since");
        assert_eq!(destroy(at(10), Some(&state(10))), Ok(()), "the close wins a tie");
        assert_eq!(destroy(at(1), None), Ok(()));
    }

    #[test]
    fn a_destroy_that_died_shows() {
        assert!(closed(&state(10), &[tombstone(Cause::Closed, 10)]).is_some());
        assert!(closed(&state(10), &[tombstone(Cause::Closed, 9)]).is_none());
        assert!(closed(&state(10), &[tombstone(Cause::Wanted, 11)]).is_none());
    }

    #[test]
    fn paths_lead_back_to_the_preview_and_none_is_a_state_file() {
        let path = tombstone(Cause::Closed, 0).path("/base", "shop", "state", "t");
        assert_eq!(path, "/base/.tombstones/shop/state@1800000000000.json");
        assert_eq!(of_path(&path), Some(("shop", "state")));
        let path = tombstone(Cause::Wanted, 0).path("/base", "shop", "pr-7", "t");
        assert_eq!(of_path(&path), Some(("shop", "pr-7")));
        assert_eq!(of_path("/base/shop/pr-7/state.json"), None);
        let files = BTreeMap::from([(path, String::from_utf8(tombstone(Cause::Wanted, 3).to_json()).unwrap())]);
        assert_eq!(tombstones(&files, "shop", "pr-7"), [tombstone(Cause::Wanted, 3)]);
        assert_eq!(tombstones(&files, "shop", "pr-70"), []);
    }

    #[test]
    fn tombstones_last_longer_than_any_run() {
        assert!(!past(&tombstone(Cause::Closed, 0), at(34 * 24 * 60)));
        assert!(past(&tombstone(Cause::Closed, 0), at(36 * 24 * 60)));
        assert!(past(&tombstone(Cause::Wanted, 0), at(25 * 60)));
    }
}
