//! What the collector says of itself.

use std::collections::HashMap;

use logmesh_types::{RuleName, StreamId};

use super::{Collector, Draining};
use crate::follow::{Flight, Followed};
use crate::state::Record;
use crate::status::{FileState, FileStatus, RATE_MEMORY, RuleStatus, Totals};

impl Collector {
    /// Each stream that is followed, those whose last chunks aren't acked yet, and those that ended with a loss.
    pub fn status(&self) -> Vec<FileStatus> {
        let (binary, read): (Vec<_>, Vec<_>) = self.files.values().map(Box::as_ref).partition(|file| file.binary);
        let mut followed: Vec<FileStatus> = read.iter().map(|file| self.assess(file, status_of(file))).collect();
        let mut ended: HashMap<StreamId, FileStatus> = HashMap::new();
        for (stream, draining) in &self.draining {
            ended.extend(status_of_draining(*stream, draining).map(|status| (*stream, status)));
        }
        // Of a file that isn't text any more only that is told.
        let unread = binary.iter().map(|file| &file.record);
        for record in self.dormant.values().chain(unread.clone()) {
            let stream = Followed::stream_of(&self.settings.agent, record);
            if lost_of_present(record, stream) + record.missing == 0 {
                continue;
            }
            let status = ended.entry(stream).or_insert_with(|| ended_at(record, stream, record.acked));
            tell_losses(status, record, record.missing);
            status.losses.extend(record.missing_loss());
        }
        let records = read.iter().map(|file| &file.record).chain(unread).chain(self.dormant.values());
        for record in records.filter(|record| !record.losses.is_empty()) {
            let present = Followed::stream_of(&self.settings.agent, record);
            for lost in record.losses.iter().filter(|lost| lost.stream != present) {
                // It may live on in a copy: one stream has one status.
                if self.by_stream.contains_key(&lost.stream)
                    && let Some(status) = followed.iter_mut().find(|status| status.stream == lost.stream)
                {
                    status.lost_bytes += lost.loss.range.len();
                    status.losses.push(lost.loss.clone());
                    continue;
                }
                let start = lost.loss.range.start;
                let status = ended.entry(lost.stream).or_insert_with(|| FileStatus {
                    topic: lost.topic.clone(),
                    start,
                    ..ended_at(record, lost.stream, start)
                });
                status.lost_bytes += lost.loss.range.len();
                status.losses.push(lost.loss.clone());
            }
        }
        followed.extend(ended.into_values());
        followed
    }

    /// Each rule that runs.
    pub fn rules(&self) -> Vec<RuleStatus> {
        let mut rules: Vec<RuleStatus> = self
            .rules
            .iter()
            .map(|running| RuleStatus {
                name: running.compiled.rule.name.clone(),
                running_revision: running.compiled.rule.revision,
                waiting: 0,
                earliest_revision: None,
                lines_per_second: running.tempo.lines.of_late(self.now, RATE_MEMORY),
                bytes_per_second: running.tempo.bytes.of_late(self.now, RATE_MEMORY),
                lag_bytes: 0,
                decode_errors: running.tempo.decode_errors,
                files: 0,
                shadowed: running.found.shadowed,
                shadowed_by: running.found.owners.clone(),
                refused: running.found.refused.values().sum(),
                refused_by: running.found.refused.clone(),
                problems: running.found.problems.clone(),
            })
            .collect();
        for file in self.files.values() {
            let Some(rule) = rules.get_mut(file.rule) else { continue };
            if file.binary {
                rule.refused += 1;
                let path = file.record.path.clone();
                let detail = file.error.clone().unwrap_or_default();
                let reason = if file.packed.is_some() { "COMPRESSED" } else { "BINARY" };
                *rule.refused_by.entry(reason).or_default() += 1;
                super::discover::note(&mut rule.problems, path, reason, detail);
            } else {
                rule.files += 1;
                rule.lag_bytes += file.record.size.saturating_sub(file.record.acked);
                note_waiting(rule, file);
            }
        }
        for sent in self.draining.values().flat_map(|draining| &draining.flight.sent) {
            if let Some(rule) = rules.iter_mut().find(|rule| rule.name == sent.chunk.source.rule) {
                rule.lag_bytes += sent.chunk.range.len();
            }
        }
        rules
    }

