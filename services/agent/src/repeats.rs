//! Chunks that are sent once more, since what they became was lost behind the gateway.
//!
//! They go when nothing new can, and before what is new once every [`TURN`] chunks: an agent that always has something new sends them
//! too, and what is new is held up by an eighth at most. They are no part of any checkpoint: an ack is one of theirs if it names exactly their end, which
//! lies before every end that the collector waits for.

use std::collections::VecDeque;

use logmesh_tail::Chunk;
use logmesh_types::{ByteRange, StreamId};
use tokio::sync::oneshot;

/// Of so many chunks one is a repeat, while any waits.
pub(crate) const TURN: u32 = 8;

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
    /// Chunks that went before those that wait.
    overtaken: u32,
}

impl Repeats {
    /// Takes a chunk in. It's forgotten when nobody waits for its fate any more.
    pub(crate) fn add(&mut self, chunk: Chunk, fate: oneshot::Sender<Fate>) {
        self.waiting.push_back((chunk, fate));
    }

    /// The next chunk to send, if it fits.
    pub(crate) fn next(&mut self, credit: u64) -> Option<Chunk> {
        self.forget();
        let (chunk, fate) = self.waiting.pop_front_if(|(chunk, _)| chunk.data.len() as u64 <= credit)?;
        self.sent.push((chunk.stream, chunk.range, fate));
        self.overtaken = 0;
        Some(chunk)
    }

    /// True if it's the turn of one that waits: nothing new may go before it, or there would never be credit enough for it.
    pub(crate) fn are_due(&mut self) -> bool {
        self.forget();
        !self.waiting.is_empty() && self.overtaken >= TURN - 1
    }

    /// A chunk of what is new was sent.
    pub(crate) fn overtake(&mut self) {
        self.overtaken = if self.waiting.is_empty() { 0 } else { self.overtaken.saturating_add(1) };
    }

    fn forget(&mut self) {
        self.waiting.retain(|(_, fate)| !fate.is_closed());
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
