//! The other workers: who they are, and how each is asked for its part of an answer.
//!
//! Workers know of each other by the config services, which are asked at each call; what they said last holds while none of
//! them answers. Who is asked doesn't ask on.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use logmesh_grpc::Candidate;
use logmesh_proto::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use logmesh_proto::discovery::v1::{Endpoint, WatchEndpointsRequest};
use logmesh_proto::transfer::v1::transfer_service_client::TransferServiceClient;
use logmesh_proto::transfer::v1::{GetFreshnessRequest, GetFreshnessResponse, GetStatusRequest};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Response, Status};
use tracing::debug;

/// The kind of workers among the endpoints.
const KIND: &str = "transfer";

/// How long a config service, and then each worker, may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug)]
pub(crate) struct Workers {
    /// What this one is called, and where the config services are; `None`: it's the only one.
    own: Option<Candidate>,
    /// As the config services said last; `None`: they never did.
    known: Mutex<Option<Vec<Endpoint>>>,
}

impl Workers {
    pub(crate) fn new(own: Option<Candidate>) -> Self {
        Self { own, known: Mutex::default() }
    }

    /// What each of the others has measured, and the ids of those that didn't say.
    pub(crate) async fn freshness(&self, topic: &str) -> Result<(Vec<GetFreshnessResponse>, Vec<String>), Status> {
        let request = GetFreshnessRequest { topic: topic.to_owned(), this_worker_only: true };
        let (answers, unreachable) = self
            .ask(|mut other| {
                let request = request.clone();
                async move { other.get_freshness(request).await }
            })
            .await?;
        Ok((answers.into_iter().map(|(_, answer)| answer).collect(), unreachable))
    }

    /// What keeps each of the others from going on, by id, if something does, and the ids of those that didn't say.
    pub(crate) async fn errors(&self) -> Result<(BTreeMap<String, String>, Vec<String>), Status> {
        let request = GetStatusRequest { this_worker_only: true };
        let (answers, unreachable) = self.ask(|mut other| async move { other.get_status(request).await }).await?;
        let errors = answers.into_iter().map(|(id, status)| (id, status.error)).filter(|(_, error)| !error.is_empty());
        Ok((errors.collect(), unreachable))
    }

    /// Asks all of the others at once: what each answers in time, by id, and the ids of the rest in their order.
    async fn ask<T, F>(
        &self,
        call: impl Fn(TransferServiceClient<Channel>) -> F,
    ) -> Result<(Vec<(String, T)>, Vec<String>), Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let asked = self.others().await?.into_iter().map(|other| {
            let called = logmesh_grpc::channel(&other.address)
                .map(|channel| timeout(ANSWER_TIMEOUT, call(TransferServiceClient::new(channel))));
            let answer = async move {
                let answer = called.map_err(|error| Status::internal(error.to_string()))?.await;
                answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer came in time")))
            };
            answer.map(|answer| (other.id, answer))
        });
        let (mut answers, mut unreachable) = (Vec::new(), Vec::new());
        for (id, answer) in join_all(asked).await {
            match answer {
                Ok(answer) => answers.push((id, answer.into_inner())),
                Err(status) => {
                    debug!(worker = %id, error = %logmesh_grpc::describe(&status), "a worker does not answer");
                    unreachable.push(id);
                }
            }
        }
        unreachable.sort();
        Ok((answers, unreachable))
    }

    /// All workers but this one.
    async fn others(&self) -> Result<Vec<Endpoint>, Status> {
        let Some(own) = &self.own else { return Ok(Vec::new()) };
        let heard = hear(&own.config_servers).await;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(heard) = heard {
            *known = Some(heard);
        }
        let all = known.clone().ok_or_else(|| {
            let reason =
                "no config service answers, so the other workers aren't known; this_worker_only leaves them out";
            logmesh_grpc::unavailable("CONFIG_UNAVAILABLE", reason)
        })?;
        Ok(all.into_iter().filter(|endpoint| endpoint.id != own.id).collect())
    }
}

/// The workers that are registered, as the first config service says that answers.
async fn hear(config_servers: &[String]) -> Option<Vec<Endpoint>> {
    for server in config_servers {
        match timeout(ANSWER_TIMEOUT, endpoints(server)).await {
            Ok(Ok(endpoints)) => return Some(endpoints),
            Ok(Err(status)) => {
                debug!(server, error = %logmesh_grpc::describe(&status), "a config service does not tell the workers");
            }
            Err(_) => debug!(server, "a config service does not tell the workers in time"),
        }
    }
    None
}

async fn endpoints(server: &str) -> Result<Vec<Endpoint>, Status> {
    let channel = logmesh_grpc::channel(server).map_err(|error| Status::internal(error.to_string()))?;
    let request = WatchEndpointsRequest { kind: KIND.to_owned() };
    let mut states = DiscoveryServiceClient::new(channel).watch_endpoints(request).await?.into_inner();
    let state = states.message().await?.ok_or_else(|| Status::unavailable("the server ended the stream"))?;
    Ok(state.endpoints.into_iter().filter(|endpoint| endpoint.kind == KIND).collect())
}
