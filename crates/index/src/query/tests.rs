//! Tests of the language: what a text reads as, what is refused and where, and what documents it finds.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::{FieldType, FieldTypes};

const NOON: UnixNanos = UnixNanos(1_769_860_800_000_000_000); // 2026-01-31T12:00:00Z

fn read(text: &str) -> String {
    Query::parse_at(text, NOON).unwrap().to_string()
}

fn types() -> FieldTypes {
    [
        ("status", FieldType::Long),
        ("took", FieldType::Double),
        ("ok", FieldType::Boolean),
        ("when", FieldType::Date),
        ("method", FieldType::Keyword),
    ]
    .map(|(name, kind)| (name.to_owned(), kind))
    .into()
}

fn document() -> Map<String, Value> {
    let value = json!({
        "@timestamp": "2026-01-31T11:30:00.5Z",
        "message": "GET /api/v1/Users failed: Connection reset by 10.0.0.17",
        "log.level": "ERROR",
        "log.offset": 120,
        "host.name": "web-1",
        "host.ip": ["10.0.0.7", "fe80::1"],
        "labels.role": "web server",
        "parsed": { "user": { "id": 7, "name": "ann" }, "tags": ["a", "b"], "none": null },
        "attributes.status": 503,
        "attributes.took": 1.5,
        "attributes.ok": false,
        "attributes.when": "2026-01-30T00:00:00Z",
        "attributes.method": "GET",
        "empty": "",
    });
    value.as_object().unwrap().clone()
}

fn finds(query: &str) -> bool {
    matches(&Query::parse_at(query, NOON).unwrap(), &types(), &document())
}

#[test]
fn texts_read_as_trees() {
    for (text, tree) in [
        ("", "*"),
        ("  ", "*"),
        ("*", "*"),
        ("*:*", "*"),
        ("a b", "a AND b"),
        ("a AND b && c", "a AND b AND c"),
        ("a b OR c d", "(a AND b) OR (c AND d)"),
        ("a||b", "\"a||b\""),
        ("a || b", "a OR b"),
        ("(a (b c)) d", "a AND b AND c AND d"),
        ("NOT a -b !c +d", "NOT a AND NOT b AND NOT c AND d"),
        ("a -(b OR c)", "a AND NOT (b OR c)"),
        ("and or not", "and AND or AND not"),
        ("ANDROID NOTE", "ANDROID AND NOTE"),
        ("\"AND\"", "\"AND\""),
        ("f:(a OR b)", "f:a OR f:b"),
        ("f:(a b) c", "f:a AND f:b AND c"),
        ("f: a", "f:a"),
        ("f:\"a b\"", "f:\"a b\""),
        ("f:[1 TO 5]", "f:[1 TO 5]"),
        ("f:{1 TO 5}", "f:{1 TO 5}"),
        ("f:[1 TO 5}", "f:[1 TO 5}"),
        ("f:[* TO *]", "f:*"),
        ("f:>=5 f:>5 f:<=5 f:<5", "f:[5 TO *] AND f:{5 TO *] AND f:[* TO 5] AND f:[* TO 5}"),
        ("f:(>=1 AND <5)", "f:[1 TO *] AND f:[* TO 5}"),
        ("f:*", "f:*"),
        ("f:-5", "f:\"-5\""),
        ("err* ?x", "err* AND ?x"),
        ("a\\*", "\"a*\""),
        ("f\\:g:x", "f\\:g:x"),
        ("host.ip:fe80::1", "host.ip:\"fe80::1\""),
        ("[error] <html> {x}", "\"[error]\" AND \"<html>\" AND \"{x}\""),
        ("foo\"bar\"", "foo AND bar"),
        ("message:x", "x"),
        ("message:*", "message:*"),
    ] {
        assert_eq!(read(text), tree, "{text:?}");
        assert_eq!(read(tree), tree, "{tree:?}");
    }
}