    /// The revision of a rule that runs now.
    pub fn running_revision(&self, name: &RuleName) -> Option<i64> {
        self.rules.iter().map(|running| &running.compiled.rule).find(|rule| rule.name == *name).map(|r| r.revision)
    }

    /// Numbers over all files.
    pub fn totals(&self) -> Totals {
        Totals { files: self.files.len(), open_files: self.open.len(), ..self.totals }
    }

    /// A number that changes whenever [`Collector::status`] or [`Collector::rules`] would.
    pub fn activity(&self) -> u64 {
        self.totals.read_bytes + self.totals.acked_bytes + self.totals.commits + self.changes
    }

    /// Why positions can't be saved, or what was wrong with the state at the start.
    pub fn state_error(&self) -> Option<&str> {
        self.state_error.as_deref()
    }
}

/// Counts a file that is still read by what was in force before.
fn note_waiting(rule: &mut RuleStatus, file: &Followed) {
    if file.next.is_none() {
        return;
    }
    rule.waiting += 1;
    let present = &file.record.assignment;
    if present.rule == rule.name {
        rule.earliest_revision =
            Some(rule.earliest_revision.map_or(present.revision, |least| least.min(present.revision)));
    }
}

fn status_of_draining(stream: StreamId, draining: &Draining) -> Option<FileStatus> {
    let flight = &draining.flight;
    let (first, last) = (flight.sent.front()?, flight.sent.back()?);
    Some(FileStatus {
        stream,
        path: first.chunk.source.path.clone().into(),
        rule: first.chunk.source.rule.clone(),
        topic: first.chunk.source.topic.clone(),
        start: draining.start,
        size: last.chunk.range.end,
        read: last.chunk.range.end,
        acked: first.chunk.range.start,
        waiting_since: Some(first.chunk.read_time),
        state: state_of(flight, true, false),
        error: flight.error.clone(),
        bytes_per_second: 0,
        at_risk: false,
        lost_bytes: 0,
        losses: Vec::new(),
    })
}

/// A stream of which nothing more comes: it ends where it is acked.
fn ended_at(record: &Record, stream: StreamId, acked: u64) -> FileStatus {
    FileStatus {
        stream,
        path: record.path.clone(),
        rule: record.assignment.rule.clone(),
        topic: record.assignment.topic.clone(),
        start: record.start.min(acked),
        size: acked,
        read: acked,
        acked,
        waiting_since: None,
        state: FileState::Draining,
        error: None,
        bytes_per_second: 0,
        at_risk: false,
        lost_bytes: 0,
        losses: Vec::new(),
    }
}

/// Tells in the status of a record's present stream what was lost: of it, and where the stream isn't known any more.
fn tell_losses(status: &mut FileStatus, record: &Record, missing: u64) {
    status.lost_bytes = lost_of_present(record, status.stream) + missing;
    status.losses = record.losses_of(status.stream).0;
}

fn lost_of_present(record: &Record, stream: StreamId) -> u64 {
    let elsewhere: u64 = record.losses_of(stream).1.iter().map(|lost| lost.loss.range.len()).sum();
    record.lost_bytes.saturating_sub(elsewhere)
}

fn status_of(file: &Followed) -> FileStatus {
    let record = &file.record;
    let waiting_since = match file.flight.sent.front() {
        Some(sent) => Some(sent.chunk.read_time),
        None => file.unread_since.filter(|_| file.unread() > 0),
    };
    let mut status = FileStatus {
        stream: file.stream,
        path: record.path.clone(),
        rule: record.assignment.rule.clone(),
        topic: record.assignment.topic.clone(),
        start: record.start,
        size: record.size,
        read: file.read,
        acked: record.acked,
        waiting_since,
        state: state_of(&file.flight, file.deleted || file.away, file.error.is_some()),
        error: file.flight.error.clone().or_else(|| file.error.clone()),
        bytes_per_second: 0,
        at_risk: false,
        lost_bytes: 0,
        losses: Vec::new(),
    };
    tell_losses(&mut status, record, 0);
    status
}

fn state_of(flight: &Flight, gone: bool, failed: bool) -> FileState {
    if flight.error.is_some() || failed {
        FileState::Blocked
    } else if gone {
        FileState::Draining
    } else {
        FileState::Active
    }
}
