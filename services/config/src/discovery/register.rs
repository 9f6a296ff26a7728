//! One server's registration, for as long as its stream lives.
//!
//! A stream that its caller ended takes the endpoint away at once. One that broke, as when this process stops, leaves it
//! until its time is over, so that a server which comes back through another config service never vanished.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use logmesh_grpc::{aborted, unavailable};
use logmesh_proto::discovery::v1::{RegisterRequest, RegisterResponse};
use logmesh_proto::time::duration;
use logmesh_runtime::CancellationToken;
use logmesh_store::{ConfigStore, LeaseId, StoreError, Txn};
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Status, Streaming};
use tracing::info;

use crate::error::{stopping, store};
use crate::push::Stream;

/// A registered server.
pub(crate) struct Registration {
    store: Arc<dyn ConfigStore>,
    key: String,
    value: Vec<u8>,
    ttl: Duration,
    lease: LeaseId,
}

impl Registration {
    /// Writes the endpoint. One of the same name is replaced: a server that was killed and comes back doesn't wait for its
    /// former lease to end.
    pub(crate) async fn write(
        store: Arc<dyn ConfigStore>,
        (key, value): (String, Vec<u8>),
        ttl: Duration,
    ) -> Result<Self, StoreError> {
        let lease = store.grant_lease(ttl).await?;
        let mut registration = Self { store, key, value, ttl: lease.ttl, lease: lease.id };
        registration.put().await?;
        Ok(registration)
    }

    async fn put(&mut self) -> Result<(), StoreError> {
        let txn = Txn::new().put_leased(&self.key, self.value.clone(), self.lease);
        let revision = self.store.txn(txn).await?;
        info!(key = %self.key, %revision, "endpoint registered");
        Ok(())
    }

    /// Begins the endpoint's time anew. Should the lease have ended meanwhile, the endpoint is written again.
    pub(crate) async fn keep_alive(&mut self) -> Result<(), Status> {
        match self.store.keep_alive(self.lease).await {
            Ok(_) => self.check_owner().await,
            Err(StoreError::LeaseNotFound(_)) => {
                self.lease = self.store.grant_lease(self.ttl).await.map_err(store)?.id;
                self.put().await.map_err(store)
            }
            Err(error) => Err(store(error)),
        }
    }

    /// Another process may have taken the name over: two of them must not take turns.
    async fn check_owner(&self) -> Result<(), Status> {
        let held = self.store.get(&self.key).await.map_err(store)?;
        if held.is_some_and(|held| held.lease == Some(self.lease)) {
            return Ok(());
        }
        Err(aborted("TAKEN_OVER", "another server registered under the same kind and id; give each its own id"))
    }

    /// Takes the endpoint away.
    pub(crate) async fn remove(&self) {
        if let Err(error) = self.store.revoke_lease(self.lease).await {
            tracing::warn!(key = %self.key, %error, "could not take an endpoint away; it ends with its lease");
        } else {
            info!(key = %self.key, "endpoint gone");
        }
    }

    /// Answers the first message, then each further one.
    pub(crate) fn into_stream(
        self,
        messages: Streaming<RegisterRequest>,
        token: CancellationToken,
        permit: OwnedSemaphorePermit,
    ) -> Stream<RegisterResponse> {
        let first = RegisterResponse { ttl: Some(duration(self.ttl)) };
        let serving = Some((self, messages, token, permit));
        let further = futures::stream::unfold(serving, |serving| async move {
            let (mut registration, mut messages, token, permit) = serving?;
            match registration.next(&mut messages, &token).await.transpose()? {
                Ok(answer) => Some((Ok(answer), Some((registration, messages, token, permit)))),
                Err(status) => Some((Err(status), None)),
            }
        });
        futures::stream::iter([Ok(first)]).chain(further).boxed()
    }

    /// The answer to the caller's next message; `None` when it ended the stream.
    async fn next(
        &mut self,
        messages: &mut Streaming<RegisterRequest>,
        token: &CancellationToken,
    ) -> Result<Option<RegisterResponse>, Status> {
        let message = tokio::select! {
            biased;
            () = token.cancelled() => return Err(stopping()),
            message = tokio::time::timeout(self.ttl, messages.message()) => message,
        };
        match message {
            Ok(Ok(Some(_))) => {
                self.keep_alive().await.map(|()| Some(RegisterResponse { ttl: Some(duration(self.ttl)) }))
            }
            Ok(Ok(None)) => {
                self.remove().await;
                Ok(None)
            }
            Ok(Err(broken)) => Err(broken),
            Err(_) => Err(unavailable("KEEP_ALIVE_MISSED", "no sign of life came in time; register again")),
        }
    }
}
