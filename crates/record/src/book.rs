//! The books: for each stream, which of its bytes are done. They are the proof that no line is missing, and tell
//! transfer which events may be there already.

use std::cmp::Ordering;

use bytes::Bytes;
use logmesh_bus::NewRecord;
use logmesh_types::{ByteRange, Day, Ranges, StreamId, TopicName};

use crate::slices::Slices;

/// The most ranges of rejected bytes that one book lists. Beyond, they are only counted, and the audit shows them as
/// gaps: never the other way round.
const MAX_REJECTED: usize = 4_096;

/// The most ranges of bytes that are done. Beyond, a range that touches none is left out, and the audit shows it as a gap.
/// With the rejected ones and the slices a book stays below 2 MiB: a range takes at most 59 bytes as JSON, one of a slice 77.
const MAX_DONE: usize = 28_000;

/// The book of one stream.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Book {
    /// The stream.
    pub stream: StreamId,
    /// The agent that collects it.
    pub agent: String,
    /// The file's path, as last seen.
    pub path: String,
    /// The bytes that are done (indexed, rejected or filtered). One range unless something is missing.
    pub done: Ranges,
    /// The bytes among them that went to the dead letters.
    #[serde(default, skip_serializing_if = "Ranges::is_empty")]
    pub rejected: Ranges,
    /// How many events went to the dead letters.
    #[serde(default)]
    pub rejected_events: u64,
    /// How often a range was left out of a book that is full, and 1 more if the books before it were lost. Unless it is 0, a range that isn't booked may be in the
    /// index all the same.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
    /// How often bytes were taken out of the rejected ones, since their event was stored after all. Of two records the one
    /// with more of them says what is rejected.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub corrections: u64,
    /// In which slices of the index the bytes lie. Nothing of what was booked before books knew it.
    #[serde(default, skip_serializing_if = "Slices::is_empty")]
    pub slices: Slices,
}

/// How a range stands to what is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// None of its bytes is done.
    New,
    /// All of its bytes are done.
    Done,
    /// Some of its bytes are done: framing should have made that impossible.
    Overlap,
}

impl Book {
    /// The book of a stream of which nothing is done.
    pub fn new(stream: StreamId) -> Self {
        Self {
            stream,
            agent: String::new(),
            path: String::new(),
            done: Ranges::default(),
            rejected: Ranges::default(),
            rejected_events: 0,
            left_out: 0,
            corrections: 0,
            slices: Slices::default(),
        }
    }

    /// The offset up to which everything from the first byte on is done: 0 if nothing is.
    pub fn watermark(&self) -> u64 {
        self.done.as_slice().first().map_or(0, |range| range.end)
    }

    /// The first byte that was collected.
    pub fn start(&self) -> u64 {
        self.done.as_slice().first().map_or(0, |range| range.start)
    }

    /// How the range stands to what is done.
    pub fn coverage(&self, range: ByteRange) -> Coverage {
        // The first range that ends after the start is the only one that can hold the start.
        let done = self.done.as_slice();
        let at = done.partition_point(|done| done.end <= range.start);
        match done.get(at) {
            Some(done) if done.start <= range.start && range.end <= done.end => Coverage::Done,
            Some(done) if done.start < range.end => Coverage::Overlap,
            _ => Coverage::New,
        }
    }

    /// Books the range as done; false if the book is full and the range was left out.
    pub fn add(&mut self, range: ByteRange) -> bool {
        let booked = self.done.insert_within(range, MAX_DONE);
        self.left_out += u64::from(!booked);
        booked
    }

    /// Books the range of one event as done, and as rejected. One that comes again and is rejected again is still one.
    pub fn reject(&mut self, range: ByteRange) {
        self.add(range);
        self.rejected_events += u64::from(!self.is_rejected(range));
        self.rejected.insert_within(range, MAX_REJECTED);
    }

    /// Whether any of these bytes are booked as rejected.
    pub fn is_rejected(&self, range: ByteRange) -> bool {
        let rejected = self.rejected.as_slice();
        let at = rejected.partition_point(|other| other.end <= range.start);
        rejected.get(at).is_some_and(|other| other.start < range.end)
    }

    /// Books the range of one event that was rejected as done like any other: it is in the index now. False if that changes
    /// nothing.
    pub fn settle(&mut self, range: ByteRange) -> bool {
        let is_known = self.coverage(range) == Coverage::Done;
        let is_booked = self.add(range);
        if !self.is_rejected(range) {
            return is_booked && !is_known;
        }
        self.rejected = self.rejected.without(&Ranges::from_iter([range]));
        self.rejected_events = self.rejected_events.saturating_sub(1);
        self.corrections += 1;
        true
    }

