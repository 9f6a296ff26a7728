//! `Write`: events from any client, answered when all are durable.

use bytes::Bytes;
use logmesh_bus::BusError;
use logmesh_grpc::{FieldViolation, failed_precondition, invalid_argument, unavailable};
use logmesh_proto::ingest::v1::{Event, WriteRequest, WriteResponse};
use logmesh_record::{Times, codec, document};
use logmesh_types::limits::{MAX_EVENT_BYTES, MAX_RECORD_BYTES, MAX_WRITE_EVENTS};
use logmesh_types::{TopicName, UnixNanos, metric};
use metrics::counter;
use prost::Message;
use rand::Rng;
use tonic::Status;

use crate::Shared;
use crate::push::{InFlight, bus_position};
use crate::topics::TopicError;

/// The longest `event_id`, in bytes: a place for any UUID, digest or URL.
const MAX_EVENT_ID_BYTES: usize = 512;

/// The most faults that are named in one answer.
const MAX_VIOLATIONS: usize = 20;

/// Checks all events, then appends them, in their order.
pub(crate) async fn write(shared: &Shared, request: WriteRequest) -> Result<WriteResponse, Status> {
    let topic = check(&request)?;
    let _in_flight = InFlight::new(&shared.room, request.encoded_len()).await;
    let format_known = shared.topics.ensure(&topic).await;
    format_known.map_err(|error| match error {
        TopicError::Refused { reason, detail } => {
            invalid_argument(reason, detail.clone(), &[FieldViolation::new("topic", detail)])
        }
        TopicError::Bus(error) => failed(&error),
    })?;
    let mut appends = Vec::with_capacity(request.events.len());
    for record in records(shared, &topic, &request.events)? {
        appends.push(shared.bus.append(&topic, record).await.map_err(|error| failed(&error))?);
    }
    let mut positions = Vec::with_capacity(appends.len());
    for append in appends {
        let position = append.await.map_err(|error| failed(&error))?;
        positions.push(bus_position(&topic, &position));
    }
    counter!(metric::GATEWAY_WRITTEN_EVENTS).increment(positions.len() as u64);
    Ok(WriteResponse { positions })
}

/// The records of the events, each small enough for the bus.
fn records(shared: &Shared, topic: &TopicName, events: &[Event]) -> Result<Vec<logmesh_bus::NewRecord>, Status> {
    let taken = UnixNanos::now();
    let types = &shared.settings.topics.get(topic).fields;
    // Events without an id stay together and in order, and requests are spread over the partitions.
    let key = Bytes::from(format!("{:016x}", rand::rng().random::<u64>()));
    let mut records = Vec::with_capacity(events.len());
    for (index, event) in events.iter().enumerate() {
        let document = document::of_event(topic.as_str(), event, taken, types);
        let mut record = codec::encode_event(&document);
        if record.key.is_empty() {
            record.key = key.clone();
        }
        Times::of_event(taken).stamp(&mut record);
        if record.size() > MAX_RECORD_BYTES {
            let field = FieldViolation::new(format!("events[{index}]"), "its document is too large for the bus");
            return Err(invalid_argument("BAD_EVENT", "an event can't be stored; nothing was", &[field]));
        }
        records.push(record);
    }
    Ok(records)
}

fn check(request: &WriteRequest) -> Result<TopicName, Status> {
    let mut faults = Vec::new();
    let topic: Option<TopicName> = match request.topic.parse::<TopicName>() {
        Ok(topic) if !topic.is_internal() => Some(topic),
        Ok(topic) => {
            faults.push(FieldViolation::new("topic", format!("{topic} belongs to logmesh itself")));
            None
        }
        Err(error) => {
            faults.push(FieldViolation::new("topic", error.to_string()));
            None
        }
    };
    if request.events.is_empty() || request.events.len() > MAX_WRITE_EVENTS {
        let count = request.events.len();
        faults.push(FieldViolation::new("events", format!("are 1 to {MAX_WRITE_EVENTS}, not {count}")));
    }
    for (index, event) in request.events.iter().enumerate() {
        if event.message.len() > MAX_EVENT_BYTES {
            let text = format!("is longer than {MAX_EVENT_BYTES} bytes");
            faults.push(FieldViolation::new(format!("events[{index}].message"), text));
        }
        if event.event_id.len() > MAX_EVENT_ID_BYTES {
            let text = format!("is longer than {MAX_EVENT_ID_BYTES} bytes");
            faults.push(FieldViolation::new(format!("events[{index}].event_id"), text));
        }
    }
    match topic {
        Some(topic) if faults.is_empty() => Ok(topic),
        _ => {
            faults.truncate(MAX_VIOLATIONS);
            Err(invalid_argument("BAD_EVENT", "the request is refused; nothing was stored", &faults))
        }
    }
}

/// The bus failed: some events may be stored, so the client has to send all again.
fn failed(error: &BusError) -> Status {
    match error {
        BusError::RecordTooLarge { .. } => invalid_argument("BAD_EVENT", error.to_string(), &[]),
        BusError::Refused { .. } => failed_precondition("TOPIC_REFUSED", error.to_string()),
        _ => unavailable("BUS_UNAVAILABLE", format!("{error}; send the events again")),
    }
}
