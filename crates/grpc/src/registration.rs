//! Registers a server with one of the config services, so that others find it.

use std::time::Duration;

use anyhow::{Context, anyhow};
use logmesh_proto::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use logmesh_proto::discovery::v1::{Endpoint, RegisterRequest, RegisterResponse};
use logmesh_proto::time::std_duration;
use logmesh_runtime::{CancellationToken, RetryPolicy};
use logmesh_types::limits::MAX_NAME_BYTES;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{info, warn};

use crate::channel::channel;

/// How long a config service may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may take to see the end of the registration.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is taken as the time to live if the answer names none, and the shortest.
const DEFAULT_TTL: Duration = Duration::from_secs(15);
const MIN_TTL: Duration = Duration::from_millis(300);

/// What a server declares of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    endpoint: Endpoint,
}

impl Registration {
    /// A server of this kind (`gateway`, `transfer`, `console`) that others reach at `address`, `host:port`. Its id among
    /// all of its kind is made from the address, so that a server that comes back takes its own place.
    pub fn new(kind: &str, address: &str) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
        let mut id = address.chars().map(plain).collect::<String>().trim_matches('-').to_owned();
        if id.len() > MAX_NAME_BYTES {
            let all = fnv1a(id.as_bytes());
            id.truncate(MAX_NAME_BYTES - 17);
            id.push_str(&format!("-{all:016x}"));
        }
        Self { endpoint: Endpoint { kind: kind.to_owned(), id, address: address.to_owned() } }
    }

    /// The same with an id of its own: 1 to 64 of `a-z`, `0-9`, `.`, `_` and `-`.
    pub fn with_id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.endpoint.id);
        self
    }

    /// Its kind, id and address.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Keeps the server registered with one of the config services until the token is cancelled. One after the other is
    /// tried, for ever; none of them: nobody finds this server.
    pub async fn keep(self, config_servers: Vec<String>, token: CancellationToken) -> anyhow::Result<()> {
        let retry = RetryPolicy::default();
        let mut attempt = 0;
        for server in config_servers.iter().cycle() {
            let mut registered = false;
            match register(server, &self.endpoint, &token, &mut registered).await {
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
    let mut client = DiscoveryServiceClient::new(channel(server)?);
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

/// FNV-1a in 64 bits: enough to tell long addresses apart, and the same in every version of the program.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_address_has_an_id_too() {
        let of = |host: &str| Registration::new("config", &format!("{}.{host}.svc:7401", "x".repeat(60))).endpoint.id;
        assert_eq!((of("a").len(), of("a") == of("b"), of("a") == of("a")), (64, false, true));
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c, "as published");
    }

    #[test]
    fn the_id_comes_from_the_address() {
        let id = |address: &str| Registration::new("gateway", address).endpoint.id;
        assert_eq!(id("127.0.0.1:7402"), "127.0.0.1-7402");
        assert_eq!(id("[::1]:7402"), "1--7402");
        assert_eq!(id("Gate.example:1"), "gate.example-1");
        assert_eq!(Registration::new("gateway", "a:1").with_id("b").endpoint.id, "b");
    }
}
