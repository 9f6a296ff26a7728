//! Which components of a process can do their work, and why not.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

/// The components of this process with their state. Clones share it.
///
/// A process in which no component has reported yet isn't ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    components: Arc<RwLock<BTreeMap<&'static str, (bool, String)>>>,
    changes: watch::Sender<()>,
}

impl Readiness {
    /// No component yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says whether the component can work, and in `reason` what it's waiting for if it can't, or what is wrong though it
    /// can.
    pub fn set(&self, component: &'static str, ready: bool, reason: impl Into<String>) {
        let state = (ready, reason.into());
        self.components.write().unwrap_or_else(PoisonError::into_inner).insert(component, state);
        self.changes.send_replace(());
    }

    /// Changes whenever a component says something.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Name, state and reason of each component, by name.
    pub fn snapshot(&self) -> Vec<(&'static str, bool, String)> {
        let components = self.components.read().unwrap_or_else(PoisonError::into_inner);
        components.iter().map(|(name, (ready, reason))| (*name, *ready, reason.clone())).collect()
    }

    /// True if there is a component and all are ready.
    pub fn all_ready(&self) -> bool {
        let components = self.components.read().unwrap_or_else(PoisonError::into_inner);
        !components.is_empty() && components.values().all(|(ready, _)| *ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_must_be_ready() {
        let readiness = Readiness::new();
        assert!(!readiness.all_ready(), "nothing has reported");
        readiness.set("store", true, "");
        readiness.set("bus", false, "opening the log");
        assert!(!readiness.all_ready());
        assert_eq!(readiness.snapshot()[0], ("bus", false, "opening the log".to_owned()));
        readiness.set("bus", true, "");
        assert!(readiness.all_ready());
    }
}
