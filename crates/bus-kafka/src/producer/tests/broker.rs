//! A broker that does what it's told, notes what it gets, and numbers batches as Kafka does.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes};
use logmesh_types::unit::Span;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::super::batch::Stamp;
use super::super::wire::{Code, INIT_PRODUCER_ID, METADATA, PRODUCE, Reader};
use super::*;
use crate::settings::Compression;

/// What to do with a request to store batches; if nothing is said, what Kafka does.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Store,
    /// Store nothing, say this.
    Say(i16),
    /// Store, and say this nevertheless.
    Belie(i16),
    /// Store nothing, and close the connection.
    Close,
    /// Store nothing, and do nothing more on this connection.
    Freeze,
    /// Store, and close the connection.
    Lose,
    /// What Kafka does, but later.
    Wait(Arc<Notify>),
    /// What Kafka does, once the next request is there.
    WaitForNext,
}

/// A batch that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The number of the request, from 0.
    pub(super) request: usize,
    pub(super) partition: i32,
    pub(super) stamp: Stamp,
    pub(super) count: i32,
    pub(super) bytes: Bytes,
}

/// Of a partition: what it holds, and what is known of its producers.
#[derive(Default)]
struct Log {
    /// Of each record, what it is told apart by: see [`marks`].
    records: Vec<String>,
    /// Of each number, the stamp that's to come, and the last batches' stamps and places.
    producers: HashMap<i64, (Stamp, VecDeque<(Stamp, i64)>)>,
}

#[derive(Default)]
struct State {
    acts: VecDeque<Act>,
    seen: Vec<Seen>,
    requests: usize,
    asked: usize,
    producers: i64,
    /// The port of the leader that is told, if it isn't this broker.
    leader: Option<u16>,
    logs: HashMap<i32, Log>,
}

#[derive(Clone)]
pub(super) struct Broker {
    pub(super) port: u16,
    state: Arc<Mutex<State>>,
}

impl Broker {
    pub(super) async fn start(acts: impl IntoIterator<Item = Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = State { acts: acts.into_iter().collect(), ..State::default() };
        let broker = Self { port: listener.local_addr().unwrap().port(), state: Arc::new(Mutex::new(state)) };
        let serving = broker.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let broker = serving.clone();
                tokio::spawn(async move { broker.serve(stream).await });
            }
        });
        broker
    }

    /// From now on it tells of a leader at this port.
    pub(super) fn mislead(&self, port: u16) {
        self.state.lock().unwrap().leader = Some(port);
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    /// What each record of a partition is told apart by, by offset.
    pub(super) fn records(&self, partition: i32) -> Vec<String> {
        self.state.lock().unwrap().logs.get(&partition).map_or_else(Vec::new, |log| log.records.clone())
    }

    /// From now on it does what Kafka does.
    pub(super) fn forget_acts(&self) {
        self.state.lock().unwrap().acts.clear();
    }

    /// How often it was asked who leads.
    pub(super) fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }

    pub(super) async fn until_seen(&self, count: usize) {
        while self.seen().len() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(super) fn producer(&self, delivery: Duration) -> Producer {
        Producer::new(&Arc::new(Settings {
            brokers: vec![format!("127.0.0.1:{}", self.port)],
            delivery_timeout: Span(delivery),
            request_timeout: Span(delivery),
            compression: Compression::None,
            ..Settings::default()
        }))
    }

    async fn serve(&self, mut stream: TcpStream) -> Option<()> {
        loop {
            let len = stream.read_u32().await.ok()? as usize;
            let mut request = vec![0; len];
            stream.read_exact(&mut request).await.ok()?;
            let mut reader = Reader(&request);
            let (key, _version, number) = (reader.i16().unwrap(), reader.i16().unwrap(), reader.i32().unwrap());
            reader.string().unwrap();
            let answer = match key {
                key if key == METADATA.key => self.metadata(&mut reader),
                key if key == INIT_PRODUCER_ID.key => self.next_producer(),
                key if key == PRODUCE.key => {
                    let act = self.state.lock().unwrap().acts.pop_front();
                    if let Some(Act::Wait(until)) = &act {
                        let batches = self.note(&mut Reader(reader.0));
                        until.notified().await;
                        drop(batches);
                    }
                    if let Some(Act::WaitForNext) = &act {
                        stream.peek(&mut [0]).await.ok()?;
                    }
                    let batches = match &act {
                        Some(Act::Wait(_)) => parse(&mut reader),
                        _ => self.note(&mut reader),
                    };
                    let store = |batch: &Seen| self.store(batch);
                    match act {
                        Some(Act::Say(code)) => answer(&batches, |_| (Code(code), -1)),
                        Some(Act::Belie(code)) => answer(&batches, |batch| match store(batch).0 {
                            Code(0) => (Code(code), -1),
                            refused => (refused, -1),
                        }),
                        Some(Act::Close) => return None,
                        Some(Act::Freeze) => std::future::pending().await,
                        Some(Act::Lose) => {
                            answer(&batches, store);
                            return None;
                        }
                        Some(Act::Store | Act::Wait(_) | Act::WaitForNext) | None => answer(&batches, store),
                    }
                }
                other => panic!("a request {other}"),
            };
            stream.write_u32(answer.len() as u32 + 4).await.ok()?;
            stream.write_i32(number).await.ok()?;
            stream.write_all(&answer).await.ok()?;
        }
    }

    fn note(&self, reader: &mut Reader<'_>) -> Vec<Seen> {
        let mut state = self.state.lock().unwrap();
        let mut batches = parse(reader);
        batches.iter_mut().for_each(|batch| batch.request = state.requests);
        state.requests += 1;
        state.seen.extend(batches.iter().cloned());
        batches
    }

    /// Kafka's rules for a producer's numbers: any will do of one that isn't known.
    fn store(&self, batch: &Seen) -> (Code, i64) {
        let mut state = self.state.lock().unwrap();
        let log = state.logs.entry(batch.partition).or_default();
        let stamp = batch.stamp;
        let (next, last) = log.producers.entry(stamp.producer).or_insert((stamp, VecDeque::new()));
        if let Some((_, offset)) = last.iter().find(|(known, _)| *known == stamp) {
            return (Code(0), *offset);
        }
        if stamp.epoch < next.epoch {
            return (Code(47), -1);
        }
        if stamp.sequence != if stamp.epoch == next.epoch { next.sequence } else { 0 } {
            return (Code(45), -1);
        }
        let offset = log.records.len() as i64;
        last.retain(|(known, _)| known.epoch == stamp.epoch);
        last.truncate(4);
        last.push_front((stamp, offset));
        *next = Stamp { sequence: stamp.sequence + batch.count, ..stamp };
        let marks = marks(&batch.bytes);
        assert_eq!(marks.len(), batch.count as usize);
        log.records.extend(marks);
        (Code(0), offset)
    }

    fn next_producer(&self) -> Vec<u8> {
        let mut state = self.state.lock().unwrap();
        state.producers += 1;
        let mut answer = vec![0; 4];
        answer.put_i16(0);
        answer.put_i64(state.producers);
        answer.put_i16(0);
        answer
    }

    /// One topic of eight partitions, all of them here or where it's told.
    fn metadata(&self, reader: &mut Reader<'_>) -> Vec<u8> {
        assert_eq!(reader.i32().unwrap(), 1);
        self.state.lock().unwrap().asked += 1;
        let topic = reader.string().unwrap();
        let mut answer = vec![0; 4];
        answer.put_i32(1);
        answer.put_i32(1);
        put_string(&mut answer, "127.0.0.1");
        answer.put_i32(self.state.lock().unwrap().leader.unwrap_or(self.port).into());
        answer.put_i16(-1);
        answer.put_i16(-1);
        answer.put_i32(1);
        answer.put_i32(1);
        answer.put_i16(0);
        put_string(&mut answer, topic);
        answer.put_u8(0);
        answer.put_i32(8);
        for partition in 0..8 {
            answer.put_i16(0);
            answer.put_i32(partition);
            answer.put_i32(1);
            answer.put_i64(0); // no replicas, none in sync
        }
        answer
    }
}

