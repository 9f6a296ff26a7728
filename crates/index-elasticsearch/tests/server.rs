//! A real Elasticsearch that is full, blocked, killed, frozen, or wants to know who asks.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test, its helpers too

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use logmesh_index::conformance::{Doc, selection, slice, topic};
use logmesh_index::{
    FieldType, IndexError, IndexReader, IndexRepair, IndexWriter, NewDoc, Order, Outcome, PageLimit, Place, Selection,
};
use logmesh_index_elasticsearch::{ElasticIndex, Settings};
use logmesh_testing::servers::{self, Elasticsearch, Server};
use logmesh_testing::wait_for_async;
use logmesh_types::{ByteRange, DocId, Span};
use reqwest::{Client, Method};
use rustix::process::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

fn settings(server: &Server) -> Settings {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    Settings {
        urls: vec![format!("http://{}", server.address())],
        index_prefix: format!("s{}-", NEXT.fetch_add(1, Ordering::Relaxed)),
        replicas: 0,
        // The disk of a busy machine is slow now and then.
        request_timeout: Span(Duration::from_secs(120)),
        ..Settings::default()
    }
}

fn index(settings: &Settings) -> ElasticIndex {
    ElasticIndex::new(settings.clone()).unwrap()
}

/// A call of an operator's.
async fn call(server: &Server, method: Method, path: &str, body: Value) -> Value {
    let url = format!("http://{}/{path}", server.address());
    let mut request = Client::new().request(method, url);
    if !body.is_null() {
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    let text = request.send().await.unwrap().text().await.unwrap();
    serde_json::from_str(&text).unwrap_or(Value::from(text))
}

async fn found(index: &ElasticIndex, text: &str) -> usize {
    index.refresh().await.unwrap();
    index.search(&selection(text), Order::OldestFirst, PageLimit::hits(1_000), None).await.unwrap().hits.len()
}

fn docs(range: std::ops::Range<i64>, text: &str) -> Vec<NewDoc> {
    range.map(|n| Doc::new(n, text).build()).collect()
}

fn unavailable<T: std::fmt::Debug>(result: Result<T, IndexError>) -> String {
    match result {
        Err(IndexError::Unavailable { reason }) => reason,
        other => panic!("not unavailable: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_index_takes_documents_later() {
    let server = servers::elasticsearch();
    let settings = settings(server);
    let index = index(&settings);
    assert_eq!(index.write(docs(0..1, "x")).await.unwrap(), [Outcome::Created]);
    let block = |block: Value| json!({ "index.blocks.read_only_allow_delete": block });
    let path = format!("{}logs@2026.01.31/_settings", settings.index_prefix);
    // What a full disk does.
    call(server, Method::PUT, &path, block(json!(true))).await;
    let outcomes = index.write(docs(0..3, "x")).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Busy { .. })), "{outcomes:?}");
    assert_eq!(found(&index, "x").await, 1);
    call(server, Method::PUT, &path, block(Value::Null)).await;
    assert_eq!(index.write(docs(0..2, "x")).await.unwrap(), [Outcome::Duplicate, Outcome::Created]);
    // An operator closed it.
    call(server, Method::POST, &format!("{}logs@2026.01.31/_close", settings.index_prefix), Value::Null).await;
    let outcomes = index.write(docs(0..1, "x")).await.unwrap();
    assert!(matches!(outcomes[..], [Outcome::Busy { .. }]), "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_index_is_made_without_our_mapping() {
    let server = servers::elasticsearch();
    let settings = settings(server);
    let prefix = &settings.index_prefix;
    let index = index(&settings);
    let types = [("status".to_owned(), FieldType::Long)].into();
    index.ensure_topic(&topic("logs"), &types).await.unwrap();
    assert_eq!(index.write(docs(0..1, "x")).await.unwrap(), [Outcome::Created]);
    for round in 1..3 {
        // Somebody removes all that there is, and the writer isn't told.
        let template = call(server, Method::DELETE, &format!("_index_template/{prefix}logs"), Value::Null).await;
        assert_eq!(template["acknowledged"], true);
        ElasticIndex::new(settings.clone()).unwrap().delete_slice(&slice("logs", "2026-01-31")).await.unwrap();
        let doc = Doc::new(round, "x").with("attributes.status", json!(7)).with("unheard.of", json!("y"));
        assert_eq!(index.write(vec![doc.build()]).await.unwrap(), [Outcome::Created]);
        assert_eq!(found(&index, "attributes.status:>6 unheard.of:y").await, 1);
        let held = call(server, Method::GET, &format!("{prefix}logs@2026.01.31"), Value::Null).await;
        let held = &held[format!("{prefix}logs@2026.01.31")];
        assert_eq!(held["mappings"]["dynamic"], "false");
        assert_eq!(held["mappings"]["properties"]["attributes"]["properties"]["status"]["type"], "long");
        assert!(held["mappings"]["properties"].get("unheard").is_none());
        assert_eq!(held["settings"]["index"]["translog"]["durability"], "request");
        assert_eq!(held["settings"]["index"]["refresh_interval"], "1s");
        assert_eq!(index.field_types(&topic("logs")).await.unwrap(), types);
    }
}

/// Nobody refreshes here but the server itself, every second; a look-up by id waits for no such thing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_found_soon_and_looked_up_at_once() {
    let settings = settings(servers::elasticsearch());
    let (writer, reader) = (index(&settings), index(&settings));
    assert_eq!(reader.topics().await.unwrap(), []);
    for n in 0..3 {
        assert_eq!(writer.write(docs(n..n + 1, "x")).await.unwrap(), [Outcome::Created]);
        let ids = [Doc::new(n, "").id(), Doc::new(n + 1, "").id()];
        assert_eq!(reader.contains(&topic("logs"), &ids).await.unwrap(), [true, false]);
    }
    writer.write(docs(3..4, "x")).await.unwrap();
    wait_for_async("the document to be found", PATIENCE, || async {
        match reader.count(&selection("x")).await.unwrap() {
            4 => Ok(()),
            count => Err(format!("{count} are found")),
        }
    })
    .await;
}

