//! Records of one key that lie one after the other in one buffer, and records as whoever writes them sees them.

use bytes::Bytes;
use logmesh_types::UnixNanos;

use crate::{Headers, NewRecord};

/// Records of one key in their order. What they hold are ranges of one buffer: nothing is allocated for one of them.
#[derive(Clone, Debug, Default)]
pub struct Records {
    key: Bytes,
    timestamp: Option<UnixNanos>,
    /// What each of them has.
    common: Headers,
    /// Values and headers' values, in the order in which they were written.
    buffer: Vec<u8>,
    /// What begins where in the buffer; it ends where the next one begins.
    fields: Vec<Field>,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    /// `None`: a record's value.
    header: Option<&'static str>,
    start: usize,
}

impl Records {
    /// None yet, of this key; each will have these headers, beside its own. There's room for so many bytes of them.
    pub fn new(key: Bytes, common: Headers, bytes: usize) -> Self {
        Self { key, timestamp: None, common, buffer: Vec::with_capacity(bytes), fields: Vec::new() }
    }

    /// Begins a record. Its value is what is written behind what is there.
    pub fn value(&mut self) -> &mut Vec<u8> {
        self.field(None)
    }

    /// Begins a header of the record begun last. Its value is what is written behind what is there.
    pub fn header(&mut self, name: &'static str) -> &mut Vec<u8> {
        debug_assert!(!self.fields.is_empty(), "a header is a record's");
        self.field(Some(name))
    }

    fn field(&mut self, header: Option<&'static str>) -> &mut Vec<u8> {
        self.fields.push(Field { header, start: self.buffer.len() });
        &mut self.buffer
    }

    /// Bytes of all values and of the headers that aren't common.
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The records, in their order.
    pub fn iter(&self) -> impl Iterator<Item = RecordRef<'_>> {
        let mut left = &self.fields[..];
        std::iter::from_fn(move || {
            let (value, behind) = left.split_first()?;
            let count = behind.iter().take_while(|field| field.header.is_some()).count();
            let (own, rest) = behind.split_at(count);
            left = rest;
            let end = rest.first().map_or(self.buffer.len(), |next| next.start);
            let value_end = own.first().map_or(end, |next| next.start);
            let own = Own { fields: own, buffer: &self.buffer[..end] };
            Some(RecordRef::new(&self.key, &self.buffer[value.start..value_end], self.timestamp, &self.common, own))
        })
    }

    /// The records, each on its own; they share their bytes.
    pub fn split(self) -> Vec<NewRecord> {
        let Self { key, timestamp, common, buffer, fields } = self;
        let mut records: Vec<NewRecord> = Vec::new();
        let buffer = Bytes::from(buffer);
        let ends: Vec<usize> = fields.iter().skip(1).map(|next| next.start).chain([buffer.len()]).collect();
        for (field, end) in fields.into_iter().zip(ends) {
            let bytes = buffer.slice(field.start..end);
            match (field.header, records.last_mut()) {
                (Some(name), Some(record)) => record.headers.push((name.into(), bytes)),
                _ => records.push(NewRecord { key: key.clone(), value: bytes, headers: common.clone(), timestamp }),
            }
        }
        records
    }
}

impl From<NewRecord> for Records {
    fn from(NewRecord { key, value, headers, timestamp }: NewRecord) -> Self {
        let fields = vec![Field { header: None, start: 0 }];
        Self { key, timestamp, common: headers, buffer: value.into(), fields }
    }
}

/// A record, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    /// See [`NewRecord::key`].
    pub key: &'a [u8],
    /// See [`NewRecord::value`].
    pub value: &'a [u8],
    /// See [`NewRecord::timestamp`].
    pub timestamp: Option<UnixNanos>,
    common: &'a Headers,
    own: Own<'a>,
    size: usize,
}

/// Headers of one of several records.
#[derive(Clone, Copy, Debug)]
struct Own<'a> {
    fields: &'a [Field],
    /// Up to the end of the last one.
    buffer: &'a [u8],
}

impl<'a> Iterator for Own<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (field, rest) = self.fields.split_first()?;
        self.fields = rest;
        let end = rest.first().map_or(self.buffer.len(), |next| next.start);
        Some((field.header?, &self.buffer[field.start..end]))
    }
}

impl<'a> RecordRef<'a> {
    fn new(key: &'a [u8], value: &'a [u8], timestamp: Option<UnixNanos>, common: &'a Headers, own: Own<'a>) -> Self {
        let record = Self { key, value, timestamp, common, own, size: 0 };
        let headers: usize = record.headers().map(|(name, value)| name.len() + value.len()).sum();
        Self { size: key.len() + value.len() + headers, ..record }
    }

    /// Names and values.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.common.iter().map(|(name, value)| (&**name, &**value)).chain(self.own)
    }

    /// How many headers there are.
    pub fn header_count(&self) -> usize {
        self.common.len() + self.own.fields.len()
    }

    /// Bytes of key, value and headers.
    pub fn size(&self) -> usize {
        self.size
    }
}

impl<'a> From<&'a NewRecord> for RecordRef<'a> {
    fn from(record: &'a NewRecord) -> Self {
        let none = Own { fields: &[], buffer: &[] };
        Self::new(&record.key, &record.value, record.timestamp, &record.headers, none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_those_that_were_written() {
        let mut records = Records::new(Bytes::from("key"), vec![("all".into(), Bytes::from("same"))], 0);
        assert_eq!((records.iter().count(), records.clone().split().len()), (0, 0));
        records.value().extend(b"first");
        records.header("id").extend(b"1");
        records.header("range").extend(b"");
        records.value();
        records.value().extend(b"third");
        records.header("id").extend(b"3");
        let of = |value: &str, own: &[(&'static str, &str)]| NewRecord {
            key: Bytes::from("key"),
            value: Bytes::copy_from_slice(value.as_bytes()),
            headers: [("all", "same")]
                .iter()
                .chain(own)
                .map(|(name, value)| ((*name).into(), Bytes::copy_from_slice(value.as_bytes())))
                .collect(),
            timestamp: None,
        };
        let expected = [of("first", &[("id", "1"), ("range", "")]), of("", &[]), of("third", &[("id", "3")])];
        let seen = |record: RecordRef<'_>| {
            let headers: Vec<(String, Vec<u8>)> =
                record.headers().map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
            assert_eq!(headers.len(), record.header_count());
            (record.key.to_vec(), record.value.to_vec(), headers, record.size())
        };
        assert!(records.iter().map(seen).eq(expected.iter().map(|record| seen(record.into()))));
        assert!(records.iter().map(|record| record.size()).eq(expected.iter().map(NewRecord::size)));
        assert_eq!(records.bytes(), "first1third3".len());
        assert_eq!(records.split(), expected);
        for record in expected {
            assert_eq!(Records::from(record.clone()).split(), [record]);
        }
    }
}
