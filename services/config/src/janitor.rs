//! What must be done by one alone, however many config services there are: forgetting what is long gone.
//!
//! One of the config services on a store is the *janitor*, by election. It deletes only in transactions that hold as long
//! as its leadership does: one that was frozen or cut off, and doesn't know yet that another took over, deletes nothing.

mod expired;

use std::sync::Arc;
use std::time::Duration;

use logmesh_runtime::{CancellationToken, RetryPolicy, Tasks};
use logmesh_store::{ConfigStore, Election, Leadership, Op, Precondition, StoreError, Txn};
use logmesh_types::{UnixNanos, metric};
use metrics::counter;
use tracing::{debug, info, warn};

use crate::keys;
use crate::settings::Settings;

/// The office's name among the leaders.
pub(crate) const OFFICE: &str = "janitor";

/// It looks ten times within the shortest retention, but no more and no less often than this.
const SHORTEST_ROUND: Duration = Duration::from_secs(1);
const LONGEST_ROUND: Duration = Duration::from_secs(6 * 3600);

/// A new janitor waits no longer than this, so that the work is done where the office changes often too.
const FIRST_ROUND: Duration = Duration::from_secs(60);

/// Between two deletions, so that nobody else waits for the store.
const BREATH: Duration = Duration::from_millis(10);

const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(200), max: Duration::from_secs(10) };

/// A config service as a candidate for the office.
pub(crate) struct Janitor {
    store: Arc<dyn ConfigStore>,
    /// What this service calls itself.
    name: String,
    settings: Arc<Settings>,
}

/// What goes in one transaction.
#[derive(Debug, PartialEq, Eq)]
struct Expired {
    what: String,
    /// They hold as long as nobody changed what was looked at.
    conditions: Vec<(String, Precondition)>,
    keys: Vec<String>,
}

