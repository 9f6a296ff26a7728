//! Single documents: told apart by where they lie, and deleted.

use logmesh_types::ByteRange;

use super::{Doc, Fixture, Opened, selection, slice, stream, topic};
use crate::{IndexReader, IndexRepair, IndexWriter, Outcome, PageLimit, Place, Stored, StoredPage, StreamSum};

impl<F: Fixture> Opened<'_, F> {
    async fn page(&self, starts: (u64, u64), limit: PageLimit) -> StoredPage {
        let starts = ByteRange::new(starts.0, starts.1);
        self.index.stored(&topic("logs"), &stream(1), starts, limit).await.unwrap()
    }

    async fn stored(&self, starts: (u64, u64)) -> Vec<Stored> {
        let page = self.page(starts, PageLimit::hits(100)).await;
        assert!(!page.more);
        page.documents
    }

    /// Where the documents lie that begin at this offset.
    async fn places(&self, start: u64) -> Vec<Place> {
        self.stored((start, start + 1)).await.into_iter().map(|stored| stored.place).collect()
    }

    /// Deletes at these places; nothing is waited for.
    async fn delete(&self, places: &[Place]) -> Vec<bool> {
        self.index.delete(&topic("logs"), places).await.unwrap()
    }
}

const DAYS: [&str; 2] = ["2026-01-31", "2026-02-01"];

/// Five documents on the first day, and a copy of two of them on the second.
async fn with_copies<'a, F: Fixture>(fixture: &'a F) -> Opened<'a, F> {
    let opened = Opened::new(fixture).await;
    let doc = |offset: i64, day: &str| Doc::new(offset, "word").in_slice(slice("logs", day)).build();
    let all = [0, 10, 20, 30, 40].map(|offset| doc(offset, DAYS[0]));
    opened.create(all.into_iter().chain([10, 30].map(|offset| doc(offset, DAYS[1])))).await;
    opened
}

/// A document and its copies come with their bytes and with the slices that they lie in, whether or not searches find them yet.
pub async fn copies_are_told_apart(fixture: &impl Fixture) {
    let opened = Opened::new(fixture).await;
    let doc = |day: &str, text: &str| Doc::new(10, text).in_slice(slice("logs", day)).build();
    let copies = [doc(DAYS[0], "one"), doc(DAYS[1], "two")];
    let others = [Doc::new(10, "x").of(stream(2)).build(), Doc::new(10, "x").in_slice(slice("other", DAYS[0])).build()];
    // Not settled.
    let written = opened.index.write([copies.to_vec(), others.to_vec()].concat()).await.unwrap();
    assert_eq!(written, vec![Outcome::Created; 4]);
    let mut stored = opened.stored((10, 11)).await;
    stored.sort_by(|a, b| a.date.cmp(&b.date));
    assert_eq!(stored.len(), 2, "{stored:?}");
    for (stored, doc) in stored.iter().zip(&copies) {
        assert_eq!((stored.date.as_ref(), &stored.body), (Some(&doc.slice.date), &doc.body));
        assert_eq!((stored.place.id.clone(), stored.range), (doc.id.to_string(), ByteRange::new(10, 20)));
    }
    assert_ne!(stored[0].place.slice, stored[1].place.slice);
    assert!(opened.stored((0, 10)).await.is_empty() && opened.stored((11, u64::MAX)).await.is_empty());
    let (none, all) = (topic("none"), ByteRange::new(0, 99));
    let nothing = opened.index.stored(&none, &stream(1), all, PageLimit::hits(9)).await.unwrap();
    assert_eq!(nothing, StoredPage::default());
}

