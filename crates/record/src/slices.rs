//! In which slices of the index the bytes of a stream lie, as its book knows it.
//!
//! Slices are retired by a mark: all of a topic that are dated before a day. Which bytes of a stream were retired is a function of
//! this and of the mark, so that whoever has both knows it without asking the index, of which that part is gone. Bytes that no
//! slice is known of were booked before books knew slices.

use logmesh_types::{ByteRange, Day, Ranges};

/// The most slices and retired ranges that are known of a stream; one that is written to every day has as many in three years.
/// Beyond, the earliest in the file is forgotten: nothing of it is called retired then.
const MAX_PLACED: usize = 1_000;
const MAX_RETIRED: usize = 1_000;

/// Where the bytes of a stream lie.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Slices {
    /// By start, disjoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    days: Vec<Placed>,
    /// What lay in slices that were retired.
    #[serde(default, skip_serializing_if = "Ranges::is_empty")]
    retired: Ranges,
}

/// Bytes that lie in one slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Placed {
    day: Day,
    start: u64,
    end: u64,
}

impl Placed {
    fn range(&self) -> ByteRange {
        ByteRange::new(self.start, self.end)
    }
}

impl Slices {
    /// True if nothing is known.
    pub fn is_empty(&self) -> bool {
        self.days.is_empty() && self.retired.is_empty()
    }

    /// How many ranges are kept.
    pub fn len(&self) -> usize {
        self.days.len() + self.retired.as_slice().len()
    }

    /// Notes that these bytes lie in the slice of this day. Of two days of the same bytes the later one counts.
    pub fn place(&mut self, range: ByteRange, day: Day) {
        if range.is_empty() {
            return;
        }
        match self.days.last_mut() {
            Some(last) if last.end == range.start && last.day == day => last.end = range.end,
            Some(last) if last.end > range.start => {
                // Most of what an older record of a book says is known: at the start of a worker there are many of them.
                if !self.holds(range, day) {
                    self.place_within(range, day);
                }
            }
            _ => self.days.push(Placed { day, start: range.start, end: range.end }),
        }
        let beyond = self.days.len().saturating_sub(MAX_PLACED);
        self.days.drain(..beyond);
    }

    /// True if these bytes are known to lie in one slice, of this day or a later one.
    fn holds(&self, range: ByteRange, day: Day) -> bool {
        let at = self.days.partition_point(|placed| placed.end <= range.start);
        let placed = self.days.get(at);
        placed.is_some_and(|placed| placed.start <= range.start && range.end <= placed.end && placed.day >= day)
    }

    fn place_within(&mut self, range: ByteRange, day: Day) {
        let mut free = Ranges::from_iter([range]);
        let mut all = Vec::with_capacity(self.days.len() + 2);
        for old in self.days.drain(..) {
            let cut = if old.day < day { Ranges::from_iter([range]) } else { Ranges::EMPTY };
            let left = Ranges::from_iter([old.range()]).without(&cut);
            free = free.without(&left);
            all.extend(left.as_slice().iter().map(|part| Placed { day: old.day, start: part.start, end: part.end }));
        }
        all.extend(free.as_slice().iter().map(|part| Placed { day, start: part.start, end: part.end }));
        all.sort_unstable_by_key(|placed| placed.start);
        all.dedup_by(|next, before| {
            let one = before.end == next.start && before.day == next.day;
            if one {
                before.end = next.end;
            }
            one
        });
        self.days = all;
    }

    /// The bytes that lie, or lay, in slices dated before this day, and in those that were retired earlier.
    pub fn retired(&self, before: Option<Day>) -> Ranges {
        let mut retired = self.retired.clone();
        if let Some(before) = before {
            self.days.iter().filter(|placed| placed.day < before).for_each(|placed| retired.insert(placed.range()));
        }
        retired
    }

    /// True if all of these bytes are retired.
    pub fn is_retired(&self, range: ByteRange, before: Option<Day>) -> bool {
        let any = !self.retired.is_empty() || before.is_some_and(|day| self.days.iter().any(|placed| placed.day < day));
        any && Ranges::from_iter([range]).without(&self.retired(before)).is_empty()
    }

    /// The bytes whose slice is known, or that were retired.
    pub fn known(&self) -> Ranges {
        let mut known = self.retired.clone();
        self.days.iter().for_each(|placed| known.insert(placed.range()));
        known
    }

    /// Keeps of slices dated before this day only that they were retired; false if there is none.
    pub fn retire(&mut self, before: Day) -> bool {
        let count = self.days.len();
        let retired = &mut self.retired;
        self.days.retain(|placed| placed.day >= before || !retired.insert_within(placed.range(), MAX_RETIRED));
        self.days.len() < count
    }

