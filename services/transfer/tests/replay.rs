//! Replays: what the bus holds is written again, once, whoever is killed and however many do it.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::time::Duration;

use bytes::Bytes;
use logmesh_index::query::Query;
use logmesh_index::{IndexReader, IndexWriter, Selection, Slice};
use logmesh_proto::ingest::v1::Chunk;
use logmesh_proto::time::timestamp;
use logmesh_proto::transfer::v1::{
    CancelReplayRequest, GetReplayRequest, ListReplaysRequest, PauseReplayRequest, Replay, ReplayState,
    ResumeReplayRequest, StartReplayRequest,
};
use logmesh_record::{codec, document};
use logmesh_testing::wait_for_async;
use logmesh_types::UnixNanos;
use mesh::{Mesh, STREAM, chunk, client};
use tonic::Code;

mod mesh;

const STREAMS: usize = 8;
const LINES: usize = 20;

/// Lines of several streams in all partitions, in both formats.
async fn with_lines() -> Mesh {
    let mesh = Mesh::start().await;
    for n in 0..STREAMS {
        let text: String = (0..LINES).map(|line| format!("line {line} of {n}\n")).collect();
        let chunk = Chunk { stream_id: stream(n), ..chunk(0, &text, n as i64 % 2) };
        let records = match n % 2 {
            0 => vec![codec::encode_chunk(&chunk)],
            _ => document::of_chunk(&chunk).iter().map(codec::encode_event).collect(),
        };
        let mut last = None;
        for record in records {
            last = Some(mesh.append(record).await);
        }
        mesh.done(&last.unwrap()).await;
    }
    assert_eq!(mesh.messages().await.len(), STREAMS * LINES);
    mesh
}

fn stream(n: usize) -> String {
    format!("{n:032x}")
}

fn of_logs() -> StartReplayRequest {
    StartReplayRequest { topic: "logs".to_owned(), ..StartReplayRequest::default() }
}

async fn start(server: &str, request: StartReplayRequest) -> Replay {
    client(server).start_replay(request).await.unwrap().into_inner()
}

async fn get(server: &str, id: &str) -> Replay {
    client(server).get_replay(GetReplayRequest { id: id.to_owned() }).await.unwrap().into_inner()
}

async fn wait_done(server: &str, id: &str) -> Replay {
    wait_for_async("the replay to be done", Duration::from_secs(30), || async {
        let replay = get(server, id).await;
        if replay.state() == ReplayState::Done { Ok(replay) } else { Err(format!("{replay:?}")) }
    })
    .await
}

async fn count(mesh: &Mesh, topic: &str) -> u64 {
    let topics = vec![topic.parse().unwrap()];
    mesh.index.count(&Selection { query: Query::parse("*").unwrap(), from: None, to: None, topics }).await.unwrap()
}

fn counts(replay: &Replay) -> [u64; 4] {
    [replay.events, replay.indexed, replay.already_there, replay.refused]
}

