//! Facets: how often each value of a field comes.

use serde_json::json;

use super::{Doc, Fixture, Opened, selection, slice, topic};
use crate::{Facets, FieldType, IndexError, IndexReader, IndexWriter, MAX_FACETS, Selection};

impl<F: Fixture> Opened<'_, F> {
    async fn facets(&self, query: &str, field: &str) -> Facets {
        let facets = self.index.facets(&selection(query), field, MAX_FACETS).await;
        facets.unwrap_or_else(|error| panic!("{field} of {query}: {error}"))
    }

    /// The values and counts of all values, which are exact.
    async fn values(&self, query: &str, field: &str) -> Vec<(String, u64)> {
        let facets = self.facets(query, field).await;
        assert_eq!((facets.others, facets.error_bound), (0, 0), "{field} of {query}");
        pairs(&facets)
    }
}

/// A query, a field, and its values with their counts.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, u64)]);

fn pairs(facets: &Facets) -> Vec<(String, u64)> {
    facets.values.iter().map(|facet| (facet.value.clone(), facet.count)).collect()
}

fn expected(values: &[(&str, u64)]) -> Vec<(String, u64)> {
    values.iter().map(|(value, count)| ((*value).to_owned(), *count)).collect()
}

/// Values of keywords, labels and parsed fields among the documents that a query finds, each document once.
pub async fn values_are_counted(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    opened
        .create([
            Doc::new(1, "x").with("log.level", json!("ERROR")).with("labels.env", json!("prod")).build(),
            Doc::new(2, "x").with("log.level", json!("info")).with("labels.env", json!("test")).build(),
            Doc::new(3, "x y").with("log.level", json!("ERROR")).with("labels.role", json!("prod")).build(),
            Doc::new(4, "y").with("log.level", json!("")).with("host.ip", json!(["a", "b", "a"])).build(),
            Doc::new(5, "y").with("labels.env", json!("prod")).with("labels.role", json!("prod")).build(),
            Doc::new(6, "z")
                .with("parsed", json!({ "a": { "b": [7, 7, "7"] }, "a.c": "7", "d": "e \"f\" \\*.?" }))
                .build(),
            Doc::new(7, "z").with("attributes.free", json!(1.50)).with("parsed", json!({ "a": { "b": true } })).build(),
        ])
        .await;
    let cases: [Case; 17] = [
        ("*", "log.level", &[("ERROR", 2), ("", 1), ("info", 1)]),
        ("y", "log.level", &[("", 1), ("ERROR", 1)]),
        ("y OR log.level:info", "labels.env", &[("prod", 1), ("test", 1)]),
        ("*", "labels.env", &[("prod", 2), ("test", 1)]),
        ("*", "labels", &[("prod", 3), ("test", 1)]),
        ("*", "host.ip", &[("a", 1), ("b", 1)]),
        ("*", "parsed.a.b", &[("7", 1), ("true", 1)]),
        ("*", "parsed.d", &[("e \"f\" \\*.?", 1)]),
        ("*", "parsed", &[("7", 1), ("e \"f\" \\*.?", 1), ("true", 1)]),
        ("*", "parsed.a", &[]),
        ("*", "parsed.a?b", &[]),
        ("*", "parsed.*", &[]),
        ("*", "attributes.free", &[("1.5", 1)]),
        ("*", "attributes", &[]),
        ("*", "no.field", &[]),
        ("nothing", "log.level", &[]),
        ("*", "", &[]),
    ];
    for (query, field, values) in cases {
        assert_eq!(opened.values(query, field).await, expected(values), "{field} of {query}");
    }
    let two = opened.index.facets(&selection("*"), "log.level", 2).await.unwrap();
    assert_eq!((pairs(&two), two.others), (expected(&[("ERROR", 2), ("", 1)]), 1));
}

/// Numbers and booleans are listed by one text each; what doesn't fit its declared type, by its own.
pub async fn values_are_counted_by_their_types(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let doc = |n: i64, field: &str, value| Doc::new(n, "x").with(field, value);
    // Written before its type was declared.
    opened.create([doc(1, "attributes.status", json!(200)).build()]).await;
    let types = [("status", FieldType::Long), ("took", FieldType::Double), ("ok", FieldType::Boolean)];
    let types = types.map(|(name, kind)| (name.to_owned(), kind)).into();
    opened.index.ensure_topic(&topic("logs"), &types).await.unwrap();
    let other = slice("other", "2026-01-31");
    opened
        .create([
            doc(2, "attributes.status", json!([200, 404, 200])).build(),
            doc(3, "attributes.status", json!("many")).build(),
            doc(4, "attributes.status", json!(404)).in_slice(other.clone()).build(),
            doc(5, "attributes.took", json!(1)).build(),
            doc(6, "attributes.took", json!(1.0)).build(),
            doc(7, "attributes.took", json!([1.5, -0.25, 1e300])).build(),
            doc(8, "attributes.took", json!("long")).build(),
            doc(9, "attributes.ok", json!([true, false])).build(),
            doc(10, "attributes.ok", json!("true")).build(),
            doc(11, "attributes.ok", json!("maybe")).build(),
            doc(12, "logmesh.revision", json!([3, 3, 4])).build(),
            doc(13, "logmesh.revision", json!(3)).in_slice(other).build(),
        ])
        .await;
    let cases: [Case; 7] = [
        ("*", "attributes.status", &[("200", 2), ("404", 2), ("many", 1)]),
        ("_topic:other", "attributes.status", &[("404", 1)]),
        ("*", "attributes.took", &[("1", 2), ("-0.25", 1), ("1.5", 1), ("1e300", 1), ("long", 1)]),
        ("*", "attributes.ok", &[("true", 2), ("false", 1), ("maybe", 1)]),
        ("*", "logmesh.revision", &[("3", 2), ("4", 1)]),
        ("*", "logmesh.length", &[("10", 13)]),
        ("log.offset:<3", "log.offset", &[("1", 1), ("2", 1)]),
    ];
    for (query, field, values) in cases {
        assert_eq!(opened.values(query, field).await, expected(values), "{field} of {query}");
    }
}

