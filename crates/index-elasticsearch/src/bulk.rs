//! Writing: bulks of `create`, with an outcome for each document.
//!
//! A request holds a bounded number of bytes; requests go one after the other, so that of two documents of one id the
//! first is created. Bulks are written through aliases (see [`Names::alias`]): an index that isn't there is made first.

use std::collections::{HashMap, VecDeque};
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use logmesh_index::{FieldTypes, IndexError, NewDoc, Outcome, Slice};
use logmesh_types::TopicName;
use reqwest::Method;
use serde::Deserialize;
use tracing::warn;

use crate::Inner;
use crate::client::{Body, unavailable};
use crate::form;
use crate::names::Names;
use crate::plain::is_plain;

/// What is asked of Elasticsearch's answer: a hundred bytes a document less.
const WANTED: &str = "items.*.status,items.*.error.type,items.*.error.reason,items.*.error.caused_by.reason";
/// A queue is full: it empties in less.
const BUSY: Duration = Duration::from_secs(1);
/// A block on an index, of a full disk or an operator, stays for longer.
const BLOCKED: Duration = Duration::from_secs(5);
/// How often the index of a document is made within one write, should others delete it all the time.
const MAKINGS: u32 = 3;

/// What a document's action takes, with a topic's name of some length.
const ACTION_BYTES: usize = 128;
/// Room in a request for the document that turns out to be one too many.
const MARGIN_BYTES: usize = 64 << 10;

/// A document that has no outcome yet.
#[derive(Clone, Copy, Debug)]
struct Todo {
    /// Its place among the documents.
    at: usize,
    /// Elasticsearch has refused it as it was.
    wrap: bool,
    /// How often its index was made.
    makings: u32,
}

/// A part of the documents as one request.
struct Request {
    body: Vec<u8>,
    /// Those that are in the body.
    sent: Vec<(Todo, bool)>,
    /// Those that are no documents.
    refused: Vec<(usize, String)>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    items: Vec<AnswerItem>,
}

#[derive(Deserialize)]
struct AnswerItem {
    create: ItemResult,
}

#[derive(Debug, Deserialize)]
struct ItemResult {
    status: u16,
    error: Option<ItemError>,
}

#[derive(Debug, Deserialize)]
struct ItemError {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    reason: String,
    caused_by: Option<Cause>,
}

#[derive(Debug, Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
}

/// What is to be done about an item.
#[derive(Debug, PartialEq)]
enum Verdict {
    Done(Outcome),
    /// Not now; the reason is logged.
    Later(Duration, String),
    /// Its index isn't there.
    NoIndex,
    /// It is refused in this form.
    Refused(String),
    /// We may not: no fault of the document.
    NotAllowed(String),
}

pub(crate) async fn write(inner: &Inner, docs: Vec<NewDoc>) -> Result<Vec<Outcome>, IndexError> {
    let mut types: HashMap<TopicName, FieldTypes> = HashMap::new();
    for doc in docs.chunk_by(|a, b| a.slice == b.slice).filter_map(|of_slice| of_slice.first()) {
        if !types.contains_key(&doc.slice.topic) {
            types.insert(doc.slice.topic.clone(), inner.types_for_writing(&doc.slice.topic).await?);
        }
    }
    let mut bulk = Bulk {
        outcomes: vec![None; docs.len()],
        left: (0..docs.len()).map(|at| Todo { at, wrap: false, makings: 0 }).collect(),
        input: Arc::new(Input { docs, types, names: inner.names.clone() }),
        limit: usize::try_from(inner.settings.bulk_bytes.0).unwrap_or(usize::MAX),
        later: None,
    };
    while !bulk.left.is_empty() {
        bulk.step(inner).await?;
    }
    if let Some((documents, reason)) = bulk.later {
        warn!(documents, reason, "Elasticsearch takes documents later");
    }
    let not_sent = || Outcome::Busy { after: BUSY, reason: "not sent".to_owned() }; // not reached
    Ok(bulk.outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(not_sent)).collect())
}

