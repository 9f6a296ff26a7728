//! The settings of the config service.

use std::time::Duration;

use anyhow::{anyhow, ensure};
use logmesh_grpc::Registration;
use logmesh_types::Span;
use logmesh_types::limits::{MAX_FILES, MAX_WATCHERS};
use serde::{Deserialize, Serialize};

/// The longest `seed_prefix`, so that no key comes near a limit of etcd's.
const MAX_SEED_BYTES: usize = 256;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The settings of the config service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// This server among the config services, an endpoint of kind `config`; none: it stands alone. It's the process's own,
    /// known once it listens: never part of this section.
    #[serde(skip)]
    pub server: Option<Registration>,
    /// How often an agent to which nothing happens is told that the centre is there; at most 10 s.
    pub bookmark_interval: Span,
    /// After about this time (a tenth more or less) an agent is asked to connect again, so that new servers get their
    /// share; at most 1 day.
    pub max_stream_age: Span,
    /// How long an endpoint, and a leadership, lives without a sign of life.
    pub endpoint_ttl: Span,
    /// An agent that wasn't seen for this long is forgotten, with the labels that the centre gave it; at least 1 s. The
    /// store knows when it was seen to within a day, or more closely where this is short.
    pub agent_retention: Span,
    /// The history of a rule that was deleted is kept for this long; at least 1 s.
    pub history_retention: Span,
    /// Agents that are known at a time. When there are more, those that were gone longest are forgotten; when all are
    /// connected, a further one is refused.
    pub max_agents: usize,
    /// Where the tree of a logagent lies in etcd, outside of any prefix of the mesh's: what its keys
    /// `{seed_prefix}{ip}/log_config` say is served as rules. Empty: no such tree is looked for.
    pub seed_prefix: String,
    /// Streams of all agents together that reports may tell of, each about 500 bytes of memory.
    pub max_streams: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            server: None,
            bookmark_interval: Span(Duration::from_secs(5)),
            max_stream_age: Span(Duration::from_secs(3600)),
            endpoint_ttl: Span(Duration::from_secs(15)),
            agent_retention: Span(30 * DAY),
            history_retention: Span(90 * DAY),
            max_agents: MAX_WATCHERS,
            max_streams: 2 * MAX_FILES,
            seed_prefix: "/logagent/".to_owned(),
        }
    }
}

impl Settings {
    /// Says which setting can't work.
    pub fn check(&self) -> anyhow::Result<()> {
        let seconds = Duration::from_secs;
        let (bookmark, age, ttl) = (self.bookmark_interval.0, self.max_stream_age.0, self.endpoint_ttl.0);
        ensure!(
            !bookmark.is_zero() && bookmark <= seconds(10),
            "bookmark_interval must be more than 0 and at most 10s"
        );
        ensure!(!age.is_zero() && age <= DAY, "max_stream_age must be more than 0 and at most 1d");
        ensure!(ttl >= seconds(1) && ttl <= seconds(3600), "endpoint_ttl must be 1s to 1h");
        ensure!(self.agent_retention.0 >= seconds(1), "agent_retention must be at least 1s");
        ensure!(self.history_retention.0 >= seconds(1), "history_retention must be at least 1s");
        ensure!(self.max_agents > 0 && self.max_agents <= MAX_WATCHERS, "max_agents must be 1 to {MAX_WATCHERS}");
        ensure!(self.max_streams > 0, "max_streams must be more than 0");
        if let Some(server) = &self.server {
            crate::discovery::entry(server.endpoint())
                .map_err(|error| anyhow!("this server's own endpoint: {}", error.message()))?;
        }
        let seed = self.seed_prefix.as_str();
        let apart =
            seed.len() > 1 && seed.len() <= MAX_SEED_BYTES && seed.ends_with('/') && !seed.starts_with("/logmesh/");
        ensure!(
            seed.is_empty() || apart,
            "seed_prefix must be empty, or end in '/', have at most {MAX_SEED_BYTES} bytes and not lie in /logmesh/"
        );
        Ok(())
    }
}
