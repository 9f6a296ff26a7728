//! `RedriveDeadLetters`: sends letters through again, a bounded number at each call, and tells what became of them.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::time::Duration;

use logmesh_bus::BusError;
use logmesh_grpc::bad_field;
use logmesh_proto::transfer::v1 as proto;
use logmesh_record::{DeadLetter, Marks, Redrive};
use logmesh_types::{Day, TopicName};
use tokio::time::Instant;
use tonic::Status;

use crate::letters::{Cursor, Letters, pattern};
use crate::redrive::{Operation, Redriven};
use crate::retired::marks;
use crate::service::bus_status;

/// Letters that one call sends,
const MAX_LETTERS: usize = 1_000;

/// the bytes that they take, beyond the first,
const MAX_BYTES: usize = 8 << 20;

/// and bytes that it looks through.
const SCAN_BYTES: usize = 64 << 20;

/// How long a call waits for the worker that stores them.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most ids of a request.
const MAX_IDS: usize = 1_000;

/// How far an operation is, as its page token says.
struct Progress {
    operation: String,
    sent: u64,
    /// Where to look for more letters; `None`: all were seen.
    from: Option<Cursor>,
    /// Nothing was looked at yet.
    is_new: bool,
}

impl Progress {
    fn parse(token: &str) -> Option<Self> {
        if token.is_empty() {
            let operation = format!("{:016x}", rand::random::<u64>());
            return Some(Self { operation, sent: 0, from: None, is_new: true });
        }
        let mut parts = token.splitn(3, '.');
        let (operation, sent, from) = (parts.next()?, parts.next()?, parts.next()?);
        u64::from_str_radix(operation, 16).ok()?;
        let from = if from == "-" { None } else { Some(Cursor::parse(from)?) };
        Some(Self { operation: operation.to_owned(), sent: sent.parse().ok()?, from, is_new: false })
    }

    fn to_token(&self) -> String {
        let from = self.from.as_ref().map_or_else(|| "-".to_owned(), Cursor::to_token);
        format!("{}.{}.{from}", self.operation, self.sent)
    }
}

/// Which letters are meant.
struct Choice {
    topic: TopicName,
    reason: String,
    ids: HashSet<String>,
}

impl Choice {
    fn of(request: &proto::RedriveDeadLettersRequest) -> Result<Self, Status> {
        let topic = request.topic.parse().map_err(|error| bad_field("topic", error))?;
        if request.ids.len() > MAX_IDS {
            return Err(bad_field("ids", format!("at most {MAX_IDS} ids, here are {}", request.ids.len())));
        }
        Ok(Self { topic, reason: pattern(&request.reason), ids: request.ids.iter().cloned().collect() })
    }

    fn holds(&self, letter: &DeadLetter) -> bool {
        let id = letter.document.id.map(|id| id.to_string()).unwrap_or_default();
        (self.reason.is_empty() || self.reason == pattern(&letter.reason))
            && (self.ids.is_empty() || self.ids.contains(&id))
    }
}

pub(crate) async fn redrive(
    letters: &Letters,
    request: &proto::RedriveDeadLettersRequest,
) -> Result<proto::RedriveDeadLettersResponse, Status> {
    let choice = Choice::of(request)?;
    let mut progress = Progress::parse(&request.page_token)
        .ok_or_else(|| bad_field("page_token", "it is none that this method gave"))?;
    if progress.is_new && !letters.are_there(&choice.topic).await? {
        return Ok(proto::RedriveDeadLettersResponse::default());
    }
    let mut sum = so_far(letters, &choice.topic, &progress.operation).await.map_err(bus_status)?;
    // What was sent is waited for before more is sent: a worker that's behind isn't buried.
    if (progress.is_new || progress.from.is_some()) && pending(&progress, &sum) == 0 {
        send(letters, &choice, &mut progress).await?;
    }
    let deadline = Instant::now() + PATIENCE;
    while pending(&progress, &sum) > 0 && Instant::now() < deadline {
        letters.jobs.wait(deadline - Instant::now()).await.map_err(bus_status)?;
        sum = so_far(letters, &choice.topic, &progress.operation).await.map_err(bus_status)?;
    }
    let pending = pending(&progress, &sum);
    let is_done = pending == 0 && progress.from.is_none();
    Ok(proto::RedriveDeadLettersResponse {
        sent: progress.sent,
        indexed: sum.indexed,
        already_there: sum.there,
        refused: sum.refused,
        pending,
        refusals: sum.reasons.into_iter().map(|(reason, letters)| proto::Refusal { reason, letters }).collect(),
        next_page_token: if is_done { String::new() } else { progress.to_token() },
    })
}