/// Why a round ended before its end.
enum End {
    /// Another leads.
    Deposed,
    Failed(StoreError),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl Janitor {
    /// Campaigns for the office, and does its work when it has it, until the tasks are asked to end.
    pub(crate) fn start(store: Arc<dyn ConfigStore>, name: String, settings: Arc<Settings>, tasks: &Tasks) {
        let janitor = Self { store, name, settings };
        let token = tasks.token();
        tasks.spawn("config-janitor", async move {
            janitor.run(&token).await;
            Ok(())
        });
    }

    fn election(&self) -> Election {
        Election::new(self.store.clone(), format!("{}{OFFICE}", keys::LEADERS), self.settings.endpoint_ttl.0)
    }

    async fn run(&self, token: &CancellationToken) {
        let (election, mut attempt) = (self.election(), 0);
        while !token.is_cancelled() {
            let campaign = tokio::select! {
                () = token.cancelled() => return,
                campaign = election.campaign(&self.name) => campaign,
            };
            match campaign {
                Ok(leadership) => {
                    attempt = 0;
                    self.lead(leadership, token).await;
                }
                Err(error) => {
                    debug!(%error, "cannot campaign to be the janitor; trying again");
                    RETRY.pause(attempt, token).await;
                    attempt += 1;
                }
            }
        }
    }

    async fn lead(&self, leadership: Leadership, token: &CancellationToken) {
        let term = leadership.revision();
        info!(name = %self.name, %term, "this config service is the janitor");
        tokio::select! {
            () = token.cancelled() => {
                // Whoever waits for the office needn't wait for the end of the lease.
                if let Err(error) = leadership.resign().await {
                    debug!(%error, "could not give up the office; it ends with its lease");
                }
            }
            () = leadership.hold() => warn!(%term, "this config service is the janitor no longer"),
            () = self.work(&leadership) => {}
        }
    }

    /// Goes round until another leads.
    async fn work(&self, leadership: &Leadership) {
        for pause in pauses(self.settings.agent_retention.0.min(self.settings.history_retention.0)) {
            tokio::time::sleep(pause).await;
            match self.round(leadership).await {
                Ok(()) => {}
                Err(End::Deposed) => return,
                Err(End::Failed(error)) => warn!(%error, "the janitor's round was broken off; the next one goes on"),
            }
        }
    }

    async fn round(&self, leadership: &Leadership) -> Result<(), End> {
        let (store, settings, now) = (self.store.as_ref(), &self.settings, UnixNanos::now());
        let agents = expired::agents(store, settings.agent_retention.0, now).await?;
        let histories = expired::histories(store, settings.history_retention.0, now).await?;
        for expired in agents.into_iter().chain(histories) {
            let what = expired.what.clone();
            match self.forget(expired, leadership).await {
                // It would be refused each time, and nothing after it forgotten.
                Err(End::Failed(error @ StoreError::Invalid(_))) => {
                    warn!(%what, %error, "refused; the janitor goes on")
                }
                done => done?,
            }
            tokio::time::sleep(BREATH).await;
        }
        Ok(())
    }

    /// Deletes what expired, if this still is the janitor and nobody has changed it.
    async fn forget(&self, expired: Expired, leadership: &Leadership) -> Result<(), End> {
        let term = leadership.revision();
        let (office, leads) = leadership.condition();
        let leads = Txn::new().when(&office, leads);
        let mut txn = expired.conditions.into_iter().fold(leads, |txn, (key, unchanged)| txn.when(key, unchanged));
        txn.ops.extend(expired.keys.into_iter().map(|key| Op::Delete { key }));
        match self.store.txn(txn).await {
            Ok(revision) => {
                counter!(metric::CONFIG_FORGOTTEN).increment(1);
                info!(what = %expired.what, %revision, %term, "forgotten for good");
                Ok(())
            }
            Err(StoreError::PreconditionFailed { key, .. }) if key == office => {
                warn!(what = %expired.what, %term, "another config service is the janitor now; nothing was deleted");
                Err(End::Deposed)
            }
            // The next round looks at it anew.
            Err(StoreError::PreconditionFailed { key, .. }) => {
                debug!(what = %expired.what, %key, "it was changed meanwhile and stays");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The pauses before the rounds.
fn pauses(shortest_retention: Duration) -> impl Iterator<Item = Duration> {
    let pause = (shortest_retention / 10).clamp(SHORTEST_ROUND, LONGEST_ROUND);
    std::iter::once(pause.min(FIRST_ROUND)).chain(std::iter::repeat(pause))
}

#[cfg(test)]
mod tests {
    use logmesh_store_embedded::{EmbeddedStore, Options};
    use logmesh_types::Span;

    use super::*;

    const OLD: &str = r#"{"change": "deleted", "time": "2020-01-01T00:00:00Z"}"#;

    fn janitor(folder: &tempfile::TempDir, name: &str) -> Janitor {
        let store = EmbeddedStore::open(&folder.path().join("config.redb"), Options::default()).unwrap();
        let endpoint_ttl = Span(Duration::from_secs(60));
        let settings = Arc::new(Settings { endpoint_ttl, ..Settings::default() });
        Janitor { store: Arc::new(store), name: name.to_owned(), settings }
    }

    async fn put(janitor: &Janitor, key: &str, value: &'static str) {
        janitor.store.put(key, value.into(), Precondition::None).await.unwrap();
    }

    async fn histories(janitor: &Janitor) -> Vec<String> {
        janitor.store.keys(keys::HISTORY).await.unwrap()
    }

    #[tokio::test]
    async fn only_what_is_deleted_and_long_gone_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let janitor = janitor(&folder, "one");
        put(&janitor, "/logmesh/v1/rules/there", "{}").await;
        let young = format!(r#"{{"change": "deleted", "time": "{}"}}"#, UnixNanos::now());
        let young: &'static str = young.leak();
        let entries = [("there", OLD), ("gone", OLD), ("gone-too", OLD), ("young", young), ("strange", "{}")];
        for (rule, last) in entries {
            put(&janitor, &format!("/logmesh/v1/history/{rule}/0000000001"), OLD).await;
            put(&janitor, &format!("/logmesh/v1/history/{rule}/0000000002"), last).await;
        }
        let leadership = janitor.election().campaign("one").await.unwrap();
        assert!(janitor.round(&leadership).await.is_ok());
        let left = histories(&janitor).await;
        let rules: Vec<&str> = left.iter().filter_map(|key| key.split('/').nth(4)).collect();
        assert_eq!(rules, ["strange", "strange", "there", "there", "young", "young"]);
    }

    #[tokio::test]
    async fn an_agent_is_forgotten_when_it_was_not_seen_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let janitor = janitor(&folder, "one");
        let seen = |time: &str| -> &'static str { format!(r#"{{"last_seen": "{time}"}}"#).leak() };
        put(&janitor, "/logmesh/v1/agents/gone", seen("2020-01-01T00:00:00Z")).await;
        put(&janitor, "/logmesh/v1/agents/here", seen(&UnixNanos::now().to_string())).await;
        put(&janitor, "/logmesh/v1/agents/strange", "{}").await;
        let leadership = janitor.election().campaign("one").await.unwrap();
        assert!(janitor.round(&leadership).await.is_ok());
        let left = janitor.store.keys(keys::AGENTS).await.unwrap();
        assert_eq!(left, ["/logmesh/v1/agents/here", "/logmesh/v1/agents/strange"]);
    }

    #[tokio::test]
    async fn what_the_store_refuses_keeps_nothing_else_from_being_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let janitor = janitor(&folder, "one");
        for number in 0..=logmesh_store::MAX_TXN_OPS {
            put(&janitor, &format!("/logmesh/v1/history/far-too-long/{number:010}"), OLD).await;
        }
        put(&janitor, "/logmesh/v1/history/gone/0000000001", OLD).await;
        let leadership = janitor.election().campaign("one").await.unwrap();
        assert!(janitor.round(&leadership).await.is_ok());
        let left = histories(&janitor).await;
        assert_eq!(left.len(), logmesh_store::MAX_TXN_OPS + 1);
        assert!(left.iter().all(|key| key.contains("/far-too-long/")), "{left:?}");
    }

    #[test]
    fn the_first_round_comes_soon() {
        let two =
            |retention| pauses(Duration::from_secs(retention)).take(2).map(|pause| pause.as_secs()).collect::<Vec<_>>();
        assert_eq!((two(1), two(100), two(90 * 24 * 3600)), (vec![1, 1], vec![10, 10], vec![60, 6 * 3600]));
    }

    #[tokio::test]
    async fn one_that_was_deposed_deletes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let janitor = janitor(&folder, "one");
        put(&janitor, "/logmesh/v1/history/gone/0000000001", OLD).await;
        let former = janitor.election().campaign("one").await.unwrap();
        let office = former.condition().0;
        // Another took over, and this one hasn't noticed.
        janitor.store.delete(&office, Precondition::None).await.unwrap();
        let present = janitor.election().campaign("two").await.unwrap();
        assert!(matches!(janitor.round(&former).await, Err(End::Deposed)));
        assert_eq!(histories(&janitor).await.len(), 1);
        assert!(janitor.round(&present).await.is_ok());
        assert!(histories(&janitor).await.is_empty());
    }

    #[tokio::test]
    async fn what_was_changed_after_it_was_looked_at_stays() {
        let folder = tempfile::tempdir().unwrap();
        let janitor = janitor(&folder, "one");
        put(&janitor, "/logmesh/v1/history/again/0000000001", OLD).await;
        put(&janitor, "/logmesh/v1/history/twice/0000000001", OLD).await;
        let leadership = janitor.election().campaign("one").await.unwrap();
        let retention = janitor.settings.history_retention.0;
        let expired = expired::histories(janitor.store.as_ref(), retention, UnixNanos::now()).await.unwrap();
        put(&janitor, "/logmesh/v1/rules/again", "{}").await;
        // Made, and deleted a moment ago.
        for number in 2..4 {
            put(&janitor, &format!("/logmesh/v1/history/twice/{number:010}"), OLD).await;
        }
        for expired in expired {
            assert!(janitor.forget(expired, &leadership).await.is_ok());
        }
        assert_eq!(histories(&janitor).await.len(), 4);
    }
}
