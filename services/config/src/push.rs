//! Server streams that push a state whenever it changed: bounded in number, ended with the process, level-triggered.
//!
//! A stream is made message by message as its caller takes them, so that a slow caller skips states and queues nothing.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use logmesh_grpc::resource_exhausted;
use logmesh_runtime::CancellationToken;
use logmesh_types::limits::MAX_WATCHERS;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::Status;

use crate::error::stopping;

/// A stream of answers.
pub(crate) type Stream<T> = BoxStream<'static, Result<T, Status>>;

/// What all streams share.
#[derive(Clone, Debug)]
pub(crate) struct Push {
    pub(crate) token: CancellationToken,
    room: Arc<Semaphore>,
}

impl Push {
    pub(crate) fn new(token: CancellationToken) -> Self {
        Self { token, room: Arc::new(Semaphore::new(MAX_WATCHERS)) }
    }

    /// Room for one more stream, for as long as the permit lives.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, Status> {
        let room = self.room.clone().try_acquire_owned();
        room.map_err(|_| {
            resource_exhausted(
                "TOO_MANY_WATCHERS",
                format!("there are {MAX_WATCHERS} streams already; try again later"),
            )
        })
    }

    /// Sends what `show` makes of the newest state, at first and whenever it becomes another; `None`: nothing to show yet.
    pub(crate) fn states<S, T>(
        &self,
        states: watch::Receiver<Arc<S>>,
        show: impl FnMut(&S) -> Option<T> + Send + 'static,
    ) -> Result<Stream<T>, Status>
    where
        S: Send + Sync + 'static,
        T: Send + 'static,
    {
        let permit = self.admit()?;
        let mut states = states;
        states.mark_changed();
        let following = Some((states, show, self.token.clone(), permit));
        let stream = futures::stream::unfold(following, |following| async move {
            let (mut states, mut show, token, permit) = following?;
            match next(&mut states, &mut show, &token).await {
                Some(message) => Some((Ok(message), Some((states, show, token, permit)))),
                None => Some((Err(stopping()), None)),
            }
        });
        Ok(stream.boxed())
    }
}

/// What is to be shown next; `None` when the process stops.
async fn next<S, T>(
    states: &mut watch::Receiver<Arc<S>>,
    show: &mut impl FnMut(&S) -> Option<T>,
    token: &CancellationToken,
) -> Option<T> {
    loop {
        tokio::select! {
            biased;
            () = token.cancelled() => return None,
            changed = states.changed() => changed.ok()?,
        }
        let state = states.borrow_and_update().clone();
        if let Some(message) = show(&state) {
            return Some(message);
        }
    }
}
