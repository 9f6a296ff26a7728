//! How long it took, over all agents.

use std::time::Duration;

use serde_json::{Value, json};

/// The times from a rule's write.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// How many agents.
    pub agents: usize,
    /// Until an agent was told.
    pub told: Spread,
    /// Until the centre had taken its report.
    pub acked: Spread,
}

/// How times are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Half of them are at most so long.
    pub p50: Duration,
    /// 99 of 100 are.
    pub p99: Duration,
    /// All are.
    pub max: Duration,
}

impl Spread {
    /// Of these times; zeros if there are none.
    pub fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let of_hundred = |part: usize| {
            let place = (times.len() * part).div_ceil(100);
            times.get(place.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self { p50: of_hundred(50), p99: of_hundred(99), max: of_hundred(100) }
    }

    fn json(self) -> Value {
        let ms = |time: Duration| (time.as_secs_f64() * 10_000.0).round() / 10.0;
        json!({"p50_ms": ms(self.p50), "p99_ms": ms(self.p99), "max_ms": ms(self.max)})
    }
}

impl Latencies {
    /// As one JSON object, in milliseconds.
    pub fn json(&self) -> Value {
        json!({"agents": self.agents, "told": self.told.json(), "acked": self.acked.json()})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_sorted_times() {
        let ms = Duration::from_millis;
        let spread = Spread::new((1..=200).rev().map(ms).collect());
        assert_eq!(spread, Spread { p50: ms(100), p99: ms(198), max: ms(200) });
        assert_eq!(Spread::new(vec![ms(7)]), Spread { p50: ms(7), p99: ms(7), max: ms(7) });
        assert_eq!(Spread::new(vec![]), Spread::default());
    }
}
