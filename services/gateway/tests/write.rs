//! Write over a real connection.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::sync::atomic::Ordering;

use common::Server;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use logmesh_gateway::Settings;
use logmesh_proto::ingest::v1::{Event, WriteRequest};
use logmesh_record::{Content, decode};
use logmesh_types::DocId;
use tonic::Code;
use tonic_types::StatusExt;

fn event(id: &str, message: &str) -> Event {
    Event { event_id: id.to_owned(), message: message.to_owned(), ..Event::default() }
}

fn request(topic: &str, events: Vec<Event>) -> WriteRequest {
    WriteRequest { topic: topic.to_owned(), events }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_on_the_bus_when_it_answers() {
    let mut server = Server::start(Settings::default()).await;
    let events = vec![event("", "one"), event("e-2", "two"), event("", "three")];
    let response = server.client.write(request("app", events)).await.unwrap().into_inner();
    let records = server.records("app").await;
    assert_eq!((response.positions.len(), records.len()), (3, 3));
    for (position, expected) in response.positions.iter().zip(["one", "two", "three"]) {
        let found = records.iter().find(|(p, r)| (*p, r.offset.0) == (position.partition, position.offset)).unwrap();
        let Content::Event(document) = decode(&found.1).unwrap() else { panic!("a chunk") };
        assert!(String::from_utf8(document.body.to_vec()).unwrap().contains(&format!("\"message\":\"{expected}\"")));
        let id = (expected == "two").then(|| DocId::of_client_event("app", "e-2"));
        assert_eq!(document.id, id);
    }
    assert_eq!(response.positions[0].partition, response.positions[2].partition, "those without id stay in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_is_named_and_nothing_is_stored() {
    let mut server = Server::start(Settings::default()).await;
    let long = "x".repeat((1 << 20) + 1);
    for (bad, field) in [
        (request("No", vec![event("", "m")]), "topic"),
        (request("app.books", vec![event("", "m")]), "topic"),
        (request("app", vec![]), "events"),
        (request("app", vec![event("", "m"); 10_001]), "events"),
        (request("app", vec![event("", "m"), event("", &long)]), "events[1].message"),
        (request("app", vec![event(&"i".repeat(513), "m")]), "events[0].event_id"),
    ] {
        let status = server.client.write(bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        let text = logmesh_grpc::describe(&status);
        assert!(text.contains(&format!("\n  {field}: ")), "{text}");
    }
    assert_eq!(server.bus.appends.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_fails_is_said_to_be_unavailable() {
    let mut server = Server::start(Settings::default()).await;
    server.bus.broken.store(true, Ordering::SeqCst);
    let status = server.client.write(request("app", vec![event("e", "m")])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(logmesh_grpc::reason(&status).as_deref(), Some("BUS_UNAVAILABLE"));
    server.bus.broken.store(false, Ordering::SeqCst);
    server.client.write(request("app", vec![event("e", "m")])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_calls_than_it_carries_are_turned_away_at_once_and_push_goes_on() {
    let server = Server::start(Settings { max_calls: 1, ..Settings::default() }).await;
    let mut push = server.push().await;
    server.bus.held.send_replace(true);
    let write = |number: usize| {
        let mut client = server.client.clone();
        async move { client.write(request("app", vec![event(&number.to_string(), "m")])).await }
    };
    let mut writes: FuturesUnordered<_> = (0..10).map(write).collect();
    let status = writes.next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "the bus holds those that were let in");
    assert!(status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()));
    server.bus.held.send_replace(false);
    let let_in = writes.filter(|answer| std::future::ready(answer.is_ok())).count().await;
    // How many find a place depends on how many were on their way when the first was let in.
    assert!((1..=9).contains(&let_in), "{let_in}");
    assert_eq!(server.records("app").await.len(), let_in, "what was turned away is nowhere");
    push.send(common::chunk(1, 0, "a\n"));
    push.ack().await;
}
