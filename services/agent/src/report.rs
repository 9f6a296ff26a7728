//! Tells the centre how things stand: what changed, at most once a second; all of it with each new connection.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use logmesh_proto::fleet::v1::agent_config_service_client::AgentConfigServiceClient;
use logmesh_proto::fleet::v1::{
    FileProblem, LossCause, LostRange, ReportStatusRequest, RuleEffect, RuleState, RuleStatus, StreamState,
    StreamStatus,
};
use logmesh_proto::time::timestamp;
use logmesh_runtime::CancellationToken;
use logmesh_tail::{self as tail, FileState, FileStatus, Loss};
use logmesh_types::{StreamId, UnixNanos, metric};
use metrics::{counter, gauge};
use prost::Message;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::centre::{Link, View};
use crate::collect::{Handle, Snapshot};
use crate::host::Identity;
use crate::rules::Standing;

/// Reports come no more often than this:
const PAUSE: Duration = Duration::from_secs(1);

/// than this when the rules are others, or the connection is;
const SHORT_PAUSE: Duration = Duration::from_millis(250);

/// and the metrics are brought up to date at least so often.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of one message at most: well below what the centre decodes.
const PART_BYTES: usize = 2 << 20;

/// What an entry costs beyond its own bytes: its tag and its length.
const ENTRY_BYTES: usize = 8;

/// Streams that are taken back one by one; when more are gone a full report is shorter.
const MAX_REMOVED: usize = 4096;

/// See the module.
pub(crate) struct Reporter {
    identity: Arc<Identity>,
    collector: Handle,
    centre: View,
    /// What the centre knows, if the connection of this number is still there.
    told: Told,
    /// Rules of which files wait, or waited, to be read by the present revision.
    waits: HashMap<String, Wait>,
}

#[derive(Debug, Default)]
struct Told {
    link: u64,
    /// As in [`Taken`].
    deltas: u64,
    /// Of each stream a hash of what was told: the words themselves would be most of the memory of many files.
    streams: HashMap<StreamId, u64>,
    rules: HashMap<String, RuleStatus>,
}

impl Reporter {
    pub(crate) fn new(identity: Arc<Identity>, collector: Handle, centre: View) -> Self {
        Self { identity, collector, centre, told: Told::default(), waits: HashMap::new() }
    }

