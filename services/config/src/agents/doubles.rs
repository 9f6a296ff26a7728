//! Config services tell each other which agents are connected to them: see `registry/elsewhere.rs` for what that is for.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures::StreamExt;
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_proto::fleet::v1::{WatchSessionsRequest, WatchSessionsResponse};
use logmesh_runtime::{CancellationToken, RetryPolicy, Tasks};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tonic::Status;
use tonic::transport::Channel;
use tracing::{debug, info};

use super::registry::{Registry, Told};
use crate::error::stopping;
use crate::limits::SESSIONS_PAUSE;
use crate::peers::Peers;
use crate::push::{Push, Stream};

/// How a server that isn't heard is tried again: it's one stream for each pair of servers.
const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(100), max: Duration::from_secs(2) };

/// Hears every other config service for as long as it's registered, until the tasks are asked to end.
pub(crate) fn follow(peers: Peers, registry: Registry, tasks: &Tasks) {
    let (token, spawner) = (tasks.token(), tasks.clone());
    tasks.spawn("config-peers", async move {
        let mut heard: BTreeMap<String, CancellationToken> = BTreeMap::new();
        let mut changes = peers.changes();
        changes.mark_changed();
        loop {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
            }
            changes.mark_unchanged();
            let others: BTreeMap<String, (String, Channel)> = peers.reachable();
            heard.retain(|place, follower| {
                others.contains_key(place) || {
                    follower.cancel();
                    false
                }
            });
            for (place, (id, channel)) in others {
                heard.entry(place).or_insert_with(|| {
                    let follower = token.child_token();
                    spawner.spawn("config-peer", hear(id, channel, registry.clone(), follower.clone()));
                    follower
                });
            }
        }
    });
}

/// Hears one server until the token is cancelled.
async fn hear(id: String, channel: Channel, registry: Registry, token: CancellationToken) -> anyhow::Result<()> {
    let mut attempt = 0;
    while !token.is_cancelled() {
        let mut heard = false;
        tokio::select! {
            () = token.cancelled() => {}
            ended = hear_once(&id, channel.clone(), &registry, &mut heard) => {
                debug!(server = %id, error = ?ended.err(), "another config service isn't heard");
            }
        }
        registry.unhear(&id);
        attempt = if heard { 0 } else { attempt + 1 };
        if !RETRY.pause(attempt, &token).await {
            break;
        }
    }
    Ok(())
}

async fn hear_once(id: &str, channel: Channel, registry: &Registry, heard: &mut bool) -> Result<(), Status> {
    let mut news = FleetServiceClient::new(channel).watch_sessions(WatchSessionsRequest {}).await?.into_inner();
    while let Some(news) = news.message().await? {
        if !std::mem::replace(heard, true) {
            info!(server = id, agents = news.connected.len(), "another config service is heard");
        }
        registry.hear(id, news);
    }
    Ok(())
}

/// What one other server is told, message by message as it takes them.
struct Telling {
    registry: Registry,
    changes: watch::Receiver<u64>,
    told: Told,
    waiting: VecDeque<WatchSessionsResponse>,
    token: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

/// The stream for another server.
pub(crate) fn tell(registry: &Registry, push: &Push) -> Result<Stream<WatchSessionsResponse>, Status> {
    let permit = push.admit()?;
    let mut changes = registry.sessions();
    changes.mark_changed();
    let first = WatchSessionsResponse { snapshot: true, ..Default::default() };
    let telling = Telling {
        registry: registry.clone(),
        changes,
        told: Default::default(),
        waiting: [first].into(),
        token: push.token.clone(),
        _permit: permit,
    };
    let stream = futures::stream::unfold(Some(telling), |telling| async move {
        let mut telling = telling?;
        match telling.next().await {
            Some(news) => Some((Ok(news), Some(telling))),
            None => Some((Err(stopping()), None)),
        }
    });
    Ok(stream.boxed())
}

impl Telling {
    /// What is to be told next; `None` when the process stops.
    async fn next(&mut self) -> Option<WatchSessionsResponse> {
        loop {
            if let Some(news) = self.waiting.pop_front() {
                return Some(news);
            }
            tokio::select! {
                biased;
                () = self.token.cancelled() => return None,
                changed = self.changes.changed() => changed.ok()?,
            }
            tokio::time::sleep(SESSIONS_PAUSE).await;
            self.changes.mark_unchanged();
            self.waiting.extend(self.registry.news(&mut self.told));
        }
    }
}
