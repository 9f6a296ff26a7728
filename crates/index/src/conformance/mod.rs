//! What every index must do, as tests. An implementation instantiates them:
//!
//! ```ignore
//! logmesh_index::conformance!(MyFixture::new());
//! ```

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod documents;
mod facets;
mod oracle;
mod queries;
mod repairing;
mod searching;
mod writing;

use std::sync::Arc;

use async_trait::async_trait;

pub use documents::{Doc, NOON, selection, slice, stream, topic};
pub use facets::*;
pub use oracle::*;
pub use queries::*;
pub use repairing::*;
pub use searching::*;
pub use writing::*;

use crate::query::Query;
use crate::{IndexReader, IndexRepair, IndexWriter, NewDoc, Order, Outcome, PageLimit, Selection};

/// An index to test, empty at first.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The implementation.
    type Index: IndexWriter + IndexRepair;

    /// Opens the index: the second time with what was written before. All handles of the first time are dropped then.
    async fn open(&self) -> Arc<Self::Index>;

    /// Returns once everything written is found by searches.
    async fn settle(&self) {}
}

/// An open index with its fixture, as the tests use it.
#[derive(Debug)]
pub struct Opened<'a, F: Fixture> {
    fixture: &'a F,
    /// The index.
    pub index: Arc<F::Index>,
}

impl<'a, F: Fixture> Opened<'a, F> {
    /// Opens the fixture's index.
    pub async fn new(fixture: &'a F) -> Self {
        Self { fixture, index: fixture.open().await }
    }

    /// Closes the index and opens it again.
    pub async fn reopen(self) -> Self {
        let Self { fixture, index } = self;
        drop(index);
        Self::new(fixture).await
    }

    /// Writes documents and waits until they are found.
    pub async fn write(&self, docs: impl IntoIterator<Item = NewDoc>) -> Vec<Outcome> {
        let outcomes = self.index.write(docs.into_iter().collect()).await.unwrap();
        self.fixture.settle().await;
        outcomes
    }

    /// Writes documents, all of them new.
    pub async fn create(&self, docs: impl IntoIterator<Item = NewDoc>) {
        for outcome in self.write(docs).await {
            assert_eq!(outcome, Outcome::Created);
        }
    }

    /// The `log.offset` of every document that the query finds, oldest first.
    pub async fn find(&self, query: &str) -> Vec<i64> {
        self.find_in(&selection(query)).await
    }

    /// The `log.offset` of every document of the selection, oldest first.
    pub async fn find_in(&self, selection: &Selection) -> Vec<i64> {
        let page = self.index.search(selection, Order::OldestFirst, PageLimit::hits(1_000), None).await.unwrap();
        assert_eq!(page.total, page.hits.len() as u64);
        assert_eq!(self.index.count(selection).await.unwrap(), page.total);
        page.hits.iter().map(documents::offset_of).collect()
    }
}

/// Reads a query that the test is sure of.
pub fn query(text: &str) -> Query {
    Query::parse_at(text, NOON).unwrap()
}

/// Makes a test of each function of the suite; the expression makes a fixture for each.
#[macro_export]
macro_rules! conformance {
    ($fixture:expr) => {
        $crate::conformance!(@each $fixture =>
            a_document_is_created_once
            a_document_is_a_duplicate_within_a_bulk
            slices_are_apart
            outcomes_come_in_order
            an_id_is_found_in_every_slice
            the_body_comes_back_as_it_was
            documents_survive_a_reopening
            a_slice_is_deleted
            declared_types_are_kept
            many_slices_are_written_and_found
            long_words_and_values_are_taken
            words_and_phrases_are_found
            patterns_are_found
            keywords_are_exact
            ranges_are_found
            documents_are_found_by_having_a_field
            conditions_are_joined
            topics_are_chosen
            hits_come_in_order
            pages_join_up
            pages_tell_slices_apart
            pages_stay_put_under_writes
            a_page_token_belongs_to_its_search
            times_bound_a_search
            bars_count_documents
            values_are_counted
            values_are_counted_by_their_types
            values_of_topics_and_slices_are_added_up
            very_many_values_are_counted_within_a_bound
            what_has_no_values_is_refused
            spans_tell_where_documents_lie
            sums_tell_what_documents_come_to
            copies_are_told_apart
            a_document_is_deleted_in_its_slice_only
            what_was_deleted_is_counted_nowhere
            documents_come_in_parts
            a_query_finds_what_its_definition_says
        );
    };
    (@each $fixture:expr => $($name:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::conformance::$name(&$fixture).await;
            }
        )+
    };
}
