//! When the agent could see what happens to files: it ran, wasn't frozen, and could write its state.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The intervals of attention so far. One thread says what happens to the agent, writers ask.
#[derive(Debug, Default)]
pub struct Attention {
    intervals: Mutex<Vec<(Instant, Option<Instant>)>>,
}

impl Attention {
    /// From now on the agent sees.
    pub fn begin(&self) {
        self.with(|intervals| {
            if intervals.last().is_none_or(|(_, end)| end.is_some()) {
                intervals.push((Instant::now(), None));
            }
        });
    }

    /// From now on it doesn't.
    pub fn end(&self) {
        self.with(|intervals| {
            if let Some((_, end @ None)) = intervals.last_mut() {
                *end = Some(Instant::now());
            }
        });
    }

    /// The longest time without a break for which the agent saw what happened between the two.
    pub fn longest_between(&self, from: Instant, to: Instant) -> Duration {
        self.with(|intervals| {
            let spans = intervals.iter().map(|(begin, end)| {
                let (begin, end) = ((*begin).max(from), end.unwrap_or(to).min(to));
                end.saturating_duration_since(begin)
            });
            spans.max().unwrap_or_default()
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Vec<(Instant, Option<Instant>)>) -> T) -> T {
        work(&mut self.intervals.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_break_divides_what_was_seen() {
        let attention = Attention::default();
        let start = Instant::now();
        assert_eq!(attention.longest_between(start, start + Duration::from_secs(1)), Duration::ZERO);
        attention.begin();
        attention.end();
        attention.begin();
        let later = Instant::now() + Duration::from_secs(9);
        let seen = attention.longest_between(start, later);
        assert!(seen > Duration::from_secs(8) && seen <= Duration::from_secs(9) + start.elapsed(), "{seen:?}");
        attention.end();
        assert!(attention.longest_between(later, later + Duration::from_secs(9)).is_zero());
    }
}