#[test]
fn faults_are_refused_at_their_place() {
    for (text, at, message) in [
        ("a (b", 2, "not closed"),
        ("a b)", 3, "closes nothing"),
        ("\"a b", 0, "not closed"),
        ("a AND", 5, "missing"),
        ("AND a", 0, "operator"),
        ("a OR OR b", 5, "operator"),
        ("()", 1, "missing before"),
        ("NOT", 3, "missing"),
        ("a - b", 2, "directly before"),
        ("f:", 2, "value is missing"),
        ("f:[1 5]", 5, "TO"),
        ("f:[1 TO 5", 2, "not closed"),
        ("f:[ TO 5]", 7, "TO"),
        ("f:[1 TO ]", 8, "end of the range"),
        ("f:>", 3, "compare"),
        ("a\\", 1, "nothing after"),
        ("12:30", 0, "not the name"),
        ("see http://x", 4, "a field named `http`"),
        ("std::io", 0, "a field named `std`"),
        ("h*:x", 0, "can't have"),
        ("a -- b", 3, "directly before"),
        ("a \u{2014} b", 2, "neither a letter nor a digit"),
        ("\"a b\"~5", 5, "not supported"),
        ("log.offset:abc", 11, "is a number"),
        ("@timestamp:yesterday", 11, "is a time"),
        ("@timestamp:2026*", 11, "not a pattern"),
        ("message:[a TO b]", 8, "no ranges"),
    ] {
        let error = Query::parse_at(text, NOON).unwrap_err();
        assert!(error.message.contains(message), "{text:?}: {error}");
        assert_eq!(error.at, at, "{text:?}: {error}");
    }
}

#[test]
fn an_error_shows_the_place() {
    let error = Query::parse_at("level:ERROR AND (x", NOON).unwrap_err();
    assert_eq!(error.to_string(), "this `(` is not closed\n  level:ERROR AND (x\n                  ^");
    let long = format!("{} (", "word ".repeat(100));
    let shown = Query::parse_at(&long, NOON).unwrap_err().to_string();
    assert!(shown.lines().all(|line| line.chars().count() < 100), "{shown}");
}

#[test]
fn size_and_depth_are_bounded() {
    use logmesh_types::limits::{MAX_QUERY_BYTES, MAX_QUERY_DEPTH};
    assert!(Query::parse(&"x".repeat(MAX_QUERY_BYTES)).is_ok());
    assert!(Query::parse(&"x".repeat(MAX_QUERY_BYTES + 1)).is_err());
    let nested = |depth: usize| format!("{}x{}", "(".repeat(depth), ")".repeat(depth));
    assert!(Query::parse(&nested(MAX_QUERY_DEPTH)).is_ok());
    assert!(Query::parse(&nested(MAX_QUERY_DEPTH + 1)).unwrap_err().message.contains("nested"));
    assert!(Query::parse(&format!("{}x", "-".repeat(MAX_QUERY_DEPTH + 1))).is_err());
    assert!(Query::parse(&format!("{}x", "NOT ".repeat(MAX_QUERY_DEPTH + 1))).is_err());
}

