//! What became of a rule: its changes as they lie in the store beside it, bounded, and as they're shown.
//!
//! A change and the rule that it makes are written in one transaction, so that one is there with the other, and the
//! revision that wrote a change is the revision of the rule that came of it.

use std::collections::VecDeque;

use logmesh_proto::config::v1 as message;
use logmesh_proto::time::timestamp;
use logmesh_store::{Entry, Revision, Snapshot};
use logmesh_types::{RuleName, UnixNanos};
use serde::{Deserialize, Serialize};
use tracing::error;

use super::stored::StoredRule;
use crate::keys;
use crate::limits::{MAX_HISTORY, MAX_HISTORY_BYTES};
use crate::revision::on_wire;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Created,
    Updated,
    Deleted,
    RolledBack,
}

/// The value of a change's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredChange {
    pub(crate) change: Kind,
    /// When, RFC 3339.
    pub(crate) time: String,
    /// Who, as the caller named itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) author: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    /// The rule from then on; none: it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<StoredRule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) changed_fields: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rolled_back_to: Option<u64>,
    /// The revision of the rule, where that isn't the one that wrote this: the rule is older than its history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<u64>,
}

impl StoredChange {
    /// The change that must have made a rule of which no history tells: an earlier version of the program wrote it.
    pub(crate) fn found(stored: &StoredRule, revision: Revision) -> Self {
        let change = if stored.update_time == stored.create_time { Kind::Created } else { Kind::Updated };
        Self {
            change,
            time: stored.update_time.clone(),
            author: String::new(),
            reason: String::new(),
            rule: Some(stored.clone()),
            changed_fields: Vec::new(),
            rolled_back_to: None,
            revision: Some(revision.0),
        }
    }

    fn message(&self, revision: Revision) -> message::RuleRevision {
        let change = match self.change {
            Kind::Created => message::RuleChange::Created,
            Kind::Updated => message::RuleChange::Updated,
            Kind::Deleted => message::RuleChange::Deleted,
            Kind::RolledBack => message::RuleChange::RolledBack,
        };
        let said = !self.author.is_empty() || !self.reason.is_empty();
        let note = said.then(|| message::ChangeNote { author: self.author.clone(), reason: self.reason.clone() });
        message::RuleRevision {
            revision: on_wire(revision),
            time: self.time.parse::<UnixNanos>().ok().map(timestamp),
            change: change.into(),
            note,
            rule: self.rule.as_ref().map(|rule| rule.message(revision)),
            changed_fields: self.changed_fields.clone(),
            rolled_back_to: self.rolled_back_to.map_or(0, |to| on_wire(Revision(to))),
        }
    }
}

/// A change with its place.
#[derive(Clone, Debug)]
struct Place {
    number: u64,
    bytes: usize,
    revision: Revision,
    /// `None`: a later version of the program wrote it.
    change: Option<StoredChange>,
}

/// A rule's changes, the oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    places: VecDeque<Place>,
}

impl History {
    /// Reads what lies beneath [`keys::history`] of a rule. With `present`, the rule as it is: a change that isn't
    /// there is added as the newest.
    pub(crate) fn read(snapshot: Snapshot, present: Option<(&StoredRule, Revision)>) -> Self {
        let mut history = Self { places: snapshot.entries.iter().filter_map(Place::read).collect() };
        if let Some((stored, revision)) = present
            && !history.places.iter().any(|place| place.revision == revision)
        {
            let change = Some(StoredChange::found(stored, revision));
            history.places.push_back(Place { number: history.next(), bytes: 0, revision, change });
        }
        history
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The number of the next change.
    pub(crate) fn next(&self) -> u64 {
        self.places.back().map_or(1, |last| last.number + 1)
    }

    /// The newest change with its number, if it is one that isn't stored yet.
    pub(crate) fn missing(&self) -> Option<(u64, &StoredChange)> {
        let last = self.places.back().filter(|last| last.bytes == 0)?;
        Some((last.number, last.change.as_ref()?))
    }

    /// The change that made a revision; the inner `None`: it can't be read.
    pub(crate) fn find(&self, revision: Revision) -> Option<Option<&StoredChange>> {
        let place = self.places.iter().find(|place| place.revision == revision)?;
        Some(place.change.as_ref())
    }

    /// The keys of the oldest changes that have to go so that `more` changes of `bytes` find room.
    pub(crate) fn surplus(&self, name: &RuleName, more: usize, bytes: usize) -> Vec<String> {
        let stored = || self.places.iter().filter(|place| place.bytes > 0);
        let mut count = stored().count() + more;
        let mut total = stored().map(|place| place.bytes).sum::<usize>() + bytes;
        let mut gone = Vec::new();
        for place in stored() {
            if count <= MAX_HISTORY && total <= MAX_HISTORY_BYTES {
                break;
            }
            count -= 1;
            total -= place.bytes;
            gone.push(keys::change(name, place.number));
        }
        gone
    }

    /// The changes before the one of that number, the newest first, each with its number as a page token.
    pub(crate) fn before(&self, number: u64) -> impl Iterator<Item = (String, message::RuleRevision)> {
        self.places.iter().rev().filter(move |place| place.number < number).map(|place| {
            let unknown = || message::RuleRevision { revision: on_wire(place.revision), ..Default::default() };
            let shown = place.change.as_ref().map_or_else(unknown, |change| change.message(place.revision));
            (place.number.to_string(), shown)
        })
    }
}

impl Place {
    fn read(entry: &Entry) -> Option<Self> {
        let Entry { key, versioned } = entry;
        let number = key.strip_prefix(keys::HISTORY)?.split_once('/')?.1.parse().ok()?;
        let change: Option<StoredChange> = serde_json::from_slice(&versioned.value)
            .inspect_err(|problem| error!(key, %problem, "cannot read a change of a rule"))
            .ok();
        let older = change.as_ref().and_then(|change| change.revision).map(Revision);
        let revision = older.unwrap_or(versioned.mod_revision);
        Some(Self { number, bytes: versioned.value.len(), revision, change })
    }
}

#[cfg(test)]
mod tests {
    use logmesh_store::Versioned;

