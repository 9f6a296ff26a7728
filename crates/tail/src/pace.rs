//! A token bucket for bytes or lines per second.

use std::time::{Duration, Instant};

/// Gives out so many units per second; what is taken at once may run into debt, which is then waited for.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Units per second; `None`: no limit.
    rate: Option<f64>,
    /// What may be taken; negative: a debt.
    tokens: f64,
    filled: Instant,
}

/// A reader is let through for a tenth of a second's worth at least, or a slow rate would make chunks of one byte.
const SHARE: f64 = 0.1;

impl Bucket {
    /// A full bucket; `None` or 0 is no limit.
    pub(crate) fn new(rate: Option<u64>, now: Instant) -> Self {
        let rate = rate.filter(|rate| *rate > 0).map(|rate| rate as f64);
        Self { rate, tokens: rate.unwrap_or(0.0), filled: now }
    }

    /// Changes the rate; what was taken stays taken.
    pub(crate) fn set_rate(&mut self, rate: Option<u64>, now: Instant) {
        self.fill(now);
        let had_limit = self.rate.is_some();
        self.rate = rate.filter(|rate| *rate > 0).map(|rate| rate as f64);
        let full = self.rate.unwrap_or(0.0);
        self.tokens = if had_limit { self.tokens.min(full) } else { full };
    }

    /// How many units may be taken now; 0: wait.
    pub(crate) fn available(&mut self, now: Instant) -> u64 {
        self.fill(now);
        match self.rate {
            None => u64::MAX,
            Some(rate) if self.tokens >= (rate * SHARE).min(rate) => (self.tokens as u64).max(1),
            Some(_) => 0,
        }
    }

    /// Takes units, into debt if need be.
    pub(crate) fn take(&mut self, units: u64) {
        if self.rate.is_some() {
            self.tokens -= units as f64;
        }
    }

    /// How long until something may be taken; zero: now.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let missing = rate * SHARE - self.tokens;
        let full = Duration::from_secs_f64(missing.max(0.0) / rate);
        full.saturating_sub(now.saturating_duration_since(self.filled))
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        self.filled = now;
        if let Some(rate) = self.rate {
            self.tokens = (self.tokens + rate * passed.as_secs_f64()).min(rate);
        }
    }
}

/// How fast something went of late: the longer ago, the less it counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    per_second: f64,
    noted: Instant,
}

impl Rate {
    /// What lies so far back, in seconds, counts for a third.
    const SPAN: f64 = 10.0;

    pub(crate) fn new(now: Instant) -> Self {
        Self { per_second: 0.0, noted: now }
    }

    pub(crate) fn add(&mut self, units: u64, now: Instant) {
        let passed = now.saturating_duration_since(self.noted).as_secs_f64();
        self.per_second = self.per_second * (-passed / Self::SPAN).exp() + units as f64 / Self::SPAN;
        self.noted = now;
    }

    /// Units per second, in two digits so that it doesn't change all the time; 0 if nothing came for `memory`.
    pub(crate) fn of_late(&self, now: Instant, memory: Duration) -> u64 {
        if now.saturating_duration_since(self.noted) >= memory {
            return 0;
        }
        let digits = 10f64.powf(self.per_second.max(1.0).log10().floor() - 1.0).max(1.0);
        ((self.per_second / digits).round() * digits) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_over_time() {
        let mut now = Instant::now();
        let mut bucket = Bucket::new(Some(1000), now);
        let mut taken = 0;
        for _ in 0..100 {
            let some = bucket.available(now).min(70);
            bucket.take(some);
            taken += some;
            now += Duration::from_millis(50);
        }
        assert!((5_000..=6_100).contains(&taken), "{taken} in 5 s at 1000/s with a burst of 1000");
    }

    #[test]
    fn a_debt_is_waited_for() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Some(100), now);
        bucket.take(300);
        assert_eq!(bucket.available(now), 0);
        assert_eq!(bucket.wait(now), Duration::from_millis(2100));
        assert!(bucket.available(now + bucket.wait(now) + Duration::from_millis(1)) > 0);
        assert_eq!(bucket.wait(now + Duration::from_secs(9)), Duration::ZERO);
    }

    #[test]
    fn a_new_rate_counts_at_once_and_none_is_no_limit() {
        let now = Instant::now();
        let mut bucket = Bucket::new(None, now);
        assert_eq!(bucket.available(now), u64::MAX);
        bucket.set_rate(Some(10), now);
        assert_eq!(bucket.available(now), 10);
        bucket.set_rate(Some(0), now);
        assert_eq!(bucket.available(now), u64::MAX);
    }

    #[test]
    fn a_rate_comes_and_goes() {
        let mut now = Instant::now();
        let mut rate = Rate::new(now);
        for _ in 0..100 {
            now += Duration::from_secs(1);
            rate.add(123_456, now);
        }
        let memory = Duration::from_secs(30);
        assert_eq!(rate.of_late(now, memory), 130_000);
        assert_eq!(rate.of_late(now + memory, memory), 0);
        rate.add(0, now + Duration::from_secs(60));
        assert!(rate.of_late(now + Duration::from_secs(60), memory) < 1_000);
    }
}
