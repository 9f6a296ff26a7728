//! The connection to the centre: rules come over it, and the reporter uses it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use logmesh_proto::fleet::v1::agent_config_service_client::AgentConfigServiceClient;
use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_proto::fleet::v1::{WatchConfigRequest, WatchConfigResponse};
use logmesh_proto::time::std_duration;
use logmesh_runtime::{CancellationToken, RetryPolicy};
use logmesh_types::AgentId;
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;

use crate::collect::Handle;
use crate::commands::Asked;
use crate::host::Identity;
use crate::rules::{Rules, Standing};
use crate::settings::Settings;

/// How long a server may take to answer, and how long it may be silent (it says something every 10 s).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest wait that a go-away can ask for.
const MAX_AWAY: Duration = Duration::from_secs(60);

/// A server of the centre that is connected.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub channel: Channel,
    /// Counts the connections: with each, all has to be reported again.
    pub number: u64,
}

/// What other tasks see of the centre.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub link: watch::Receiver<Option<Link>>,
    pub taken: watch::Receiver<Taken>,
}

/// What the centre said last and has been applied, and what became of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taken {
    /// Of the last message of the present connection; empty: there was none yet.
    pub nonce: String,
    pub revision: i64,
    /// Counts the deltas: with each the centre waits for an answer.
    pub deltas: u64,
    pub rules: Arc<BTreeMap<String, Standing>>,
}

/// Runs the rules: the last good ones at once, then what the centre says.
pub(crate) struct Centre {
    settings: watch::Receiver<Arc<Settings>>,
    identity: Arc<Identity>,
    collector: Handle,
    rules: Rules,
    link: watch::Sender<Option<Link>>,
    taken: watch::Sender<Taken>,
    asked: mpsc::Sender<Asked>,
}

/// How a connection ended that was once open.
enum End {
    GoAway(Duration),
    /// The settings have changed: servers, labels or what is allowed may be others.
    Changed,
    Stopped,
}

impl Centre {
    pub(crate) fn new(
        settings: watch::Receiver<Arc<Settings>>,
        identity: Arc<Identity>,
        collector: Handle,
        rules: Rules,
        asked: mpsc::Sender<Asked>,
    ) -> (Self, View) {
        let (link, link_seen) = watch::channel(None);
        let (taken, taken_seen) = watch::channel(Taken::default());
        (Self { settings, identity, collector, rules, link, taken, asked }, View { link: link_seen, taken: taken_seen })
    }

    /// Runs until the token is cancelled. One server after the other is tried, for ever, from a place on that the agent's id
    /// gives, so that many agents spread over the servers; from there again, with the rules judged anew, when the settings
    /// change. When the collector has ended, the process is ending too.
    pub(crate) async fn run(mut self, token: CancellationToken) -> anyhow::Result<()> {
        let retry = RetryPolicy::default();
        let mut changes = self.settings.clone();
        let first = first_place(&self.identity.id);
        let (mut attempt, mut number, mut place) = (0, 0, first);
        let mut apply = true;
        loop {
            let settings = changes.borrow_and_update().clone();
            if std::mem::take(&mut apply) && self.apply().await.is_err() {
                return Ok(());
            }
            let server = &settings.servers[place % settings.servers.len()];
            let mut connected = false;
            let end = tokio::select! {
                end = self.connect(server, &settings.labels, &mut number, &mut connected, &token) => end,
                Ok(()) = changes.changed() => Ok(End::Changed),
            };
            self.link.send_replace(None);
            place = place.wrapping_add(1);
            if connected {
                attempt = 0;
            }
            match end {
                Ok(End::Stopped) => return Ok(()),
                Ok(End::Changed) => (apply, place) = (true, first),
                Ok(End::GoAway(pause)) => {
                    tracing::debug!(%server, ?pause, "the centre asks to connect again");
                    tokio::select! { () = token.cancelled() => return Ok(()), () = tokio::time::sleep(pause) => {} }
                }
                Err(error) => {
                    tracing::warn!(%server, error = format!("{error:#}"), "no connection to the centre; trying again");
                    tokio::select! {
                        on = retry.pause(attempt, &token) => if !on { return Ok(()) },
                        Ok(()) = changes.changed() => (apply, place) = (true, first),
                    }
                    attempt += 1;
                }
            }
        }
    }

