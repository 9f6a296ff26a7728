//! Campaigns for an office with one of the config services, for what one process of many must do alone.

use std::time::Duration;

use anyhow::{Context, anyhow};
use logmesh_proto::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use logmesh_proto::discovery::v1::{CampaignRequest, CampaignResponse};
use logmesh_proto::time::std_duration;
use logmesh_runtime::{CancellationToken, RetryPolicy};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{debug, info, warn};

use crate::channel::channel;

/// How long a config service may take to answer for the first time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may take to see the end of the campaign.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is taken as the time to live if an answer names none, and the shortest.
const DEFAULT_TTL: Duration = Duration::from_secs(15);
const MIN_TTL: Duration = Duration::from_millis(300);

/// A process that wants an office.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The office: `retention`.
    pub office: String,
    /// What the process calls itself, 1 to 64 of `a-z`, `0-9`, `.`, `_` and `-`.
    pub id: String,
    /// The config services, `host:port`.
    pub config_servers: Vec<String>,
}

/// The office as this process holds it: the store's revision at which it was elected, `None` while another leads.
pub type Term = Option<i64>;

impl Candidate {
    /// Campaigns with one of the config services after the other until the token is cancelled, and tells by `term` whether this
    /// process leads. It is told to lead no more before another can be elected, unless its clock stands still: what must never
    /// be done by two needs a guard of its own.
    pub async fn campaign(self, term: watch::Sender<Term>, token: CancellationToken) -> anyhow::Result<()> {
        let retry = RetryPolicy::default();
        let mut attempt = 0;
        for server in self.config_servers.iter().cycle() {
            let mut answered = false;
            let ended = self.campaign_at(server, &term, &token, &mut answered).await;
            term.send_replace(None);
            match ended {
                Ok(()) => return Ok(()),
                Err(error) => {
                    warn!(%server, office = %self.office, error = format!("{error:#}"), "no candidate any more; trying again")
                }
            }
            attempt = if answered { 0 } else { attempt + 1 };
            if !retry.pause(attempt, &token).await {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Campaigns with one server; returns when the token is cancelled and the office was given up.
    async fn campaign_at(
        &self,
        server: &str,
        term: &watch::Sender<Term>,
        token: &CancellationToken,
        answered: &mut bool,
    ) -> anyhow::Result<()> {
        let (requests, stream) = mpsc::channel(1);
        requests.send(CampaignRequest { office: self.office.clone(), candidate: self.id.clone() }).await?;
        let mut client = DiscoveryServiceClient::new(channel(server)?);
        let mut sent = Instant::now();
        let opening = async {
            let mut answers = client.campaign(ReceiverStream::new(stream)).await?.into_inner();
            let ttl = take(answers.message().await?, term)?;
            anyhow::Ok((answers, ttl))
        };
        let opened = tokio::select! {
            opened = tokio::time::timeout(ANSWER_TIMEOUT, opening) => opened,
            () = token.cancelled() => return Ok(()),
        };
        let (mut answers, mut ttl) = opened.context("no answer")??;
        *answered = true;
        debug!(%server, office = %self.office, "a candidate");
        loop {
            let due = sent + ttl / 3;
            tokio::select! {
                () = token.cancelled() => {
                    term.send_replace(None);
                    // The end of the requests frees the office; the end of the answers says that it's done.
                    drop(requests);
                    drop(tokio::time::timeout(LEAVE_TIMEOUT, async { while let Ok(Some(_)) = answers.message().await {} }).await);
                    return Ok(());
                }
                // Elected between two signs of life.
                answer = answers.message() => ttl = take(answer?, term)?,
                () = tokio::time::sleep_until(due) => {
                    let (asked, alive_until) = (Instant::now(), sent + ttl);
                    requests.send(CampaignRequest::default()).await?;
                    ttl = tokio::time::timeout_at(alive_until, answer(&mut answers, term)).await.context("no answer")??;
                    sent = asked;
                }
            }
        }
    }
}

/// Takes the next answer.
async fn answer(answers: &mut Streaming<CampaignResponse>, term: &watch::Sender<Term>) -> anyhow::Result<Duration> {
    take(answers.message().await?, term)
}

/// Says whether this process leads, and gives the time to live.
fn take(answer: Option<CampaignResponse>, term: &watch::Sender<Term>) -> anyhow::Result<Duration> {
    let answer = answer.ok_or_else(|| anyhow!("the server ended the campaign"))?;
    let now = (answer.revision > 0).then_some(answer.revision);
    term.send_if_modified(|term| {
        let changed = *term != now;
        if changed && now.is_some() {
            info!(term = answer.revision, "elected");
        }
        *term = now;
        changed
    });
    Ok(answer.ttl.as_ref().and_then(std_duration).unwrap_or(DEFAULT_TTL).max(MIN_TTL))
}
