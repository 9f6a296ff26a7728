//! The documents of a segment that are still there. Tantivy's weights give deleted ones too, until a merge leaves them out.

use logmesh_types::DocId;
use tantivy::query::Weight;
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::{DocSet, SegmentReader, TERMINATED};

/// Calls `visit` with the documents that the weight finds and that aren't deleted, some at a time.
pub(crate) fn each_live(
    weight: &dyn Weight,
    segment: &SegmentReader,
    visit: &mut dyn FnMut(&[u32]),
) -> tantivy::Result<()> {
    let Some(alive) = segment.alive_bitset() else { return weight.for_each_no_score(segment, visit) };
    let mut live = Vec::new();
    weight.for_each_no_score(segment, &mut |docs| {
        live.clear();
        live.extend(docs.iter().copied().filter(|doc| alive.is_alive(*doc)));
        visit(&live);
    })
}

/// Which of these ids, in the order of their texts, a segment holds: notes it at the place given with each.
pub(crate) fn note_live(
    segment: &SegmentReader,
    id_field: Field,
    sorted: &[(String, usize)],
    found: &mut [bool],
) -> tantivy::Result<()> {
    let index = segment.inverted_index(id_field)?;
    for (id, at) in sorted {
        let Some(found) = found.get_mut(*at).filter(|found| !**found) else { continue };
        let Some(term) = index.terms().get(id.as_bytes())? else { continue };
        let Some(alive) = segment.alive_bitset() else {
            *found = true;
            continue;
        };
        let mut postings = index.read_postings_from_terminfo(&term, IndexRecordOption::Basic)?;
        while postings.doc() != TERMINATED && !*found {
            *found = alive.is_alive(postings.doc());
            postings.advance();
        }
    }
    Ok(())
}

/// Ids with their places, in the order of the dictionary: neighbouring lookups share its pages.
pub(crate) fn sorted(ids: &[DocId]) -> Vec<(String, usize)> {
    let mut sorted: Vec<(String, usize)> = ids.iter().enumerate().map(|(at, id)| (id.to_string(), at)).collect();
    sorted.sort_unstable();
    sorted
}
