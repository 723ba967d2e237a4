//! A window of time for heavy work: `02:00-06:30 Europe/Kyiv`. Pure.
//!
//! The hours are those of a clock on a wall in that zone, so the window moves with summer time. Zones are those of the IANA
//! database: the machine's own, or the one that the program brings.

use std::fmt;
use std::str::FromStr;

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde::{Deserialize, Serialize};

/// A window of time, every day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    from: Time,
    to: Time,
    zone: TimeZone,
    name: String,
}

/// A text that is no window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadWindow {
    /// Something else than two times and a zone.
    #[error("is no window of time such as `02:00-06:30 Europe/Kyiv`")]
    Form,
    /// The two times are one.
    #[error("begins when it ends, so it is never open")]
    Empty,
    /// Nobody knows the zone.
    #[error(
        "names a time zone that is not known: `{0}`; names are those of the IANA database, such as `Europe/Kyiv` or `UTC`"
    )]
    Zone(String),
}

impl FromStr for Window {
    type Err = BadWindow;

    fn from_str(text: &str) -> Result<Self, BadWindow> {
        let (hours, zone) = text.split_once(' ').ok_or(BadWindow::Form)?;
        let (from, to) = hours.split_once('-').ok_or(BadWindow::Form)?;
        let time = |text: &str| {
            let (hour, minute) = text.split_once(':').ok_or(BadWindow::Form)?;
            let number = |text: &str| {
                let two = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
                text.parse::<i8>().ok().filter(|_| two).ok_or(BadWindow::Form)
            };
            Time::new(number(hour)?, number(minute)?, 0, 0).map_err(|_| BadWindow::Form)
        };
        let (from, to) = (time(from)?, time(to)?);
        if from == to {
            return Err(BadWindow::Empty);
        }
        let name = zone.trim().to_owned();
        let zone = TimeZone::get(&name).map_err(|_| BadWindow::Zone(name.clone()))?;
        Ok(Self { from, to, zone, name })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from, self.to);
        write!(f, "{:02}:{:02}-{:02}:{:02} {}", from.hour(), from.minute(), to.hour(), to.minute(), self.name)
    }
}

impl TryFrom<String> for Window {
    type Error = BadWindow;

    fn try_from(text: String) -> Result<Self, BadWindow> {
        text.parse()
    }
}

impl From<Window> for String {
    fn from(window: Window) -> Self {
        window.to_string()
    }
}

impl Window {
    /// Whether it is open. It is at its first minute, and is not at its last.
    #[must_use]
    pub fn is_open(&self, now: Timestamp) -> bool {
        let time = now.to_zoned(self.zone.clone()).time();
        if self.from < self.to { self.from <= time && time < self.to } else { self.from <= time || time < self.to }
    }

    /// When it opens next; now, if it is open. A time that a change of the clock leaves out is the first one after it.
    #[must_use]
    pub fn opens(&self, now: Timestamp) -> Timestamp {
        if self.is_open(now) {
            return now;
        }
        let today = now.to_zoned(self.zone.clone()).date();
        for days in 0..3 {
            let opening = today.checked_add(days.days()).ok().and_then(|date| {
                date.to_datetime(self.from).to_zoned(self.zone.clone()).ok().map(|zoned| zoned.timestamp())
            });
            if let Some(opening) = opening.filter(|opening| *opening >= now) {
                return opening;
            }
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_night_in_kyiv_in_winter_and_in_summer() {
        let window: Window = "02:00-06:30 Europe/Kyiv".parse().unwrap();
        for (now, open) in [
            ("2026-01-10T00:00:00Z", true),
            ("2026-01-10T04:29:59Z", true),
            ("2026-01-10T04:30:00Z", false),
            ("2026-01-09T23:59:59Z", false),
            ("2026-07-10T03:29:00Z", true),
            ("2026-07-10T03:30:00Z", false),
        ] {
            assert_eq!(window.is_open(at(now)), open, "{now}");
        }
        assert_eq!(window.opens(at("2026-01-10T12:00:00Z")), at("2026-01-11T00:00:00Z"));
        assert_eq!(window.opens(at("2026-01-10T01:00:00Z")), at("2026-01-10T01:00:00Z"));
        assert_eq!(window.opens(at("2026-01-09T23:00:00Z")), at("2026-01-10T00:00:00Z"));
    }

    #[test]
    fn over_midnight_and_over_a_change_of_the_clock() {
        let window: Window = "22:00-04:00 UTC".parse().unwrap();
        assert!(window.is_open(at("2026-01-10T23:00:00Z")) && window.is_open(at("2026-01-10T03:59:00Z")));
        assert_eq!(window.opens(at("2026-01-10T04:00:00Z")), at("2026-01-10T22:00:00Z"));
        // 02:30 does not exist in Berlin that night.
        let window: Window = "02:30-05:00 Europe/Berlin".parse().unwrap();
        assert_eq!(window.opens(at("2026-03-29T00:00:00Z")), at("2026-03-29T01:30:00Z"));
    }

    #[test]
    fn what_is_no_window_says_why() {
        for text in
            ["", "02:00", "02:00-06:30", "2:00-06:30 UTC", "02:00-24:30 UTC", "02.00-06.30 UTC", "02:00 - 06:30 UTC"]
        {
            assert_eq!(text.parse::<Window>(), Err(BadWindow::Form), "{text}");
        }
        assert_eq!("02:00-02:00 UTC".parse::<Window>(), Err(BadWindow::Empty));
        assert!(matches!("02:00-03:00 Europe/Nowhere".parse::<Window>(), Err(BadWindow::Zone(_))));
        let text = "22:00-04:05 UTC";
        assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
    }
}
