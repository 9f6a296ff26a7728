//! What a file's record keeps of bytes that were gone before they could be collected.
//!
//! Each loss is counted; where it was is kept for the first [`MAX_LOSSES`] ranges, neighbours put together.

use logmesh_types::{AgentId, ByteRange, StreamId, UnixNanos};

use crate::follow::{Flight, Followed};
use crate::state::{Record, StreamLoss, StreamRange};
use crate::status::{Loss, LossCause, MAX_LOSSES};

impl Record {
    /// Counts lost bytes of the present generation.
    pub(crate) fn lose(&mut self, agent: &AgentId, range: ByteRange, cause: LossCause) {
        let (stream, topic) = (Followed::stream_of(agent, self), self.assignment.topic.clone());
        self.lose_of(StreamRange { stream, topic, range }, cause);
    }

    /// Counts lost bytes of any generation.
    pub(crate) fn lose_of(&mut self, lost: StreamRange, cause: LossCause) {
        self.lost_bytes += lost.range.len();
        self.keep_loss(lost, cause);
    }

    /// Takes out what is known of the losses of a generation: it lives on in another file.
    pub(crate) fn take_losses(&mut self, stream: StreamId) -> Vec<StreamLoss> {
        let (theirs, own): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.losses).into_iter().partition(|lost| lost.stream == stream);
        self.losses = own;
        self.lost_bytes = self.lost_bytes.saturating_sub(theirs.iter().map(|lost| lost.loss.range.len()).sum());
        theirs
    }

    /// Adds what another record had; what there is no room for is counted.
    pub(crate) fn add_losses(&mut self, losses: Vec<StreamLoss>) {
        self.lost_bytes += losses.iter().map(|lost| lost.loss.range.len()).sum::<u64>();
        let room = MAX_LOSSES.saturating_sub(self.losses.len());
        self.losses.extend(losses.into_iter().take(room));
    }

    fn keep_loss(&mut self, lost: StreamRange, cause: LossCause) {
        let StreamRange { stream, topic, range } = lost;
        let noted = UnixNanos::now();
        let has_room = self.losses.len() < MAX_LOSSES;
        let neighbour = self.losses.iter_mut().find(|known| {
            let place = known.loss.range;
            let touches = place.end == range.start || range.end == place.start;
            known.stream == stream && known.topic == topic && known.loss.cause == cause && touches
        });
        match neighbour {
            _ if range.is_empty() => {}
            Some(known) => {
                let place = known.loss.range;
                known.loss.range = ByteRange::new(place.start.min(range.start), place.end.max(range.end));
                known.loss.noted = noted;
            }
            None if has_room => {
                self.losses.push(StreamLoss { stream, topic, loss: Loss { range, cause, noted } });
            }
            None => {}
        }
    }

    /// Notes that what is on its way belongs to a former generation from now on.
    pub(crate) fn note_former(&mut self, stream: StreamId, flight: &Flight) {
        let (Some(first), Some(last)) = (flight.sent.front(), flight.sent.back()) else { return };
        let range = ByteRange::new(first.chunk.range.start, last.chunk.range.end);
        self.former += range.len();
        if self.former_ranges.len() < MAX_LOSSES {
            self.former_ranges.push(StreamRange { stream, topic: first.chunk.source.topic.clone(), range });
        }
    }

    /// Notes that so many bytes of a former generation were acked, up to `end`.
    pub(crate) fn former_acked(&mut self, stream: StreamId, bytes: u64, end: u64) {
        self.former = self.former.saturating_sub(bytes);
        if let Some(known) = self.former_ranges.iter_mut().find(|known| known.stream == stream) {
            known.range.start = end.clamp(known.range.start, known.range.end);
        }
        self.former_ranges.retain(|known| !known.range.is_empty());
    }

    /// What was on its way of former generations when the process ended can't be read again. Answers how many bytes.
    pub(crate) fn lose_former(&mut self) -> u64 {
        let lost = std::mem::take(&mut self.former);
        self.lost_bytes += lost;
        for range in std::mem::take(&mut self.former_ranges) {
            self.keep_loss(range, LossCause::Unacked);
        }
        lost
    }

    /// Bytes of a file that can't be found, if it never is again.
    pub(crate) fn missing_loss(&self) -> Option<Loss> {
        let range = ByteRange::new(self.size.saturating_sub(self.missing), self.size);
        let noted = self.missing_since.unwrap_or(self.seen);
        (self.missing > 0).then_some(Loss { range, cause: LossCause::Gone, noted })
    }

    /// What was lost of the generation `stream`, and of others.
    pub(crate) fn losses_of(&self, stream: StreamId) -> (Vec<Loss>, Vec<&StreamLoss>) {
        let (own, others): (Vec<_>, Vec<_>) = self.losses.iter().partition(|lost| lost.stream == stream);
        (own.into_iter().map(|lost| lost.loss.clone()).collect(), others)
    }
}
