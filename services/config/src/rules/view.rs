//! The view of all rules, compiled, kept up with the store and with a logagent's tree.

use std::sync::Arc;

use logmesh_proto::config::v1::RuleProblem;
use logmesh_runtime::Tasks;
use logmesh_store::{ConfigStore, ConfigWatcher, PrefixState, StoreError};
use logmesh_types::metric;
use metrics::gauge;
use tokio::sync::watch;
use tracing::error;

use super::live::RuleSet;
use super::seed::{SeedTree, SeedView};
use crate::keys;

/// The latest set of rules.
#[derive(Clone, Debug)]
pub(crate) struct RuleView {
    sets: watch::Receiver<Arc<RuleSet>>,
}

impl RuleView {
    /// Follows the store and the tree until the tasks are asked to end.
    pub(crate) fn start(store: Arc<dyn ConfigStore>, tree: SeedView, tasks: &Tasks) -> Self {
        let (watcher, driver) = ConfigWatcher::new(store, keys::RULES);
        let (sender, sets) = watch::channel(Arc::new(RuleSet::default()));
        let token = tasks.token();
        tasks.spawn("config-rules", async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = driver => {}
                () = publish(watcher.subscribe(), tree.subscribe(), sender) => {}
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

/// Publishes a set whenever either changed. Nothing is said before both are known: half of the rules would look like the
/// removal of the others.
async fn publish(
    mut states: watch::Receiver<Arc<PrefixState>>,
    mut trees: watch::Receiver<Arc<SeedTree>>,
    sets: watch::Sender<Arc<RuleSet>>,
) {
    loop {
        let changed = tokio::select! {
            changed = states.changed() => changed,
            changed = trees.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
        let (state, tree) = (states.borrow_and_update().clone(), trees.borrow_and_update().clone());
        if state.is_loaded() && tree.is_known() {
            let former = sets.borrow().clone();
            let set = RuleSet::read(&state, &tree, &former);
            tell(&set, &former);
            sets.send_replace(Arc::new(set));
        }
    }
}

fn tell(set: &RuleSet, former: &RuleSet) {
    for problem in set.problems.iter().filter(|problem| !former.problems.contains(problem)) {
        let RuleProblem { key, field, message } = problem;
        error!(key, field, problem = message, "this should be a rule and can't be served");
    }
    gauge!(metric::CONFIG_RULES).set(set.rules.len() as f64);
    gauge!(metric::CONFIG_RULE_PROBLEMS).set(set.problems.len() as f64);
}
