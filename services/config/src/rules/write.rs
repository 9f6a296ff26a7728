//! Writes rules: each with its place in the history, in one transaction, on the state that was looked at.

use std::sync::Arc;

use logmesh_grpc::{internal, resource_exhausted};
use logmesh_proto::config::v1::{ChangeNote, Rule};
use logmesh_rules::RuleSpec;
use logmesh_store::{ConfigStore, Precondition, Revision, StoreError, Txn};
use logmesh_types::{RuleName, UnixNanos};
use tonic::Status;
use tracing::info;

use super::history::{History, Kind, StoredChange};
use super::mask;
use super::stored::StoredRule;
use super::view::RuleView;
use crate::error::{bad_field, store};
use crate::keys;
use crate::limits::{MAX_AUTHOR_BYTES, MAX_REASON_BYTES, MAX_RULE_BYTES, MAX_RULES, MAX_RULES_BYTES};

/// The state of a rule on which a change is based.
#[derive(Clone, Debug)]
pub(crate) struct Former {
    pub(crate) revision: Revision,
    /// `None`: it can't be read.
    pub(crate) stored: Option<StoredRule>,
}

/// A change that is to be made.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) kind: Kind,
    /// The rule as it shall be; none: no more.
    pub(crate) rule: Option<RuleSpec>,
    pub(crate) note: ChangeNote,
    pub(crate) rolled_back_to: Option<Revision>,
    /// Check only, and write nothing.
    pub(crate) validate_only: bool,
}

/// Reads and writes single rules.
#[derive(Clone, Debug)]
pub(crate) struct RuleStore {
    store: Arc<dyn ConfigStore>,
    view: RuleView,
}

impl RuleStore {
    pub(crate) fn new(store: Arc<dyn ConfigStore>, view: RuleView) -> Self {
        Self { store, view }
    }

    /// The rule as it lies in the store, readable or not.
    pub(crate) async fn look(&self, name: &RuleName) -> Result<Option<Former>, Status> {
        let found = self.store.get(&keys::rule(name)).await.map_err(store)?;
        Ok(found
            .map(|versioned| Former { revision: versioned.mod_revision, stored: StoredRule::read(&versioned).ok() }))
    }

    /// The stored rule and the revision that wrote it; an error if it can't be read.
    pub(crate) async fn find(&self, name: &RuleName) -> Result<Option<(StoredRule, Revision)>, Status> {
        let Some(Former { revision, stored }) = self.look(name).await? else { return Ok(None) };
        let stored = stored.ok_or_else(|| internal(format!("{name}: what is stored can't be read")))?;
        Ok(Some((stored, revision)))
    }

    /// What became of the rule, its present state always among it.
    pub(crate) async fn history(&self, name: &RuleName, present: Option<&Former>) -> Result<History, Status> {
        let snapshot = self.store.list(&keys::history(name)).await.map_err(store)?;
        Ok(History::read(snapshot, present.and_then(|former| Some((former.stored.as_ref()?, former.revision)))))
    }

    /// Makes the change if the rule is still as `former` says, and answers with the rule as it then is, empty if it's no
    /// more; `None`: somebody else wrote in between.
    pub(crate) async fn change(
        &self,
        name: &RuleName,
        former: Option<&Former>,
        change: Change,
    ) -> Result<Option<Rule>, Status> {
        check_note(&change.note)?;
        let before = former.and_then(|former| former.stored.as_ref());
        let new = change.rule.clone().map(|rule| StoredRule::new(rule, before));
        let json = new.as_ref().map(|new| new.to_json().map_err(|problem| internal(format!("{problem:#}"))));
        let json = json.transpose()?;
        if let Some(json) = &json {
            self.check_room(name, json.len())?;
        }
        let shown = |revision| new.as_ref().map_or_else(Rule::default, |new| new.message(revision));
        if change.validate_only {
            return Ok(Some(shown(former.map_or(Revision(0), |former| former.revision))));
        }
        let kind = change.kind;
        let history = self.history(name, former).await?;
        let entry = entry(change, new.clone(), before);
        match self.store.txn(transaction(name, former, json, &history, &entry)?).await {
            Ok(revision) => {
                info!(rule = %name, %revision, ?kind, author = ?entry.author, "rule changed");
                Ok(Some(shown(revision)))
            }
            Err(StoreError::PreconditionFailed { .. }) => Ok(None),
            Err(error) => Err(store(error)),
        }
    }

