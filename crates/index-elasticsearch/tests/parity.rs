//! Elasticsearch and tantivy side by side: the same documents and the same questions give the same hits, in the same
//! order, and the same numbers. Some of both are written by hand, most are random, over a small vocabulary in which
//! everything is near everything else and little is ASCII.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::time::Duration;

use logmesh_index::conformance::{Doc, NOON, query, slice, stream, topic};
use logmesh_index::query::{Query, is_word_char};
use logmesh_index::{
    Facets, FieldType, FieldTypes, Hit, IndexError, IndexReader, IndexWriter, NewDoc, Order, Outcome, PageLimit,
    Selection,
};
use logmesh_index_elasticsearch::{ElasticIndex, Settings};
use logmesh_index_embedded::EmbeddedIndex;
use logmesh_testing::servers;
use logmesh_types::{DocId, Span, TopicName, UnixNanos};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use tempfile::TempDir;

const TOPICS: [&str; 3] = ["logs", "logs-2", "other"];

/// Fields whose values are counted.
const FACETS: [&str; 25] = [
    "_topic",
    "attributes.method",
    "attributes.method.name",
    "attributes.ok",
    "attributes.status",
    "attributes.took",
    "attributes.undeclared",
    "attributes.when",
    "host",
    "host.name",
    "k8s.pod.name",
    "labels",
    "labels.role",
    "labels.role.x",
    "log.file.path",
    "log.level",
    "log.offset",
    "logmesh.length",
    "logmesh.stream",
    "message",
    "no.field",
    "parsed",
    "parsed.a",
    "parsed.a.b",
    "parsed.d",
];

/// The two indices, with the same documents.
struct Both {
    elastic: ElasticIndex,
    embedded: EmbeddedIndex,
    _folder: TempDir,
}

impl Both {
    async fn new(name: &str) -> Self {
        let settings = Settings {
            urls: vec![format!("http://{}", servers::elasticsearch().address())],
            index_prefix: format!("parity-{name}-"),
            replicas: 0,
            shards: 2,
            // The disk of a busy machine is slow now and then.
            request_timeout: Span(Duration::from_secs(120)),
            ..Settings::default()
        };
        let folder = TempDir::new().unwrap();
        let embedded = EmbeddedIndex::open(folder.path(), Default::default()).await.unwrap();
        let both = Self { elastic: ElasticIndex::new(settings).unwrap(), embedded, _folder: folder };
        for name in ["logs", "logs-2"] {
            both.ensure(&topic(name), &types()).await;
        }
        both
    }

    async fn ensure(&self, topic: &TopicName, types: &FieldTypes) {
        self.elastic.ensure_topic(topic, types).await.unwrap();
        self.embedded.ensure_topic(topic, types).await.unwrap();
    }

