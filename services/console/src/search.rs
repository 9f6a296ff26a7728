//! `SearchService`: hits, counts, histograms and facets from the index, and the live tail from the bus.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use logmesh_grpc::{data_loss, failed_precondition, internal, page_size, resource_exhausted, unavailable};
use logmesh_index::query::Query;
use logmesh_index::{Facets, Hit, IndexError, IndexReader, MAX_FACETS, Order, Page, PageLimit, Selection};
use logmesh_proto::search::v1 as proto;
use logmesh_proto::search::v1::search_service_server::SearchService;
use logmesh_proto::time::{std_duration, timestamp};
use logmesh_types::UnixNanos;
use logmesh_types::limits::MAX_PAGE_SIZE;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::{Request, Response, Status};

use crate::context::Wanted;
use crate::request::{bad_field, page_token, query, read_page_token, selection, topics};
use crate::tail::Tails;
use crate::topics::Topics;

/// Bytes of documents in one page: the message stays below what clients decode, unless its only hit is larger.
const PAGE_BYTES: usize = 3 << 20;

/// The width of a bar that doesn't say, and the least.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// The values of a list that doesn't say.
const DEFAULT_FACETS: usize = 10;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    index: Arc<dyn IndexReader>,
    places: Arc<Semaphore>,
    tails: Tails,
    topics: Topics,
}

impl Search {
    pub(crate) fn new(index: Arc<dyn IndexReader>, max_searches: usize, tails: Tails, topics: Topics) -> Self {
        Self { index, places: Arc::new(Semaphore::new(max_searches)), tails, topics }
    }

    fn place(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.places.try_acquire().map_err(|_| {
            resource_exhausted(
                "TOO_MANY_SEARCHES",
                "as many searches run as this console allows at a time; try again later",
            )
        })
    }

    /// Refuses a selection with a topic that there isn't. One topic in which something was found is one, and so is what the
    /// query demands.
    async fn check_topics(&self, selection: &Selection, found: bool) -> Result<(), Status> {
        if found && selection.topics.len() <= 1 {
            return Ok(());
        }
        self.topics.check(&selection.topics, &selection.query).await
    }

    /// A page of at most so many hits and [`PAGE_BYTES`], but of one hit at least.
    async fn page(
        &self,
        selection: &Selection,
        order: Order,
        limit: usize,
        token: Option<&str>,
    ) -> Result<Page, Status> {
        let limit = PageLimit { hits: limit, bytes: PAGE_BYTES };
        self.index.search(selection, order, limit, token).await.map_err(status)
    }
}

#[tonic::async_trait]
impl SearchService for Search {
    type TailStream = BoxStream<'static, Result<proto::TailResponse, Status>>;

    async fn search(&self, request: Request<proto::SearchRequest>) -> Result<Response<proto::SearchResponse>, Status> {
        let request = request.into_inner();
        let (now, token) = read_page_token(&request.page_token)?;
        let (start, end) = (request.start_time.as_ref(), request.end_time.as_ref());
        let selection = selection(&request.query, start, end, &request.topics, now)?;
        let order = match proto::SortOrder::try_from(request.order) {
            Ok(proto::SortOrder::OldestFirst) => Order::OldestFirst,
            Ok(_) => Order::NewestFirst,
            Err(_) => return Err(bad_field("order", "it is none of the orders")),
        };
        let limit = page_size(request.page_size, MAX_PAGE_SIZE)
            .ok_or_else(|| bad_field("page_size", "it must not be negative"))?;
        let _place = self.place()?;
        if request.count_only {
            let total = self.index.count(&selection).await.map_err(status)?;
            self.check_topics(&selection, total > 0).await?;
            return Ok(Response::new(proto::SearchResponse { total, ..Default::default() }));
        }
        let page = self.page(&selection, order, limit, token).await?;
        if token.is_none() {
            self.check_topics(&selection, page.total > 0).await?;
        }
        Ok(Response::new(proto::SearchResponse {
            hits: page.hits.into_iter().map(hit).collect(),
            next_page_token: page.next_page_token.map(|token| page_token(now, &token)).unwrap_or_default(),
            total: page.total,
        }))
    }

    async fn histogram(
        &self,
        request: Request<proto::HistogramRequest>,
    ) -> Result<Response<proto::HistogramResponse>, Status> {
        let request = request.into_inner();
        let (start, end) = (request.start_time.as_ref(), request.end_time.as_ref());
        let selection = selection(&request.query, start, end, &request.topics, UnixNanos::now())?;
        let interval = match &request.interval {
            None => DEFAULT_INTERVAL,
            Some(interval) => std_duration(interval)
                .filter(|interval| *interval >= MIN_INTERVAL)
                .ok_or_else(|| bad_field("interval", "it must be 1 ms or more"))?,
        };
        let _place = self.place()?;
        let bars = self.index.histogram(&selection, interval).await.map_err(status)?;
        self.check_topics(&selection, !bars.is_empty()).await?;
        let bars = bars.iter().map(|bar| proto::Bar { start_time: Some(timestamp(bar.start)), count: bar.count });
        Ok(Response::new(proto::HistogramResponse { bars: bars.collect() }))
    }