    use super::*;

    fn name() -> RuleName {
        "a".parse().unwrap()
    }

    fn stored() -> StoredRule {
        let rule = logmesh_rules::RuleSpec { name: "rules/a".into(), ..Default::default() };
        StoredRule::new(rule, None)
    }

    fn snapshot(changes: &[(u64, u64, Vec<u8>)]) -> Snapshot {
        let entry = |(number, revision, value): &(u64, u64, Vec<u8>)| Entry {
            key: keys::change(&name(), *number),
            versioned: Versioned { value: value.clone().into(), mod_revision: Revision(*revision), lease: None },
        };
        Snapshot { revision: Revision(99), entries: changes.iter().map(entry).collect() }
    }

    fn json(revision: Option<u64>) -> Vec<u8> {
        serde_json::to_vec(&StoredChange { revision, ..StoredChange::found(&stored(), Revision(0)) }).unwrap()
    }

    #[test]
    fn a_rule_older_than_its_history_gets_its_place() {
        let stored = stored();
        let history = History::read(snapshot(&[]), Some((&stored, Revision(7))));
        assert_eq!(history.missing().unwrap().0, 1);
        assert_eq!(history.next(), 2);
        let known = snapshot(&[(1, 9, json(Some(7))), (2, 9, json(None))]);
        let history = History::read(known, Some((&stored, Revision(9))));
        assert!(history.missing().is_none());
        assert!(history.find(Revision(7)).is_some() && history.find(Revision(8)).is_none());
        let shown: Vec<i64> = history.before(u64::MAX).map(|(_, shown)| shown.revision).collect();
        assert_eq!(shown, [9, 7], "the newest first");
        assert_eq!(history.before(2).count(), 1);
    }

    #[test]
    fn the_oldest_changes_make_room_by_number_and_by_size() {
        let full: Vec<_> = (1..=MAX_HISTORY as u64).map(|n| (n, n, json(None))).collect();
        let history = History::read(snapshot(&full), None);
        assert_eq!(history.surplus(&name(), 1, 10), [keys::change(&name(), 1)]);
        assert_eq!(history.surplus(&name(), 2, 10).len(), 2);
        let large = snapshot(&[(1, 1, vec![b'x'; MAX_HISTORY_BYTES / 2]), (2, 2, vec![b'x'; MAX_HISTORY_BYTES / 2])]);
        let history = History::read(large, None);
        assert_eq!(history.surplus(&name(), 1, 0), Vec::<String>::new());
        assert_eq!(history.surplus(&name(), 1, 1), [keys::change(&name(), 1)]);
        assert_eq!(history.surplus(&name(), 1, 2 * MAX_HISTORY_BYTES).len(), 2, "the newest is kept whatever its size");
    }

    #[test]
    fn a_change_of_the_future_is_shown_by_its_revision_alone() {
        let history = History::read(snapshot(&[(1, 5, b"{\"change\": \"merged\"}".to_vec())]), None);
        let (_, shown) = history.before(u64::MAX).next().unwrap();
        assert_eq!((shown.revision, shown.change()), (5, message::RuleChange::Unspecified));
        assert!(matches!(history.find(Revision(5)), Some(None)));
    }
}
