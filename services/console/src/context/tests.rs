//! The events around one, in an embedded index, whatever their times, days, sizes and gaps.

use bytes::Bytes;
use logmesh_index::{IndexWriter, NewDoc, Outcome, Slice};
use logmesh_index_embedded::EmbeddedIndex;
use logmesh_testing::Folder;
use logmesh_types::Day;
use serde_json::{Value, json};

use super::*;

const NOON: i64 = 1_769_860_800_000_000_000;
const SECOND: i64 = 1_000_000_000;
const HOUR: i64 = 3_600 * SECOND;

struct Bench {
    index: Arc<EmbeddedIndex>,
    _folder: Folder,
}

impl Bench {
    async fn new() -> Self {
        let folder = Folder::new();
        let index = Arc::new(EmbeddedIndex::open(&folder.join("index"), Default::default()).await.unwrap());
        Self { index, _folder: folder }
    }

    fn stream(&self, number: u8) -> Stream {
        let id = StreamId::from_bytes([number; 16]);
        Stream { index: self.index.clone(), topic: "logs".parse().unwrap(), id }
    }

    /// Writes events of a stream: their offset, length and time, each into the slice of its day.
    async fn write(&self, stream: u8, events: &[(u64, u64, i64)]) {
        let id = StreamId::from_bytes([stream; 16]);
        let doc = |(offset, length, time): &(u64, u64, i64)| {
            let time = UnixNanos(*time);
            let message = "x".repeat(usize::try_from(*length).unwrap() - 1);
            let body = json!({
                "@timestamp": time.to_string(), "message": message, "logmesh.stream": id.to_string(),
                "logmesh.offset": offset, "logmesh.length": length,
            });
            let slice = Slice { topic: "logs".parse().unwrap(), date: Day::of(time).to_string() };
            NewDoc {
                slice: slice.into(),
                id: DocId::of_event(&id, *offset, message.as_bytes()),
                body: Bytes::from(body.to_string()),
            }
        };
        let outcomes = self.index.write(events.iter().map(doc).collect()).await.unwrap();
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Created));
    }
}

fn offsets(context: &proto::GetContextResponse) -> Vec<u64> {
    let offset = |hit: &proto::Hit| {
        let document: Value = serde_json::from_str(&hit.document).unwrap();
        document["logmesh.offset"].as_u64().unwrap()
    };
    context.hits.iter().map(offset).collect()
}

#[tokio::test]
async fn events_come_in_the_order_of_the_stream_over_all_days() {
    let bench = Bench::new().await;
    // Five a day.
    let events: Vec<_> = (0..20).map(|n| (n * 10, 10, NOON + n as i64 * 5 * HOUR)).collect();
    bench.write(1, &events).await;
    bench.write(2, &[(95, 10, NOON)]).await;
    let stream = bench.stream(1);
    let context = stream.around(100, 7, 3).await.unwrap();
    assert_eq!(offsets(&context), [30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 130]);
    assert_eq!((context.position, context.more_before, context.more_after), (Some(7), true, true));
    let same = stream.around(109, 7, 3).await.unwrap();
    assert_eq!(same, context, "any byte of the event means it");
    let first = stream.around(0, 5, 0).await.unwrap();
    assert_eq!((offsets(&first), first.position, first.more_before, first.more_after), (vec![0], Some(0), false, true));
    let last = stream.around(190, 2, 5).await.unwrap();
    assert_eq!((offsets(&last), last.position, last.more_after), (vec![170, 180, 190], Some(2), false));
    assert!(bench.stream(9).around(0, 5, 5).await.unwrap().hits.is_empty());
}

#[tokio::test]
async fn what_is_missing_is_left_out() {
    let bench = Bench::new().await;
    bench.write(1, &[(0, 10, NOON), (10, 10, NOON), (50, 10, NOON), (60, 10, NOON)]).await;
    let context = bench.stream(1).around(25, 1, 1).await.unwrap();
    assert_eq!((offsets(&context), context.position), (vec![10, 50], None));
    assert!(context.more_before && context.more_after);
    let behind = bench.stream(1).around(u64::MAX, 2, 2).await.unwrap();
    assert_eq!((offsets(&behind), behind.position, behind.more_after), (vec![50, 60], None, false));
}

