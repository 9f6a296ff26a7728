//! Dead letters: counted by reason, sent through again, and out of the list only when they are in the index.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use logmesh_bus::NewRecord;
use logmesh_index::{FieldTypes, IndexError, IndexWriter, NewDoc, Outcome, Slice};
use logmesh_index_embedded::EmbeddedIndex;
use logmesh_proto::ingest::v1::{Chunk, Event};
use logmesh_proto::transfer::v1::{
    DeadLetter, ListDeadLettersRequest, RedriveDeadLettersRequest, RedriveDeadLettersResponse,
    SummarizeDeadLettersRequest,
};
use logmesh_record::{Book, codec, document};
use logmesh_testing::wait_for_async;
use logmesh_types::{ByteRange, DocId, TopicName, UnixNanos};
use mesh::{Mesh, chunk, client};

mod mesh;

/// The embedded index, which refuses documents that hold a word, and may keep its answers to itself.
#[derive(Debug)]
struct Picky {
    index: Arc<EmbeddedIndex>,
    /// The word, and the reason that is given.
    refuses: Mutex<Option<(&'static str, &'static str)>>,
    silent: AtomicBool,
}

impl Picky {
    fn new(mesh: &Mesh) -> Arc<Self> {
        let refuses = Mutex::new(Some(("bad", "the value 'bad' is no number of 1 to 9")));
        Arc::new(Self { index: mesh.index.clone(), refuses, silent: false.into() })
    }

    fn refuse(&self, refuses: Option<(&'static str, &'static str)>) {
        *self.refuses.lock().unwrap() = refuses;
    }
}

#[async_trait]
impl IndexWriter for Picky {
    async fn ensure_topic(&self, topic: &TopicName, fields: &FieldTypes) -> Result<(), IndexError> {
        self.index.ensure_topic(topic, fields).await
    }

    async fn write(&self, docs: Vec<NewDoc>) -> Result<Vec<Outcome>, IndexError> {
        let refuses = *self.refuses.lock().unwrap();
        let is_refused = |doc: &NewDoc| {
            let (word, reason) = refuses?;
            String::from_utf8_lossy(&doc.body).contains(word).then(|| reason.to_owned())
        };
        let refused: Vec<Option<String>> = docs.iter().map(is_refused).collect();
        let good = docs.into_iter().zip(&refused).filter(|(_, refused)| refused.is_none()).map(|(doc, _)| doc);
        let mut written = self.index.write(good.collect()).await?.into_iter();
        if self.silent.load(Ordering::SeqCst) {
            return Err(IndexError::Unavailable { reason: "the answer is lost".to_owned() });
        }
        let outcome = |refused| match refused {
            Some(reason) => Outcome::Rejected { reason },
            None => written.next().unwrap(),
        };
        Ok(refused.into_iter().map(outcome).collect())
    }

    async fn contains(&self, topic: &TopicName, ids: &[DocId]) -> Result<Vec<bool>, IndexError> {
        self.index.contains(topic, ids).await
    }

    async fn slices(&self, topic: &TopicName) -> Result<Vec<String>, IndexError> {
        self.index.slices(topic).await
    }

    async fn delete_slice(&self, slice: &Slice) -> Result<(), IndexError> {
        self.index.delete_slice(slice).await
    }
}

/// A mesh whose index refuses what is bad, and bad lines in both formats among good ones.
async fn with_letters() -> (Mesh, Arc<Picky>) {
    let mut mesh = Mesh::start().await;
    mesh.stop_transfer().await;
    let picky = Picky::new(&mesh);
    mesh.start_transfer_into(picky.clone()).await;
    let packed = mesh.append(codec::encode_chunk(&chunk(0, "good one\nbad two\ngood three\n", 0))).await;
    mesh.done(&packed).await;
    for document in document::of_chunk(&Chunk { stream_id: other_stream(), ..chunk(0, "bad four\ngood five\n", 1) }) {
        let at = mesh.append(codec::encode_event(&document)).await;
        mesh.done(&at).await;
    }
    // Of a client: no stream, and its id comes from its place on the bus.
    let event = Event { message: "bad six".to_owned(), ..Event::default() };
    let built = document::of_event("logs", &event, UnixNanos(1_769_947_200_000_000_000), &Default::default());
    let at = mesh.append(codec::encode_event(&built)).await;
    mesh.done(&at).await;
    assert_eq!(sorted(&mesh).await, ["good five", "good one", "good three"]);
    (mesh, picky)
}