/// What is sent and not done. A caller that didn't get an answer and asks again may have sent letters twice.
fn pending(progress: &Progress, sum: &Operation) -> u64 {
    progress.sent.saturating_sub(sum.indexed + sum.there + sum.refused)
}

/// What the workers have noted of the operation, over all partitions.
async fn so_far(letters: &Letters, topic: &TopicName, operation: &str) -> Result<Operation, BusError> {
    let entries: BTreeMap<String, Redriven> = letters.jobs.all(&format!("redriven/{topic}/")).await?;
    let mut sum = Operation::default();
    let of_all = entries.into_values().flat_map(|entry| entry.operations);
    for one in of_all.filter(|one| one.id == operation) {
        sum.indexed += one.indexed;
        sum.there += one.there;
        sum.refused += one.refused;
        for (reason, count) in one.reasons {
            *sum.reasons.entry(reason).or_default() += count;
        }
    }
    Ok(sum)
}

/// Sends the next letters.
async fn send(letters: &Letters, choice: &Choice, progress: &mut Progress) -> Result<(), Status> {
    let (bus, topic) = (&letters.bus, &choice.topic);
    let (own, dead) = (bus.topic(topic).await.map_err(bus_status)?, topic.dead_letters());
    let dead = bus.topic(&dead).await.map_err(bus_status)?;
    let (Some(own), Some(dead)) = (own, dead) else {
        return Err(logmesh_grpc::not_found("TOPIC_NOT_FOUND", format!("there is no topic {topic}")));
    };
    if own.partitions != dead.partitions {
        let text = format!("topics {topic} and {} must have as many partitions, as they were made", dead.name);
        return Err(logmesh_grpc::failed_precondition("PARTITIONS_DIFFER", text));
    }
    let marks = marks(&letters.jobs).await.map_err(bus_status)?;
    let (mut records, mut bytes) = (Vec::new(), 0);
    let operation = progress.operation.clone();
    let from = letters
        .scan(std::slice::from_ref(topic), progress.from.take(), SCAN_BYTES, &mut |found| {
            if !choice.holds(&found.letter) {
                return ControlFlow::Continue(());
            }
            bytes += found.size;
            if records.len() == MAX_LETTERS || (bytes > MAX_BYTES && !records.is_empty()) {
                return ControlFlow::Break(());
            }
            let mark = Redrive { operation: operation.clone(), partition: found.partition, offset: found.offset };
            records.push(dated(found.letter, topic, &marks).redrive(&mark));
            ControlFlow::Continue(())
        })
        .await
        .map_err(bus_status)?;
    let sent = records.len() as u64;
    let mut appends = Vec::with_capacity(records.len());
    for record in records {
        appends.push(bus.append(topic, record).await.map_err(bus_status)?);
    }
    for append in appends {
        append.await.map_err(bus_status)?;
    }
    progress.sent += sent;
    progress.from = from;
    progress.is_new = false;
    Ok(())
}

/// The letter as it can be stored: if its date is retired, under the day on which it became a letter, unless that is retired as
/// well. Always the same day, so that what is sent twice is looked for in one slice.
fn dated(mut letter: DeadLetter, topic: &TopicName, marks: &Marks) -> DeadLetter {
    let day = Day::of(letter.time);
    if marks.is_retired(topic, letter.document.date) && !marks.is_retired(topic, day) {
        letter.document.date = day;
    }
    letter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_nonsense_is_refused() {
        let mut progress = Progress::parse("").unwrap();
        assert!(progress.is_new);
        for from in [None, Cursor::parse("2.7.logs.app")] {
            (progress.sent, progress.from) = (3, from);
            let again = Progress::parse(&progress.to_token()).unwrap();
            assert_eq!(
                (again.operation, again.sent, again.from),
                (progress.operation.clone(), 3, progress.from.clone())
            );
            assert!(!again.is_new);
        }
        for token in ["x", "12", "12.x.-", "zz.1.-", "12.1.", "12.1.5"] {
            assert!(Progress::parse(token).is_none(), "{token:?}");
        }
    }
}
