//! What the collector says of itself.

use logmesh_types::RuleName;

use super::Collector;
use crate::follow::{Flight, Followed};
use crate::state::Record;
use crate::status::{FileState, FileStatus, RuleStatus, Totals};

impl Collector {
    /// Each stream that is followed, those whose last chunks aren't acked yet, and files that are gone with a loss.
    pub fn status(&self) -> Vec<FileStatus> {
        let files = self.files.values().filter(|file| !file.binary).map(status_of);
        let draining = self.draining.iter().filter_map(|(stream, draining)| {
            let flight = &draining.flight;
            let of_record = self.dormant.get(&draining.record).filter(|_| !draining.former);
            let (first, last) = (flight.sent.front()?, flight.sent.back()?);
            Some(FileStatus {
                stream: *stream,
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
                lost_bytes: of_record.map_or(0, lost_of),
            })
        });
        let lost = self.dormant.values().filter(|record| lost_of(record) > 0).map(|record| self.status_of_lost(record));
        let lost = lost.filter(|status| !self.draining.contains_key(&status.stream));
        files.chain(draining).chain(lost).collect()
    }

    /// Nothing more comes of a file that is gone: it ends where it is acked.
    fn status_of_lost(&self, record: &Record) -> FileStatus {
        FileStatus {
            stream: Followed::stream_of(&self.settings.agent, record),
            path: record.path.clone(),
            rule: record.assignment.rule.clone(),
            topic: record.assignment.topic.clone(),
            start: record.start,
            size: record.acked,
            read: record.acked,
            acked: record.acked,
            waiting_since: None,
            state: FileState::Draining,
            error: None,
            lost_bytes: lost_of(record),
        }
    }

    /// Each rule that runs.
    pub fn rules(&self) -> Vec<RuleStatus> {
        let mut rules: Vec<RuleStatus> = self
            .rules
            .iter()
            .map(|running| RuleStatus {
                name: running.compiled.rule.name.clone(),
                running_revision: running.compiled.rule.revision,
                files: 0,
                shadowed: running.shadowed,
                refused: running.refused,
                problems: running.problems.clone(),
            })
            .collect();
        for file in self.files.values() {
            let Some(rule) = rules.get_mut(file.rule) else { continue };
            if file.binary {
                rule.refused += 1;
                let path = file.record.path.clone();
                let detail = file.error.clone().unwrap_or_default();
                super::discover::note(&mut rule.problems, path, "BINARY", detail);
            } else {
                rule.files += 1;
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

fn lost_of(record: &Record) -> u64 {
    record.lost_bytes + record.missing
}

fn status_of(file: &Followed) -> FileStatus {
    let record = &file.record;
    let waiting_since = match file.flight.sent.front() {
        Some(sent) => Some(sent.chunk.read_time),
        None => file.unread_since.filter(|_| file.unread() > 0),
    };
    FileStatus {
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
        lost_bytes: record.lost_bytes,
    }
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