    async fn write(&self, docs: Vec<NewDoc>) {
        for part in docs.chunks(100) {
            let outcomes = self.elastic.write(part.to_vec()).await.unwrap();
            assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Created), "{outcomes:?}");
            assert_eq!(self.embedded.write(part.to_vec()).await.unwrap(), outcomes);
        }
        self.elastic.refresh().await.unwrap();
    }

    /// All hits of the selection, by pages of this size, from both.
    async fn hits(&self, selection: &Selection, order: Order, size: usize) -> [(Vec<Hit>, u64); 2] {
        let indices: [&dyn IndexReader; 2] = [&self.elastic, &self.embedded];
        let mut both = Vec::new();
        for index in indices {
            let (mut hits, mut token) = (Vec::new(), None);
            let total = loop {
                let page = index.search(selection, order, PageLimit::hits(size), token.as_deref()).await;
                let page = page.unwrap_or_else(|error| panic!("{} on {index:?}: {error}", selection.query));
                hits.extend(page.hits);
                token = page.next_page_token;
                if token.is_none() {
                    break page.total;
                }
            };
            both.push((hits, total));
        }
        both.try_into().unwrap()
    }

    async fn agree(&self, selection: &Selection, size: usize) {
        let text = &selection.query;
        for order in [Order::NewestFirst, Order::OldestFirst] {
            let [elastic, embedded] = self.hits(selection, order, size).await;
            if elastic != embedded {
                let shown = |hits: &[Hit]| -> Vec<String> {
                    hits.iter().map(|hit| String::from_utf8_lossy(&hit.body).into_owned()).collect()
                };
                let only =
                    |a: &[Hit], b: &[Hit]| shown(&a.iter().filter(|hit| !b.contains(hit)).cloned().collect::<Vec<_>>());
                panic!(
                    "{text} {order:?}: Elasticsearch finds {} of {}, tantivy {} of {}\nonly Elasticsearch: {:#?}\nonly tantivy: {:#?}",
                    elastic.0.len(),
                    elastic.1,
                    embedded.0.len(),
                    embedded.1,
                    only(&elastic.0, &embedded.0),
                    only(&embedded.0, &elastic.0),
                );
            }
        }
        let counts = [self.elastic.count(selection).await.unwrap(), self.embedded.count(selection).await.unwrap()];
        assert_eq!(counts[0], counts[1], "{text}");
        let interval = Duration::from_millis([1, 7, 1_000, 3_600_000][size % 4]);
        let bars = self.elastic.histogram(selection, interval).await.unwrap();
        assert_eq!(bars, self.embedded.histogram(selection, interval).await.unwrap(), "{text} by {interval:?}");
        // Three fields each time, one after the other.
        for field in FACETS.iter().cycle().skip(3 * size).take(3) {
            let [elastic, embedded] = self.facets(selection, field, [2, 1_000][size % 2]).await;
            assert_eq!(elastic, embedded, "{field} of {selection:?}");
        }
    }

    /// The values of a field, from both; or that they can't be counted.
    async fn facets(&self, selection: &Selection, field: &str, limit: usize) -> [Option<Facets>; 2] {
        let counted = |facets: Result<Facets, IndexError>| match facets {
            Ok(facets) => Some(facets),
            Err(IndexError::NotCountable { .. }) => None,
            Err(error) => panic!("{field} of {}: {error}", selection.query),
        };
        let elastic = self.elastic.facets(selection, field, limit).await;
        [counted(elastic), counted(self.embedded.facets(selection, field, limit).await)]
    }
}

fn all(text: &str) -> Selection {
    Selection { query: query(text), from: None, to: None, topics: Vec::new() }
}

fn types() -> FieldTypes {
    let types = [
        ("status", FieldType::Long),
        ("took", FieldType::Double),
        ("ok", FieldType::Boolean),
        ("when", FieldType::Date),
        ("method", FieldType::Keyword),
        ("method.name", FieldType::Keyword),
    ];
    types.map(|(name, kind)| (name.to_owned(), kind)).into()
}

/// Texts in which words end at every kind of character.
const TEXTS: [&str; 40] = [
    "error",
    "errors",
    "Error:",
    "TIMEOUT",
    "10.0.0.17",
    "10.0.0.1",
    "v1.2-rc_3",
    "/var/log/a b",
    "größe",
    "GRÖSSE",
    "gro\u{308}ße",
    "ẞ",
    "naïve",
    "nai\u{308}ve",
    "ΣΊΣΥΦΟΣ",
    "σίσυφος",
    "İstanbul",
    "ISTANBUL",
    "ıstanbul",
    "日本語のログ",
    "ログ",
    "हिन्दी",
    "עִבְרִית",
    "اَلْعَرَبِيَّةُ",
    "٣٤٥",
    "½x²",
    "ⅷ Ⅷ",
    "Ⓐⓑ 🅰x",
    "🦀crab",
    "👩\u{200d}🚀",
    "\u{1b}[31mred\u{1b}[0m",
    "a\0b\u{7}c",
    "a\u{a0}b\u{200b}c\u{ad}d",
    "\u{feff}bom\u{202e}rtl",
    "a\u{fffd}b\u{2028}c\u{85}d",
    "`^~$+<=>|",
    "\u{1f3fb}tone\u{fe0f}",
    "\u{10400}\u{10401}X",
    "ǅ Ǆ ǆ",
    "K Å Ω",
];

