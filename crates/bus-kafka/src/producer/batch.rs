//! Batches of records as Kafka stores them (magic 2): written once, straight from the records, and sent as they are.
//!
//! Records are encoded behind a gap for the header as they are appended; nothing is allocated for one of them. [`Batch::pack`]
//! compresses them, and [`Packed::stamp`] fills in the header with what says who sends them: the same bytes go out however often
//! they are sent.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use flate2::write::GzEncoder;
use logmesh_bus::RecordRef;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::settings::Compression;

/// How large a batch of several records gets before it is compressed: within what Kafka takes if nobody has set anything
/// (`max.message.bytes`, 1,048,588), however little there is to compress.
pub(super) const BATCH_BYTES: usize = 1_000_000;

/// A batch with so many bytes is taken for one that gets full, and has the memory for it at once.
const FEW: usize = 64 << 10;

/// Bytes before the records: offset, length, leader's epoch, version, sum, attributes, and what [`Packed::stamp`] writes.
const HEADER: usize = 61;

/// Where the part of the header begins that the length counts, and that of which the sum is taken.
const COUNTED: usize = 12;
const SUMMED: usize = 21;

/// What an LZ4 frame begins with, and what it says of itself: version 1, independent blocks of 64 KiB at most, no sums, and that
/// its length follows.
const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
const LZ4_FLAGS: [u8; 2] = [0x68, 0x40];

/// Bytes of records in a block of LZ4. Just short of 64 KiB, where the compressor may use its smaller and quicker table.
const LZ4_BLOCK: usize = 65_534;

/// Says of a block of LZ4 that it isn't compressed.
const LZ4_STORED: u32 = 1 << 31;

/// Records that are being gathered.
#[derive(Debug)]
pub(super) struct Batch {
    /// A gap for the header, and the records.
    bytes: Vec<u8>,
    count: u32,
    /// Milliseconds; that of the first record, and the latest.
    first_time: i64,
    last_time: i64,
}

/// A batch that wants only to be stamped.
#[derive(Debug)]
pub(super) struct Packed {
    /// A gap for the header, and the records as they are sent.
    bytes: Bytes,
    attributes: i16,
    count: u32,
    first_time: i64,
    last_time: i64,
    /// `None` until it is stamped.
    stamp: Option<Stamp>,
}

/// Who sends a batch, and which of its records it begins with: by this a broker knows one that it has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) producer: i64,
    pub(super) epoch: i16,
    pub(super) sequence: i32,
}

impl Batch {
    /// One without records, in this memory.
    pub(super) fn new(mut memory: Vec<u8>) -> Self {
        memory.clear();
        memory.resize(HEADER, 0);
        Self { bytes: memory, count: 0, first_time: 0, last_time: 0 }
    }

    /// How many records it holds.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Adds a record of this time (milliseconds); false if the batch is full. An empty one takes any record.
    pub(super) fn push(&mut self, record: &RecordRef<'_>, time: i64) -> bool {
        if self.count == 0 {
            (self.first_time, self.last_time) = (time, time);
        }
        let (delta, number) = (time.wrapping_sub(self.first_time), i64::from(self.count));
        let len = body_len(record, delta, number);
        let whole = varint_len(len as i64) + len;
        if self.count > 0 && self.bytes.len() + whole > BATCH_BYTES {
            return false;
        }
        let out = &mut self.bytes;
        if out.len() >= FEW && out.capacity() < BATCH_BYTES {
            out.reserve_exact(BATCH_BYTES - out.len());
        }
        out.reserve(whole);
        varint(out, len as i64);
        out.push(0); // attributes, of which there are none
        varint(out, delta);
        varint(out, number);
        sized(out, record.key);
        if record.value.is_empty() {
            varint(out, -1); // null: what removes a key when Kafka compacts
        } else {
            sized(out, record.value);
        }
        varint(out, record.header_count() as i64);
        for (name, value) in record.headers() {
            sized(out, name.as_bytes());
            sized(out, value);
        }
        self.count += 1;
        self.last_time = self.last_time.max(time);
        true
    }

    /// Compresses the records, unless that makes them larger. Gives its memory back if that isn't what will be sent, nor of a record
    /// larger than batches are.
    pub(super) fn pack(self, compression: Compression) -> io::Result<(Packed, Vec<u8>)> {
        let Self { bytes, count, first_time, last_time } = self;
        let records = &bytes[HEADER..];
        let (attributes, packed) = match compression {
            Compression::None => (0, Vec::new()),
            Compression::Gzip => (1, gzip(records)?),
            Compression::Snappy => (2, snappy(records)?),
            Compression::Lz4 => (3, lz4(records)?),
        };
        let is_smaller = (HEADER..bytes.len()).contains(&packed.len());
        let (attributes, bytes, mut spare) = if is_smaller { (attributes, packed, bytes) } else { (0, bytes, packed) };
        if spare.capacity() > 2 * BATCH_BYTES {
            spare = Vec::new();
        }
        Ok((Packed { bytes: bytes.into(), attributes, count, first_time, last_time, stamp: None }, spare))
    }
}

