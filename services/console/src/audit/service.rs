//! `logmesh.audit.v1.AuditService`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use logmesh_bus::{Bus, TopicPartition};
use logmesh_grpc::{Upstream, bad_field, page_size};
use logmesh_index::query::Query;
use logmesh_index::{IndexError, IndexRepair, StreamSum};
use logmesh_proto::audit::v1::audit_service_server::AuditService;
use logmesh_proto::audit::v1::{
    AuditFleetRequest, AuditFleetResponse, GetStreamAuditRequest, RepairRequest, RepairResponse, StreamAudit,
    StreamRepair,
};
use logmesh_proto::fleet::v1::AgentStream;
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_types::{AgentId, StreamId, TopicName};
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::{Request, Response, Status};

use super::AuditError;
use super::file::Patience;
use super::ledger::Ledger;
use super::page::{self, Candidate, Filter, Key, Page};
use super::removal::remove;
use super::repair::{Want, Wanted, repair};
use super::shelf::Shelf;
use super::stream::{self, Audited, Look};
use super::untold::Untold;
use crate::topics::Topics;

/// The most streams of a page.
const MAX_PAGE: usize = 1_000;

/// Audits under way at a time: each reads much from bus and index, which searches need too.
const MAX_AUDITS: usize = 4;

/// Repairs under way at a time: each reads whole partitions of the bus.
const MAX_REPAIRS: usize = 1;

/// How often a stream that looks bad is looked at again, and after how long.
const RECHECKS: usize = 3;
const RECHECK_PAUSE: Duration = Duration::from_millis(500);

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Audit {
    bus: Arc<dyn Bus>,
    index: Arc<dyn IndexRepair>,
    config: Upstream,
    fleet: FleetServiceClient<Upstream>,
    topics: Topics,
    shelf: Arc<Shelf>,
    places: Arc<Semaphore>,
    repairs: Arc<Semaphore>,
    /// With agents that read again.
    pub(super) patience: Patience,
}

impl Audit {
    /// Audits what lies on the bus and in the index against what agents told the config service behind `config`.
    pub(crate) fn new(bus: Arc<dyn Bus>, index: Arc<dyn IndexRepair>, config: Upstream) -> Self {
        let topics = Topics::new(index.clone(), bus.clone(), config.clone());
        let fleet = FleetServiceClient::new(config.clone());
        let (places, repairs) = (Arc::new(Semaphore::new(MAX_AUDITS)), Arc::new(Semaphore::new(MAX_REPAIRS)));
        Self {
            bus,
            index,
            config,
            fleet,
            topics,
            shelf: Arc::default(),
            places,
            repairs,
            patience: Patience::default(),
        }
    }