const KEYWORDS: [&str; 12] =
    ["web-1", "web-12", "WEB-1", "db", "", "a b", "10", "a\\*b", "a*b", "größe", "日本", "a\0b"];

fn message() -> impl Strategy<Value = String> {
    let gap = select(&["", " ", ".", "-", ": ", "\t", "\u{fffd}", "_", "\u{301}"][..]);
    let part = prop_oneof![
        20 => select(&TEXTS[..]).prop_map(str::to_owned),
        1 => (250..300usize, select(vec!["x", "ä", "\u{10400}", "日"])).prop_map(|(length, text)| text.repeat(length)),
    ];
    vec((part, gap), 0..5).prop_map(|parts| parts.into_iter().map(|(part, gap)| format!("{part}{gap}")).collect())
}

fn keyword() -> impl Strategy<Value = Value> {
    let one = || select(&KEYWORDS[..]).prop_map(|text| json!(text));
    prop_oneof![
        8 => one(),
        2 => vec(one(), 0..3).prop_map(Value::Array),
        1 => (0..12).prop_map(|n| json!(n)),
        1 => any::<bool>().prop_map(|flag| json!(flag)),
        1 => Just(json!(1.50)),
        1 => Just(Value::Null),
        1 => (8_190..8_194usize).prop_map(|length| json!("w".repeat(length))),
    ]
}

fn fields() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
    let field = prop_oneof![
        keyword().prop_map(|value| ("host.name", value)),
        keyword().prop_map(|value| ("log.level", value)),
        keyword().prop_map(|value| ("log", json!({ "file": { "path": value } }))),
        keyword().prop_map(|value| ("host", value)),
        keyword().prop_map(|value| ("k8s.pod.name", value)),
        keyword().prop_map(|value| ("labels.role", value)),
        keyword().prop_map(|value| ("labels.role.x", value)),
        keyword().prop_map(|value| ("attributes.method", value)),
        keyword().prop_map(|value| ("attributes.method.name", value)),
        keyword().prop_map(|value| ("attributes.undeclared", value)),
        // A declared integer that is none; the document builder leaves such values out.
        keyword().prop_map(|value| ("attributes.status", if value.is_f64() { Value::Null } else { value })),
        (keyword(), keyword()).prop_map(|(a, b)| ("parsed", json!({ "a": { "b": a, "": 1 }, "a.b": b, "d": 7 }))),
        prop_oneof![-2..3i64, Just(i64::MAX), Just(i64::MIN)].prop_map(|n| ("attributes.status", json!(n))),
        prop_oneof![Just(0.5), Just(-3.25), Just(1e300), Just(2.0)].prop_map(|n: f64| ("attributes.took", json!(n))),
        any::<bool>().prop_map(|ok| ("attributes.ok", json!(ok))),
        (10..14).prop_map(|day| ("attributes.when", json!(format!("2026-01-{day}T12:00:00.000000001+01:00")))),
        Just(("@timestamp", json!("2026-01-31 12:00:00Z"))),
        Just(("@timestamp", json!("yesterday"))),
        Just(("@timestamp", json!("1969-12-31T23:59:59.999999999Z"))),
        Just(("@timestamp", json!("1823-01-01T00:00:00Z"))),
        Just(("@timestamp", Value::Null)),
    ];
    vec(field, 0..6)
}

