//! Adds up what the documents of streams come to. Blocking: called from blocking tasks only.

use logmesh_index::{IndexError, StreamSum};
use logmesh_types::{ByteRange, StreamId, TopicName};
use tantivy::query::EnableScoring;
use tantivy::{Searcher, SegmentReader};

use crate::catalog::Catalog;
use crate::live::each_live;
use crate::schema::{Fields, LENGTH_COLUMN, OFFSET_COLUMN, STREAM_FIELD};
use crate::translate::of_stream;

impl Catalog {
    pub(crate) fn sums(
        &self,
        topic: &TopicName,
        streams: &[(StreamId, u64)],
    ) -> Result<Vec<Vec<StreamSum>>, IndexError> {
        let mut sums = vec![Vec::new(); streams.len()];
        for slice in self.names(std::slice::from_ref(topic)) {
            let Some(open) = self.get(&slice)? else { continue };
            self.on(&slice, || add_slice(&open.searcher(), open.fields(), streams, &mut sums))?;
        }
        Ok(sums)
    }
}

fn add_slice(
    searcher: &Searcher,
    fields: &Fields,
    streams: &[(StreamId, u64)],
    sums: &mut [Vec<StreamSum>],
) -> tantivy::Result<()> {
    for ((stream, before), slices) in streams.iter().zip(sums) {
        let mut sum = StreamSum::default();
        let query = of_stream(fields, STREAM_FIELD, &stream.to_string());
        let weight = query.weight(EnableScoring::disabled_from_searcher(searcher))?;
        for segment in searcher.segment_readers() {
            let place = places(segment)?;
            each_live(weight.as_ref(), segment, &mut |docs| {
                docs.iter()
                    .filter_map(|doc| place(*doc))
                    .filter(|range| range.start < *before)
                    .for_each(|range| sum.add(range));
            })?;
        }
        if sum.documents > 0 {
            slices.push(sum);
        }
    }
    Ok(())
}

/// Which bytes a document of the segment holds.
pub(crate) fn places(segment: &SegmentReader) -> tantivy::Result<impl Fn(u32) -> Option<ByteRange>> {
    let columns = segment.fast_fields();
    let (offsets, lengths) = (columns.i64(OFFSET_COLUMN)?, columns.i64(LENGTH_COLUMN)?);
    Ok(move |doc| {
        let start = offsets.first(doc).and_then(|start| u64::try_from(start).ok())?;
        let length = lengths.first(doc).and_then(|length| u64::try_from(length).ok()).unwrap_or(0);
        Some(ByteRange::new(start, start.saturating_add(length)))
    })
}