    /// Takes in what another record of the same book says. What one knows as retired is retired.
    pub fn merge(&mut self, other: &Self) {
        for range in other.retired.as_slice() {
            self.retired.insert_within(*range, MAX_RETIRED);
        }
        let own = std::mem::take(&mut self.days);
        for placed in own.iter().chain(&other.days) {
            for part in Ranges::from_iter([placed.range()]).without(&self.retired).as_slice() {
                self.place(*part, placed.day);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn day(n: u64) -> Day {
        "2026-01-01".parse::<Day>().unwrap().plus(n)
    }

    fn ranges(ranges: &[(u64, u64)]) -> Ranges {
        ranges.iter().map(|(start, end)| ByteRange::new(*start, *end)).collect()
    }

    #[test]
    fn a_stream_is_retired_day_by_day() {
        let mut slices = Slices::default();
        for n in 0..30 {
            slices.place(ByteRange::new(n * 10, n * 10 + 5), day(n / 10));
            slices.place(ByteRange::new(n * 10 + 5, n * 10 + 10), day(n / 10));
        }
        assert_eq!(slices.len(), 3);
        assert_eq!(slices.retired(None), Ranges::EMPTY);
        assert_eq!(slices.retired(Some(day(0))), Ranges::EMPTY);
        assert_eq!(slices.retired(Some(day(2))), ranges(&[(0, 200)]));
        assert!(slices.is_retired(ByteRange::new(190, 200), Some(day(2))));
        assert!(!slices.is_retired(ByteRange::new(190, 201), Some(day(2))), "a part of it isn't");
        assert!(slices.retire(day(1)) && !slices.retire(day(1)));
        assert_eq!((slices.retired(None), slices.len()), (ranges(&[(0, 100)]), 3));
        assert_eq!(slices.known(), ranges(&[(0, 300)]));
        let text = serde_json::to_string(&slices).unwrap();
        assert!(text.contains(r#"{"day":"2026-01-02","start":100,"end":200}"#), "{text}");
        assert_eq!(serde_json::from_str::<Slices>(&text).unwrap(), slices);
    }

    #[test]
    fn the_later_day_of_the_same_bytes_counts() {
        let mut slices = Slices::default();
        slices.place(ByteRange::new(0, 100), day(1));
        slices.place(ByteRange::new(20, 40), day(5));
        slices.place(ByteRange::new(30, 120), day(0));
        assert_eq!(slices.retired(Some(day(2))), ranges(&[(0, 20), (40, 120)]));
        assert_eq!(slices.retired(Some(day(1))), ranges(&[(100, 120)]));
    }

    #[test]
    fn what_is_known_is_bounded_and_beyond_it_nothing_is_called_retired() {
        let mut slices = Slices::default();
        for n in 0..2 * MAX_PLACED as u64 {
            slices.place(ByteRange::new(10 * n, 10 * n + 10), day(n));
        }
        assert_eq!(slices.len(), MAX_PLACED);
        assert!(!slices.is_retired(ByteRange::new(0, 10), Some(day(u64::from(u16::MAX)))));
    }

    fn placings() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
        prop::collection::vec((0u64..60, 1u64..12, 0u64..6), 0..20)
    }

    fn of(placings: &[(u64, u64, u64)]) -> Slices {
        let mut slices = Slices::default();
        placings.iter().for_each(|(start, len, n)| slices.place(ByteRange::new(*start, start + len), day(*n)));
        slices
    }

    proptest! {
        /// Against a day for each byte: whatever the order, the greatest day of a byte decides.
        #[test]
        fn it_agrees_with_a_day_for_each_byte(placings in placings(), before in 0u64..8) {
            let slices = of(&placings);
            let mut days = [None; 80];
            for (start, len, n) in &placings {
                days[*start as usize..(start + len) as usize].iter_mut().for_each(|day| *day = (*day).max(Some(*n)));
            }
            let retired: Ranges = (0..80u64).filter(|at| days[*at as usize].is_some_and(|day| day < before)).map(|at| ByteRange::new(at, at + 1)).collect();
            prop_assert_eq!(&slices.retired(Some(day(before))), &retired);
            let mut pruned = slices;
            pruned.retire(day(before));
            prop_assert_eq!(pruned.retired(None), retired);
        }

        /// Two records of a book are merged in any order, once or twice, and nothing that one knows as retired comes back.
        #[test]
        fn records_merge_in_any_order(one in placings(), other in placings(), before in 0u64..8) {
            let (mut one, other) = (of(&one), of(&other));
            one.retire(day(before));
            let (mut ab, mut ba) = (one.clone(), other.clone());
            ab.merge(&other);
            ba.merge(&one);
            prop_assert_eq!(&ab, &ba);
            let once = ab.clone();
            ab.merge(&other);
            prop_assert_eq!(&ab, &once);
            prop_assert!(one.retired(None).without(&ab.retired(None)).is_empty());
        }
    }
}
