//! The order of hits, and page tokens.
//!
//! A token carries the sort values of the last hit of its page, so that the next page begins after it whatever was written
//! in between; nothing is kept on the server, and a token never ends. The values tell every document from every other:
//! time, stream and offset, as promised; the id, where there is no stream; the index and the place in it at last.

use data_encoding::BASE64URL_NOPAD;
use logmesh_index::{IndexError, Order, Selection};
use serde_json::{Value, json};

use crate::template::{EARLY, ID};

/// How many values a hit is sorted by.
const KEYS: usize = 7;

/// What hits are sorted by.
pub(crate) fn sort(order: Order) -> Value {
    let direction = match order {
        Order::NewestFirst => "desc",
        Order::OldestFirst => "asc",
    };
    json!([
        { EARLY: { "order": direction, "missing": 0, "unmapped_type": "long" } },
        { "@timestamp": { "order": direction, "missing": 0, "unmapped_type": "date_nanos" } },
        { "logmesh.stream": { "order": "asc", "missing": "_first", "unmapped_type": "keyword" } },
        { "logmesh.offset": { "order": direction, "missing": 0, "unmapped_type": "long" } },
        { ID: { "order": "asc", "missing": "_first", "unmapped_type": "keyword" } },
        { "_index": "asc" },
        { "_seq_no": "asc" },
    ])
}

/// The token of the page after the hit with these sort values.
pub(crate) fn token(selection: &Selection, order: Order, last: &[Value]) -> String {
    let mut bytes = selection.fingerprint(order).to_vec();
    bytes.extend_from_slice(Value::from(last).to_string().as_bytes());
    BASE64URL_NOPAD.encode(&bytes)
}

/// The sort values that a token of this search carries.
pub(crate) fn read_token(selection: &Selection, order: Order, token: &str) -> Result<Vec<Value>, IndexError> {
    let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).map_err(|_| IndexError::BadPageToken)?;
    let (print, json) = bytes.split_first_chunk().ok_or(IndexError::BadPageToken)?;
    let values: Vec<Value> = serde_json::from_slice(json).map_err(|_| IndexError::BadPageToken)?;
    let plain = values.iter().all(|value| value.is_i64() || value.is_string() || value.is_null());
    match *print == selection.fingerprint(order) && values.len() == KEYS && plain {
        true => Ok(values),
        false => Err(IndexError::BadPageToken),
    }
}

#[cfg(test)]
mod tests {
    use logmesh_index::query::Query;

    use super::*;

    #[test]
    fn a_token_belongs_to_its_search() {
        let selection =
            |query: &str| Selection { query: Query::parse(query).unwrap(), from: None, to: None, topics: Vec::new() };
        let last: Vec<Value> = vec![0.into(), 5.into(), "s".into(), 1.into(), Value::Null, "i".into(), 3.into()];
        let text = token(&selection("a"), Order::NewestFirst, &last);
        assert_eq!(read_token(&selection("a"), Order::NewestFirst, &text).unwrap(), last);
        assert!(read_token(&selection("b"), Order::NewestFirst, &text).is_err());
        assert!(read_token(&selection("a"), Order::OldestFirst, &text).is_err());
        for bad in ["", "x", "****", &text[1..], &text[..20]] {
            assert!(read_token(&selection("a"), Order::NewestFirst, bad).is_err());
        }
        assert_eq!(sort(Order::NewestFirst).as_array().unwrap().len(), KEYS);
    }
}
