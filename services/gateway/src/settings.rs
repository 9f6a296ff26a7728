//! The settings of a gateway.

use std::time::Duration;

use anyhow::ensure;
use logmesh_grpc::Load;
use logmesh_record::Topics;
use logmesh_types::limits::{MAX_CHUNK_BYTES, MAX_IN_FLIGHT_BYTES, MAX_RECORD_BYTES};
use logmesh_types::{ByteSize, Span};
use serde::{Deserialize, Serialize};

/// The settings of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What topics are. The mesh's own setting, which transfer needs too: never part of this section.
    #[serde(skip)]
    pub topics: Topics,
    /// Topics that may be made, internal ones not counted: a misled agent must not fill the bus with them.
    pub max_topics: usize,
    /// Unacked bytes that one connection may have under way.
    pub max_in_flight: ByteSize,
    /// Unacked bytes of all connections together.
    pub max_in_flight_total: ByteSize,
    /// Push streams at a time.
    pub max_streams: usize,
    /// Calls of `Write`, and Push streams that are being opened, at a time; as many again may wait.
    pub max_calls: usize,
    /// The same that may begin in a second.
    pub max_calls_per_second: u64,
    /// How long such a call may wait and work.
    pub call_timeout: Span,
    /// After about this time (a fifth more or less) an agent is asked to connect again, so that new gateways get their
    /// share.
    pub max_stream_age: Span,
    /// How long acks under way may take when the process ends or a stream has reached its age.
    pub drain: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            topics: Topics::default(),
            max_topics: 1_000,
            max_in_flight: ByteSize(MAX_IN_FLIGHT_BYTES),
            max_in_flight_total: ByteSize(256 << 20),
            max_streams: 12_000,
            // A message may have 4 MiB, so that calls at work hold 256 MiB at most.
            max_calls: 64,
            max_calls_per_second: 10_000,
            call_timeout: Span(Duration::from_secs(30)),
            max_stream_age: Span(Duration::from_secs(600)),
            // A little less than the server waits for its calls, so that the last acks are sent.
            drain: Span(Duration::from_secs(4)),
        }
    }
}

impl Settings {
    /// What the service takes before calls are turned away.
    pub(crate) fn load(&self) -> Load {
        Load { calls: self.max_calls, calls_per_second: self.max_calls_per_second, timeout: self.call_timeout.0 }
    }

    /// Says which setting can't work.
    pub fn check(&self) -> anyhow::Result<()> {
        let chunk = MAX_CHUNK_BYTES as u64;
        ensure!(self.max_in_flight.0 >= chunk, "max_in_flight must be at least {}", ByteSize(chunk));
        let (least, most) = (MAX_RECORD_BYTES as u64, u64::from(u32::MAX));
        let total = self.max_in_flight_total.0;
        ensure!((least..=most).contains(&total), "max_in_flight_total must be {} to {most}", ByteSize(least));
        ensure!(self.max_streams > 0 && self.max_topics > 0, "max_streams and max_topics must be more than 0");
        ensure!(
            (1..=10_000).contains(&self.max_calls) && self.max_calls_per_second > 0 && !self.call_timeout.0.is_zero(),
            "max_calls must be 1 to 10000, max_calls_per_second and call_timeout more than 0"
        );
        ensure!(!self.max_stream_age.0.is_zero(), "max_stream_age must be more than 0");
        for (topic, settings) in &self.topics.named {
            ensure!(settings.partitions > 0, "topic {topic} must have at least 1 partition");
            ensure!(!topic.is_internal(), "topic {topic} belongs to logmesh itself and can't be set");
        }
        self.topics.check().map_err(anyhow::Error::msg)?;
        ensure!(self.topics.default.partitions > 0, "a topic must have at least 1 partition");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work_and_nonsense_is_named() {
        Settings::default().check().unwrap();
        let settings = Settings { max_in_flight: ByteSize(5), ..Settings::default() };
        assert!(settings.check().unwrap_err().to_string().contains("max_in_flight"));
    }
}