    fn place(&self) -> Result<SemaphorePermit<'_>, AuditError> {
        self.places.try_acquire().map_err(|_| AuditError::Busy)
    }

    /// Which agents have yet to say what rules do there. Those that are connected are given a moment to say it.
    async fn untold(&self, filter: &Filter) -> Result<Untold, AuditError> {
        let mut untold = Untold::ask(&self.config, filter).await?;
        for _ in 0..RECHECKS {
            if untold.online.is_empty() {
                break;
            }
            tokio::time::sleep(RECHECK_PAUSE).await;
            untold = Untold::ask(&self.config, filter).await?;
        }
        Ok(untold)
    }

    /// Audits these streams, in their order. What looks bad is looked at again, with what agents say by then, before
    /// it's called so. Config services that don't answer that are added to the silent ones.
    async fn examine(
        &self,
        candidates: &[Candidate],
        filter: &Filter,
        silent: &mut BTreeSet<String>,
    ) -> Result<Vec<Audited>, AuditError> {
        let mut audits = self.look(candidates, filter.thorough).await?;
        for _ in 0..RECHECKS {
            let bad: Vec<usize> = (0..audits.len()).filter(|place| !audits[*place].audit.clean).collect();
            if bad.is_empty() {
                break;
            }
            tokio::time::sleep(RECHECK_PAUSE).await;
            let mut again: Vec<Candidate> = bad.iter().map(|place| candidates[*place].clone()).collect();
            silent.extend(self.ask_again(&mut again, filter).await?);
            for (place, audit) in bad.into_iter().zip(self.look(&again, filter.thorough).await?) {
                audits[place] = audit;
            }
        }
        Ok(audits)
    }

    /// The same topic by topic, and why not of those whose index somebody else made: what's wrong with one keeps nobody from auditing
    /// the others.
    async fn examine_apart(
        &self,
        candidates: &[Candidate],
        filter: &Filter,
        silent: &mut BTreeSet<String>,
    ) -> Result<(Vec<Audited>, BTreeMap<String, String>), AuditError> {
        let (mut streams, mut not) = (Vec::new(), BTreeMap::new());
        for of_topic in candidates.chunk_by(|one, next| one.topic == next.topic) {
            match self.examine(of_topic, filter, silent).await {
                Ok(audited) => streams.extend(audited),
                Err(AuditError::Index(error @ IndexError::Mapping { .. })) => {
                    not.insert(of_topic[0].topic.to_string(), error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        Ok((streams, not))
    }

    /// Brings in what agents report now. What is reported no longer keeps its last word: that was a promise.
    async fn ask_again(&self, candidates: &mut [Candidate], filter: &Filter) -> Result<BTreeSet<String>, AuditError> {
        let mut places: HashMap<Key, &mut Option<AgentStream>> =
            candidates.iter_mut().map(|one| ((one.topic.clone(), one.stream), &mut one.reported)).collect();
        page::reported(self.fleet.clone(), filter, |key, reported| {
            if let Some(place) = places.get_mut(&key) {
                **place = Some(reported);
            }
        })
        .await
    }

    /// Looks at the streams once; `thorough`: at each document, whatever the sums.
    async fn look(&self, candidates: &[Candidate], thorough: bool) -> Result<Vec<Audited>, AuditError> {
        let streams: HashSet<StreamId> = candidates.iter().map(|candidate| candidate.stream).collect();
        let ledger = Ledger::read(self.bus.as_ref(), &self.shelf, &streams).await?;
        let looks: Vec<Look<'_>> = candidates.iter().map(|candidate| Look::new(candidate, &ledger)).collect();
        let sums: Vec<Option<Vec<StreamSum>>> = match thorough {
            true => vec![None; looks.len()],
            false => stream::sums(&looks, self.index.as_ref()).await?.into_iter().map(Some).collect(),
        };
        let mut audits = Vec::with_capacity(candidates.len());
        for (look, sum) in looks.into_iter().zip(sums) {
            audits.push(look.finish(sum, self.index.as_ref()).await?);
        }
        Ok(audits)
    }

    /// Repairs streams, and audits them again.
    async fn repair_all(&self, keys: Vec<Key>) -> Result<RepairResponse, AuditError> {
        let candidate = |(topic, stream)| Candidate { topic, stream, reported: None };
        let mut candidates: Vec<Candidate> = keys.into_iter().map(candidate).collect();
        let filter = Filter::all_of_it();
        let mut silent = self.ask_again(&mut candidates, &filter).await?;
        let mut wanted = Wanted::new();
        for one in self.examine(&candidates, &filter, &mut silent).await?.into_iter().zip(&candidates) {
            let (Audited { audit, missing, doubled, known }, Candidate { topic, stream, .. }) = one;
            if !known {
                let unknown = format!("neither an agent nor the books know a stream {stream} in topic {topic}");
                return Err(AuditError::unknown(unknown, silent));
            }
            if !missing.is_empty() || !doubled.is_empty() {
                let at = TopicPartition { topic: topic.clone(), partition: audit.partition };
                let want = Want { agent: audit.agent_id, missing, doubled, ..Want::default() };
                wanted.entry(at).or_default().insert(*stream, want);
            }
        }
        repair(self.bus.as_ref(), &self.fleet, self.patience, &mut wanted).await?;
        // Last of all: what was missing is there again.
        remove(self.index.as_ref(), &mut wanted).await;
        let after = self.examine(&candidates, &filter, &mut silent).await?;
        let after = after.into_iter().zip(candidates).map(|(after, one)| conclude(after.audit, &one, &wanted));
        Ok(RepairResponse { streams: after.collect(), unreachable_servers: silent.into_iter().collect() })
    }

    /// The stream in the topic to which its agent sends it; where none reports it, in the one whose book is furthest. With
    /// it, the config services that didn't answer.
    async fn find(&self, stream: StreamId) -> Result<(Option<Candidate>, BTreeSet<String>), AuditError> {
        let mut found = None;
        let silent = page::reported(self.fleet.clone(), &Filter::default(), |(topic, id), reported| {
            if id == stream {
                found = Some(Candidate { topic, stream, reported: Some(reported) });
            }
        })
        .await?;
        if found.is_some() {
            return Ok((found, silent));
        }
        let ledger = Ledger::read(self.bus.as_ref(), &self.shelf, &HashSet::from([stream])).await?;
        let furthest =
            ledger.of(stream).iter().max_by_key(|(_, entry)| entry.book.as_ref().map(|book| book.watermark()));
        let found = furthest.map(|(topic, _)| Candidate { topic: topic.clone(), stream, reported: None });
        Ok((found, silent))
    }
}

#[tonic::async_trait]
impl AuditService for Audit {
    async fn get_stream_audit(&self, request: Request<GetStreamAuditRequest>) -> Result<Response<StreamAudit>, Status> {
        let id = request.into_inner().stream_id;
        let stream: StreamId = id.parse().map_err(|error| bad("stream_id", error))?;
        let _place = self.place()?;
        let (candidate, mut silent) = self.find(stream).await?;
        let Some(candidate) = candidate else {
            let unknown = format!("neither an agent nor the books know a stream {stream}");
            return Err(AuditError::unknown(unknown, silent).into());
        };
        let audits = self.examine(&[candidate], &Filter::all_of_it(), &mut silent).await?;
        let audit = audits.into_iter().next().map(|one| one.audit).unwrap_or_default();
        Ok(Response::new(StreamAudit { unreachable_servers: silent.into_iter().collect(), ..audit }))
    }

    async fn audit_fleet(&self, request: Request<AuditFleetRequest>) -> Result<Response<AuditFleetResponse>, Status> {
        let request = request.into_inner();
        let filter = filter(&request)?;
        let size = page_size(request.page_size, MAX_PAGE).ok_or_else(|| bad("page_size", "is negative"))?;
        let from = (!request.page_token.is_empty()).then(|| read_token(&request.page_token)).transpose()?;
        let _place = self.place()?;
        let continued = from.as_ref().map(|(topic, _)| topic.clone());
        // Before the streams: an agent that reports meanwhile has its streams among them.
        let untold = if from.is_none() { self.untold(&filter).await? } else { Untold::default() };
        let mut page = Page::new(from, size);
        let mut silent = page::collect(&mut page, &filter, self.bus.as_ref(), &self.shelf, self.fleet.clone()).await?;
        silent.extend(untold.silent);
        let (candidates, next) = page.into_candidates();
        if candidates.is_empty() && request.page_token.is_empty() && silent.is_empty() {
            // A misspelt name must not look like a proof.
            self.topics.check(filter.topic.as_slice(), &Query::all()).await?;
        }
        if filter.thorough {
            // A topic whose streams fill several pages is read once.
            let topics: BTreeSet<&TopicName> = candidates.iter().map(|candidate| &candidate.topic).collect();
            for topic in topics.into_iter().filter(|topic| continued.as_ref() != Some(*topic)) {
                self.index.verify(topic).await.map_err(AuditError::from)?;
            }
        }
        let (streams, unaudited_topics) = match self.examine(&candidates, &filter, &mut silent).await {
            Err(AuditError::Index(IndexError::Mapping { .. })) if filter.topic.is_none() => {
                self.examine_apart(&candidates, &filter, &mut silent).await?
            }
            streams => (streams?, BTreeMap::new()),
        };
        let streams = streams.into_iter().map(|one| one.audit).collect();
        let next_page_token = next.map(|(topic, stream)| format!("{topic}/{stream}")).unwrap_or_default();
        let unreachable_servers = silent.into_iter().collect();
        Ok(Response::new(AuditFleetResponse {
            streams,
            next_page_token,
            unreachable_servers,
            untold_agents: untold.online,
            untold_offline_agents: untold.offline,
            unaudited_topics,
        }))
    }

    async fn repair(&self, request: Request<RepairRequest>) -> Result<Response<RepairResponse>, Status> {
        let keys = keys(request.into_inner())?;
        let _place = self.repairs.try_acquire().map_err(|_| AuditError::Repairing)?;
        Ok(Response::new(self.repair_all(keys).await?))
    }
}

/// What became of a stream's repair.
fn conclude(mut audit: StreamAudit, candidate: &Candidate, wanted: &Wanted) -> StreamRepair {
    // Not by its partition: a topic that was gone may have been made anew, with other partitions.
    let mut of_topic = wanted.iter().filter(|(at, _)| at.topic == candidate.topic);
    let Some(want) = of_topic.find_map(|(_, streams)| streams.get(&candidate.stream)) else {
        return StreamRepair { audit: Some(audit), ..StreamRepair::default() };
    };
    let again = want.explain(&mut audit) | want.explain_doubles(&mut audit);
    StreamRepair {
        audit: Some(audit),
        events: want.events,
        bytes: want.found.bytes(),
        again,
        file_events: want.file.events,
        file_bytes: want.file.sent.bytes(),
        ranges: want.ranges(),
        removed_documents: want.removal.documents,
        removed: want.removal.told.clone(),
    }
}

/// The streams to repair.
fn keys(request: RepairRequest) -> Result<Vec<Key>, Status> {
    if request.streams.is_empty() || request.streams.len() > MAX_PAGE {
        return Err(bad("streams", format!("must name 1 to {MAX_PAGE} streams, and names {}", request.streams.len())));
    }
    let mut seen = HashSet::new();
    let mut keys = Vec::with_capacity(request.streams.len());
    for (place, one) in request.streams.into_iter().enumerate() {
        let topic: TopicName = one.topic.parse().map_err(|error| bad(&format!("streams[{place}].topic"), error))?;
        let stream = one.stream_id.parse().map_err(|error| bad(&format!("streams[{place}].stream_id"), error))?;
        if !seen.insert((topic.clone(), stream)) {
            return Err(bad(&format!("streams[{place}]"), "is named twice"));
        }
        keys.push((topic, stream));
    }
    Ok(keys)
}

fn filter(request: &AuditFleetRequest) -> Result<Filter, Status> {
    let topic = (!request.topic.is_empty()).then(|| request.topic.parse::<TopicName>()).transpose();
    let topic = topic.map_err(|error| bad("topic", error))?;
    if !request.agent_id.is_empty() {
        request.agent_id.parse::<AgentId>().map_err(|error| bad("agent_id", error))?;
    }
    Ok(Filter { topic, agent: request.agent_id.clone(), thorough: request.thorough })
}

/// Where a page begins, `{topic}/{stream}`.
fn read_token(token: &str) -> Result<Key, Status> {
    let key = token.split_once('/').and_then(|(topic, stream)| Some((topic.parse().ok()?, stream.parse().ok()?)));
    key.ok_or_else(|| bad("page_token", "is not one that AuditFleet gave"))
}

fn bad(field: &str, description: impl Display) -> Status {
    bad_field(field, description)
}
