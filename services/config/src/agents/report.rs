//! What one agent reported of its rules and streams, cut to its limits.

use std::collections::BTreeMap;

use logmesh_grpc::invalid_argument;
use logmesh_proto::fleet::v1::{ReportStatusRequest, RuleStatus, StreamStatus};
use logmesh_types::StreamId;
use logmesh_types::limits::MAX_PATH_BYTES;
use prost::Message;
use tonic::Status;

use crate::error::bad_field;
use crate::limits::{MAX_AGENT_RULES, MAX_LOST_RANGES, MAX_REPORT_TEXT_BYTES, MAX_RULE_STATUS_BYTES};

/// The state that an agent's reports add up to.
#[derive(Debug, Default)]
pub(crate) struct Reported {
    /// By rule name.
    pub(crate) rules: BTreeMap<String, RuleStatus>,
    /// By stream id.
    pub(crate) streams: BTreeMap<String, StreamStatus>,
    /// Whether a full report is the base of it.
    pub(crate) has_full: bool,
}

/// Checks a report and cuts its texts, before it's taken.
pub(crate) fn check(report: &mut ReportStatusRequest) -> Result<(), Status> {
    if report.rules.len() > MAX_AGENT_RULES {
        let message = format!("a report tells of at most {MAX_AGENT_RULES} rules");
        return Err(invalid_argument("TOO_MANY_RULES", message, &[]));
    }
    for (place, stream) in report.streams.iter_mut().enumerate() {
        if stream.stream_id.parse::<StreamId>().is_err() {
            return Err(bad_field(&format!("streams[{place}].stream_id"), "is not 32 hex digits"));
        }
        cut(&mut stream.path, MAX_PATH_BYTES);
        cut(&mut stream.error, MAX_REPORT_TEXT_BYTES);
        cut(&mut stream.rule, MAX_REPORT_TEXT_BYTES);
        cut(&mut stream.topic, MAX_REPORT_TEXT_BYTES);
        stream.lost_ranges.truncate(MAX_LOST_RANGES);
    }
    for (place, rule) in report.rules.iter_mut().enumerate() {
        if rule.name.parse::<logmesh_types::RuleName>().is_err() {
            return Err(bad_field(&format!("rules[{place}].name"), "is not a rule's name"));
        }
        cut_rule(rule);
    }
    Ok(())
}

fn cut_rule(rule: &mut RuleStatus) {
    if let Some(error) = &mut rule.error {
        cut(&mut error.reason, MAX_REPORT_TEXT_BYTES);
        cut(&mut error.message, MAX_REPORT_TEXT_BYTES);
        cut(&mut error.field, MAX_REPORT_TEXT_BYTES);
    }
    while rule.encoded_len() > MAX_RULE_STATUS_BYTES {
        let cut = rule.effect.as_mut().and_then(|effect| effect.problems.pop());
        if cut.is_none() {
            return;
        }
    }
}

/// Cuts a text at a character's boundary.
pub(crate) fn cut(text: &mut String, bytes: usize) {
    text.truncate(text.floor_char_boundary(bytes));
}

impl Reported {
    /// Takes a checked report in. The caller has made sure that its streams have room.
    pub(crate) fn apply(&mut self, report: ReportStatusRequest) {
        if report.full {
            *self = Self { has_full: true, ..Self::default() };
        }
        for rule in report.rules {
            if self.rules.len() < MAX_AGENT_RULES || self.rules.contains_key(&rule.name) {
                self.rules.insert(rule.name.clone(), rule);
            }
        }
        self.streams.extend(report.streams.into_iter().map(|stream| (stream.stream_id.clone(), stream)));
        for id in &report.removed_streams {
            self.streams.remove(id);
        }
    }

    /// How many streams there are at most once the report is taken in.
    pub(crate) fn streams_with(&self, report: &ReportStatusRequest) -> usize {
        if report.full {
            return report.streams.len();
        }
        self.streams.len()
            + report.streams.iter().filter(|stream| !self.streams.contains_key(&stream.stream_id)).count()
    }

    /// Bytes in the agent's files that are not durable on the bus.
    pub(crate) fn lag_bytes(&self) -> u64 {
        let lag = |stream: &StreamStatus| stream.size.saturating_sub(stream.acked_offset);
        self.streams.values().map(lag).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use logmesh_proto::fleet::v1::{FileProblem, RuleEffect};

    use super::*;

    fn stream(id: u8, size: u64, acked_offset: u64) -> StreamStatus {
        StreamStatus { stream_id: format!("{id:032x}"), size, acked_offset, ..StreamStatus::default() }
    }

    #[test]
    fn reports_add_up_and_a_full_one_replaces_all() {
        let mut reported = Reported::default();
        let first =
            ReportStatusRequest { full: true, streams: vec![stream(1, 10, 0), stream(2, 5, 5)], ..Default::default() };
        assert_eq!(reported.streams_with(&first), 2);
        reported.apply(first);
        let second = ReportStatusRequest {
            streams: vec![stream(1, 10, 7), stream(3, 1, 2)],
            removed_streams: vec![format!("{:032x}", 2)],
            ..Default::default()
        };
        assert_eq!(reported.streams_with(&second), 3);
        reported.apply(second);
        assert_eq!((reported.streams.len(), reported.lag_bytes(), reported.has_full), (2, 3, true));
        reported.apply(ReportStatusRequest { full: true, ..Default::default() });
        assert!(reported.streams.is_empty());
    }

    #[test]
    fn long_reports_are_cut_and_bad_ones_refused() {
        let problem = FileProblem { path: "/p".repeat(500), detail: "ü".repeat(500), ..Default::default() };
        let effect = RuleEffect { problems: vec![problem; 20], ..Default::default() };
        let status = RuleStatus { name: "rules/a".into(), effect: Some(effect), ..Default::default() };
        let long = StreamStatus { path: "ü".repeat(5000), error: "x".repeat(5000), ..stream(1, 0, 0) };
        let mut report = ReportStatusRequest { rules: vec![status], streams: vec![long], ..Default::default() };
        check(&mut report).unwrap();
        assert!(report.rules[0].encoded_len() <= MAX_RULE_STATUS_BYTES);
        assert!(!report.rules[0].effect.as_ref().unwrap().problems.is_empty());
        assert_eq!((report.streams[0].path.len(), report.streams[0].error.len()), (4096, 1024));
        let mut bad = ReportStatusRequest { streams: vec![StreamStatus::default()], ..Default::default() };
        assert!(check(&mut bad).unwrap_err().message().starts_with("streams[0].stream_id"));
        let many = vec![RuleStatus { name: "a".into(), ..Default::default() }; MAX_AGENT_RULES + 1];
        check(&mut ReportStatusRequest { rules: many, ..Default::default() }).unwrap_err();
    }
}