    /// Forgets which bytes were rejected, since their letters are gone: from this day on what isn't in the index of them is
    /// missing. How many events that were.
    pub fn forget_rejected(&mut self, today: Day) -> u64 {
        let rejected = std::mem::take(&mut self.rejected);
        rejected.as_slice().iter().for_each(|range| self.slices.place(*range, today));
        let events = std::mem::take(&mut self.rejected_events);
        self.corrections += u64::from(events > 0 || !rejected.is_empty());
        events
    }

    /// Takes in what another record of this stream's book says. What is done only grows; so of two of which neither holds
    /// all of the other, one was written by a worker that had lost its partition and didn't know it yet, and both are true.
    /// What that one rejected and the other doesn't know of was not committed: its event comes again.
    pub fn merge(&mut self, other: &Self) {
        for range in other.done.as_slice() {
            self.add(*range);
        }
        match self.corrections.cmp(&other.corrections) {
            Ordering::Greater => {}
            Ordering::Less => {
                self.rejected = other.rejected.clone();
                self.rejected_events = other.rejected_events;
                self.corrections = other.corrections;
            }
            Ordering::Equal => {
                for range in other.rejected.as_slice() {
                    self.rejected.insert_within(*range, MAX_REJECTED);
                }
                self.rejected_events = self.rejected_events.max(other.rejected_events);
            }
        }
        self.left_out = self.left_out.max(other.left_out);
        self.slices.merge(&other.slices);
    }

    /// The record of this book, for the topic [`TopicName::books`].
    pub fn encode(&self) -> NewRecord {
        NewRecord {
            key: Bytes::from(self.stream.to_string()),
            value: Bytes::from(serde_json::to_vec(self).unwrap_or_default()),
            headers: Vec::new(),
            timestamp: None,
        }
    }