/// Only the document in that slice goes, and what isn't there is no error; it's gone after a reopening too.
pub async fn a_document_is_deleted_in_its_slice_only(fixture: &impl Fixture) {
    let opened = with_copies(fixture).await;
    let stored = opened.stored((10, 11)).await;
    let copy = stored.iter().find(|stored| stored.date.as_deref() == Some(DAYS[1])).unwrap().place.clone();
    let nowhere = Place { id: Doc::new(99, "").id().to_string(), ..copy.clone() };
    assert_eq!(opened.delete(&[nowhere, copy.clone()]).await, [false, true]);
    assert_eq!(opened.delete(std::slice::from_ref(&copy)).await, [false]);
    assert!(opened.delete(&[]).await.is_empty());
    assert_eq!(opened.places(10).await.len(), 1, "the other is there, and the copy isn't, refreshed or not");
    let id = Doc::new(10, "").id();
    assert_eq!(opened.index.contains(&topic("logs"), &[id]).await.unwrap(), [true]);

    let opened = opened.reopen().await;
    opened.fixture.settle().await;
    assert_eq!(opened.find("word").await, [0, 10, 20, 30, 30, 40]);
    // The id may be written again, there and nowhere else.
    let again = |day: &str| Doc::new(10, "again").in_slice(slice("logs", day)).build();
    assert_eq!(opened.write([again(DAYS[0]), again(DAYS[1])]).await, [Outcome::Duplicate, Outcome::Created]);
    assert_eq!(opened.find("again").await, [10]);
}

/// No count, search, sum, span, bar or list of values has what was deleted.
pub async fn what_was_deleted_is_counted_nowhere(fixture: &impl Fixture) {
    let opened = with_copies(fixture).await;
    let (first, other) = (opened.places(20).await, opened.places(0).await);
    assert_eq!(opened.delete(&[first, other].concat()).await, [true, true]);
    // Not settled: the audit's answers don't wait for a refresh.
    let spans = opened.index.spans(&topic("logs"), &stream(1), 0, 100).await.unwrap();
    assert_eq!(spans.iter().map(|span| span.range.start).collect::<Vec<_>>(), [10, 10, 30, 30, 40]);
    let mut sums = opened.index.sums(&topic("logs"), &[(stream(1), u64::MAX)]).await.unwrap().remove(0);
    sums.sort();
    let sum = |starts: &[u64]| {
        let mut sum = StreamSum::default();
        starts.iter().for_each(|start| sum.add(ByteRange::new(*start, start + 10)));
        sum
    };
    assert_eq!(sums, [sum(&[10, 30]), sum(&[10, 30, 40])]);
    let gone = [Doc::new(20, "").id(), Doc::new(0, "").id(), Doc::new(40, "").id()];
    assert_eq!(opened.index.contains(&topic("logs"), &gone).await.unwrap(), [false, false, true]);

    opened.fixture.settle().await;
    assert_eq!(opened.find("word").await, [10, 10, 30, 30, 40]);
    assert_eq!(opened.find("word AND NOT logmesh.offset:40").await, [10, 10, 30, 30]);
    let bars = opened.index.histogram(&selection("*"), std::time::Duration::from_secs(3_600)).await.unwrap();
    assert_eq!(bars.iter().map(|bar| bar.count).sum::<u64>(), 5);
    for (field, values) in [("logmesh.stream", 1), ("logmesh.offset", 3), ("_topic", 1)] {
        let facets = opened.index.facets(&selection("*"), field, 10).await.unwrap();
        let counted: u64 = facets.values.iter().map(|facet| facet.count).sum();
        assert_eq!((facets.values.len(), counted), (values, 5), "{field}: {facets:?}");
    }
}

/// A limit of documents or of bytes cuts the list by start, and says so.
pub async fn documents_come_in_parts(fixture: &impl Fixture) {
    let opened = with_copies(fixture).await;
    let starts = |page: &StoredPage| page.documents.iter().map(|one| one.range.start).collect::<Vec<_>>();
    for (from, expected) in [(0, [0, 10, 10]), (11, [20, 30, 30])] {
        let page = opened.page((from, 100), PageLimit::hits(3)).await;
        assert!(page.more && starts(&page) == expected, "{page:?}");
    }
    assert_eq!(starts(&opened.page((10, 31), PageLimit::hits(100)).await), [10, 10, 20, 30, 30]);
    let first = opened.page((0, u64::MAX), PageLimit { hits: 100, bytes: 1 }).await;
    assert!(first.more && starts(&first) == [0], "one comes whatever its size");
    let bytes = first.documents[0].body.len() * 5 / 2;
    assert_eq!(starts(&opened.page((0, u64::MAX), PageLimit { hits: 100, bytes }).await), [0, 10]);
}
