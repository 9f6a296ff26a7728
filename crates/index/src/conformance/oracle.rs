//! Random documents and random queries: an index finds exactly what [`query::matches`] says.

use std::collections::{BTreeMap, BTreeSet};

use logmesh_types::DocId;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

use super::{Doc, Fixture, Opened, selection, slice, topic};
use crate::facets::value_text;
use crate::{Facet, Facets, FieldType, FieldTypes, IndexReader, IndexWriter, MAX_FACETS, Order, PageLimit, query};

const DOCUMENTS: usize = 240;
const QUERIES: usize = 600;

/// Fields whose values are counted, one after the other.
const FACETS: [&str; 17] = [
    "_topic",
    "attributes.method",
    "attributes.ok",
    "attributes.status",
    "attributes.took",
    "attributes.undeclared",
    "host.name",
    "labels",
    "labels.role",
    "log.level",
    "log.offset",
    "logmesh.length",
    "no.field",
    "parsed",
    "parsed.a.b",
    "parsed.c",
    "parsed.d",
];

const WORDS: [&str; 10] = ["error", "errors", "Timeout", "10", "0", "v1", "größe", "x", "mirror", "a"];
const KEYWORDS: [&str; 8] = ["web-1", "web-12", "db", "ERROR", "error", "", "a b", "10"];

fn message() -> impl Strategy<Value = String> {
    let word = proptest::sample::select(&WORDS[..]);
    let gap = proptest::sample::select(&[" ", ".", "-", ": ", " [", "\u{fffd}", "_"][..]);
    vec((word, gap), 0..6).prop_map(|parts| parts.into_iter().map(|(word, gap)| format!("{word}{gap}")).collect())
}

fn keyword() -> impl Strategy<Value = Value> {
    let one = || proptest::sample::select(&KEYWORDS[..]).prop_map(|text| json!(text));
    prop_oneof![4 => one(), 1 => vec(one(), 0..3).prop_map(Value::Array), 1 => (0..12).prop_map(|n| json!(n)), 1 => Just(Value::Null)]
}

/// Fields with values that may be there.
fn fields() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
    let field = prop_oneof![
        keyword().prop_map(|value| ("host.name", value)),
        keyword().prop_map(|value| ("log.level", value)),
        keyword().prop_map(|value| ("labels.role", value)),
        keyword().prop_map(|value| ("attributes.method", value)),
        keyword().prop_map(|value| ("attributes.undeclared", value)),
        (keyword(), keyword()).prop_map(|(a, b)| ("parsed", json!({ "a": { "b": a }, "c": b, "d": 7 }))),
        prop_oneof![-2..3i64, Just(i64::MAX), Just(i64::MIN)].prop_map(|n| ("attributes.status", json!(n))),
        prop_oneof![Just(0.5), Just(-3.25), Just(1e300), Just(2.0)].prop_map(|n: f64| ("attributes.took", json!(n))),
        any::<bool>().prop_map(|ok| ("attributes.ok", json!(ok))),
        (10..14).prop_map(|day| ("attributes.when", json!(format!("2026-01-{day}T12:00:00.000000001+01:00")))),
    ];
    vec(field, 0..6)
}

