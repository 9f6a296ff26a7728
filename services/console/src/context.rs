//! The events around one event of a stream, in the stream's order.
//!
//! Searches come by time, and a stream's times needn't follow its offsets: a container's clock was set, a lost range was read
//! again later. So what a search gives is held against a count of the offsets between: only when nothing is missing there are
//! these the nearest events. Otherwise the place is sought where as many lie as are wanted.

use std::ops::RangeInclusive;
use std::sync::Arc;

use futures::try_join;
use logmesh_grpc::{failed_precondition, not_found};
use logmesh_index::query::Query;
use logmesh_index::{Hit, IndexError, IndexReader, Order, PageLimit, Selection};
use logmesh_proto::search::v1 as proto;
use logmesh_types::{DocId, StreamId, TopicName, UnixNanos};
use serde::Deserialize;
use tonic::Status;

use crate::request::bad_field;
use crate::search::{hit, status};

/// The events on each side of a request that doesn't say, and the most.
const DEFAULT_EVENTS: usize = 5;
const MAX_EVENTS: usize = 500;

/// Bytes of documents on each side, but one document at least: both sides make a message that clients decode.
const SIDE_BYTES: usize = 3 << 19;

/// How often the nearest events are sought. Each time fewer are wanted, as fewer have room; then it's taken what there is.
const ROUNDS: usize = 6;

/// The greatest offset that the index holds.
const LAST: u64 = i64::MAX as u64;

/// What a request asks for.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) topic: TopicName,
    event: Named,
    before: usize,
    after: usize,
}

/// How an event is named.
#[derive(Debug)]
enum Named {
    Byte(StreamId, u64),
    Document(DocId),
}

impl Wanted {
    pub(crate) fn read(request: &proto::GetContextRequest) -> Result<Self, Status> {
        let events = |field: &str, asked: Option<i32>| match asked.map(usize::try_from) {
            None => Ok(DEFAULT_EVENTS),
            Some(Ok(events)) => Ok(events.min(MAX_EVENTS)),
            Some(Err(_)) => Err(bad_field(field, "it must not be negative")),
        };
        let event = match (request.stream_id.as_str(), request.id.as_str()) {
            ("", "") => return Err(bad_field("stream_id", "it must name the stream, or `id` the document")),
            ("", id) => Named::Document(id.parse().map_err(|error| bad_field("id", error))?),
            (stream, "") => {
                let stream = stream.parse().map_err(|error| bad_field("stream_id", error))?;
                Named::Byte(stream, request.offset)
            }
            _ => {
                return Err(bad_field(
                    "id",
                    "a document and a stream are named: one of them says which event is meant",
                ));
            }
        };
        Ok(Self {
            topic: request.topic.parse().map_err(|error| bad_field("topic", error))?,
            event,
            before: events("before", request.before)?,
            after: events("after", request.after)?,
        })
    }

    /// The events; `None` if there are none, as the index holds nothing of the stream, or no such document.
    pub(crate) async fn find(self, index: Arc<dyn IndexReader>) -> Result<Option<proto::GetContextResponse>, Status> {
        let (id, offset) = match self.event {
            Named::Byte(stream, offset) => (stream, offset),
            Named::Document(id) => match self.document(id, index.as_ref()).await? {
                Some(place) => place,
                None => return Ok(None),
            },
        };
        let stream = Stream { index, topic: self.topic, id };
        let context = stream.around(offset, self.before, self.after).await.map_err(status)?;
        Ok((!context.hits.is_empty() || context.more_before || context.more_after).then_some(context))
    }

    /// Where a document's event is.
    async fn document(&self, id: DocId, index: &dyn IndexReader) -> Result<Option<(StreamId, u64)>, Status> {
        let query = query(&format!("_id:\"{id}\""));
        let selection = Selection { query, from: None, to: None, topics: vec![self.topic.clone()] };
        let page = index.search(&selection, Order::default(), PageLimit::hits(1), None).await.map_err(status)?;
        let Some(hit) = page.hits.first() else { return Ok(None) };
        let place = Place::of(hit).and_then(|place| Some((place.stream.parse().ok()?, place.offset)));
        place.map(Some).ok_or_else(|| {
            let text = format!("document {id} is no event of a file: it has no place in a stream, and none beside it");
            failed_precondition("NO_STREAM", text)
        })
    }

    /// What to say when nothing was found.
    pub(crate) fn missing(request: &proto::GetContextRequest) -> Status {
        let topic = &request.topic;
        match request.id.as_str() {
            "" => not_found("STREAM_NOT_FOUND", format!("topic {topic} holds nothing of stream {}", request.stream_id)),
            id => not_found("DOCUMENT_NOT_FOUND", format!("topic {topic} holds no document {id}")),
        }
    }
}

/// An event with its place in the stream.
#[derive(Debug)]
struct Event {
    place: Place,
    hit: Hit,
}

/// What a document says of its place; a document of an event that came from no file says nothing.
#[derive(Debug, Deserialize)]
struct Place {
    #[serde(rename = "logmesh.stream")]
    stream: String,
    #[serde(rename = "logmesh.offset")]
    offset: u64,
    #[serde(rename = "logmesh.length", default)]
    length: u64,
}

impl Place {
    /// Of a document of a file.
    fn of(hit: &Hit) -> Option<Self> {
        serde_json::from_slice(&hit.body).ok()
    }

