//! One candidate for an office, for as long as its stream lives.
//!
//! The lease lives by the candidate's own messages: when the office goes to another, `ttl` has passed since the last message that was
//! answered, by which the candidate knows that it leads no more. So only a stream that its caller ended frees the office at once.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use logmesh_grpc::{aborted, unavailable};
use logmesh_proto::discovery::v1::{CampaignRequest, CampaignResponse};
use logmesh_proto::time::duration;
use logmesh_runtime::CancellationToken;
use logmesh_store::{ConfigStore, Election, Leadership, Revision, StoreError};
use logmesh_types::AgentId;
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Status, Streaming};
use tracing::{info, warn};

use crate::error::{bad_field, stopping, store};
use crate::keys;
use crate::push::Stream;
use crate::revision::on_wire;

/// The offices that are campaigned for from outside. `janitor` is a config service's own.
const OFFICES: [&str; 1] = ["retention"];

/// A candidate, elected or not.
pub(super) struct Campaign {
    /// The office and the candidate's name.
    name: String,
    ttl: Duration,
    stand: Stand,
}

enum Stand {
    Candidate(BoxFuture<'static, Result<Leadership, StoreError>>),
    Leader(Leadership),
}

/// What happens next.
enum Step {
    Message(Option<CampaignRequest>),
    Elected(Leadership),
}

impl fmt::Debug for Campaign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leads = matches!(self.stand, Stand::Leader(_));
        f.debug_struct("Campaign").field("name", &self.name).field("leads", &leads).finish_non_exhaustive()
    }
}

impl Campaign {
    /// Checks what is asked for, and begins to wait for the office.
    pub(super) fn begin(store: Arc<dyn ConfigStore>, request: &CampaignRequest, ttl: Duration) -> Result<Self, Status> {
        let (office, candidate) = (request.office.as_str(), request.candidate.clone());
        if !OFFICES.contains(&office) {
            return Err(bad_field("office", format!("{office:?} is not one of: {}", OFFICES.join(", "))));
        }
        // The same characters as in an agent's id: it's shown where leaders are listed.
        if candidate.parse::<AgentId>().is_err() {
            return Err(bad_field("candidate", "is not 1 to 64 of a-z, 0-9, '.', '_' and '-'"));
        }
        let name = format!("{office} {candidate}");
        let election = Election::new(store, format!("{}{office}", keys::LEADERS), ttl);
        let stand = Stand::Candidate(async move { election.campaign(&candidate).await }.boxed());
        Ok(Self { name, ttl, stand })
    }

    /// Answers the first message, then each further one, and says when the candidate is elected.
    pub(super) fn into_stream(
        self,
        messages: Streaming<CampaignRequest>,
        token: CancellationToken,
        permit: OwnedSemaphorePermit,
    ) -> Stream<CampaignResponse> {
        let first = self.answer();
        let serving = Some((self, messages, token, permit));
        let further = futures::stream::unfold(serving, |serving| async move {
            let (campaign, mut messages, token, permit) = serving?;
            match campaign.next(&mut messages, &token).await.transpose()? {
                Ok(campaign) => Some((Ok(campaign.answer()), Some((campaign, messages, token, permit)))),
                Err(status) => Some((Err(status), None)),
            }
        });
        futures::stream::iter([Ok(first)]).chain(further).boxed()
    }

    fn answer(&self) -> CampaignResponse {
        let revision = match &self.stand {
            Stand::Candidate(_) => Revision(0),
            Stand::Leader(leadership) => leadership.revision(),
        };
        CampaignResponse { ttl: Some(duration(self.ttl)), revision: on_wire(revision) }
    }

    /// How it stands after the next step; `None` when the caller ended the stream.
    async fn next(
        mut self,
        messages: &mut Streaming<CampaignRequest>,
        token: &CancellationToken,
    ) -> Result<Option<Self>, Status> {
        match self.step(messages, token).await? {
            Step::Message(Some(_)) => self.keep_alive().await.map(Some),
            Step::Message(None) => {
                self.resign().await;
                Ok(None)
            }
            Step::Elected(leadership) => {
                info!(name = %self.name, term = %leadership.revision(), "elected");
                (self.ttl, self.stand) = (leadership.ttl(), Stand::Leader(leadership));
                Ok(Some(self))
            }
        }
    }

    async fn step(
        &mut self,
        messages: &mut Streaming<CampaignRequest>,
        token: &CancellationToken,
    ) -> Result<Step, Status> {
        let ttl = self.ttl;
        let elected = async {
            match &mut self.stand {
                Stand::Candidate(campaign) => campaign.await,
                Stand::Leader(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = token.cancelled() => Err(stopping()),
            message = messages.message() => message.map(Step::Message),
            elected = elected => elected.map(Step::Elected).map_err(store),
            () = tokio::time::sleep(ttl) => {
                Err(unavailable("KEEP_ALIVE_MISSED", "no sign of life came in time; campaign again"))
            }
        }
    }

    async fn keep_alive(self) -> Result<Self, Status> {
        let Stand::Leader(leadership) = &self.stand else { return Ok(self) };
        match leadership.keep_alive().await {
            Ok(()) => Ok(self),
            Err(StoreError::LeaseNotFound(_)) => {
                warn!(name = %self.name, "the office is lost");
                Err(aborted("OFFICE_LOST", "the office is lost; campaign again"))
            }
            Err(error) => Err(store(error)),
        }
    }

    async fn resign(self) {
        let Stand::Leader(leadership) = self.stand else { return };
        match leadership.resign().await {
            Ok(()) => info!(name = %self.name, "resigned"),
            Err(error) => warn!(name = %self.name, %error, "could not give up an office; it ends with its lease"),
        }
    }
}
