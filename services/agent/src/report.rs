//! Tells the centre how things stand: what changed, at most once a second; all of it with each new connection.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use logmesh_proto::fleet::v1::agent_config_service_client::AgentConfigServiceClient;
use logmesh_proto::fleet::v1::{
    FileProblem, LossCause, LostRange, ReportStatusRequest, RuleEffect, RuleStatus, StreamState, StreamStatus,
};
use logmesh_proto::time::timestamp;
use logmesh_runtime::CancellationToken;
use logmesh_tail::{self as tail, FileState, FileStatus, Loss};
use logmesh_types::{StreamId, UnixNanos};
use metrics::{counter, gauge};
use prost::Message;
use tonic::{Code, Status};

use crate::centre::{Link, View};
use crate::collect::{Handle, Snapshot};
use crate::host::Identity;
use crate::rules::Standing;

/// Reports come no more often than this,
const PAUSE: Duration = Duration::from_secs(1);

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
}

#[derive(Debug, Default)]
struct Told {
    link: u64,
    /// Of each stream a hash of what was told: the words themselves would be most of the memory of many files.
    streams: HashMap<StreamId, u64>,
    rules: HashMap<String, RuleStatus>,
}

impl Reporter {
    pub(crate) fn new(identity: Arc<Identity>, collector: Handle, centre: View) -> Self {
        Self { identity, collector, centre, told: Told::default() }
    }

    /// Runs until the token is cancelled.
    pub(crate) async fn run(mut self, token: CancellationToken) -> anyhow::Result<()> {
        let mut activity = self.collector.activity();
        let (mut link, mut rules) = (self.centre.link.clone(), self.centre.rules.clone());
        loop {
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
            tokio::select! { () = token.cancelled() => return Ok(()), () = tokio::time::sleep(PAUSE) => {} }
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = tokio::time::sleep(LONGEST_PAUSE) => {}
                _ = activity.changed() => {}
                _ = link.changed() => {}
                _ = rules.changed() => {}
            }
        }
    }

    /// Sends what the centre doesn't know yet.
    async fn report(&mut self, link: &Link, snapshot: Snapshot) -> anyhow::Result<()> {
        let standing = self.centre.rules.borrow().clone();
        let rules = rules_of(&standing, &snapshot);
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
        if !full && new_rules.is_empty() && new_streams.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let want_full = self.send(link, full, new_rules, new_streams, removed).await?;
        self.told = if want_full { Told::default() } else { Told { link: link.number, streams, rules } };
        Ok(())
    }

    async fn send(
        &self,
        link: &Link,
        full: bool,
        rules: Vec<RuleStatus>,
        streams: Vec<StreamStatus>,
        removed: Vec<String>,
    ) -> anyhow::Result<bool> {
        let mut client = AgentConfigServiceClient::new(link.channel.clone());
        let first = ReportStatusRequest {
            agent_id: self.identity.id.to_string(),
            session: self.identity.session.clone(),
            full,
            removed_streams: removed,
            ..Default::default()
        };
        for part in parts(first, rules, streams) {
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.report_status(part));
            if answer.await??.into_inner().want_full {
                return Ok(true);
            }
        }
        Ok(false)
    }
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

fn rules_of(standing: &BTreeMap<String, Standing>, snapshot: &Snapshot) -> HashMap<String, RuleStatus> {
    let one = |(name, standing): (&String, &Standing)| {
        let running = snapshot.rules.iter().find(|rule| rule.name.as_str() == name);
        let effect = running.map(|rule| RuleEffect {
            files_matched: rule.files as u32,
            files_shadowed: rule.shadowed as u32,
            files_refused: rule.refused as u32,
            problems: rule.problems.iter().map(problem_of).collect(),
            ..RuleEffect::default()
        });
        let status = RuleStatus {
            name: name.clone(),
            desired_revision: standing.desired_revision,
            attempted_revision: standing.attempted_revision,
            running_revision: running.map_or(0, |rule| rule.running_revision),
            state: standing.state.into(),
            error: standing.error.clone(),
            since: Some(timestamp(standing.since)),
            effect,
        };
        (name.clone(), status)
    };
    standing.iter().map(one).collect()
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
    gauge!("logmesh_agent_files").set(totals.files as f64);
    gauge!("logmesh_agent_open_files").set(totals.open_files as f64);
    gauge!("logmesh_agent_in_flight_bytes").set(totals.in_flight_bytes as f64);
    gauge!("logmesh_agent_in_flight_chunks").set(totals.in_flight_chunks as f64);
    gauge!("logmesh_agent_lag_bytes").set(snapshot.files.iter().map(FileStatus::lag).sum::<u64>() as f64);
    gauge!("logmesh_agent_files_at_risk").set(snapshot.files.iter().filter(|file| file.at_risk).count() as f64);
    let oldest = snapshot.files.iter().filter_map(|file| file.waiting_since).min();
    let waits = oldest.map_or(0, |since| UnixNanos::now().0.saturating_sub(since.0).max(0));
    gauge!("logmesh_agent_oldest_unacked_seconds").set(waits as f64 / 1e9);
    gauge!("logmesh_agent_state_failing").set(if snapshot.state_error.is_some() { 1.0 } else { 0.0 });
    counter!("logmesh_agent_read_bytes").absolute(totals.read_bytes);
    counter!("logmesh_agent_read_events").absolute(totals.read_events);
    counter!("logmesh_agent_split_events").absolute(totals.split_events);
    counter!("logmesh_agent_cut_events").absolute(totals.cut_events);
    counter!("logmesh_agent_acked_bytes").absolute(totals.acked_bytes);
    counter!("logmesh_agent_lost_bytes").absolute(totals.lost_bytes);
    counter!("logmesh_agent_truncations").absolute(totals.truncations);
    counter!("logmesh_agent_state_commits").absolute(totals.commits);
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