    /// Reads a book's record.
    ///
    /// # Errors
    /// In words, if it is none.
    pub fn decode(topic: &TopicName, value: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(value).map_err(|error| format!("a record of {topic} is not a book: {error}"))
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn book(ranges: &[(u64, u64)]) -> Book {
        let mut book = Book::new(StreamId::from_bytes([1; 16]));
        for (start, end) in ranges {
            book.add(ByteRange::new(*start, *end));
        }
        book
    }

    #[test]
    fn adjacent_ranges_become_one() {
        let book = book(&[(10, 20), (30, 40), (20, 30)]);
        assert_eq!(book.done.as_slice(), [ByteRange::new(10, 40)]);
        assert_eq!((book.start(), book.watermark()), (10, 40));
    }

    #[test]
    fn a_book_written_late_takes_nothing_back() {
        let mut late = book(&[(0, 10)]);
        late.reject(ByteRange::new(10, 12));
        let newer = book(&[(0, 30)]);
        let mut merged = late.clone();
        merged.merge(&newer);
        assert_eq!(merged.done, newer.done);
        assert_eq!((merged.rejected.as_slice(), merged.rejected_events), (late.rejected.as_slice(), 1));
        let once = merged.clone();
        merged.merge(&late);
        assert_eq!(merged, once, "and again changes nothing");
    }

    #[test]
    fn what_is_stored_after_all_is_rejected_no_more_whatever_older_records_say() {
        let mut older = book(&[(0, 10)]);
        older.reject(ByteRange::new(4, 6));
        older.reject(ByteRange::new(8, 10));
        let mut settled = older.clone();
        assert!(settled.settle(ByteRange::new(4, 6)));
        assert!(!settled.settle(ByteRange::new(4, 6)), "twice is once");
        assert_eq!((settled.rejected.as_slice(), settled.rejected_events), (&[ByteRange::new(8, 10)][..], 1));
        assert_eq!(settled.done, older.done);
        let (mut one, mut other) = (settled.clone(), older.clone());
        one.merge(&older);
        other.merge(&settled);
        assert_eq!((&one, &other), (&settled, &settled), "in any order");
        let mut forgotten = settled.clone();
        let today = "2026-01-31".parse().unwrap();
        assert_eq!((forgotten.forget_rejected(today), forgotten.forget_rejected(today)), (1, 0));
        assert_eq!(forgotten.slices.known().as_slice(), [ByteRange::new(8, 10)], "they should be there");
        forgotten.merge(&settled);
        assert_eq!((forgotten.rejected.bytes(), forgotten.rejected_events, forgotten.done.bytes()), (0, 0, 10));
    }

    #[test]
    fn a_hole_holds_the_watermark_back() {
        let book = book(&[(0, 5), (7, 9)]);
        assert_eq!(book.watermark(), 5);
        assert_eq!(book.coverage(ByteRange::new(5, 7)), Coverage::New);
        assert_eq!(book.coverage(ByteRange::new(0, 5)), Coverage::Done);
        assert_eq!(book.coverage(ByteRange::new(4, 6)), Coverage::Overlap);
        assert_eq!(book.coverage(ByteRange::new(6, 8)), Coverage::Overlap);
    }

    #[test]
    fn books_round_trip_and_nonsense_is_refused() {
        let topic: TopicName = "logs.books".parse().unwrap();
        let mut original = book(&[(0, 5)]);
        original.reject(ByteRange::new(5, 9));
        assert_eq!(Book::decode(&topic, &original.encode().value).unwrap(), original);
        assert!(Book::decode(&topic, b"{}").is_err());
        let text = String::from_utf8(original.encode().value.to_vec()).unwrap();
        assert!(text.contains(r#""done":[{"start":0,"end":9}],"rejected":[{"start":5,"end":9}]"#), "{text}");
        let touching =
            text.replace(r#""done":[{"start":0,"end":9}]"#, r#""done":[{"start":5,"end":9},{"start":0,"end":5}]"#);
        assert_eq!(Book::decode(&topic, touching.as_bytes()).unwrap(), original, "read as the set of its bytes");
    }

    #[test]
    fn a_full_book_leaves_out_what_touches_nothing_and_stays_below_2_mib() {
        let far = u64::MAX - 10 * MAX_DONE as u64;
        let mut book = Book::new(StreamId::from_bytes([1; 16]));
        book.path = "\u{1}".repeat(logmesh_types::limits::MAX_PATH_BYTES);
        for n in 0..MAX_DONE as u64 {
            assert!(book.add(ByteRange::new(far + 10 * n, far + 10 * n + 5)));
        }
        for n in 0..=MAX_REJECTED as u64 {
            book.reject(ByteRange::new(far + 10 * n, far + 10 * n + 5));
        }
        assert!(!book.add(ByteRange::new(0, 5)));
        assert_eq!(
            (book.done.as_slice().len(), book.rejected.as_slice().len(), book.left_out),
            (MAX_DONE, MAX_REJECTED, 1)
        );
        let today: logmesh_types::Day = "2026-01-31".parse().unwrap();
        for n in 0..10_000 {
            book.slices.place(ByteRange::new(far + 10 * n, far + 10 * n + 5), today.plus(n % 2));
            book.slices.place(ByteRange::new(far - 10 * n - 10, far - 10 * n - 5), today.minus(10));
            book.slices.retire(today);
        }
        assert!(book.encode().value.len() < 2 << 20, "{}", book.encode().value.len());
        assert!(book.add(ByteRange::new(far + 5, far + 10)), "what fills a hole is booked");
        assert_eq!(book.done.as_slice().len(), MAX_DONE - 1);
        assert!(book.add(ByteRange::new(0, 5)));
    }

    #[test]
    fn a_book_of_before_slices_is_read_and_stays_as_it_is() {
        let topic: TopicName = "logs.books".parse().unwrap();
        let old =
            br#"{"stream":"01010101010101010101010101010101","agent":"a","path":"/p","done":[{"start":0,"end":9}]}"#;
        let mut book = Book::decode(&topic, old).unwrap();
        assert!(book.slices.is_empty() && !String::from_utf8_lossy(&book.encode().value).contains("slices"));
        let mut newer = book.clone();
        newer.add(ByteRange::new(9, 12));
        newer.slices.place(ByteRange::new(9, 12), "2026-01-31".parse().unwrap());
        book.merge(&newer);
        assert_eq!(book, newer);
        assert_eq!(Book::decode(&topic, &book.encode().value).unwrap(), book);
    }

    proptest! {
        /// A book is a set of bytes: whatever the order of additions, it says of each byte whether it was added.
        #[test]
        fn a_book_is_a_set_of_bytes(ranges in prop::collection::vec((0u64..60, 0u64..12), 0..40)) {
            let book = book(&ranges.iter().map(|(start, len)| (*start, start + len)).collect::<Vec<_>>());
            let mut bytes = [false; 80];
            for (start, len) in &ranges {
                bytes[*start as usize..(start + len) as usize].fill(true);
            }
            for (at, done) in bytes.iter().enumerate() {
                let range = ByteRange::new(at as u64, at as u64 + 1);
                prop_assert_eq!(book.coverage(range), if *done { Coverage::Done } else { Coverage::New });
            }
            prop_assert!(book.done.as_slice().windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
