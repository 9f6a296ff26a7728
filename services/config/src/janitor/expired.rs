//! What is long gone: agents, and the histories of rules that were deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use logmesh_store::{ConfigStore, Entry, Precondition, StoreError};
use logmesh_types::UnixNanos;
use serde::Deserialize;

use super::Expired;
use crate::keys;

/// What every change in a history tells, whatever else it does.
#[derive(Deserialize)]
struct Change {
    time: String,
}

/// What is kept of an agent, as far as it matters here.
#[derive(Deserialize)]
struct Agent {
    last_seen: String,
}

/// The agents that weren't seen since the retention began.
pub(super) async fn agents(
    store: &dyn ConfigStore,
    retention: Duration,
    now: UnixNanos,
) -> Result<Vec<Expired>, StoreError> {
    let kept = store.list(keys::AGENTS).await?;
    let is_gone = |entry: &Entry| {
        let agent = serde_json::from_slice::<Agent>(&entry.versioned.value);
        agent.is_ok_and(|agent| is_older(&agent.last_seen, retention, now))
    };
    let expired = |entry: Entry| Expired {
        what: entry.key.replace(keys::AGENTS, "agent "),
        conditions: vec![(entry.key.clone(), Precondition::RevisionIs(entry.versioned.mod_revision))],
        keys: vec![entry.key],
    };
    Ok(kept.entries.into_iter().filter(is_gone).map(expired).collect())
}

/// The histories of rules that were deleted before the retention began. Keys are read first: what they hold may be large.
pub(super) async fn histories(
    store: &dyn ConfigStore,
    retention: Duration,
    now: UnixNanos,
) -> Result<Vec<Expired>, StoreError> {
    let there: BTreeSet<String> = store.keys(keys::RULES).await?.into_iter().collect();
    let mut histories: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for key in store.keys(keys::HISTORY).await? {
        let rule = key.strip_prefix(keys::HISTORY).and_then(|rest| rest.split_once('/')).map(|(rule, _)| rule);
        let rule = rule.map(|rule| format!("{}{rule}", keys::RULES)).filter(|rule| !there.contains(rule));
        if let Some(rule) = rule {
            histories.entry(rule).or_default().push(key);
        }
    }
    let mut expired = Vec::new();
    for (rule, changes) in histories {
        // The last change is the deletion.
        let Some((last, next)) = changes.last().and_then(|last| Some((last, next(last)?))) else { continue };
        let deleted = store.get(last).await?.and_then(|held| serde_json::from_slice::<Change>(&held.value).ok());
        if deleted.is_some_and(|change| is_older(&change.time, retention, now)) {
            let what = format!("the history of {}", rule.replace(keys::RULES, "rules/"));
            // A rule that was made and deleted again meanwhile isn't there either, but has more changes.
            let conditions = [rule, next].map(|key| (key, Precondition::MustNotExist)).into();
            expired.push(Expired { what, conditions, keys: changes });
        }
    }
    Ok(expired)
}

/// The key of the change after this one.
fn next(change: &str) -> Option<String> {
    let (history, number) = change.rsplit_once('/')?;
    Some(format!("{history}/{:010}", number.parse::<u64>().ok()?.checked_add(1)?))
}

/// Whether a time lies that far back. One that can't be read doesn't: what isn't understood isn't deleted.
fn is_older(time: &str, retention: Duration, now: UnixNanos) -> bool {
    let age = |time: UnixNanos| Duration::from_nanos(u64::try_from(now.0.saturating_sub(time.0)).unwrap_or_default());
    time.parse::<UnixNanos>().is_ok_and(|time| age(time) > retention)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_time_that_is_read_and_lies_far_back_is_old() {
        let now: UnixNanos = "2026-06-01T00:00:00Z".parse().unwrap();
        let day = Duration::from_secs(24 * 3600);
        assert!(is_older("2026-05-30T00:00:00Z", day, now));
        for young in ["2026-05-31T12:00:00Z", "2027-01-01T00:00:00Z", "", "yesterday"] {
            assert!(!is_older(young, day, now), "{young}");
        }
    }
}
