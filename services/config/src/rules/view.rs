//! The view of all rules, compiled, kept up with the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use logmesh_proto::config::v1::{self as message, RuleProblem};
use logmesh_rules::{Rule, Violation, Violations};
use logmesh_runtime::Tasks;
use logmesh_store::{ConfigStore, ConfigWatcher, PrefixState, Revision, StoreError, Versioned};
use metrics::gauge;
use tokio::sync::watch;
use tracing::error;

use super::stored::StoredRule;
use crate::keys;
use crate::limits::{MAX_PROBLEM_BYTES, MAX_PROBLEMS};

/// A rule that is in force.
#[derive(Debug)]
pub(crate) struct LiveRule {
    /// It as agents and watchers get it.
    pub(crate) message: message::Rule,
    /// It, ready to match.
    pub(crate) rule: Rule,
    /// Its size as stored.
    pub(crate) bytes: usize,
    /// The revision that wrote it.
    written: Revision,
}

/// All rules at one revision.
#[derive(Debug, Default)]
pub(crate) struct RuleSet {
    /// The store's revision; 0 until the rules were read.
    pub(crate) revision: Revision,
    /// The rules by name.
    pub(crate) rules: BTreeMap<String, Arc<LiveRule>>,
    /// Their size as stored.
    pub(crate) bytes: usize,
    /// What should be a rule and isn't, the first [`MAX_PROBLEMS`] of it.
    pub(crate) problems: Vec<RuleProblem>,
}

/// The latest set of rules.
#[derive(Clone, Debug)]
pub(crate) struct RuleView {
    sets: watch::Receiver<Arc<RuleSet>>,
}

impl RuleView {
    /// Follows the store until the tasks are asked to end.
    pub(crate) fn start(store: Arc<dyn ConfigStore>, tasks: &Tasks) -> Self {
        let (watcher, driver) = ConfigWatcher::new(store, keys::RULES);
        let (sender, sets) = watch::channel(Arc::new(RuleSet::default()));
        let token = tasks.token();
        tasks.spawn("config-rules", async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = driver => {}
                () = publish(watcher.subscribe(), sender) => {}
            }
            Ok(())
        });
        Self { sets }
    }

    pub(crate) fn latest(&self) -> Arc<RuleSet> {
        self.sets.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<RuleSet>> {
        self.sets.clone()
    }

    pub(crate) async fn loaded(&self) -> Result<(), StoreError> {
        let mut sets = self.sets.clone();
        let loaded = sets.wait_for(|set| set.is_loaded()).await.map(|_| ());
        loaded.map_err(|_| StoreError::unavailable("the service is stopping"))
    }
}

async fn publish(mut states: watch::Receiver<Arc<PrefixState>>, sets: watch::Sender<Arc<RuleSet>>) {
    while states.changed().await.is_ok() {
        let state = states.borrow_and_update().clone();
        let former = sets.borrow().clone();
        let set = RuleSet::read(&state, &former);
        for problem in set.problems.iter().filter(|problem| !former.problems.contains(problem)) {
            let RuleProblem { key, field, message } = problem;
            error!(key, field, problem = message, "this should be a rule and can't be served");
        }
        gauge!("logmesh_config_rules").set(set.rules.len() as f64);
        gauge!("logmesh_config_rule_problems").set(set.problems.len() as f64);
        sets.send_replace(Arc::new(set));
    }
}

impl RuleSet {
    /// Whether the rules were read at all.
    pub(crate) fn is_loaded(&self) -> bool {
        self.revision > Revision(0)
    }

    /// Reads what is new since the former set. A rule that can't be read, as when a later version of the program wrote it,
    /// stays as it was in force before.
    fn read(state: &PrefixState, former: &RuleSet) -> Self {
        let mut set = Self { revision: state.revision, ..Self::default() };
        let mut problems = Vec::new();
        for (key, versioned) in &state.entries {
            let name = format!("rules/{}", key.strip_prefix(keys::RULES).unwrap_or(key));
            let known = former.rules.get(&name);
            let rule = match known {
                Some(known) if known.written == versioned.mod_revision => Some(known.clone()),
                _ => match LiveRule::read(&name, versioned) {
                    Ok(rule) => Some(Arc::new(rule)),
                    Err(found) => {
                        problems.extend(found.0.into_iter().map(|found| problem(key, found, known.is_some())));
                        known.cloned()
                    }
                },
            };
            set.bytes += versioned.value.len();
            set.rules.extend(rule.map(|rule| (name, rule)));
        }
        set.problems = bounded(problems);
        set
    }
}

