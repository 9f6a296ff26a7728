//! Finds documents over many slices. Blocking: called from blocking tasks only.

use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use bytes::Bytes;
use logmesh_index::query::field::TIMESTAMP;
use logmesh_index::{Bar, EventSpan, Hit, IndexError, Order, Page, PageLimit, Selection, Slice};
use logmesh_types::{DocId, StreamId, TopicName, UnixNanos};
use tantivy::columnar::Column;
use tantivy::query::{EnableScoring, Query, Weight};
use tantivy::schema::Value;
use tantivy::{DocAddress, Searcher, SegmentReader, TantivyDocument};

use crate::catalog::Catalog;
use crate::live::each_live;
use crate::page::{self, SortKey};
use crate::schema::{Fields, ID_COLUMNS, OFFSET_COLUMN, STREAM_COLUMNS, STREAM_FIELD, TIMESTAMP_COLUMN};
use crate::sum::places;
use crate::translate::{Translator, of_stream, rules_out, within};

/// The most bars that a histogram may have.
const MAX_BARS: usize = 10_000;

/// A slice that may hold documents of a selection.
pub(crate) struct Part {
    pub(crate) slice: Slice,
    /// See [`page::slice_number`].
    number: u64,
    searcher: Searcher,
    pub(crate) fields: Fields,
    /// All that is asked for but the time.
    any_time: Box<dyn Query>,
    /// All that is asked for.
    in_time: Box<dyn Query>,
}

/// How the times of a segment lie to those of a selection.
enum Overlap {
    None,
    Some,
    All,
}

impl Catalog {
    /// The slices that may hold documents of the selection. They are as they were when this was called.
    pub(crate) fn parts(&self, selection: &Selection) -> Result<Vec<Part>, IndexError> {
        let mut parts = Vec::new();
        for slice in self.names(&selection.topics) {
            let predicate = selection.query.resolve(&self.types(&slice.topic));
            if rules_out(&predicate, &slice.topic) {
                continue;
            }
            let Some(open) = self.get(&slice)? else { continue };
            let any_time = Translator { fields: open.fields(), topic: &slice.topic }.query(&predicate);
            let (from, to) = (selection.from.map(|time| time.0), selection.to.map(|time| time.0));
            let in_time = within(any_time.box_clone(), open.fields().timestamp(), from, to);
            let fields = *open.fields();
            let number = page::slice_number(&slice);
            parts.push(Part { slice, number, searcher: open.searcher(), fields, any_time, in_time });
        }
        Ok(parts)
    }

    pub(crate) fn search(
        &self,
        selection: &Selection,
        order: Order,
        limit: PageLimit,
        token: Option<&str>,
    ) -> Result<Page, IndexError> {
        let after = token.map(|token| page::read_token(selection, order, token)).transpose()?;
        let parts = self.parts(selection)?;
        let mut top = Top { order, after, limit: limit.hits, heap: BinaryHeap::new(), total: 0, left: 0 };
        for (number, part) in parts.iter().enumerate() {
            self.for_each_segment(part, selection, &mut |address, weight, segment| {
                top.collect((number, part.number), address, weight, segment)
            })?;
        }
        let (total, left) = (top.total, top.left);
        let found = top.heap.into_sorted_vec();
        let (mut hits, mut bytes) = (Vec::new(), 0);
        for found in &found {
            let part = &parts[found.part];
            let hit = self.on(&part.slice, || hit(part, found))?;
            bytes += hit.body.len();
            if bytes > limit.bytes && !hits.is_empty() {
                break;
            }
            hits.push(hit);
        }
        let last = found[..hits.len()].last().filter(|_| left > hits.len() as u64);
        let next_page_token = last.map(|last| page::token(selection, order, &last.key));
        Ok(Page { hits, next_page_token, total })
    }

    pub(crate) fn count(&self, selection: &Selection) -> Result<u64, IndexError> {
        let mut count = 0;
        for part in self.parts(selection)? {
            self.for_each_segment(&part, selection, &mut |_, weight, segment| {
                count += u64::from(weight.count(segment)?);
                Ok(())
            })?;
        }
        Ok(count)
    }

