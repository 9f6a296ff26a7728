//! A watch: one stream of etcd's, put together into whole revisions.
//!
//! etcd sends the events of several revisions in a message, and those of a large revision in several. It never sends a
//! revision before the one before it is complete, and reads no further ahead than the stream's window.

use std::collections::VecDeque;
use std::sync::Arc;

use etcd_client::proto::{PbEvent, PbWatchResponse};
use etcd_client::{Client, Error, EventType, WatchOptions, WatchStream};
use futures::StreamExt;
use logmesh_store::{Change, ChangeStream, KeyChange, Revision, StoreError, WatchError};
use tonic::Status;

use crate::cluster::{Cluster, Repeat};
use crate::error::Failure;
use crate::read::{MAX_ANSWER_BYTES, versioned};
use crate::space::{KeyRange, Space};
use crate::{number, revision};

/// The changes of `prefix` after a revision.
pub(crate) fn stream(cluster: &Arc<Cluster>, space: &Space, prefix: &str, after: Revision) -> ChangeStream {
    let watch = Watch {
        cluster: cluster.clone(),
        range: space.range(prefix),
        events: Events { space: space.clone(), shown: after, growing: None, ready: VecDeque::new() },
        open: None,
    };
    futures::stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        match watch.next().await {
            Ok(change) => Some((Ok(change), Some(watch))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

struct Watch {
    cluster: Arc<Cluster>,
    range: KeyRange,
    events: Events,
    open: Option<Open>,
}

struct Open {
    /// The member that serves it.
    member: usize,
    name: String,
    stream: WatchStream,
}

/// What the stream has told.
struct Events {
    space: Space,
    /// Every change up to here was made ready.
    shown: Revision,
    /// A revision of which more may come.
    growing: Option<Change>,
    ready: VecDeque<Change>,
}

impl Watch {
    async fn next(&mut self) -> Result<Change, WatchError> {
        loop {
            if let Some(change) = self.events.ready.pop_front() {
                return Ok(change);
            }
            let result = match &mut self.open {
                None => self.begin().await,
                Some(open) => open.message().await,
            };
            let result = result.map_err(|failure| WatchError::Lost(failure.into()));
            if let Err(error) = result.and_then(|message| self.events.take(message)) {
                self.close(&error);
                return Err(error);
            }
        }
    }

    /// A member that lost the watch isn't asked again at once.
    fn close(&mut self, error: &WatchError) {
        if let (Some(open), WatchError::Lost(_)) = (self.open.take(), error) {
            self.cluster.leave(open.member);
        }
    }

    /// Opens the stream, which is there when etcd has sent its first message.
    async fn begin(&mut self) -> Result<PbWatchResponse, Failure> {
        let options = WatchOptions::new()
            .with_range(self.range.end.as_slice())
            .with_start_revision(number(self.events.shown.0.saturating_add(1)))
            .with_progress_notify()
            .with_fragment();
        let key = self.range.start.as_slice();
        let begin = async |client: Client| {
            let mut watch = client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
            let mut stream = watch.watch(key, Some(options.clone())).await?;
            let first = stream.message().await?;
            let first = first.ok_or_else(|| Error::WatchError("the watch was ended at once".to_owned()))?.0;
            refusal(&first).map_or(Ok((stream, first)), |status| Err(Error::GRpcStatus(status)))
        };
        let (member, (stream, first)) = self.cluster.call_member(Repeat::Harmless, begin).await?;
        let name = self.cluster.name(member).to_owned();
        self.open = Some(Open { member, name, stream });
        Ok(first)
    }
}

impl Open {
    async fn message(&mut self) -> Result<PbWatchResponse, Failure> {
        let ended = || Error::WatchError("the watch was ended".to_owned());
        let message = self.stream.message().await.and_then(|message| message.ok_or_else(ended));
        message.map(|message| message.0).map_err(|error| Failure::new(&self.name, error))
    }
}

/// etcd refuses a watch within the stream, with the status as text.
fn refusal(first: &PbWatchResponse) -> Option<Status> {
    let reason = first.cancel_reason.as_str();
    if !first.canceled || first.compact_revision > 0 {
        return None;
    }
    Some(match reason {
        reason if reason.contains("invalid auth token") || reason.contains("auth store is old") => {
            Status::unauthenticated(reason)
        }
        reason if reason.contains("permission denied") => Status::permission_denied(reason),
        reason => Status::unavailable(reason),
    })
}

impl Events {
    fn take(&mut self, message: PbWatchResponse) -> Result<(), WatchError> {
        if message.canceled {
            return Err(match message.compact_revision {
                0 => {
                    WatchError::Lost(StoreError::unavailable(format!("etcd ended a watch: {}", message.cancel_reason)))
                }
                compacted => WatchError::Compacted { oldest: revision(compacted) },
            });
        }
        let at = message.header.as_ref().map_or(Revision(0), |header| revision(header.revision));
        // A store that isn't so far may have been made anew, and would say nothing until its revisions reach ours. A
        // member that lags behind looks the same; reading anew is right for both.
        if message.created && at < self.shown {
            return Err(WatchError::Compacted { oldest: at });
        }
        if message.events.is_empty() && !message.created && !message.fragment {
            self.progress(at);
        }
        for event in message.events {
            self.add(event);
        }
        if !message.fragment {
            self.finish();
        }
        Ok(())
    }

    fn add(&mut self, event: PbEvent) {
        let deleted = event.r#type == EventType::Delete as i32;
        let Some(mut kv) = event.kv else { return };
        let of = revision(kv.mod_revision);
        if self.growing.as_ref().is_some_and(|change| change.revision != of) {
            self.finish();
        }
        let Some(key) = self.space.strip(std::mem::take(&mut kv.key)) else { return };
        let value = (!deleted).then(|| versioned(kv));
        let change = self.growing.get_or_insert_with(|| Change { revision: of, keys: Vec::new() });
        change.keys.push(KeyChange { key, value });
    }

    /// Nothing more comes of the revision that was growing.
    fn finish(&mut self) {
        if let Some(mut change) = self.growing.take() {
            change.keys.sort_by(|a, b| a.key.cmp(&b.key));
            self.shown = change.revision;
            self.ready.push_back(change);
        }
    }

    /// etcd says that nothing happened beneath the prefix up to a revision.
    fn progress(&mut self, reached: Revision) {
        if reached > self.shown {
            self.shown = reached;
            self.ready.push_back(Change { revision: reached, keys: Vec::new() });
        }
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::{PbKeyValue, PbResponseHeader};

    use super::*;

    fn events(shown: u64) -> Events {
        Events { space: Space::new("/m".to_owned()), shown: Revision(shown), growing: None, ready: VecDeque::new() }
    }

    fn message(fragment: bool, events: &[(i64, &str)]) -> PbWatchResponse {
        let event = |(of, key): &(i64, &str)| PbEvent {
            kv: Some(PbKeyValue { key: key.as_bytes().to_vec(), mod_revision: *of, ..PbKeyValue::default() }),
            ..PbEvent::default()
        };
        PbWatchResponse { events: events.iter().map(event).collect(), fragment, ..PbWatchResponse::default() }
    }

    fn ready(events: &mut Events) -> Vec<(u64, Vec<String>)> {
        let change = |change: Change| (change.revision.0, change.keys.into_iter().map(|key| key.key).collect());
        events.ready.drain(..).map(change).collect()
    }

    fn keys(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn a_revision_is_shown_when_it_is_whole() {
        let mut events = events(3);
        events.take(message(true, &[(4, "/mc"), (5, "/mz")])).unwrap();
        assert_eq!(ready(&mut events), [(4, keys(&["c"]))]);
        events.take(message(true, &[(5, "/my")])).unwrap();
        assert_eq!(ready(&mut events), []);
        events.take(message(false, &[(5, "/mx"), (7, "/ma")])).unwrap();
        assert_eq!(ready(&mut events), [(5, keys(&["x", "y", "z"])), (7, keys(&["a"]))]);
        assert_eq!(events.shown, Revision(7));
    }

    #[test]
    fn progress_is_a_bookmark_and_the_making_of_a_watch_is_not() {
        let mut events = events(3);
        let header = |revision| Some(PbResponseHeader { revision, ..PbResponseHeader::default() });
        events.take(PbWatchResponse { created: true, header: header(9), ..PbWatchResponse::default() }).unwrap();
        assert_eq!(ready(&mut events), [], "changes up to 9 may still come");
        events.take(PbWatchResponse { header: header(9), ..PbWatchResponse::default() }).unwrap();
        events.take(PbWatchResponse { header: header(9), ..PbWatchResponse::default() }).unwrap();
        assert_eq!(ready(&mut events), [(9, keys(&[]))]);
        let begun =
            |revision| PbWatchResponse { created: true, header: header(revision), ..PbWatchResponse::default() };
        events.take(begun(9)).unwrap();
        let anew = events.take(begun(8)).unwrap_err();
        assert!(matches!(anew, WatchError::Compacted { oldest: Revision(8) }), "{anew:?}");
    }

    #[test]
    fn an_end_says_whether_changes_were_compacted() {
        let end = |compact_revision| PbWatchResponse {
            canceled: true,
            compact_revision,
            cancel_reason: "why".to_owned(),
            ..PbWatchResponse::default()
        };
        let compacted = events(3).take(end(8)).unwrap_err();
        assert!(matches!(compacted, WatchError::Compacted { oldest: Revision(8) }), "{compacted:?}");
        assert!(matches!(events(3).take(end(0)), Err(WatchError::Lost(_))));
    }
}
