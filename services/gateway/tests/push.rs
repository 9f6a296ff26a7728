//! Push over a real connection.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{PATIENCE, Server, chunk};
use logmesh_bus::Record;
use logmesh_gateway::Settings;
use logmesh_proto::ingest::v1::Chunk;
use logmesh_proto::ingest::v1::push_response::Response;
use logmesh_record::{Content, Format, Times, TopicSettings, Topics, codec, decode};
use logmesh_types::{ByteSize, Span, header};
use tonic::Code;

fn stored_chunk(record: &logmesh_bus::Record) -> Chunk {
    match decode(record).unwrap() {
        Content::Chunk(chunk) => *chunk,
        Content::Event(_) => panic!("an event"),
    }
}

/// The record says when its events were read (but for a clock that is far off), and when the gateway received them.
fn assert_times(record: &logmesh_bus::Record, read: Option<i64>) {
    let times = Times::read(record.header(header::TIMES).unwrap());
    assert_eq!((times.written, times.read.map(|time| time.0 / 1_000_000_000)), (None, read));
    let waited = record.timestamp.0 - times.received.unwrap().0;
    assert!((0..PATIENCE.as_nanos() as i64).contains(&waited), "{waited}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acked_is_on_the_bus() {
    let server = Server::start(Settings::default()).await;
    let mut push = server.push().await;
    push.open().await;
    assert_eq!(push.credit, Settings::default().max_in_flight.0);
    let sent = chunk(1, 100, "one\ntwo\n");
    push.send(sent.clone());
    let ack = push.ack().await;
    assert_eq!((ack.stream_id.as_str(), ack.end_offset), (sent.stream_id.as_str(), 108));
    let records = server.records("logs").await;
    assert_eq!(records.len(), 1);
    assert_eq!(stored_chunk(&records[0].1), sent);
    let age = logmesh_types::UnixNanos::now().0 - records[0].1.timestamp.0;
    assert_times(&records[0].1, Some(1_769_860_800));
    assert!((0..60_000_000_000).contains(&age), "retention goes by the arrival, not by the agent's clock");
    let position = &ack.positions[0];
    assert_eq!((position.topic.as_str(), position.partition, position.offset), ("logs", records[0].0, 0));
    for topic in ["logs.books", "logs.dead"] {
        let spec = logmesh_bus::Bus::topic(&*server.bus, &topic.parse().unwrap()).await.unwrap().unwrap();
        assert_eq!(spec.partitions, TopicSettings::default().partitions, "{topic}");
    }
    push.end();
    assert_eq!(push.answer().await.unwrap(), None);
    assert_eq!(push.credit, Settings::default().max_in_flight.0 + 8, "credit comes back with the ack");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_chunks_are_taken_and_bombs_are_not() {
    let mut server = Server::start(Settings::default()).await;
    server.client = server.client.clone().send_compressed(tonic::codec::CompressionEncoding::Zstd);
    let mut push = server.push().await;
    push.send(chunk(1, 0, &"the same\n".repeat(1_000)));
    assert_eq!(push.ack().await.end_offset, 9_000);
    // A few hundred bytes on the wire, and more than any message may have when they are opened.
    push.send(chunk(1, 9_000, &"x".repeat(64 << 20)));
    // The stream ends with the refusal of the message, or is gone before that can be told; the chunk itself isn't judged.
    let answer = push.answer().await;
    assert!(!matches!(answer, Ok(Some(_))), "it was opened: {answer:?}");
    assert_eq!(server.records("logs").await.len(), 1);
    let mut push = server.push().await;
    push.send(chunk(1, 9_000, "more\n"));
    assert_eq!(push.ack().await.end_offset, 9_005, "others aren't harmed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_keep_their_order() {
    let server = Server::start(Settings::default()).await;
    let mut push = server.push().await;
    for n in 0..100u64 {
        for stream in 0..4 {
            push.send(chunk(stream, n * 5, &format!("{n:04}\n")));
        }
    }
    let mut ends: HashMap<String, u64> = HashMap::new();
    for _ in 0..400 {
        let ack = push.ack().await;
        let before = ends.insert(ack.stream_id, ack.end_offset).unwrap_or(0);
        assert_eq!(ack.end_offset, before + 5, "acks of a stream are in order");
    }
    let mut next: HashMap<String, u64> = HashMap::new();
    for (_, record) in server.records("logs").await {
        let chunk = stored_chunk(&record);
        let expected = next.entry(chunk.stream_id).or_default();
        assert_eq!(chunk.start_offset, *expected);
        *expected += 5;
    }
    assert_eq!(next.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_sent_again_over_a_new_connection_is_acked_again() {
    let server = Server::start(Settings::default()).await;
    let mut first = server.push().await;
    first.send(chunk(1, 0, "a\n"));
    first.ack().await;
    drop(first);
    let mut second = server.push().await;
    second.send(chunk(1, 0, "a\n"));
    second.send(chunk(1, 2, "b\n"));
    assert_eq!((second.ack().await.end_offset, second.ack().await.end_offset), (2, 4));
    assert_eq!(server.records("logs").await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_chunk_is_rejected_and_the_connection_lives() {
    let server = Server::start(Settings::default()).await;
    let mut push = server.push().await;
    push.send(chunk(1, 0, "a\n"));
    push.send(Chunk { crc32c: 7, ..chunk(1, 2, "b\n") });
    push.send(chunk(1, 4, "c\n"));
    push.send(chunk(2, 0, "d\n"));
    let (mut acks, mut rejects) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        match push.answer().await.unwrap().unwrap() {
            Response::Ack(ack) => acks.push((ack.stream_id, ack.end_offset)),
            Response::Reject(reject) => rejects.push((reject.start_offset, reject.end_offset, reject.reason)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(acks, [(format!("{:032x}", 1), 2), (format!("{:032x}", 2), 2)]);
    assert_eq!(rejects, [(2, 4, "BAD_CHECKSUM".to_owned()), (4, 6, "AFTER_REJECTED".to_owned())]);

    push.send(chunk(1, 2, "b\n"));
    push.send(chunk(1, 4, "c\n"));
    assert_eq!((push.ack().await.end_offset, push.ack().await.end_offset), (4, 6));
    push.send(Chunk { topic: "logs.books".to_owned(), ..chunk(3, 0, "e\n") });
    let Some(Response::Reject(reject)) = push.answer().await.unwrap() else { panic!("not rejected") };
    assert_eq!(reject.reason, "BAD_NAME");
    push.end();
    assert_eq!(push.answer().await.unwrap(), None);
    assert_eq!(push.credit, Settings::default().max_in_flight.0 + 14, "credit of rejected chunks comes back too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_more_than_the_credit_is_cut_off() {
    let settings = Settings { max_in_flight: ByteSize(1 << 20), ..Settings::default() };
    let server = Server::start(settings).await;
    server.bus.broken.store(true, Ordering::SeqCst);
    let mut push = server.push().await;
    let line = format!("{}\n", "x".repeat(600_000));
    push.send(chunk(1, 0, &line));
    push.send(chunk(1, line.len() as u64, &line));
    let status = push.answer().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert_eq!(logmesh_grpc::reason(&status).as_deref(), Some("CREDIT_EXCEEDED"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acked_while_the_bus_fails_and_order_survives_it() {
    let server = Server::start(Settings::default()).await;
    let mut push = server.push().await;
    push.send(chunk(1, 0, "0000\n"));
    push.ack().await;
    server.bus.broken.store(true, Ordering::SeqCst);
    for n in 1..20u64 {
        push.send(chunk(1, n * 5, &format!("{n:04}\n")));
    }
    let tries = server.bus.appends.load(Ordering::SeqCst) + 4;
    while server.bus.appends.load(Ordering::SeqCst) < tries {
        tokio::select! {
            answer = push.answer() => panic!("answered {answer:?} while the bus is broken"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
    server.bus.broken.store(false, Ordering::SeqCst);
    for n in 1..20 {
        assert_eq!(push.ack().await.end_offset, (n + 1) * 5);
    }
    let starts: Vec<u64> = server.records("logs").await.iter().map(|(_, r)| stored_chunk(r).start_offset).collect();
    assert_eq!(starts, (0..20).map(|n| n * 5).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_append_that_fails_is_not_overtaken_for_good() {
    let server = Server::start(Settings::default()).await;
    server.bus.refuse.store(5, Ordering::SeqCst);
    let mut push = server.push().await;
    for n in 0..20u64 {
        push.send(chunk(1, n * 5, &format!("{n:04}\n")));
    }
    for n in 0..20 {
        assert_eq!(push.ack().await.end_offset, (n + 1) * 5);
    }
    // Some are there twice, but behind the last copy of each comes the next one, up to the end.
    let starts: Vec<u64> = server.records("logs").await.iter().map(|(_, r)| stored_chunk(r).start_offset).collect();
    let again = starts.iter().rposition(|start| *start == 20).unwrap();
    assert_eq!(starts[again..], (4..20).map(|n| n * 5).collect::<Vec<_>>());
}

/// A chunk goes to the bus in parts: what the bus doesn't take is tried again with all behind it, none of which went ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_chunk_overtakes_what_the_bus_did_not_take() {
    let default = TopicSettings { format: Some(Format::Events), partitions: 1, ..TopicSettings::default() };
    let topics = Topics { default, ..Topics::default() };
    let server = Server::start(Settings { topics, ..Settings::default() }).await;
    let data: String = (0..900).map(|n| format!("{n:04} {}\n", "x".repeat(994))).collect();
    let lines = chunk(1, 0, &data);
    let times = Times::default();
    let counts: Vec<usize> = codec::records(&lines, Format::Events, &times).map(|part| part.iter().count()).collect();
    assert!(counts.len() > 2, "{counts:?}");
    let (first, whole) = (counts[0] as u64, 900);
    server.bus.refuse_at_once.store(counts[0] + 1, Ordering::SeqCst);
    let mut push = server.push().await;
    push.send(lines);
    assert_eq!(push.ack().await.end_offset, data.len() as u64);
    let line = |record: &Record| record.header("logmesh-range").unwrap().to_vec();
    let found: Vec<Vec<u8>> = server.records("logs").await.iter().map(|(_, record)| line(record)).collect();
    let expected = (0..first).chain(0..whole).map(|n| format!("{}-{}", n * 1_000, (n + 1) * 1_000).into_bytes());
    assert!(found.iter().eq(expected.collect::<Vec<_>>().iter()), "{} records", found.len());
}

/// What was acked before and is sent once more neither holds up what is new, nor vouches for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_repeated_stands_apart_from_the_order() {
    let server = Server::start(Settings::default()).await;
    let mut push = server.push().await;
    push.send(chunk(1, 0, "a\n"));
    push.ack().await;
    let repeated = |crc| Chunk { repeated: true, crc32c: crc, ..chunk(1, 0, "a\n") };
    let good = chunk(1, 0, "a\n").crc32c;
    push.send(repeated(7));
    push.send(chunk(1, 2, "b\n"));
    push.send(Chunk { crc32c: 7, ..chunk(1, 4, "c\n") });
    push.send(repeated(good));
    push.send(chunk(1, 6, "d\n"));
    let (mut acks, mut rejects) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        match push.answer().await.unwrap().unwrap() {
            Response::Ack(ack) => acks.push(ack.end_offset),
            Response::Reject(reject) => rejects.push((reject.start_offset, reject.reason)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(acks, [4, 2]);
    let expected = [(0, "BAD_CHECKSUM"), (4, "BAD_CHECKSUM"), (6, "AFTER_REJECTED")];
    assert_eq!(rejects, expected.map(|(start, reason)| (start, reason.to_owned())));
    let records = server.records("logs").await;
    let marked = records.iter().filter(|(_, record)| record.header("logmesh-repeated").is_some());
    assert_eq!((records.len(), marked.count()), (3, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_bus_refuses_for_good_is_rejected_and_holds_up_no_other() {
    let server = Server::start(Settings::default()).await;
    let mut push = server.push().await;
    let other = |start, data| Chunk { topic: "other".to_owned(), ..chunk(1, start, data) };
    push.send(other(0, "a\n"));
    push.ack().await;
    *server.bus.forbidden.lock().unwrap() = Some("other".parse().unwrap());
    push.send(other(2, "b\n"));
    push.send(other(4, "c\n"));
    push.send(chunk(2, 0, "d\n"));
    let mut reasons = Vec::new();
    for _ in 0..2 {
        let Some(Response::Reject(reject)) = push.answer().await.unwrap() else { panic!("not rejected") };
        reasons.push((reject.start_offset, reject.end_offset, reject.reason));
    }
    assert_eq!(reasons, [(2, 4, "TOPIC_REFUSED".to_owned()), (4, 6, "AFTER_REJECTED".to_owned())]);
    assert_eq!(push.ack().await.stream_id, format!("{:032x}", 2), "another stream goes on");

    // What was sent before the agent heard of it may be stored; it must not be acked before the one rejected is there.
    *server.bus.forbidden.lock().unwrap() = None;
    push.send(other(4, "c\n"));
    let Some(Response::Reject(reject)) = push.answer().await.unwrap() else { panic!("not rejected") };
    assert_eq!((reject.start_offset, reject.reason.as_str()), (4, "AFTER_REJECTED"));
    push.send(other(2, "b\n"));
    push.send(other(4, "c\n"));
    assert_eq!((push.ack().await.end_offset, push.ack().await.end_offset), (4, 6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_of_one_byte_wait_too_once_there_are_many() {
    let server = Server::start(Settings::default()).await;
    let mut push = server.push().await;
    push.open().await;
    server.bus.held.send_replace(true);
    for n in 0..9_000 {
        push.send(chunk(1, n, "\n"));
    }
    // The queue's and the one that the acker waits for.
    while server.bus.appends.load(Ordering::SeqCst) < 8_193 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::select! {
        answer = push.answer() => panic!("answered {answer:?} while the bus holds everything"),
        () = tokio::time::sleep(Duration::from_millis(100)) => {}
    }
    assert_eq!(server.bus.appends.load(Ordering::SeqCst), 8_193);
    server.bus.held.send_replace(false);
    for n in 0..9_000 {
        assert_eq!(push.ack().await.end_offset, n + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_far_off_makes_no_slices_of_its_own() {
    let server = Server::start(Settings::default()).await;
    let mut push = server.push().await;
    for (offset, seconds) in [(0, 0), (2, 9_000_000_000)] {
        let read_time = Some(prost_types::Timestamp { seconds, nanos: 0 });
        push.send(Chunk { read_time, ..chunk(1, offset, "a\n") });
        push.ack().await;
    }
    let records = server.records("logs").await;
    records.iter().for_each(|(_, record)| assert_times(record, None));
    let times: Vec<i64> = records.iter().map(|(_, r)| stored_chunk(r).read_time.unwrap().seconds).collect();
    let tomorrow = logmesh_types::UnixNanos::now().0 / 1_000_000_000 + 86_400;
    assert_eq!(times[0], 946_684_800);
    assert!((tomorrow - 60..=tomorrow).contains(&times[1]), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_sends_a_go_away_and_the_last_acks() {
    let server = Server::start(Settings::default()).await;
    let mut push = server.push().await;
    push.send(chunk(1, 0, "a\n"));
    push.ack().await;
    server.tasks.shutdown();
    let Some(Response::GoAway(go_away)) = push.answer().await.unwrap() else { panic!("no go-away") };
    assert_eq!(go_away.reason, "SHUTTING_DOWN");
    push.send(chunk(1, 2, "b\n"));
    push.end();
    assert_eq!(push.ack().await.end_offset, 4);
    assert_eq!(push.answer().await.unwrap(), None);
    server.tasks.finish(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_its_age_is_asked_to_go_and_then_cut() {
    let settings = Settings {
        max_stream_age: Span(Duration::from_millis(50)),
        drain: Span(Duration::from_millis(50)),
        ..Settings::default()
    };
    let server = Server::start(settings).await;
    let mut push = server.push().await;
    let Some(Response::GoAway(go_away)) = push.answer().await.unwrap() else { panic!("no go-away") };
    assert_eq!(go_away.reason, "STREAM_AGE");
    assert_eq!(push.answer().await.unwrap(), None, "cut though the agent doesn't end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_topics_have_a_limit() {
    let server = Server::start(Settings { max_streams: 1, max_topics: 1, ..Settings::default() }).await;
    let mut push = server.push().await;
    push.open().await;
    let status = server.client.clone().push(tokio_stream::pending()).await.unwrap_err();
    assert_eq!(logmesh_grpc::reason(&status).as_deref(), Some("TOO_MANY_STREAMS"));
    push.send(chunk(1, 0, "a\n"));
    push.ack().await;
    push.send(Chunk { topic: "another".to_owned(), ..chunk(2, 0, "a\n") });
    let Some(Response::Reject(reject)) = push.answer().await.unwrap() else { panic!("not rejected") };
    assert_eq!(reject.reason, "TOO_MANY_TOPICS");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_of_events_gets_a_record_for_each() {
    let default = TopicSettings { format: Some(Format::Events), partitions: 2, ..TopicSettings::default() };
    let topics = Topics { default, ..Topics::default() };
    let server = Server::start(Settings { topics, ..Settings::default() }).await;
    let mut push = server.push().await;
    push.send(chunk(1, 0, "a\nb\nc\n"));
    let ack = push.ack().await;
    assert_eq!((ack.end_offset, ack.positions[0].offset), (6, 2));
    let records = server.records("logs").await;
    let messages: Vec<String> = records
        .iter()
        .map(|(_, record)| match decode(record).unwrap() {
            Content::Event(event) => String::from_utf8(event.body.to_vec()).unwrap(),
            Content::Chunk(_) => panic!("a chunk"),
        })
        .collect();
    assert!(messages[1].contains("\"message\":\"b\""), "{messages:?}");
    assert_eq!(messages.len(), 3);
    records.iter().for_each(|(_, record)| assert_times(record, Some(1_769_860_800)));
}