    pub(crate) fn histogram(&self, selection: &Selection, interval: Duration) -> Result<Vec<Bar>, IndexError> {
        let interval = i64::try_from(interval.as_nanos()).ok().filter(|nanos| *nanos > 0).ok_or_else(|| {
            IndexError::Unsupported { reason: "a bar must be between 1 ns and 292 years wide".to_owned() }
        })?;
        let mut bars: BTreeMap<i64, u64> = BTreeMap::new();
        for part in self.parts(selection)? {
            self.for_each_segment(&part, selection, &mut |_, weight, segment| {
                let times: Column<i64> = segment.fast_fields().i64(TIMESTAMP_COLUMN)?;
                each_live(weight, segment, &mut |docs| {
                    for time in docs.iter().filter_map(|doc| times.first(*doc)) {
                        let start = time.saturating_sub(time.rem_euclid(interval));
                        // One more than allowed is enough to know.
                        if bars.len() <= MAX_BARS || bars.contains_key(&start) {
                            *bars.entry(start).or_default() += 1;
                        }
                    }
                })
            })?;
        }
        if bars.len() > MAX_BARS {
            let reason = format!("the histogram has more than {MAX_BARS} bars: ask for wider ones, or for less time");
            return Err(IndexError::Unsupported { reason });
        }
        Ok(bars.into_iter().map(|(start, count)| Bar { start: UnixNanos(start), count }).collect())
    }

    pub(crate) fn spans(
        &self,
        topic: &TopicName,
        stream: &StreamId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<EventSpan>, IndexError> {
        let Ok(from) = i64::try_from(from) else { return Ok(Vec::new()) };
        let mut heap = BinaryHeap::new();
        for slice in self.names(std::slice::from_ref(topic)) {
            let Some(open) = self.get(&slice)? else { continue };
            let query = of_stream(open.fields(), STREAM_FIELD, &stream.to_string());
            let query = within(query, open.fields().offset(), Some(from), None);
            self.on(&slice, || collect_spans(&open.searcher(), query.as_ref(), limit, &mut heap))?;
        }
        Ok(heap.into_sorted_vec())
    }

    /// Calls `visit` with the number, the weight and the reader of each segment of the part that may hold documents of the
    /// selection.
    pub(crate) fn for_each_segment(
        &self,
        part: &Part,
        selection: &Selection,
        visit: Visit<'_>,
    ) -> Result<(), IndexError> {
        self.on(&part.slice, || part.for_each_segment(selection, visit))
    }

    /// The topics that have a document.
    pub(crate) fn topics(&self) -> Result<Vec<TopicName>, IndexError> {
        let mut topics = Vec::new();
        for slice in self.names(&[]) {
            if !topics.contains(&slice.topic) && self.get(&slice)?.is_some_and(|open| open.searcher().num_docs() > 0) {
                topics.push(slice.topic);
            }
        }
        topics.sort();
        Ok(topics)
    }
}

type Visit<'a> = &'a mut dyn FnMut(u32, &dyn Weight, &SegmentReader) -> tantivy::Result<()>;

impl Part {
    fn for_each_segment(&self, selection: &Selection, visit: Visit<'_>) -> tantivy::Result<()> {
        let scoring = EnableScoring::disabled_from_searcher(&self.searcher);
        let any_time = self.any_time.weight(scoring)?;
        let in_time = self.in_time.weight(scoring)?;
        for (number, segment) in self.searcher.segment_readers().iter().enumerate() {
            let weight = match overlap(selection, segment)? {
                Overlap::None => continue,
                Overlap::Some => &in_time,
                Overlap::All => &any_time,
            };
            visit(number as u32, weight.as_ref(), segment)?;
        }
        Ok(())
    }
}

fn overlap(selection: &Selection, segment: &SegmentReader) -> tantivy::Result<Overlap> {
    if selection.from.is_none() && selection.to.is_none() {
        return Ok(Overlap::All);
    }
    let times: Column<i64> = segment.fast_fields().i64(TIMESTAMP_COLUMN)?;
    let (first, last) = (times.min_value(), times.max_value());
    let (from, to) = (selection.from.map_or(i64::MIN, |time| time.0), selection.to.map(|time| time.0));
    if last < from || to.is_some_and(|to| first >= to) {
        return Ok(Overlap::None);
    }
    let inside = first >= from && to.is_none_or(|to| last < to);
    Ok(if inside && times.get_cardinality().is_full() { Overlap::All } else { Overlap::Some })
}

/// A hit that isn't read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    key: SortKey,
    part: usize,
    address: DocAddress,
}

