//! Marks: which slices of a topic's index are retired. Written to `logmesh.jobs`, before the first of them is deleted, under
//! `retired/TOPIC/DAY`: a mark is never moved back, whoever writes what late, since the greatest day counts.

use std::collections::BTreeMap;

use logmesh_types::{Day, TopicName};

/// What the keys of marks begin with.
pub const RETIRED: &str = "retired/";

/// A mark of one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// Slices dated before this day are retired for good.
    pub before: Day,
    /// What was taken for the present day when the mark was written.
    pub today: Day,
}

impl Mark {
    /// Its key.
    pub fn key(&self, topic: &TopicName) -> String {
        format!("{RETIRED}{topic}/{}", self.before)
    }
}

/// The marks of all topics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks(BTreeMap<TopicName, Mark>);

impl Marks {
    /// Takes an entry of `logmesh.jobs` in, if it is a mark.
    pub fn take(&mut self, key: &str, mark: Mark) {
        let topic =
            key.strip_prefix(RETIRED).and_then(|rest| rest.rsplit_once('/')).and_then(|(name, _)| name.parse().ok());
        if let Some(topic) = topic {
            let kept = self.0.entry(topic).or_insert(mark);
            *kept = mark.max(*kept);
        }
    }

    /// Takes a record of `logmesh.jobs` in, if it is a mark. One that can't be read is none: nothing is called retired by it.
    pub fn read(&mut self, key: &[u8], value: &[u8]) {
        let key = std::str::from_utf8(key).ok().filter(|key| key.starts_with(RETIRED));
        if let (Some(key), Ok(mark)) = (key, serde_json::from_slice(value)) {
            self.take(key, mark);
        }
    }

    /// The topic's mark.
    pub fn get(&self, topic: &TopicName) -> Option<&Mark> {
        self.0.get(topic)
    }

    /// Slices of the topic dated before this day are retired.
    pub fn before(&self, topic: &TopicName) -> Option<Day> {
        self.get(topic).map(|mark| mark.before)
    }

    /// True if the topic's slice of this day is retired.
    pub fn is_retired(&self, topic: &TopicName, day: Day) -> bool {
        self.before(topic).is_some_and(|before| day < before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_never_moves_back() {
        let logs: TopicName = "logs".parse().unwrap();
        let mark = |before: &str, today: &str| Mark { before: before.parse().unwrap(), today: today.parse().unwrap() };
        let newer = mark("2026-02-03", "2026-02-10");
        for order in [[0, 1], [1, 0]] {
            let both = [newer, mark("2026-02-01", "2026-02-11")];
            let mut marks = Marks::default();
            order.iter().for_each(|at: &usize| marks.take(&both[*at].key(&logs), both[*at]));
            assert_eq!(marks.get(&logs), Some(&newer));
            let [second, third] = ["2026-02-02", "2026-02-03"].map(|day| day.parse().unwrap());
            assert!(marks.is_retired(&logs, second) && !marks.is_retired(&logs, third));
            assert!(!marks.is_retired(&"other".parse().unwrap(), second));
        }
        let mut marks = Marks::default();
        marks.read(newer.key(&logs).as_bytes(), &serde_json::to_vec(&newer).unwrap());
        marks.read(b"retired/logs/2027-01-01", b"{}");
        assert_eq!(marks.get(&logs), Some(&newer));
        let mut marks = Marks::default();
        marks.take("retired/", newer);
        marks.take("replay/logs/1", newer);
        assert_eq!(marks, Marks::default());
    }
}