    async fn facets(&self, request: Request<proto::FacetsRequest>) -> Result<Response<proto::FacetsResponse>, Status> {
        let request = request.into_inner();
        let (start, end) = (request.start_time.as_ref(), request.end_time.as_ref());
        let selection = selection(&request.query, start, end, &request.topics, UnixNanos::now())?;
        if request.field.is_empty() {
            return Err(bad_field("field", "it must name the field whose values are to be counted"));
        }
        let limit = match usize::try_from(request.limit) {
            Ok(0) => DEFAULT_FACETS,
            Ok(limit @ 1..=MAX_FACETS) => limit,
            _ => return Err(bad_field("limit", format!("it must be 0 to {MAX_FACETS}"))),
        };
        let _place = self.place()?;
        let facets = self.index.facets(&selection, &request.field, limit).await.map_err(status)?;
        self.check_topics(&selection, !facets.values.is_empty()).await?;
        Ok(Response::new(facets_response(facets, PAGE_BYTES)))
    }

    async fn get_context(
        &self,
        request: Request<proto::GetContextRequest>,
    ) -> Result<Response<proto::GetContextResponse>, Status> {
        let request = request.into_inner();
        let wanted = Wanted::read(&request)?;
        let topic = wanted.topic.clone();
        let _place = self.place()?;
        if let Some(context) = wanted.find(self.index.clone()).await? {
            return Ok(Response::new(context));
        }
        self.topics.check(&[topic], &Query::all()).await?;
        Err(Wanted::missing(&request))
    }

    async fn tail(&self, request: Request<proto::TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        let request = request.into_inner();
        let (query, topics) = (query(&request.query, UnixNanos::now())?, topics(&request.topics)?);
        // From now on nothing is missed, however long it takes to say which topics there are.
        let tail = self.tails.open(query.clone(), topics.clone()).await?;
        // A tail may well be there before its topic is, so that it's told and not refused.
        let notes = self.topics.missing(&topics, &query).await;
        if notes.is_empty() {
            return Ok(Response::new(tail));
        }
        let first = proto::TailResponse { notes, ..Default::default() };
        Ok(Response::new(stream::iter([Ok(first)]).chain(tail).boxed()))
    }
}

/// The values as they go over the wire: those that `bytes` have room for.
fn facets_response(facets: Facets, bytes: usize) -> proto::FacetsResponse {
    let mut response =
        proto::FacetsResponse { others: facets.others, error_bound: facets.error_bound, ..Default::default() };
    let mut left = Some(bytes);
    for facet in facets.values {
        left = left.and_then(|left| left.checked_sub(facet.value.len()));
        match left {
            Some(_) => response.values.push(proto::FacetValue { value: facet.value, count: facet.count }),
            None => response.others += facet.count,
        }
    }
    response
}

/// The hit as it goes over the wire.
pub(crate) fn hit(hit: Hit) -> proto::Hit {
    proto::Hit {
        id: hit.id.to_string(),
        topic: hit.topic.into(),
        // The index takes JSON objects only, and JSON is UTF-8.
        document: String::from_utf8_lossy(&hit.body).into_owned(),
    }
}

pub(crate) fn status(error: IndexError) -> Status {
    match &error {
        IndexError::Unavailable { .. } | IndexError::Damaged { .. } | IndexError::Mapping { .. } => {
            index_status(&error, error.to_string())
        }
        IndexError::Unsupported { reason } => bad_field("query", reason),
        IndexError::NotCountable { reason } => bad_field("field", reason),
        IndexError::BadPageToken => bad_field("page_token", &error),
    }
}

/// What an error of the index is that no request is at fault for, in these words.
pub(crate) fn index_status(error: &IndexError, message: String) -> Status {
    match error {
        IndexError::Unavailable { .. } => unavailable("INDEX_UNAVAILABLE", message),
        IndexError::Damaged { .. } => data_loss("INDEX_DAMAGED", message),
        IndexError::Mapping { .. } => failed_precondition("INDEX_MAPPING", message),
        IndexError::Unsupported { .. } | IndexError::NotCountable { .. } | IndexError::BadPageToken => {
            internal(message)
        }
    }
}

#[cfg(test)]
mod tests {
    use logmesh_index::Facet;

    use super::*;

    #[test]
    fn long_values_are_left_out_and_counted() {
        let values = [("x".repeat(10), 5), ("y".repeat(9), 3), ("z".to_owned(), 2)];
        let values = values.into_iter().map(|(value, count)| Facet { value, count }).collect();
        let facets = Facets { values, others: 7, error_bound: 1 };
        let all = facets_response(facets.clone(), 20);
        assert_eq!((all.values.len(), all.others, all.error_bound), (3, 7, 1));
        let cut = facets_response(facets, 18);
        assert_eq!((cut.values.len(), cut.others), (1, 12));
    }
}