/// The first hits in the order, after the last page's.
struct Top {
    order: Order,
    after: Option<SortKey>,
    limit: usize,
    /// The last of them on top.
    heap: BinaryHeap<Found>,
    /// Documents that match.
    total: u64,
    /// Those of them that come after the last page.
    left: u64,
}

impl Top {
    fn collect(
        &mut self,
        (part, slice): (usize, u64),
        segment_number: u32,
        weight: &dyn Weight,
        segment: &SegmentReader,
    ) -> tantivy::Result<()> {
        let keys = Keys::open(self.order, slice, segment)?;
        each_live(weight, segment, &mut |docs| {
            self.total += docs.len() as u64;
            for doc in docs {
                self.offer(&keys, part, DocAddress::new(segment_number, *doc));
            }
        })
    }

    fn offer(&mut self, keys: &Keys, part: usize, address: DocAddress) {
        let time = keys.times.first(address.doc_id).unwrap_or(i64::MIN);
        let earliest = SortKey::first_of(self.order, time);
        if self.after.is_some_and(|after| after.time_after(&earliest)) {
            return;
        }
        let full = self.heap.len() >= self.limit;
        if full && self.heap.peek().is_some_and(|worst| earliest.time_after(&worst.key)) {
            // Most documents end here; it comes after the page that is asked for.
            self.left += 1;
            return;
        }
        let key = keys.key(time, address.doc_id);
        if self.after.is_some_and(|after| key <= after) {
            return;
        }
        self.left += 1;
        self.heap.push(Found { key, part, address });
        if self.heap.len() > self.limit {
            self.heap.pop();
        }
    }
}

/// The columns that sort keys are made of.
struct Keys {
    order: Order,
    slice: u64,
    times: Column<i64>,
    offsets: Column<i64>,
    streams: [Column<u64>; 2],
    ids: [Column<u64>; 2],
}

impl Keys {
    fn open(order: Order, slice: u64, segment: &SegmentReader) -> tantivy::Result<Self> {
        let columns = segment.fast_fields();
        Ok(Self {
            order,
            slice,
            times: columns.i64(TIMESTAMP_COLUMN)?,
            offsets: columns.i64(OFFSET_COLUMN)?,
            streams: [columns.u64(STREAM_COLUMNS[0])?, columns.u64(STREAM_COLUMNS[1])?],
            ids: [columns.u64(ID_COLUMNS[0])?, columns.u64(ID_COLUMNS[1])?],
        })
    }

    fn key(&self, time: i64, doc: u32) -> SortKey {
        let offset = self.offsets.first(doc).unwrap_or(0);
        SortKey::new(self.order, time, whole(&self.streams, doc), offset, whole(&self.ids, doc), self.slice)
    }
}

/// The number whose halves lie in two columns.
pub(crate) fn whole(halves: &[Column<u64>; 2], doc: u32) -> u128 {
    let [high, low] = [&halves[0], &halves[1]].map(|half| u128::from(half.first(doc).unwrap_or(0)));
    high << 64 | low
}

fn hit(part: &Part, found: &Found) -> tantivy::Result<Hit> {
    let corrupt = || tantivy::TantivyError::InternalError(format!("no {TIMESTAMP} hit at {found:?}"));
    let document: TantivyDocument = part.searcher.doc(found.address)?;
    let body = document.get_first(part.fields.body).and_then(|value| value.as_bytes().map(Bytes::copy_from_slice));
    Ok(Hit { id: found.key.doc_id(), topic: part.slice.topic.clone(), body: body.ok_or_else(corrupt)? })
}

/// Keeps the first `limit` spans in the heap.
fn collect_spans(
    searcher: &Searcher,
    query: &dyn Query,
    limit: usize,
    heap: &mut BinaryHeap<EventSpan>,
) -> tantivy::Result<()> {
    let weight = query.weight(EnableScoring::disabled_from_searcher(searcher))?;
    for segment in searcher.segment_readers() {
        let columns = segment.fast_fields();
        let ids = [columns.u64(ID_COLUMNS[0])?, columns.u64(ID_COLUMNS[1])?];
        let place = places(segment)?;
        each_live(weight.as_ref(), segment, &mut |docs| {
            for doc in docs {
                let Some(range) = place(*doc) else { continue };
                heap.push(EventSpan { range, id: Some(DocId::from_bytes(whole(&ids, *doc).to_be_bytes())) });
                if heap.len() > limit {
                    heap.pop();
                }
            }
        })?;
    }
    Ok(())
}