/// The values of a batch's records, but for the x's that they are filled up with.
fn marks(batch: &[u8]) -> Vec<String> {
    let number = |left: &mut &[u8]| {
        let (mut number, mut shift) = (0_u64, 0);
        while let Some((byte, rest)) = left.split_first() {
            *left = rest;
            number |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if *byte < 0x80 {
                break;
            }
        }
        (number >> 1) as usize // of those that are not negative
    };
    let take = |left: &mut &[u8], len: usize| left.split_off(..len).unwrap().to_vec();
    let (mut left, mut marks) = (&batch[61..], Vec::new());
    while !left.is_empty() {
        let len = number(&mut left);
        let record = take(&mut left, len);
        let mut record = &record[1..];
        let (_time, _index, key) = (number(&mut record), number(&mut record), number(&mut record));
        take(&mut record, key);
        let value = number(&mut record);
        let value = String::from_utf8(take(&mut record, value)).unwrap();
        marks.push(value.trim_end_matches('x').to_owned());
    }
    marks
}

fn parse(reader: &mut Reader<'_>) -> Vec<Seen> {
    assert_eq!((reader.string().unwrap(), reader.i16().unwrap()), ("", -1));
    reader.i32().unwrap();
    let topics = reader.many(|reader| {
        assert_eq!(reader.string()?, "t");
        reader.many(|reader| {
            let (partition, bytes) = (reader.i32()?, Bytes::copy_from_slice(reader.bytes()?));
            let mut header = Reader(&bytes[43..]);
            let stamp = Stamp { producer: header.i64()?, epoch: header.i16()?, sequence: header.i32()? };
            Ok(Seen { request: 0, partition, stamp, count: header.i32()?, bytes: bytes.clone() })
        })
    });
    topics.unwrap().into_iter().flatten().collect()
}

fn answer(batches: &[Seen], mut store: impl FnMut(&Seen) -> (Code, i64)) -> Vec<u8> {
    let mut answer = Vec::new();
    answer.put_i32(1);
    put_string(&mut answer, "t");
    answer.put_i32(batches.len() as i32);
    for batch in batches {
        let (code, offset) = store(batch);
        answer.put_i32(batch.partition);
        answer.put_i16(code.0);
        answer.put_i64(offset);
        answer.put_i64(-1);
        answer.put_i64(0);
        answer.put_i32(0);
        answer.put_i16(-1);
    }
    answer.put_i32(0);
    answer
}

fn put_string(answer: &mut Vec<u8>, text: &str) {
    answer.put_i16(text.len() as i16);
    answer.extend_from_slice(text.as_bytes());
}
