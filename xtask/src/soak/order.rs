//! Whether somebody was overtaken, by two looks at the host alone. Knows nothing of how the program decides. Pure.
//!
//! A look is taken under the lock under which places are given away, so it is between two admissions, never inside one. Between two looks
//! several may have come and gone, in an order that nobody saw. So only that is held against the program what follows from
//! both looks, whatever happened between them:
//!
//! - X was *admitted* if it has a state file in the second look and none in the first.
//! - Y *waited* all the time if both looks have its ticket, with the same number, and that is lower than X's; who had no ticket
//!   comes after all who had one, because a new number is higher than all there are.
//! - At the moment of X's admission at least those held places that have a state file in both looks, and X. With these, all Y
//!   together have to fit, the first first: else one of them, which would have fitted before, does not fit any more because of X, or one
//!   that did not fit was passed by. That is overtaking. Who else held a place at that moment only makes the sum larger, so
//!   nothing is found that was not there.
//! - A Y that may have been kept back by limits of its own owner or application is left out. Whether it may have been
//!   is reckoned with everybody who could have counted before X did: the state files of both looks, and the lower tickets.
//!
//! A preview that came and went between the looks would be missed there, and every preview of the load lives longer than
//! [`LONGEST`]: looks that lie further apart are not judged.

use std::collections::{BTreeMap, BTreeSet};

use super::load::{Key, Places, Rules, places};

/// Looks further apart are not judged, seconds.
pub(crate) const LONGEST: f64 = 1.0;

/// What was there at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Look {
    /// Seconds.
    pub(crate) at: f64,
    /// Previews that have containers.
    pub(crate) running: BTreeSet<Key>,
    /// Numbers of those who wait.
    pub(crate) tickets: BTreeMap<Key, u64>,
    /// Phases of those who have a place.
    pub(crate) states: BTreeMap<Key, String>,
}

/// What the harness knows of a preview.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) weight: Places,
    pub(crate) owner: &'static str,
}