    /// Runs until the token is cancelled.
    pub(crate) async fn run(mut self, token: CancellationToken) -> anyhow::Result<()> {
        let mut activity = self.collector.activity();
        let (mut link, mut taken) = (self.centre.link.clone(), self.centre.taken.clone());
        loop {
            let began = Instant::now();
            let Ok(snapshot) = self.collector.snapshot().await else { return Ok(()) };
            measure(&snapshot);
            let current = link.borrow_and_update().clone();
            if let Some(current) = current
                && let Err(error) = self.report(&current, snapshot).await
            {
                let refused = error.downcast_ref::<Status>().is_some_and(|status| status.code() == Code::OutOfRange);
                match refused {
                    // The same will be refused again: somebody must know.
                    true => tracing::warn!(error = format!("{error:#}"), "the centre refuses the report"),
                    false => {
                        tracing::debug!(error = format!("{error:#}"), "the report was not taken; all is told again")
                    }
                }
                self.told = Told::default();
            }
            tokio::select! { () = token.cancelled() => return Ok(()), () = tokio::time::sleep(SHORT_PAUSE) => {} }
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(began + PAUSE) => {}
                _ = link.changed() => continue,
                _ = taken.changed() => continue,
            }
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = tokio::time::sleep(LONGEST_PAUSE) => {}
                _ = activity.changed() => {}
                _ = link.changed() => {}
                _ = taken.changed() => {}
            }
        }
    }

    /// Sends what the centre doesn't know yet.
    async fn report(&mut self, link: &Link, snapshot: Snapshot) -> anyhow::Result<()> {
        let taken = self.centre.taken.borrow().clone();
        let rules = self.rules_of(&taken.rules, &snapshot);
        let there: HashSet<StreamId> = snapshot.files.iter().map(|file| file.stream).collect();
        let removed = self.told.streams.keys().filter(|id| !there.contains(*id));
        let removed: Vec<String> = removed.map(ToString::to_string).collect();
        // A rule that is no more isn't named by a delta: only a full report lets it go.
        let full = self.told.link != link.number
            || removed.len() > MAX_REMOVED
            || self.told.rules.keys().any(|name| !rules.contains_key(name));
        if full {
            self.told = Told::default();
        }
        let new_rules = changed(&rules, &self.told.rules);
        let (new_streams, streams) = changed_streams(&snapshot, &self.told.streams);
        let removed = if full { Vec::new() } else { removed };
        let nothing_new = new_rules.is_empty() && new_streams.is_empty() && removed.is_empty();
        if !full && nothing_new && taken.deltas == self.told.deltas {
            return Ok(());
        }
        let first = ReportStatusRequest {
            agent_id: self.identity.id.to_string(),
            session: self.identity.session.clone(),
            full,
            removed_streams: removed,
            nonce: taken.nonce,
            revision: taken.revision,
            ..Default::default()
        };
        let want_full = send(link, first, new_rules, new_streams).await?;
        let told = Told { link: link.number, deltas: taken.deltas, streams, rules };
        self.told = if want_full { Told::default() } else { told };
        Ok(())
    }

    fn rules_of(&mut self, standing: &BTreeMap<String, Standing>, snapshot: &Snapshot) -> HashMap<String, RuleStatus> {
        self.waits.retain(|name, _| standing.contains_key(name));
        let running: HashMap<&str, &tail::RuleStatus> =
            snapshot.rules.iter().map(|rule| (rule.name.as_str(), rule)).collect();
        let one = |(name, standing): (&String, &Standing)| {
            let running = running.get(name.as_str()).copied();
            let mut status = rule_of(name, standing, running);
            let waits = status.state() == RuleState::Applying;
            status.since = Some(timestamp(since(&mut self.waits, name, standing, waits)));
            (name.clone(), status)
        };
        standing.iter().map(one).collect()
    }
}