impl Packed {
    /// What it bears.
    pub(super) fn stamped(&self) -> Option<Stamp> {
        self.stamp
    }

    /// The batch as it is sent by who has this stamp.
    pub(super) fn stamp(&mut self, by: Stamp) -> Bytes {
        if self.stamp != Some(by) {
            self.stamp = Some(by);
            // Nobody else has them, unless they were sent with another stamp and lie in a link still.
            let mut bytes = BytesMut::from(std::mem::take(&mut self.bytes));
            self.write_header(&mut bytes, by);
            self.bytes = bytes.freeze();
        }
        self.bytes.clone()
    }

    fn write_header(&self, bytes: &mut [u8], by: Stamp) {
        let mut counted = Vec::with_capacity(HEADER - SUMMED);
        counted.extend(self.attributes.to_be_bytes());
        counted.extend((self.count - 1).to_be_bytes());
        counted.extend(self.first_time.to_be_bytes());
        counted.extend(self.last_time.to_be_bytes());
        counted.extend(by.producer.to_be_bytes());
        counted.extend(by.epoch.to_be_bytes());
        counted.extend(by.sequence.to_be_bytes());
        counted.extend(self.count.to_be_bytes());
        bytes[SUMMED..HEADER].copy_from_slice(&counted);
        let sum = crc32c::crc32c(&bytes[SUMMED..]);
        let len = (bytes.len() - COUNTED) as u32;
        // The offset is the broker's to give, and the epoch of its leader.
        bytes[..8].fill(0);
        bytes[8..12].copy_from_slice(&len.to_be_bytes());
        bytes[12..16].copy_from_slice(&(-1_i32).to_be_bytes());
        bytes[16] = 2;
        bytes[17..21].copy_from_slice(&sum.to_be_bytes());
    }
}

fn gzip(records: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = GzEncoder::new(vec![0; HEADER], flate2::Compression::default());
    out.write_all(records)?;
    out.finish()
}

/// As librdkafka and brokers take it: one piece without a frame.
fn snappy(records: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = vec![0; HEADER + snap::raw::max_compress_len(records.len())];
    let len = snap::raw::Encoder::new().compress(records, &mut out[HEADER..])?;
    out.truncate(HEADER + len);
    Ok(out)
}

fn lz4(records: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(HEADER + records.len() / 3);
    out.resize(HEADER, 0);
    out.extend(lz4_header(records.len()));
    let mut table = CompressTable::small();
    for block in records.chunks(LZ4_BLOCK) {
        let begin = out.len();
        out.resize(begin + 4 + get_maximum_output_size(block.len()), 0);
        let packed = compress_into_with_table(block, &mut out[begin + 4..], &mut table).map_err(io::Error::other)?;
        let (len, word) = if packed < block.len() {
            (packed, packed as u32)
        } else {
            out[begin + 4..][..block.len()].copy_from_slice(block);
            (block.len(), block.len() as u32 | LZ4_STORED)
        };
        out[begin..][..4].copy_from_slice(&word.to_le_bytes());
        out.truncate(begin + 4 + len);
    }
    out.extend([0; 4]); // no more blocks
    Ok(out)
}

/// The header of a frame of so many bytes. A reader that knows how many there will be makes room for them once: librdkafka takes
/// room for four times the packed bytes else, and copies what it has when that isn't enough.
fn lz4_header(len: usize) -> [u8; 15] {
    let mut header = [0; 15];
    header[..4].copy_from_slice(&LZ4_MAGIC);
    header[4..6].copy_from_slice(&LZ4_FLAGS);
    header[6..14].copy_from_slice(&(len as u64).to_le_bytes());
    header[14] = (xxh32(&header[4..14]) >> 8) as u8;
    header
}

/// The sum of the XXH32 algorithm of less than 16 bytes, with seed 0.
fn xxh32(bytes: &[u8]) -> u32 {
    const PRIMES: [u32; 5] = [2_654_435_761, 2_246_822_519, 3_266_489_917, 668_265_263, 374_761_393];
    let (words, rest) = bytes.as_chunks::<4>();
    let mut sum = PRIMES[4].wrapping_add(bytes.len() as u32);
    for word in words {
        sum = sum.wrapping_add(u32::from_le_bytes(*word).wrapping_mul(PRIMES[2]));
        sum = sum.rotate_left(17).wrapping_mul(PRIMES[3]);
    }
    for byte in rest {
        sum = sum.wrapping_add(u32::from(*byte).wrapping_mul(PRIMES[4]));
        sum = sum.rotate_left(11).wrapping_mul(PRIMES[0]);
    }
    sum = (sum ^ (sum >> 15)).wrapping_mul(PRIMES[1]);
    sum = (sum ^ (sum >> 13)).wrapping_mul(PRIMES[2]);
    sum ^ (sum >> 16)
}