#[tokio::test]
async fn long_events_leave_room_for_the_nearest() {
    let bench = Bench::new().await;
    let long = 600_000;
    let events: Vec<_> = (0..9).map(|n| (n * long, long, NOON - n as i64 * SECOND)).collect();
    bench.write(1, &events).await;
    let context = bench.stream(1).around(4 * long, 4, 4).await.unwrap();
    let places: Vec<u64> = offsets(&context).iter().map(|offset| offset / long).collect();
    assert_eq!((places, context.position), (vec![3, 4, 5, 6], Some(1)), "though times go backwards");
    assert!(context.more_before && context.more_after);
}

#[tokio::test]
async fn copies_of_an_event_stand_side_by_side() {
    let bench = Bench::new().await;
    bench.write(1, &[(0, 10, NOON), (10, 11, NOON), (10, 12, NOON + SECOND), (10, 13, NOON - SECOND)]).await;
    bench.write(1, &[(30, 10, NOON), (40, 10, NOON)]).await;
    let context = bench.stream(1).around(30, 4, 0).await.unwrap();
    assert_eq!((offsets(&context), context.position), (vec![0, 10, 10, 10, 30], Some(4)));
    let fewer = bench.stream(1).around(30, 2, 0).await.unwrap();
    assert_eq!((offsets(&fewer), fewer.more_before), (vec![10, 10, 30], true));
}

/// Whatever the times say, these are the nearest by offset.
#[tokio::test]
async fn the_nearest_are_found_whatever_the_times() {
    let bench = Bench::new().await;
    let mut state = 7_u64;
    let mut draw = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for stream in 0..40 {
        let (mut events, mut offset) = (Vec::new(), 0);
        for _ in 0..60 {
            let length = 1 + draw(30);
            // Some aren't in the index.
            if draw(4) > 0 {
                events.push((offset, length, NOON + draw(50) as i64 * HOUR / 10));
            }
            offset += length;
        }
        bench.write(stream, &events).await;
        for _ in 0..4 {
            let (at, before, after) = (draw(offset), draw(20) as usize, draw(20) as usize);
            let starts: Vec<u64> = events.iter().map(|event| event.0).collect();
            let split = starts.partition_point(|start| *start <= at);
            let holds = split > 0 && at < events[split - 1].0 + events[split - 1].1;
            let middle = split - usize::from(holds);
            let (from, to) = (middle.saturating_sub(before), (split + after).min(starts.len()));
            let context = bench.stream(stream).around(at, before, after).await.unwrap();
            assert_eq!(offsets(&context), starts[from..to], "stream {stream} at {at}");
            assert_eq!(context.position, holds.then_some((middle - from) as u32));
            assert_eq!((context.more_before, context.more_after), (from > 0, to < starts.len()));
        }
    }
}

#[test]
fn a_bad_request_names_its_field() {
    let good = proto::GetContextRequest { topic: "logs".into(), stream_id: "0".repeat(32), ..Default::default() };
    let wanted = Wanted::read(&good).unwrap();
    assert_eq!((wanted.before, wanted.after), (DEFAULT_EVENTS, DEFAULT_EVENTS));
    let many = proto::GetContextRequest { before: Some(i32::MAX), after: Some(0), ..good.clone() };
    let many = Wanted::read(&many).unwrap();
    assert_eq!((many.before, many.after), (MAX_EVENTS, 0));
    for (request, field) in [
        (proto::GetContextRequest { topic: String::new(), ..good.clone() }, "topic"),
        (proto::GetContextRequest { stream_id: "7".into(), ..good.clone() }, "stream_id"),
        (proto::GetContextRequest { stream_id: String::new(), ..good.clone() }, "stream_id"),
        (proto::GetContextRequest { id: "x".into(), ..good.clone() }, "id"),
        (proto::GetContextRequest { before: Some(-1), ..good }, "before"),
    ] {
        let said = logmesh_grpc::describe(&Wanted::read(&request).unwrap_err());
        assert!(said.contains(&format!("{field}: ")), "{said}");
    }
}
