//! The documents that a query doesn't find.
//!
//! Tantivy's own exclusion (0.27) asks a phrase that has come to its end for an earlier document, which trips one of its
//! assertions. This one only ever goes forwards.

use tantivy::query::{ConstScorer, EnableScoring, Explanation, Query, Scorer, Weight};
use tantivy::{DocId, DocSet, Score, SegmentReader, TERMINATED, TantivyError};

/// Finds what `0` doesn't.
#[derive(Debug)]
pub(crate) struct NotQuery(pub(crate) Box<dyn Query>);

impl Clone for NotQuery {
    fn clone(&self) -> Self {
        Self(self.0.box_clone())
    }
}

struct NotWeight(Box<dyn Weight>);

struct Complement {
    excluded: Box<dyn Scorer>,
    max_doc: DocId,
    doc: DocId,
}

impl Query for NotQuery {
    fn weight(&self, scoring: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        Ok(Box::new(NotWeight(self.0.weight(scoring)?)))
    }
}

impl Weight for NotWeight {
    fn scorer(&self, reader: &SegmentReader, boost: Score) -> tantivy::Result<Box<dyn Scorer>> {
        let excluded = self.0.scorer(reader, boost)?;
        let mut complement = Complement { excluded, max_doc: reader.max_doc(), doc: 0 };
        complement.skip_excluded();
        Ok(Box::new(ConstScorer::new(complement, boost)))
    }

    fn explain(&self, _: &SegmentReader, _: DocId) -> tantivy::Result<Explanation> {
        Err(TantivyError::InvalidArgument("a search here has no scores to explain".to_owned()))
    }
}

impl Complement {
    /// Goes on to the first document, this one included, that isn't excluded.
    fn skip_excluded(&mut self) -> DocId {
        while self.doc < self.max_doc {
            if self.excluded.doc() < self.doc {
                self.excluded.seek(self.doc);
            }
            if self.excluded.doc() != self.doc {
                return self.doc;
            }
            self.doc += 1;
        }
        self.doc = TERMINATED;
        TERMINATED
    }
}

impl DocSet for Complement {
    fn advance(&mut self) -> DocId {
        self.doc = self.doc.saturating_add(1);
        self.skip_excluded()
    }

    fn seek(&mut self, target: DocId) -> DocId {
        self.doc = self.doc.max(target);
        self.skip_excluded()
    }

    fn doc(&self) -> DocId {
        self.doc
    }

    fn size_hint(&self) -> u32 {
        self.max_doc.saturating_sub(self.excluded.size_hint())
    }
}
