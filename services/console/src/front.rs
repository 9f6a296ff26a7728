//! The front door: one address for the whole mesh.
//!
//! Calls go on as they come, to a config service, a gateway or a transfer worker. Which gateways and workers there are, the
//! config service tells; what it said last holds while it's away.

use std::time::Duration;

use anyhow::anyhow;
use logmesh_grpc::{Choice, Routes, Upstream};
use logmesh_proto::config::v1::rule_service_server::RuleServiceServer;
use logmesh_proto::discovery::v1::WatchEndpointsRequest;
use logmesh_proto::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use logmesh_proto::discovery::v1::discovery_service_server::DiscoveryServiceServer;
use logmesh_proto::fleet::v1::agent_config_service_server::AgentConfigServiceServer;
use logmesh_proto::fleet::v1::fleet_service_server::FleetServiceServer;
use logmesh_proto::ingest::v1::ingest_service_server::IngestServiceServer;
use logmesh_proto::transfer::v1::transfer_service_server::TransferServiceServer;
use logmesh_runtime::{CancellationToken, RetryPolicy, Tasks};
use tracing::warn;

/// How following the list of servers is tried again: it's one stream, and new servers wait for it.
const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(200), max: Duration::from_secs(2) };

/// Adds the services of others to this server.
pub(crate) fn open(config: &Upstream, tasks: &Tasks, routes: &mut Routes) {
    let (gateway, transfer) = (Upstream::new("gateway", Choice::Turns), Upstream::new("transfer", Choice::Turns));
    routes
        .pass_on::<RuleServiceServer<()>>(config)
        .pass_on::<AgentConfigServiceServer<()>>(config)
        .pass_on::<FleetServiceServer<()>>(config)
        .pass_on::<DiscoveryServiceServer<()>>(config)
        .pass_on::<IngestServiceServer<()>>(&gateway)
        .pass_on::<TransferServiceServer<()>>(&transfer);
    for upstream in [&gateway, &transfer] {
        tasks.spawn("console-front-door", upstream.clone().follow(tasks.token()));
    }
    tasks.spawn(
        "console-endpoints",
        follow(config.clone(), [("gateway", gateway), ("transfer", transfer)], tasks.token()),
    );
}

/// Keeps the lists of servers true until the token is cancelled.
async fn follow(
    config: Upstream,
    kinds: [(&'static str, Upstream); 2],
    token: CancellationToken,
) -> anyhow::Result<()> {
    let mut attempt = 0;
    loop {
        let mut heard = false;
        let error = tokio::select! {
            Err(error) = watch(&config, &kinds, &mut heard) => error,
            () = token.cancelled() => return Ok(()),
        };
        attempt = if heard { 0 } else { attempt + 1 };
        if attempt == 1 {
            warn!(error = format!("{error:#}"), "the list of servers isn't followed; trying again");
        }
        if !RETRY.pause(attempt, &token).await {
            return Ok(());
        }
    }
}

async fn watch(config: &Upstream, kinds: &[(&'static str, Upstream)], heard: &mut bool) -> anyhow::Result<()> {
    let mut client = DiscoveryServiceClient::new(config.clone());
    let mut endpoints = client.watch_endpoints(WatchEndpointsRequest::default()).await?.into_inner();
    while let Some(message) = endpoints.message().await? {
        *heard = true;
        for (kind, upstream) in kinds {
            let of_kind = message.endpoints.iter().filter(|endpoint| endpoint.kind == *kind);
            let addresses: Vec<String> = of_kind
                .map(|endpoint| endpoint.address.clone())
                .filter(|address| logmesh_grpc::check_address(address).is_ok()) // one bad entry must not hide the others
                .collect();
            // A centre that has just started may not have heard of any yet: the old ones are still worth a try.
            if !addresses.is_empty() {
                upstream.set_servers(&addresses)?;
            }
        }
    }
    Err(anyhow!("the server ended the stream"))
}
