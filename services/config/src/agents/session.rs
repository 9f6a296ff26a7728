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
use tonic::Status;
use tracing::debug;

use super::mailbox::Ended;
use super::registry::{Connected, Registry};
use crate::incarnation::Incarnation;
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
    /// The incarnation of the store that `held` came from.
    pub(crate) held_from: String,
    pub(crate) incarnations: watch::Receiver<Option<Incarnation>>,
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
            let next = session.next().await;
            session.sent += 1;
            Some((next.map(|(update, revision)| session.message(update, revision)), session))
        })
        .boxed()
    }

    fn message(&self, update: Update, revision: i64) -> WatchConfigResponse {
        let nonce = self.connected.nonce(self.sent);
        debug!(agent = %self.id, nonce, revision, ?update, "telling an agent");
        WatchConfigResponse { nonce, revision, update: Some(update), incarnation: self.held_from.clone() }
    }

    /// What to say next. The first thing said is the difference to what the agent holds, even if there is none.
    async fn next(&mut self) -> Result<(Update, i64), Status> {
        let bookmark = Instant::now() + self.bookmark_interval;
        loop {
            let set = self.sets.borrow_and_update().clone();
            let incarnation = self.incarnations.borrow_and_update().clone();
            let revision = i64::try_from(set.revision.0).unwrap_or(i64::MAX);
            match self.connected.mailbox.ended() {
                Some(Ended::Superseded) => {
                    return Ok((self.go_away("a newer stream of the same session took over"), revision));
                }
                Some(Ended::Refused(status)) => {
                    self.gone = true;
                    return Err(status);
                }
                None => {}
            }
            if let Some(incarnation) = incarnation.filter(|_| set.is_loaded()) {
                let delta = self.advance(&set, &incarnation);
                if self.sent == 0 || delta != Delta::default() {
                    return Ok((Update::Delta(delta), revision));
                }
                if let Some(once) = self.connected.mailbox.take() {
                    return Ok((once, revision));
                }
            }
            let reason = tokio::select! {
                biased;
                () = self.stopping.cancelled() => "the server is stopping",
                () = self.connected.mailbox.arrival() => continue,
                changed = self.incarnations.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => "the server is stopping",
                },
                changed = self.sets.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => "the server is stopping",
                },
                () = tokio::time::sleep_until(self.ends) => "the stream reached its age; connect again",
                // Nothing may be said before the first difference is known: a bookmark would mean "you have it all".
                () = tokio::time::sleep_until(bookmark), if self.sent > 0 => {
                    return Ok((Update::Bookmark(Bookmark {}), revision));
                }
            };
            return Ok((self.go_away(reason), revision));
        }
    }

    /// The last message of the stream.
    fn go_away(&mut self, reason: &str) -> Update {
        self.gone = true;
        let retry_after = Some(duration(RETURN_SPREAD.mul_f64(rand::rng().random::<f64>())));
        Update::GoAway(GoAway { reason: reason.to_owned(), retry_after })
    }

    /// The difference between what the agent holds and what it shall hold, which it holds from then on. What it holds from
    /// another store says nothing: everything is told.
    fn advance(&mut self, set: &RuleSet, incarnation: &str) -> Delta {
        let snapshot = self.held_from != incarnation;
        let meant = set.rules.iter().filter(|(_, live)| live.rule.selector.matches(&self.labels));
        let wanted: BTreeMap<&String, _> = meant.map(|(name, live)| (name, &live.message)).collect();
        // Of a rule that can't be read an agent keeps what it has; from another store there's nothing to keep.
        let is_kept = |name: &String| !snapshot && set.is_unknown(name);
        let is_gone = |name: &&String| !wanted.contains_key(name) && !is_kept(name);
        // In a snapshot too: an agent of an earlier version knows of no snapshots.
        let removed: Vec<String> = self.held.keys().filter(is_gone).cloned().collect();
        let new = wanted.iter().filter(|(name, rule)| snapshot || self.held.get(**name) != Some(&rule.revision));
        let delta = Delta { upserted: new.map(|(_, rule)| (*rule).clone()).collect(), removed, snapshot };
        self.held.retain(|name, _| is_kept(name));
        self.held.extend(wanted.into_iter().map(|(name, rule)| (name.clone(), rule.revision)));
        incarnation.clone_into(&mut self.held_from);
        self.registry.forget_rules(&self.id, &delta.removed);
        delta
    }
}
