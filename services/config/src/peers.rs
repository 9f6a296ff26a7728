//! The other config services on the same store: who they are, and how they're asked for their part of an answer.
//!
//! Each keeps an endpoint of kind `config` for as long as it lives. What agents report lies in the memory of the one that
//! they are connected to, so that an answer about the fleet is put together from all of them: one call to each, made with
//! `this_server_only`, which is never passed on. Who doesn't answer in time is named in the answer and holds nobody up for longer.

mod own;
mod pages;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use logmesh_proto::discovery::v1::Endpoint;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;
use tracing::debug;

use crate::discovery::Endpoints;
use crate::limits::PEERS_AT_A_TIME;

pub(crate) use own::keep_registered;
pub(crate) use pages::{Listed, Page, Part, merge};

/// The kind of config services among the endpoints.
pub(crate) const KIND: &str = "config";

/// The other config services. Clones share their connections.
#[derive(Clone)]
pub(crate) struct Peers {
    own: Option<Endpoint>,
    endpoints: watch::Receiver<Arc<Endpoints>>,
    /// By address; only of those that are registered.
    channels: Arc<Mutex<BTreeMap<String, Channel>>>,
}

/// What the others answered.
#[derive(Debug)]
pub(crate) struct Answers<T> {
    /// By the server's id.
    pub(crate) answers: Vec<(String, T)>,
    /// The ids of those that didn't answer, or with an error.
    pub(crate) unreachable: Vec<String>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("own", &self.own).field("others", &self.others()).finish_non_exhaustive()
    }
}

impl Peers {
    /// The config services among the endpoints but for the server's `own`. Without an own endpoint it stands alone.
    pub(crate) fn new(own: Option<Endpoint>, endpoints: watch::Receiver<Arc<Endpoints>>) -> Self {
        Self { own, endpoints, channels: Arc::default() }
    }

    /// Asks every other config service at once and gives each until `within`. The call is to be one that the asked server
    /// doesn't pass on.
    pub(crate) async fn ask<T, F>(&self, within: Duration, call: impl Fn(Channel) -> F) -> Answers<T>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.ask_but(&BTreeSet::new(), within, call).await
    }

    /// The same without asking those named, as who didn't answer before.
    async fn ask_but<T, F>(&self, but: &BTreeSet<String>, within: Duration, call: impl Fn(Channel) -> F) -> Answers<T>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let deadline = Instant::now() + within;
        let asked = self.others().into_iter().filter(|(id, _)| !but.contains(id)).map(|(id, channel)| {
            let answer = channel.map(&call);
            async move {
                let Some(answer) = answer else { return (id, Err(Status::internal("its address is unusable"))) };
                let late = || Status::deadline_exceeded("no answer came in time");
                (id, tokio::time::timeout_at(deadline, answer).await.unwrap_or_else(|_| Err(late())))
            }
        });
        let mut all = futures::stream::iter(asked).buffer_unordered(PEERS_AT_A_TIME);
        let (mut answers, mut unreachable) = (Vec::new(), Vec::new());
        while let Some((id, answer)) = all.next().await {
            match answer {
                Ok(answer) => answers.push((id, answer)),
                Err(status) => {
                    debug!(server = %id, error = %logmesh_grpc::describe(&status), "a config service does not answer");
                    unreachable.push(id);
                }
            }
        }
        unreachable.sort();
        Answers { answers, unreachable }
    }

    /// Changes whenever an endpoint does.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Endpoints>> {
        self.endpoints.clone()
    }

    /// Id and channel of each other config service, by a name that is another when its address is.
    pub(crate) fn reachable(&self) -> BTreeMap<String, (String, Channel)> {
        let addressed = self.others().into_iter().filter_map(|(id, channel)| Some((id, channel?)));
        let endpoints = self.endpoints.borrow().clone();
        let address = |id: &str| {
            let endpoint = endpoints.all.values().find(|endpoint| endpoint.kind == KIND && endpoint.id == id);
            endpoint.map_or("", |endpoint| endpoint.address.as_str()).to_owned()
        };
        addressed.map(|(id, channel)| (format!("{id} at {}", address(&id)), (id, channel))).collect()
    }

    /// Id and channel of each other config service; no channel where the address is none.
    fn others(&self) -> Vec<(String, Option<Channel>)> {
        let Some(own) = &self.own else { return Vec::new() };
        let endpoints = self.endpoints.borrow().clone();
        let others = endpoints.all.values().filter(|endpoint| endpoint.kind == KIND);
        // One with this server's address was this server, before it got another id.
        let others: Vec<&Endpoint> =
            others.filter(|other| other.id != own.id && other.address != own.address).collect();
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|address, _| others.iter().any(|other| other.address == *address));
        let channel = |address: &String| {
            if !channels.contains_key(address) {
                channels.insert(address.clone(), logmesh_grpc::channel(address).ok()?);
            }
            channels.get(address).cloned()
        };
        let ids = others.iter().map(|other| other.id.clone());
        ids.zip(others.iter().map(|other| &other.address).map(channel)).collect()
    }
}