struct Input {
    docs: Vec<NewDoc>,
    types: HashMap<TopicName, FieldTypes>,
    names: Names,
}

struct Bulk {
    input: Arc<Input>,
    outcomes: Vec<Option<Outcome>>,
    left: VecDeque<Todo>,
    /// The most bytes of a request.
    limit: usize,
    /// How many are to come later, and the first one's reason.
    later: Option<(usize, String)>,
}

impl Bulk {
    /// Sends one request and gives out what came of it.
    async fn step(&mut self, inner: &Inner) -> Result<(), IndexError> {
        let (input, limit, mut left) = (self.input.clone(), self.limit, std::mem::take(&mut self.left));
        // Megabytes of JSON are read and copied here; the threads of the runtime have others to serve.
        let made = tokio::task::spawn_blocking(move || {
            let request = input.request(&mut left, limit);
            (request, left)
        });
        let (request, left) = made.await.map_err(|_| unavailable("a bulk could not be built"))?;
        self.left = left;
        for (at, reason) in request.refused {
            self.outcomes[at] = Some(Outcome::Rejected { reason });
        }
        if request.sent.is_empty() {
            return Ok(());
        }
        // A shard without a primary is waited for by the server: shorter than we wait for it, so that each item gets its answer.
        let patience = (inner.settings.request_timeout.0 / 3).as_millis();
        let path = format!("_bulk?require_alias=true&timeout={patience}ms&filter_path={WANTED}");
        let answer = inner.client.call(Method::POST, &path, Body::Lines(Bytes::from(request.body))).await?;
        match answer.status {
            413 => self.split(&request.sent),
            429 => {
                for (todo, _) in &request.sent {
                    self.put_off(todo.at, BUSY, "the bulk as a whole was answered with status 429");
                }
            }
            _ => {
                let answer: Answer = answer.json().map_err(temporary)?;
                if answer.items.len() != request.sent.len() {
                    let (got, sent) = (answer.items.len(), request.sent.len());
                    return Err(unavailable(format!("a bulk of {sent} documents was answered for {got}")));
                }
                let results = request.sent.into_iter().zip(answer.items.into_iter().map(|item| item.create));
                self.settle(inner, results).await?;
            }
        }
        Ok(())
    }

    /// The request was too large: half as much in the next ones.
    fn split(&mut self, sent: &[(Todo, bool)]) {
        if let [(todo, _)] = sent {
            let reason = "it is larger than Elasticsearch's http.max_content_length".to_owned();
            self.outcomes[todo.at] = Some(Outcome::Rejected { reason });
            return;
        }
        self.limit = (self.limit / 2).max(1);
        self.again(sent.iter().map(|(todo, _)| *todo));
    }

    async fn settle(
        &mut self,
        inner: &Inner,
        results: impl Iterator<Item = ((Todo, bool), ItemResult)>,
    ) -> Result<(), IndexError> {
        let mut again = Vec::new();
        let mut missing: HashMap<Slice, ()> = HashMap::new();
        for ((todo, wrapped), result) in results {
            match verdict(result) {
                Verdict::Done(outcome) => self.outcomes[todo.at] = Some(outcome),
                Verdict::Later(after, reason) => self.put_off(todo.at, after, &reason),
                Verdict::NotAllowed(reason) => return Err(unavailable(reason)),
                Verdict::Refused(reason) if wrapped => self.outcomes[todo.at] = Some(Outcome::Rejected { reason }),
                Verdict::Refused(_) => again.push(Todo { wrap: true, ..todo }),
                Verdict::NoIndex if todo.makings < MAKINGS => {
                    missing.insert(Slice::clone(&self.input.docs[todo.at].slice), ());
                    again.push(Todo { makings: todo.makings + 1, ..todo });
                }
                Verdict::NoIndex => self.put_off(todo.at, BUSY, "its index is deleted again and again"),
            }
        }
        for slice in missing.into_keys() {
            if let Some(index) = inner.names.index(&slice) {
                inner.make_index(&slice.topic, &index).await?;
            }
        }
        self.again(again.into_iter());
        Ok(())
    }

