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
use tracing::{debug, warn};

use super::mailbox::Ended;
use super::registry::{Connected, Registry};
use super::wanted::{Held, Step, Wanted};
use crate::incarnation::Incarnation;
use crate::push::Stream;

/// Agents that are asked to go come back spread over this time.
const RETURN_SPREAD: Duration = Duration::from_secs(2);

/// How long a server waits that isn't as far as the agent, by the number of the last message: far longer than a watch lags
/// behind. After that it's as far in truth: revisions between were of other things than rules.
const CATCH_UP: Duration = Duration::from_millis(500);

/// How long one waits that isn't as far as a rule which the agent holds: such a server is behind for certain, as one that is
/// cut off from its store. It then asks the agent to go on to the next server, well before the agent takes it for dead.
const CATCH_UP_HELD: Duration = Duration::from_secs(25);

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
    /// The newest revision among the rules that it holds of that store.
    pub(crate) newest_held: i64,
    /// This server knew of this revision when the stream began.
    pub(crate) known: i64,
    /// When the stream began, and with it the wait for those.
    pub(crate) began: Instant,
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
            let now = Instant::now();
            let news = self.news(&step, now);
            // What the agent is told only grows, whichever server tells it.
            let revision = step.revision().max(self.seen);
            if let Some(update) = news {
                self.seen = revision;
                return Ok((update, revision));
            }
            let behind = self.behind_until(&step).filter(|until| now < *until);
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
                () = tokio::time::sleep_until(behind.unwrap_or(self.ends)), if behind.is_some() => continue,
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
    fn news(&mut self, step: &Step, now: Instant) -> Option<Update> {
        let incarnation = self.incarnations.borrow_and_update().clone().filter(|_| step.set.is_loaded())?;
        if self.held_from != incarnation {
            (self.seen, self.newest_held) = (0, 0);
        }
        if self.behind_until(step).is_some_and(|until| now < until) {
            return None;
        }
        if self.sent == 0 && step.revision() < self.newest_held {
            return Some(self.go_on(step.revision()));
        }
        let delta = self.advance(step, incarnation);
        if self.sent == 0 || delta != Delta::default() {
            return Some(Update::Delta(delta));
        }
        self.connected.mailbox.take()
    }

    /// Until when nothing is said, since this server isn't as far as the agent; `None`: it is.
    fn behind_until(&self, step: &Step) -> Option<Instant> {
        let revision = step.revision();
        match self.sent {
            0 if revision < self.newest_held => Some(self.began + CATCH_UP_HELD),
            0 if revision < self.seen.max(self.known) => Some(self.began + CATCH_UP),
            _ => None,
        }
    }

    /// Asks an agent to try another server, since this one has only older rules than it holds.
    fn go_on(&mut self, revision: i64) -> Update {
        let held = self.newest_held;
        warn!(
            agent = %self.id, held, revision,
            "an agent holds newer rules than this server knows of, and is asked to try another: is the store reached? \
             One that was restored from a backup needs a new incarnation"
        );
        self.go_away("this server has only older rules than those held; connect to another")
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use logmesh_store::Revision;

    use super::*;
    use crate::agents::registry::Introduction;
    use crate::rules::RuleSet;
    use crate::settings::Settings;

    const STORE: &str = "of this store";

    /// The stream of an agent that holds a rule, and saw a later message.
    fn session(held: i64, seen: i64) -> Session {
        let steps = watch::channel(Arc::default()).1;
        let registry = Registry::new(&Settings::default(), steps.clone());
        let (id, session): (AgentId, _) = ("a".parse().unwrap(), "s".to_owned());
        let introduction = Introduction { id: id.clone(), session, labels: Labels::new(), version: String::new() };
        let connected = registry.connect(introduction).unwrap();
        let began = Instant::now();
        Session {
            id,
            labels: Arc::default(),
            held: Held::said(BTreeMap::from([("rules/new".to_owned(), held)])),
            held_from: STORE.into(),
            seen,
            newest_held: held,
            known: 0,
            began,
            wanted: None,
            incarnations: watch::channel(Some(STORE.into())).1,
            steps,
            registry,
            connected,
            stopping: CancellationToken::new(),
            bookmark_interval: Duration::from_secs(1),
            ends: began + Duration::from_secs(3600),
            _permit: Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap(),
            sent: 0,
            gone: false,
        }
    }

    /// No rules, as of a revision.
    fn step(revision: u64) -> Step {
        let mut set = RuleSet::default();
        set.revision = Revision(revision);
        Step::default().to(Arc::new(set))
    }

    fn is_removal(update: Option<Update>) -> bool {
        matches!(update, Some(Update::Delta(delta)) if delta.removed == ["rules/new"])
    }

    #[test]
    fn a_server_that_is_behind_tells_an_agent_nothing_of_older_rules() {
        let mut session = session(120, 120);
        let began = session.began;
        for waited in [Duration::ZERO, CATCH_UP, CATCH_UP_HELD - Duration::from_millis(1)] {
            assert!(session.news(&step(100), began + waited).is_none(), "{waited:?}");
        }
        assert!(matches!(session.news(&step(100), began + CATCH_UP_HELD), Some(Update::GoAway(_))));
        assert!(session.gone);
    }

    #[test]
    fn a_server_that_has_caught_up_says_what_is_gone() {
        let mut session = session(120, 120);
        let began = session.began;
        assert!(session.news(&step(119), began + CATCH_UP).is_none());
        assert!(is_removal(session.news(&step(120), began + CATCH_UP)));
    }

    #[test]
    fn what_others_wrote_is_not_waited_for_long_nor_another_stores_rules() {
        let mut other = session(100, 120);
        let began = other.began;
        assert!(other.news(&step(100), began).is_none());
        assert!(is_removal(other.news(&step(100), began + CATCH_UP)));
        let mut foreign = session(120, 120);
        foreign.held_from = "of another".into();
        assert!(is_removal(foreign.news(&step(3), began)));
    }
}