/// More topics than fit into a URL are asked all the same, each for what its fields mean.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_topics_are_searched_together() {
    let index = index(&settings(servers::elasticsearch()));
    let name = |n: i64| format!("{n:02}-{}", "long".repeat(15));
    let types = [("status".to_owned(), FieldType::Long)].into();
    let mut docs = Vec::new();
    for n in 0..34 {
        if n % 2 == 0 {
            index.ensure_topic(&topic(&name(n)), &types).await.unwrap();
        }
        let doc = Doc::new(n, "x").with("attributes.status", json!(10 + n)).in_slice(slice(&name(n), "2026-01-31"));
        docs.push(doc.build());
    }
    index.write(docs).await.unwrap();
    let some = |text: &str, topics: std::ops::Range<i64>| Selection {
        topics: topics.map(|n| topic(&name(n))).collect(),
        ..selection(text)
    };
    // A number where it's declared; else a text, of which "9" is the greatest here.
    assert_eq!(found(&index, "x").await, 34);
    assert_eq!(index.count(&some("x", 0..33)).await.unwrap(), 33);
    assert_eq!(index.count(&some("x", 3..5)).await.unwrap(), 2);
    assert_eq!(index.count(&selection("attributes.status:<9")).await.unwrap(), 17);
    assert_eq!(index.count(&some("attributes.status:<9", 0..33)).await.unwrap(), 16);
    assert_eq!(index.count(&some("_topic:0*", 0..33)).await.unwrap(), 10);
    // Numbers here and texts there are counted apart.
    for (selection, values) in [(selection("x"), 34), (some("x", 1..34), 33), (some("x", 3..5), 2)] {
        let facets = index.facets(&selection, "attributes.status", 1_000).await.unwrap();
        assert_eq!((facets.values.len(), facets.others, facets.error_bound), (values, 0, 0));
        assert!(facets.values.iter().all(|facet| facet.count == 1));
        assert_eq!(index.facets(&selection, "_topic", 1_000).await.unwrap().values.len(), values);
    }
}

