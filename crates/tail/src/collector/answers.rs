//! What the centre answers: acks, refusals, and what is sent again.

use std::time::{Duration, Instant};

use logmesh_types::{ByteRange, StreamId};

use super::Collector;
use crate::chunk::Chunk;
use crate::follow::{Flight, Held};
use crate::state::{Guard, Record};

/// How long a refused chunk waits before it is sent again.
const RETRY_REJECTED: Duration = Duration::from_secs(30);

impl Collector {
    /// Notes that a stream is durable at the centre up to `end`.
    pub fn ack(&mut self, stream: StreamId, end: u64, now: Instant) {
        if let Some(number) = self.by_stream.get(&stream).copied()
            && let Some(file) = self.files.get_mut(&number)
        {
            let (bytes, held, reached) = file.flight.ack(end);
            if let Some((offset, guard)) = reached {
                file.acked(offset, guard);
                let drained = file.flight.sent.is_empty();
                let waits = file.next.is_some();
                self.dirty.insert(number);
                self.settle(bytes, held);
                if drained && waits {
                    self.enqueue(number);
                }
                if drained {
                    self.check_end(number, now);
                }
            }
        } else if let Some(draining) = self.draining.get_mut(&stream) {
            let (number, former) = (draining.record, draining.former);
            let (bytes, held, reached) = draining.flight.ack(end);
            if draining.flight.sent.is_empty() {
                self.draining.remove(&stream);
            }
            self.settle(bytes, held);
            match reached {
                Some((offset, _)) if former => self.ack_former(number, stream, bytes, offset, now),
                Some((offset, guard)) => self.ack_dormant(number, offset, guard),
                None => {}
            }
        }
    }

    fn ack_former(&mut self, number: u64, stream: StreamId, bytes: u64, end: u64, now: Instant) {
        let live = self.files.get_mut(&number).map(|file| &mut file.record);
        if let Some(record) = live.or_else(|| self.dormant.get_mut(&number)) {
            record.former_acked(stream, bytes, end);
            self.dirty.insert(number);
            self.check_end(number, now);
        }
    }

    /// What was on its way of a former generation when the process ended can't be read again.
    pub(super) fn count_former(&mut self, record: &mut Record) {
        let lost = record.lose_former();
        if lost > 0 {
            let path = record.path.display();
            tracing::error!(%path, lost, "file was truncated, and the process ended before its former bytes were acked: they may be lost");
            self.totals.lost_bytes += lost;
            self.dirty.insert(record.number);
        }
    }

    fn ack_dormant(&mut self, number: u64, offset: u64, guard: Guard) {
        if let Some(record) = self.dormant.get_mut(&number) {
            record.advance(offset, guard);
            self.dirty.insert(number);
        }
    }

    fn settle(&mut self, bytes: u64, held: Held) {
        self.release_held(held);
        self.totals.acked_bytes += bytes;
    }

    fn release_held(&mut self, held: Held) {
        self.totals.in_flight_bytes -= held.bytes;
        self.totals.in_flight_chunks -= held.chunks;
    }

    /// Notes that the centre refused a chunk. The stream stands still there, and the chunk is sent again later.
    ///
    /// A file that is followed holds no memory meanwhile: it's read again from there. What the centre says of later
    /// chunks follows from the first refusal, and changes nothing.
    pub fn reject(&mut self, stream: StreamId, range: ByteRange, reason: &str, now: Instant) {
        let Some(flight) = self.flight_mut(stream) else { return };
        let Some(sent) = flight.sent.iter().find(|sent| sent.chunk.range == range) else { return };
        if flight.rejected_at.is_some_and(|from| from <= range.start) {
            return;
        }
        let path = sent.chunk.source.path.clone();
        if flight.rejected_at.replace(range.start).is_none() {
            let error = format!("the gateway refused {range}: {reason}");
            if flight.error.as_ref() != Some(&error) {
                tracing::error!(%stream, path, "{error}; the stream stands until it is taken");
            }
            flight.error = Some(error);
        }
        self.changes += 1;
        self.rejected.entry(stream).or_insert(now + RETRY_REJECTED);
        self.resend.retain(|chunk| chunk.stream != stream || chunk.range.start < range.start);
        if let Some(file) = self.by_stream.get(&stream).and_then(|number| self.files.get_mut(number)) {
            let held = file.go_back(range.start);
            self.release_held(held);
        }
    }

    /// The connection was lost: everything unacked is to be sent again.
    pub fn reconnect(&mut self) {
        for stream in std::mem::take(&mut self.rejected).into_keys() {
            self.enqueue_stream(stream);
        }
        let files = self.files.values_mut().map(|file| &mut file.flight);
        let flights = files.chain(self.draining.values_mut().map(|draining| &mut draining.flight));
        self.resend.clear();
        for flight in flights {
            flight.rejected_at = None;
            self.resend.extend(flight.sent.iter().map(|sent| sent.chunk.clone()));
        }
    }

    pub(super) fn retry_rejected(&mut self, now: Instant) {
        let due: Vec<_> = self.rejected.iter().filter(|(_, at)| **at <= now).map(|(stream, _)| *stream).collect();
        due.into_iter().for_each(|stream| self.retry(stream));
    }

    /// Lets a stream go on that was refused.
    pub(super) fn retry(&mut self, stream: StreamId) {
        self.rejected.remove(&stream);
        self.enqueue_stream(stream);
        let Some(flight) = self.flight_mut(stream) else { return };
        let Some(from) = flight.rejected_at.take() else { return };
        let again: Vec<Chunk> =
            flight.sent.iter().map(|s| s.chunk.clone()).filter(|chunk| chunk.range.start >= from).collect();
        self.resend.extend(again);
    }

    fn enqueue_stream(&mut self, stream: StreamId) {
        if let Some(number) = self.by_stream.get(&stream).copied() {
            self.enqueue(number);
        }
    }

    fn flight_mut(&mut self, stream: StreamId) -> Option<&mut Flight> {
        match self.by_stream.get(&stream) {
            Some(number) => self.files.get_mut(number).map(|file| &mut file.flight),
            None => self.draining.get_mut(&stream).map(|draining| &mut draining.flight),
        }
    }

    pub(super) fn is_in_flight(&mut self, chunk: &Chunk) -> bool {
        self.flight_mut(chunk.stream)
            .is_some_and(|flight| flight.sent.front().is_some_and(|first| first.chunk.range.start <= chunk.range.start))
    }
}