fn doc() -> impl Strategy<Value = NewDoc> {
    let dates = select(vec!["2026-01-30", "2026-01-31"]);
    let nanos =
        prop_oneof![-5..5i64, (-9..9i64).prop_map(|n| n * 500_000), (-9..9i64).prop_map(|n| n * 1_800_000_000_000)];
    (0..1_000_000_000i64, 0..3u64, message(), fields(), select(&TOPICS[..]), dates, nanos, 0..6).prop_map(
        |(offset, number, message, fields, name, date, nanos, kind)| {
            let doc = Doc::new(offset, &message).of(stream(number)).in_slice(slice(name, date)).at(nanos);
            let doc = fields.into_iter().fold(doc, |doc, (field, value)| doc.with(field, value));
            let built = doc.build();
            if kind > 0 {
                return built;
            }
            // As a client wrote it: of no stream.
            let mut body = doc.document();
            body.retain(|name, _| !name.starts_with("logmesh."));
            NewDoc { body: serde_json::to_vec(&body).unwrap().into(), ..built }
        },
    )
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A pattern that was made of a text by leaving out some of it.
fn pattern_of(text: &str) -> impl Strategy<Value = String> + use<> {
    let chars: Vec<char> = text.chars().collect();
    (vec(0..8u8, chars.len()), 0..3u8).prop_map(move |(holes, ends)| {
        let pattern: String = chars
            .iter()
            .zip(&holes)
            .map(|(c, hole)| match hole {
                0 => "*".to_owned(),
                1 => "?".to_owned(),
                _ if is_word_char(*c) => c.to_string(),
                _ => format!("\\{c}"),
            })
            .collect();
        match ends {
            0 => format!("{pattern}*"),
            1 => format!("*{pattern}"),
            _ => pattern,
        }
    })
}

fn condition() -> impl Strategy<Value = String> {
    let names = [
        "host.name",
        "host",
        "log.level",
        "log.file.path",
        "k8s.pod.name",
        "labels.role",
        "labels.role.x",
        "labels",
        "parsed",
        "parsed.a.b",
        "parsed.a",
        "parsed.d",
        "attributes.method",
        "attributes.method.name",
        "attributes.undeclared",
        "_topic",
        "no.field",
    ];
    let above = [
        "host",
        "log",
        "log.file",
        "k8s",
        "labels",
        "parsed",
        "parsed.a",
        "attributes",
        "logmesh",
        "message",
        "@timestamp",
    ];
    let typed = ["attributes.status", "attributes.took", "attributes.when", "attributes.ok", "attributes.undeclared"];
    let literals = [
        "0",
        "-1",
        "2",
        "0.5",
        "1.5",
        "1e10",
        "9223372036854775807",
        "2026-01-12",
        "2026-01-12T11:00:00.000000001Z",
        "true",
    ];
    let times = [
        "1969-12-31T23:59:59.999999999Z",
        "1970-01-01",
        "1969-12-31",
        "1700-01-01",
        "2026-01-31T12:00:00.000000002Z",
        "2026-01-31",
    ];
    let name = move || select(names.to_vec());
    let typed = move || select(typed.to_vec());
    let literal = move || select(literals.to_vec()).prop_map(quoted);
    let value = || prop_oneof![3 => select(&KEYWORDS[..]).prop_map(quoted), 1 => select(&TOPICS[..]).prop_map(quoted)];
    let text = || select(&TEXTS[..]);
    prop_oneof![
        4 => text().prop_map(quoted),
        4 => vec(text(), 2..4).prop_map(|texts| quoted(&texts.join(" "))),
        2 => (text(), text()).prop_map(|(a, b)| quoted(&format!("{a}{b}"))),
        5 => text().prop_flat_map(pattern_of),
        3 => (text(), text()).prop_flat_map(|(a, b)| pattern_of(&format!("{a}.{b}"))),
        3 => (name(), value()).prop_map(|(name, value)| format!("{name}:{value}")),
        3 => (name(), select(&KEYWORDS[..]).prop_flat_map(pattern_of)).prop_map(|(name, pattern)| format!("{name}:{pattern}")),
        2 => (name(), value(), value()).prop_map(|(name, low, high)| format!("{name}:[{low} TO {high}}}")),
        1 => (name(), value()).prop_map(|(name, low)| format!("{name}:>{low}")),
        1 => (name(), value()).prop_map(|(name, high)| format!("{name}:<={high}")),
        2 => select(above.to_vec()).prop_map(|name| format!("{name}:*")),
        2 => (typed(), literal()).prop_map(|(name, value)| format!("{name}:{value}")),
        4 => (typed(), literal(), literal(), 0..4usize).prop_map(|(name, low, high, kind)| match kind {
            0 => format!("{name}:[{low} TO {high}]"),
            1 => format!("{name}:{{{low} TO {high}}}"),
            2 => format!("{name}:>{low}"),
            _ => format!("{name}:<={high}"),
        }),
        3 => (select(times.to_vec()), select(vec!["", ">", ">=", "<", "<="]))
            .prop_map(|(time, sign)| format!("@timestamp:{sign}{}", if sign.is_empty() { quoted(time) } else { time.to_owned() })),
        1 => (-6..6i64).prop_map(|n| format!("@timestamp:>={}", UnixNanos(NOON.0 + n))),
        1 => (0..1_000_000_000i64).prop_map(|n| format!("logmesh.offset:<{n}")),
    ]
}

fn query_text() -> impl Strategy<Value = String> {
    condition().prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 2..4).prop_map(|parts| format!("({})", parts.join(" AND "))),
            vec(inner.clone(), 2..4).prop_map(|parts| format!("({})", parts.join(" OR "))),
            inner.prop_map(|part| format!("NOT {part}")),
        ]
    })
}

