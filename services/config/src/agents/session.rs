//! One agent's stream of rules: level-triggered, from what the agent holds to what it shall hold.

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
use super::wanted::{Held, Step, Wanted};
use crate::incarnation::Incarnation;
use crate::push::Stream;

/// Agents that are asked to go come back spread over this time.
const RETURN_SPREAD: Duration = Duration::from_secs(2);

/// How long a server waits that isn't as far as the agent, by the number: far longer than a watch lags behind. After that
/// it's as far in truth: revisions between were of other things than rules.
pub(crate) const CATCH_UP: Duration = Duration::from_millis(500);

/// A connected agent and what it was told.
pub(crate) struct Session {
    pub(crate) id: AgentId,
    pub(crate) labels: Arc<Labels>,
    /// What the agent holds once it has read all that was sent.
    pub(crate) held: Held,
    /// The incarnation of the store that it came from.
    pub(crate) held_from: Incarnation,
    /// The revision of the newest state that the agent has seen of that store. One that moves to a server which isn't so far
    /// must not be told an older one: it would drop a rule and take it up again.
    pub(crate) seen: i64,
    /// This server knew of this revision when the stream began.
    pub(crate) known: i64,
    /// Until when those are waited for.
    pub(crate) patience: Instant,
    /// What is wanted as it was last worked out for these labels.
    pub(crate) wanted: Option<Wanted>,
    pub(crate) incarnations: watch::Receiver<Option<Incarnation>>,
    pub(crate) steps: watch::Receiver<Arc<Step>>,
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
        WatchConfigResponse { nonce, revision, update: Some(update), incarnation: self.held_from.to_string() }
    }

    /// What to say next. The first thing said is the difference to what the agent holds, even if there is none.
    async fn next(&mut self) -> Result<(Update, i64), Status> {
        let bookmark = Instant::now() + self.bookmark_interval;
        loop {
            let step = self.steps.borrow_and_update().clone();
            if let Some(ended) = self.connected.mailbox.ended() {
                return self.end(ended).map(|update| (update, self.seen));
            }
            let news = self.news(&step);
            // What the agent is told only grows, whichever server tells it.
            let revision = step.revision().max(self.seen);
            if let Some(update) = news {
                self.seen = revision;
                return Ok((update, revision));
            }
            let reason = tokio::select! {
                biased;
                () = self.stopping.cancelled() => "the server is stopping",
                () = self.connected.mailbox.arrival() => continue,
                changed = self.steps.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => "the server is stopping",
                },
                changed = self.incarnations.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => "the server is stopping",
                },
                () = tokio::time::sleep_until(self.patience), if self.sent == 0 && Instant::now() < self.patience => continue,
                () = tokio::time::sleep_until(self.ends) => "the stream reached its age; connect again",
                // Nothing may be said before the first difference is known: a bookmark would mean "you have it all".
                () = tokio::time::sleep_until(bookmark), if self.sent > 0 => {
                    return Ok((Update::Bookmark(Bookmark {}), revision));
                }
            };
            return Ok((self.go_away(reason), revision));
        }
    }

    /// What there is to say at once: a difference, then what is to be told once.
    fn news(&mut self, step: &Step) -> Option<Update> {
        let incarnation = self.incarnations.borrow_and_update().clone().filter(|_| step.set.is_loaded())?;
        if self.held_from != incarnation {
            self.seen = 0;
        }
        if self.sent == 0 && step.revision() < self.seen.max(self.known) && Instant::now() < self.patience {
            return None;
        }
        let delta = self.advance(step, incarnation);
        if self.sent == 0 || delta != Delta::default() {
            return Some(Update::Delta(delta));
        }
        self.connected.mailbox.take()
    }

    /// The difference between what the agent holds and what it shall hold, which it holds from then on. What it holds from
    /// another store says nothing: everything is told.
    fn advance(&mut self, step: &Step, incarnation: Incarnation) -> Delta {
        if let Some(labels) = self.connected.mailbox.labels() {
            (self.labels, self.wanted) = (labels, None);
        }
        let wanted = match &self.wanted {
            Some(wanted) => wanted.at(step, &self.labels),
            None => Wanted::of(step, &self.labels),
        };
        self.wanted = Some(wanted.clone());
        // Of a rule that can't be read an agent keeps what it has.
        let is_kept = |name: &str| step.set.is_unknown(name);
        let delta = self.held.advance(wanted, self.held_from != incarnation, is_kept);
        self.held_from = incarnation;
        self.registry.forget_rules(&self.id, &delta.removed);
        delta
    }

    /// How the stream ends when others end it.
    fn end(&mut self, ended: Ended) -> Result<Update, Status> {
        match ended {
            Ended::Superseded => Ok(self.go_away("a newer stream of the same session took over")),
            Ended::Refused(status) => {
                self.gone = true;
                Err(status)
            }
        }
    }

    /// The last message of the stream.
    fn go_away(&mut self, reason: &str) -> Update {
        self.gone = true;
        let retry_after = Some(duration(RETURN_SPREAD.mul_f64(rand::rng().random::<f64>())));
        Update::GoAway(GoAway { reason: reason.to_owned(), retry_after })
    }
}
