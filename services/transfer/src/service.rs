//! `TransferService`: what the worker does, and the dead letters.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use logmesh_bus::{BusError, NextOffset, TopicPartition};
use logmesh_grpc::bad_field;
use logmesh_proto::time::{duration, timestamp};
use logmesh_proto::transfer::v1 as proto;
use logmesh_proto::transfer::v1::transfer_service_server::TransferService;
use logmesh_record::with_books;
use logmesh_runtime::Readiness;
use logmesh_types::{TopicName, UnixNanos};
use tonic::{Request, Response, Status};

use crate::letters::{self, Cursor, Groups, Letters, pattern};
use crate::paused::{self, Paused};
use crate::replay::Wanted;
use crate::replay::api::Api;
use crate::retired::marks;
use crate::status::Shared;
use crate::workers::Workers;
use crate::{GROUP, Transfer, freshness, operate, worker};

/// Bytes of dead letters in one page at most, so that it stays below what a client decodes.
const PAGE_BYTES: usize = 2 << 20;

/// Bytes of dead letters that one call looks through.
const SCAN_BYTES: usize = 64 << 20;

/// The components whose state keeps a worker from going on; backends are components where they are servers.
const NEEDED: [&str; 4] = [worker::COMPONENT, worker::TOPICS, "bus", "index"];

/// The most dead letters of a page.
const MAX_PAGE: usize = 1_000;

#[derive(Debug)]
pub(crate) struct Service {
    letters: Letters,
    replays: Api,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    searchable_within: Duration,
    readiness: Readiness,
}

impl Service {
    pub(crate) fn new(of: Transfer) -> Self {
        let Transfer { shared, letters, replays, workers, searchable_within, readiness } = of;
        Self { letters, replays, shared, workers, searchable_within, readiness }
    }

    /// The topic whose dead letters are asked for, if it may have any, or all.
    async fn topics(&self, asked: &str) -> Result<Vec<TopicName>, Status> {
        if asked.is_empty() {
            return self.letters.topics().await.map_err(bus_status);
        }
        let topic = asked.parse().map_err(|error| bad_field("topic", error))?;
        Ok(if self.letters.are_there(&topic).await? { vec![topic] } else { Vec::new() })
    }

    /// Which of the components that the work needs aren't ready, and why: a backend may be away before anything is to be written.
    fn waits_for(&self) -> String {
        let waits = self.readiness.snapshot().into_iter().filter(|(name, ready, _)| !ready && NEEDED.contains(name));
        waits.map(|(name, _, reason)| format!("{name}: {reason}")).collect::<Vec<_>>().join("; ")
    }

    /// How far the group is with a partition, whichever worker holds it: the bus knows.
    async fn partition(&self, at: TopicPartition) -> Result<proto::PartitionStatus, BusError> {
        let marks = self.letters.bus.watermarks(&at).await?;
        let committed = self.letters.bus.committed(GROUP, &at).await?.unwrap_or(marks.low);
        let held = self.shared.state().partitions.get(&at).copied();
        let mut fresh = held.and_then(|held| held.fresh);
        if fresh.is_none() && committed > marks.low {
            fresh = self.time_at(&at, NextOffset(committed.0 - 1)).await?;
        }
        let waiting = if marks.high > committed { self.time_at(&at, committed).await? } else { None };
        Ok(proto::PartitionStatus {
            topic: at.topic.into(),
            partition: at.partition,
            committed_offset: committed.0,
            end_offset: marks.high.0,
            lag_records: marks.high.0.saturating_sub(committed.0),
            fresh_time: fresh.map(timestamp),
            waiting_time: waiting.map(timestamp),
            streams: held.map_or(0, |held| held.streams as u64),
            held: held.is_some(),
        })
    }

    /// The time of the record at an offset, or of the next that is still there.
    async fn time_at(&self, at: &TopicPartition, offset: NextOffset) -> Result<Option<UnixNanos>, BusError> {
        // One record is read, however large the batches that it lies among.
        Ok(self.letters.bus.read(at, offset, 1).await?.first().map(|record| record.timestamp))
    }
}

