//! Days that are retired: what isn't in the index any more is told apart from what is missing.

use logmesh_bus::{Cleanup, NewRecord, TopicSpec};
use logmesh_proto::audit::v1::{RepairRequest, StreamKey};
use logmesh_record::Mark;

use super::*;

impl Mesh {
    /// Two chunks of a stream, read on two days, of which only the second's documents are in the index; and its book.
    async fn without_the_first_day(&self) -> Book {
        let (old, new) = (chunk(stream(1), &self.topic, 0, NOON), chunk(stream(1), &self.topic, 15, NEXT_DAY));
        self.push(&old).await;
        self.push(&new).await;
        self.index(&new, &[0, 1, 2], NEXT_DAY).await;
        let mut book = booked(&new);
        book.slices.place(ByteRange::new(0, 15), "2026-01-31".parse().unwrap());
        book.slices.place(ByteRange::new(15, 30), "2026-02-01".parse().unwrap());
        self.book(&self.topic, &book).await;
        self.commit(&self.topic).await;
        book
    }

    /// Retires the days before this one, as transfer's leader does.
    async fn retire(&self, before: &str) {
        let (name, before) = (TopicName::jobs(), before.parse().unwrap());
        self.bus
            .ensure_topic(&TopicSpec { name: name.clone(), partitions: 1, cleanup: Cleanup::Compact })
            .await
            .unwrap();
        let mark = Mark { before, today: before };
        let (key, value) = (mark.key(&self.topic).into(), serde_json::to_vec(&mark).unwrap().into());
        let record = NewRecord { key, value, ..NewRecord::default() };
        self.bus.append(&name, record).await.unwrap().await.unwrap();
    }
}

#[tokio::test]
async fn a_retired_day_is_no_gap_and_a_repair_does_not_bring_it_back() {
    let mesh = Mesh::new().await;
    mesh.without_the_first_day().await;
    let missing = mesh.audit_one().await;
    assert_eq!((places(&missing.gaps), missing.retired_bytes), (vec![(0, 15)], 0));
    mesh.retire("2026-01-31").await;
    assert_eq!(places(&mesh.audit_one().await.gaps), [(0, 15)], "the day itself isn't retired");
    mesh.retire("2026-02-01").await;
    let audit = mesh.audit_one().await;
    assert!(audit.clean, "{audit:?}");
    assert_eq!((audit.retired_bytes, audit.indexed_bytes, audit.documents), (15, 15, 3));
    let ranges: Vec<(u64, u64)> = audit.retired.iter().map(|one| (one.start_offset, one.end_offset)).collect();
    assert_eq!(ranges, [(0, 15)]);
    let key = StreamKey { topic: mesh.topic.to_string(), stream_id: stream(1).to_string() };
    let request = Request::new(RepairRequest { streams: vec![key] });
    let repaired = mesh.service().await.repair(request).await.unwrap().into_inner().streams.remove(0);
    assert_eq!((repaired.events, repaired.audit.unwrap().clean), (0, true));

    // What is still there, or there again for a moment, is no fault; what is missing of a day that isn't retired is one.
    mesh.index(&chunk(stream(1), &mesh.topic, 0, NOON), &[1], NOON).await;
    assert!(mesh.audit_one().await.clean);
    mesh.index.delete_slice(&Slice { topic: mesh.topic.clone(), date: "2026-02-01".into() }).await.unwrap();
    let audit = mesh.audit_one().await;
    assert_eq!((places(&audit.gaps), audit.retired_bytes), (vec![(15, 30)], 15));
}

#[tokio::test]
async fn a_book_from_before_days_were_known_makes_no_gap_of_what_may_be_retired() {
    let mesh = Mesh::new().await;
    let mut book = mesh.without_the_first_day().await;
    book.slices = Default::default();
    let other = Book { stream: stream(2), ..book };
    mesh.book(&mesh.topic, &other).await;
    let of_other = async || mesh.audit().await.into_iter().find(|one| one.stream_id == stream(2).to_string()).unwrap();
    assert_eq!(places(&of_other().await.gaps), [(0, 30)]);
    mesh.retire("2026-02-01").await;
    let audit = of_other().await;
    assert_eq!((audit.clean, audit.retired_bytes), (true, 30), "{audit:?}");
}