fn doc() -> impl Strategy<Value = Doc> {
    let slices = vec![("logs", "2026-01-31"), ("logs", "2026-02-01"), ("other", "2026-01-31")];
    (0..1_000_000_000i64, message(), fields(), proptest::sample::select(slices), -5..5i64).prop_map(
        |(offset, message, fields, (name, date), nanos)| {
            let doc = Doc::new(offset, &message).in_slice(slice(name, date)).at(nanos);
            fields.into_iter().fold(doc, |doc, (field, value)| doc.with(field, value))
        },
    )
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// A condition without operators.
fn condition() -> impl Strategy<Value = String> {
    let names = [
        "host.name",
        "log.level",
        "labels.role",
        "labels",
        "parsed",
        "parsed.a.b",
        "parsed.c",
        "parsed.d",
        "attributes.method",
        "attributes.undeclared",
        "no.field",
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
        "2026-01-12T11:00:00Z",
        "2026-01-12T11:00:00.000000001Z",
        "true",
        "now",
    ];
    let name = || proptest::sample::select(names.to_vec());
    let keyword = || proptest::sample::select(&KEYWORDS[..]).prop_map(quoted);
    let literal = || proptest::sample::select(literals.to_vec()).prop_map(quoted);
    let typed = move || proptest::sample::select(typed.to_vec());
    let pattern = proptest::sample::select(vec!["w*", "*b*", "web-1?", "?", "*", "e*r", "E*", "a\\ b", "??", "*1*2"]);
    let word = proptest::sample::select(vec![
        "err*", "*or", "?", "??", "e*r*s", "*irro*", "gr*e", "*.0", "10.*", "v?.*", "x-a*",
    ]);
    prop_oneof![
        4 => proptest::sample::select(&WORDS[..]).prop_map(str::to_owned),
        2 => vec(proptest::sample::select(&WORDS[..]), 2..4).prop_map(|words| quoted(&words.join(" "))),
        3 => word.prop_map(str::to_owned),
        3 => (name(), keyword()).prop_map(|(name, value)| format!("{name}:{value}")),
        3 => (name(), pattern).prop_map(|(name, pattern)| format!("{name}:{pattern}")),
        2 => (name(), keyword(), keyword()).prop_map(|(name, low, high)| format!("{name}:[{low} TO {high}}}")),
        1 => (name(), keyword()).prop_map(|(name, low)| format!("{name}:>{low}")),
        2 => (typed(), literal()).prop_map(|(name, value)| format!("{name}:{value}")),
        4 => (typed(), literal(), literal(), 0..4usize).prop_map(|(name, low, high, kind)| match kind {
            0 => format!("{name}:[{low} TO {high}]"),
            1 => format!("{name}:{{{low} TO {high}}}"),
            2 => format!("{name}:>{low}"),
            _ => format!("{name}:<={high}"),
        }),
        1 => (-6..6i64).prop_map(|n| format!("@timestamp:>={}", logmesh_types::UnixNanos(super::NOON.0 + n))),
        1 => (0..1_000_000_000i64).prop_map(|n| format!("log.offset:<{n}")),
        1 => proptest::sample::select(vec!["*", "_topic:logs", "attributes:*", "message:*", "parsed.a:*"]).prop_map(str::to_owned),
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

fn types() -> FieldTypes {
    let types = [
        ("status", FieldType::Long),
        ("took", FieldType::Double),
        ("ok", FieldType::Boolean),
        ("when", FieldType::Date),
        ("method", FieldType::Keyword),
    ];
    types.map(|(name, kind)| (name.to_owned(), kind)).into()
}

/// Random queries find in random documents what the definition of the language says, after a reopening too.
pub async fn a_query_finds_what_its_definition_says(fixture: &impl Fixture) {
    let mut runner = TestRunner::deterministic();
    let docs = vec(doc(), DOCUMENTS).new_tree(&mut runner).unwrap().current();
    let mut opened = Opened::new(fixture).await;
    for name in ["logs", "other"] {
        opened.index.ensure_topic(&topic(name), &types()).await.unwrap();
    }
    for bulk in docs.chunks(50) {
        opened.create(bulk.iter().map(Doc::build)).await;
    }
    for number in 0..QUERIES {
        let text = query_text().new_tree(&mut runner).unwrap().current();
        check(&opened, &docs, &text, FACETS[number % FACETS.len()]).await;
        if number == QUERIES / 2 {
            opened = opened.reopen().await;
        }
    }
}

async fn check<F: Fixture>(opened: &Opened<'_, F>, docs: &[Doc], text: &str, field: &str) {
    let selection = selection(text);
    let (mut expected, mut counts) = (BTreeSet::new(), BTreeMap::<String, u64>::new());
    for doc in docs {
        let mut document = doc.document();
        document.insert("_topic".to_owned(), json!(doc.build().slice.topic));
        if query::matches(&selection.query, &types(), &document) {
            expected.insert(doc.id());
            values(&document, field).into_iter().for_each(|value| *counts.entry(value).or_default() += 1);
        }
    }
    let page = opened.index.search(&selection, Order::NewestFirst, PageLimit::hits(1_000), None).await;
    let page = page.unwrap_or_else(|error| panic!("{text}: {error}"));
    let found: BTreeSet<DocId> = page.hits.iter().map(|hit| hit.id).collect();
    let wrong: Vec<_> = docs
        .iter()
        .filter(|doc| expected.contains(&doc.id()) != found.contains(&doc.id()))
        .map(Doc::document)
        .collect();
    assert!(wrong.is_empty(), "{text}: found {} of {}, wrong: {wrong:#?}", found.len(), expected.len());
    assert_eq!(opened.index.count(&selection).await.unwrap(), expected.len() as u64, "{text}");
    let facets = opened.index.facets(&selection, field, MAX_FACETS).await;
    let facets = facets.unwrap_or_else(|error| panic!("{field} of {text}: {error}"));
    let mut counts: Vec<Facet> = counts.into_iter().map(|(value, count)| Facet { value, count }).collect();
    counts.sort_by_key(|facet| std::cmp::Reverse(facet.count));
    assert_eq!(facets, Facets { values: counts, others: 0, error_bound: 0 }, "{field} of {text}");
}

/// The texts that a document's values of a field are counted by.
fn values(document: &Map<String, Value>, field: &str) -> BTreeSet<String> {
    let kind = query::field::kind(field, &types());
    let mut values = BTreeSet::new();
    query::field::for_each_leaf(document, &mut |path, value| {
        let named = path == field || query::field::flattened_root(path) == Some(field);
        let text = query::field::keyword_text(value).filter(|_| named);
        values.extend(text.map(|text| value_text(kind, &text).into_owned()));
    });
    values
}
