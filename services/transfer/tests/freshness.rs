//! How fresh the index is, as a worker tells it: what is new is measured, what comes again isn't.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod mesh;

use logmesh_bus::NewRecord;
use logmesh_proto::transfer::v1::{GetFreshnessRequest, GetFreshnessResponse, Hop};
use logmesh_record::{Times, codec, document};
use logmesh_types::UnixNanos;
use mesh::{Mesh, chunk};
use tonic::Code;

const ALL: [Hop; 6] =
    [Hop::FileToAgent, Hop::AgentToGateway, Hop::GatewayToBus, Hop::BusToTransfer, Hop::TransferToIndex, Hop::Total];

/// Events on which each hop was measured.
fn events(answer: &GetFreshnessResponse) -> Vec<(Hop, u64)> {
    answer.topics[0].hops.iter().map(|hop| (hop.hop(), hop.events)).collect()
}

fn ago(millis: i64) -> Option<UnixNanos> {
    Some(UnixNanos(UnixNanos::now().0 - millis * 1_000_000))
}

fn stamped(mut records: Vec<NewRecord>) -> Vec<NewRecord> {
    let times = Times { written: ago(4_000), read: ago(2_000), received: ago(1_000) };
    records.iter_mut().for_each(|record| times.stamp(record));
    records
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_formats_are_measured_once_whatever_comes_again() {
    let mesh = Mesh::start().await;
    let (first, second) = (chunk(0, "one\ntwo\n", 0), chunk(8, "three\n", 0));
    let documents = document::of_chunk(&second);
    let records = [vec![codec::encode_chunk(&first)], documents.iter().map(codec::encode_event).collect()].concat();
    let records = stamped(records);
    let mut last = None;
    for record in &records {
        last = Some(mesh.append(record.clone()).await);
    }
    mesh.done(last.as_ref().unwrap()).await;
    let mut client = mesh.client();
    let answer = client.get_freshness(GetFreshnessRequest::default()).await.unwrap().into_inner();
    assert_eq!(events(&answer), ALL.map(|hop| (hop, 3)));
    let total = &answer.topics[0].hops[5];
    assert!(total.p50.unwrap().seconds >= 3 && total.p99.unwrap().seconds < 60, "{total:?}");
    assert_eq!((answer.topics[0].topic.as_str(), answer.unreachable_workers.len()), ("logs", 0));

    // The same ranges, sent again and repaired; and an event that was never there, by a repair.
    let missing = document::of_chunk(&chunk(14, "four\n", 0));
    let missing = missing.iter().map(codec::encode_event).map(codec::repeated).collect();
    let again = [records.clone(), records.into_iter().map(codec::repeated).collect(), stamped(missing)];
    for record in again.concat() {
        last = Some(mesh.append(record).await);
    }
    mesh.done(&last.unwrap()).await;
    assert_eq!(mesh.messages().await.len(), 4);
    let request = GetFreshnessRequest { topic: "logs".into(), this_worker_only: true };
    let answer = client.get_freshness(request).await.unwrap().into_inner();
    assert_eq!(events(&answer), ALL.map(|hop| (hop, 3)), "nothing of it is new");
    assert_eq!(answer.topics[0].hops[0].bucket_events, [3], "what others can add to theirs");
    let unknown = GetFreshnessRequest { topic: "none".into(), this_worker_only: false };
    assert_eq!(client.get_freshness(unknown).await.unwrap_err().code(), Code::NotFound);
    mesh.stop_transfer().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_without_news_is_named_and_records_of_older_gateways_have_the_hops_that_they_have() {
    let mesh = Mesh::start().await;
    let mut client = mesh.client();
    let answer = client.get_freshness(GetFreshnessRequest::default()).await.unwrap().into_inner();
    assert_eq!((answer.topics[0].topic.as_str(), events(&answer)), ("logs", Vec::new()));
    let at = mesh.append(codec::encode_chunk(&chunk(0, "one\n", 0))).await;
    mesh.done(&at).await;
    let answer = client.get_freshness(GetFreshnessRequest::default()).await.unwrap().into_inner();
    assert_eq!(events(&answer), [(Hop::BusToTransfer, 1), (Hop::TransferToIndex, 1)]);
    mesh.stop_transfer().await;
}
