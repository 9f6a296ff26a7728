//! Dead letters that go through their topic again.
//!
//! A letter is appended to its topic, with its id and slice and a mark that says where it lies. The worker that holds the
//! partition stores it between all other events of that partition, so that nothing races; then it puts the book right and
//! notes here that the letter is done. Killed in between, the record is read again and found by its id.

use std::collections::{BTreeMap, VecDeque};

use logmesh_record::codec::{Found, short_reason};
use logmesh_record::{DeadLetter, Redrive};
use logmesh_types::{ByteRange, Ranges, TopicName};

use crate::letters::pattern;
use crate::store::Stored;

/// The most ranges of letters that are noted as done in a partition. Beyond, a letter that is done stays listed; sent through
/// once more it is found in the index.
const MAX_DONE: usize = 20_000;

/// Operations whose counts are kept,
const MAX_OPERATIONS: usize = 64;

/// and the reasons that each keeps.
const MAX_REASONS: usize = 20;

/// What is known of a partition's letters. Kept by the worker that holds the partition, as one entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Redriven {
    /// Offsets in the dead-letter topic of the letters that are done.
    pub(crate) done: Ranges,
    /// The offset after the last record of the topic that is counted below.
    counted: u64,
    /// The latest operations, oldest first.
    pub(crate) operations: VecDeque<Operation>,
}

/// What one operation did in a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Operation {
    pub(crate) id: String,
    pub(crate) indexed: u64,
    pub(crate) there: u64,
    pub(crate) refused: u64,
    /// By what the reasons have in common.
    pub(crate) reasons: BTreeMap<String, u64>,
}

/// One letter on its way, and what became of it.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) mark: Redrive,
    /// Where its record lies in the topic.
    pub(crate) offset: u64,
    /// Why it was refused before.
    pub(crate) reason: String,
    /// It stays as it is if it's refused now: a new letter would have another day than this one.
    pub(crate) stays: bool,
}

impl Redriven {
    /// The key of a partition's entry.
    pub(crate) fn key(topic: &TopicName, partition: u32) -> String {
        format!("redriven/{topic}/{partition}")
    }

    /// Notes what became of a letter. A new letter takes the place of one that was refused for another reason.
    pub(crate) fn note(&mut self, attempt: &Attempt, stored: &Stored) {
        let replaced = matches!(stored, Stored::Rejected(reason) if attempt.is_news(reason));
        if replaced || !matches!(stored, Stored::Rejected(_)) {
            self.done.insert_within(ByteRange::new(attempt.mark.offset, attempt.mark.offset + 1), MAX_DONE);
        }
        // Read again after a crash, it is counted already.
        if attempt.offset < self.counted {
            return;
        }
        self.counted = attempt.offset + 1;
        let operation = self.operation(&attempt.mark.operation);
        match stored {
            Stored::Created => operation.indexed += 1,
            Stored::There => operation.there += 1,
            Stored::Rejected(reason) => {
                operation.refused += 1;
                let reason = pattern(reason);
                if operation.reasons.len() < MAX_REASONS || operation.reasons.contains_key(&reason) {
                    *operation.reasons.entry(reason).or_default() += 1;
                }
            }
        }
    }

    /// Forgets which letters are done, since all are gone: others come to lie where they lay. False if none was.
    pub(crate) fn forget_letters(&mut self) -> bool {
        !std::mem::take(&mut self.done).is_empty()
    }

    /// Whether the letter at this offset is done.
    pub(crate) fn is_done(&self, offset: u64) -> bool {
        let done = self.done.as_slice();
        let at = done.partition_point(|range| range.end <= offset);
        done.get(at).is_some_and(|range| range.start <= offset)
    }

    fn operation(&mut self, id: &str) -> &mut Operation {
        let at = self.operations.iter().position(|operation| operation.id == id).unwrap_or_else(|| {
            if self.operations.len() == MAX_OPERATIONS {
                self.operations.pop_front();
            }
            self.operations.push_back(Operation { id: id.to_owned(), ..Operation::default() });
            self.operations.len() - 1
        });
        &mut self.operations[at]
    }
}

impl Attempt {
    /// Whether the letter is refused for another reason than before, and a new one is to say so.
    pub(crate) fn is_news(&self, reason: &str) -> bool {
        !self.stays && short_reason(reason) != self.reason
    }

    /// Of a letter's record in its topic; `None` if it is an event like any other.
    pub(crate) fn of(record: &logmesh_bus::Record, found: &Found<'_>, partition: u32) -> Option<Self> {
        let mark = Redrive::of(found)?;
        // Both topics have as many partitions, and the letter has the same key in both.
        let letter = (mark.partition == partition).then(|| DeadLetter::decode(record).ok()).flatten()?;
        Some(Self { mark, offset: record.offset.0, reason: letter.reason, stays: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(letter: u64, offset: u64) -> Attempt {
        let mark = Redrive { operation: "op".to_owned(), partition: 0, offset: letter };
        Attempt { mark, offset, reason: "bad".to_owned(), stays: false }
    }

    #[test]
    fn what_is_read_again_after_a_crash_counts_once() {
        let mut redriven = Redriven::default();
        redriven.note(&attempt(3, 10), &Stored::Created);
        redriven.note(&attempt(4, 11), &Stored::Rejected("bad".to_owned()));
        let once = redriven.clone();
        redriven.note(&attempt(3, 10), &Stored::There);
        redriven.note(&attempt(4, 11), &Stored::Rejected("bad".to_owned()));
        assert_eq!(redriven, once);
        assert!(redriven.is_done(3) && !redriven.is_done(4) && !redriven.is_done(2));
        let operation = &redriven.operations[0];
        assert_eq!((operation.indexed, operation.there, operation.refused), (1, 0, 1));
        redriven.note(&attempt(4, 12), &Stored::Rejected("worse".to_owned()));
        assert!(redriven.is_done(4), "another letter says why");
        let mut stays = attempt(5, 13);
        stays.stays = true;
        redriven.note(&stays, &Stored::Rejected("too old".to_owned()));
        assert!(!redriven.is_done(5) && redriven.operations[0].reasons.contains_key("too old"));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut redriven = Redriven::default();
        for n in 0..3 * MAX_DONE as u64 {
            let mut one = attempt(2 * n, n);
            one.mark.operation = format!("op{}", n / 100);
            redriven.note(&one, &Stored::Created);
        }
        for n in 0..100 {
            redriven.note(&attempt(0, 1_000_000 + n), &Stored::Rejected(format!("reason {}", "x".repeat(n as usize))));
        }
        assert_eq!(redriven.done.as_slice().len(), MAX_DONE);
        assert_eq!(redriven.operations.len(), MAX_OPERATIONS);
        assert_eq!(redriven.operations.back().map(|last| (last.refused, last.reasons.len())), Some((100, MAX_REASONS)));
    }
}