#[tonic::async_trait]
impl TransferService for Service {
    async fn get_status(
        &self,
        request: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        let (counts, mut error) = {
            let state = self.shared.state();
            (state.counts, state.error.clone())
        };
        if error.is_empty() {
            error = self.waits_for();
        }
        if request.into_inner().this_worker_only {
            return Ok(Response::new(proto::GetStatusResponse { counts: Some(counts), error, ..Default::default() }));
        }
        let paused = Paused::read(&self.letters.jobs).await.map_err(bus_status)?;
        let marks = marks(&self.letters.jobs).await.map_err(bus_status)?;
        let mut answer =
            proto::GetStatusResponse { counts: Some(counts), error, paused: paused.all, ..Default::default() };
        // Config that doesn't answer is told by its own services; how far the workers are, the bus knows.
        (answer.other_errors, answer.unreachable_workers) = self.workers.errors().await.unwrap_or_default();
        for topic in with_books(self.letters.bus.topics().await.map_err(bus_status)?) {
            let retired = marks.before(&topic.name);
            if paused.topics.contains(topic.name.as_str()) || retired.is_some() {
                answer.topics.push(proto::TopicState {
                    topic: topic.name.to_string(),
                    paused: paused.holds(&topic.name),
                    retired_before: retired.map_or_else(String::new, String::from),
                });
            }
            for partition in 0..topic.partitions {
                let at = TopicPartition { topic: topic.name.clone(), partition };
                answer.partitions.push(self.partition(at).await.map_err(bus_status)?);
            }
        }
        // Those that are only a rule's so far.
        let told: BTreeSet<String> = answer.topics.iter().map(|one| one.topic.clone()).collect();
        let waiting = paused.topics.iter().filter(|topic| !told.contains(*topic)).cloned();
        answer.topics.extend(waiting.map(|topic| proto::TopicState { topic, paused: true, ..Default::default() }));
        Ok(Response::new(answer))
    }

    async fn get_freshness(
        &self,
        request: Request<proto::GetFreshnessRequest>,
    ) -> Result<Response<proto::GetFreshnessResponse>, Status> {
        let request = request.into_inner();
        let mut measured = self.shared.freshness.measured();
        let mut unreachable_workers = Vec::new();
        let mut names = BTreeSet::new();
        if !request.this_worker_only {
            names.extend(self.topics("").await?.iter().map(ToString::to_string));
            let (answers, missing) = self.workers.freshness(&request.topic).await?;
            answers.into_iter().for_each(|answer| measured.hear(answer));
            unreachable_workers = missing;
        }
        names.extend(measured.topics().cloned());
        if !request.topic.is_empty() {
            names.retain(|name| *name == request.topic);
            if names.is_empty() && !request.this_worker_only {
                return Err(logmesh_grpc::not_found("TOPIC_NOT_FOUND", format!("there is no topic {}", request.topic)));
            }
        }
        Ok(Response::new(proto::GetFreshnessResponse {
            topics: names.iter().map(|name| measured.tell(name, request.this_worker_only)).collect(),
            window: Some(duration(freshness::WINDOW)),
            unreachable_workers,
            searchable_within: Some(duration(self.searchable_within)),
        }))
    }

    async fn list_dead_letters(
        &self,
        request: Request<proto::ListDeadLettersRequest>,
    ) -> Result<Response<proto::ListDeadLettersResponse>, Status> {
        let request = request.into_inner();
        let topics = self.topics(&request.topic).await?;
        let limit = logmesh_grpc::page_size(request.page_size, MAX_PAGE)
            .ok_or_else(|| bad_field("page_size", "it must not be negative"))?;
        let from = cursor(&request.page_token)?;
        let reason = pattern(&request.reason);
        let (mut dead_letters, mut bytes) = (Vec::new(), 0);
        let next = self
            .letters
            .scan(&topics, from, SCAN_BYTES, &mut |found| {
                if !reason.is_empty() && reason != pattern(&found.letter.reason) {
                    return ControlFlow::Continue(());
                }
                bytes += found.size;
                if dead_letters.len() == limit || (bytes > PAGE_BYTES && !dead_letters.is_empty()) {
                    return ControlFlow::Break(());
                }
                dead_letters.push(letters::to_proto(found.topic, found.letter));
                ControlFlow::Continue(())
            })
            .await
            .map_err(bus_status)?;
        let next_page_token = next.map_or_else(String::new, |next| next.to_token());
        Ok(Response::new(proto::ListDeadLettersResponse { dead_letters, next_page_token }))
    }