/// An index that an older version made is there for as long as its documents are kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_index_is_searched_and_says_what_it_cannot_count() {
    let server = servers::elasticsearch();
    let settings = settings(server);
    let index = index(&settings);
    let path = format!("{}old@2026.01.30", settings.index_prefix);
    let old = json!({ "dynamic": false, "properties": { "logmesh.derived.values": { "type": "keyword", "doc_values": false } } });
    assert_eq!(call(server, Method::PUT, &path, json!({ "mappings": old })).await["acknowledged"], true);
    let doc =
        |n, name| Doc::new(n, "x").with("parsed", json!({ "a": "b" })).in_slice(slice(name, "2026-01-30")).build();
    assert_eq!(index.write(vec![doc(1, "old"), doc(2, "new")]).await.unwrap(), [Outcome::Created, Outcome::Created]);
    assert_eq!(found(&index, "parsed.a:b").await, 2);
    let refused = index.facets(&selection("*"), "parsed.a", 10).await;
    assert!(matches!(&refused, Err(IndexError::NotCountable { reason }) if reason.contains("older")), "{refused:?}");
    let new = Selection { topics: vec![topic("new")], ..selection("*") };
    assert_eq!(index.facets(&new, "parsed.a", 10).await.unwrap().values.len(), 1);
}

/// An index that somebody made before us holds our documents, mapped as Elasticsearch guesses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_is_mapped_otherwise_is_named_with_the_field() {
    let server = servers::elasticsearch();
    let settings = settings(server);
    let index = index(&settings);
    let day = format!("{}logs@2026.01.31", settings.index_prefix);
    let theirs = json!({ "mappings": { "properties": { "message": { "type": "long" } } } });
    assert_eq!(call(server, Method::PUT, &day, theirs).await["acknowledged"], true);
    assert_eq!(index.write(docs(1..2, "5")).await.unwrap(), [Outcome::Created]);
    index.refresh().await.unwrap();
    let (logs, file) = (topic("logs"), logmesh_index::conformance::stream(1));
    let limit = PageLimit::hits(1);
    for refused in [
        index.sums(&logs, &[(file, u64::MAX)]).await.map(drop),
        index.search(&selection("*"), Order::OldestFirst, limit, None).await.map(drop),
    ] {
        let said = refused.unwrap_err().to_string();
        assert!(said.contains(&format!("{day}: its field logmesh.stream is of type text, not keyword")), "{said}");
    }
}

/// An index of somebody else's that is named like one of ours is no reason to stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_passed_over() {
    let server = servers::elasticsearch();
    let settings = settings(server);
    let index = index(&settings);
    index.write(docs(0..3, "x")).await.unwrap();
    for n in 0..3 {
        let document = json!({ "message": "x", "@timestamp": "2026-02-01T00:00:00Z" });
        let path = format!("{}logs@stranger/_doc/{n}", settings.index_prefix);
        assert_eq!(call(server, Method::PUT, &path, document).await["result"], "created");
    }
    index.refresh().await.unwrap();
    for bytes in [1, usize::MAX] {
        let limit = PageLimit { hits: 2, bytes };
        for order in [Order::NewestFirst, Order::OldestFirst] {
            let (mut count, mut token) = (0, None);
            loop {
                let page = index.search(&selection("*"), order, limit, token.as_deref()).await.unwrap();
                count += page.hits.len();
                token = page.next_page_token;
                if token.is_none() {
                    break;
                }
            }
            assert_eq!(count, 3);
        }
    }
    assert_eq!(index.topics().await.unwrap(), [topic("logs")]);
}