    /// True if the byte at this offset is one of the event's.
    fn holds(&self, offset: u64) -> bool {
        self.offset == offset || (self.offset..self.offset.saturating_add(self.length)).contains(&offset)
    }
}

/// A direction from the event that is asked for.
#[derive(Clone, Copy, Debug)]
enum Side {
    /// Events that start at this offset or before it.
    UpTo(u64),
    /// Events that start behind it.
    Behind(u64),
}

impl Side {
    /// In which order the nearest come first, where times follow offsets.
    fn order(self) -> Order {
        match self {
            Self::UpTo(_) => Order::NewestFirst,
            Self::Behind(_) => Order::OldestFirst,
        }
    }

    /// How far an offset on this side is.
    fn distance(self, offset: u64) -> u64 {
        match self {
            Self::UpTo(bound) => bound.saturating_sub(offset),
            Self::Behind(bound) => offset.saturating_sub(bound + 1),
        }
    }

    /// The offsets that are no further than this.
    fn within(self, distance: u64) -> RangeInclusive<u64> {
        match self {
            Self::UpTo(bound) => bound.saturating_sub(distance)..=bound,
            Self::Behind(bound) => bound + 1..=bound.saturating_add(1 + distance).min(LAST),
        }
    }
}

/// The events of one side, the nearest first, and whether the index holds more of them.
#[derive(Debug, Default)]
struct Nearest {
    events: Vec<Event>,
    more: bool,
}

/// A stream in a topic of the index.
#[derive(Clone, Debug)]
struct Stream {
    index: Arc<dyn IndexReader>,
    topic: TopicName,
    id: StreamId,
}

impl Stream {
    /// The events around the one that holds the byte at `offset`.
    async fn around(&self, offset: u64, before: usize, after: usize) -> Result<proto::GetContextResponse, IndexError> {
        let offset = offset.min(LAST - 1);
        let (mut earlier, later) =
            try_join!(self.nearest(Side::UpTo(offset), before + 1), self.nearest(Side::Behind(offset), after))?;
        let is_there = earlier.events.first().is_some_and(|event| event.place.holds(offset));
        if !is_there && earlier.events.len() > before {
            earlier.events.pop();
            earlier.more = true;
        }
        let position = is_there.then(|| earlier.events.len() - 1);
        let events = earlier.events.into_iter().rev().chain(later.events);
        Ok(proto::GetContextResponse {
            hits: events.map(|event| hit(event.hit)).collect(),
            position: position.and_then(|position| u32::try_from(position).ok()),
            more_before: earlier.more,
            more_after: later.more,
        })
    }

    /// The nearest events of one side: at most `wanted`, and no more than [`SIDE_BYTES`] have room for.
    async fn nearest(&self, side: Side, mut wanted: usize) -> Result<Nearest, IndexError> {
        if wanted == 0 {
            return Ok(Nearest { events: Vec::new(), more: self.count(side, LAST).await? > 0 });
        }
        let (mut distance, mut limit, mut total) = (LAST, wanted, None);
        for round in 1.. {
            let limits = PageLimit { hits: limit, bytes: SIDE_BYTES };
            let page = self.index.search(&self.selection(side.within(distance)), side.order(), limits, None).await?;
            let total = *total.get_or_insert(page.total);
            let mut events: Vec<Event> = page.hits.into_iter().filter_map(event).collect();
            events.sort_by_key(|event| side.distance(event.place.offset));
            let Some(farthest) = events.last().map(|event| side.distance(event.place.offset)) else { break };
            let found = events.len();
            if round == ROUNDS || self.count(side, farthest).await? <= found as u64 {
                events.truncate(wanted);
                let more = total > events.len() as u64;
                return Ok(Nearest { events, more });
            }
            wanted = wanted.min(found);
            (distance, limit) = self.narrow(side, farthest, wanted).await?;
        }
        Ok(Nearest::default())
    }

    /// The least distance within which `wanted` events lie, of which more do within `far`; and how many do.
    async fn narrow(&self, side: Side, far: u64, wanted: usize) -> Result<(u64, usize), IndexError> {
        let (mut low, mut high, mut within) = (0, far, wanted);
        while low < high {
            let middle = low + (high - low) / 2;
            let count = usize::try_from(self.count(side, middle).await?).unwrap_or(usize::MAX);
            if count >= wanted {
                (high, within) = (middle, count);
            } else {
                low = middle + 1;
            }
            if count == wanted {
                break;
            }
        }
        // Copies of one event lie at one distance.
        Ok((high, within.clamp(wanted, 2 * MAX_EVENTS)))
    }

    async fn count(&self, side: Side, distance: u64) -> Result<u64, IndexError> {
        self.index.count(&self.selection(side.within(distance))).await
    }

    fn selection(&self, offsets: RangeInclusive<u64>) -> Selection {
        let (start, end) = offsets.into_inner();
        let text = format!("logmesh.stream:\"{}\" logmesh.offset:[{start} TO {end}]", self.id);
        Selection { query: query(&text), from: None, to: None, topics: vec![self.topic.clone()] }
    }
}

/// A query of ours.
fn query(text: &str) -> Query {
    Query::parse_at(text, UnixNanos(0)).expect("ids and numbers make a query")
}

fn event(hit: Hit) -> Option<Event> {
    Some(Event { place: Place::of(&hit)?, hit })
}

#[cfg(test)]
mod tests;