/// One list for all slices of all topics that the selection names, and the topics themselves as values.
pub async fn values_of_topics_and_slices_are_added_up(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let places = [("logs", "2026-01-30"), ("logs", "2026-01-31"), ("nginx", "2026-01-31"), ("app", "2026-02-01")];
    for (place, n) in places.into_iter().zip(0..) {
        let doc = |offset, host: &str| {
            Doc::new(offset, "x").with("host.name", json!(host)).in_slice(slice(place.0, place.1)).build()
        };
        opened.create([doc(n, "web"), doc(10 + n, "db"), doc(20 + n, "web")]).await;
    }
    assert_eq!(opened.values("x", "host.name").await, expected(&[("web", 8), ("db", 4)]));
    assert_eq!(opened.values("x", "_topic").await, expected(&[("logs", 6), ("app", 3), ("nginx", 3)]));
    assert_eq!(opened.values("host.name:db", "_topic").await, expected(&[("logs", 2), ("app", 1), ("nginx", 1)]));
    assert_eq!(opened.values("NOT _topic:lo*", "_topic").await, expected(&[("app", 3), ("nginx", 3)]));
    let some = Selection { topics: ["nginx", "none"].map(topic).to_vec(), ..selection("host.name:web") };
    for (field, value) in [("host.name", "web"), ("_topic", "nginx")] {
        assert_eq!(pairs(&opened.index.facets(&some, field, 5).await.unwrap()), expected(&[(value, 2)]));
    }
    let one = opened.index.facets(&selection("x"), "_topic", 1).await.unwrap();
    assert_eq!((pairs(&one), one.others, one.error_bound), (expected(&[("logs", 6)]), 6, 0));
}

/// Of more values than are kept, the most frequent come, and no count is further off than is said.
pub async fn very_many_values_are_counted_within_a_bound(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let each = 10_400_u64;
    for date in ["2026-01-30", "2026-01-31"] {
        let doc = |n: u64| {
            // Of 8 documents one has the value that is frequent, of 104 one another.
            let value = if n.is_multiple_of(8) {
                "often".to_owned()
            } else if n % 104 == 1 {
                "less".to_owned()
            } else {
                n.to_string()
            };
            let values = json!([value, format!("b{n}")]);
            Doc::new(n as i64, "x").with("attributes.v", values).in_slice(slice("logs", date)).build()
        };
        opened.create((0..each).map(doc)).await;
    }
    let facets = opened.index.facets(&selection("x"), "attributes.v", 10).await.unwrap();
    let listed = pairs(&facets);
    assert_eq!(listed.len(), 10);
    for ((value, count), (name, true_count)) in listed.iter().zip([("often", each / 4), ("less", each / 52)]) {
        assert!(value == name && *count <= true_count && *count + facets.error_bound >= true_count, "{facets:?}");
    }
    // In each slice a value that was left out has one document.
    assert!((1..10).contains(&facets.error_bound), "{}", facets.error_bound);
    assert_eq!(listed.iter().map(|(_, count)| count).sum::<u64>() + facets.others, 4 * each);
}

/// Words and times are no values, and a document's id is no other's: the error says so.
pub async fn what_has_no_values_is_refused(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let types = [("when".to_owned(), FieldType::Date)].into();
    opened.index.ensure_topic(&topic("logs"), &types).await.unwrap();
    opened
        .create([Doc::new(1, "x").in_slice(slice("other", "2026-01-31")).with("attributes.when", json!("w")).build()])
        .await;
    for field in ["message", "@timestamp", "_id", "attributes.when"] {
        let refused = opened.index.facets(&selection("*"), field, 10).await;
        assert!(matches!(refused, Err(IndexError::NotCountable { .. })), "{field}: {refused:?}");
    }
    let other = Selection { topics: vec![topic("other")], ..selection("*") };
    assert_eq!(pairs(&opened.index.facets(&other, "attributes.when", 10).await.unwrap()), expected(&[("w", 1)]));
}
