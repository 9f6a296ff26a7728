//! The audit of one stream: agent, bus, books and index put side by side.

use std::collections::BTreeMap;

use logmesh_index::sum::hold;
use logmesh_index::{IndexReader, StreamSum};
use logmesh_proto::audit::v1::{Finding, FindingCause, StreamAudit, StreamRange};
use logmesh_proto::fleet::v1::StreamStatus;
use logmesh_record::Book;
use logmesh_types::{ByteRange, Day, Ranges, StreamId, TopicName};

use super::AuditError;
use super::coverage::{Coverage, Findings};
use super::ledger::{Entry, Ledger};
use super::page::Candidate;
use super::source::{self, Arrived};

/// Documents that are asked of the index at a time.
const SPANS: usize = 10_000;

/// The most retired ranges that are listed for a stream.
const MAX_RETIRED: usize = 100;

/// A stream, with all that is known of it but what the index holds.
pub(super) struct Look<'a> {
    candidate: &'a Candidate,
    /// What the bus knows of the stream, by topic.
    known: &'a [(TopicName, Entry)],
    entry: &'a Entry,
    partition: u32,
    flow: Flow,
    /// What documents should hold.
    indexed: Ranges,
    /// What isn't in the index any more, since the days are retired on which it was read.
    retired: Ranges,
}

/// What came of a stream's audit.
#[derive(Debug)]
pub(super) struct Audited {
    pub(super) audit: StreamAudit,
    /// What is missing, and wasn't lost at the source: more than the audit lists.
    pub(super) missing: Ranges,
    /// What several documents of the topic hold: more than the audit lists.
    pub(super) doubled: Ranges,
    /// False if neither an agent nor the bus knows of such a stream.
    pub(super) known: bool,
}

impl<'a> Look<'a> {
    /// Takes together what is known of a stream. The ledger must have been read after the agent's report.
    pub(super) fn new(candidate: &'a Candidate, ledger: &'a Ledger) -> Self {
        static NOTHING: Entry = Entry { book: None, waiting: Ranges::EMPTY, waits_at: None, more_waits: false };
        let known = ledger.of(candidate.stream);
        let entry = known.iter().find(|(topic, _)| *topic == candidate.topic).map_or(&NOTHING, |(_, entry)| entry);
        let status = candidate.reported.as_ref().and_then(|reported| reported.status.as_ref());
        let flow = Flow::new(status, entry, known);
        let stored = flow.done.without(&flow.rejected);
        let retired = retired(entry, ledger.marks.before(&candidate.topic)).and(&stored);
        let indexed = stored.without(&retired);
        let partition = ledger.partition(&candidate.topic, candidate.stream).unwrap_or_default();
        Self { candidate, known, entry, partition, flow, indexed, retired }
    }

    /// The bytes of which there were documents, those that are retired too: theirs are there until their slice is deleted.
    fn stored(&self) -> Ranges {
        self.indexed.as_slice().iter().chain(self.retired.as_slice()).copied().collect()
    }

    /// Documents that begin before this offset should be as the books say. Others may be there, and aren't booked yet.
    fn end(&self) -> u64 {
        self.indexed.bounds().map_or(u64::MAX, |bounds| bounds.end)
    }

    /// Compares with the index: by the sums of its documents and, if there are none or they tell of a fault, one by one.
    pub(super) async fn finish(
        self,
        sums: Option<Vec<StreamSum>>,
        index: &dyn IndexReader,
    ) -> Result<Audited, AuditError> {
        let coverage = match sums.filter(|sums| hold(sums, &self.indexed) || hold(sums, &self.stored())) {
            Some(sums) => Coverage::whole(sums.iter().map(|sum| sum.documents).sum()),
            None => compare(&self.candidate.topic, self.candidate.stream, &self.indexed, index).await?,
        };
        let mut lost = Findings::default();
        self.flow.missing.as_slice().iter().for_each(|range| {
            let detail = || "durable on the bus, and neither booked nor on its way".to_owned();
            lost.add(*range, FindingCause::NotBooked, detail);
        });
        let missing = [coverage.gaps.ranges(), lost.ranges()];
        let missing = missing.into_iter().flat_map(|ranges| ranges.as_slice()).copied().collect();
        let status = self.status();
        let lost = lost.with(status.map(|status| source::lost(status, &self.flow.arrived)).unwrap_or_default());
        let doubled = coverage.doubles.ranges().clone();
        let doubles = coverage.doubles.merge(elsewhere(&self.indexed, &self.candidate.topic, self.known));
        let audit = self.answer(coverage.documents, coverage.gaps.with(lost), doubles);
        let known =
            self.candidate.reported.is_some() || self.known.iter().any(|(topic, _)| *topic == self.candidate.topic);
        Ok(Audited { audit, missing, doubled, known })
    }