#[test]
fn queries_find_what_they_mean() {
    for query in [
        "*",
        "connection",
        "CONNECTION Reset",
        "\"connection reset\"",
        "connection-reset",
        "users failed",
        "conn*",
        "*ction",
        "v?",
        "10.0.0.1*",
        "10.0.0.*",
        "/api/*",
        "api/*/users",
        "log.level:ERROR",
        "log.level:ERR*",
        "log.level:(WARN OR ERROR)",
        "host.ip:10.0.0.7",
        "host.ip:fe80::1",
        "labels.role:\"web server\"",
        "labels:\"web server\"",
        "parsed.user.id:7",
        "parsed:ann",
        "parsed.user:*",
        "parsed.tags:b",
        "empty:*",
        "attributes.status:503",
        "attributes.status:>=500",
        "attributes.status:[500 TO 504}",
        "attributes.status:>502.5",
        "attributes.took:1.5",
        "attributes.took:{1 TO 2}",
        "attributes.ok:false",
        "attributes.when:2026-01-30",
        "attributes.when:<2026-01-31",
        "attributes.method:[A TO Z]",
        "log.offset:120",
        "@timestamp:>=now-1h",
        "@timestamp:2026-01-31",
        "@timestamp:[2026-01-31T11:30:00.5Z TO 2026-01-31T11:30:00.5Z]",
        "-missing",
        "NOT nothing:*",
    ] {
        assert!(finds(query), "{query}");
        assert!(!finds(&format!("NOT ({query})")), "{query}");
    }
    for query in [
        "nnection",
        "\"reset connection\"",
        "log.level:error",
        "log.level:ERRO",
        "labels.role:web",
        "parsed.none:*",
        "parsed.user:7",
        "attributes.status:5*",
        "attributes.status:abc",
        "attributes.status:{503 TO *]",
        "attributes.ok:0",
        "attributes.when:>2026-01-30",
        "log.offset:[0 TO 119.9]",
        "nothing:*",
        "nothing:x",
        "@timestamp:<2026-01-31",
        "a??i",
    ] {
        assert!(!finds(query), "{query}");
    }
}

#[test]
fn a_keyword_too_long_is_found_by_its_being_there() {
    let long = "k".repeat(field::MAX_KEYWORD_CHARS + 1);
    let document = json!({ "f": long }).as_object().unwrap().clone();
    let found = |query: &str| matches(&Query::parse(query).unwrap(), &types(), &document);
    assert!(found("f:*") && !found("f:k*"));
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,4}", "[ -~äß\u{2014}\t]{1,8}", Just("AND".to_owned()), Just("TO".to_owned())]
}

fn any_test() -> impl Strategy<Value = Test> {
    let bound = || {
        prop_oneof![Just(Bound::Unbounded), any_text().prop_map(Bound::Included), any_text().prop_map(Bound::Excluded)]
    };
    let glyph = prop_oneof![any::<char>().prop_map(Glyph::Char), Just(Glyph::One), Just(Glyph::Many)];
    prop_oneof![
        Just(Test::Exists),
        any_text().prop_map(Test::Is),
        (proptest::collection::vec(glyph, 0..5), any::<bool>()).prop_map(|(glyphs, first)| {
            let wild = if first { Glyph::One } else { Glyph::Many };
            let pattern = Pattern::new([wild].into_iter().chain(glyphs));
            if pattern.is_any() { Test::Exists } else { Test::Like(pattern) }
        }),
        (bound(), bound()).prop_map(|(low, high)| match (&low, &high) {
            (Bound::Unbounded, Bound::Unbounded) => Test::Exists,
            _ => Test::Range { low, high },
        }),
    ]
}

fn any_node() -> impl Strategy<Value = Node> {
    let field = prop_oneof!["[a-z]{1,3}(\\.[a-z]{1,3})?", "[a-z@][ -~ä]{0,4}"];
    let leaf = prop_oneof![
        1 => Just(Node::All),
        1 => "[a-z]{1,5}".prop_map(|text| Node::Field(FieldTest { field: MESSAGE.to_owned(), test: Test::Is(text) })),
        6 => (field, any_test()).prop_map(|(field, test)| Node::Field(FieldTest { field, test })),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Node::and),
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Node::or),
            inner.prop_map(|node| Node::Not(Box::new(node))),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_displayed_reads_as_the_same(node in any_node()) {
        let text = node.to_string();
        let again = Query::parse_at(&text, NOON);
        prop_assert_eq!(again.map(|query| query.root().clone()), Ok(node), "{}", text);
    }

    #[test]
    fn no_text_panics(text in "[a-c:\\\\\"()\\[\\]{}<>=*?!+&|~ ANDORT-]{0,24}|\\PC{0,24}") {
        if let Ok(query) = Query::parse_at(&text, NOON) {
            matches(&query, &types(), &document());
            let again = Query::parse_at(&query.to_string(), NOON).unwrap();
            prop_assert_eq!(again.root(), query.root());
        }
    }
}