/// Bytes of a record behind its length.
fn body_len(record: &RecordRef<'_>, delta: i64, number: i64) -> usize {
    let sized = |len: usize| varint_len(len as i64) + len;
    let value = if record.value.is_empty() { 1 } else { sized(record.value.len()) };
    let headers: usize = record.headers().map(|(name, value)| sized(name.len()) + sized(value.len())).sum();
    let count = varint_len(record.header_count() as i64);
    1 + varint_len(delta) + varint_len(number) + sized(record.key.len()) + value + count + headers
}

fn sized(out: &mut Vec<u8>, bytes: &[u8]) {
    varint(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

/// Small numbers of either sign are small: 0, -1, 1, -2, …
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn varint_len(number: i64) -> usize {
    (70 - (zigzag(number) | 1).leading_zeros() as usize) / 7
}

fn varint(out: &mut Vec<u8>, number: i64) {
    let mut left = zigzag(number);
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::io::Read;

    use logmesh_bus::NewRecord;
    use logmesh_types::UnixNanos;
    use logmesh_types::limits::MAX_RECORD_BYTES;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::clients::MAX_BATCH_BYTES;

    const BY: Stamp = Stamp { producer: 4711, epoch: 3, sequence: 17 };

    fn record(key: &[u8], value: &[u8]) -> NewRecord {
        let (key, value) = (key.to_vec().into(), value.to_vec().into());
        NewRecord { key, value, ..NewRecord::default() }
    }

    fn take<'a>(left: &mut &'a [u8], len: usize) -> &'a [u8] {
        let (taken, rest) = left.split_at(len);
        *left = rest;
        taken
    }

    fn read_varint(left: &mut &[u8]) -> i64 {
        let (mut number, mut shift) = (0_u64, 0);
        loop {
            let byte = take(left, 1)[0];
            number |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return (number >> 1) as i64 ^ -((number & 1) as i64);
            }
        }
    }

    fn read_sized(left: &mut &[u8]) -> Option<Bytes> {
        let len = usize::try_from(read_varint(left)).ok()?;
        Some(Bytes::copy_from_slice(take(left, len)))
    }

    fn unpack(attributes: i16, packed: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match attributes {
            0 => out.extend(packed),
            1 => drop(flate2::read::GzDecoder::new(packed).read_to_end(&mut out).unwrap()),
            2 => out = snap::raw::Decoder::new().decompress_vec(packed).unwrap(),
            3 => {
                let mut left = packed;
                let header = take(&mut left, 15);
                let len = u64::from_le_bytes(header[6..14].try_into().unwrap());
                assert_eq!(header, lz4_header(len as usize));
                loop {
                    let word = u32::from_le_bytes(take(&mut left, 4).try_into().unwrap());
                    let block = take(&mut left, (word & !LZ4_STORED) as usize);
                    match word {
                        0 => break,
                        stored if stored & LZ4_STORED != 0 => out.extend(block),
                        _ => out.extend(lz4_flex::block::decompress(block, 64 << 10).unwrap()),
                    }
                }
                assert!(left.is_empty() && out.len() as u64 == len);
            }
            other => panic!("{other}"),
        }
        out
    }

    /// The records of a batch as a reader has them, after its header was checked.
    fn read(batch: &[u8]) -> Vec<NewRecord> {
        let number = |at: usize| i64::from_be_bytes(batch[at..at + 8].try_into().unwrap());
        let small = |at: usize| i32::from_be_bytes(batch[at..at + 4].try_into().unwrap());
        assert_eq!((number(0), small(8) as usize, small(12), batch[16]), (0, batch.len() - 12, -1, 2));
        assert_eq!(small(17) as u32, crc32c::crc32c(&batch[21..]));
        assert_eq!((number(43), &batch[51..53], small(53)), (BY.producer, &[0, 3][..], BY.sequence));
        let count = small(57);
        assert_eq!(small(23), count - 1);
        let (first, last) = (number(27), number(35));
        let unpacked = unpack(i16::from_be_bytes([batch[21], batch[22]]), &batch[61..]);
        let mut left = &unpacked[..];
        let mut latest = i64::MIN;
        let records = (0..count).map(|index| {
            let mut record = &read_sized(&mut left).unwrap()[..];
            assert_eq!(take(&mut record, 1), [0]);
            let time = first + read_varint(&mut record);
            latest = latest.max(time);
            assert_eq!(read_varint(&mut record), i64::from(index));
            let (key, value) = (read_sized(&mut record).unwrap(), read_sized(&mut record));
            assert_ne!(value.as_deref(), Some(&[][..]), "an empty value is null");
            let headers = (0..read_varint(&mut record)).map(|_| {
                let name = String::from_utf8(read_sized(&mut record).unwrap().to_vec()).unwrap();
                (Cow::Owned(name), read_sized(&mut record).unwrap())
            });
            let headers = headers.collect();
            assert!(record.is_empty());
            NewRecord { key, value: value.unwrap_or_default(), headers, timestamp: Some(UnixNanos(time)) }
        });
        let records = records.collect();
        assert!(left.is_empty() && latest == last);
        records
    }

    /// Figures of the reference implementation, and the header of a frame without a length that it writes.
    #[test]
    fn the_sum_of_a_frame_s_header_is_that_of_others() {
        for (bytes, sum) in [(&b""[..], 0x02cc_5d05), (b"a", 0x550d_7456), (b"abc", 0x32d1_53ff)] {
            assert_eq!(xxh32(bytes), sum, "{bytes:?}");
        }
        assert_eq!((xxh32(&[0x60, 0x40]) >> 8) as u8, 0x82);
    }

    fn records() -> impl Strategy<Value = Vec<NewRecord>> {
        let bytes = || vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        let headers = vec(("[a-zä]{0,20}".prop_map(Cow::Owned), bytes()), 0..4);
        let time = prop_oneof![any::<i32>().prop_map(i64::from), 0..4_000_000_000_000_i64];
        let record = (bytes(), bytes(), 1..600_usize, headers, time).prop_map(|(key, value, times, headers, time)| {
            NewRecord { key, value: value.repeat(times).into(), headers, timestamp: Some(UnixNanos(time)) }
        });
        vec(record, 1..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_written_is_read_back(records in records()) {
            for compression in [Compression::None, Compression::Lz4, Compression::Snappy, Compression::Gzip] {
                let mut left = &records[..];
                while !left.is_empty() {
                    let mut batch = Batch::new(Vec::new());
                    let taken = left.iter().take_while(|record| batch.push(&(*record).into(), record.timestamp.unwrap().0)).count();
                    prop_assert!(batch.bytes.len() <= BATCH_BYTES || taken == 1);
                    prop_assert_eq!(batch.count() as usize, taken);
                    let sent = batch.pack(compression).unwrap().0.stamp(BY);
                    prop_assert_eq!(&read(&sent)[..], &left[..taken]);
                    left = &left[taken..];
                }
            }
        }
    }

    #[test]
    fn a_batch_is_full_before_kafka_says_so_unless_it_holds_one_record() {
        let mut batch = Batch::new(Vec::new());
        let small = record(b"key", &[b'x'; 1_000]);
        let count = (0..).take_while(|_| batch.push(&(&small).into(), 1)).count();
        assert!((980..990).contains(&count), "{count}");
        assert!(batch.bytes.len() <= BATCH_BYTES && BATCH_BYTES + batch.bytes.len() / 100 < 1_048_588);

        let largest = record(b"", &vec![b'x'; MAX_RECORD_BYTES]);
        let mut batch = Batch::new(Vec::new());
        assert!(batch.push(&(&largest).into(), 1) && !batch.push(&(&record(b"", b"")).into(), 1));
        let sent = batch.pack(Compression::None).unwrap().0.stamp(BY);
        assert!(sent.len() <= MAX_BATCH_BYTES);
    }

    #[test]
    fn what_does_not_get_smaller_is_sent_as_it_is() {
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(300_000)
        .collect();
        for compression in [Compression::Lz4, Compression::Snappy, Compression::Gzip] {
            let mut batch = Batch::new(Vec::new());
            batch.push(&(&record(b"k", &noise)).into(), 1);
            let plain = batch.bytes.len();
            let sent = batch.pack(compression).unwrap().0.stamp(BY);
            assert_eq!((sent.len(), sent[22]), (plain, 0));
            assert_eq!(read(&sent)[0].value, noise);
        }
    }

    #[test]
    fn numbers_are_as_long_as_is_said() {
        for number in [0, -1, 1, 63, 64, -64, -65, 8_191, 8_192, i64::from(i32::MAX), i64::MAX, i64::MIN] {
            let mut out = Vec::new();
            varint(&mut out, number);
            assert_eq!((out.len(), read_varint(&mut &out[..])), (varint_len(number), number));
        }
    }
}