#[tokio::test(flavor = "multi_thread")]
async fn into_its_own_index_it_changes_nothing_but_what_is_missing() {
    let mesh = with_lines().await;
    let all = (STREAMS * LINES) as u64;
    let first = start(&mesh.server, of_logs()).await;
    let done = wait_done(&mesh.server, &first.id).await;
    assert_eq!(counts(&done), [all, 0, all, 0]);
    assert_eq!((done.done_records, done.done_partitions), (done.total_records, done.partitions));
    assert_eq!(count(&mesh, "logs").await, all);

    let slice = Slice { topic: mesh.topic.clone(), date: "2026-02-01".to_owned() };
    mesh.index.delete_slice(&slice).await.unwrap();
    assert_eq!(count(&mesh, "logs").await, all / 2);
    let second = start(&mesh.server, StartReplayRequest { id: "second".to_owned(), ..of_logs() }).await;
    let done = wait_done(&mesh.server, &second.id).await;
    assert_eq!(counts(&done), [all, all / 2, all / 2, 0]);
    assert_eq!(count(&mesh, "logs").await, all);

    let list = client(&mesh.server).list_replays(ListReplaysRequest { page_size: 1, ..Default::default() }).await;
    let list = list.unwrap().into_inner();
    assert_eq!(list.replays[0].id, "second", "newest first");
    let rest = ListReplaysRequest { page_token: list.next_page_token, ..Default::default() };
    let rest = client(&mesh.server).list_replays(rest).await.unwrap().into_inner();
    assert_eq!((rest.replays[0].id.as_str(), rest.next_page_token.as_str()), (first.id.as_str(), ""));
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_a_stream_or_of_time_goes_into_another_index() {
    let mesh = with_lines().await;
    let into = |name: &str| StartReplayRequest { into: name.to_owned(), ..of_logs() };
    // Lines 2 to 4 of the stream, and those that are cut by the ends.
    let range = StartReplayRequest { stream_id: stream(3), start_offset: 15, end_offset: 40, ..into("part") };
    let done = wait_done(&mesh.server, &start(&mesh.server, range).await.id).await;
    assert_eq!((counts(&done), done.partitions), ([3, 3, 0, 0], 1));
    assert_eq!((count(&mesh, "part").await, count(&mesh, "logs").await), (3, (STREAMS * LINES) as u64));
    let now = UnixNanos::now();
    let past = StartReplayRequest { end_time: Some(timestamp(UnixNanos(1))), ..into("past") };
    assert_eq!(counts(&wait_done(&mesh.server, &start(&mesh.server, past).await.id).await), [0; 4]);
    let later = StartReplayRequest { start_time: Some(timestamp(UnixNanos(now.0 + 1_000_000_000))), ..into("later") };
    assert_eq!(start(&mesh.server, later).await.state(), ReplayState::Done, "there is nothing to read");
    let until = StartReplayRequest { end_time: Some(timestamp(UnixNanos(now.0 + 1_000_000_000))), ..into("until") };
    let done = wait_done(&mesh.server, &start(&mesh.server, until).await.id).await;
    assert_eq!(done.indexed, (STREAMS * LINES) as u64);
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_cannot_read_is_counted() {
    let mesh = with_lines().await;
    let all = (STREAMS * LINES) as u64;
    for n in [0, 1] {
        let mut record = codec::encode_chunk(&Chunk { stream_id: stream(n), ..chunk(1_000, "damaged\n", 0) });
        record.value = Bytes::from_static(b"what a disk made of it");
        let at = mesh.append(record).await;
        mesh.done(&at).await;
    }
    let done = wait_done(&mesh.server, &start(&mesh.server, of_logs()).await.id).await;
    assert_eq!((counts(&done), done.unreadable_records), ([all, 0, all, 0], 2));
    // Neither another stream's nor what came at another time is missing in what was asked for.
    let one = StartReplayRequest { stream_id: stream(1), ..of_logs() };
    assert_eq!(wait_done(&mesh.server, &start(&mesh.server, one).await.id).await.unreadable_records, 1);
    let past = StartReplayRequest { end_time: Some(timestamp(UnixNanos(1))), ..of_logs() };
    assert_eq!(wait_done(&mesh.server, &start(&mesh.server, past).await.id).await.unreadable_records, 0);
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_survives_its_worker_and_two_share_it() {
    let mut mesh = with_lines().await;
    let all = (STREAMS * LINES) as u64;
    // Slow enough to be caught in the middle: the first records of each partition at once, the others later.
    let request = StartReplayRequest { into: "again".to_owned(), events_per_second: 100, ..of_logs() };
    let id = start(&mesh.server, request).await.id;
    wait_for_async("the replay to get on", Duration::from_secs(20), || async {
        let replay = get(&mesh.server, &id).await;
        if replay.events > 0 { Ok(()) } else { Err(format!("{replay:?}")) }
    })
    .await;
    mesh.stop_transfer().await;
    let (tasks, second) = mesh.worker(mesh.index.clone()).await;
    mesh.start_transfer().await;
    let done = wait_done(&second, &id).await;
    assert_eq!((done.events, done.indexed + done.already_there), (all, all));
    assert_eq!((count(&mesh, "again").await, count(&mesh, "logs").await), (all, all));
    tasks.shutdown();
    tasks.finish(Duration::from_secs(20)).await.unwrap();
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_paused_resumed_and_cancelled() {
    let mesh = with_lines().await;
    let request =
        StartReplayRequest { id: "slow".to_owned(), into: "slow".to_owned(), events_per_second: 1, ..of_logs() };
    start(&mesh.server, request.clone()).await;
    let twice = client(&mesh.server).start_replay(request).await.unwrap_err();
    assert_eq!(twice.code(), Code::AlreadyExists);
    let id = || "slow".to_owned();
    let paused = client(&mesh.server).pause_replay(PauseReplayRequest { id: id() }).await.unwrap().into_inner();
    assert_eq!(paused.state(), ReplayState::Paused);
    let resumed = client(&mesh.server).resume_replay(ResumeReplayRequest { id: id() }).await.unwrap().into_inner();
    assert_eq!(resumed.state(), ReplayState::Running);
    let cancelled = client(&mesh.server).cancel_replay(CancelReplayRequest { id: id() }).await.unwrap().into_inner();
    assert_eq!(cancelled.state(), ReplayState::Cancelled);
    let again = client(&mesh.server).resume_replay(ResumeReplayRequest { id: id() }).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
    assert!(count(&mesh, "slow").await < (STREAMS * LINES) as u64);
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_replayed_is_refused_with_the_field() {
    let mesh = Mesh::start().await;
    let time = |nanos| Some(timestamp(UnixNanos(nanos)));
    for (field, request) in [
        ("topic", StartReplayRequest { topic: "Not Good".to_owned(), ..of_logs() }),
        ("into", StartReplayRequest { into: "logs.books".to_owned(), ..of_logs() }),
        ("into", StartReplayRequest { into: "logs".to_owned(), ..of_logs() }),
        ("id", StartReplayRequest { id: "a/b".to_owned(), ..of_logs() }),
        ("end_time", StartReplayRequest { start_time: time(5), end_time: time(5), ..of_logs() }),
        ("stream_id", StartReplayRequest { end_offset: 5, ..of_logs() }),
        (
            "end_offset",
            StartReplayRequest { stream_id: STREAM.to_owned(), start_offset: 5, end_offset: 5, ..of_logs() },
        ),
    ] {
        let refused = client(&mesh.server).start_replay(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}");
        assert!(logmesh_grpc::describe(&refused).contains(field), "{field}: {refused:?}");
    }
    let none = StartReplayRequest { topic: "none".to_owned(), ..StartReplayRequest::default() };
    assert_eq!(client(&mesh.server).start_replay(none).await.unwrap_err().code(), Code::NotFound);
    mesh.stop_transfer().await;
}
