//! Writing: each document once, whatever is tried.

use bytes::Bytes;
use serde_json::json;

use super::{Doc, Fixture, Opened, slice, topic};
use crate::{FieldType, FieldTypes, IndexError, IndexReader, IndexWriter, NewDoc, Order, Outcome, PageLimit};

/// A second write of an id leaves the first document as it is.
pub async fn a_document_is_created_once(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    assert_eq!(opened.write([Doc::new(1, "first").build()]).await, [Outcome::Created]);
    assert_eq!(opened.write([Doc::new(1, "second").build()]).await, [Outcome::Duplicate]);
    assert_eq!(opened.find("first").await, [1]);
    assert!(opened.find("second").await.is_empty());
    assert_eq!(opened.write([]).await, []);
}

/// Of two documents of one id in a bulk the first counts.
pub async fn a_document_is_a_duplicate_within_a_bulk(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let bulk = [Doc::new(1, "first").build(), Doc::new(2, "other").build(), Doc::new(1, "second").build()];
    assert_eq!(opened.write(bulk).await, [Outcome::Created, Outcome::Created, Outcome::Duplicate]);
    assert_eq!(opened.find("first OR second").await, [1]);
}

/// An id in one slice says nothing about another.
pub async fn slices_are_apart(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let doc = Doc::new(1, "here");
    let other = doc.clone().in_slice(slice("logs", "2026-02-01"));
    assert_eq!(opened.write([doc.build(), other.build()]).await, [Outcome::Created, Outcome::Created]);
    assert_eq!(opened.write([other.build()]).await, [Outcome::Duplicate]);
    assert_eq!(opened.find("*").await, [1, 1]);
}

/// Outcomes stand where their documents stood, whatever slice these are of and whatever came of them.
pub async fn outcomes_come_in_order(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    opened.create([Doc::new(1, "old").build()]).await;
    let bad = |body: &'static str, number: i64| NewDoc {
        body: Bytes::from_static(body.as_bytes()),
        ..Doc::new(number, "").build()
    };
    let bulk = vec![
        Doc::new(2, "new").build(),
        bad("[1]", 3),
        Doc::new(2, "again").in_slice(slice("other", "2026-01-31")).build(),
        Doc::new(1, "old").build(),
        bad("{\"a\":", 4),
        bad("", 5),
        Doc::new(6, "new").build(),
    ];
    let outcomes = opened.write(bulk).await;
    let kinds: Vec<&str> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Created => "created",
            Outcome::Duplicate => "duplicate",
            Outcome::Busy { .. } => "busy",
            Outcome::Rejected { reason } if !reason.is_empty() => "rejected",
            Outcome::Rejected { .. } => "rejected without a reason",
        })
        .collect();
    assert_eq!(kinds, ["created", "rejected", "created", "duplicate", "rejected", "rejected", "created"]);
    assert_eq!(opened.find("*").await, [1, 2, 2, 6]);
}

/// Lookup by id goes over all slices of the topic, and of this topic only.
pub async fn an_id_is_found_in_every_slice(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let docs = [
        Doc::new(1, "a"),
        Doc::new(2, "b").in_slice(slice("logs", "2026-02-01")),
        Doc::new(3, "c").in_slice(slice("other", "2026-01-31")),
    ];
    opened.create(docs.iter().map(Doc::build)).await;
    let ids: Vec<_> = [3, 2, 9, 1, 2].map(|offset| Doc::new(offset, "").id()).into();
    let found = opened.index.contains(&topic("logs"), &ids).await.unwrap();
    assert_eq!(found, [false, true, false, true, true]);
    assert_eq!(opened.index.contains(&topic("none"), &ids[..1]).await.unwrap(), [false]);
    assert!(opened.index.contains(&topic("logs"), &[]).await.unwrap().is_empty());
}

/// Not a byte of a body is changed.
pub async fn the_body_comes_back_as_it_was(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let text =
        "{ \"@timestamp\" : \"2026-01-31T12:00:00Z\",\n\t\"b\":1.50, \"a\":\"\\u00e4\", \"a\":[ ],\"message\":\"x\" }";
    let doc = NewDoc { body: Bytes::from_static(text.as_bytes()), ..Doc::new(1, "").build() };
    opened.create([doc.clone()]).await;
    let page = opened.index.search(&super::selection("x"), Order::NewestFirst, PageLimit::hits(1), None).await.unwrap();
    assert_eq!(page.hits[0].body, doc.body);
    assert_eq!((page.hits[0].id, &page.hits[0].topic), (doc.id, &topic("logs")));
}