    /// Puts documents before all others, in their order.
    fn again(&mut self, todos: impl DoubleEndedIterator<Item = Todo>) {
        for todo in todos.rev() {
            self.left.push_front(todo);
        }
    }

    fn put_off(&mut self, at: usize, after: Duration, reason: &str) {
        self.outcomes[at] = Some(Outcome::Busy { after, reason: reason.to_owned() });
        self.later.get_or_insert_with(|| (0, reason.to_owned())).0 += 1;
    }
}

impl Input {
    /// Takes documents off the queue until the request is full; one at least.
    fn request(&self, left: &mut VecDeque<Todo>, limit: usize) -> Request {
        let body = Vec::with_capacity(self.room(left, limit));
        let mut request = Request { body, sent: Vec::with_capacity(left.len()), refused: Vec::new() };
        // Most documents of a bulk are of the slice of the one before.
        let mut target: Option<Target<'_>> = None;
        while let Some(todo) = left.front().copied() {
            let doc = &self.docs[todo.at];
            let target = match &mut target {
                Some(target) if *target.slice == doc.slice => target,
                other => other.insert(self.target(&doc.slice)),
            };
            let start = request.body.len();
            match add(&todo, doc, target, &mut request.body) {
                Ok(wrapped) => {
                    if request.body.len() > limit && !request.sent.is_empty() {
                        request.body.truncate(start);
                        break;
                    }
                    request.sent.push((todo, wrapped));
                }
                Err(reason) => request.refused.push((todo.at, reason)),
            }
            left.pop_front();
        }
        request
    }

    /// Bytes that these documents take as they are, as far as a request may have them: taken at once, so that none is copied
    /// while the request grows.
    fn room(&self, left: &VecDeque<Todo>, limit: usize) -> usize {
        let body = |todo: &Todo| self.docs[todo.at].body.len() + ACTION_BYTES;
        left.iter().map(body).sum::<usize>().min(limit.saturating_add(MARGIN_BYTES))
    }

    fn target<'d>(&'d self, slice: &'d Arc<Slice>) -> Target<'d> {
        let action = self.names.index(slice).map(|index| {
            // Neither name nor id holds a character that JSON escapes.
            format!("{{\"create\":{{\"_index\":\"{}\",\"_id\":\"", Names::alias(&index))
        });
        Target { slice, action, types: self.types.get(&slice.topic) }
    }
}

/// Where documents of one slice go.
struct Target<'d> {
    slice: &'d Arc<Slice>,
    /// What their actions begin with; `None` if the slice has no date.
    action: Option<String>,
    types: Option<&'d FieldTypes>,
}

/// Appends a document; says whether it is wrapped.
fn add(todo: &Todo, doc: &NewDoc, target: &Target<'_>, out: &mut Vec<u8>) -> Result<bool, String> {
    let action = target.action.as_ref().ok_or_else(|| format!("{:?} is not a date", doc.slice.date))?;
    let no_types = FieldTypes::new();
    let types = target.types.unwrap_or(&no_types);
    let mut read = None;
    if todo.wrap || !is_plain(&doc.body, types) {
        let found = form::read(&doc.body, types)?;
        read = Some(if todo.wrap { found.wrap() } else { found });
    }
    out.extend_from_slice(action.as_bytes());
    let written = writeln!(out, "{}\"}}}}", doc.id); // to a vector it can't fail
    debug_assert!(written.is_ok());
    match &read {
        Some(read) => read.write(&doc.body, &doc.id, types, out),
        None => out.extend_from_slice(&doc.body),
    }
    out.push(b'\n');
    Ok(read.is_some_and(|read| read.is_wrapped()))
}

