//! The large buffers that files are read into, used again and again: taken anew for each chunk they would cost page faults
//! by the thousand, or leave the allocator's heap in pieces of twice their size.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// Smaller buffers aren't kept: the allocator has them at hand.
const LEAST_BYTES: usize = 256 << 10;

/// The most buffers that are kept while nobody uses them; each is at most as large as the largest read, 2 MiB.
const MAX_KEPT: usize = 4;

/// The buffers of this process.
pub(crate) static BUFFERS: Pool = Pool::new();

#[derive(Debug)]
pub(crate) struct Pool {
    /// The last one was given back last.
    kept: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    const fn new() -> Self {
        Self { kept: Mutex::new(Vec::new()) }
    }

    /// An empty buffer with room for so many bytes and not many more: what is unacked is bounded by its bytes, not by room.
    pub(crate) fn take(&self, room: usize) -> Vec<u8> {
        let fits = |buffer: &Vec<u8>| (room..=room + room / 4).contains(&buffer.capacity());
        if room >= LEAST_BYTES {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(place) = kept.iter().rposition(fits) {
                return kept.remove(place);
            }
        }
        // Rounded up, so that reads of about the same size share buffers.
        Vec::with_capacity(if room >= LEAST_BYTES { room.next_multiple_of(LEAST_BYTES / 2) } else { room })
    }

    /// Shares the buffer; once nobody uses it any more, it's kept for [`take`](Self::take).
    pub(crate) fn share(&'static self, buffer: Vec<u8>) -> Bytes {
        if buffer.capacity() < LEAST_BYTES {
            Bytes::from(buffer)
        } else {
            Bytes::from_owner(Lent { buffer, pool: self })
        }
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            // One of a size that is asked for no more mustn't stay for ever.
            kept.remove(0);
        }
        kept.push(buffer);
    }
}

struct Lent {
    buffer: Vec<u8>,
    pool: &'static Pool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_its_last_reader_is_done() {
        static POOL: Pool = Pool::new();
        let mut buffer = POOL.take(LEAST_BYTES);
        buffer.extend_from_slice(b"old");
        let place = buffer.as_ptr();
        let shared = POOL.share(buffer);
        let other = shared.slice(1..);
        drop(shared);
        let another = POOL.take(LEAST_BYTES);
        assert_ne!(another.as_ptr(), place, "somebody reads it still");
        assert_eq!(&other[..], b"ld");
        drop(other);
        let smaller = POOL.take(LEAST_BYTES / 2);
        assert_ne!(smaller.as_ptr(), place, "it is far too large");
        let again = POOL.take(LEAST_BYTES);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
    }

    #[test]
    fn no_more_are_kept_than_the_bound_says() {
        static POOL: Pool = Pool::new();
        let lent: Vec<Bytes> = (0..2 * MAX_KEPT).map(|_| POOL.share(POOL.take(LEAST_BYTES))).collect();
        drop(lent);
        drop(POOL.share(POOL.take(3)));
        assert_eq!(POOL.kept.lock().unwrap().len(), MAX_KEPT);
    }
}
