//! What one simulated agent holds, has seen and has acked.

use std::collections::BTreeMap;
use std::time::Instant;

use logmesh_proto::config::v1::Rule;
use logmesh_proto::fleet::v1::Delta;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Whether it has a stream on which something was said.
    pub connected: bool,
    /// How often it was.
    pub connections: u64,
    /// The rules that it holds.
    pub held: BTreeMap<String, Rule>,
    /// Which store all this is of.
    pub incarnation: String,
    /// The latest message that said something new.
    pub nonce: String,
    /// The latest revision that a message led to.
    pub revision: i64,
    /// What it was told, in the order of its coming.
    pub steps: Vec<Step>,
    /// What should never have come.
    pub disorder: Vec<String>,
    /// The latest revision of each rule that it was ever told, and when.
    pub progress: BTreeMap<String, Progress>,
    /// Why it isn't connected, or wasn't last time.
    pub problem: Option<String>,
}

/// One rule's change, as an agent was told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The revision that the message led to.
    pub at: i64,
    /// The rule's name.
    pub rule: String,
    /// The revision of the rule; `None`: it was removed.
    pub revision: Option<i64>,
}

/// How far a rule's latest revision has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// The revision.
    pub revision: i64,
    /// When the agent was told.
    pub told: Instant,
    /// When the answer to its report came.
    pub acked: Option<Instant>,
}

impl Record {
    /// Takes a difference in, and notes what is wrong with it.
    pub(super) fn take(&mut self, at: i64, delta: Delta) {
        if delta.snapshot {
            let among = |name: &String| delta.upserted.iter().any(|rule| rule.name == *name);
            for rule in self.held.keys().filter(|name| !among(name)).cloned().collect::<Vec<_>>() {
                self.held.remove(&rule);
                self.steps.push(Step { at, rule, revision: None });
            }
        }
        for rule in delta.removed {
            // A snapshot may name what goes, for agents that know of no snapshots.
            if self.held.remove(&rule).is_none() && !delta.snapshot {
                self.disorder.push(format!("{rule} is taken away at {at}, and it had none"));
            }
            self.steps.push(Step { at, rule, revision: None });
        }
        for rule in delta.upserted {
            self.upsert(at, rule);
        }
    }

    fn upsert(&mut self, at: i64, rule: Rule) {
        let (name, revision) = (rule.name.clone(), rule.revision);
        if revision > at {
            self.disorder.push(format!("{name} of revision {revision} comes with the state of {at}"));
        }
        if let Some(held) = self.held.get(&name)
            && held.revision >= revision
        {
            self.disorder.push(format!("{name} of revision {revision} comes at {at} after {}", held.revision));
        }
        let newer = self.progress.get(&name).is_none_or(|before| before.revision < revision);
        if newer {
            self.progress.insert(name.clone(), Progress { revision, told: Instant::now(), acked: None });
        }
        self.held.insert(name.clone(), rule);
        self.steps.push(Step { at, rule: name, revision: Some(revision) });
    }

    /// Notes the state that a message leads to: revisions of one store only grow, those of another mean nothing.
    pub(super) fn reach(&mut self, incarnation: &str, revision: i64) {
        if !incarnation.is_empty() && self.incarnation != incarnation {
            incarnation.clone_into(&mut self.incarnation);
            self.revision = 0;
            self.progress.clear();
            self.held.values_mut().for_each(|rule| rule.revision = 0);
        }
        if revision < self.revision {
            self.disorder.push(format!("the state of {revision} comes after that of {}", self.revision));
        }
        self.revision = revision;
    }

    /// The rules that it holds, and their revisions.
    pub fn revisions(&self) -> BTreeMap<String, i64> {
        self.held.iter().map(|(name, rule)| (name.clone(), rule.revision)).collect()
    }

    /// The centre has taken a report of these revisions.
    pub(super) fn ack(&mut self, reported: &BTreeMap<String, i64>) {
        let now = Instant::now();
        for (rule, progress) in &mut self.progress {
            if reported.get(rule) == Some(&progress.revision) {
                progress.acked.get_or_insert(now);
            }
        }
    }

    /// Whether this revision of the rule, or a later one, is acked.
    pub fn has_acked(&self, rule: &str, revision: i64) -> bool {
        self.progress.get(rule).is_some_and(|progress| progress.revision >= revision && progress.acked.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, revision: i64) -> Rule {
        Rule { name: name.into(), revision, ..Rule::default() }
    }

    fn told(record: &mut Record, at: i64, upserted: &[(&str, i64)], removed: &[&str]) {
        let upserted = upserted.iter().map(|(name, revision)| rule(name, *revision)).collect();
        record.reach("", at);
        let removed = removed.iter().map(|name| (*name).to_owned()).collect();
        record.take(at, Delta { upserted, removed, ..Delta::default() });
    }

    #[test]
    fn what_comes_in_order_is_held_and_acked() {
        let mut record = Record::default();
        told(&mut record, 5, &[("a", 3), ("b", 5)], &[]);
        told(&mut record, 7, &[("a", 7)], &["b"]);
        // A label was set at the centre: the same revision of a rule that it had lost.
        told(&mut record, 9, &[("b", 5)], &[]);
        assert_eq!((record.disorder.len(), record.held.len(), record.steps.len()), (0, 2, 5));
        record.ack(&BTreeMap::from([("a".to_owned(), 3)]));
        assert!(!record.has_acked("a", 3));
        record.ack(&BTreeMap::from([("a".to_owned(), 7)]));
        assert!(record.has_acked("a", 6) && !record.has_acked("a", 8));
    }

    #[test]
    fn what_comes_twice_or_from_the_past_is_noted() {
        let mut record = Record::default();
        told(&mut record, 5, &[("a", 3)], &[]);
        for (at, upserted, removed) in
            [(6, vec![("a", 3)], vec![]), (6, vec![("a", 2)], vec![]), (6, vec![], vec!["b"])]
        {
            let mut record = record.clone();
            told(&mut record, at, &upserted, &removed);
            assert_eq!(record.disorder.len(), 1, "{record:?}");
        }
        told(&mut record, 4, &[("c", 5)], &[]);
        assert_eq!(record.disorder.len(), 2, "{record:?}");
    }

    #[test]
    fn another_store_begins_anew() {
        let mut record = Record::default();
        told(&mut record, 5, &[("a", 3), ("b", 5)], &[]);
        record.reach("another", 2);
        record.take(2, Delta { upserted: vec![rule("a", 2)], snapshot: true, ..Delta::default() });
        assert_eq!((record.disorder.len(), record.held.len(), record.held["a"].revision), (0, 1, 2), "{record:?}");
    }
}