    async fn summarize_dead_letters(
        &self,
        request: Request<proto::SummarizeDeadLettersRequest>,
    ) -> Result<Response<proto::SummarizeDeadLettersResponse>, Status> {
        let request = request.into_inner();
        let topics = self.topics(&request.topic).await?;
        let from = cursor(&request.page_token)?;
        let mut groups = Groups::default();
        let next = self
            .letters
            .scan(&topics, from, SCAN_BYTES, &mut |found| {
                groups.add(found);
                ControlFlow::Continue(())
            })
            .await
            .map_err(bus_status)?;
        let next_page_token = next.map_or_else(String::new, |next| next.to_token());
        Ok(Response::new(proto::SummarizeDeadLettersResponse { groups: groups.into_list(), next_page_token }))
    }

    async fn redrive_dead_letters(
        &self,
        request: Request<proto::RedriveDeadLettersRequest>,
    ) -> Result<Response<proto::RedriveDeadLettersResponse>, Status> {
        operate::redrive(&self.letters, request.get_ref()).await.map(Response::new)
    }

    async fn start_replay(
        &self,
        request: Request<proto::StartReplayRequest>,
    ) -> Result<Response<proto::Replay>, Status> {
        self.replays.start(request.into_inner()).await.map(Response::new)
    }

    async fn get_replay(&self, request: Request<proto::GetReplayRequest>) -> Result<Response<proto::Replay>, Status> {
        self.replays.get(&request.get_ref().id).await.map(Response::new)
    }

    async fn list_replays(
        &self,
        request: Request<proto::ListReplaysRequest>,
    ) -> Result<Response<proto::ListReplaysResponse>, Status> {
        self.replays.list(request.get_ref()).await.map(Response::new)
    }

    async fn pause_replay(
        &self,
        request: Request<proto::PauseReplayRequest>,
    ) -> Result<Response<proto::Replay>, Status> {
        self.replays.want(&request.get_ref().id, Wanted::Paused).await.map(Response::new)
    }

    async fn resume_replay(
        &self,
        request: Request<proto::ResumeReplayRequest>,
    ) -> Result<Response<proto::Replay>, Status> {
        self.replays.want(&request.get_ref().id, Wanted::Running).await.map(Response::new)
    }

    async fn cancel_replay(
        &self,
        request: Request<proto::CancelReplayRequest>,
    ) -> Result<Response<proto::Replay>, Status> {
        self.replays.want(&request.get_ref().id, Wanted::Cancelled).await.map(Response::new)
    }

    async fn pause(&self, request: Request<proto::PauseRequest>) -> Result<Response<proto::PauseResponse>, Status> {
        let Paused { all, topics } = paused::pause(&self.letters, &request.get_ref().topic).await?;
        Ok(Response::new(proto::PauseResponse { all, topics: topics.into_iter().collect() }))
    }

    async fn resume(&self, request: Request<proto::ResumeRequest>) -> Result<Response<proto::ResumeResponse>, Status> {
        let Paused { all, topics } = paused::resume(&self.letters, &request.get_ref().topic).await?;
        Ok(Response::new(proto::ResumeResponse { all, topics: topics.into_iter().collect() }))
    }
}

fn cursor(token: &str) -> Result<Option<Cursor>, Status> {
    let parse = |token| Cursor::parse(token).ok_or_else(|| bad_field("page_token", "it is none that this list gave"));
    (!token.is_empty()).then(|| parse(token)).transpose()
}

pub(crate) fn bus_status(error: BusError) -> Status {
    logmesh_grpc::unavailable("BUS_UNAVAILABLE", error.to_string())
}
