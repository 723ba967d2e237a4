//! Sizes and lengths of time as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Why a text is no size or no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// A number without its unit.
    #[error("`{0}` has no unit: write `{0}{1}`, for example")]
    NoUnit(String, &'static str),
    /// Something else than a number and a unit.
    #[error("`{0}` is not {1}")]
    Form(String, &'static str),
    /// More than 64 bits can hold.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

const TIME: &str = "a length of time such as `90s`, `15m`, `72h` or `1h30m`";
const TTL: &str = "a length of time such as `72h` or `7d`, or `never`";
const SIZE: &str = "a size such as `512MB`, `1.5GB` or `1GiB`";

/// A length of time in whole seconds: `90s`, `15m`, `72h`, `3d`, `1h30m`.
///
/// Units are d, h, m and s, the larger first, each at most once. It is printed in h, m and s, and what is printed reads as the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeSpan(u64);

impl TimeSpan {
    /// So many seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds)
    }

    /// So many minutes.
    #[must_use]
    pub const fn from_mins(minutes: u32) -> Self {
        Self(minutes as u64 * 60)
    }

    /// In seconds.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0
    }

    /// As the standard library has it.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }

    /// Whether it is no time at all.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl From<TimeSpan> for Duration {
    fn from(span: TimeSpan) -> Self {
        span.duration()
    }
}

/// Ten years: what is added up of such times is still a time.
const LONGEST: u64 = 10 * 365 * 86_400;

impl FromStr for TimeSpan {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let form = || UnitError::Form(shown(text), TIME);
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(UnitError::NoUnit(shown(text), "m"));
        }
        let (mut total, mut rest, mut above) = (0_u64, text, u64::MAX);
        while !rest.is_empty() {
            let unit = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(form)?;
            let number = &rest[..unit];
            let seconds = match rest.as_bytes()[unit] {
                b'd' => 86_400,
                b'h' => 3_600,
                b'm' => 60,
                b's' => 1,
                _ => return Err(form()),
            };
            if number.is_empty() || seconds >= above {
                return Err(form());
            }
            let too_large = || UnitError::TooLarge(shown(text));
            let number: u64 = number.parse().map_err(|_| too_large())?;
            total = number.checked_mul(seconds).and_then(|part| total.checked_add(part)).ok_or_else(too_large)?;
            (rest, above) = (&rest[unit + 1..], seconds);
        }
        if total > LONGEST {
            return Err(UnitError::TooLarge(shown(text)));
        }
        if text.is_empty() { Err(form()) } else { Ok(Self(total)) }
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [(self.0 / 3_600, "h"), (self.0 / 60 % 60, "m"), (self.0 % 60, "s")];
        for (number, unit) in parts.into_iter().filter(|(number, _)| *number > 0) {
            write!(f, "{number}{unit}")?;
        }
        if self.0 == 0 { f.write_str("0s") } else { Ok(()) }
    }
}

/// How long something is kept: a [`TimeSpan`] that is more than none, or `never`, for which nothing ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ttl(pub Option<TimeSpan>);

impl FromStr for Ttl {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text == "never" {
            return Ok(Self(None));
        }
        let form = |_| UnitError::Form(shown(text), TTL);
        match text.parse::<TimeSpan>().map_err(form)? {
            span if span.is_zero() => Err(UnitError::Form(shown(text), TTL)),
            span => Ok(Self(Some(span))),
        }
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(span) => span.fmt(f),
            None => f.write_str("never"),
        }
    }
}

/// Three days.
impl Default for Ttl {
    fn default() -> Self {
        Self(Some(TimeSpan::from_secs(72 * 3600)))
    }
}

/// A size in bytes: `512MB`, `1.5GB`, `64KiB`.
///
/// As in Docker and Compose, units are powers of 1024, whether written `MB`, `MiB` or `M`, in upper or lower case: `512MB` is what
/// Docker calls `512m`. It is printed with the largest unit that divides it, and what is printed reads as the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(u64);

