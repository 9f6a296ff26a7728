//! Which gateways there are, as the centre says; what it said last holds while it can't be reached, after a restart too.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use logmesh_proto::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use logmesh_proto::discovery::v1::{Endpoint, WatchEndpointsRequest};
use logmesh_runtime::{CancellationToken, RetryPolicy};
use tokio::sync::watch;

use crate::centre::Link;

/// How long a connection that has just been lost may take to be replaced.
const LINK_PAUSE: Duration = Duration::from_millis(200);

/// Where the list is kept: a line `id address` for each. Losing it only costs a restarted agent the wait for the centre.
pub(crate) fn file_in(state_dir: &Path) -> PathBuf {
    state_dir.join("gateways")
}

/// The gateways that were known last.
pub(crate) fn load(file: &Path) -> Vec<Endpoint> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let one = |line: &str| {
        let (id, address) = line.split_once(' ')?;
        Some(Endpoint { kind: "gateway".to_owned(), id: id.to_owned(), address: address.to_owned() })
    };
    text.lines().filter_map(one).collect()
}

fn keep(file: &Path, gateways: &[Endpoint]) -> std::io::Result<()> {
    let text: String = gateways.iter().map(|gateway| format!("{} {}\n", gateway.id, gateway.address)).collect();
    let new = file.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, file)
}

/// Follows the gateways until the token is cancelled.
pub(crate) async fn run(
    mut link: watch::Receiver<Option<Link>>,
    gateways: watch::Sender<Vec<Endpoint>>,
    file: PathBuf,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let retry = RetryPolicy { initial: LINK_PAUSE, ..RetryPolicy::default() };
    let mut attempt = 0;
    loop {
        let Some(current) = next_link(&mut link, &token).await else { return Ok(()) };
        let before = gateways.borrow().len();
        let error = tokio::select! {
            Err(error) = follow(current, &gateways, &file) => error,
            () = token.cancelled() => return Ok(()),
            _ = link.changed() => continue,
        };
        tracing::debug!(error = format!("{error:#}"), "the list of gateways isn't followed; trying again");
        attempt = if gateways.borrow().len() == before { attempt + 1 } else { 0 };
        if !retry.pause(attempt, &token).await {
            return Ok(());
        }
    }
}

/// Waits for a connection to the centre.
async fn next_link(link: &mut watch::Receiver<Option<Link>>, token: &CancellationToken) -> Option<Link> {
    tokio::select! {
        () = token.cancelled() => None,
        found = link.wait_for(Option::is_some) => found.ok()?.clone(),
    }
}

async fn follow(link: Link, gateways: &watch::Sender<Vec<Endpoint>>, file: &Path) -> anyhow::Result<()> {
    let mut client = DiscoveryServiceClient::new(link.channel);
    let request = WatchEndpointsRequest { kind: "gateway".to_owned() };
    let mut stream = client.watch_endpoints(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        let news = gateways.send_if_modified(|known| {
            let changed = *known != message.endpoints;
            // A centre that has just started may not have heard of any yet: the old ones are still worth a try.
            if changed && !message.endpoints.is_empty() {
                tracing::info!(gateways = message.endpoints.len(), "gateways known");
                *known = message.endpoints;
                return true;
            }
            false
        });
        let known = gateways.borrow().clone();
        if news && let Err(error) = keep(file, &known) {
            tracing::warn!(%error, file = %file.display(), "the gateways' addresses are not kept");
        }
    }
    Err(anyhow!("the server ended the stream"))
}
