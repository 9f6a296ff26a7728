//! One agent's stream of rules: level-triggered, from what the agent holds to what it shall hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_proto::fleet::v1::{Bookmark, Delta, GoAway, WatchConfigResponse};
use logmesh_proto::time::duration;
use logmesh_rules::Labels;
use logmesh_runtime::CancellationToken;
use logmesh_types::AgentId;
use rand::Rng;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tracing::debug;

use super::registry::{Connected, Registry};
use crate::push::Stream;
use crate::rules::RuleSet;

/// Agents that are asked to go come back spread over this time.
const RETURN_SPREAD: Duration = Duration::from_secs(2);

/// A connected agent and what it was told.
pub(crate) struct Session {
    pub(crate) id: AgentId,
    pub(crate) labels: Labels,
    /// Rule name → revision, as the agent has it once it has read all that was sent.
    pub(crate) held: BTreeMap<String, i64>,
    pub(crate) sets: watch::Receiver<Arc<RuleSet>>,
    pub(crate) registry: Registry,
    pub(crate) connected: Connected,
    pub(crate) stopping: CancellationToken,
    pub(crate) bookmark_interval: Duration,
    /// When the agent is asked to connect anew.
    pub(crate) ends: Instant,
    pub(crate) _permit: OwnedSemaphorePermit,
    /// The messages sent.
    pub(crate) sent: u64,
    pub(crate) gone: bool,
}

impl Session {
    /// The messages of the stream, each made when the agent is ready to take it.
    pub(crate) fn into_stream(self) -> Stream<WatchConfigResponse> {
        futures::stream::unfold(self, |mut session| async move {
            if session.gone {
                return None;
            }
            let (update, revision) = session.next().await;
            session.sent += 1;
            let nonce = format!("{:x}-{}", session.connected.number(), session.sent);
            debug!(agent = %session.id, nonce, revision, ?update, "telling an agent");
            let message = WatchConfigResponse { nonce, revision, update: Some(update), ..Default::default() };
            Some((Ok(message), session))
        })
        .boxed()
    }

    /// What to say next. The first thing said is the difference to what the agent holds, even if there is none.
    async fn next(&mut self) -> (Update, i64) {
        let bookmark = Instant::now() + self.bookmark_interval;
        loop {
            let set = self.sets.borrow_and_update().clone();
            let revision = i64::try_from(set.revision.0).unwrap_or(i64::MAX);
            if set.is_loaded() {
                let delta = self.advance(&set);
                if self.sent == 0 || !delta.upserted.is_empty() || !delta.removed.is_empty() {
                    return (Update::Delta(delta), revision);
                }
            }
            let reason = tokio::select! {
                biased;
                () = self.stopping.cancelled() => "the server is stopping",
                () = self.connected.superseded.cancelled() => "a newer stream of the same session took over",
                changed = self.sets.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => "the server is stopping",
                },
                () = tokio::time::sleep_until(self.ends) => "the stream reached its age; connect again",
                // Nothing may be said before the first difference is known: a bookmark would mean "you have it all".
                () = tokio::time::sleep_until(bookmark), if self.sent > 0 => {
                    return (Update::Bookmark(Bookmark {}), revision);
                }
            };
            self.gone = true;
            let retry_after = Some(duration(RETURN_SPREAD.mul_f64(rand::rng().random::<f64>())));
            return (Update::GoAway(GoAway { reason: reason.to_owned(), retry_after }), revision);
        }
    }

    /// The difference between what the agent holds and what it shall hold, which it holds from then on.
    fn advance(&mut self, set: &RuleSet) -> Delta {
        let meant = set.rules.iter().filter(|(_, live)| live.rule.selector.matches(&self.labels));
        let wanted: BTreeMap<&String, _> = meant.map(|(name, live)| (name, &live.message)).collect();
        let removed: Vec<String> = self.held.keys().filter(|name| !wanted.contains_key(name)).cloned().collect();
        let new = wanted.iter().filter(|(name, rule)| self.held.get(**name) != Some(&rule.revision));
        let upserted = new.map(|(_, rule)| (*rule).clone()).collect();
        let delta = Delta { upserted, removed, snapshot: false };
        self.held = wanted.into_iter().map(|(name, rule)| (name.clone(), rule.revision)).collect();
        self.registry.forget_rules(&self.id, &delta.removed);
        delta
    }
}
