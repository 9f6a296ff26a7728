//! Which rules an agent is meant to run, and what is to be said to one that holds others.
//!
//! Ten thousand streams follow one compiled set of rules. Each set comes with the names that it changed, worked out once,
//! so that a stream which had the set before matches those alone; and rules are shared, not copied.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use logmesh_proto::fleet::v1::Delta;
use logmesh_rules::Labels;
use logmesh_runtime::Tasks;
use tokio::sync::watch;

use crate::revision::on_wire;
use crate::rules::{LiveRule, RuleSet, RuleView};

/// The shortest time between two sets that streams are woken for: a burst of a hundred changes doesn't wake ten thousand
/// streams a hundred times.
const PAUSE: Duration = Duration::from_millis(50);

/// A set of rules, and how it differs from the one before.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) set: Arc<RuleSet>,
    /// Counts the sets.
    number: u64,
    /// The names of rules that aren't as they were.
    changed: Vec<String>,
}

impl Step {
    /// The step to this set.
    pub(super) fn to(&self, set: Arc<RuleSet>) -> Self {
        let (before, now) = (&self.set.rules, &set.rules);
        let gone = before.keys().filter(|name| !now.contains_key(*name));
        let new = now.iter().filter(|(name, rule)| before.get(*name).is_none_or(|known| !Arc::ptr_eq(known, rule)));
        let changed = gone.chain(new.map(|(name, _)| name)).cloned().collect();
        Self { number: self.number + 1, changed, set }
    }

    /// The revision of the set, as messages have it.
    pub(crate) fn revision(&self) -> i64 {
        on_wire(self.set.revision)
    }
}

/// Follows the rules until the tasks are asked to end.
pub(crate) fn follow(view: &RuleView, tasks: &Tasks) -> watch::Receiver<Arc<Step>> {
    let (sender, steps) = watch::channel(Arc::new(Step::default()));
    let (mut sets, token) = (view.subscribe(), tasks.token());
    tasks.spawn("config-steps", async move {
        let publish = async {
            // The empty set that it begins with is there already: behind it no pause is due.
            drop(sets.wait_for(|set| set.is_loaded()).await);
            sets.mark_changed();
            while sets.changed().await.is_ok() {
                let set = sets.borrow_and_update().clone();
                let step = sender.borrow().to(set);
                sender.send_replace(Arc::new(step));
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = token.cancelled() => {}
            () = publish => {}
        }
        Ok(())
    });
    steps
}

/// The rules that an agent is meant to run, in the order of their names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    rules: Arc<[Arc<LiveRule>]>,
    /// The step that they are of.
    number: u64,
}

impl Wanted {
    /// Those of a set that are meant for these labels.
    pub(crate) fn of(step: &Step, labels: &Labels) -> Self {
        let meant = step.set.rules.values().filter(|live| live.rule.selector.matches(labels));
        Self { rules: meant.cloned().collect(), number: step.number }
    }

    /// The same for a later set; the labels are those of before.
    pub(crate) fn at(&self, step: &Step, labels: &Labels) -> Self {
        if self.number == step.number {
            return self.clone();
        }
        if self.number + 1 != step.number {
            return Self::of(step, labels);
        }
        let mut rules: Option<Vec<Arc<LiveRule>>> = None;
        for name in &step.changed {
            let now = step.set.rules.get(name).filter(|live| live.rule.selector.matches(labels));
            let known = rules.as_deref().unwrap_or(&self.rules);
            let place = known.binary_search_by(|live| live.message.name.as_str().cmp(name));
            if place.is_err() && now.is_none() {
                continue;
            }
            let rules = rules.get_or_insert_with(|| self.rules.to_vec());
            match (place, now) {
                (Ok(at), Some(live)) => rules[at] = live.clone(),
                (Ok(at), None) => drop(rules.remove(at)),
                (Err(at), now) => drop(rules.splice(at..at, now.cloned())),
            }
        }
        Self { rules: rules.map_or_else(|| self.rules.clone(), Into::into), number: step.number }
    }

    /// The rules, by name.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &LiveRule> {
        self.rules.iter().map(Arc::as_ref)
    }

    fn holds(&self, name: &str) -> bool {
        self.rules.binary_search_by(|live| live.message.name.as_str().cmp(name)).is_ok()
    }

    /// True if these are those that the other holds; it may say no of equal ones.
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.rules, &other.rules)
    }
}

/// What an agent holds once it has read all that was sent.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// What it was told.
    told: Wanted,
    /// What else it holds, by name and revision: what it said at first, then what it keeps of rules that can't be read here.
    also: BTreeMap<String, i64>,
}

impl Held {
    /// What an agent says that it holds.
    pub(crate) fn said(also: BTreeMap<String, i64>) -> Self {
        Self { told: Wanted::default(), also }
    }

