//! Kafka's protocol, as far as appends need it: five requests, in versions that every broker from 3.6 to 4.x serves.
//!
//! What a broker sends is read without trust: a number that promises more than there is, is an error before anything is allocated.

use std::fmt;

/// A kind of request, and the version of it that we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Api {
    pub(super) key: i16,
    pub(super) version: i16,
}

pub(super) const PRODUCE: Api = Api { key: 0, version: 8 };
pub(super) const METADATA: Api = Api { key: 3, version: 4 };
pub(super) const SASL_HANDSHAKE: Api = Api { key: 17, version: 1 };
pub(super) const INIT_PRODUCER_ID: Api = Api { key: 22, version: 1 };
pub(super) const SASL_AUTHENTICATE: Api = Api { key: 36, version: 1 };

/// An answer that isn't what the protocol says.
#[derive(Debug, thiserror::Error)]
#[error("an answer that isn't Kafka's")]
pub(super) struct Malformed;

/// A request as it is sent.
#[derive(Debug, Default)]
pub(super) struct Request(Vec<u8>);

impl Request {
    /// Begins one. Its answer bears the same number.
    pub(super) fn new(api: Api, number: i32, client: &str) -> Self {
        let mut request = Self(vec![0; 4]); // its length
        request.i16(api.key).i16(api.version).i32(number).string(client);
        request
    }

    /// So many bytes more will come.
    pub(super) fn reserve(&mut self, bytes: usize) {
        self.0.reserve(bytes);
    }

    pub(super) fn i16(&mut self, value: i16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(super) fn i32(&mut self, value: i32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// How many of something follow.
    pub(super) fn count(&mut self, count: usize) -> &mut Self {
        self.i32(count as i32)
    }

    pub(super) fn bool(&mut self, value: bool) -> &mut Self {
        self.raw(&[value.into()])
    }

    /// At most 32 KiB, which names here are far from.
    pub(super) fn string(&mut self, text: &str) -> &mut Self {
        let text = &text.as_bytes()[..text.len().min(i16::MAX as usize)];
        self.i16(text.len() as i16).raw(text)
    }

    pub(super) fn no_string(&mut self) -> &mut Self {
        self.i16(-1)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.count(bytes.len()).raw(bytes)
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// What goes over the wire.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let len = (self.0.len() - 4) as u32;
        self.0[..4].copy_from_slice(&len.to_be_bytes());
        self.0
    }
}

/// Reads an answer.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, left) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    pub(super) fn bool(&mut self) -> Result<bool, Malformed> {
        Ok(self.array::<1>()? != [0])
    }

    pub(super) fn i16(&mut self) -> Result<i16, Malformed> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    pub(super) fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    pub(super) fn code(&mut self) -> Result<Code, Malformed> {
        Ok(Code(self.i16()?))
    }

    /// Null is empty.
    pub(super) fn string(&mut self) -> Result<&'a str, Malformed> {
        let len = self.i16()?;
        let bytes = self.take(if len == -1 { 0 } else { usize::try_from(len).map_err(|_| Malformed)? })?;
        std::str::from_utf8(bytes).map_err(|_| Malformed)
    }

    /// Null is empty.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.i32()?;
        self.take(if len == -1 { 0 } else { usize::try_from(len).map_err(|_| Malformed)? })
    }

    /// As many of something as the answer says, each of which takes a byte at least.
    pub(super) fn many<T>(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = self.i32()?;
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(one(self)?);
        }
        Ok(all)
    }
}

/// What became of one partition's batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) code: Code,
    /// Of its first record; negative: it isn't said.
    pub(super) offset: i64,
    /// What the broker says about an error.
    pub(super) message: String,
}

/// Reads the answer to [`PRODUCE`].
pub(super) fn produced(answer: &[u8]) -> Result<Vec<Stored>, Malformed> {
    let topics = Reader(answer).many(|reader| {
        let topic = reader.string()?;
        reader.many(|reader| {
            let (partition, code, offset) = (reader.i32()?, reader.code()?, reader.i64()?);
            let _times = (reader.i64()?, reader.i64()?); // of the append, and where the log begins
            let records = reader.many(|reader| Ok((reader.i32()?, reader.string()?)))?;
            let mut message = reader.string()?;
            if let Some((_, first)) = records.iter().find(|(_, text)| message.is_empty() && !text.is_empty()) {
                message = first;
            }
            Ok(Stored { topic: topic.to_owned(), partition, code, offset, message: message.to_owned() })
        })
    })?;
    Ok(topics.into_iter().flatten().collect())
}

/// Brokers, and who leads the partitions of one topic.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Each one's number and `host:port`.
    pub(super) brokers: Vec<(i32, String)>,
    pub(super) code: Code,
    /// Each partition's number, and its leader's; negative: it has none now.
    pub(super) leaders: Vec<(i32, i32)>,
}

