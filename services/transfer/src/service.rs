//! `TransferService`: what the worker does, and the dead letters.

use std::sync::Arc;

use logmesh_bus::{Bus, BusError, NextOffset, TopicPartition};
use logmesh_proto::time::timestamp;
use logmesh_proto::transfer::v1 as proto;
use logmesh_proto::transfer::v1::transfer_service_server::TransferService;
use logmesh_record::{DeadLetter, with_books};
use logmesh_types::TopicName;
use tonic::{Request, Response, Status};

use crate::GROUP;
use crate::status::Shared;

/// Bytes of dead letters in one page at most, so that it stays below what a client decodes.
const PAGE_BYTES: usize = 2 << 20;

/// The most dead letters of a page.
const MAX_PAGE: usize = 1_000;

#[derive(Debug)]
pub(crate) struct Service {
    bus: Arc<dyn Bus>,
    shared: Arc<Shared>,
}

impl Service {
    pub(crate) fn new(bus: Arc<dyn Bus>, shared: Arc<Shared>) -> Self {
        Self { bus, shared }
    }

    /// How far the group is with a partition, whichever worker holds it: the bus knows.
    async fn partition(&self, at: TopicPartition) -> Result<proto::PartitionStatus, BusError> {
        let marks = self.bus.watermarks(&at).await?;
        let committed = self.bus.committed(GROUP, &at).await?.unwrap_or(marks.low);
        let held = self.shared.state().partitions.get(&at).copied();
        let mut fresh = held.and_then(|held| held.fresh);
        if fresh.is_none() && committed > marks.low {
            // One record is read, however large the batches that it lies among.
            let last = self.bus.read(&at, NextOffset(committed.0 - 1), 1).await?;
            fresh = last.first().map(|record| record.timestamp);
        }
        Ok(proto::PartitionStatus {
            topic: at.topic.into(),
            partition: at.partition,
            committed_offset: committed.0,
            end_offset: marks.high.0,
            lag_records: marks.high.0.saturating_sub(committed.0),
            fresh_time: fresh.map(timestamp),
            streams: held.map_or(0, |held| held.streams as u64),
            held: held.is_some(),
        })
    }

    /// Dead letters from a place on, and the place after the last; `None` at the end of the topic.
    async fn letters(
        &self,
        topic: &TopicName,
        mut partition: u32,
        mut next: NextOffset,
        limit: usize,
    ) -> Result<(Vec<proto::DeadLetter>, Option<(u32, NextOffset)>), BusError> {
        let dead = topic.dead_letters();
        let Some(spec) = self.bus.topic(&dead).await? else { return Ok((Vec::new(), None)) };
        let mut letters = Vec::new();
        let mut bytes = 0;
        while partition < spec.partitions {
            let at = TopicPartition { topic: dead.clone(), partition };
            let records = self.bus.read(&at, next, PAGE_BYTES).await?;
            if records.is_empty() {
                (partition, next) = (partition + 1, NextOffset(0));
                continue;
            }
            for record in &records {
                bytes += record.size();
                if letters.len() == limit || (bytes > PAGE_BYTES && !letters.is_empty()) {
                    return Ok((letters, Some((partition, next))));
                }
                next = record.offset.next();
                letters.extend(DeadLetter::decode(record).ok().map(|letter| to_proto(topic, letter)));
            }
        }
        Ok((letters, None))
    }
}

#[tonic::async_trait]
impl TransferService for Service {
    async fn get_status(
        &self,
        _: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        let (counts, error) = {
            let state = self.shared.state();
            (state.counts, state.error.clone())
        };
        let mut answer = proto::GetStatusResponse { partitions: Vec::new(), counts: Some(counts), error };
        for topic in with_books(self.bus.topics().await.map_err(bus_status)?) {
            for partition in 0..topic.partitions {
                let at = TopicPartition { topic: topic.name.clone(), partition };
                answer.partitions.push(self.partition(at).await.map_err(bus_status)?);
            }
        }
        Ok(Response::new(answer))
    }

    async fn list_dead_letters(
        &self,
        request: Request<proto::ListDeadLettersRequest>,
    ) -> Result<Response<proto::ListDeadLettersResponse>, Status> {
        let request = request.into_inner();
        let topic: TopicName = request.topic.parse().map_err(|error| field_error("topic", &error))?;
        let limit = logmesh_grpc::page_size(request.page_size, MAX_PAGE)
            .ok_or_else(|| field_error("page_size", &"it must not be negative"))?;
        let (partition, next) = match request.page_token.as_str() {
            "" => (0, NextOffset(0)),
            token => parse_token(token).ok_or_else(|| field_error("page_token", &"it is none that this list gave"))?,
        };
        let (dead_letters, next) = self.letters(&topic, partition, next, limit).await.map_err(bus_status)?;
        let next_page_token = next.map_or_else(String::new, |(partition, next)| format!("{partition}.{}", next.0));
        Ok(Response::new(proto::ListDeadLettersResponse { dead_letters, next_page_token }))
    }
}

fn parse_token(token: &str) -> Option<(u32, NextOffset)> {
    let (partition, next) = token.split_once('.')?;
    Some((partition.parse().ok()?, NextOffset(next.parse().ok()?)))
}

fn to_proto(topic: &TopicName, letter: DeadLetter) -> proto::DeadLetter {
    let stream = letter.document.stream;
    proto::DeadLetter {
        topic: topic.to_string(),
        id: letter.document.id.map_or_else(String::new, |id| id.to_string()),
        reason: letter.reason,
        time: Some(timestamp(letter.time)),
        stream_id: stream.map_or_else(String::new, |(stream, _)| stream.to_string()),
        start_offset: stream.map_or(0, |(_, range)| range.start),
        end_offset: stream.map_or(0, |(_, range)| range.end),
        document: letter.document.body,
    }
}

fn field_error(field: &str, error: &dyn std::fmt::Display) -> Status {
    logmesh_grpc::bad_field(field, error)
}

fn bus_status(error: BusError) -> Status {
    logmesh_grpc::unavailable("BUS_UNAVAILABLE", error.to_string())
}