/// A document by hand with several lengths keeps nobody from the sums: they're those of a fault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_of_several_lengths_is_in_the_sums() {
    let server = servers::elasticsearch();
    let settings = settings(server);
    let index = index(&settings);
    index.write(vec![Doc::new(10, "x").build()]).await.unwrap();
    let sums = async || {
        let asked = [(logmesh_index::conformance::stream(1), u64::MAX)];
        index.sums(&topic("logs"), &asked).await.unwrap().remove(0)
    };
    let before = sums().await;
    let mut body: Value = serde_json::from_slice(&Doc::new(10, "x").build().body).unwrap();
    body["logmesh.length"] = json!([10, 20]);
    let path = format!("{}logs@2026.01.31/_doc/by-hand", settings.index_prefix);
    assert_eq!(call(server, Method::PUT, &path, body).await["result"], "created");
    let after = sums().await;
    assert_eq!((before.len(), after.len()), (1, 1));
    assert_eq!((before[0].documents, after[0].documents), (1, 2));
    assert!(after[0].bytes > before[0].bytes);
    assert_eq!(
        (before[0].squares, after[0].squares),
        (300, 600),
        "no place counts any more, only the lengths' squares"
    );
}

/// Copies that somebody made by hand, under an id of their own or in an index that is none of a day's, are seen and can be deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_copied_by_hand_is_seen_and_deleted() {
    let server = servers::elasticsearch();
    let settings = settings(server);
    let index = index(&settings);
    index.write(vec![Doc::new(10, "x").build()]).await.unwrap();
    index.refresh().await.unwrap();
    let day = format!("{}logs@2026.01.31", settings.index_prefix);
    let body: Value = serde_json::from_slice(&Doc::new(10, "x").build().body).unwrap();
    let id = Doc::new(10, "").id();
    for path in [format!("{day}/_doc/by%20hand%22%5C"), format!("{day}-copy/_doc/{id}")] {
        assert_eq!(call(server, Method::PUT, &path, body.clone()).await["result"], "created");
    }

    let (logs, file) = (topic("logs"), logmesh_index::conformance::stream(1));
    let spans = index.spans(&logs, &file, 0, 100).await.unwrap();
    assert!(spans.iter().any(|span| span.id.is_none()) && spans.iter().any(|span| span.id.is_some()), "{spans:?}");
    let listed = async || {
        let page = index.stored(&logs, &file, ByteRange::new(0, 100), PageLimit::hits(100)).await.unwrap();
        assert!(!page.more);
        page.documents
    };
    let (kept, copies): (Vec<_>, Vec<_>) = listed()
        .await
        .into_iter()
        .partition(|stored| stored.date.as_deref() == Some("2026-01-31") && stored.place.id.parse::<DocId>().is_ok());
    assert!(spans.len() == 3 && kept.len() == 1 && copies.iter().any(|copy| copy.date.is_none()), "{copies:?}");
    let places: Vec<Place> = copies.into_iter().map(|copy| copy.place).collect();
    assert!(index.delete(&topic("log"), &places).await.is_err(), "they are of another topic");
    assert_eq!(index.delete(&logs, &places).await.unwrap(), vec![true; places.len()]);
    assert_eq!(listed().await, kept);
    index.refresh().await.unwrap();
    assert_eq!(found(&index, "x").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_declared_later_reaches_the_indices_that_are_there() {
    let index = index(&settings(servers::elasticsearch()));
    index.write(docs(0..1, "x")).await.unwrap();
    let declared = [("status".to_owned(), FieldType::Long)].into();
    index.ensure_topic(&topic("logs"), &declared).await.unwrap();
    index.write(vec![Doc::new(1, "x").with("attributes.status", json!(404)).build()]).await.unwrap();
    assert_eq!(found(&index, "attributes.status:>=400").await, 1);
    let other = [("status".to_owned(), FieldType::Date)].into();
    let refused = index.ensure_topic(&topic("logs"), &other).await;
    assert!(matches!(refused, Err(IndexError::Unsupported { reason }) if reason.contains("status")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_document_is_rejected_for_its_fields() {
    let index = index(&settings(servers::elasticsearch()));
    let types = [("n".to_owned(), FieldType::Long), ("t".to_owned(), FieldType::Date)].into();
    index.ensure_topic(&topic("logs"), &types).await.unwrap();
    let deep = (0..60).fold(json!("leaf"), |inner, _| json!({ "a": inner }));
    let labels: serde_json::Map<String, Value> = (0..1_500).map(|n| (format!("labels.l{n}"), json!("v"))).collect();
    let mut docs = vec![
        Doc::new(0, "odd").with("attributes.n", json!(1e300)),
        Doc::new(1, "odd").with("attributes.n", json!("many")),
        Doc::new(2, "odd").with("attributes.n", json!({ "m": 1 })),
        Doc::new(3, "odd").with("attributes.t", json!("yesterday")),
        Doc::new(4, "odd").with("attributes", json!("scalar")),
        Doc::new(5, "odd").with("host", json!("scalar")).with("host.name", json!("h")),
        Doc::new(6, "odd").with("parsed", deep),
        Doc::new(7, "odd").with("parsed", json!("scalar")),
        Doc::new(8, "odd").with("parsed", json!({ "a\u{0}b": "c" })),
        Doc::new(9, "odd").with("labels", json!("scalar")),
        Doc::new(10, "odd").with("labels.a", json!({ "b": { "c": 1 } })).with("labels.a.b", json!("x")),
        Doc::new(11, "odd").with("labels..", json!("x")).with("", json!("x")).with(".", json!("x")),
        Doc::new(12, "odd").with("logmesh", json!("scalar")),
        Doc::new(13, "odd").with("message", json!({ "no": "text" })),
        Doc::new(14, "odd").with("@timestamp", json!("0000-00-00T00:00:00Z")),
        Doc::new(15, "odd").with("_id", json!("x")).with("_source", json!("x")).with("_index", json!(5)),
    ];
    docs.push(labels.into_iter().fold(Doc::new(16, "odd"), |doc, (name, value)| doc.with(&name, value)));
    let count = docs.len();
    let outcomes = index.write(docs.iter().map(Doc::build).collect()).await.unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Created), "{outcomes:?}");
    index.refresh().await.unwrap();
    let page = index.search(&selection("*"), Order::OldestFirst, PageLimit::hits(100), None).await.unwrap();
    for doc in docs.iter().map(Doc::build) {
        let hit = page.hits.iter().find(|hit| hit.id == doc.id).unwrap();
        assert_eq!(hit.body, doc.body);
    }
    assert_eq!(page.total, count as u64);
    // Whether all labels are findable or only the first thousand: the line is.
    assert_eq!(found(&index, "odd logmesh.length:10").await, count - 1);
    for text in ["host:scalar", "labels:scalar", "labels.a.b.c:1", "attributes.n:*", "parsed:scalar", "labels:v"] {
        assert!(found(&index, text).await > 0, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_its_queue_is_taken_later() {
    let server = Elasticsearch::start_with(&[], &["-Eindexing_pressure.memory.limit=64kb"]);
    let index = index(&settings(&server));
    assert_eq!(index.write(docs(0..1, "small")).await.unwrap(), [Outcome::Created]);
    let outcomes = index.write(docs(1..4, &"large ".repeat(10_000))).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Busy { .. })), "{outcomes:?}");
    assert_eq!(index.write(docs(0..2, "small")).await.unwrap(), [Outcome::Duplicate, Outcome::Created]);
}

/// Killed in the middle of writing, the server has all that it acked; away or frozen, that's said in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acked_survives_a_kill() {
    let mut server = Elasticsearch::start_with(&[], &["-Ehttp.max_content_length=1mb"]);
    let settings = settings(&server);
    let index = index(&settings);
    let hasty = ElasticIndex::new(Settings { request_timeout: Span(Duration::from_secs(3)), ..settings }).unwrap();

    // Larger than one request may be.
    let outcomes = index.write(docs(0..6, &"word ".repeat(100_000))).await.unwrap();
    assert_eq!(outcomes, vec![Outcome::Created; 6]);
    let outcomes = index.write(docs(6..7, &"word ".repeat(300_000))).await.unwrap();
    assert!(matches!(&outcomes[..], [Outcome::Rejected { reason }] if reason.contains("max_content_length")));

    let writer = index.clone();
    let writing = tokio::spawn(async move {
        let mut acked = 0;
        for part in 0.. {
            match writer.write(docs(100 + part * 50..150 + part * 50, "kept")).await {
                Ok(outcomes) => {
                    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Created));
                    acked += 50;
                }
                Err(error) => {
                    assert!(error.retryable(), "{error}");
                    break;
                }
            }
        }
        acked
    });
    wait_for_async("documents to be there", PATIENCE, || async {
        let count = index.count(&selection("kept")).await.unwrap();
        if count > 300 { Ok(()) } else { Err(format!("{count}")) }
    })
    .await;
    server.kill();
    let acked = writing.await.unwrap();
    assert!(acked > 300);

    let asked = Instant::now();
    unavailable(index.write(docs(0..1, "x")).await);
    unavailable(index.ping().await);
    unavailable(index.search(&selection("x"), Order::NewestFirst, PageLimit::hits(1), None).await);
    unavailable(index.contains(&topic("logs"), &[Doc::new(0, "").id()]).await);
    assert!(asked.elapsed() < PATIENCE, "none of these waits for long");

    server.start_again();
    wait_for_async("the index to answer again", PATIENCE, || async {
        index.count(&selection("kept")).await.map_err(|error| error.to_string())
    })
    .await;
    index.ping().await.unwrap();
    index.refresh().await.unwrap();
    let count = index.count(&selection("kept")).await.unwrap();
    assert!((acked as u64..acked as u64 + 51).contains(&count), "{acked} were acked, {count} are there");
    let ids: Vec<_> = (100..100 + acked).map(|n| Doc::new(n, "").id()).collect();
    assert!(index.contains(&topic("logs"), &ids).await.unwrap().iter().all(|held| *held));

    server.signal(Signal::STOP);
    let asked = Instant::now();
    unavailable(hasty.ping().await);
    unavailable(hasty.write(docs(0..1, "x")).await);
    unavailable(hasty.count(&selection("x")).await);
    assert!(asked.elapsed() < PATIENCE, "a frozen server doesn't hold a call");
    server.signal(Signal::CONT);
    wait_for_async("the server to thaw", PATIENCE, || async { index.ping().await.map_err(|error| error.to_string()) })
        .await;
    assert_eq!(index.write(docs(7..8, "x")).await.unwrap(), [Outcome::Created]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_down_is_passed_over() {
    let server = servers::elasticsearch();
    let mut settings = settings(server);
    settings.urls.insert(0, format!("http://127.0.0.1:{}", servers::free_port()));
    let index = index(&settings);
    for n in 0..4 {
        index.ping().await.unwrap();
        assert_eq!(index.write(docs(n..n + 1, "x")).await.unwrap(), [Outcome::Created]);
    }
    let nowhere = ElasticIndex::new(Settings { urls: settings.urls[..1].to_vec(), ..settings }).unwrap();
    assert!(unavailable(nowhere.ping().await).contains("refused"));
}

struct Keys {
    folder: tempfile::TempDir,
    authority: std::path::PathBuf,
}

/// An authority, a certificate of it for the server, and another authority that is nobody's.
fn keys() -> Keys {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let folder = tempfile::TempDir::new().unwrap();
    let issuer = |name: &str| {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.path().join(name), issuer.pem()).unwrap();
        issuer
    };
    let authority = issuer("ca.pem");
    issuer("other.pem");
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    std::fs::write(folder.path().join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.path().join("key.pem"), key.serialize_pem()).unwrap();
    Keys { authority: folder.path().join("ca.pem"), folder }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_is_known_gets_in_and_only_over_tls() {
    let keys = keys();
    let path = |name: &str| keys.folder.path().join(name).to_str().unwrap().to_owned();
    let server = Elasticsearch::start(&[
        ("ES_PASSWORD", "sesame open"),
        ("ES_TLS_CERT", &path("cert.pem")),
        ("ES_TLS_KEY", &path("key.pem")),
    ]);
    let mut known = settings(&server);
    known.urls = vec![format!("https://{}", server.address())];
    known.tls.enabled = true;
    known.tls.ca_file = Some(keys.authority.clone());
    (known.user, known.password) = ("elastic".to_owned(), "sesame open".to_owned());
    let index = index(&known);
    // A server that just started may not know its own users yet.
    wait_for_async("the user to be known", PATIENCE, || async {
        index.ping().await.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(index.write(docs(0..1, "x")).await.unwrap(), [Outcome::Created]);
    assert_eq!(found(&index, "x").await, 1);

    let with = |change: &dyn Fn(&mut Settings)| {
        let mut settings = known.clone();
        change(&mut settings);
        ElasticIndex::new(settings).unwrap()
    };
    let wrong = with(&|settings| settings.password = "guess".to_owned());
    let reason = unavailable(wrong.ping().await);
    assert!(reason.contains("401") && reason.contains("password"), "{reason}");
    unavailable(wrong.write(docs(0..1, "x")).await);
    let stranger = with(&|settings| settings.tls.ca_file = Some(keys.folder.path().join("other.pem")));
    let reason = unavailable(stranger.ping().await);
    assert!(reason.contains("certificate"), "{reason}");
    let public = with(&|settings| settings.tls.ca_file = None);
    unavailable(public.ping().await);

    // A key with the privileges that the message on 403 names.
    let pem = std::fs::read(&keys.authority).unwrap();
    let operator =
        Client::builder().add_root_certificate(reqwest::Certificate::from_pem(&pem).unwrap()).build().unwrap();
    let key = json!({ "name": "logmesh", "role_descriptors": { "logmesh": {
        "cluster": ["manage_index_templates", "monitor"],
        "indices": [{
            "names": [format!("{}*", known.index_prefix)],
            "privileges": ["create_index", "manage", "create_doc", "read", "view_index_metadata"],
        }],
    } } });
    let made = operator
        .post(format!("{}/_security/api_key", known.urls[0]))
        .basic_auth("elastic", Some("sesame open"))
        .header("content-type", "application/json")
        .body(key.to_string());
    let made: Value = serde_json::from_slice(&made.send().await.unwrap().bytes().await.unwrap()).unwrap();
    let plain = format!("{}:{}", made["id"].as_str().unwrap(), made["api_key"].as_str().unwrap());
    for key in [made["encoded"].as_str().unwrap(), &plain] {
        let by_key = with(&|settings| {
            (settings.user, settings.password, settings.api_key) = (String::new(), String::new(), key.to_owned());
        });
        by_key.ping().await.unwrap();
        let types = [("status".to_owned(), FieldType::Long)].into();
        by_key.ensure_topic(&topic("logs"), &types).await.unwrap();
        let doc = Doc::new(key.len() as i64, "x").in_slice(slice("logs", "2026-02-01"));
        assert_eq!(by_key.write(vec![doc.build()]).await.unwrap(), [Outcome::Created]);
        assert!(found(&by_key, "x").await >= 2);
        assert!(by_key.contains(&topic("logs"), &[doc.id()]).await.unwrap()[0]);
        let elsewhere = with(&|settings| {
            (settings.user, settings.password, settings.api_key) = (String::new(), String::new(), key.to_owned());
            settings.index_prefix = "not-mine-".to_owned();
        });
        let reason = unavailable(elsewhere.write(docs(0..1, "x")).await);
        assert!(reason.contains("privileges") || reason.contains("403"), "{reason}");
    }
}