    /// Keeps all rules within what one message can carry. Writers at the same moment may go over it by as much as each
    /// other.
    fn check_room(&self, name: &RuleName, bytes: usize) -> Result<(), Status> {
        let refuse = |message: String| Err(resource_exhausted("TOO_MANY_RULES", message));
        if bytes > MAX_RULE_BYTES {
            return refuse(format!(
                "{name} takes {bytes} bytes, more than {MAX_RULE_BYTES}; use globs, or several rules"
            ));
        }
        let set = self.view.latest();
        let present = set.rules.get(name.as_str()).map_or(0, |live| live.bytes);
        if set.bytes.saturating_sub(present) + bytes > MAX_RULES_BYTES {
            let all = "all rules together would take more than";
            return refuse(format!("{all} {MAX_RULES_BYTES} bytes; delete some or use globs"));
        }
        if set.rules.len() >= MAX_RULES && !set.rules.contains_key(name.as_str()) {
            return refuse(format!("there are {MAX_RULES} rules, which is the limit"));
        }
        Ok(())
    }
}

/// The change as the history keeps it.
fn entry(change: Change, new: Option<StoredRule>, before: Option<&StoredRule>) -> StoredChange {
    let changed_fields = match (before, &new) {
        (Some(before), Some(new)) => mask::differences(&before.into(), &new.into()),
        _ => Vec::new(),
    };
    StoredChange {
        change: change.kind,
        time: new.as_ref().map_or_else(|| UnixNanos::now().to_string(), |new| new.update_time.clone()),
        author: change.note.author,
        reason: change.note.reason,
        rule: new,
        changed_fields,
        rolled_back_to: change.rolled_back_to.map(|revision| revision.0),
        revision: None,
    }
}

/// Writes the rule and its change, takes up a former state that the history doesn't know, and removes what is too much.
fn transaction(
    name: &RuleName,
    former: Option<&Former>,
    json: Option<Vec<u8>>,
    history: &History,
    entry: &StoredChange,
) -> Result<Txn, Status> {
    let to_json = |change: &StoredChange| serde_json::to_vec_pretty(change).map_err(internal);
    let mut changes = Vec::new();
    if let Some((number, change)) = history.missing() {
        changes.push((number, to_json(change)?));
    }
    changes.push((history.next(), to_json(entry)?));
    let bytes = changes.iter().map(|(_, json)| json.len()).sum();
    let condition = former.map_or(Precondition::MustNotExist, |former| Precondition::RevisionIs(former.revision));
    let key = keys::rule(name);
    let mut txn = Txn::new().when(&key, condition);
    txn = match json {
        Some(json) => txn.put(key, json),
        None => txn.delete(key),
    };
    for key in history.surplus(name, changes.len(), bytes) {
        txn = txn.delete(key);
    }
    for (number, json) in changes {
        let key = keys::change(name, number);
        txn = txn.when(&key, Precondition::MustNotExist).put(key, json);
    }
    Ok(txn)
}

fn check_note(note: &ChangeNote) -> Result<(), Status> {
    let texts = [("author", &note.author, MAX_AUTHOR_BYTES), ("reason", &note.reason, MAX_REASON_BYTES)];
    match texts.iter().find(|(_, text, longest)| text.len() > *longest) {
        Some((field, _, longest)) => {
            Err(bad_field(&format!("note.{field}"), format!("is longer than {longest} bytes")))
        }
        None => Ok(()),
    }
}
