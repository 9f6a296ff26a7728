//! Chunks that are sent once more, since what they became was lost behind the gateway.
//!
//! They go when nothing new can, and are no part of any checkpoint: an ack is one of theirs if it names exactly their end, which
//! lies before every end that the collector waits for.

use std::collections::VecDeque;

use logmesh_tail::Chunk;
use logmesh_types::{ByteRange, StreamId};
use tokio::sync::oneshot;

/// What became of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is durable.
    Acked,
    /// The gateway refused it, with the reason.
    Refused(String),
    /// The connection ended before.
    Lost,
}

/// Chunks that wait, and those that are on their way. Who hands them in sees to it that they are few.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    waiting: VecDeque<(Chunk, oneshot::Sender<Fate>)>,
    sent: Vec<(StreamId, ByteRange, oneshot::Sender<Fate>)>,
}

impl Repeats {
    /// Takes a chunk in. It's forgotten when nobody waits for its fate any more.
    pub(crate) fn add(&mut self, chunk: Chunk, fate: oneshot::Sender<Fate>) {
        self.waiting.push_back((chunk, fate));
    }

    /// The next chunk to send, if it fits.
    pub(crate) fn next(&mut self, credit: u64) -> Option<Chunk> {
        self.waiting.retain(|(_, fate)| !fate.is_closed());
        let (chunk, fate) = self.waiting.pop_front_if(|(chunk, _)| chunk.data.len() as u64 <= credit)?;
        self.sent.push((chunk.stream, chunk.range, fate));
        Some(chunk)
    }

    /// The gateway has acked a stream up to `end`.
    pub(crate) fn acked(&mut self, stream: StreamId, end: u64) {
        self.settle(|(of, range, _)| (*of, range.end) == (stream, end), || Fate::Acked);
    }

    /// The gateway has refused a chunk.
    pub(crate) fn refused(&mut self, stream: StreamId, range: ByteRange, reason: &str) {
        self.settle(|(of, at, _)| (*of, *at) == (stream, range), || Fate::Refused(reason.to_owned()));
    }

    /// What was sent over the last connection won't be acked any more.
    pub(crate) fn lost(&mut self) {
        self.settle(|_| true, || Fate::Lost);
    }

    fn settle(
        &mut self,
        which: impl Fn(&(StreamId, ByteRange, oneshot::Sender<Fate>)) -> bool,
        fate: impl Fn() -> Fate,
    ) {
        for (.., told) in self.sent.extract_if(.., |one| which(one)) {
            // Nobody may wait for it any more.
            told.send(fate()).ok();
        }
    }
}