    async fn connect(
        &mut self,
        server: &str,
        labels: &BTreeMap<String, String>,
        number: &mut u64,
        connected: &mut bool,
        token: &CancellationToken,
    ) -> anyhow::Result<End> {
        let channel = logmesh_grpc::channel(server)?;
        let mut client = AgentConfigServiceClient::new(channel.clone());
        let request = WatchConfigRequest {
            agent_id: self.identity.id.to_string(),
            labels: self.identity.labels(labels),
            held: self.rules.held(),
            session: self.identity.session.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: self.rules.incarnation().to_owned(),
            revision: self.taken.borrow().revision,
        };
        // What another connection said isn't this one's to answer.
        self.taken.send_if_modified(|taken| {
            taken.nonce.clear();
            false
        });
        let opened = tokio::select! {
            opened = tokio::time::timeout(ANSWER_TIMEOUT, client.watch_config(request)) => opened,
            () = token.cancelled() => return Ok(End::Stopped),
        };
        let mut stream = opened.context("no answer")?.map_err(refused)?.into_inner();
        loop {
            let message = tokio::select! {
                message = tokio::time::timeout(SILENCE_TIMEOUT, stream.message()) => message,
                () = token.cancelled() => return Ok(End::Stopped),
            };
            let message = message.context("nothing was heard for 30 s")?.map_err(refused)?;
            let message = message.ok_or_else(|| anyhow!("the server ended the stream"))?;
            let is_first = !std::mem::replace(connected, true);
            if let Some(end) = self.take(message, &channel).await? {
                return Ok(end);
            }
            if is_first {
                *number += 1;
                tracing::info!(%server, agent = %self.identity.id, "connected to the centre");
                // Now, so that the first report tells what became of the first message.
                self.link.send_replace(Some(Link { channel: channel.clone(), number: *number }));
            }
        }
    }

    async fn take(&mut self, message: WatchConfigResponse, channel: &Channel) -> anyhow::Result<Option<End>> {
        let WatchConfigResponse { nonce, revision, incarnation, update } = message;
        match update {
            Some(Update::Delta(delta)) => {
                tracing::debug!(nonce, revision, snapshot = delta.snapshot, "rules from the centre");
                self.rules.change(delta, &incarnation);
                let rules = self.run_rules().await?;
                self.taken.send_modify(|taken| *taken = Taken { nonce, revision, deltas: taken.deltas + 1, rules });
                Ok(None)
            }
            Some(Update::GoAway(away)) => {
                let pause = away.retry_after.as_ref().and_then(std_duration).unwrap_or_default();
                Ok(Some(End::GoAway(pause.min(MAX_AWAY))))
            }
            Some(Update::Bookmark(_)) => {
                // Nothing that the centre waits for: it is told with the next report.
                self.taken.send_if_modified(|taken| {
                    (taken.nonce, taken.revision) = (nonce, revision);
                    false
                });
                Ok(None)
            }
            Some(Update::Command(command)) => {
                let running = self.rules.running();
                let asked = Asked { command, channel: channel.clone(), running, at: Instant::now() };
                if self.asked.try_send(asked).is_err() {
                    tracing::debug!(nonce, "a command is left unanswered: others wait already");
                }
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// Judges the rules anew.
    async fn apply(&mut self) -> anyhow::Result<()> {
        let rules = self.run_rules().await?;
        self.taken.send_modify(|taken| taken.rules = rules);
        Ok(())
    }

    async fn run_rules(&mut self) -> anyhow::Result<Arc<BTreeMap<String, Standing>>> {
        let outcomes = self.collector.apply(self.rules.to_run()).await?;
        if let Err(error) = self.rules.note(outcomes) {
            // They run all the same; only a restart without the centre would lack them.
            tracing::error!(error = format!("{error:#}"), "the rules run but are not kept on disk");
        }
        Ok(Arc::new(self.rules.standing()))
    }
}

/// Where among the servers an agent begins: the same at each start, another for each agent.
fn first_place(id: &AgentId) -> usize {
    let mut half = [0; 4];
    half.copy_from_slice(&blake3::hash(id.as_str().as_bytes()).as_bytes()[..4]);
    u32::from_le_bytes(half) as usize
}

fn refused(status: tonic::Status) -> anyhow::Error {
    anyhow!("{}", logmesh_grpc::describe(&status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_spread_over_the_servers() {
        let mut counts = [0; 3];
        for number in 0..3_000 {
            let id: AgentId = format!("agent-{number}").parse().unwrap();
            counts[first_place(&id) % counts.len()] += 1;
        }
        assert!(counts.iter().all(|count| (900..1_100).contains(count)), "{counts:?}");
    }
}