fn other_stream() -> String {
    "00112233445566778899aabbccddeeff".to_owned()
}

async fn sorted(mesh: &Mesh) -> Vec<String> {
    let mut messages = mesh.messages().await;
    messages.sort();
    messages
}

async fn list(mesh: &Mesh, reason: &str) -> Vec<DeadLetter> {
    let request = ListDeadLettersRequest { reason: reason.to_owned(), ..ListDeadLettersRequest::default() };
    let answer = mesh.client().list_dead_letters(request).await.unwrap().into_inner();
    assert_eq!(answer.next_page_token, "");
    answer.dead_letters
}

/// Calls until all is done.
async fn redrive(server: &str, mut request: RedriveDeadLettersRequest) -> RedriveDeadLettersResponse {
    request.topic = "logs".to_owned();
    loop {
        let answer = client(server).redrive_dead_letters(request.clone()).await.unwrap().into_inner();
        request.page_token.clone_from(&answer.next_page_token);
        if request.page_token.is_empty() {
            return answer;
        }
    }
}

fn counts(answer: &RedriveDeadLettersResponse) -> [u64; 5] {
    [answer.sent, answer.indexed, answer.already_there, answer.refused, answer.pending]
}

/// The newest book of each stream that has bytes booked.
async fn books(mesh: &Mesh) -> Vec<Book> {
    let mut books = std::collections::BTreeMap::new();
    for partition in 0..4 {
        for mut book in mesh.books(partition).await {
            books.remove(&book.stream).iter().for_each(|before| book.merge(before));
            books.insert(book.stream, book);
        }
    }
    books.into_values().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_counted_by_reason_with_samples() {
    let (mesh, _picky) = with_letters().await;
    let stray = NewRecord { key: "x".into(), value: "not ours".into(), ..NewRecord::default() };
    let at = mesh.append(stray).await;
    mesh.done(&at).await;
    let request = SummarizeDeadLettersRequest::default();
    let answer = mesh.client().summarize_dead_letters(request).await.unwrap().into_inner();
    assert_eq!(answer.next_page_token, "");
    let groups: Vec<(&str, u64, usize)> =
        answer.groups.iter().map(|group| (group.reason.as_str(), group.letters, group.samples.len())).collect();
    let common = "the value '…' is no number of N to N";
    assert_eq!(groups, [("the record can't be read: it has no header logmesh-format", 1, 1), (common, 3, 3)]);
    assert_eq!(list(&mesh, "").await.len(), 4);
    assert_eq!(list(&mesh, common).await.len(), 3);
    assert_eq!(list(&mesh, "the value 'other' is no number of 3 to 4").await.len(), 3, "the same kind");
    assert_eq!(list(&mesh, "another").await.len(), 0);
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_topic_has_no_letters_that_are_done_while_config_is_away() {
    let mesh = Mesh::start().await;
    assert_eq!(counts(&redrive(&mesh.server, RedriveDeadLettersRequest::default()).await), [0; 5], "it is there");
    let topic = "lgos".to_owned();
    let ask = RedriveDeadLettersRequest { topic: topic.clone(), ..Default::default() };
    let redriven = mesh.client().redrive_dead_letters(ask).await.unwrap_err();
    let list = ListDeadLettersRequest { topic: topic.clone(), ..Default::default() };
    let listed = mesh.client().list_dead_letters(list).await.unwrap_err();
    let summarize = SummarizeDeadLettersRequest { topic, ..Default::default() };
    let summarized = mesh.client().summarize_dead_letters(summarize).await.unwrap_err();
    for status in [redriven, listed, summarized] {
        assert_eq!(logmesh_grpc::reason(&status).as_deref(), Some("CONFIG_UNAVAILABLE"), "{status}");
        assert!(status.message().contains("there is no topic lgos yet"), "{status}");
    }
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_leaves_only_for_the_index_and_the_books_are_put_right() {
    let (mut mesh, picky) = with_letters().await;
    let before = list(&mesh, "").await;
    let again = redrive(&mesh.server, RedriveDeadLettersRequest::default()).await;
    assert_eq!(counts(&again), [3, 0, 0, 3, 0]);
    assert_eq!(
        (again.refusals[0].reason.as_str(), again.refusals[0].letters),
        ("the value '…' is no number of N to N", 3)
    );
    assert_eq!(list(&mesh, "").await, before, "what is refused for the same reason stays as it is");
    assert_eq!(books(&mesh).await.iter().map(|book| book.rejected_events).sum::<u64>(), 2);

    picky.refuse(Some(("six", "six is too much")));
    let one = RedriveDeadLettersRequest { ids: vec![before[0].id.clone()], ..Default::default() };
    let others = RedriveDeadLettersRequest { reason: before[0].reason.clone(), ..Default::default() };
    let first = redrive(&mesh.server, one).await;
    let rest = redrive(&mesh.server, others).await;
    let sum: Vec<u64> = counts(&first).iter().zip(counts(&rest)).map(|(a, b)| a + b).collect();
    assert_eq!(sum, [3, 2, 0, 1, 0], "{first:?} {rest:?}");
    let left = list(&mesh, "").await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].reason, "six is too much", "the newest reason");
    assert!(before.iter().any(|letter| (&letter.id, &letter.document) == (&left[0].id, &left[0].document)));
    assert_eq!(sorted(&mesh).await, ["bad four", "bad two", "good five", "good one", "good three"]);
    let ends: Vec<(Vec<ByteRange>, usize, u64)> = books(&mesh)
        .await
        .iter()
        .map(|book| (book.done.as_slice().to_vec(), book.rejected.as_slice().len(), book.rejected_events))
        .collect();
    assert_eq!(ends, [(vec![ByteRange::new(0, 19)], 0, 0), (vec![ByteRange::new(0, 28)], 0, 0)]);

    // A worker that comes later knows all that from the bus.
    mesh.stop_transfer().await;
    mesh.start_transfer().await;
    assert_eq!(list(&mesh, "").await, left);
    let last = redrive(&mesh.server, RedriveDeadLettersRequest::default()).await;
    assert_eq!(counts(&last), [1, 1, 0, 0, 0]);
    assert_eq!(list(&mesh, "").await, []);
    assert_eq!(mesh.messages().await.len(), 6);
    // Its slice is the one that it would have had.
    let slice = Slice { topic: mesh.topic.clone(), date: "2026-02-01".to_owned() };
    mesh.index.delete_slice(&slice).await.unwrap();
    assert_eq!(sorted(&mesh).await, ["bad two", "good one", "good three"]);
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_callers_at_once_and_two_workers_store_each_letter_once() {
    let (mesh, picky) = with_letters().await;
    let (tasks, second) = mesh.worker(picky.clone()).await;
    picky.refuse(None);
    let all = RedriveDeadLettersRequest::default();
    let (one, other) = tokio::join!(redrive(&mesh.server, all.clone()), redrive(&second, all.clone()));
    assert_eq!(one.indexed + other.indexed, 3, "{one:?} {other:?}");
    assert_eq!(one.already_there + other.already_there, one.sent + other.sent - 3);
    assert_eq!(mesh.messages().await.len(), 6);
    assert_eq!(list(&mesh, "").await, []);
    assert!(books(&mesh).await.iter().all(|book| book.rejected.is_empty() && book.rejected_events == 0));
    tasks.shutdown();
    tasks.finish(Duration::from_secs(20)).await.unwrap();
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_the_index_took_it_a_letter_is_found_there() {
    let (mut mesh, picky) = with_letters().await;
    picky.refuse(None);
    picky.silent.store(true, Ordering::SeqCst);
    let request = RedriveDeadLettersRequest { topic: "logs".to_owned(), ..Default::default() };
    let answer = mesh.client().redrive_dead_letters(request.clone()).await.unwrap().into_inner();
    assert_eq!(counts(&answer), [3, 0, 0, 0, 3], "sent, and no answer yet");
    wait_for_async("the index to hold them", Duration::from_secs(20), || async {
        let messages = mesh.messages().await.len();
        if messages == 6 { Ok(()) } else { Err(messages.to_string()) }
    })
    .await;
    assert_eq!(list(&mesh, "").await.len(), 3, "nothing says yet that they are in the index");
    mesh.stop_transfer().await;
    mesh.start_transfer().await;
    let next = RedriveDeadLettersRequest { page_token: answer.next_page_token, ..request };
    let end = redrive(&mesh.server, next).await;
    assert_eq!(counts(&end), [3, 0, 3, 0, 0], "the operation goes on with another worker");
    assert_eq!(list(&mesh, "").await, []);
    assert_eq!(mesh.messages().await.len(), 6);
    assert!(books(&mesh).await.iter().all(|book| book.rejected.is_empty()));
    mesh.stop_transfer().await;
}
