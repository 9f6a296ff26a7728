//! Lists documents with the slices that they lie in, and deletes single ones. Blocking: called from blocking tasks only.

use std::collections::{BTreeMap, BinaryHeap};

use bytes::Bytes;
use logmesh_index::{IndexError, PageLimit, Place, Slice, Stored, StoredPage};
use logmesh_types::{ByteRange, DocId, StreamId, TopicName};
use tantivy::query::EnableScoring;
use tantivy::schema::Value;
use tantivy::{DocAddress, Searcher, TantivyDocument, TantivyError};

use crate::catalog::Catalog;
use crate::live::each_live;
use crate::schema::{Fields, ID_COLUMNS, STREAM_FIELD};
use crate::search::whole;
use crate::sum::places;
use crate::translate::{of_stream, within};

/// A document that isn't read yet; the lesser comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    range: ByteRange,
    id: DocId,
    part: usize,
    address: DocAddress,
}

/// A slice with its documents.
struct Part {
    slice: Slice,
    searcher: Searcher,
    fields: Fields,
}

impl Catalog {
    pub(crate) fn stored(
        &self,
        topic: &TopicName,
        stream: &StreamId,
        starts: ByteRange,
        limit: PageLimit,
    ) -> Result<StoredPage, IndexError> {
        let limit = PageLimit { hits: limit.hits.max(1), ..limit };
        let offset = |offset: u64| i64::try_from(offset).unwrap_or(i64::MAX);
        let (from, to) = (Some(offset(starts.start)), Some(offset(starts.end)));
        let (mut parts, mut heap) = (Vec::new(), BinaryHeap::new());
        for slice in self.names(std::slice::from_ref(topic)) {
            let Some(open) = self.get(&slice)? else { continue };
            let query = of_stream(open.fields(), STREAM_FIELD, &stream.to_string());
            let query = within(query, open.fields().offset(), from, to);
            let part = Part { slice, searcher: open.searcher(), fields: *open.fields() };
            self.on(&part.slice, || part.collect(query.as_ref(), parts.len(), limit.hits, &mut heap))?;
            parts.push(part);
        }
        let found = heap.into_sorted_vec();
        let more = found.len() == limit.hits;
        let read = |found: &Found| {
            let part = &parts[found.part];
            self.on(&part.slice, || part.read(found))
        };
        StoredPage::fill(found.iter().map(read), more, limit.bytes)
    }

    /// Deletes documents, and says of each whether it was there.
    pub(crate) fn delete_documents(&self, topic: &TopicName, places: &[Place]) -> Result<Vec<bool>, IndexError> {
        let mut by_slice: BTreeMap<&str, Vec<(usize, DocId)>> = BTreeMap::new();
        for (at, place) in places.iter().enumerate() {
            if let Ok(id) = place.id.parse() {
                by_slice.entry(&place.slice).or_default().push((at, id));
            }
        }
        let mut deleted = vec![false; places.len()];
        for (date, documents) in by_slice {
            let slice = Slice { topic: topic.clone(), date: date.to_owned() };
            let ids: Vec<DocId> = documents.iter().map(|(_, id)| *id).collect();
            for ((at, _), was_there) in documents.into_iter().zip(self.delete_ids(&slice, &ids)?) {
                deleted[at] = was_there;
            }
        }
        Ok(deleted)
    }
}

impl Part {
    /// Keeps the first `limit` documents in the heap.
    fn collect(
        &self,
        query: &dyn tantivy::query::Query,
        part: usize,
        limit: usize,
        heap: &mut BinaryHeap<Found>,
    ) -> tantivy::Result<()> {
        let weight = query.weight(EnableScoring::disabled_from_searcher(&self.searcher))?;
        for (number, segment) in self.searcher.segment_readers().iter().enumerate() {
            let columns = segment.fast_fields();
            let ids = [columns.u64(ID_COLUMNS[0])?, columns.u64(ID_COLUMNS[1])?];
            let place = places(segment)?;
            each_live(weight.as_ref(), segment, &mut |docs| {
                for doc in docs {
                    let Some(range) = place(*doc) else { continue };
                    let id = DocId::from_bytes(whole(&ids, *doc).to_be_bytes());
                    heap.push(Found { range, id, part, address: DocAddress::new(number as u32, *doc) });
                    if heap.len() > limit {
                        heap.pop();
                    }
                }
            })?;
        }
        Ok(())
    }

    fn read(&self, found: &Found) -> tantivy::Result<Stored> {
        let document: TantivyDocument = self.searcher.doc(found.address)?;
        let body = document.get_first(self.fields.body).and_then(|value| value.as_bytes().map(Bytes::copy_from_slice));
        let no_body = || TantivyError::InternalError(format!("document {} has no body", found.id));
        let place = Place { slice: self.slice.date.clone(), id: found.id.to_string() };
        Ok(Stored { place, date: Some(self.slice.date.clone()), range: found.range, body: body.ok_or_else(no_body)? })
    }
}
