//! Registers the gateway with one of the config services, and stays registered.

use std::time::Duration;

use anyhow::{Context, anyhow};
use logmesh_proto::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use logmesh_proto::discovery::v1::{Endpoint, RegisterRequest, RegisterResponse};
use logmesh_proto::time::std_duration;
use logmesh_runtime::{CancellationToken, RetryPolicy};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{info, warn};

use crate::Settings;

/// How long a config service may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may take to see the end of the registration.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is taken as the time to live if the answer names none, and the shortest.
const DEFAULT_TTL: Duration = Duration::from_secs(15);
const MIN_TTL: Duration = Duration::from_millis(300);

/// Keeps the gateway registered until the token is cancelled. One server after the other is tried, for ever.
pub(crate) async fn run(settings: Settings, token: CancellationToken) -> anyhow::Result<()> {
    let endpoint =
        Endpoint { kind: "gateway".to_owned(), id: settings.endpoint_id(), address: settings.advertise.clone() };
    let retry = RetryPolicy::default();
    let mut attempt = 0;
    for server in settings.config_servers.iter().cycle() {
        let mut registered = false;
        match register(server, &endpoint, &token, &mut registered).await {
            Ok(()) => return Ok(()),
            Err(error) => warn!(%server, error = format!("{error:#}"), "not registered; trying again"),
        }
        attempt = if registered { 0 } else { attempt + 1 };
        if !retry.pause(attempt, &token).await {
            return Ok(());
        }
    }
    Ok(())
}

/// Registers with one server and keeps it alive; returns when the token is cancelled and the endpoint was taken away.
async fn register(
    server: &str,
    endpoint: &Endpoint,
    token: &CancellationToken,
    registered: &mut bool,
) -> anyhow::Result<()> {
    let (requests, stream) = mpsc::channel(1);
    requests.send(RegisterRequest { endpoint: Some(endpoint.clone()) }).await?;
    let mut client = DiscoveryServiceClient::new(logmesh_grpc::channel(server)?);
    let opening = async {
        let mut answers = client.register(ReceiverStream::new(stream)).await?.into_inner();
        let ttl = answer(&mut answers).await?;
        anyhow::Ok((answers, ttl))
    };
    let opened = tokio::select! {
        opened = tokio::time::timeout(ANSWER_TIMEOUT, opening) => opened,
        // What is nearly registered is better taken away in order than left to its time.
        () = async { token.cancelled().await; tokio::time::sleep(LEAVE_TIMEOUT).await } => return Ok(()),
    };
    let (mut answers, mut ttl) = opened.context("no answer")??;
    *registered = true;
    info!(%server, id = %endpoint.id, address = %endpoint.address, "registered");
    loop {
        tokio::select! {
            () = token.cancelled() => {
                // The end of the requests takes the endpoint away; the end of the answers says that it's done.
                drop(requests);
                drop(tokio::time::timeout(LEAVE_TIMEOUT, async { while let Ok(Some(_)) = answers.message().await {} }).await);
                return Ok(());
            }
            () = tokio::time::sleep(ttl / 3) => {
                requests.send(RegisterRequest { endpoint: None }).await?;
                ttl = answer(&mut answers).await?;
            }
        }
    }
}

/// The time to live that the next answer names.
async fn answer(answers: &mut Streaming<RegisterResponse>) -> anyhow::Result<Duration> {
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, answers.message()).await.context("no answer")??;
    let answer = answer.ok_or_else(|| anyhow!("the server ended the registration"))?;
    Ok(answer.ttl.as_ref().and_then(std_duration).unwrap_or(DEFAULT_TTL).max(MIN_TTL))
}
