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
    fn to(&self, set: Arc<RuleSet>) -> Self {
        let (before, now) = (&self.set.rules, &set.rules);
        let gone = before.keys().filter(|name| !now.contains_key(*name));
        let new = now.iter().filter(|(name, rule)| before.get(*name).is_none_or(|known| !Arc::ptr_eq(known, rule)));
        let changed = gone.chain(new.map(|(name, _)| name)).cloned().collect();
        Self { number: self.number + 1, changed, set }
    }

    /// The revision of the set, as messages have it.
    pub(crate) fn revision(&self) -> i64 {
        i64::try_from(self.set.revision.0).unwrap_or(i64::MAX)
    }
}

/// Follows the rules until the tasks are asked to end.
pub(crate) fn follow(view: &RuleView, tasks: &Tasks) -> watch::Receiver<Arc<Step>> {
    let (sender, steps) = watch::channel(Arc::new(Step::default()));
    let (mut sets, token) = (view.subscribe(), tasks.token());
    tasks.spawn("config-steps", async move {
        let publish = async {
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

    /// True if these are those that the other holds; it may say no of equal ones.
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.rules, &other.rules)
    }
}

/// What an agent holds once it has read all that was sent.
#[derive(Debug)]
pub(crate) enum Held {
    /// Name and revision, as it said.
    Said(BTreeMap<String, i64>),
    /// What it was told.
    Told(Wanted),
}

impl Held {
    /// The least that leads from this to what is wanted, which is held from then on. A snapshot tells all of it.
    pub(crate) fn advance(&mut self, wanted: Wanted, snapshot: bool) -> Delta {
        let delta = match &*self {
            Self::Told(told) if !snapshot && told.is(&wanted) => Delta::default(),
            Self::Told(told) => {
                let held = told.rules().map(|live| (live.message.name.as_str(), live.message.revision)).collect();
                difference(&held, &wanted, snapshot)
            }
            Self::Said(said) => {
                let held = said.iter().map(|(name, revision)| (name.as_str(), *revision)).collect();
                difference(&held, &wanted, snapshot)
            }
        };
        *self = Self::Told(wanted);
        delta
    }
}

/// In a snapshot, too, it's said what is to be dropped: an agent of an earlier version knows of no snapshots.
fn difference(held: &BTreeMap<&str, i64>, wanted: &Wanted, snapshot: bool) -> Delta {
    let is_new = |live: &&LiveRule| snapshot || held.get(live.message.name.as_str()) != Some(&live.message.revision);
    let upserted = wanted.rules().filter(is_new).map(|live| live.message.clone()).collect();
    let is_wanted = |name: &str| wanted.rules.binary_search_by(|live| live.message.name.as_str().cmp(name)).is_ok();
    let removed = held.keys().filter(|name| !is_wanted(name)).map(|name| (*name).to_owned()).collect();
    Delta { upserted, removed, snapshot }
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
        step.to(Arc::new(RuleSet { revision: Revision(revision as u64), rules, ..RuleSet::default() }))
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
            let mut told = Held::Said(said);
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
                apply(&mut agent, told.advance(now.clone(), incarnation == 0))?;
                prop_assert_eq!(&agent, &held(&now));
                prop_assert_eq!(told.advance(now, false), Delta::default());
            }
        }
    }
}
