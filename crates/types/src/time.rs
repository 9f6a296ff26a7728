//! Wall-clock time as data. Nothing in logmesh orders events or measures a time-out by it.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use crate::day::Day;
use crate::unit::Span;

/// Nanoseconds since the Unix epoch, UTC. Printed as RFC 3339 with nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct UnixNanos(pub i64);

/// A text is not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a time of the years 1678 to 2261: write RFC 3339 (2026-01-31T12:00:00Z), a day (2026-01-31), now, or now-1h"
)]
pub struct TimeError {
    text: String,
}

impl UnixNanos {
    /// The present time.
    pub fn now() -> Self {
        Self::from(Timestamp::now())
    }

    /// Reads RFC 3339, a day (its beginning in UTC), `now` or `now-1h`, the latter against the given present.
    pub fn parse_at(text: &str, now: UnixNanos) -> Result<Self, TimeError> {
        let error = || TimeError { text: text.to_owned() };
        if let Some(rest) = text.trim().strip_prefix("now") {
            if rest.is_empty() {
                return Ok(now);
            }
            let (back, span) = match rest.split_at_checked(1) {
                Some(("-", span)) => (true, span),
                Some(("+", span)) => (false, span),
                _ => return Err(error()),
            };
            let span: Span = span.parse().map_err(|_| error())?;
            let nanos = i64::try_from(span.0.as_nanos()).map_err(|_| error())?;
            let at = if back { now.0.checked_sub(nanos) } else { now.0.checked_add(nanos) };
            return at.map(Self).ok_or_else(error);
        }
        if let Ok(day) = text.trim().parse::<Day>() {
            return format!("{day}T00:00:00Z").parse();
        }
        let time: Timestamp = text.trim().parse().map_err(|_| error())?;
        i64::try_from(time.as_nanosecond()).map(Self).map_err(|_| error())
    }

    pub(crate) fn timestamp(self) -> Timestamp {
        // Every i64 of nanoseconds lies in the years 1677 to 2262, well inside jiff's range.
        Timestamp::from_nanosecond(i128::from(self.0)).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

impl From<Timestamp> for UnixNanos {
    /// A time outside 1677 to 2262 is clamped.
    fn from(time: Timestamp) -> Self {
        Self(time.as_nanosecond().clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64)
    }
}

impl fmt::Display for UnixNanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.9}", self.timestamp())
    }
}

impl FromStr for UnixNanos {
    type Err = TimeError;
    /// RFC 3339, a day (its beginning in UTC), `now`, or `now-1h`.
    fn from_str(text: &str) -> Result<Self, TimeError> {
        Self::parse_at(text, Self::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_written() {
        let noon: UnixNanos = "2026-01-31T12:00:00Z".parse().unwrap();
        assert_eq!(noon.to_string(), "2026-01-31T12:00:00.000000000Z");
        assert_eq!(UnixNanos::parse_at("now-1h", noon).unwrap().to_string(), "2026-01-31T11:00:00.000000000Z");
        assert_eq!("2026-01-31T13:00:00+01:00".parse::<UnixNanos>().unwrap(), noon);
        assert_eq!("2026-01-31".parse::<UnixNanos>().unwrap().to_string(), "2026-01-31T00:00:00.000000000Z");
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "yesterday", "now-", "now*1h", "2026-13-01T00:00:00Z", "2026-02-30", "now-1x"] {
            assert!(UnixNanos::parse_at(bad, UnixNanos(0)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_ends_of_time_do_not_panic() {
        assert_eq!(UnixNanos(i64::MIN).to_string(), "1677-09-21T00:12:43.145224192Z");
        assert_eq!(UnixNanos(i64::MAX).to_string(), "2262-04-11T23:47:16.854775807Z");
    }
}
