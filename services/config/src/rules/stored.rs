//! A rule as it lies in the store, and as it's shown.

use crate::revision::on_wire;
use anyhow::Context;
use logmesh_proto::config::v1 as message;
use logmesh_proto::time::timestamp;
use logmesh_rules::{RuleSpec, Violation};
use logmesh_store::{Revision, Versioned};
use logmesh_types::UnixNanos;
use serde::{Deserialize, Serialize};

/// The value of a rule's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredRule {
    /// The rule as it was written.
    pub(crate) rule: RuleSpec,
    /// When it was made, RFC 3339.
    pub(crate) create_time: String,
    /// When it was last changed, RFC 3339.
    pub(crate) update_time: String,
}

impl StoredRule {
    /// A rule that is new, or changed now if it has a former state.
    pub(crate) fn new(rule: RuleSpec, former: Option<&StoredRule>) -> Self {
        let now = UnixNanos::now().to_string();
        let create_time = former.map_or_else(|| now.clone(), |former| former.create_time.clone());
        Self { rule, create_time, update_time: now }
    }

    /// Reads the value of a rule's key; an error names the field.
    pub(crate) fn read(versioned: &Versioned) -> Result<Self, Violation> {
        let mut deserializer = serde_json::Deserializer::from_slice(&versioned.value);
        serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let field = error.path().to_string();
            let field = if matches!(field.as_str(), "." | "?") { String::new() } else { field };
            Violation { field, description: format!("can't be read: {}", error.into_inner()) }
        })
    }

    pub(crate) fn to_json(&self) -> anyhow::Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).context("a rule has no JSON form")
    }

    /// The rule as callers see it when the store's revision `revision` wrote it.
    pub(crate) fn message(&self, revision: Revision) -> message::Rule {
        let time = |text: &str| text.parse::<UnixNanos>().ok().map(timestamp);
        message::Rule {
            revision: on_wire(revision),
            etag: etag(revision),
            create_time: time(&self.create_time),
            update_time: time(&self.update_time),
            ..message::Rule::from(&self.rule)
        }
    }
}

impl From<&StoredRule> for message::Rule {
    /// The rule as it was written, without what the server adds.
    fn from(stored: &StoredRule) -> Self {
        Self::from(&stored.rule)
    }
}

/// The etag of the state that a revision wrote.
pub(crate) fn etag(revision: Revision) -> String {
    format!("r{revision}")
}