    fn status(&self) -> Option<&StreamStatus> {
        self.candidate.reported.as_ref().and_then(|reported| reported.status.as_ref())
    }

    fn answer(&self, documents: u64, gaps: Vec<Finding>, doubles: Vec<Finding>) -> StreamAudit {
        let (candidate, book, status) = (self.candidate, self.entry.book.as_ref(), self.status());
        let said = |said: Option<&String>, booked: Option<&String>| {
            said.or(booked).filter(|text| !text.is_empty()).cloned().unwrap_or_default()
        };
        StreamAudit {
            stream_id: candidate.stream.to_string(),
            topic: candidate.topic.to_string(),
            agent_id: said(candidate.reported.as_ref().map(|one| &one.agent_id), book.map(|book| &book.agent)),
            path: said(status.map(|status| &status.path), book.map(|book| &book.path)),
            start_offset: status.map_or_else(|| book.map_or(0, Book::start), |status| status.start_offset),
            size: status.map_or(0, |status| status.size),
            read_offset: status.map_or(0, |status| status.read_offset),
            acked_offset: status.map_or(0, |status| status.acked_offset),
            indexed_offset: book.map_or(0, Book::watermark),
            documents,
            on_its_way_bytes: self.flow.on_its_way,
            dead_letter_bytes: self.flow.rejected.bytes(),
            clean: gaps.is_empty() && doubles.is_empty(),
            gaps,
            doubles,
            agent_reported: candidate.reported.as_ref().is_some_and(|one| one.agent_online),
            unreachable_servers: Vec::new(),
            partition: self.partition,
            indexed_bytes: self.indexed.bytes(),
            dead_letter_events: book.map_or(0, |book| book.rejected_events),
            waiting_offset: self.entry.waits_at.map(|offset| offset.0),
            retired_bytes: self.retired.bytes(),
            retired: self.retired.as_slice().iter().take(MAX_RETIRED).map(stream_range).collect(),
        }
    }
}

fn stream_range(range: &ByteRange) -> StreamRange {
    StreamRange { start_offset: range.start, end_offset: range.end }
}

/// What of a stream isn't expected in the index, of whose topic the days before this one are retired. Of bytes that were booked before
/// books knew slices it isn't known; they aren't called missing.
fn retired(entry: &Entry, before: Option<Day>) -> Ranges {
    let (Some(book), Some(_)) = (&entry.book, before) else { return Ranges::EMPTY };
    let unknown = book.done.without(&book.slices.known());
    book.slices.retired(before).as_slice().iter().chain(unknown.as_slice()).copied().collect()
}

