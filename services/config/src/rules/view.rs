//! The view of all rules, compiled, kept up with the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use logmesh_proto::config::v1 as message;
use logmesh_rules::Rule;
use logmesh_runtime::Tasks;
use logmesh_store::{ConfigStore, ConfigWatcher, PrefixState, Revision, StoreError, Versioned};
use metrics::gauge;
use tokio::sync::watch;
use tracing::error;

use super::stored::StoredRule;
use crate::keys;

/// A rule that is in force.
#[derive(Debug)]
pub(crate) struct LiveRule {
    /// It as agents and watchers get it.
    pub(crate) message: message::Rule,
    /// It, ready to match.
    pub(crate) rule: Rule,
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
        gauge!("logmesh_config_rules").set(set.rules.len() as f64);
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
        for (key, versioned) in &state.entries {
            set.bytes += versioned.value.len();
            let name = format!("rules/{}", key.strip_prefix(keys::RULES).unwrap_or(key));
            let known = former.rules.get(&name);
            let rule = match known {
                Some(known) if known.written == versioned.mod_revision => Some(known.clone()),
                _ => match LiveRule::read(&name, versioned) {
                    Ok(rule) => Some(Arc::new(rule)),
                    Err(problem) => {
                        error!(rule = ?name, problem = format!("{problem:#}"), "cannot read a rule, leaving it as it was");
                        known.cloned()
                    }
                },
            };
            set.rules.extend(rule.map(|rule| (name, rule)));
        }
        set
    }
}

impl LiveRule {
    fn read(name: &str, versioned: &Versioned) -> anyhow::Result<Self> {
        let stored = StoredRule::read(versioned)?;
        let rule = stored.rule.compile()?;
        anyhow::ensure!(rule.name.as_str() == name, "it names itself {}", rule.name);
        Ok(Self { message: stored.message(versioned.mod_revision), rule, written: versioned.mod_revision })
    }
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
        let gone = RuleSet::read(&state(8, &[]), &second);
        assert!(gone.rules.is_empty());
    }

    #[test]
    fn a_rule_that_lies_in_anothers_place_is_not_taken() {
        let set = RuleSet::read(&state(5, &[("b", GOOD, 5)]), &RuleSet::default());
        assert!(set.rules.is_empty());
    }
}
