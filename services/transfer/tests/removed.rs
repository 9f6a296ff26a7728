//! Somebody removed the books of a topic, or its dead letters, while no worker ran: they are made again, nothing is doubled, and
//! what was only in them is known to be missing.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::time::Duration;

use logmesh_proto::ingest::v1::Chunk;
use logmesh_proto::transfer::v1::{
    DeadLetter, GetReplayRequest, GetStatusRequest, ListDeadLettersRequest, RedriveDeadLettersRequest, ReplayState,
    StartReplayRequest,
};
use logmesh_record::codec;
use logmesh_testing::wait_for_async;
use logmesh_types::{ByteRange, Span, UnixNanos};
use mesh::{DAY, Mesh, STREAM, chunk};

mod mesh;

/// Another stream, that no worker hears of for long.
const QUIET: &str = "00112233445566778899aabbccddeeff";

fn quiet(text: &str, day: i64) -> Chunk {
    Chunk { stream_id: QUIET.to_owned(), ..chunk(0, text, day) }
}

async fn push(mesh: &Mesh, chunk: &Chunk) -> u32 {
    let at = mesh.append(codec::encode_chunk(chunk)).await;
    mesh.done(&at).await;
    at.partition
}

async fn restart(mesh: &mut Mesh) {
    mesh.stop_transfer().await;
    mesh.start_transfer().await;
}

async fn messages(mesh: &Mesh) -> Vec<String> {
    let mut messages = mesh.messages().await;
    messages.sort();
    messages
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_books_nothing_is_doubled_and_a_replay_writes_them_again() {
    let mut mesh = Mesh::start().await;
    push(&mesh, &quiet("still\n", 0)).await;
    let partition = push(&mesh, &chunk(0, "one\ntwo\n", 0)).await;
    mesh.stop_transfer().await;
    mesh.remove_topics(&[mesh.topic.books()]).await;
    mesh.start_transfer().await;
    // From an agent without its state, on another day; of one stream at once, of the other after two more workers.
    push(&mesh, &chunk(0, "one\ntwo\nthree\n", 1)).await;
    assert_eq!(messages(&mesh).await, ["one", "still", "three", "two"]);
    let counts = mesh.client().get_status(GetStatusRequest::default()).await.unwrap().into_inner().counts.unwrap();
    assert_eq!((counts.repeats, counts.created), (2, 1));
    restart(&mut mesh).await;
    push(&mesh, &chunk(14, "four\n", 1)).await;
    restart(&mut mesh).await;
    let quiet_partition = push(&mesh, &quiet("still\nhere\n", 2)).await;
    assert_eq!(messages(&mesh).await, ["four", "here", "one", "still", "three", "two"]);

    // Once more, while no worker knows of it, and now the bus tells.
    mesh.stop_transfer().await;
    mesh.remove_topics(&[mesh.topic.books()]).await;
    mesh.start_transfer().await;
    let all = StartReplayRequest { topic: "logs".to_owned(), id: "all".to_owned(), ..Default::default() };
    mesh.client().start_replay(all).await.unwrap();
    wait_for_async("the replay ends", Duration::from_secs(60), || async {
        let replay = mesh.client().get_replay(GetReplayRequest { id: "all".to_owned() }).await.unwrap().into_inner();
        if replay.state() == ReplayState::Done { Ok(()) } else { Err(format!("{replay:?}")) }
    })
    .await;
    assert_eq!(mesh.messages().await.len(), 6);
    mesh.stop_transfer().await;
    for (stream, partition, end) in [(STREAM, partition, 19), (QUIET, quiet_partition, 11)] {
        let mut books = mesh.books(partition).await.into_iter();
        let book = books.rfind(|book| book.stream.to_string() == stream).unwrap();
        assert_eq!(book.done.as_slice(), [ByteRange::new(0, end)]);
    }
}

async fn letters(mesh: &Mesh) -> Vec<DeadLetter> {
    mesh.client().list_dead_letters(ListDeadLettersRequest::default()).await.unwrap().into_inner().dead_letters
}

/// Lines of a host whose clock is far behind: dead letters.
fn astray(start: u64, text: &str) -> Chunk {
    let seconds = UnixNanos::now().0 / 1_000_000_000 - 10 * DAY;
    Chunk { read_time: Some(prost_types::Timestamp { seconds, nanos: 0 }), ..chunk(start, text, 0) }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_letters_what_was_rejected_is_missing_and_comes_again() {
    let mut mesh = Mesh::start().await;
    mesh.stop_transfer().await;
    mesh.settings.topics.default.index_retention = Some(Span(Duration::from_secs(3 * 86_400)));
    mesh.settings.retention_interval = Span(Duration::from_millis(100));
    mesh.start_transfer().await;
    let now = prost_types::Timestamp { seconds: UnixNanos::now().0 / 1_000_000_000, nanos: 0 };
    push(&mesh, &Chunk { read_time: Some(now), ..quiet("today\n", 0) }).await;
    wait_for_async("a mark", Duration::from_secs(60), || async {
        let status = mesh.client().get_status(GetStatusRequest::default()).await.unwrap().into_inner();
        if status.topics.iter().any(|topic| !topic.retired_before.is_empty()) {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    restart(&mut mesh).await; // it knows the mark from its start
    push(&mesh, &astray(0, "one\n")).await;
    let found = letters(&mesh).await;
    assert_eq!(found.len(), 1);
    let request = RedriveDeadLettersRequest { topic: "logs".to_owned(), ..Default::default() };
    assert_eq!(mesh.client().redrive_dead_letters(request).await.unwrap().into_inner().indexed, 1);
    let partition = push(&mesh, &astray(4, "two\n")).await;
    assert_eq!(letters(&mesh).await.len(), 1);
    mesh.stop_transfer().await;

    mesh.remove_topics(&[mesh.topic.dead_letters()]).await;
    mesh.start_transfer().await;
    push(&mesh, &astray(8, "three\n")).await;
    let found = letters(&mesh).await;
    assert_eq!(
        found.iter().map(|letter| letter.start_offset).collect::<Vec<_>>(),
        [8],
        "it lies where one lay that is done"
    );
    let book =
        async || mesh.books(partition).await.into_iter().rfind(|book| book.stream.to_string() == STREAM).unwrap();
    let before = book().await;
    assert_eq!((before.rejected.as_slice(), before.rejected_events), (&[ByteRange::new(8, 14)][..], 1));
    assert_eq!(before.watermark(), 14, "booked as indexed, so the audit misses it");
    // As a repair sends it.
    let at = mesh.append(codec::repeated(codec::encode_chunk(&astray(4, "two\n")))).await;
    mesh.done(&at).await;
    assert_eq!((letters(&mesh).await.len(), book().await.rejected.bytes()), (2, 10));
    assert_eq!(messages(&mesh).await, ["one", "today"]);
    mesh.stop_transfer().await;
}
