//! This server's own endpoint, written directly to the store.

use std::sync::Arc;
use std::time::Duration;

use logmesh_proto::discovery::v1::Endpoint;
use logmesh_runtime::{CancellationToken, RetryPolicy};
use logmesh_store::ConfigStore;
use tonic::Status;
use tracing::{info, warn};

use crate::discovery::{Registration, entry};

/// How soon it's tried again: while it isn't registered, others don't know of this server's agents.
const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(200), max: Duration::from_secs(5) };

/// Keeps the endpoint in the store until the token is cancelled, then takes it away.
pub(crate) async fn keep_registered(
    store: Arc<dyn ConfigStore>,
    endpoint: Endpoint,
    ttl: Duration,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let (mut attempt, mut told) = (0, false);
    while !token.is_cancelled() {
        let mut held = false;
        let ended = hold(&store, &endpoint, ttl, &token, &mut held).await;
        (attempt, told) = if held { (0, false) } else { (attempt, told) };
        if let Err(error) = ended
            && !std::mem::replace(&mut told, true)
        {
            let error = logmesh_grpc::describe(&error);
            warn!(id = %endpoint.id, %error, "not registered with the other config services; trying again");
        }
        if !RETRY.pause(attempt, &token).await {
            break;
        }
        attempt += 1;
    }
    Ok(())
}

/// Registers, and keeps it alive until that fails or the token is cancelled.
async fn hold(
    store: &Arc<dyn ConfigStore>,
    endpoint: &Endpoint,
    ttl: Duration,
    token: &CancellationToken,
    held: &mut bool,
) -> Result<(), Status> {
    let writing = Registration::write(store.clone(), entry(endpoint)?, ttl);
    let mut registration = tokio::select! {
        registration = writing => registration.map_err(crate::error::store)?,
        () = token.cancelled() => return Ok(()),
    };
    *held = true;
    info!(id = %endpoint.id, address = %endpoint.address, "known to the other config services");
    loop {
        tokio::select! {
            () = token.cancelled() => {
                registration.remove().await;
                return Ok(());
            }
            () = tokio::time::sleep(ttl / 3) => registration.keep_alive().await?,
        }
    }
}
