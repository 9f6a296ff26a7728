//! Pages of lists that are ordered by a key: a token is the last key of the page before.
//!
//! So a page begins in the right place whatever came or went in between, and no state is kept.

use prost::Message;
use tonic::Status;

use crate::error::bad_field;
use crate::limits::{MAX_PAGE, MAX_PAGE_BYTES};

/// How many entries the caller wants.
pub(crate) fn page_size(asked: i32) -> Result<usize, Status> {
    logmesh_grpc::page_size(asked, MAX_PAGE).ok_or_else(|| bad_field("page_size", "must not be negative"))
}

/// A page, and the token of the next one; empty if this is the last.
pub(crate) fn page<M: Message>(entries: impl Iterator<Item = (String, M)>, size: usize) -> (Vec<M>, String) {
    let mut page = Vec::new();
    let (mut last, mut bytes) = (String::new(), 0);
    for (key, message) in entries {
        bytes += message.encoded_len();
        if page.len() == size || (bytes > MAX_PAGE_BYTES && !page.is_empty()) {
            return (page, last);
        }
        page.push(message);
        last = key;
    }
    (page, String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: usize, bytes: usize) -> impl Iterator<Item = (String, String)> {
        (0..count).map(move |n| (format!("{n:04}"), "x".repeat(bytes)))
    }

    #[test]
    fn pages_end_by_count_by_size_and_by_themselves() {
        let (first, token) = page(entries(5, 1), 2);
        assert_eq!((first.len(), token.as_str()), (2, "0001"));
        let (all, token) = page(entries(5, 1), 5);
        assert_eq!((all.len(), token.as_str()), (5, ""), "there is no page after an exact one");
        let (large, token) = page(entries(5, MAX_PAGE_BYTES), 5);
        assert_eq!((large.len(), token.as_str()), (1, "0000"));
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(page_size(0).unwrap(), 100);
        assert_eq!(page_size(i32::MAX).unwrap(), MAX_PAGE);
        assert_eq!(page_size(-1).unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
