//! Search and live tail as a client sees them: over gRPC, on the embedded bus and index.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use logmesh_bus::Bus;
use logmesh_bus_embedded::EmbeddedBus;
use logmesh_console::{Console, Settings};
use logmesh_grpc::Routes;
use logmesh_index::{IndexWriter, NewDoc, Outcome, Slice};
use logmesh_index_embedded::EmbeddedIndex;
use logmesh_proto::ingest::v1::Event;
use logmesh_proto::search::v1::search_service_client::SearchServiceClient;
use logmesh_proto::search::v1::{FacetsRequest, HistogramRequest, SearchRequest, TailRequest};
use logmesh_proto::time::timestamp;
use logmesh_record::{Topics, codec, document};
use logmesh_runtime::Tasks;
use logmesh_testing::Folder;
use logmesh_types::{DocId, TopicName, UnixNanos};
use tonic::Code;
use tonic::transport::Channel;

const NOON: i64 = 1_769_860_800_000_000_000;

struct Server {
    client: SearchServiceClient<Channel>,
    bus: Arc<EmbeddedBus>,
    index: Arc<EmbeddedIndex>,
    topic: TopicName,
    tasks: Tasks,
    _folder: Folder,
}

impl Server {
    async fn start(settings: Settings) -> Self {
        let folder = Folder::new();
        let bus = Arc::new(EmbeddedBus::open(&folder.join("bus"), Default::default()).unwrap());
        let index = Arc::new(EmbeddedIndex::open(&folder.join("index"), Default::default()).await.unwrap());
        let topic: TopicName = "logs".parse().unwrap();
        for spec in Topics::default().specs(&topic) {
            bus.ensure_topic(&spec).await.unwrap();
        }
        let tasks = Tasks::new();
        let console = Console::start(bus.clone(), index.clone(), &settings, &tasks).unwrap();
        let mut routes = Routes::new();
        console.add_to(&mut routes);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let token = tasks.token();
        tasks.spawn("grpc", async move { Ok(logmesh_grpc::serve(listener, routes, token).await?) });
        let client = SearchServiceClient::new(logmesh_grpc::channel(&address).unwrap());
        Self { client, bus, index, topic, tasks, _folder: folder }
    }

    async fn write(&self, messages: &[&str]) {
        self.write_at(NOON, messages).await;
    }

    /// Writes documents a second apart.
    async fn write_at(&self, first: i64, messages: &[&str]) {
        let slice = Arc::new(Slice { topic: self.topic.clone(), date: "2026-01-31".to_owned() });
        let docs = messages.iter().zip(0..).map(|(message, number)| {
            let time = UnixNanos(first + number * 1_000_000_000);
            let body = serde_json::json!({"@timestamp": time.to_string(), "message": message});
            let id = DocId::of_client_event("logs", message);
            NewDoc { slice: slice.clone(), id, body: Bytes::from(body.to_string()) }
        });
        let outcomes = self.index.write(docs.collect()).await.unwrap();
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Created));
    }

    async fn append(&self, message: &str) {
        let event = Event { message: message.to_owned(), ..Event::default() };
        let taken = UnixNanos::now();
        let record = codec::encode_event(&document::of_event("logs", &event, taken, &Default::default()));
        self.bus.append(&self.topic, record).await.unwrap().await.unwrap();
    }

    async fn stop(self) {
        self.tasks.shutdown();
        self.tasks.finish(Duration::from_secs(20)).await.unwrap();
    }
}