impl LiveRule {
    fn read(name: &str, versioned: &Versioned) -> Result<Self, Violations> {
        let one = |field: &str, description: String| Violations(vec![Violation { field: field.into(), description }]);
        let stored = StoredRule::read(versioned).map_err(|found| Violations(vec![found]))?;
        let inside = |found: Violation| Violation { field: format!("rule.{}", found.field), ..found };
        let compiled = stored.rule.compile().map_err(|found| found.0.into_iter().map(inside).collect());
        let rule = compiled.map_err(Violations)?;
        if rule.name.as_str() != name {
            return Err(one("rule.name", format!("is {}, but its key is that of {name}", rule.name)));
        }
        let (message, bytes) = (stored.message(versioned.mod_revision), versioned.value.len());
        Ok(Self { message, rule, bytes, written: versioned.mod_revision })
    }
}

/// A problem as it's told, its text cut where it's too long.
fn problem(key: &str, found: Violation, goes_on: bool) -> RuleProblem {
    let then = if goes_on { "the state before it goes on" } else { "the rule is not served" };
    let what: String = found.description.chars().take(MAX_PROBLEM_BYTES / 4).collect();
    RuleProblem { key: key.to_owned(), field: found.field, message: format!("{what}; {then}") }
}

/// The first problems, the last of which then says how many more there are.
fn bounded(mut problems: Vec<RuleProblem>) -> Vec<RuleProblem> {
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    problems.truncate(MAX_PROBLEMS);
    if let (true, Some(last)) = (more > 0, problems.last_mut()) {
        last.message = format!("{}; and {more} problems more", last.message);
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(revision: u64, rules: &[(&str, &'static str, u64)]) -> PrefixState {
        let entries = rules.iter().map(|(id, json, written)| {
            let versioned = Versioned { value: json.as_bytes().into(), mod_revision: Revision(*written), lease: None };
            (format!("{}{id}", keys::RULES), versioned)
        });
        PrefixState { revision: Revision(revision), entries: entries.collect() }
    }

    const GOOD: &str = r#"{"rule": {"name": "rules/a", "paths": ["/a"], "topic": "logs"},
        "create_time": "2026-01-01T00:00:00Z", "update_time": "2026-01-01T00:00:00Z"}"#;

    #[test]
    fn an_unreadable_rule_stays_as_it_was_and_harms_no_other() {
        let first = RuleSet::read(&state(5, &[("a", GOOD, 5)]), &RuleSet::default());
        assert_eq!(first.rules["rules/a"].message.revision, 5);
        let broken = state(7, &[("a", "{\"of\": \"the future\"}", 7), ("b", "nonsense", 6)]);
        let second = RuleSet::read(&broken, &first);
        assert_eq!(second.rules.keys().collect::<Vec<_>>(), ["rules/a"]);
        assert_eq!(second.rules["rules/a"].message.revision, 5);
        let told: Vec<_> = second.problems.iter().map(|found| (found.key.as_str(), found.message.as_str())).collect();
        assert_eq!(told[0].0, "/logmesh/v1/rules/a");
        assert!(told[0].1.ends_with("; the state before it goes on"), "{told:?}");
        assert!(told[1].0.ends_with("/b") && told[1].1.ends_with("; the rule is not served"), "{told:?}");
        let gone = RuleSet::read(&state(8, &[]), &second);
        assert!(gone.rules.is_empty() && gone.problems.is_empty());
    }

    #[test]
    fn a_rule_that_lies_in_anothers_place_is_not_taken() {
        let set = RuleSet::read(&state(5, &[("b", GOOD, 5)]), &RuleSet::default());
        assert!(set.rules.is_empty());
        assert_eq!(set.problems[0].field, "rule.name");
    }

    #[test]
    fn problems_name_the_field_and_are_bounded() {
        let bad = r#"{"rule": {"name": "rules/a", "paths": ["/a", "b"], "topic": "T"}, "create_time": "", "update_time": ""}"#;
        let worse = r#"{"rule": {"name": "rules/b", "paths": 7, "topic": "t"}, "create_time": "", "update_time": ""}"#;
        let set = RuleSet::read(&state(7, &[("a", bad, 5), ("b", worse, 6)]), &RuleSet::default());
        let fields: Vec<_> = set.problems.iter().map(|found| found.field.as_str()).collect();
        assert_eq!(fields, ["rule.paths[1]", "rule.topic", "rule.paths"]);
        let names: Vec<String> = (0..MAX_PROBLEMS + 5).map(|n| format!("r{n:04}")).collect();
        let many: Vec<(&str, &'static str, u64)> = names.iter().map(|name| (name.as_str(), "{", 1)).collect();
        let set = RuleSet::read(&state(7, &many), &RuleSet::default());
        assert_eq!(set.problems.len(), MAX_PROBLEMS);
        assert!(set.problems.last().unwrap().message.ends_with("; and 5 problems more"));
    }
}
