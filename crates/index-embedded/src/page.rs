//! The order of hits, and page tokens.
//!
//! A token carries the sort key of the last hit of its page, so that the next page begins after it whatever was written
//! in between, and a fingerprint of the search, so that it isn't used with another.

use data_encoding::BASE64URL_NOPAD;
use logmesh_index::{IndexError, Order, Selection, Slice};
use logmesh_types::DocId;

/// A hit's place in the order asked for: the lesser comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SortKey {
    time: u64,
    stream: u128,
    offset: u64,
    id: u128,
    /// Tells slices from each other: two may hold a document of one id.
    slice: u64,
}

/// What tells a slice from others in a [`SortKey`]: FNV-1a of its name.
pub(crate) fn slice_number(slice: &Slice) -> u64 {
    let name = slice.topic.as_str().bytes().chain(*b"@").chain(slice.date.bytes());
    name.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl SortKey {
    /// A key that no hit of this time comes before: for leaving out what can't come into a page.
    pub(crate) fn first_of(order: Order, time: i64) -> Self {
        Self { time: rising(order, time), stream: 0, offset: 0, id: 0, slice: 0 }
    }

    pub(crate) fn new(order: Order, time: i64, stream: u128, offset: i64, id: u128, slice: u64) -> Self {
        Self { time: rising(order, time), stream, offset: rising(order, offset), id, slice }
    }

    /// The id of the hit.
    pub(crate) fn doc_id(&self) -> DocId {
        DocId::from_bytes(self.id.to_be_bytes())
    }

    /// True if this hit's time lies after the other's in the order.
    pub(crate) fn time_after(&self, other: &Self) -> bool {
        self.time > other.time
    }
}

/// The number as one that rises in the order asked for.
fn rising(order: Order, number: i64) -> u64 {
    let rising = (number as u64) ^ (1 << 63);
    match order {
        Order::OldestFirst => rising,
        Order::NewestFirst => !rising,
    }
}

const FINGERPRINT: usize = 8;
const TOKEN: usize = FINGERPRINT + 8 + 16 + 8 + 16 + 8;

/// The token of the page after the hit with this key.
pub(crate) fn token(selection: &Selection, order: Order, last: &SortKey) -> String {
    let mut bytes = Vec::with_capacity(TOKEN);
    bytes.extend_from_slice(&selection.fingerprint(order));
    bytes.extend_from_slice(&last.time.to_be_bytes());
    bytes.extend_from_slice(&last.stream.to_be_bytes());
    bytes.extend_from_slice(&last.offset.to_be_bytes());
    bytes.extend_from_slice(&last.id.to_be_bytes());
    bytes.extend_from_slice(&last.slice.to_be_bytes());
    BASE64URL_NOPAD.encode(&bytes)
}

/// The key that a token of this search carries.
pub(crate) fn read_token(selection: &Selection, order: Order, token: &str) -> Result<SortKey, IndexError> {
    let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).map_err(|_| IndexError::BadPageToken)?;
    let mut rest = bytes.as_slice();
    if bytes.len() != TOKEN || take(&mut rest) != Some(selection.fingerprint(order)) {
        return Err(IndexError::BadPageToken);
    }
    let mut key = || {
        Some(SortKey {
            time: u64::from_be_bytes(take(&mut rest)?),
            stream: u128::from_be_bytes(take(&mut rest)?),
            offset: u64::from_be_bytes(take(&mut rest)?),
            id: u128::from_be_bytes(take(&mut rest)?),
            slice: u64::from_be_bytes(take(&mut rest)?),
        })
    };
    key().ok_or(IndexError::BadPageToken)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use logmesh_index::query::Query;

    use super::*;

    fn selection(query: &str) -> Selection {
        Selection { query: Query::parse(query).unwrap(), from: None, to: None, topics: Vec::new() }
    }

    #[test]
    fn keys_order_as_asked_for() {
        let key = |order, time, stream, offset| SortKey::new(order, time, stream, offset, 0, 0);
        assert!(key(Order::OldestFirst, -1, 5, 0) < key(Order::OldestFirst, 1, 0, 0));
        assert!(key(Order::NewestFirst, 1, 5, 0) < key(Order::NewestFirst, -1, 0, 0));
        for order in [Order::OldestFirst, Order::NewestFirst] {
            assert!(key(order, 1, 0, 3) < key(order, 1, 1, 3));
        }
        assert!(key(Order::OldestFirst, 1, 0, 3) < key(Order::OldestFirst, 1, 0, 4));
        assert!(key(Order::NewestFirst, 1, 0, 4) < key(Order::NewestFirst, 1, 0, 3));
    }

    #[test]
    fn a_token_belongs_to_its_search() {
        let key = SortKey::new(Order::NewestFirst, 7, 8, 9, 10, 11);
        let text = token(&selection("a"), Order::NewestFirst, &key);
        assert_eq!(read_token(&selection("a"), Order::NewestFirst, &text).unwrap(), key);
        assert!(read_token(&selection("b"), Order::NewestFirst, &text).is_err());
        assert!(read_token(&selection("a"), Order::OldestFirst, &text).is_err());
        for bad in ["", "x", "****", &text[1..]] {
            assert!(read_token(&selection("a"), Order::NewestFirst, bad).is_err());
        }
    }
}