fn messages(documents: impl IntoIterator<Item = logmesh_proto::search::v1::Hit>) -> Vec<String> {
    let message = |hit: logmesh_proto::search::v1::Hit| {
        let document: serde_json::Value = serde_json::from_str(&hit.document).unwrap();
        document["message"].as_str().unwrap().to_owned()
    };
    documents.into_iter().map(message).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_come_newest_first_in_pages() {
    let mut server = Server::start(Settings::default()).await;
    server.write(&["one error", "two", "three error", "four error"]).await;
    let ask = SearchRequest { query: "error".into(), page_size: 2, ..Default::default() };
    let first = server.client.search(ask.clone()).await.unwrap().into_inner();
    assert_eq!(first.total, 3);
    let second = SearchRequest { page_token: first.next_page_token.clone(), ..ask.clone() };
    let second = server.client.search(second).await.unwrap().into_inner();
    assert_eq!(messages(first.hits), ["four error", "three error"]);
    assert_eq!(messages(second.hits), ["one error"]);
    assert_eq!(second.next_page_token, "");
    let within = SearchRequest { end_time: Some(timestamp(UnixNanos(NOON + 1))), ..ask.clone() };
    assert_eq!(server.client.search(within).await.unwrap().into_inner().total, 1);
    let count = SearchRequest { count_only: true, ..ask };
    let count = server.client.search(count).await.unwrap().into_inner();
    assert_eq!((count.hits.len(), count.total), (0, 3));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_up_to_now_stays_while_it_is_paged_through() {
    let mut server = Server::start(Settings::default()).await;
    let hour = 3_600 * 1_000_000_000;
    server.write_at(UnixNanos::now().0 - hour + 1_000_000_000, &["ages out", "stays"]).await;
    let ask = SearchRequest { query: "@timestamp:>now-1h".into(), page_size: 1, ..Default::default() };
    let first = server.client.search(ask.clone()).await.unwrap().into_inner();
    assert_eq!((first.total, messages(first.hits)), (2, vec!["stays".to_owned()]));
    while server.client.search(ask.clone()).await.unwrap().into_inner().total == 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let second = SearchRequest { page_token: first.next_page_token, ..ask };
    assert_eq!(messages(server.client.search(second).await.unwrap().into_inner().hits), ["ages out"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_large_documents_stays_below_what_clients_decode() {
    let mut server = Server::start(Settings::default()).await;
    let large: Vec<String> = (0..8).map(|n| format!("{n} {}", "x".repeat(1_000_000))).collect();
    server.write(&large.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut ask = SearchRequest { query: "*".into(), page_size: 100, ..Default::default() };
    let mut found = 0;
    loop {
        let page = server.client.search(ask.clone()).await.unwrap().into_inner();
        found += page.hits.len();
        ask.page_token = page.next_page_token;
        if ask.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found, 8);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_names_its_field() {
    let mut server = Server::start(Settings::default()).await;
    for (request, field) in [
        (SearchRequest { query: "a AND (b".into(), ..Default::default() }, "query"),
        (SearchRequest { topics: vec!["ok".into(), "../x".into()], ..Default::default() }, "topics[1]"),
        (SearchRequest { page_size: -1, ..Default::default() }, "page_size"),
        (SearchRequest { page_token: "nonsense".into(), ..Default::default() }, "page_token"),
        (SearchRequest { order: 99, ..Default::default() }, "order"),
    ] {
        let status = server.client.search(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(logmesh_grpc::describe(&status).contains(field), "{}", logmesh_grpc::describe(&status));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_histogram_counts_by_interval() {
    let mut server = Server::start(Settings::default()).await;
    server.write(&["a", "b", "c"]).await;
    let interval = Some(logmesh_proto::time::duration(Duration::from_secs(2)));
    let ask = HistogramRequest { interval, ..Default::default() };
    let bars = server.client.histogram(ask).await.unwrap().into_inner().bars;
    assert_eq!(bars.iter().map(|bar| bar.count).collect::<Vec<_>>(), [2, 1]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn facets_count_the_values_of_a_field() {
    let mut server = Server::start(Settings::default()).await;
    server.write(&["a x", "b x", "c"]).await;
    let ask = FacetsRequest { query: "x".into(), field: "_topic".into(), ..Default::default() };
    let facets = server.client.facets(ask.clone()).await.unwrap().into_inner();
    let values: Vec<(&str, u64)> = facets.values.iter().map(|value| (value.value.as_str(), value.count)).collect();
    assert_eq!((values, facets.others, facets.error_bound), (vec![("logs", 2)], 0, 0));
    let none = FacetsRequest { topics: vec!["others".into()], limit: 1_000, ..ask.clone() };
    assert!(server.client.facets(none).await.unwrap().into_inner().values.is_empty());
    for (request, says) in [
        (FacetsRequest { field: String::new(), ..ask.clone() }, "field: it must name"),
        (FacetsRequest { field: "@timestamp".into(), ..ask.clone() }, "field: @timestamp holds times"),
        (FacetsRequest { limit: -1, ..ask.clone() }, "limit: "),
        (FacetsRequest { limit: 1_001, ..ask.clone() }, "limit: "),
        (FacetsRequest { query: "a AND (".into(), ..ask }, "query"),
    ] {
        let status = server.client.facets(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(logmesh_grpc::describe(&status).contains(says), "{}", logmesh_grpc::describe(&status));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_shows_what_arrives_and_matches() {
    let mut server = Server::start(Settings::default()).await;
    server.append("error before the tail").await;
    let ask = TailRequest { query: "error _topic:logs".into(), topics: vec![] };
    let mut tail = server.client.tail(ask).await.unwrap().into_inner();
    server.append("nothing").await;
    server.append("an error").await;
    let message = tail.message().await.unwrap().unwrap();
    assert_eq!((messages(message.hits), message.skipped), (vec!["an error".to_owned()], 0));
    server.stop().await;
    assert_eq!(tail.message().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn tails_are_bounded_and_a_slow_reader_is_told_what_it_missed() {
    let mut server = Server::start(Settings { max_tails: 1, ..Settings::default() }).await;
    let ask = TailRequest { query: "*".into(), topics: vec!["logs".into()] };
    let mut tail = server.client.tail(ask.clone()).await.unwrap().into_inner();
    assert_eq!(server.client.tail(ask).await.unwrap_err().code(), Code::ResourceExhausted);
    // More than all buffers on the way hold, while nobody reads.
    let large = "x".repeat(500_000);
    for _ in 0..200 {
        server.append(&large).await;
    }
    server.append("last").await;
    let (mut seen, mut skipped) = (0, 0);
    while seen + skipped < 201 {
        let message = tail.message().await.unwrap().unwrap();
        seen += message.hits.len() as i64;
        skipped += message.skipped as i64;
    }
    assert!(skipped > 0 && seen > 0, "{seen} seen, {skipped} skipped");
    server.stop().await;
}
