//! Queries: what is found, by examples that one can read.

use serde_json::json;

use super::{Doc, Fixture, Opened, selection, slice, topic};
use crate::{FieldType, IndexWriter, Selection};

/// Words are found whatever their case, phrases only in order and side by side.
pub async fn words_and_phrases_are_found(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    opened
        .create([
            Doc::new(1, "GET /api/v1/users 200").build(),
            Doc::new(2, "Connection RESET by 10.0.0.17:8080").build(),
            Doc::new(3, "reset connection").build(),
            Doc::new(4, "").build(),
            Doc::new(5, "Größe ÜBER caf\u{fffd}\u{fffd} ende").build(),
            Doc::new(6, "[error] a-b_c").build(),
            Doc::new(7, "only\tfields").with("log.level", json!("connection")).build(),
        ])
        .await;
    for (query, found) in [
        ("connection", vec![2, 3]),
        ("reset CONNECTION", vec![2, 3]),
        ("\"connection reset\"", vec![2]),
        ("connection-reset", vec![2]),
        ("10.0.0.17", vec![2]),
        ("10.0.0.1", vec![]),
        ("/api/v1/users", vec![1]),
        ("\"v1 200\"", vec![]),
        ("größe über", vec![5]),
        ("caf ende", vec![5]),
        ("[error]", vec![6]),
        ("b_c", vec![6]),
        ("message:fields", vec![7]),
        ("api OR größe", vec![1, 5]),
        ("*", vec![1, 2, 3, 4, 5, 6, 7]),
        ("", vec![1, 2, 3, 4, 5, 6, 7]),
    ] {
        assert_eq!(opened.find(query).await, found, "{query}");
    }
}

/// `*` and `?` in words, phrases and keywords.
pub async fn patterns_are_found(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    opened
        .create([
            Doc::new(1, "errors at 10.0.0.17").with("host.name", json!("web-1.example")).build(),
            Doc::new(2, "Error in 10.0.0.2").with("host.name", json!("web-12.example")).build(),
            Doc::new(3, "terror of ä1").with("host.name", json!("db*1")).build(),
        ])
        .await;
    for (query, found) in [
        ("err*", vec![1, 2]),
        ("ERR*", vec![1, 2]),
        ("*error", vec![2, 3]),
        ("*err*", vec![1, 2, 3]),
        ("err?r", vec![2]),
        ("?1", vec![3]),
        ("10.0.0.*", vec![1, 2]),
        ("10.0.0.1*", vec![1]),
        ("10.*.0.2", vec![2]),
        ("i? 10.0", vec![2]),
        ("host.name:web-*", vec![1, 2]),
        ("host.name:web-?.example", vec![1]),
        ("host.name:*1*", vec![1, 2, 3]),
        ("host.name:WEB-*", vec![]),
        ("host.name:db\\*?", vec![3]),
        ("host.name:\"web-*\"", vec![]),
        ("host.name:*a????????????????????????????????", vec![]),
    ] {
        assert_eq!(opened.find(query).await, found, "{query}");
    }
}

/// A keyword is found by its whole value only, in arrays and nested objects too.
pub async fn keywords_are_exact(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    opened
        .create([
            Doc::new(1, "a").with("log.level", json!("ERROR")).with("labels.role", json!("web server")).build(),
            Doc::new(2, "b").with("host.ip", json!(["10.0.0.7", "fe80::1"])).build(),
            Doc::new(3, "c").with("parsed", json!({ "user": { "id": 7, "ok": true }, "tags": ["x y", "z"] })).build(),
            Doc::new(4, "d").with("log.level", json!("")).with("labels.x", json!("ERROR")).build(),
        ])
        .await;
    for (query, found) in [
        ("log.level:ERROR", vec![1]),
        ("log.level:error", vec![]),
        ("log.level:ERR", vec![]),
        ("log.level:\"\"", vec![4]),
        ("labels.role:\"web server\"", vec![1]),
        ("labels.role:web", vec![]),
        ("labels:ERROR", vec![4]),
        ("host.ip:fe80::1", vec![2]),
        ("host.ip:10.0.0.7 host.ip:\"fe80::1\"", vec![2]),
        ("parsed.user.id:7", vec![3]),
        ("parsed.user.ok:true", vec![3]),
        ("parsed.tags:\"x y\"", vec![3]),
        ("parsed:z", vec![3]),
        ("parsed.user:7", vec![]),
        ("no.such.field:x", vec![]),
        ("level:ERROR", vec![]),
        ("log:ERROR", vec![]),
        ("_topic:logs", vec![1, 2, 3, 4]),
        ("_topic:other", vec![]),
        ("_topic:lo*", vec![1, 2, 3, 4]),
    ] {
        assert_eq!(opened.find(query).await, found, "{query}");
    }
    let id = Doc::new(2, "").id();
    assert_eq!(opened.find(&format!("_id:\"{id}\"")).await, [2]);
}