/// A random search: what, from when, to when, in which topics.
fn search() -> impl Strategy<Value = (String, Option<i64>, Option<i64>, Vec<&'static str>)> {
    let time =
        || proptest::option::weighted(0.2, prop_oneof![-6..6i64, Just(-NOON.0), Just(-NOON.0 - 1), Just(i64::MIN)]);
    (
        query_text(),
        time(),
        time(),
        proptest::option::weighted(0.3, vec(select(vec!["logs", "logs-2", "other", "none"]), 1..3)),
    )
        .prop_map(|(text, from, to, topics)| (text, from, to, topics.unwrap_or_default()))
}

async fn random(seed: u8, documents: usize, searches: usize) {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let both = Both::new(&format!("random{seed}")).await;
    let docs = vec(doc(), documents).new_tree(&mut runner).unwrap().current();
    both.write(docs.clone()).await;
    let mut asked = 0;
    while asked < searches {
        let (text, from, to, topics) = search().new_tree(&mut runner).unwrap().current();
        // A text without a word in it is no query.
        let Ok(query) = Query::parse_at(&text, NOON) else { continue };
        asked += 1;
        let time = |time: Option<i64>| time.map(|nanos| UnixNanos(NOON.0.saturating_add(nanos)));
        let topics = topics.into_iter().map(topic).collect();
        both.agree(&Selection { query, from: time(from), to: time(to), topics }, 30 + asked).await;
    }
    the_rest_agrees(&both, &docs).await;
}

