//! Answers that a real Elasticsearch can't be made to give, from a door before a real one: only what failed is sent again,
//! what is refused becomes a dead letter, nothing is doubled, and nothing is committed before it's in the index.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use logmesh_bus::{Bus, Position, TopicPartition};
use logmesh_index::query::Query;
use logmesh_index::{IndexReader, Selection};
use logmesh_index_elasticsearch::{ElasticIndex, Settings as ElasticSettings};
use logmesh_proto::ingest::v1::Chunk;
use logmesh_proto::transfer::v1::{DeadLetter, ListDeadLettersRequest};
use logmesh_record::{codec, document};
use logmesh_testing::faults::{Door, End, Item};
use logmesh_testing::{servers, wait_for_async};
use logmesh_transfer::GROUP;
use mesh::{Mesh, STREAM, chunk};

mod mesh;

const PARSING: (u16, &str) = (400, "document_parsing_exception");

/// Transfer into Elasticsearch through a door.
async fn through_a_door(prefix: &str) -> (Mesh, Arc<ElasticIndex>, Door) {
    let mut mesh = Mesh::start().await;
    mesh.stop_transfer().await;
    let door = Door::open(&servers::elasticsearch().address()).await;
    let settings = ElasticSettings {
        urls: vec![door.url()],
        index_prefix: format!("{prefix}-"),
        replicas: 0,
        ..ElasticSettings::default()
    };
    let index = Arc::new(ElasticIndex::new(settings).unwrap());
    mesh.start_transfer_into(index.clone()).await;
    (mesh, index, door)
}

async fn count(index: &ElasticIndex) -> u64 {
    index.refresh().await.unwrap();
    let topics = vec!["logs".parse().unwrap()];
    index.count(&Selection { query: Query::parse("*").unwrap(), from: None, to: None, topics }).await.unwrap()
}

async fn is_done(mesh: &Mesh, at: &Position) -> bool {
    let partition = TopicPartition { topic: mesh.topic.clone(), partition: at.partition };
    mesh.bus.committed(GROUP, &partition).await.unwrap() >= Some(at.offset.next())
}

async fn letters(mesh: &Mesh) -> Vec<DeadLetter> {
    let request = ListDeadLettersRequest::default();
    mesh.client().list_dead_letters(request).await.unwrap().into_inner().dead_letters
}