/// Ranges of numbers, times and keywords, by the topic's types.
pub async fn ranges_are_found(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let types = [("status", FieldType::Long), ("took", FieldType::Double), ("when", FieldType::Date)];
    let types = types.map(|(name, kind)| (name.to_owned(), kind)).into();
    opened.index.ensure_topic(&topic("logs"), &types).await.unwrap();
    let doc = |offset: i64, status: i64, took: f64| {
        let when = format!("2026-01-{:02}T10:00:00Z", offset + 10);
        Doc::new(offset, "x")
            .with("attributes.status", json!(status))
            .with("attributes.took", json!(took))
            .with("attributes.when", json!(when))
            .with("service.name", json!(format!("s{offset}")))
    };
    opened.create([doc(1, 200, 0.5), doc(2, 404, -3.25), doc(3, -7, 3e9), doc(4, 500, 4.0)].map(|d| d.build())).await;
    for (query, found) in [
        ("attributes.status:200", vec![1]),
        ("attributes.status:>=404", vec![2, 4]),
        ("attributes.status:{404 TO 500]", vec![4]),
        ("attributes.status:[* TO 0]", vec![3]),
        ("attributes.status:>403.5", vec![2, 4]),
        ("attributes.status:[500 TO 200]", vec![]),
        ("attributes.status:(200 OR 500)", vec![1, 4]),
        ("attributes.status:(>=200 AND <500)", vec![1, 2]),
        ("attributes.took:<0", vec![2]),
        ("attributes.took:4", vec![4]),
        ("attributes.took:[0.5 TO 4.0}", vec![1]),
        ("attributes.took:>1e9", vec![3]),
        ("attributes.when:2026-01-12", vec![2]),
        ("attributes.when:>2026-01-12", vec![3, 4]),
        ("attributes.when:[2026-01-12 TO 2026-01-13]", vec![2, 3]),
        ("attributes.when:<2026-01-12T10:00:00Z", vec![1]),
        ("attributes.none:>5", vec![]),
        ("service.name:[s2 TO s3]", vec![2, 3]),
        ("service.name:{s2 TO *]", vec![3, 4]),
        ("service.name:<s2", vec![1]),
        ("log.offset:>=3", vec![3, 4]),
        ("logmesh.offset:{1 TO 3}", vec![2]),
        ("logmesh.length:10", vec![1, 2, 3, 4]),
        ("@timestamp:>=2026-01-31T12:00:03Z", vec![3, 4]),
        ("@timestamp:2026-01-31", vec![1, 2, 3, 4]),
        ("@timestamp:>2026-01-31", vec![]),
        ("@timestamp:>now-1h", vec![1, 2, 3, 4]),
    ] {
        assert_eq!(opened.find(query).await, found, "{query}");
    }
}

/// `field:*` is about values that are there, empty ones too.
pub async fn documents_are_found_by_having_a_field(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    opened
        .create([
            Doc::new(1, "").with("trace.id", json!("t")).build(),
            Doc::new(2, "x").with("parsed", json!({ "a": { "b": null, "c": [] }, "d": "" })).build(),
            Doc::new(3, "x").with("attributes.n", json!(5)).with("trace.id", json!(null)).build(),
        ])
        .await;
    for (query, found) in [
        ("message:*", vec![1, 2, 3]),
        ("trace.id:*", vec![1]),
        ("trace:*", vec![1]),
        ("-trace.id:*", vec![2, 3]),
        ("parsed:*", vec![2]),
        ("parsed.a:*", vec![]),
        ("parsed.d:*", vec![2]),
        ("attributes:*", vec![3]),
        ("attributes.n:[* TO *]", vec![3]),
        ("trac:*", vec![]),
        ("log.offset:*", vec![1, 2, 3]),
        ("@timestamp:*", vec![1, 2, 3]),
        ("_id:*", vec![1, 2, 3]),
    ] {
        assert_eq!(opened.find(query).await, found, "{query}");
    }
}

/// AND, OR, NOT and their kin.
pub async fn conditions_are_joined(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    opened
        .create(["a", "b", "a b", "a c", "b c", "c"].iter().zip(1..).map(|(text, n)| Doc::new(n, text).build()))
        .await;
    for (query, found) in [
        ("a b", vec![3]),
        ("a AND c", vec![4]),
        ("a || b", vec![1, 2, 3, 4, 5]),
        ("a b OR c", vec![3, 4, 5, 6]),
        ("a (b OR c)", vec![3, 4]),
        ("NOT a", vec![2, 5, 6]),
        ("a -b", vec![1, 4]),
        ("-a -b", vec![6]),
        ("a OR NOT b", vec![1, 3, 4, 6]),
        ("!(a OR b)", vec![6]),
        ("NOT NOT a", vec![1, 3, 4]),
        ("+a +b", vec![3]),
        ("* -c", vec![1, 2, 3]),
        ("NOT *", vec![]),
    ] {
        assert_eq!(opened.find(query).await, found, "{query}");
    }
}

/// A selection is of the topics it names, or of all.
pub async fn topics_are_chosen(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    for (offset, name) in [(1, "logs"), (2, "nginx"), (3, "app")] {
        opened.create([Doc::new(offset, "x").in_slice(slice(name, "2026-01-31")).build()]).await;
    }
    let of = |topics: &[&str]| Selection { topics: topics.iter().map(|name| topic(name)).collect(), ..selection("x") };
    assert_eq!(opened.find_in(&of(&["nginx"])).await, [2]);
    assert_eq!(opened.find_in(&of(&["nginx", "none", "app"])).await, [2, 3]);
    assert_eq!(opened.find_in(&of(&[])).await, [1, 2, 3]);
    assert_eq!(opened.find("_topic:(app OR logs)").await, [1, 3]);
    assert_eq!(
        crate::IndexReader::topics(opened.index.as_ref()).await.unwrap(),
        [topic("app"), topic("logs"), topic("nginx")]
    );
}
