//! Transfer from the embedded bus into the embedded index: what is stored, what is booked, and what happens when the
//! same bytes come again.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use logmesh_bus::{Bus, NewRecord, NextOffset, TopicPartition};
use logmesh_index::{FieldTypes, IndexError, IndexWriter, NewDoc, Outcome, Slice};
use logmesh_index_embedded::EmbeddedIndex;
use logmesh_proto::ingest::v1::{Chunk, Event};
use logmesh_record::{Book, Topics, codec, document};
use logmesh_types::{ByteRange, DocId, StreamId, TopicName, UnixNanos};
use mesh::{DAY, Mesh, STREAM, chunk};

mod mesh;

/// The embedded index, whose first answers of each kind lack the last document's.
#[derive(Debug)]
struct Forgetful {
    index: Arc<EmbeddedIndex>,
    wrote: AtomicBool,
    looked: AtomicBool,
}

#[async_trait]
impl IndexWriter for Forgetful {
    async fn ensure_topic(&self, topic: &TopicName, fields: &FieldTypes) -> Result<(), IndexError> {
        self.index.ensure_topic(topic, fields).await
    }

    async fn write(&self, mut docs: Vec<NewDoc>) -> Result<Vec<Outcome>, IndexError> {
        if !self.wrote.swap(true, Ordering::SeqCst) {
            docs.pop();
        }
        self.index.write(docs).await
    }

    async fn contains(&self, topic: &TopicName, ids: &[DocId]) -> Result<Vec<bool>, IndexError> {
        let mut held = self.index.contains(topic, ids).await?;
        if !self.looked.swap(true, Ordering::SeqCst) {
            held.pop();
        }
        Ok(held)
    }

    async fn slices(&self, topic: &TopicName) -> Result<Vec<String>, IndexError> {
        self.index.slices(topic).await
    }

