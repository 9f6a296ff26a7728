//! Days, by which the index is cut into slices.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::Offset;

use crate::time::UnixNanos;

/// A UTC day. Printed as slices of an index are named, `2026-01-31`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Day(Date);

/// A text is not a day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a day: write 2026-01-31")]
pub struct DayError {
    text: String,
}

const SECONDS: u64 = 86_400;

impl Day {
    /// The day of this time.
    pub fn of(time: UnixNanos) -> Self {
        Self(Offset::UTC.to_datetime(time.timestamp()).date())
    }

    /// So many days earlier; the first day of all if there is none.
    pub fn minus(self, days: u64) -> Self {
        Self(self.0.saturating_sub(Duration::from_secs(days.saturating_mul(SECONDS))))
    }

    /// So many days later; the last day of all if there is none.
    pub fn plus(self, days: u64) -> Self {
        Self(self.0.saturating_add(Duration::from_secs(days.saturating_mul(SECONDS))))
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for Day {
    type Err = DayError;
    fn from_str(text: &str) -> Result<Self, DayError> {
        parse(text).ok_or_else(|| DayError { text: text.to_owned() })
    }
}

/// Only as it is written: it becomes a part of names. By hand, since every record on the bus bears one.
fn parse(text: &str) -> Option<Day> {
    let [y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1] = *text.as_bytes() else { return None };
    let number = |digits: &[u8]| {
        digits
            .iter()
            .try_fold(0, |number: i16, digit| Some(number * 10 + i16::from(char::from(*digit).to_digit(10)? as u8)))
    };
    let (year, month, day) = (number(&[y0, y1, y2, y3])?, number(&[m0, m1])?, number(&[d0, d1])?);
    Date::new(year, month as i8, day as i8).ok().map(Day)
}

impl From<Day> for String {
    fn from(day: Day) -> Self {
        day.to_string()
    }
}

impl TryFrom<String> for Day {
    type Error = DayError;
    fn try_from(text: String) -> Result<Self, DayError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_slices() {
        let time: UnixNanos = "2026-02-28T23:59:59.999Z".parse().unwrap();
        let day = Day::of(time);
        assert_eq!(day.to_string(), "2026-02-28");
        assert_eq!((day.plus(1).to_string(), day.minus(59).to_string()), ("2026-03-01".into(), "2025-12-31".into()));
        assert_eq!("2026-02-28".parse(), Ok(day));
        assert_eq!(Day::of(UnixNanos(i64::MIN)).to_string(), "1677-09-21");
        assert_eq!(Day::of(UnixNanos(i64::MAX)).to_string(), "2262-04-11");
        assert!(day < day.plus(1) && day.plus(u64::MAX) > day && day.minus(u64::MAX) < day);
        for bad in ["", "2026-02-30", "2026-2-3", "2026-02-28T00:00", "20260228"] {
            assert!(bad.parse::<Day>().is_err(), "{bad}");
        }
    }
}