/// Who was overtaken, and by whom. `None` where the looks lie too far apart to say.
pub(crate) fn overtaken(before: &Look, after: &Look, known: &BTreeMap<Key, Who>, rules: &Rules) -> Option<Vec<String>> {
    if after.at - before.at > LONGEST {
        return None;
    }
    let weight = |key: &Key| known.get(key).map_or(0, |who| who.weight);
    let owner = |key: &Key| known.get(key).map(|who| who.owner);
    let stayed: Places = before.states.keys().filter(|key| after.states.contains_key(*key)).map(weight).sum();
    let mut waited: Vec<(u64, &Key)> = before
        .tickets
        .iter()
        .filter(|(key, number)| after.tickets.get(*key) == Some(*number) && !after.states.contains_key(*key))
        .map(|(key, number)| (*number, key))
        .collect();
    waited.sort();

    let mut found = Vec::new();
    for admitted in after.states.keys().filter(|key| !before.states.contains_key(*key)) {
        let number = before.tickets.get(admitted).copied().unwrap_or(u64::MAX);
        let mut sum = stayed + weight(admitted);
        for (first, key) in waited.iter().filter(|(first, _)| *first < number) {
            let lower = before.tickets.iter().filter(|(_, other)| *other < first).map(|(key, _)| key);
            let states = before.states.keys().chain(after.states.keys()).filter(|other| *other != admitted);
            let counted: BTreeSet<&Key> = states.chain(lower).collect();
            let with = |of: &dyn Fn(&Key) -> bool| {
                counted.iter().filter(|other| of(other)).map(|other| weight(other)).sum::<Places>() + weight(key)
            };
            if with(&|other| owner(other) == owner(key)) > rules.per_owner
                || with(&|other| other.0 == key.0) > rules.per_app
            {
                continue;
            }
            sum += weight(key);
            if sum > rules.places {
                found.push(format!(
                    "{} {} (ticket {}) was overtaken by {} {} (ticket {}): {} places with it, of {}",
                    key.0,
                    key.1,
                    first,
                    admitted.0,
                    admitted.1,
                    before.tickets.get(admitted).map_or_else(|| "none".to_owned(), u64::to_string),
                    places(sum),
                    places(rules.places)
                ));
                break;
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { places: 4000, per_owner: 3000, per_app: 9000 };

    fn key(name: &str) -> Key {
        ("shop".to_owned(), name.to_owned())
    }

    /// Names say who they are: `h` heavy, `m` medium, `l` light; then the owner.
    fn known() -> BTreeMap<Key, Who> {
        let mut known = BTreeMap::new();
        for (letter, weight) in [("h", 2000), ("m", 1000), ("l", 500)] {
            for owner in ["ada", "bob", "cem"] {
                for number in 1..4 {
                    known.insert(key(&format!("{letter}-{owner}-{number}")), Who { weight, owner });
                }
            }
        }
        known
    }

    fn look(at: f64, states: &[&str], tickets: &[(&str, u64)]) -> Look {
        Look {
            at,
            running: BTreeSet::new(),
            tickets: tickets.iter().map(|(name, number)| (key(name), *number)).collect(),
            states: states.iter().map(|name| (key(name), "ready".to_owned())).collect(),
        }
    }

    fn judge(before: &Look, after: &Look) -> Vec<String> {
        overtaken(before, after, &known(), &RULES).expect("near enough")
    }

    #[test]
    fn a_light_one_that_passes_a_heavy_one_is_found() {
        let waiting = [("h-ada-1", 1), ("l-bob-1", 2)];
        let before = look(0.0, &["h-cem-1", "m-bob-1"], &waiting);
        let after = look(0.2, &["h-cem-1", "m-bob-1", "l-bob-1"], &waiting[..1]);
        let found = judge(&before, &after);
        assert!(
            found.len() == 1 && found[0].contains("h-ada-1 (ticket 1) was overtaken by shop l-bob-1 (ticket 2)"),
            "{found:?}"
        );
        // Nor may who has no ticket.
        assert_eq!(judge(&look(0.0, &["h-cem-1", "m-bob-1"], &waiting[..1]), &after).len(), 1);
        // Somebody who goes meanwhile does not hide it.
        let before = look(0.0, &["h-cem-1", "m-bob-1", "m-bob-2"], &waiting);
        assert_eq!(judge(&before, &after).len(), 1);
    }

    #[test]
    fn who_takes_the_place_of_one_that_would_have_fitted_is_found() {
        let before = look(0.0, &["h-cem-1", "m-bob-1"], &[("m-ada-1", 1), ("m-bob-2", 2)]);
        let after = look(0.2, &["h-cem-1", "m-bob-1", "m-bob-2"], &[("m-ada-1", 1)]);
        assert_eq!(judge(&before, &after).len(), 1);
    }

    #[test]
    fn what_is_in_order_is_not_found() {
        let waiting = [("m-ada-1", 1), ("m-bob-2", 2)];
        // The first first; both; the second where there is room for both.
        let before = look(0.0, &["h-cem-1", "m-bob-1"], &waiting);
        assert!(judge(&before, &look(0.2, &["h-cem-1", "m-bob-1", "m-ada-1"], &waiting[1..])).is_empty());
        let before = look(0.0, &["h-cem-1"], &waiting);
        assert!(judge(&before, &look(0.2, &["h-cem-1", "m-ada-1", "m-bob-2"], &[])).is_empty());
        assert!(judge(&before, &look(0.2, &["h-cem-1", "m-bob-2"], &waiting[..1])).is_empty());
        // Numbers begin again once nobody waits.
        let before = look(0.0, &["h-cem-1", "m-bob-1"], &[("m-bob-2", 7)]);
        assert!(judge(&before, &look(0.2, &["h-cem-1", "m-bob-1", "m-bob-2"], &[("m-ada-1", 1)])).is_empty());
    }

    #[test]
    fn who_may_be_kept_back_by_limits_of_their_own_is_left_out() {
        let waiting = [("h-ada-1", 1), ("m-bob-1", 2)];
        let before = look(0.0, &["h-ada-2", "m-cem-1"], &waiting);
        assert!(judge(&before, &look(0.2, &["h-ada-2", "m-cem-1", "m-bob-1"], &waiting[..1])).is_empty());
        // Also if what keeps it back goes between the looks, before or after the admission.
        assert!(judge(&before, &look(0.2, &["m-cem-1", "m-bob-1"], &waiting[..1])).is_empty());
    }

    #[test]
    fn looks_far_apart_say_nothing() {
        assert_eq!(overtaken(&look(0.0, &[], &[]), &look(1.5, &[], &[]), &known(), &RULES), None);
    }
}
