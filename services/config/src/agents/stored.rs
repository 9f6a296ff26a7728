//! What the store keeps of an agent: enough to list it while it's away, and the labels that the centre gave it.

use std::time::Duration;

use logmesh_rules::Labels;
use logmesh_types::UnixNanos;
use serde::{Deserialize, Serialize};

use super::registry::Introduction;

/// Labels that only the host sets: what it's called, what it runs, where it is.
pub(crate) const HOSTS_OWN: [&str; 3] = ["host", "os", "ip"];

/// How old an agent's time in the store may be while it's connected, at most: a thousand agents then cost some ten writes
/// a day …
const SEEN_STEP: Duration = Duration::from_secs(20 * 3600);

/// … and this part of the time after which one that isn't seen is forgotten.
const SEEN_PART: u32 = 4;

/// How old an agent's time in the store may be while it's connected.
pub(crate) fn seen_step(retention: Duration) -> Duration {
    SEEN_STEP.min(retention / SEEN_PART)
}

/// The value of an agent's key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StoredAgent {
    /// The labels that the host gives itself.
    pub(crate) host_labels: Labels,
    /// The labels that the centre gave it.
    pub(crate) labels: Labels,
    /// Its version of logmesh.
    pub(crate) version: String,
    /// When it was first here, RFC 3339.
    pub(crate) first_seen: String,
    /// When it was last here, to within [`seen_step`]; RFC 3339.
    pub(crate) last_seen: String,
}

impl StoredAgent {
    /// The record of an agent that is here now.
    pub(crate) fn new(former: Option<&Self>, introduction: &Introduction, now: UnixNanos) -> Self {
        let now = now.to_string();
        let first_seen = former.map(|former| former.first_seen.clone()).filter(|time| !time.is_empty());
        Self {
            host_labels: introduction.labels.clone(),
            labels: former.map(|former| former.labels.clone()).unwrap_or_default(),
            version: introduction.version.clone(),
            first_seen: first_seen.unwrap_or_else(|| now.clone()),
            last_seen: now,
        }
    }

    /// Whether it's as the agent introduces itself, and its time isn't older than that.
    pub(crate) fn is_of(&self, introduction: &Introduction, now: UnixNanos, step: Duration) -> bool {
        let age = |seen: UnixNanos| u64::try_from(now.0.saturating_sub(seen.0)).unwrap_or(0);
        let fresh = self.last_seen().is_some_and(|seen| Duration::from_nanos(age(seen)) < step);
        fresh && self.host_labels == introduction.labels && self.version == introduction.version
    }

    pub(crate) fn last_seen(&self) -> Option<UnixNanos> {
        self.last_seen.parse().ok()
    }
}

/// The labels that rules are matched with: the centre's win over the host's, but for [`HOSTS_OWN`].
pub(crate) fn merged(host: &Labels, centre: &Labels) -> Labels {
    let mut labels = host.clone();
    let given = centre.iter().filter(|(key, _)| !HOSTS_OWN.contains(&key.as_str()));
    labels.extend(given.map(|(key, value)| (key.clone(), value.clone())));
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_centres_labels_win_but_for_what_a_host_is() {
        let host = labels(&[("host", "web-1"), ("env", "test"), ("ip", "10.0.0.1")]);
        let centre = labels(&[("env", "prod"), ("ip", "10.9.9.9"), ("role", "web")]);
        let expected = labels(&[("env", "prod"), ("host", "web-1"), ("ip", "10.0.0.1"), ("role", "web")]);
        assert_eq!(merged(&host, &centre), expected);
    }

    #[test]
    fn a_record_is_written_anew_when_something_is_new_or_its_time_is_old() {
        let hour = 3600 * 1_000_000_000;
        let introduction = |version: &str, env: &str| Introduction {
            id: "a".parse().unwrap(),
            session: "s".into(),
            labels: labels(&[("env", env)]),
            version: version.into(),
        };
        let step = seen_step(Duration::from_secs(30 * 24 * 3600));
        assert_eq!((step, seen_step(Duration::from_secs(8))), (SEEN_STEP, Duration::from_secs(2)));
        let first = StoredAgent::new(None, &introduction("1", "prod"), UnixNanos(0));
        assert!(first.is_of(&introduction("1", "prod"), UnixNanos(19 * hour), step));
        assert!(!first.is_of(&introduction("1", "prod"), UnixNanos(21 * hour), step));
        assert!(!first.is_of(&introduction("2", "prod"), UnixNanos(1), step));
        assert!(!first.is_of(&introduction("1", "test"), UnixNanos(1), step));
        let given = StoredAgent { labels: labels(&[("role", "web")]), ..first };
        let later = StoredAgent::new(Some(&given), &introduction("2", "prod"), UnixNanos(hour));
        assert_eq!((&later.labels, &later.first_seen), (&given.labels, &given.first_seen));
        assert_eq!(serde_json::from_str::<StoredAgent>("{}").unwrap(), StoredAgent::default());
    }
}
