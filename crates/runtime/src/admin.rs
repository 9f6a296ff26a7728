//! The operator's port of a process: `/metrics`, `/healthz` (it runs) and `/readyz` (it can do its work, or 503 and why
//! not).

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::readiness::Readiness;
use crate::telemetry::MetricsHandle;

/// How long an answer that is under way may hold up the end of the process.
const GRACE: Duration = Duration::from_secs(1);

/// Answers on the listener until the token is cancelled.
pub async fn serve(
    listener: TcpListener,
    metrics: MetricsHandle,
    readiness: Readiness,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let stop = token.clone().cancelled_owned();
    let serving = axum::serve(listener, router(metrics, readiness)).with_graceful_shutdown(stop);
    tokio::select! {
        ended = serving.into_future() => Ok(ended?),
        () = async { token.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
    }
}

fn router(metrics: MetricsHandle, readiness: Readiness) -> Router {
    Router::new()
        .route(
            "/metrics",
            get(move || async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()) }),
        )
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(readiness)
}

/// One line for each component, so that `curl` alone says what is missing.
async fn ready(State(readiness): State<Readiness>) -> impl IntoResponse {
    let code = if readiness.all_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut text = String::new();
    for (name, ready, reason) in readiness.snapshot() {
        let line = match (ready, reason.as_str()) {
            (true, "") => format!("{name}: ready\n"),
            (true, note) => format!("{name}: ready, but {note}\n"),
            (false, reason) => format!("{name}: not ready: {reason}\n"),
        };
        text.push_str(&line);
    }
    if text.is_empty() {
        text.push_str("starting: no component has reported yet\n");
    }
    (code, text)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::Tasks;

    async fn get(addr: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn it_says_what_is_missing() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || metrics::counter!("logmesh_test_lines").increment(7));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (tasks, readiness) = (Tasks::new(), Readiness::new());
        let metrics = MetricsHandle::of(&recorder);
        tasks.spawn("admin", serve(listener, metrics, readiness.clone(), tasks.token()));

        assert!(get(addr, "/readyz").await.starts_with("HTTP/1.1 503"));
        readiness.set("store", true, "");
        readiness.set("bus", false, "opening the log");
        let answer = get(addr, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("bus: not ready: opening the log\nstore: ready\n"), "{answer}");
        readiness.set("bus", true, "the disk is nearly full");
        let answer = get(addr, "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("bus: ready, but the disk is nearly full"),
            "{answer}"
        );
        assert!(get(addr, "/healthz").await.contains("ok"));
        assert!(get(addr, "/metrics").await.contains("logmesh_test_lines 7"));

        tasks.shutdown();
        tasks.finish(Duration::from_secs(30)).await.unwrap();
    }
}