/// Spans, ids, topics and types.
async fn the_rest_agrees(both: &Both, docs: &[NewDoc]) {
    for name in TOPICS {
        let name = topic(name);
        for number in 0..3 {
            for (from, limit) in [(0, 1_000), (0, 5), (500_000_000, 20), (u64::MAX, 5)] {
                let spans = both.elastic.spans(&name, &stream(number), from, limit).await.unwrap();
                assert_eq!(spans, both.embedded.spans(&name, &stream(number), from, limit).await.unwrap());
            }
        }
        let mut ids: Vec<DocId> = docs.iter().map(|doc| doc.id).collect();
        ids.push(DocId::from_bytes([0; 16]));
        let held = both.elastic.contains(&name, &ids).await.unwrap();
        assert_eq!(held, both.embedded.contains(&name, &ids).await.unwrap());
        assert_eq!(both.elastic.field_types(&name).await.unwrap(), both.embedded.field_types(&name).await.unwrap());
    }
    assert_eq!(both.elastic.topics().await.unwrap(), both.embedded.topics().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_searches_find_the_same() {
    random(1, 300, 250).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_random_searches_find_the_same() {
    let seed = std::env::var("PARITY_SEED").map_or(2, |seed| seed.parse().unwrap());
    random(seed, 120, 250).await;
}

/// Each text as a document of its own, found by each of its words, and by those of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_end_at_the_same_characters() {
    let both = Both::new("words").await;
    both.write(TEXTS.iter().zip(0..).map(|(text, n)| Doc::new(n, text).build()).collect()).await;
    for text in TEXTS {
        for word in logmesh_index::query::tokenize(text) {
            both.agree(&all(&quoted(&word)), 100).await;
            both.agree(&all(&format!("{word}*")), 100).await;
        }
    }
}

/// What a page, a range or a bar could get wrong at its edge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edges_are_the_same() {
    let both = Both::new("edges").await;
    let at = |n: i64, nanos: i64| Doc::new(n, "edge").at(nanos).with("attributes.took", json!(n as f64 / 4.0));
    let times = [
        0,
        999_999,
        1_000_000,
        1_000_001,
        59_999_999_999,
        60_000_000_000,
        -1,
        -1_000_000,
        -NOON.0,
        -NOON.0 - 1,
        i64::MIN / 2,
    ];
    both.write(times.into_iter().zip(0..).map(|(nanos, n)| at(n, nanos).build()).collect()).await;
    for text in [
        "edge",
        "attributes.took:[0.25 TO 0.75]",
        "attributes.took:{0.25 TO 0.75}",
        "@timestamp:2026-01-31T12:00:00.001Z",
        "@timestamp:<=2026-01-31T12:00:00.000999999Z",
        "@timestamp:1970-01-01",
        "@timestamp:<1970-01-01T00:00:00Z",
        "@timestamp:[1960-01-01 TO 2262-01-01]",
        "NOT @timestamp:>1970-01-01",
        "@timestamp:*",
        "attributes:*",
        "attributes.took:*",
    ] {
        both.agree(&all(text), 3).await;
    }
    for (from, to) in [(0, 1), (0, 1_000_000), (-1, 0), (-NOON.0, 0), (-NOON.0 - 1, -NOON.0), (i64::MIN / 2, 1)] {
        let time = |nanos: i64| Some(UnixNanos(NOON.0.saturating_add(nanos)));
        both.agree(&Selection { from: time(from), to: time(to), ..all("edge") }, 2).await;
    }
}

/// What neither can answer is said so; what one can't, is too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_answered_is_said() {
    let both = Both::new("limits").await;
    both.write((0..10_001).map(|n| Doc::new(n, "x").at(n * 1_000_000).build()).collect()).await;
    for interval in [Duration::from_millis(1), Duration::ZERO] {
        for index in [&both.elastic as &dyn IndexReader, &both.embedded] {
            let refused = index.histogram(&all("x"), interval).await;
            assert!(matches!(refused, Err(IndexError::Unsupported { .. })), "{refused:?}");
        }
    }
    let odd = both.elastic.histogram(&all("x"), Duration::from_nanos(1_500_000)).await;
    assert!(matches!(odd, Err(IndexError::Unsupported { reason }) if reason.contains("whole milliseconds")));
    let id = both.elastic.count(&all("_id:a*")).await;
    assert!(matches!(id, Err(IndexError::Unsupported { reason }) if reason.contains("_id")));
    // A page as large as pages get, and one that its bytes end.
    let [elastic, embedded] = both.hits(&all("x"), Order::NewestFirst, 10_000).await;
    assert_eq!(elastic, embedded);
    let limit = PageLimit { hits: 10_000, bytes: 100_000 };
    let page = both.elastic.search(&all("x"), Order::NewestFirst, limit, None).await.unwrap();
    let other = both.embedded.search(&all("x"), Order::NewestFirst, limit, None).await.unwrap();
    assert_eq!((page.hits, page.total), (other.hits, other.total));
    assert!(page.next_page_token.is_some());
}