/// What was written is there after the index was opened again, and still not written twice.
pub async fn documents_survive_a_reopening(fixture: &impl Fixture) {
    let mut opened = Opened::new(fixture).await;
    for offset in 0..4 {
        opened.create([Doc::new(offset, "kept").build()]).await;
        opened = opened.reopen().await;
        assert_eq!(opened.write([Doc::new(offset, "kept").build()]).await, [Outcome::Duplicate]);
    }
    assert_eq!(opened.find("kept").await, [0, 1, 2, 3]);
}

/// A slice goes as a whole, the others stay; documents may come into it again.
pub async fn a_slice_is_deleted(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let other = Doc::new(2, "b").in_slice(slice("logs", "2026-02-01"));
    opened.create([Doc::new(1, "a").build(), other.build()]).await;
    let first = slice("logs", "2026-01-31");
    opened.create([Doc::new(3, "of another topic").in_slice(slice("logs.other", "2026-01-01")).build()]).await;
    assert_eq!(opened.index.slices(&topic("logs")).await.unwrap(), ["2026-01-31", "2026-02-01"]);
    assert!(opened.index.slices(&topic("none")).await.unwrap().is_empty());
    opened.index.delete_slice(&first).await.unwrap();
    opened.index.delete_slice(&first).await.unwrap();
    opened.index.delete_slice(&slice("none", "2026-01-31")).await.unwrap();
    opened.index.delete_slice(&slice("logs.other", "2026-01-01")).await.unwrap();
    assert_eq!(opened.index.slices(&topic("logs")).await.unwrap(), ["2026-02-01"]);
    assert_eq!(opened.find("*").await, [2]);
    assert_eq!(opened.index.contains(&topic("logs"), &[Doc::new(1, "").id()]).await.unwrap(), [false]);

    let opened = opened.reopen().await;
    assert_eq!(opened.find("*").await, [2]);
    opened.create([Doc::new(1, "again").build()]).await;
    assert_eq!(opened.find("again").await, [1]);
    assert_eq!(opened.index.slices(&topic("logs")).await.unwrap(), ["2026-01-31", "2026-02-01"]);
}

/// A topic's types are kept; they can be added to but not changed.
pub async fn declared_types_are_kept(fixture: &impl Fixture) {
    let types = |fields: &[(&str, FieldType)]| -> FieldTypes {
        fields.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect()
    };
    let opened = Opened::new(fixture).await;
    let logs = topic("logs");
    assert!(opened.index.field_types(&logs).await.unwrap().is_empty());
    opened.index.ensure_topic(&logs, &types(&[("status", FieldType::Long)])).await.unwrap();
    opened.index.ensure_topic(&logs, &types(&[("took", FieldType::Double)])).await.unwrap();
    opened.index.ensure_topic(&logs, &types(&[("took", FieldType::Double)])).await.unwrap();
    let refused = opened.index.ensure_topic(&logs, &types(&[("status", FieldType::Keyword)])).await;
    assert!(matches!(refused, Err(IndexError::Unsupported { .. })), "{refused:?}");

    let opened = opened.reopen().await;
    let kept = opened.index.field_types(&logs).await.unwrap();
    assert_eq!(kept, types(&[("status", FieldType::Long), ("took", FieldType::Double)]));
}

/// More slices than an index keeps open are no different from few.
pub async fn many_slices_are_written_and_found(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let doc = |day: i64, round: i64| {
        Doc::new(100 * round + day, "many").in_slice(slice("logs", &format!("2026-03-{day:02}")))
    };
    for round in 0..2 {
        opened.create((1..=12).map(|day| doc(day, round).build())).await;
    }
    assert_eq!(opened.find("many").await.len(), 24);
    assert_eq!(opened.write([doc(1, 0).build(), doc(12, 1).build()]).await, [Outcome::Duplicate, Outcome::Duplicate]);
}

/// No text is too long: a word, a value, or a name.
pub async fn long_words_and_values_are_taken(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let long = "x".repeat(1 << 20);
    let words = "word ".repeat(200_000);
    opened
        .create([
            Doc::new(1, &long).build(),
            Doc::new(2, &words).with("service.name", json!(long)).with("host.name", json!("h")).build(),
            Doc::new(3, "short").with("parsed", json!({ long.as_str()[..70_000]: "v" })).build(),
        ])
        .await;
    assert_eq!(opened.find(&"x".repeat(510)).await, [1]);
    assert_eq!(opened.find("\"word word word\"").await, [2]);
    assert_eq!(opened.find("service.name:*").await, [2]);
    assert_eq!(opened.find("host.name:h").await, [2]);
    assert_eq!(opened.find("short").await, [3]);
}