    /// The least that leads from this to what is wanted, which is held from then on. A snapshot tells all of it. What
    /// `is_kept` is kept though it isn't wanted; from another store, of which a snapshot is told, there is nothing to keep.
    pub(crate) fn advance(&mut self, wanted: Wanted, snapshot: bool, is_kept: impl Fn(&str) -> bool) -> Delta {
        if !snapshot && self.also.is_empty() && self.told.is(&wanted) {
            self.told = wanted;
            return Delta::default();
        }
        let mut held = std::mem::take(&mut self.also);
        held.extend(self.told.rules().map(|live| (live.message.name.clone(), live.message.revision)));
        let is_new =
            |live: &&LiveRule| snapshot || held.get(live.message.name.as_str()) != Some(&live.message.revision);
        let upserted = wanted.rules().filter(is_new).map(|live| live.message.clone()).collect();
        held.retain(|name, _| !wanted.holds(name));
        // In a snapshot, too, it's said what is to be dropped: an agent of an earlier version knows of no snapshots.
        let (also, gone) = held.into_iter().partition(|(name, _)| !snapshot && is_kept(name));
        let gone: BTreeMap<String, i64> = gone;
        (self.told, self.also) = (wanted, also);
        Delta { upserted, removed: gone.into_keys().collect(), snapshot }
    }
}

#[cfg(test)]
mod tests {
    use logmesh_proto::config::v1::Rule;
    use logmesh_store::Revision;
    use proptest::prelude::*;

    use super::*;

    const SELECTORS: [&str; 5] = ["", "role=web", "role!=web", "!exists(role)", "role in (db, api)"];

    /// A set in which the rules have these selectors; those that are as in the set before are the same.
    fn next(step: &Step, selectors: &[Option<usize>], revision: i64) -> Step {
        let rule = |(place, selector): (usize, &Option<usize>)| {
            let (name, selector) = (format!("rules/r{place}"), SELECTORS[(*selector)?]);
            let known = step.set.rules.get(&name).filter(|known| known.message.selector == selector);
            let paths = vec!["/a".to_owned()];
            let new = || Rule {
                name: name.clone(),
                selector: selector.into(),
                paths,
                topic: "t".into(),
                revision,
                ..Rule::default()
            };
            Some((name.clone(), known.cloned().unwrap_or_else(|| Arc::new(LiveRule::of(new())))))
        };
        let rules = selectors.iter().enumerate().filter_map(rule).collect();
        let mut set = RuleSet::default();
        (set.revision, set.rules) = (Revision(revision as u64), rules);
        step.to(Arc::new(set))
    }

    fn held(wanted: &Wanted) -> BTreeMap<String, i64> {
        wanted.rules().map(|live| (live.message.name.clone(), live.message.revision)).collect()
    }

    /// What an agent holds after a message, if the message says nothing that it holds already.
    fn apply(held: &mut BTreeMap<String, i64>, delta: Delta) -> Result<(), TestCaseError> {
        if delta.snapshot {
            held.clear();
        }
        for name in delta.removed {
            prop_assert!(held.remove(&name).is_some() || delta.snapshot, "{} wasn't held", name);
        }
        for rule in delta.upserted {
            let before = held.insert(rule.name.clone(), rule.revision);
            prop_assert_ne!(before, Some(rule.revision), "{} was held", rule.name);
        }
        Ok(())
    }

    proptest! {
        /// Whichever sets an agent's stream skips, and however labels and incarnation change, it comes to what the newest set
        /// means for the labels, by messages that say nothing twice.
        #[test]
        fn a_stream_comes_to_what_is_meant_by_the_least_it_can_say(
            sets in prop::collection::vec(
                (prop::collection::vec(prop::option::of(0..SELECTORS.len()), 6), any::<bool>(), 0u8..8, 0u8..8), 1..30),
            said in prop::collection::btree_map("rules/r[0-7]", 1i64..5, 0..4),
        ) {
            let (mut step, mut wanted, mut labels) = (Step::default(), None::<Wanted>, Labels::new());
            let mut agent = said.clone();
            let mut told = Held::said(said);
            // A rule that can't be read here: nobody is told of it, and who holds it keeps it.
            let is_kept = |name: &str| name == "rules/r7";
            for (number, (selectors, skips, label, incarnation)) in sets.into_iter().enumerate() {
                step = next(&step, &selectors, number as i64 + 1);
                if skips {
                    continue;
                }
                if let Some(role) = ["web", "db"].get(usize::from(label)) {
                    labels.insert("role".into(), (*role).into());
                    wanted = None;
                }
                let now = wanted.as_ref().map_or_else(|| Wanted::of(&step, &labels), |wanted| wanted.at(&step, &labels));
                prop_assert_eq!(held(&now), held(&Wanted::of(&step, &labels)));
                wanted = Some(now.clone());
                let kept = agent.get("rules/r7").copied().filter(|_| incarnation != 0);
                apply(&mut agent, told.advance(now.clone(), incarnation == 0, is_kept))?;
                let mut expected = held(&now);
                expected.extend(kept.map(|revision| ("rules/r7".to_owned(), revision)));
                prop_assert_eq!(&agent, &expected);
                prop_assert_eq!(told.advance(now, false, is_kept), Delta::default());
            }
        }
    }
}