impl Inner {
    async fn types_for_writing(&self, topic: &TopicName) -> Result<FieldTypes, IndexError> {
        if let Some(fields) = self.declared.lock().await.get(topic) {
            return Ok(fields.clone());
        }
        self.ensure_topic(topic, &FieldTypes::new()).await
    }
}

/// A bulk isn't refused as a whole for what a document holds.
fn temporary(error: IndexError) -> IndexError {
    match error {
        IndexError::Unsupported { reason } => unavailable(format!("a bulk was refused: {reason}")),
        other => other,
    }
}

fn verdict(result: ItemResult) -> Verdict {
    let error = result.error.unwrap_or(ItemError { r#type: String::new(), reason: String::new(), caused_by: None });
    let cause = error.caused_by.map(|cause| format!(": {}", cause.reason)).unwrap_or_default();
    let reason = format!("{}{cause}", error.reason);
    match (result.status, error.r#type.as_str()) {
        (200 | 201, _) => Verdict::Done(Outcome::Created),
        (409, _) => Verdict::Done(Outcome::Duplicate),
        (404, "index_not_found_exception") => Verdict::NoIndex,
        (_, "cluster_block_exception" | "index_closed_exception") => Verdict::Later(BLOCKED, reason),
        (401 | 403, _) => Verdict::NotAllowed(format!("status {}: {reason}", result.status)),
        (400, "document_parsing_exception" | "mapper_parsing_exception" | "strict_dynamic_mapping_exception") => {
            Verdict::Refused(reason)
        }
        // Of illegal arguments some are the document's (a term that's too long), and some an operator's: an alias with
        // two indices, a pipeline that isn't there. Those must not send a day's lines to the dead letters.
        (400, "illegal_argument_exception") if !is_of_the_index(&reason) => Verdict::Refused(reason),
        (status, _) => Verdict::Later(BUSY, format!("status {status}: {reason}")),
    }
}

/// Whether an illegal argument is one of how the index is set up, the same for every document.
fn is_of_the_index(reason: &str) -> bool {
    ["write index", "pipeline", "alias", "shards"].iter().any(|word| reason.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict_of(status: u16, kind: &str) -> Verdict {
        let error = ItemError { r#type: kind.to_owned(), reason: "why".to_owned(), caused_by: None };
        verdict(ItemResult { status, error: Some(error) })
    }

    #[test]
    fn only_what_is_the_documents_fault_counts_against_it() {
        assert_eq!(verdict(ItemResult { status: 201, error: None }), Verdict::Done(Outcome::Created));
        assert_eq!(verdict_of(409, "version_conflict_engine_exception"), Verdict::Done(Outcome::Duplicate));
        assert_eq!(
            verdict_of(429, "es_rejected_execution_exception"),
            Verdict::Later(BUSY, "status 429: why".to_owned())
        );
        assert_eq!(verdict_of(503, "unavailable_shards_exception"), Verdict::Later(BUSY, "status 503: why".to_owned()));
        assert_eq!(verdict_of(403, "cluster_block_exception"), Verdict::Later(BLOCKED, "why".to_owned()));
        assert_eq!(verdict_of(400, "index_closed_exception"), Verdict::Later(BLOCKED, "why".to_owned()));
        assert_eq!(verdict_of(403, "security_exception"), Verdict::NotAllowed("status 403: why".to_owned()));
        assert_eq!(verdict_of(404, "index_not_found_exception"), Verdict::NoIndex);
        assert_eq!(verdict_of(400, "document_parsing_exception"), Verdict::Refused("why".to_owned()));
        assert_eq!(verdict_of(400, "illegal_argument_exception"), Verdict::Refused("why".to_owned()));
        let alias = "no write index is defined for alias [logmesh-a@2026.01.31.write]";
        let error =
            ItemError { r#type: "illegal_argument_exception".to_owned(), reason: alias.to_owned(), caused_by: None };
        let verdict = verdict(ItemResult { status: 400, error: Some(error) });
        assert_eq!(verdict, Verdict::Later(BUSY, format!("status 400: {alias}")));
    }
}