/// What the documents of the streams come to: a few calls for each topic, whatever the number of documents.
pub(super) async fn sums(looks: &[Look<'_>], index: &dyn IndexReader) -> Result<Vec<Vec<StreamSum>>, AuditError> {
    let mut topics: BTreeMap<&TopicName, Vec<usize>> = BTreeMap::new();
    for (place, look) in looks.iter().enumerate() {
        topics.entry(&look.candidate.topic).or_default().push(place);
    }
    let mut sums = vec![Vec::new(); looks.len()];
    for (topic, places) in topics {
        let asked: Vec<_> = places.iter().map(|place| (looks[*place].candidate.stream, looks[*place].end())).collect();
        let answered = index.sums(topic, &asked).await?;
        places.into_iter().zip(answered).for_each(|(place, sum)| sums[place] = sum);
    }
    Ok(sums)
}

/// What is indexed in this topic and, as the books say, in another one too.
fn elsewhere(indexed: &Ranges, topic: &TopicName, known: &[(TopicName, Entry)]) -> Findings {
    let mut twice: Vec<(ByteRange, &TopicName)> = Vec::new();
    for (other, entry) in known.iter().filter(|(other, _)| other != topic) {
        let there = booked(entry, |book| &book.done).without(&booked(entry, |book| &book.rejected));
        twice.extend(indexed.and(&there).as_slice().iter().map(|range| (*range, other)));
    }
    twice.sort();
    let mut doubles = Findings::default();
    twice.into_iter().for_each(|(range, other)| {
        let detail = || format!("booked as indexed in topic {other} as well");
        doubles.add(range, FindingCause::OtherTopic, detail);
    });
    doubles
}

/// Where the bytes of a stream are between file and index.
struct Flow {
    /// Booked as done, rejected ones included.
    done: Ranges,
    rejected: Ranges,
    /// Bytes on the bus that aren't done.
    on_its_way: u64,
    /// What should be done or on its way, and is neither.
    missing: Ranges,
    arrived: Arrived,
}

impl Flow {
    fn new(status: Option<&StreamStatus>, entry: &Entry, known: &[(TopicName, Entry)]) -> Self {
        let done = booked(entry, |book| &book.done);
        let waiting = entry.waiting.without(&done);
        // A rule that changed its topic sends the rest of a file there.
        let arrived = Arrived {
            ranges: known
                .iter()
                .flat_map(|(_, entry)| [booked(entry, |book| &book.done), entry.waiting.clone()])
                .flat_map(|ranges| ranges.as_slice().to_vec())
                .collect(),
            more_waits: known.iter().any(|(_, entry)| entry.more_waits),
        };
        let lost = status.map(source::ranges).unwrap_or_default();
        let mut missing = expected(&done, status).without(&arrived.ranges).without(&lost);
        let mut on_its_way = waiting.bytes();
        if arrived.more_waits {
            on_its_way += missing.bytes();
            missing = Ranges::default();
        }
        Self { done, rejected: booked(entry, |book| &book.rejected), on_its_way, missing, arrived }
    }
}

/// What should be done or on its way: all from the first byte that was ever done to the last that is done or was acked.
/// An agent that lost its state may begin anew behind what it has read: what it skipped lies between.
fn expected(done: &Ranges, status: Option<&StreamStatus>) -> Ranges {
    let mut bounds = done.bounds();
    if let Some(status) = status {
        let word = ByteRange::new(status.start_offset, status.acked_offset.max(status.start_offset));
        bounds = Some(bounds.map_or(word, |done| ByteRange::new(done.start.min(word.start), done.end.max(word.end))));
    }
    bounds.into_iter().collect()
}

fn booked(entry: &Entry, part: impl FnOnce(&Book) -> &Ranges) -> Ranges {
    entry.book.as_ref().map(|book| part(book).clone()).unwrap_or_default()
}

/// Reads where the documents of a stream lie and compares that with what should be there.
async fn compare<'a>(
    topic: &TopicName,
    stream: StreamId,
    expected: &'a Ranges,
    index: &dyn IndexReader,
) -> Result<Coverage<'a>, AuditError> {
    let mut coverage = Coverage::new(expected);
    let mut from = 0;
    loop {
        let spans = index.spans(topic, &stream, from, SPANS).await?;
        let (first, last) = match (spans.first(), spans.last()) {
            (Some(first), Some(last)) if spans.len() >= SPANS => (first.range.start, last.range.start),
            _ => {
                spans.into_iter().for_each(|span| coverage.add(span));
                coverage.finish();
                return Ok(coverage);
            }
        };
        // More documents may begin where this page ends: they come with the next. Where a whole page begins at one
        // byte, the rest of them adds nothing to what was found.
        from = if first == last { last + 1 } else { last };
        spans.into_iter().filter(|span| span.range.start < from).for_each(|span| coverage.add(span));
    }
}
