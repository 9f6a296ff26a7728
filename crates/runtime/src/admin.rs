//! The operator's port of a process: `/metrics`, `/healthz` (it runs) and `/readyz` (it can do its work, or 503 and why
//! not). [`ask_ready`] is how another process asks the last one.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::listen::reachable;
use crate::readiness::Readiness;
use crate::telemetry::MetricsHandle;

/// How long an answer that is under way may hold up the end of the process.
const GRACE: Duration = Duration::from_secs(1);

/// How long [`ask_ready`] waits for an answer, and the most bytes that it reads of one.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
const ASK_BYTES: u64 = 64 << 10;

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

/// Asks the process on this machine whose operator's port is `address` whether it's ready: yes or no, and what it says of
/// each component. What containers and init systems without `curl` check health with.
///
/// An error: nobody answers there, or not in time.
pub async fn ask_ready(address: SocketAddr) -> io::Result<(bool, String)> {
    match tokio::time::timeout(ASK_TIMEOUT, ask(reachable(address))).await {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {ASK_TIMEOUT:?}"))),
    }
}

async fn ask(address: SocketAddr) -> io::Result<(bool, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ASK_BYTES).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok((true, body.to_owned())),
        Some("503") => Ok((false, body.to_owned())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "what answers there isn't logmesh")),
    }
}

#[cfg(test)]
mod tests {
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
        let everywhere = SocketAddr::from(([0, 0, 0, 0], addr.port()));
        let (ready, text) = ask_ready(everywhere).await.unwrap();
        assert!(ready && text == "bus: ready, but the disk is nearly full\nstore: ready\n", "{text}");
        readiness.set("store", false, "away");
        let (ready, text) = ask_ready(addr).await.unwrap();
        assert!(!ready && text.contains("store: not ready: away"), "{text}");
        assert!(get(addr, "/healthz").await.contains("ok"));
        assert!(get(addr, "/metrics").await.contains("logmesh_test_lines 7"));

        tasks.shutdown();
        tasks.finish(Duration::from_secs(30)).await.unwrap();
        ask_ready(addr).await.unwrap_err();
    }
}
