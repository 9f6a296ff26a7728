//! Times and durations between the wire and our own types.

use std::time::Duration;

use logmesh_types::UnixNanos;
use prost_types::Timestamp;

/// The timestamp of a time.
pub fn timestamp(time: UnixNanos) -> Timestamp {
    Timestamp { seconds: time.0.div_euclid(1_000_000_000), nanos: time.0.rem_euclid(1_000_000_000) as i32 }
}

/// The time of a timestamp; what lies outside the years 1677 to 2262 is clamped.
pub fn unix_nanos(timestamp: &Timestamp) -> UnixNanos {
    UnixNanos(timestamp.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(timestamp.nanos)))
}

/// The wire form of a duration; one beyond `i64` seconds is clamped.
pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos() as i32,
    }
}

/// The duration of a wire form; a negative one is none.
pub fn std_duration(duration: &prost_types::Duration) -> Option<Duration> {
    Some(Duration::new(u64::try_from(duration.seconds).ok()?, u32::try_from(duration.nanos).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip_before_and_after_the_epoch() {
        for nanos in [0, 1, -1, 1_769_860_800_123_456_789, -1_769_860_800_123_456_789] {
            assert_eq!(unix_nanos(&timestamp(UnixNanos(nanos))), UnixNanos(nanos));
        }
    }

    #[test]
    fn times_out_of_range_are_clamped() {
        assert_eq!(unix_nanos(&Timestamp { seconds: i64::MAX, nanos: 999 }), UnixNanos(i64::MAX));
    }
}
