//! How a record lies in the database: time, counts and lengths (little-endian), then headers, key, value.

use bytes::Bytes;
use logmesh_bus::{NewRecord, Offset, Record};
use logmesh_types::UnixNanos;

/// Bytes of time, key length and number of headers.
const FIXED: usize = 8 + 4 + 4;

/// The bytes that [`encode`] will write.
pub(crate) fn encoded_len(record: &NewRecord) -> usize {
    FIXED + 8 * record.headers.len() + record.size()
}

/// Writes the record into a buffer of [`encoded_len`] bytes.
pub(crate) fn encode(record: &NewRecord, time: i64, mut buffer: &mut [u8]) {
    let mut put = |bytes: &[u8]| {
        let (front, rest) = std::mem::take(&mut buffer).split_at_mut(bytes.len());
        front.copy_from_slice(bytes);
        buffer = rest;
    };
    // Every length is below MAX_RECORD_BYTES, as the append has checked.
    put(&time.to_le_bytes());
    put(&(record.key.len() as u32).to_le_bytes());
    put(&(record.headers.len() as u32).to_le_bytes());
    for (name, value) in &record.headers {
        put(&(name.len() as u32).to_le_bytes());
        put(&(value.len() as u32).to_le_bytes());
        put(name.as_bytes());
        put(value);
    }
    put(&record.key);
    put(&record.value);
}

/// Reads what [`encode`] wrote; `None` if it isn't that. The parts share the one allocation.
pub(crate) fn decode(offset: u64, encoded: &[u8]) -> Option<Record> {
    let mut rest = Bytes::copy_from_slice(encoded);
    let mut take = |len: usize| (len <= rest.len()).then(|| rest.split_to(len));
    let time = i64::from_le_bytes(take(8)?.as_ref().try_into().ok()?);
    let key_len = u32_of(&take(4)?)?;
    let count = u32_of(&take(4)?)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let (name_len, value_len) = (u32_of(&take(4)?)?, u32_of(&take(4)?)?);
        let name = String::from_utf8(take(name_len)?.to_vec()).ok()?;
        headers.push((name.into(), take(value_len)?));
    }
    let key = take(key_len)?;
    Some(Record { offset: Offset(offset), timestamp: UnixNanos(time), key, value: rest, headers })
}

/// The time of an encoded record, without reading the rest.
pub(crate) fn time_of(encoded: &[u8]) -> i64 {
    encoded.first_chunk().map_or(i64::MIN, |bytes| i64::from_le_bytes(*bytes))
}

/// The size of an encoded record as [`Record::size`] counts it, without reading the rest.
pub(crate) fn size_of(encoded: &[u8]) -> u64 {
    let headers = encoded.get(12..FIXED).and_then(u32_of).unwrap_or(0);
    encoded.len().saturating_sub(FIXED + 8 * headers) as u64
}

fn u32_of(bytes: &[u8]) -> Option<usize> {
    Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip_and_cut_ones_are_refused() {
        let record = NewRecord {
            key: Bytes::from_static(b"key"),
            value: Bytes::from_static(b"value"),
            headers: vec![("h".into(), Bytes::from_static(b"1")), ("".into(), Bytes::new())],
            timestamp: None,
        };
        let mut buffer = vec![0; encoded_len(&record)];
        encode(&record, -5, &mut buffer);
        let read = decode(7, &buffer).unwrap();
        assert_eq!((read.offset, read.timestamp), (Offset(7), UnixNanos(-5)));
        assert_eq!((read.key, read.value, read.headers), (record.key, record.value, record.headers));
        assert_eq!((time_of(&buffer), size_of(&buffer)), (-5, 3 + 5 + 2));
        for cut in 0..buffer.len() - 5 {
            assert!(decode(7, &buffer[..cut]).is_none(), "{cut}");
        }
    }
}
