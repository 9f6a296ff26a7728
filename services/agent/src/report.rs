//! Tells the centre how things stand: what changed, at most once a second; all of it with each new connection.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use logmesh_proto::fleet::v1::agent_config_service_client::AgentConfigServiceClient;
use logmesh_proto::fleet::v1::{FileProblem, ReportStatusRequest, RuleEffect, RuleStatus, StreamState, StreamStatus};
use logmesh_proto::time::timestamp;
use logmesh_runtime::CancellationToken;
use logmesh_tail::{FileState, FileStatus};
use metrics::{counter, gauge};

use crate::centre::{Link, View};
use crate::collect::{Handle, Snapshot};
use crate::host::Identity;
use crate::rules::Standing;

/// Reports come no more often than this,
const PAUSE: Duration = Duration::from_secs(1);

/// and the metrics are brought up to date at least so often.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Streams in one message: it stays well below 4 MiB with paths of usual length.
const MAX_STREAMS: usize = 4096;

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
    streams: HashMap<String, StreamStatus>,
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
                tracing::debug!(error = format!("{error:#}"), "the report was not taken; all is told again");
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
        let streams: HashMap<String, StreamStatus> =
            snapshot.files.iter().map(stream_of).map(|stream| (stream.stream_id.clone(), stream)).collect();
        let removed: Vec<String> = self.told.streams.keys().filter(|id| !streams.contains_key(*id)).cloned().collect();
        // A rule that is no more isn't named by a delta: only a full report lets it go.
        let full = self.told.link != link.number
            || removed.len() > MAX_STREAMS
            || self.told.rules.keys().any(|name| !rules.contains_key(name));
        if full {
            self.told = Told::default();
        }
        let (new_rules, new_streams) = (changed(&rules, &self.told.rules), changed(&streams, &self.told.streams));
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
        let mut request = ReportStatusRequest {
            agent_id: self.identity.id.to_string(),
            session: self.identity.session.clone(),
            full,
            rules,
            streams: Vec::new(),
            removed_streams: removed,
        };
        let mut parts = streams.chunks(MAX_STREAMS);
        let mut part = parts.next();
        loop {
            request.streams = part.map(<[StreamStatus]>::to_vec).unwrap_or_default();
            let next = ReportStatusRequest {
                agent_id: request.agent_id.clone(),
                session: request.session.clone(),
                ..ReportStatusRequest::default()
            };
            let answer = client.report_status(std::mem::replace(&mut request, next));
            if tokio::time::timeout(ANSWER_TIMEOUT, answer).await??.into_inner().want_full {
                return Ok(true);
            }
            part = parts.next();
            if part.is_none() {
                return Ok(false);
            }
        }
    }
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
    }
}

fn measure(snapshot: &Snapshot) {
    let totals = &snapshot.totals;
    gauge!("logmesh_agent_files").set(totals.files as f64);
    gauge!("logmesh_agent_open_files").set(totals.open_files as f64);
    gauge!("logmesh_agent_in_flight_bytes").set(totals.in_flight_bytes as f64);
    gauge!("logmesh_agent_in_flight_chunks").set(totals.in_flight_chunks as f64);
    gauge!("logmesh_agent_lag_bytes").set(snapshot.files.iter().map(FileStatus::lag).sum::<u64>() as f64);
    gauge!("logmesh_agent_state_failing").set(if snapshot.state_error.is_some() { 1.0 } else { 0.0 });
    counter!("logmesh_agent_read_bytes").absolute(totals.read_bytes);
    counter!("logmesh_agent_read_events").absolute(totals.read_events);
    counter!("logmesh_agent_acked_bytes").absolute(totals.acked_bytes);
    counter!("logmesh_agent_lost_bytes").absolute(totals.lost_bytes);
    counter!("logmesh_agent_truncations").absolute(totals.truncations);
    counter!("logmesh_agent_state_commits").absolute(totals.commits);
}