impl ByteSize {
    /// So many bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many times 1024 × 1024 bytes.
    #[must_use]
    pub const fn from_mb(mb: u32) -> Self {
        Self((mb as u64) << 20)
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let form = || UnitError::Form(shown(text), SIZE);
        let too_large = || UnitError::TooLarge(shown(text));
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let (whole, fraction) = match number.split_once('.') {
            None => (number, None),
            Some((whole, fraction)) => (whole, Some(fraction)),
        };
        if whole.is_empty()
            || fraction.is_some_and(|digits| digits.is_empty() || digits.len() > 6 || digits.contains('.'))
        {
            return Err(form());
        }
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" => return Err(UnitError::NoUnit(shown(text), "MB")),
            "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(form()),
        };
        let whole: u64 = whole.parse().map_err(|_| too_large())?;
        let fraction = fraction.unwrap_or("0");
        let parts: u64 = fraction.parse().map_err(|_| form())?;
        // Six digits and forty bits stay within 64 bits.
        let fraction = (parts << shift) / 10_u64.pow(u32::try_from(fraction.len()).unwrap_or(6));
        let bytes =
            whole.checked_mul(1 << shift).and_then(|bytes| bytes.checked_add(fraction)).ok_or_else(too_large)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TB"), (30, "GB"), (20, "MB"), (10, "KB"), (0, "B")];
        let (shift, unit) =
            units.into_iter().find(|(shift, _)| self.0 > 0 && self.0.trailing_zeros() >= *shift).unwrap_or((0, "B"));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

/// Enough of a text for a message.
fn shown(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_debug).collect()
}

macro_rules! text {
    ($name:ident, $schema:literal, $pattern:literal) => {
        impl TryFrom<String> for $name {
            type Error = UnitError;

            fn try_from(text: String) -> Result<Self, UnitError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $schema.into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}

text!(Ttl, "Ttl", "^(never|(?=.)([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?)$");
text!(TimeSpan, "TimeSpan", "^(?=.)([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$");
text!(ByteSize, "ByteSize", "^[0-9]+(\\.[0-9]{1,6})?([bB]|[kKmMgGtT]([iI]?[bB])?)$");

/// How long ago, in one unit.
#[must_use]
pub fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes with one decimal at most, for people.
#[must_use]
pub fn about(bytes: u64) -> String {
    let mb = bytes >> 20;
    if mb >= 1024 { format!("{}.{} GB", mb >> 10, (mb & 1023) * 10 / 1024) } else { format!("{mb} MB") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_of_time() {
        for (text, seconds, printed) in [
            ("90s", 90, "1m30s"),
            ("15m", 900, "15m"),
            ("72h", 259_200, "72h"),
            ("3d", 259_200, "72h"),
            ("1h30m", 5_400, "1h30m"),
            ("0s", 0, "0s"),
        ] {
            let span: TimeSpan = text.parse().unwrap();
            assert_eq!((span.as_secs(), span.to_string().as_str()), (seconds, printed), "{text}");
        }
        for bad in [
            "",
            "m",
            "15",
            "15 m",
            "1m1h",
            "1h1h",
            "-5s",
            "1.5h",
            "1ms",
            "15min",
            "5é",
            "99999999999999999999s",
            "9999999999999999999d",
        ] {
            assert!(bad.parse::<TimeSpan>().is_err(), "{bad}");
        }
        assert_eq!("15".parse::<TimeSpan>().unwrap_err().to_string(), "`15` has no unit: write `15m`, for example");
    }

    #[test]
    fn sizes() {
        for (text, bytes, printed) in [
            ("512MB", 512 << 20, "512MB"),
            ("512m", 512 << 20, "512MB"),
            ("1GiB", 1 << 30, "1GB"),
            ("1.5GB", 1536 << 20, "1536MB"),
            ("64kb", 64 << 10, "64KB"),
            ("1000B", 1000, "1000B"),
            ("0b", 0, "0B"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, printed), "{text}");
        }
        for bad in [
            "",
            "MB",
            "512",
            "1,5GB",
            "1.GB",
            ".5GB",
            "1.5.5GB",
            "5 MB",
            "5mbit",
            "-1MB",
            "99999999999999999999B",
            "99999999999TB",
        ] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_as_the_same(number in any::<u64>(), shift in 0_u32..64) {
            let (span, size) = (TimeSpan::from_secs((number >> shift) % (LONGEST + 1)), ByteSize::from_bytes(number >> shift << shift));
            prop_assert_eq!(span.to_string().parse::<TimeSpan>(), Ok(span));
            prop_assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
        }

        #[test]
        fn nothing_panics(text in "\\PC{0,20}|[0-9.]{0,22}[a-zA-Z]{0,3}") {
            let _ = (text.parse::<TimeSpan>(), text.parse::<ByteSize>());
        }
    }
}
