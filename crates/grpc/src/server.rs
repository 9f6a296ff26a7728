//! Serving, with every limit set and an end that comes.

use logmesh_runtime::CancellationToken;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tracing::warn;

use crate::incoming::incoming;
use crate::limits;
use crate::routes::{Health, Routes};

/// A server couldn't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors that reflection is to offer are unusable: a fault of the build.
    #[error("cannot offer reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport gave up.
    #[error("the gRPC server failed")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves until the token is cancelled; then lets calls under way end, for at most
/// [`SHUTDOWN_GRACE`](limits::SHUTDOWN_GRACE).
pub async fn serve(listener: TcpListener, routes: Routes, token: CancellationToken) -> Result<(), ServeError> {
    let (routes, health) = routes.finish().await?;
    let serving = Server::builder()
        .http2_keepalive_interval(Some(limits::KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(limits::KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(limits::MAX_STREAMS)
        .http2_max_header_list_size(limits::MAX_HEADER_BYTES)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            incoming(listener, limits::MAX_CONNECTIONS),
            stopped(token.clone(), health.clone()),
        );
    tokio::select! {
        ended = serving => Ok(ended?),
        () = showing(token.clone(), health) => Ok(()),
        () = overdue(token) => {
            warn!(grace = ?limits::SHUTDOWN_GRACE, "calls still under way were cut off");
            Ok(())
        }
    }
}

/// Resolves when the server is to end, having told whoever watches its health.
async fn stopped(token: CancellationToken, health: Health) {
    token.cancelled().await;
    health.stop().await;
}

/// Keeps health true until the server is to end; never resolves.
async fn showing(token: CancellationToken, health: Health) {
    tokio::select! {
        () = health.keep() => {}
        () = token.cancelled() => {}
    }
    std::future::pending().await
}

async fn overdue(token: CancellationToken) {
    token.cancelled().await;
    tokio::time::sleep(limits::SHUTDOWN_GRACE).await;
}
