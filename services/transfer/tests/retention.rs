//! Days of the index that are retired, and topics that are paused: what isn't stored any more, and what waits.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::sync::Arc;
use std::time::Duration;

use logmesh_bus::{Bus, NewRecord, TopicPartition};
use logmesh_index::{IndexWriter, NewDoc, Slice};
use logmesh_proto::ingest::v1::{Chunk, Event};
use logmesh_proto::transfer::v1::{
    DeadLetter, GetReplayRequest, GetStatusRequest, GetStatusResponse, ListDeadLettersRequest, PauseRequest,
    RedriveDeadLettersRequest, ReplayState, ResumeRequest, StartReplayRequest, TopicState,
};
use logmesh_record::{Book, Topics, codec, document};
use logmesh_testing::wait_for_async;
use logmesh_transfer::{GROUP, Settings};
use logmesh_types::{ByteRange, Day, Span, UnixNanos};
use mesh::{DAY, Mesh, chunk};
use tonic::Code;

mod mesh;

const PATIENCE: Duration = Duration::from_secs(60);

/// Lines that were read so many days ago.
fn aged(start: u64, text: &str, days: u64) -> Chunk {
    let seconds = UnixNanos::now().0 / 1_000_000_000 - days as i64 * DAY;
    Chunk { read_time: Some(prost_types::Timestamp { seconds, nanos: 0 }), ..chunk(start, text, 0) }
}

/// The record as one that came to the bus so many days ago.
fn came(record: NewRecord, days: u64) -> NewRecord {
    NewRecord { timestamp: Some(UnixNanos(UnixNanos::now().0 - days as i64 * DAY * 1_000_000_000)), ..record }
}

async fn letters(mesh: &Mesh) -> Vec<DeadLetter> {
    mesh.client().list_dead_letters(ListDeadLettersRequest::default()).await.unwrap().into_inner().dead_letters
}

/// Sends all letters through again: how many were sent, indexed, already there and refused.
async fn redrive(mesh: &Mesh) -> [u64; 4] {
    let mut request = RedriveDeadLettersRequest { topic: "logs".to_owned(), ..Default::default() };
    loop {
        let answer = mesh.client().redrive_dead_letters(request.clone()).await.unwrap().into_inner();
        request.page_token.clone_from(&answer.next_page_token);
        if request.page_token.is_empty() {
            return [answer.sent, answer.indexed, answer.already_there, answer.refused];
        }
    }
}

/// The newest book of the stream.
async fn book(mesh: &Mesh, partition: u32) -> Book {
    mesh.books(partition).await.into_iter().rfind(|book| book.stream.to_string() == mesh::STREAM).unwrap()
}

fn day(ago: u64) -> Day {
    Day::of(UnixNanos::now()).minus(ago)
}

async fn status(mesh: &Mesh) -> GetStatusResponse {
    mesh.client().get_status(GetStatusRequest::default()).await.unwrap().into_inner()
}

async fn retired(mesh: &Mesh) -> u64 {
    status(mesh).await.counts.unwrap().retired
}

/// Waits until the index holds these days of the topic.
async fn until_days(mesh: &Mesh, wanted: &[u64]) {
    wait_for_async("old days go", PATIENCE, || async {
        let days = mesh.index.slices(&mesh.topic).await.unwrap();
        let wanted: Vec<String> = wanted.iter().map(|ago| day(*ago).to_string()).collect();
        if days == wanted { Ok(()) } else { Err(format!("{days:?}")) }
    })
    .await;
}

/// A mesh with two lines of ten days ago and two of today, and then a retention of three days.
async fn with_retention() -> Mesh {
    let mut mesh = Mesh::start().await;
    mesh.append(codec::encode_chunk(&aged(0, "old\nolder\n", 10))).await;
    let at = mesh.append(codec::encode_chunk(&aged(10, "new\nnewer\n", 0))).await;
    mesh.done(&at).await;
    until_days(&mesh, &[10, 0]).await;
    mesh.stop_transfer().await;
    let mut topics = Topics::default();
    topics.default.index_retention = Some(Span(Duration::from_secs(3 * 86_400)));
    mesh.settings = Settings { topics, retention_interval: Span(Duration::from_millis(100)), ..Settings::default() };
    mesh.start_transfer().await;
    until_days(&mesh, &[0]).await;
    mesh
}

