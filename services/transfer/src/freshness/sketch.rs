//! A count of durations in a bounded number of buckets, from which any quantile is known within a thirty-second.
//!
//! Sixteen buckets for each doubling, from a microsecond to nineteen hours; what takes longer counts as that. Sketches of the
//! same time are merged by adding, in any order.

use std::collections::BTreeMap;

/// The longest that is told apart, in microseconds.
pub(crate) const LONGEST: u64 = (1 << 36) - 1;

/// Buckets for each doubling, and of how many bits that is.
const STEPS: u64 = 1 << STEP_BITS;
const STEP_BITS: u32 = 4;

/// How long some events took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sketch {
    /// Events by bucket; at most 528.
    buckets: BTreeMap<u16, u64>,
    /// The longest, in microseconds.
    longest: u64,
    /// Events whose duration came out negative, and was counted as none: two clocks differ.
    skewed: u64,
}

impl Sketch {
    /// Counts so many events that took so many microseconds.
    pub(crate) fn add(&mut self, micros: u64, events: u64) {
        if events > 0 {
            let micros = micros.min(LONGEST);
            *self.buckets.entry(bucket_of(micros)).or_default() += events;
            self.longest = self.longest.max(micros);
        }
    }

    /// Counts so many events among those that were added as having come out negative.
    pub(crate) fn add_skewed(&mut self, events: u64) {
        self.skewed += events;
    }

    /// Adds another's counts.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (bucket, events) in &other.buckets {
            *self.buckets.entry(*bucket).or_default() += events;
        }
        self.longest = self.longest.max(other.longest);
        self.skewed += other.skewed;
    }

    /// How many events were added.
    pub(crate) fn events(&self) -> u64 {
        self.buckets.values().sum()
    }

    /// The longest, in microseconds.
    pub(crate) fn longest(&self) -> u64 {
        self.longest
    }

    /// How many of them came out negative.
    pub(crate) fn skewed(&self) -> u64 {
        self.skewed
    }

    /// So many microseconds took this part of the events, 0 to 1, at most; within a thirty-second. 0 if there are none.
    pub(crate) fn quantile(&self, part: f64) -> u64 {
        let rank = ((self.events() as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.buckets.iter().find(|(_, events)| {
            seen += **events;
            seen >= rank
        });
        bucket.map_or(self.longest, |(bucket, _)| middle_of(*bucket).min(self.longest))
    }

    /// A duration of each bucket, in microseconds, and its events: added to another sketch they are in the same buckets.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        self.buckets.iter().map(|(bucket, events)| (middle_of(*bucket), *events))
    }

    /// What [`Sketch::buckets`] and the rest told.
    pub(crate) fn of(buckets: impl IntoIterator<Item = (u64, u64)>, longest: u64, skewed: u64) -> Self {
        let mut sketch = Self::default();
        buckets.into_iter().for_each(|(micros, events)| sketch.add(micros, events));
        Self { longest: longest.min(LONGEST), skewed, ..sketch }
    }
}

/// Durations below [`STEPS`] have their own; from there on the bits behind the first tell the step.
fn bucket_of(micros: u64) -> u16 {
    let bits = micros.max(1).ilog2();
    match bits.checked_sub(STEP_BITS) {
        None => micros as u16,
        Some(shift) => (STEPS * u64::from(shift) + (micros >> shift)) as u16,
    }
}

/// The middle of a bucket, rounded down.
fn middle_of(bucket: u16) -> u64 {
    let bucket = u64::from(bucket);
    if bucket < 2 * STEPS {
        return bucket;
    }
    let shift = bucket / STEPS - 1;
    ((bucket % STEPS + STEPS) << shift) + ((1 << shift) - 1) / 2
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Durations of every size.
    fn durations(random: &mut StdRng, count: usize) -> Vec<u64> {
        let mut one = || random.random_range(0..=LONGEST) >> random.random_range(0..37u32);
        (0..count).map(|_| one()).collect()
    }

    fn sketch(durations: &[u64]) -> Sketch {
        let mut sketch = Sketch::default();
        durations.iter().for_each(|micros| sketch.add(*micros, 1));
        sketch
    }

    #[test]
    fn a_quantile_is_within_a_thirty_second() {
        let mut random = StdRng::seed_from_u64(7);
        for count in [1, 2, 3, 100, 5_000] {
            let mut durations = durations(&mut random, count);
            let sketch = sketch(&durations);
            durations.sort_unstable();
            assert_eq!((sketch.events(), sketch.longest()), (count as u64, durations[count - 1]));
            for part in [0.0, 0.5, 0.9, 0.99, 1.0] {
                let exact = durations[((count as f64 * part).ceil() as usize).max(1) - 1];
                let found = sketch.quantile(part);
                assert!(found.abs_diff(exact) <= exact / 32 + 1, "{part} of {count}: {found}, not {exact}");
            }
        }
    }

    #[test]
    fn parts_merged_in_any_order_are_the_whole() {
        let mut random = StdRng::seed_from_u64(8);
        for _ in 0..50 {
            let (a, b, c) = (durations(&mut random, 40), durations(&mut random, 3), durations(&mut random, 90));
            let whole = sketch(&[&a[..], &b, &c].concat());
            let merged = |parts: [&[u64]; 3]| {
                let mut sum = Sketch::default();
                parts.iter().for_each(|part| sum.merge(&sketch(part)));
                sum
            };
            assert_eq!(merged([&a, &b, &c]), whole);
            assert_eq!(merged([&c, &a, &b]), whole);
            assert_eq!(Sketch::of(whole.buckets(), whole.longest(), whole.skewed()), whole, "told and heard");
        }
    }

    #[test]
    fn buckets_follow_each_other_and_are_bounded() {
        let mut last = 0;
        for micros in (0..100_000).chain((17..36).flat_map(|bits| [(1 << bits) - 1, 1 << bits])).chain([LONGEST]) {
            let bucket = bucket_of(micros);
            assert!(bucket == last || bucket == last + 1 || micros > 100_000, "{micros}: {last}, {bucket}");
            assert_eq!(bucket_of(middle_of(bucket)), bucket, "{micros}");
            last = bucket;
        }
        assert_eq!(bucket_of(LONGEST), 527);
        let mut late = Sketch::default();
        late.add(u64::MAX, 2);
        assert_eq!((late.longest(), late.quantile(0.5) <= LONGEST), (LONGEST, true));
        assert_eq!(Sketch::default().quantile(0.99), 0);
    }
}