    async fn delete_slice(&self, slice: &Slice) -> Result<(), IndexError> {
        self.index.delete_slice(slice).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_is_indexed_booked_and_committed() {
    let mesh = Mesh::start().await;
    let at = mesh.append(codec::encode_chunk(&chunk(0, "one\ntwo\n", 0))).await;
    mesh.done(&at).await;
    assert_eq!(mesh.messages().await, ["one", "two"]);
    let books = mesh.books(at.partition).await;
    assert_eq!(books.len(), 1);
    assert_eq!(books[0].done.as_slice(), [ByteRange::new(0, 8)]);
    assert_eq!((books[0].agent.as_str(), books[0].path.as_str()), ("web-1", "/var/log/app.log"));
    mesh.stop_transfer().await;
}

/// A repair reads files again when the bus has lost its records, and may have lost its books as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_read_again_without_its_book_is_no_second_document() {
    let mut mesh = Mesh::start().await;
    let first = mesh.append(codec::encode_chunk(&chunk(0, "one\ntwo\n", 0))).await;
    mesh.done(&first).await;
    mesh.stop_transfer().await;
    let key = Bytes::from(STREAM);
    let gone = NewRecord { key, ..NewRecord::default() };
    mesh.bus.append(&mesh.topic.books(), gone).await.unwrap().await.unwrap();
    mesh.start_transfer().await;
    let again = mesh.append(codec::repeated(codec::encode_chunk(&chunk(0, "one\ntwo\nthree\n", 1)))).await;
    mesh.done(&again).await;
    assert_eq!(mesh.messages().await, ["one", "two", "three"]);
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_comes_again_on_another_day_is_no_second_document() {
    let mut mesh = Mesh::start().await;
    let first = mesh.append(codec::encode_chunk(&chunk(0, "one\ntwo\n", 0))).await;
    mesh.done(&first).await;
    // In one bulk with lines that are new, and again after a restart, which knows the books from the bus only.
    let second = mesh.append(codec::encode_chunk(&chunk(0, "one\ntwo\nthree\n", 1))).await;
    mesh.done(&second).await;
    mesh.stop_transfer().await;
    mesh.start_transfer().await;
    let third = mesh.append(codec::encode_chunk(&chunk(4, "two\nthree\nfour\n", 2))).await;
    mesh.done(&third).await;
    assert_eq!(mesh.messages().await, ["one", "two", "three", "four"]);
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_copies_of_a_range_in_one_bulk_are_one_document() {
    let mut mesh = Mesh::start().await;
    mesh.stop_transfer().await;
    mesh.append(codec::encode_chunk(&chunk(0, "one\n", 0))).await;
    let at = mesh.append(codec::encode_chunk(&chunk(0, "one\n", 1))).await;
    mesh.start_transfer().await;
    mesh.done(&at).await;
    assert_eq!(mesh.messages().await, ["one"]);
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn booked_bytes_that_the_index_lacks_are_stored_when_they_come_again() {
    let mesh = Mesh::start().await;
    let stream: StreamId = STREAM.parse().unwrap();
    let mut book = Book::new(stream);
    book.add(ByteRange::new(0, 100));
    mesh.stop_transfer().await;
    mesh.bus.append(&mesh.topic.books(), book.encode()).await.unwrap().await.unwrap();
    let mut mesh = mesh;
    mesh.start_transfer().await;
    let at = mesh.append(codec::encode_chunk(&chunk(0, "lost once\n", 0))).await;
    mesh.done(&at).await;
    assert_eq!(mesh.messages().await, ["lost once"]);
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_index_gives_no_answer_for_is_asked_again() {
    let mut mesh = Mesh::start().await;
    mesh.stop_transfer().await;
    let forgetful = Forgetful { index: mesh.index.clone(), wrote: false.into(), looked: false.into() };
    let forgetful = Arc::new(forgetful);
    mesh.start_transfer_into(forgetful.clone()).await;
    let first = mesh.append(codec::encode_chunk(&chunk(0, "one\ntwo\n", 0))).await;
    mesh.done(&first).await;
    assert_eq!(mesh.messages().await, ["one", "two"]);
    // One that a client named is doubtful, so it is looked up first.
    let event = Event { event_id: "a".to_owned(), message: "three".to_owned(), ..Event::default() };
    let taken = UnixNanos(1_769_947_200_000_000_000);
    let built = document::of_event("logs", &event, taken, &Default::default());
    let second = mesh.append(codec::encode_event(&built)).await;
    mesh.done(&second).await;
    assert_eq!(mesh.messages().await, ["one", "two", "three"]);
    assert!(forgetful.looked.load(Ordering::SeqCst));
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_goes_to_the_dead_letters_and_stops_nothing() {
    let mesh = Mesh::start().await;
    let stray = NewRecord { key: Bytes::from(STREAM), value: Bytes::from("not ours"), ..NewRecord::default() };
    mesh.append(stray).await;
    let at = mesh.append(codec::encode_chunk(&chunk(0, "after it\n", 0))).await;
    mesh.done(&at).await;
    assert_eq!(mesh.messages().await, ["after it"]);
    let dead = TopicPartition { topic: mesh.topic.dead_letters(), partition: 0 };
    let mut letters = Vec::new();
    for partition in 0..Topics::default().default.partitions {
        let at = TopicPartition { partition, ..dead.clone() };
        letters.extend(mesh.bus.read(&at, NextOffset(0), 1 << 20).await.unwrap());
    }
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].value, Bytes::from("not ours"));
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_events_are_one_by_their_id_and_each_its_own_without() {
    let mesh = Mesh::start().await;
    let event = |id: &str| Event { event_id: id.to_owned(), message: format!("event {id}"), ..Event::default() };
    for (id, day) in [("a", 0), ("a", 0), ("a", 1), ("", 0), ("", 0)] {
        let taken = UnixNanos((1_769_860_800 + day * DAY) * 1_000_000_000);
        let built = document::of_event("logs", &event(id), taken, &Default::default());
        let at = mesh.append(codec::encode_event(&built)).await;
        mesh.done(&at).await;
    }
    let mut messages = mesh.messages().await;
    messages.sort();
    assert_eq!(messages, ["event ", "event ", "event a"]);
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_topic_is_found() {
    let mut mesh = Mesh::start().await;
    mesh.topic = "later".parse().unwrap();
    for spec in Topics::default().specs(&mesh.topic) {
        mesh.bus.ensure_topic(&spec).await.unwrap();
    }
    let at = mesh.append(codec::encode_chunk(&Chunk { topic: "later".into(), ..chunk(0, "hello\n", 0) })).await;
    mesh.done(&at).await;
    assert_eq!(mesh.messages().await, ["hello"]);
    mesh.stop_transfer().await;
}