/// Sends a report; answers whether all has to be told again.
async fn send(
    link: &Link,
    first: ReportStatusRequest,
    rules: Vec<RuleStatus>,
    streams: Vec<StreamStatus>,
) -> anyhow::Result<bool> {
    let mut client = AgentConfigServiceClient::new(link.channel.clone());
    for part in parts(first, rules, streams) {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.report_status(part));
        if answer.await??.into_inner().want_full {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The report in messages of at most [`PART_BYTES`], unless one entry alone is larger. What comes after the first adds to
/// it.
fn parts(first: ReportStatusRequest, rules: Vec<RuleStatus>, streams: Vec<StreamStatus>) -> Vec<ReportStatusRequest> {
    let more =
        ReportStatusRequest { agent_id: first.agent_id.clone(), session: first.session.clone(), ..Default::default() };
    let mut size = first.encoded_len();
    let (mut parts, mut part) = (Vec::new(), first);
    let mut room = |bytes: usize, part: &mut ReportStatusRequest| {
        if size + bytes > PART_BYTES {
            parts.push(std::mem::replace(part, more.clone()));
            size = more.encoded_len();
        }
        size += bytes;
    };
    for rule in rules {
        room(rule.encoded_len() + ENTRY_BYTES, &mut part);
        part.rules.push(rule);
    }
    for stream in streams {
        room(stream.encoded_len() + ENTRY_BYTES, &mut part);
        part.streams.push(stream);
    }
    parts.push(part);
    parts
}

/// The streams that aren't as they were told, and the hashes of all.
fn changed_streams(snapshot: &Snapshot, told: &HashMap<StreamId, u64>) -> (Vec<StreamStatus>, HashMap<StreamId, u64>) {
    let mut changed = Vec::new();
    let one = |file: &FileStatus| {
        let stream = stream_of(file);
        let mut hasher = DefaultHasher::new();
        hasher.write(&stream.encode_to_vec());
        let hash = hasher.finish();
        if told.get(&file.stream) != Some(&hash) {
            changed.push(stream);
        }
        (file.stream, hash)
    };
    let hashes = snapshot.files.iter().map(one).collect();
    (changed, hashes)
}

/// The values that aren't the same in `before`.
fn changed<T: Clone + PartialEq>(now: &HashMap<String, T>, before: &HashMap<String, T>) -> Vec<T> {
    now.iter().filter(|(key, value)| before.get(*key) != Some(value)).map(|(_, value)| value.clone()).collect()
}

/// A rule of which files wait, or waited, to be read by its present revision.
#[derive(Debug)]
struct Wait {
    revision: i64,
    waits: bool,
    since: UnixNanos,
}

/// Since when a rule has been in its state, of which applying is the part that only the collector knows the end of.
fn since(waits: &mut HashMap<String, Wait>, name: &str, standing: &Standing, now_waits: bool) -> UnixNanos {
    match waits.get_mut(name).filter(|wait| wait.revision == standing.desired_revision) {
        Some(wait) => {
            if std::mem::replace(&mut wait.waits, now_waits) != now_waits {
                wait.since = UnixNanos::now();
            }
            wait.since.max(standing.since)
        }
        None => {
            waits.remove(name);
            if now_waits {
                let wait = Wait { revision: standing.desired_revision, waits: true, since: standing.since };
                waits.insert(name.to_owned(), wait);
            }
            standing.since
        }
    }
}

/// How a rule stands, but for since when.
fn rule_of(name: &str, standing: &Standing, running: Option<&tail::RuleStatus>) -> RuleStatus {
    let running_revision = running.map_or(0, |rule| rule.earliest_revision.unwrap_or(rule.running_revision));
    // It was taken in, and files are read by another until they come to an acked boundary.
    let waits = running.is_none_or(|rule| rule.waiting > 0 || rule.running_revision != standing.desired_revision);
    let state = match standing.state {
        RuleState::Applied if waits => RuleState::Applying,
        RuleState::Applied if running.is_some_and(is_shadowed) => RuleState::Shadowed,
        state => state,
    };
    // Until the tailer has taken the revision in, what is known is what the one before does.
    let told =
        |rule: &&tail::RuleStatus| state != RuleState::Applying || rule.running_revision == standing.desired_revision;
    RuleStatus {
        name: name.to_owned(),
        desired_revision: standing.desired_revision,
        attempted_revision: standing.attempted_revision,
        running_revision,
        state: state.into(),
        error: standing.error.clone(),
        since: None,
        effect: running.filter(told).map(effect_of),
    }
}

/// Other rules own every file that it matches. One that it matches and can't read is its own all the same: who looks for that
/// file mustn't be sent to another rule.
fn is_shadowed(rule: &tail::RuleStatus) -> bool {
    rule.shadowed > 0 && rule.files == 0 && rule.refused == 0
}

fn effect_of(rule: &tail::RuleStatus) -> RuleEffect {
    RuleEffect {
        files_matched: rule.files as u32,
        files_shadowed: rule.shadowed as u32,
        shadowed_by: rule.shadowed_by.iter().map(ToString::to_string).collect(),
        files_refused: rule.refused as u32,
        refused_by_reason: rule.refused_by.iter().map(|(reason, n)| ((*reason).to_owned(), *n as u32)).collect(),
        problems: rule.problems.iter().map(problem_of).collect(),
        lines_per_second: rule.lines_per_second,
        bytes_per_second: rule.bytes_per_second,
        lag_bytes: rule.lag_bytes,
        decode_errors: rule.decode_errors,
    }
}

fn problem_of(problem: &logmesh_tail::FileProblem) -> FileProblem {
    FileProblem {
        path: problem.path.to_string_lossy().into_owned(),
        reason: problem.reason.to_owned(),
        detail: problem.detail.clone(),
    }
}

fn stream_of(file: &FileStatus) -> StreamStatus {
    let state = match file.state {
        FileState::Active => StreamState::Active,
        FileState::Draining if file.lag() == 0 => StreamState::Finished,
        FileState::Draining => StreamState::Draining,
        FileState::Blocked => StreamState::Blocked,
    };
    StreamStatus {
        stream_id: file.stream.to_string(),
        path: file.path.to_string_lossy().into_owned(),
        rule: file.rule.to_string(),
        topic: file.topic.to_string(),
        start_offset: file.start,
        size: file.size,
        read_offset: file.read,
        acked_offset: file.acked,
        oldest_unacked_time: file.waiting_since.map(timestamp),
        state: state.into(),
        error: file.error.clone().unwrap_or_default(),
        lost_bytes: file.lost_bytes,
        lost_ranges: file.losses.iter().map(lost_range).collect(),
        at_risk: file.at_risk,
        bytes_per_second: file.bytes_per_second,
    }
}

fn lost_range(loss: &Loss) -> LostRange {
    let cause = match loss.cause {
        tail::LossCause::Truncated => LossCause::Truncated,
        tail::LossCause::CutShort => LossCause::CutShort,
        tail::LossCause::Gone => LossCause::Gone,
        tail::LossCause::Unacked => LossCause::Unacked,
    };
    LostRange {
        start_offset: loss.range.start,
        end_offset: loss.range.end,
        cause: cause.into(),
        time: Some(timestamp(loss.noted)),
    }
}

fn measure(snapshot: &Snapshot) {
    let totals = &snapshot.totals;
    gauge!(metric::AGENT_FILES).set(totals.files as f64);
    gauge!(metric::AGENT_OPEN_FILES).set(totals.open_files as f64);
    gauge!(metric::AGENT_IN_FLIGHT_BYTES).set(totals.in_flight_bytes as f64);
    gauge!(metric::AGENT_IN_FLIGHT_CHUNKS).set(totals.in_flight_chunks as f64);
    gauge!(metric::AGENT_LAG_BYTES).set(snapshot.files.iter().map(FileStatus::lag).sum::<u64>() as f64);
    gauge!(metric::AGENT_FILES_AT_RISK).set(snapshot.files.iter().filter(|file| file.at_risk).count() as f64);
    let oldest = snapshot.files.iter().filter_map(|file| file.waiting_since).min();
    let waits = oldest.map_or(0, |since| UnixNanos::now().0.saturating_sub(since.0).max(0));
    gauge!(metric::AGENT_OLDEST_UNACKED_SECONDS).set(waits as f64 / 1e9);
    gauge!(metric::AGENT_STATE_FAILING).set(if snapshot.state_error.is_some() { 1.0 } else { 0.0 });
    counter!(metric::AGENT_READ_BYTES).absolute(totals.read_bytes);
    counter!(metric::AGENT_READ_EVENTS).absolute(totals.read_events);
    counter!(metric::AGENT_SPLIT_EVENTS).absolute(totals.split_events);
    counter!(metric::AGENT_CUT_EVENTS).absolute(totals.cut_events);
    counter!(metric::AGENT_DECODE_ERRORS).absolute(totals.decode_errors);
    counter!(metric::AGENT_ACKED_BYTES).absolute(totals.acked_bytes);
    counter!(metric::AGENT_LOST_BYTES).absolute(totals.lost_bytes);
    counter!(metric::AGENT_TRUNCATIONS).absolute(totals.truncations);
    counter!(metric::AGENT_STATE_COMMITS).absolute(totals.commits);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_report_is_cut_and_whole() {
        let stream = |number: usize| StreamStatus {
            stream_id: format!("{number:032x}"),
            path: format!("/{}", "x".repeat(4_000)),
            ..Default::default()
        };
        let first = ReportStatusRequest { agent_id: "a".into(), full: true, ..Default::default() };
        let streams: Vec<StreamStatus> = (0..2_000).map(stream).collect();
        let parts = parts(first, vec![RuleStatus::default()], streams.clone());
        assert!(parts.len() > 3 && parts.iter().all(|part| part.encoded_len() <= PART_BYTES));
        assert!(parts.iter().enumerate().all(|(place, part)| part.full == (place == 0) && part.agent_id == "a"));
        assert_eq!(parts.iter().flat_map(|part| part.streams.clone()).collect::<Vec<_>>(), streams);
        assert_eq!(parts.iter().map(|part| part.rules.len()).sum::<usize>(), 1);
    }
}
