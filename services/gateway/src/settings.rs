//! The settings of a gateway.

use std::time::Duration;

use anyhow::ensure;
use logmesh_record::Topics;
use logmesh_types::limits::{MAX_CHUNK_BYTES, MAX_IN_FLIGHT_BYTES, MAX_RECORD_BYTES};
use logmesh_types::{AgentId, ByteSize, Span};
use serde::{Deserialize, Serialize};

/// The settings of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What topics are; transfer and console need the same.
    pub topics: Topics,
    /// Topics that may be made, internal ones not counted: a misled agent must not fill the bus with them.
    pub max_topics: usize,
    /// Config services to register with, `host:port`; one of them is used at a time. None: nobody finds this gateway.
    pub config_servers: Vec<String>,
    /// Where agents find this gateway, `host:port`.
    pub advertise: String,
    /// The gateway's id among all gateways; empty: from `advertise`.
    pub id: String,
    /// Unacked bytes that one connection may have under way.
    pub max_in_flight: ByteSize,
    /// Unacked bytes of all connections together.
    pub max_in_flight_total: ByteSize,
    /// Push streams at a time.
    pub max_streams: usize,
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
            config_servers: Vec::new(),
            advertise: "127.0.0.1:7402".to_owned(),
            id: String::new(),
            max_in_flight: ByteSize(MAX_IN_FLIGHT_BYTES),
            max_in_flight_total: ByteSize(256 << 20),
            max_streams: 12_000,
            max_stream_age: Span(Duration::from_secs(600)),
            // A little less than the server waits for its calls, so that the last acks are sent.
            drain: Span(Duration::from_secs(4)),
        }
    }
}

impl Settings {
    /// Says which setting can't work.
    pub fn check(&self) -> anyhow::Result<()> {
        let chunk = MAX_CHUNK_BYTES as u64;
        ensure!(self.max_in_flight.0 >= chunk, "max_in_flight must be at least {}", ByteSize(chunk));
        let (least, most) = (MAX_RECORD_BYTES as u64, u64::from(u32::MAX));
        let total = self.max_in_flight_total.0;
        ensure!((least..=most).contains(&total), "max_in_flight_total must be {} to {most}", ByteSize(least));
        ensure!(self.max_streams > 0 && self.max_topics > 0, "max_streams and max_topics must be more than 0");
        ensure!(!self.max_stream_age.0.is_zero(), "max_stream_age must be more than 0");
        for (topic, settings) in &self.topics.named {
            ensure!(settings.partitions > 0, "topic {topic} must have at least 1 partition");
            ensure!(!topic.is_internal(), "topic {topic} belongs to logmesh itself and can't be set");
        }
        ensure!(self.topics.default.partitions > 0, "a topic must have at least 1 partition");
        for server in &self.config_servers {
            logmesh_grpc::channel(server)?;
        }
        ensure!(
            self.config_servers.is_empty() || self.endpoint_id().parse::<AgentId>().is_ok(),
            "id {:?} is not 1 to 64 of a-z, 0-9, '.', '_' and '-'",
            self.endpoint_id()
        );
        Ok(())
    }

    /// The id to register under.
    pub(crate) fn endpoint_id(&self) -> String {
        if !self.id.is_empty() {
            return self.id.clone();
        }
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
        self.advertise.chars().map(plain).collect::<String>().trim_matches('-').to_owned()
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
        let settings = Settings { config_servers: vec!["nowhere".to_owned()], ..Settings::default() };
        assert!(settings.check().unwrap_err().to_string().contains("nowhere"));
    }

    #[test]
    fn the_id_comes_from_the_address() {
        let id = |advertise: &str| Settings { advertise: advertise.to_owned(), ..Settings::default() }.endpoint_id();
        assert_eq!(id("127.0.0.1:7402"), "127.0.0.1-7402");
        assert_eq!(id("[::1]:7402"), "1--7402");
        assert_eq!(id("Gate.example:1"), "gate.example-1");
    }
}
