//! Repairs, with a real transfer at work: what was broken by hand is named, put back, and nothing else is touched.

use logmesh_index::query::Query;
use logmesh_index::{IndexReader, Selection};
use logmesh_proto::audit::v1::{RangeRemoval, RangeRepair, RepairRequest, RepairSource, StreamKey, StreamRepair};
use logmesh_proto::fleet::v1::{RangeRead, ReadOutcome};
use logmesh_runtime::Readiness;
use logmesh_transfer::{Settings, Transfer};
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

impl Mesh {
    /// Transfer works from now on.
    fn start_transfer(&self) {
        let (bus, index): (Arc<dyn Bus>, _) = (self.bus.clone(), Arc::new(self.index.clone()));
        Transfer::start(bus, index, Settings::default(), Readiness::new(), &self.tasks);
    }

    async fn documents(&self) -> u64 {
        let query = Query::parse("*").unwrap();
        self.index.count(&Selection { query, from: None, to: None, topics: Vec::new() }).await.unwrap()
    }

    /// Waits until so many documents are there and nothing is on its way.
    async fn settle(&self, documents: u64) {
        let settled = async {
            while self.documents().await != documents || self.audit().await.iter().any(|one| one.on_its_way_bytes > 0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, settled).await.unwrap();
    }

    async fn delete(&self, date: &str) {
        self.index.delete_slice(&Slice { topic: self.topic.clone(), date: date.into() }).await.unwrap();
    }

    async fn repair(&self, numbers: &[u8]) -> Vec<StreamRepair> {
        let key = |number: &u8| StreamKey { topic: self.topic.to_string(), stream_id: stream(*number).to_string() };
        let request = RepairRequest { streams: numbers.iter().map(key).collect() };
        self.service().await.repair(Request::new(request)).await.unwrap().into_inner().streams
    }

    async fn bus_records(&self, topic: &TopicName) -> u64 {
        let mut records = 0;
        for partition in 0..4 {
            records += self.bus.watermarks(&TopicPartition { topic: topic.clone(), partition }).await.unwrap().high.0;
        }
        records
    }
}

fn counts(repairs: &[StreamRepair]) -> Vec<(u64, u64, bool)> {
    repairs.iter().map(|one| (one.events, one.bytes, one.audit.as_ref().unwrap().clean)).collect()
}

/// Streams 1 to 3 with 15 bytes of each day, in the index.
async fn three_streams_on_two_days() -> Mesh {
    let mesh = Mesh::new().await;
    mesh.start_transfer();
    for number in 1..=3 {
        mesh.push(&chunk(stream(number), &mesh.topic, 0, NOON)).await;
        mesh.push(&chunk(stream(number), &mesh.topic, 15, NEXT_DAY)).await;
    }
    mesh.settle(18).await;
    mesh
}

#[tokio::test]
async fn a_lost_day_is_named_and_put_back_and_again_changes_nothing() {
    let mesh = three_streams_on_two_days().await;
    mesh.delete("2026-02-01").await;
    let audits = mesh.audit().await;
    assert!(audits.iter().all(|one| places(&one.gaps) == [(15, 30)] && one.documents == 3), "{audits:?}");
    assert_eq!(audits[0].gaps[0].cause(), FindingCause::NotIndexed);

    assert_eq!(counts(&mesh.repair(&[1, 3]).await), [(3, 15, true), (3, 15, true)]);
    assert_eq!(mesh.documents().await, 15);
    assert_eq!(counts(&mesh.repair(&[1, 2, 3]).await), [(0, 0, true), (3, 15, true), (0, 0, true)]);
    let records = mesh.bus_records(&mesh.topic).await;
    assert_eq!(counts(&mesh.repair(&[1, 2, 3]).await), [(0, 0, true); 3]);
    assert_eq!((mesh.documents().await, mesh.bus_records(&mesh.topic).await), (18, records));
    assert!(mesh.audit().await.iter().all(|one| one.clean && one.documents == 6));
}

/// Nothing of a topic that is gone can be had from the bus, and no agent is there to read its file: the rest is put back.
#[tokio::test]
async fn a_topic_that_is_gone_from_the_bus_keeps_no_other_from_its_repair() {
    let mut mesh = three_streams_on_two_days().await;
    mesh.delete("2026-02-01").await;
    let gone: TopicName = "gone".parse().unwrap();
    mesh.report(stream(7), 15);
    mesh.reports[0].status.as_mut().unwrap().topic = gone.to_string();
    let key = |topic: &TopicName, number| StreamKey { topic: topic.to_string(), stream_id: stream(number).to_string() };
    // The one that is gone is the first by name too.
    let streams = vec![key(&gone, 7), key(&mesh.topic, 1), key(&mesh.topic, 2), key(&mesh.topic, 3)];
    let repaired =
        mesh.service().await.repair(Request::new(RepairRequest { streams })).await.unwrap().into_inner().streams;
    assert_eq!(counts(&repaired), [(0, 0, false), (3, 15, true), (3, 15, true), (3, 15, true)]);
    let gap = &repaired[0].audit.as_ref().unwrap().gaps[0];
    assert_eq!((gap.start_offset, gap.end_offset, gap.off_bus), (0, 15, true));
    assert_eq!(mesh.documents().await, 18);
}

/// Bytes of an index's file are flipped under the running process: the thorough audit calls the day's lines missing, and its
/// repair brings each back.
#[tokio::test]
async fn a_damaged_slice_is_a_gap_of_the_thorough_audit_and_is_put_back() {
    let mesh = three_streams_on_two_days().await;
    let slice = mesh._folder.join("index/slices/logs/2026-02-01");
    let mut files = slice.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let store = files.find(|path| path.extension().is_some_and(|extension| extension == "store")).unwrap();
    let mut bytes = std::fs::read(&store).unwrap();
    bytes[8] = !bytes[8];
    // In place: the file that the index has mapped.
    std::io::Write::write_all(&mut std::fs::OpenOptions::new().write(true).open(&store).unwrap(), &bytes).unwrap();
    assert!(mesh.audit().await.iter().all(|one| one.clean), "the sums don't tell");

    let thorough = AuditFleetRequest { thorough: true, ..AuditFleetRequest::default() };
    let audits = mesh.service().await.audit_fleet(Request::new(thorough)).await.unwrap().into_inner().streams;
    assert!(audits.len() == 3 && audits.iter().all(|one| places(&one.gaps) == [(15, 30)]), "{audits:?}");
    assert_eq!(counts(&mesh.repair(&[1, 2, 3]).await), [(3, 15, true); 3]);
    assert_eq!(mesh.documents().await, 18);
    assert!(mesh.audit().await.iter().all(|one| one.clean && one.documents == 6));
}

/// Killed between the bus and transfer, a repair has sent what it was to send, or a part; the next one sends the same again.
#[tokio::test]
async fn a_repair_that_was_broken_off_harms_nothing() {
    let mesh = Mesh::new().await;
    mesh.start_transfer();
    let chunk = chunk(stream(1), &mesh.topic, 0, NOON);
    mesh.push(&chunk).await;
    mesh.settle(3).await;
    mesh.delete("2026-01-31").await;
    for event in &document::of_chunk(&chunk)[..2] {
        let again = codec::repeated(codec::encode_event(event));
        mesh.bus.append(&mesh.topic, again).await.unwrap().await.unwrap();
    }
    let repaired = mesh.repair(&[1]).await;
    assert!(repaired[0].audit.as_ref().unwrap().clean, "{repaired:?}");
    assert_eq!(mesh.documents().await, 3);
}

#[tokio::test]
async fn what_the_bus_passed_over_is_booked_by_its_repair() {
    let mut mesh = Mesh::new().await;
    mesh.transfer(&chunk(stream(1), &mesh.topic, 0, NOON)).await;
    mesh.push(&chunk(stream(1), &mesh.topic, 15, NOON)).await;
    mesh.commit(&mesh.topic).await;
    mesh.report(stream(1), 30);
    let audit = mesh.audit_one().await;
    assert_eq!((places(&audit.gaps), audit.gaps[0].cause()), (vec![(15, 30)], FindingCause::NotBooked));
    mesh.start_transfer();
    let repaired = mesh.repair(&[1]).await;
    assert_eq!(counts(&repaired), [(3, 15, true)]);
    assert_eq!(repaired[0].audit.as_ref().unwrap().indexed_offset, 30);
}

#[tokio::test]
async fn what_the_bus_no_longer_holds_is_left_and_said() {
    let mesh = Mesh::new().await;
    let whole = chunk(stream(1), &mesh.topic, 0, NOON);
    mesh.index(&whole, &[0], NOON).await;
    mesh.index(&whole, &[0], NEXT_DAY).await;
    mesh.book(&mesh.topic, &booked(&whole)).await;
    let repaired = mesh.repair(&[1]).await;
    let audit = repaired[0].audit.as_ref().unwrap();
    assert_eq!((repaired[0].events, places(&audit.gaps), places(&audit.doubles)), (0, vec![(5, 15)], vec![]));
    assert!(audit.gaps[0].off_bus && audit.gaps[0].detail.contains("no longer holds it; the file: "), "{audit:?}");
    assert_eq!(repaired[0].removed_documents, 1, "gaps beside it don't keep a copy");
    assert!(!repaired[0].again);
}

/// What was removed: how many, where, from which slice.
fn removed(repair: &StreamRepair) -> (u64, Vec<(u64, u64, u64, &str)>) {
    let told = |one: &RangeRemoval| (one.start_offset, one.end_offset, one.documents);
    let ranges = repair.removed.iter().map(|one| (told(one), one.slice.as_str()));
    (repair.removed_documents, ranges.map(|((start, end, documents), slice)| (start, end, documents, slice)).collect())
}

/// An audit names copies and leaves them; a repair removes them, and what it removed is no gap.
#[tokio::test]
async fn copies_are_removed_and_each_line_stays_once() {
    let mesh = Mesh::new().await;
    mesh.start_transfer();
    let whole = chunk(stream(1), &mesh.topic, 0, NOON);
    mesh.push(&whole).await;
    mesh.push(&chunk(stream(2), &mesh.topic, 0, NOON)).await;
    mesh.settle(6).await;
    mesh.index(&whole, &[0, 1], NEXT_DAY).await;
    // The last line once more, under an id that somebody made up.
    let slice = Slice { topic: mesh.topic.clone(), date: "2026-01-31".into() };
    let body = document::of_chunk(&whole).pop().unwrap().body;
    mesh.index.write(vec![NewDoc { slice: slice.into(), id: DocId::from_bytes([5; 16]), body }]).await.unwrap();
    let doubles = |audits: &[StreamAudit]| audits.iter().map(|one| places(&one.doubles)).collect::<Vec<_>>();
    for _ in 0..2 {
        assert_eq!(doubles(&mesh.audit().await), [vec![(0, 15)], vec![]]);
        assert_eq!(mesh.documents().await, 9, "an audit removes nothing");
    }
    let records = mesh.bus_records(&mesh.topic).await;
    let repaired = mesh.repair(&[1, 2]).await;
    assert_eq!(counts(&repaired), [(0, 0, true), (0, 0, true)]);
    let (sum, ranges) = removed(&repaired[0]);
    assert_eq!((sum, ranges), (3, vec![(0, 10, 2, "2026-02-01"), (10, 15, 1, "2026-01-31")]));
    assert_eq!(removed(&repaired[1]), (0, vec![]));
    assert_eq!((mesh.documents().await, mesh.bus_records(&mesh.topic).await), (6, records));
    assert!(mesh.audit().await.iter().all(|one| one.clean && one.documents == 3));
    assert_eq!(removed(&mesh.repair(&[1]).await[0]), (0, vec![]), "twice the same repair changes nothing");

    // The line can come again, and finds its document.
    mesh.push(&chunk(stream(1), &mesh.topic, 0, NEXT_DAY)).await;
    mesh.settle(6).await;
    assert!(mesh.audit().await.iter().all(|one| one.clean));
}

/// Two contents of one range, with a gap beside them: the gap is mended, and the double left with its reason.
#[tokio::test]
async fn what_says_two_things_of_one_range_is_left_and_said() {
    let mesh = Mesh::new().await;
    mesh.start_transfer();
    let whole = chunk(stream(1), &mesh.topic, 0, NOON);
    mesh.push(&whole).await;
    mesh.settle(3).await;
    let mut other = whole.clone();
    other.data = b"aaaa\nBBBB\ncccc\n".as_slice().into();
    other.crc32c = crc32c::crc32c(&other.data);
    mesh.index(&other, &[1], NOON).await;
    for _ in 0..2 {
        let repaired = mesh.repair(&[1]).await.remove(0);
        let audit = repaired.audit.as_ref().unwrap();
        assert_eq!((places(&audit.doubles), removed(&repaired)), (vec![(5, 10)], (0, vec![])));
        assert!(audit.doubles[0].detail.contains("they don't say the same") && !audit.clean, "{audit:?}");
        assert!(!repaired.again);
    }
    assert_eq!(mesh.documents().await, 4);
}

fn read(start_offset: u64, end_offset: u64, outcome: ReadOutcome) -> RangeRead {
    let events = u64::from(outcome == ReadOutcome::Sent);
    RangeRead { start_offset, end_offset, outcome: outcome.into(), detail: "so it says".into(), events }
}

/// Nothing of two streams of one agent is in the index or on the bus.
async fn only_in_the_file() -> Mesh {
    let mesh = Mesh::new().await;
    for number in [1, 2] {
        mesh.book(&mesh.topic, &booked(&chunk(stream(number), &mesh.topic, 0, NOON))).await;
    }
    mesh
}

/// An agent that has no room for it now is asked again, and none of its streams is given up.
#[tokio::test]
async fn a_busy_agent_is_waited_for() {
    let mesh = only_in_the_file().await;
    let busy = || Err(Status::resource_exhausted("it has too much to do"));
    let (undone, sent) = (|| Ok(vec![read(0, 15, ReadOutcome::Undone)]), || Ok(vec![read(0, 15, ReadOutcome::Sent)]));
    mesh.reads.lock().unwrap().extend([busy(), undone(), undone(), sent(), busy(), sent()]);
    let repaired = mesh.repair(&[1, 2]).await;
    assert!(repaired.iter().all(|one| one.file_bytes == 15), "{repaired:?}");
    assert!(mesh.reads.lock().unwrap().is_empty());
}

/// One that never gets on is named after a while, and isn't asked for its other streams.
#[tokio::test]
async fn an_agent_that_stays_busy_is_named() {
    let mesh = only_in_the_file().await;
    let busy = || Err(Status::resource_exhausted("it has too much to do"));
    mesh.reads.lock().unwrap().extend([busy(), Ok(vec![read(0, 15, ReadOutcome::Undone)]), busy()]);
    let mut service = mesh.service().await;
    service.patience.standing = Duration::ZERO;
    let key = |number| StreamKey { topic: mesh.topic.to_string(), stream_id: stream(number).to_string() };
    let request = RepairRequest { streams: [1, 2].map(key).into() };
    let repaired = service.repair(Request::new(request)).await.unwrap().into_inner().streams;
    for one in &repaired {
        let gap = &one.audit.as_ref().unwrap().gaps[0];
        assert!(gap.detail.contains("asked 2 times and did not get on with it: so it says"), "{gap:?}");
        assert_eq!(gap.read_outcome(), ReadOutcome::Undone);
    }
    assert_eq!(mesh.reads.lock().unwrap().len(), 1);
}

/// One that is busy is asked again after the others, and all have one patience.
#[tokio::test]
async fn busy_agents_are_waited_for_together() {
    let mesh = Mesh::new().await;
    for number in [1, 2] {
        let mut book = booked(&chunk(stream(number), &mesh.topic, 0, NOON));
        book.agent = format!("web-{number}");
        mesh.book(&mesh.topic, &book).await;
    }
    let undone = |detail: &str| Ok(vec![RangeRead { detail: detail.into(), ..read(0, 15, ReadOutcome::Undone) }]);
    mesh.reads.lock().unwrap().extend(["first", "second", "first", "second"].map(undone));
    let mut service = mesh.service().await;
    service.patience.standing = Duration::ZERO;
    let key = |number| StreamKey { topic: mesh.topic.to_string(), stream_id: stream(number).to_string() };
    let request = RepairRequest { streams: [1, 2].map(key).into() };
    let repaired = service.repair(Request::new(request)).await.unwrap().into_inner().streams;
    let mut whys: Vec<&str> = (repaired.iter())
        .map(|one| one.audit.as_ref().unwrap().gaps[0].detail.rsplit("asked 2 times and did not get on with it: "))
        .filter_map(|mut parts| parts.next())
        .collect();
    whys.sort_unstable();
    assert_eq!(whys, ["first", "second"], "each was asked in turn");
    assert!(mesh.reads.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_agent_is_asked_for_the_rest_until_it_has_said_of_each_range() {
    let mesh = Mesh::new().await;
    let whole = chunk(stream(1), &mesh.topic, 0, NOON);
    mesh.book(&mesh.topic, &booked(&whole)).await;
    let first = vec![read(0, 5, ReadOutcome::Sent), read(5, 15, ReadOutcome::Undone)];
    let second = vec![read(5, 10, ReadOutcome::Changed), read(10, 15, ReadOutcome::Sent)];
    mesh.reads.lock().unwrap().extend([Ok(first), Ok(second)]);
    let repaired = mesh.repair(&[1]).await.remove(0);
    assert_eq!((repaired.events, repaired.file_events, repaired.file_bytes), (0, 2, 10), "{repaired:?}");
    let told = |one: &RangeRepair| (one.start_offset, one.end_offset, one.source(), one.read_outcome());
    let expected = [
        (0, 5, RepairSource::File, ReadOutcome::Unspecified),
        (5, 10, RepairSource::Unspecified, ReadOutcome::Changed),
        (10, 15, RepairSource::File, ReadOutcome::Unspecified),
    ];
    assert_eq!(repaired.ranges.iter().map(told).collect::<Vec<_>>(), expected);
    // Nobody stored it here, and nobody is connected any more.
    let again = mesh.repair(&[1]).await.remove(0);
    let gap = &again.audit.as_ref().unwrap().gaps[0];
    assert!(gap.detail.contains("it is not connected") && gap.read_outcome() == ReadOutcome::Undone, "{again:?}");
}

#[tokio::test]
async fn only_streams_that_are_known_are_repaired_and_each_is_named_once() {
    let mesh = Mesh::new().await;
    let service = mesh.service().await;
    let key = |topic: &str| StreamKey { topic: topic.into(), stream_id: stream(9).to_string() };
    for (streams, code) in [
        (vec![], Code::InvalidArgument),
        (vec![key("Not/Good")], Code::InvalidArgument),
        (vec![key("logs"), key("logs")], Code::InvalidArgument),
        (vec![key("logs")], Code::NotFound),
        (vec![key("nothing")], Code::NotFound),
    ] {
        let answer = service.repair(Request::new(RepairRequest { streams: streams.clone() })).await;
        assert_eq!(answer.unwrap_err().code(), code, "{streams:?}");
    }
}