/// How often each document was sent, by its message.
fn sent(seen: &[(Vec<Item>, End)]) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for item in seen.iter().flat_map(|(items, _)| items) {
        let word = ["good", "busy", "shard", "poison"].into_iter().find(|word| item.body.contains(word)).unwrap();
        *times.entry(word.to_owned()).or_default() += 1;
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_failed_is_sent_again_and_committed_after() {
    let (mesh, index, door) = through_a_door("faults").await;
    // The index is made by its first document, which is so sent twice.
    let first = Chunk { stream_id: format!("{:032x}", 1), ..chunk(0, "good 0\n", 0) };
    mesh.done(&mesh.append(codec::encode_chunk(&first)).await).await;
    door.take_seen();
    let (held, mut before) = (Arc::new(AtomicBool::new(true)), HashMap::<String, u32>::new());
    let holds = held.clone();
    door.plan(move |items| {
        let fault = |item: &Item| {
            let times = before.entry(item.id.clone()).or_default();
            *times += 1;
            match item {
                one if one.body.contains("poison") => Some(PARSING),
                one if one.body.contains("shard") && *times == 1 => Some((503, "unavailable_shards_exception")),
                one if one.body.contains("busy") && holds.load(Ordering::SeqCst) => {
                    Some((429, "es_rejected_execution_exception"))
                }
                _ => None,
            }
        };
        End::Items(items.iter().map(fault).collect())
    });
    let sample = chunk(0, "good 1\nbusy 2\npoison 3\nshard 4\ngood 5\n", 0);
    let at = mesh.append(codec::encode_chunk(&sample)).await;
    wait_for_async("what's good to be in the index", Duration::from_secs(60), || async {
        let there = count(&index).await;
        if there == 4 { Ok(()) } else { Err(there.to_string()) }
    })
    .await;
    assert!(!is_done(&mesh, &at).await, "one of its events is not in the index");
    assert!(mesh.books(at.partition).await.iter().all(|book| book.stream.to_string() != STREAM));
    held.store(false, Ordering::SeqCst);
    mesh.done(&at).await;
    assert_eq!(count(&index).await, 5);
    let times = sent(&door.take_seen());
    // What is refused is sent once more, wrapped.
    assert_eq!((times["good"], times["shard"], times["poison"]), (2, 2, 2), "{times:?}");
    assert!(times["busy"] >= 2, "{times:?}");
    let letters = letters(&mesh).await;
    assert_eq!(letters.len(), 1);
    let original = &document::of_chunk(&sample)[2];
    assert_eq!(letters[0].document, original.body);
    assert_eq!(letters[0].reason, "document_parsing_exception, by the door");
    assert_eq!((letters[0].stream_id.as_str(), letters[0].start_offset, letters[0].end_offset), (STREAM, 14, 23));
    let books = mesh.books(at.partition).await;
    assert_eq!(books.last().unwrap().rejected.bytes(), 9);
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_cut_or_lost_doubles_nothing() {
    let (mesh, index, door) = through_a_door("lost").await;
    let mut bulks = 0;
    door.plan(move |_| {
        bulks += 1;
        match bulks {
            1 => End::Lost,
            2 => End::Cut,
            3 => End::Refused,
            _ => End::Pass,
        }
    });
    for n in 0..3 {
        let text: String = (0..50).map(|line| format!("good {line} of {n}\n")).collect();
        let chunk = Chunk { stream_id: format!("{n:032x}"), ..chunk(0, &text, n) };
        let at = mesh.append(codec::encode_chunk(&chunk)).await;
        mesh.done(&at).await;
        assert_eq!(count(&index).await, 50 * (n as u64 + 1));
    }
    assert!(letters(&mesh).await.is_empty());
    assert!(door.take_seen().len() >= 6, "three were sent again");
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn less_is_asked_of_a_busy_index_and_more_again_of_a_healthy_one() {
    const TAKES: usize = 3_000;
    let (mesh, index, door) = through_a_door("pace").await;
    door.plan(|items| if items.len() > TAKES { End::All(429) } else { End::Pass });
    let mut written = 0;
    let mut append = async |streams: std::ops::Range<u64>| {
        let mut last = Vec::new();
        for n in streams {
            let text = "good\n".repeat(10_000);
            let chunk = Chunk { stream_id: format!("{n:032x}"), ..chunk(0, &text, 0) };
            last.push(mesh.append(codec::encode_chunk(&chunk)).await);
            written += 10_000;
        }
        for at in last {
            mesh.done(&at).await;
        }
        written
    };
    let first = append(0..2).await;
    assert_eq!(count(&index).await, first);
    let seen = door.take_seen();
    let largest = |taken: bool| {
        let of_end = seen.iter().filter(|(_, end)| matches!(end, End::Pass) == taken);
        of_end.map(|(items, _)| items.len()).max().unwrap_or_default()
    };
    assert!(largest(false) > TAKES && (TAKES / 4..=TAKES).contains(&largest(true)), "{seen:?}", seen = seen.len());
    door.plan(|_| End::Pass);
    let mut streams = 2;
    let sizes = loop {
        append(streams..streams + 1).await;
        streams += 1;
        let sizes: Vec<usize> = door.take_seen().iter().map(|(items, _)| items.len()).collect();
        if sizes.iter().any(|size| *size > TAKES) || streams > 20 {
            break sizes;
        }
    };
    assert!(sizes.iter().any(|size| *size > TAKES), "grown again: {sizes:?}");
    assert_eq!(count(&index).await, streams * 10_000);
    mesh.stop_transfer().await;
}

/// The second bulk is written while the first is held up. What is booked and committed comes in their order, and what comes again
/// under another date waits until it can be found.
#[tokio::test(flavor = "multi_thread")]
async fn bulks_are_written_side_by_side_and_booked_in_their_order() {
    let (mut mesh, index, door) = through_a_door("aside").await;
    mesh.stop_transfer().await;
    mesh.settings.bulk_documents = 3;
    mesh.start_transfer_into(index.clone()).await;
    let held = Arc::new(Mutex::new(vec!["busy", "shard"]));
    let holds = held.clone();
    door.plan(move |items| {
        let fault = |item: &Item| match item {
            one if one.body.contains("poison") => Some(PARSING),
            one if holds.lock().unwrap().iter().any(|word| one.body.contains(word)) => {
                Some((429, "es_rejected_execution_exception"))
            }
            _ => None,
        };
        End::Items(items.iter().map(fault).collect())
    });
    let (one, two) = ("poison 1\nshard 2\ngood 3\n", "good 4\nbusy 5\ngood 6\n");
    let first = mesh.append(codec::encode_chunk(&chunk(0, one, 0))).await;
    let second = mesh.append(codec::encode_chunk(&chunk(one.len() as u64, two, 0))).await;
    let indexed = async |documents| {
        wait_for_async("documents to be in the index", Duration::from_secs(60), || async {
            let there = count(&index).await;
            if there == documents { Ok(()) } else { Err(there.to_string()) }
        })
        .await
    };
    indexed(3).await;
    let again = mesh.append(codec::encode_chunk(&chunk(0, one, 1))).await;
    assert!(!is_done(&mesh, &first).await);
    assert!(mesh.books(first.partition).await.is_empty());
    held.lock().unwrap().retain(|word| *word == "busy");
    mesh.done(&first).await;
    let book = mesh.books(first.partition).await.pop().unwrap();
    assert_eq!((book.done.bytes(), book.rejected.bytes()), (one.len() as u64, 9), "what is in the index, and no more");
    assert_eq!(book.slices.known(), book.done.without(&book.rejected), "where all lies but what was refused");
    assert!(!is_done(&mesh, &second).await);
    held.lock().unwrap().clear();
    mesh.done(&again).await;
    assert_eq!((count(&index).await, letters(&mesh).await.len()), (5, 2), "once, whatever the date");
    let book = mesh.books(first.partition).await.pop().unwrap();
    assert_eq!((book.watermark(), book.rejected.bytes()), ((one.len() + two.len()) as u64, 9));
    mesh.stop_transfer().await;
}