/// Reads the answer to [`METADATA`] for one topic.
pub(super) fn metadata(answer: &[u8]) -> Result<Metadata, Malformed> {
    let mut reader = Reader(answer);
    reader.i32()?; // throttle
    let brokers = reader.many(|reader| {
        let (number, host, port) = (reader.i32()?, reader.string()?, reader.i32()?);
        reader.string()?; // rack
        Ok((number, format!("{host}:{port}")))
    })?;
    reader.string()?; // the cluster's name
    reader.i32()?; // the controller
    let mut topics = reader.many(|reader| {
        let code = reader.code()?;
        reader.string()?;
        reader.bool()?; // internal
        let leaders = reader.many(|reader| {
            reader.code()?; // which is said by the leader, too
            let (partition, leader) = (reader.i32()?, reader.i32()?);
            reader.many(Reader::i32)?; // replicas
            reader.many(Reader::i32)?; // those in sync
            Ok((partition, leader))
        })?;
        Ok((code, leaders))
    })?;
    let (code, leaders) = topics.pop().ok_or(Malformed)?;
    Ok(Metadata { brokers, code, leaders })
}

/// Reads the answer to [`INIT_PRODUCER_ID`]: a new producer's number and epoch.
pub(super) fn producer(answer: &[u8]) -> Result<(Code, i64, i16), Malformed> {
    let mut reader = Reader(answer);
    reader.i32()?; // throttle
    Ok((reader.code()?, reader.i64()?, reader.i16()?))
}

/// A broker's word for how it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(pub(super) i16);

/// What a [`Code`] means for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It went well, now or the time before.
    Done,
    /// It's not known there, for now or for good.
    Unknown,
    /// The same request may go well in a moment, maybe elsewhere.
    Passing,
    /// It's never taken: the batch is too large.
    TooLarge,
    /// It's never taken: it isn't allowed, or not what the topic's owner wants.
    Refused,
    /// The broker knows a newer epoch of this producer, or nothing of it.
    Fenced,
    /// It wasn't taken.
    Failed,
}

impl Code {
    pub(super) fn meaning(self) -> Meaning {
        match self.0 {
            0 | 46 => Meaning::Done,
            3 => Meaning::Unknown,
            -1 | 2 | 5..=9 | 13..=16 | 19 | 20 | 41 | 56 | 74 | 75 | 89 => Meaning::Passing,
            4 | 10 | 18 => Meaning::TooLarge,
            17 | 29 | 31 | 44 | 87 => Meaning::Refused,
            47 | 59 | 90 => Meaning::Fenced,
            _ => Meaning::Failed,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            -1 => "unknown error of the broker",
            2 => "corrupt message",
            3 => "unknown topic or partition",
            5 => "leader not available",
            6 => "not the leader",
            7 => "request timed out",
            10 => "message too large",
            13 => "network exception",
            14 => "coordinator is loading",
            15 => "coordinator not available",
            17 => "invalid topic",
            18 => "record list too large",
            19 => "not enough in-sync replicas",
            20 => "not enough in-sync replicas after the append",
            29 => "topic authorization failed",
            31 => "cluster authorization failed",
            32 => "invalid timestamp",
            33 => "unsupported SASL mechanism",
            35 => "unsupported version: Kafka must be 3.6 or newer",
            44 => "policy violation",
            45 => "out of order sequence number",
            46 => "duplicate sequence number",
            47 => "invalid producer epoch",
            56 => "storage error",
            58 => "authentication failed",
            59 => "unknown producer id",
            87 => "invalid record",
            90 => "producer fenced",
            code => return write!(f, "error {code}"),
        };
        f.write_str(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer to [`PRODUCE`] for one partition.
    fn answer() -> Vec<u8> {
        let mut answer = Request::default();
        answer.count(1).string("t").count(1).i32(3).i16(87).raw(&7_i64.to_be_bytes()).raw(&[0xff; 16]);
        answer.count(1).i32(0).string("why").no_string().i32(0);
        answer.0
    }

    #[test]
    fn an_answer_says_what_became_of_each_batch() {
        let all = produced(&answer()).unwrap();
        let wanted =
            Stored { topic: "t".to_owned(), partition: 3, code: Code(87), offset: 7, message: "why".to_owned() };
        assert_eq!(all, [wanted]);
        for len in 0..answer().len() - 4 {
            assert!(produced(&answer()[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_count_without_what_it_counts_is_refused_before_there_is_room_for_it() {
        assert!(produced(&i32::MAX.to_be_bytes()).is_err());
        assert!(Reader(&i32::MAX.to_be_bytes()).bytes().is_err());
        assert!(Reader(&(-2_i32).to_be_bytes()).bytes().is_err());
        assert!(Reader(&(-2_i16).to_be_bytes()).string().is_err());
        assert_eq!(Reader(&(-1_i16).to_be_bytes()).string().unwrap(), "");
    }

    proptest! {
        /// Whatever a broker sends, and wherever one byte of a good answer changes.
        #[test]
        fn garbage_is_an_error(
            garbage in proptest::collection::vec(prop_oneof![Just(0), Just(1), Just(0xff), any::<u8>()], 0..300),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut changed = answer();
            let at = at.index(changed.len());
            changed[at] = byte;
            for bytes in [garbage, changed] {
                drop((produced(&bytes), metadata(&bytes), producer(&bytes)));
            }
        }
    }
}