#[tokio::test(flavor = "multi_thread")]
async fn old_days_go_and_nothing_that_comes_late_brings_them_back() {
    let mut mesh = with_retention().await;
    let kept = ["new", "newer"];
    assert_eq!(mesh.messages().await, kept);
    let told = status(&mesh).await;
    let before = day(3).to_string();
    assert_eq!(told.topics, [TopicState { topic: "logs".to_owned(), paused: false, retired_before: before }]);

    // Another stream's lines of that day, which transfer reads late; then the whole file once more, from an agent that lost its state.
    let late = Chunk { stream_id: "00".repeat(16), ..aged(0, "late\n", 4) };
    let at = mesh.append(came(codec::encode_chunk(&late), 4)).await;
    mesh.done(&at).await;
    assert_eq!(retired(&mesh).await, 1);
    let at = mesh.append(codec::encode_chunk(&aged(0, "old\nolder\nnew\nnewer\n", 0))).await;
    mesh.done(&at).await;
    assert_eq!((retired(&mesh).await, mesh.messages().await), (3, kept.map(str::to_owned).to_vec()));
    assert_eq!(letters(&mesh).await, []);
    until_days(&mesh, &[0]).await;

    // A write that was under way when the day was retired.
    let document = document::of_chunk(&aged(0, "old\n", 10)).remove(0);
    let slice = Arc::new(Slice { topic: mesh.topic.clone(), date: document.date.to_string() });
    mesh.index.write(vec![NewDoc { slice, id: document.id.unwrap(), body: document.body }]).await.unwrap();
    until_days(&mesh, &[0]).await;

    // Another worker knows it too, and so does its replay.
    mesh.stop_transfer().await;
    mesh.start_transfer().await;
    let at = mesh.append(codec::encode_chunk(&aged(0, "old\nolder\n", 0))).await;
    mesh.done(&at).await;
    assert_eq!(retired(&mesh).await, 2);
    let all = StartReplayRequest { topic: "logs".to_owned(), id: "all".to_owned(), ..Default::default() };
    mesh.client().start_replay(all).await.unwrap();
    wait_for_async("the replay ends", PATIENCE, || async {
        let replay = mesh.client().get_replay(GetReplayRequest { id: "all".to_owned() }).await.unwrap().into_inner();
        if replay.state() == ReplayState::Done && (replay.retired, replay.indexed) == (7, 0) {
            return Ok(());
        }
        Err(format!("{replay:?}"))
    })
    .await;
    assert_eq!(mesh.messages().await, kept);
    mesh.stop_transfer().await;
    let book = book(&mesh, at.partition).await;
    assert_eq!(book.slices.retired(Some(day(3))).as_slice(), [ByteRange::new(0, 10)]);
    assert_eq!((book.watermark(), book.slices.known().bytes()), (20, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_retention_everything_stays_and_what_was_retired_stays_retired() {
    let mut mesh = with_retention().await;
    mesh.stop_transfer().await;
    mesh.settings.topics = Topics::default();
    mesh.start_transfer().await;
    let late = Chunk { stream_id: "00".repeat(16), ..aged(20, "late\n", 5) };
    let at = mesh.append(came(codec::encode_chunk(&late), 5)).await;
    mesh.done(&at).await;
    assert_eq!((retired(&mesh).await, mesh.messages().await.len()), (1, 2));
    let at = mesh.append(codec::encode_chunk(&aged(25, "in time\n", 2))).await;
    mesh.done(&at).await;
    until_days(&mesh, &[2, 0]).await;
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_clock_is_far_behind_loses_nothing() {
    let mut mesh = with_retention().await;
    let wrong = codec::encode_chunk(&aged(20, "astray\nlost\n", 10));
    let at = mesh.append(wrong.clone()).await;
    // Again after a lost ack, in one bulk with what is dated well.
    mesh.append(wrong.clone()).await;
    mesh.done(&mesh.append(codec::encode_chunk(&aged(32, "dated\n", 0))).await).await;
    let found = letters(&mesh).await;
    assert_eq!(found.len(), 4);
    let why = "by the clock of agent 'web-1' on host ''";
    let told = |letter: &DeadLetter| letter.reason.contains(why) && letter.reason.contains(&day(3).to_string());
    assert!(found.iter().all(told), "{found:?}");
    let counts = status(&mesh).await.counts.unwrap();
    assert_eq!((counts.retired, counts.dead_letters), (0, 4));
    let rejected = book(&mesh, at.partition).await;
    assert_eq!((rejected.rejected.as_slice(), rejected.rejected_events), (&[ByteRange::new(20, 32)][..], 2));

    assert_eq!(redrive(&mesh).await, [4, 2, 2, 0]);
    assert_eq!((letters(&mesh).await.len(), mesh.messages().await.len()), (0, 5));
    until_days(&mesh, &[0]).await;
    // A replay finds them; so does another worker when they come again, whatever their date.
    mesh.stop_transfer().await;
    mesh.start_transfer().await;
    mesh.append(wrong).await;
    mesh.append(codec::repeated(codec::encode_chunk(&aged(20, "astray\n", 10)))).await;
    mesh.done(&mesh.append(codec::encode_chunk(&aged(20, "astray\nlost\n", 1))).await).await;
    let all = StartReplayRequest { topic: "logs".to_owned(), id: "all".to_owned(), ..Default::default() };
    mesh.client().start_replay(all).await.unwrap();
    wait_for_async("the replay ends", PATIENCE, || async {
        let replay = mesh.client().get_replay(GetReplayRequest { id: "all".to_owned() }).await.unwrap().into_inner();
        let done = (replay.retired, replay.refused, replay.indexed);
        if replay.state() == ReplayState::Done && done == (2, 0, 0) { Ok(()) } else { Err(format!("{replay:?}")) }
    })
    .await;
    assert_eq!((letters(&mesh).await.len(), mesh.messages().await.len()), (0, 5));
    mesh.stop_transfer().await;
    let book = book(&mesh, at.partition).await;
    assert!(book.rejected.is_empty() && book.rejected_events == 0, "{book:?}");
    assert_eq!((book.watermark(), book.slices.known().bytes()), (38, 38));
    assert_eq!(book.slices.retired(Some(day(3))).as_slice(), [ByteRange::new(0, 10)], "they are of today");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_of_a_day_that_is_retired_too_stays() {
    let mesh = with_retention().await;
    let document = document::of_chunk(&aged(20, "lost\n", 10)).remove(0);
    let time = UnixNanos(UnixNanos::now().0 - 5 * DAY * 1_000_000_000);
    let letter = logmesh_record::DeadLetter { document, reason: "bad".to_owned(), time };
    mesh.bus.append(&mesh.topic.dead_letters(), letter.encode()).await.unwrap().await.unwrap();
    let before = letters(&mesh).await;
    assert_eq!(before.len(), 1);
    for _ in 0..2 {
        assert_eq!(redrive(&mesh).await, [1, 0, 0, 1]);
        assert_eq!((letters(&mesh).await, mesh.messages().await.len()), (before.clone(), 2));
    }
    mesh.stop_transfer().await;
}

/// A gateway dates what clients write, and the records of the bus.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_clock_is_far_behind_loses_nothing_either() {
    let mesh = with_retention().await;
    let taken = UnixNanos(UnixNanos::now().0 - 10 * DAY * 1_000_000_000);
    let event = Event { event_id: "a".to_owned(), message: "astray".to_owned(), ..Event::default() };
    let document = document::of_event("logs", &event, taken, &Default::default());
    let record = came(codec::encode_event(&document), 10);
    // What another gateway wrote before it into the same partition says that it came later.
    let other = document::of_event("logs", &Event::default(), UnixNanos::now(), &Default::default());
    mesh.append(NewRecord { key: record.key.clone(), ..codec::encode_event(&other) }).await;
    mesh.done(&mesh.append(record).await).await;
    let found = letters(&mesh).await;
    assert!(found.len() == 1 && found[0].reason.contains("the clock of the gateway that took it"), "{found:?}");
    assert_eq!(redrive(&mesh).await, [1, 1, 0, 0]);
    assert_eq!(mesh.messages().await.iter().filter(|message| *message == "astray").count(), 1);
    mesh.stop_transfer().await;
}

/// Waits until no partition is held, or all are.
async fn until_held(mesh: &Mesh, held: bool) {
    wait_for_async("the worker pauses or goes on", PATIENCE, || async {
        let status = status(mesh).await;
        if status.partitions.iter().all(|one| one.held == held) { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_paused_waits_on_the_bus_and_goes_on_once() {
    let mut mesh = Mesh::start().await;
    let at = mesh.append(codec::encode_chunk(&chunk(0, "one\n", 0))).await;
    mesh.done(&at).await;
    let none = PauseRequest { topic: "none".to_owned() };
    assert_eq!(mesh.client().pause(none).await.unwrap_err().code(), Code::Unavailable, "no config says whose it is");
    let none = ResumeRequest { topic: "none".to_owned() };
    assert_eq!(mesh.client().resume(none).await.unwrap_err().code(), Code::Unavailable);
    for topic in ["logs", ""] {
        let (pause, resume) = (PauseRequest { topic: topic.to_owned() }, ResumeRequest { topic: topic.to_owned() });
        for _ in 0..2 {
            let paused = mesh.client().pause(pause.clone()).await.unwrap().into_inner();
            assert_eq!((paused.all, paused.topics.len()), (topic.is_empty(), topic.len() / 4), "twice is once");
        }
        until_held(&mesh, false).await;
        let held = status(&mesh).await;
        assert!(held.paused == topic.is_empty() && held.error.is_empty(), "{held:?}");
        // Another worker pauses too.
        mesh.stop_transfer().await;
        mesh.start_transfer().await;
        let before = mesh.messages().await.len();
        let text = format!("while {topic:?} was paused\n");
        let end = mesh.books(at.partition).await.last().unwrap().watermark();
        let record = came(codec::encode_chunk(&chunk(end, &text, 0)), 1);
        let since = record.timestamp.map(logmesh_proto::time::timestamp);
        let waiting = mesh.append(record).await;
        let partition = TopicPartition { topic: mesh.topic.clone(), partition: waiting.partition };
        let committed = mesh.bus.committed(GROUP, &partition).await.unwrap().unwrap();
        assert!(committed <= logmesh_bus::NextOffset(waiting.offset.0), "it waits");
        let told: Vec<_> = status(&mesh).await.partitions.into_iter().filter_map(|one| one.waiting_time).collect();
        assert_eq!(told, Vec::from_iter(since), "since it came, however long before nothing did");
        if topic.is_empty() {
            let one = ResumeRequest { topic: "logs".to_owned() };
            assert_eq!(mesh.client().resume(one).await.unwrap_err().code(), Code::FailedPrecondition);
        }
        let resumed = mesh.client().resume(resume.clone()).await.unwrap().into_inner();
        assert_eq!((resumed.all, resumed.topics.len()), (false, 0));
        mesh.client().resume(resume).await.unwrap();
        mesh.done(&waiting).await;
        until_held(&mesh, true).await;
        assert_eq!(mesh.messages().await.len(), before + 1);
        let counts = status(&mesh).await.counts.unwrap();
        assert_eq!((counts.created, counts.duplicates, counts.repeats), (1, 0, 0));
    }
    mesh.stop_transfer().await;
}
