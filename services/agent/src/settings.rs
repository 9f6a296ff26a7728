//! The settings of an agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use logmesh_runtime::{is_local, telemetry};
use logmesh_tail::PathGlob;
use logmesh_types::limits::MAX_CHUNK_BYTES;
use logmesh_types::{AgentId, ByteSize, Span};
use serde::{Deserialize, Serialize};

/// The most labels, and the most bytes that they may take as JSON: every document carries them, and a gateway refuses
/// chunks that say too much of where they come from.
const MAX_LABELS: usize = 64;
const MAX_LABELS_BYTES: usize = 2 << 10;
/// The longest key or value of a label, in bytes.
const MAX_LABEL_BYTES: usize = 1 << 10;

/// The longest name of a host, and the most addresses of one.
const MAX_HOST_BYTES: usize = 255;
pub(crate) const MAX_ADDRESSES: usize = 16;

/// Bytes on their way unless told otherwise: 400 MB/s to a gateway that acks within 20 ms, 80 MB/s where that takes 100 ms.
const IN_FLIGHT_BYTES: u64 = 8 << 20;

/// The settings of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Its id; unset: derived from the machine's id. Part of the ids of all it collects, so it must not change.
    pub id: Option<AgentId>,
    /// What the host is called; unset: the system's name, which in a container is the container's.
    pub host: Option<String>,
    /// The host's addresses; empty: those of its interfaces, which in a container are the container's.
    pub ips: Vec<IpAddr>,
    /// Config services or a standalone, `host:port`; one at a time is used.
    pub servers: Vec<String>,
    /// Globs under which files may be read, whatever the centre says. Empty: nothing is.
    pub allow: Vec<String>,
    /// Labels for selectors, beside host, os and ip; they are also on everything that is collected.
    pub labels: BTreeMap<String, String>,
    /// Where positions and the last good rules are kept.
    pub state_dir: PathBuf,
    /// Folders that are never collected, beside the state's.
    pub own_dirs: Vec<PathBuf>,
    /// Bytes that may be on their way to a gateway, kept in memory until they are acked.
    pub max_in_flight: ByteSize,
    /// How chunks are compressed on their way; taken up with the next connection to a gateway.
    pub compression: Compression,
    /// How long the acks of what is on its way are waited for when the process is asked to end.
    pub drain: Span,
    /// Where `/metrics`, `/healthz` and `/readyz` are, when it runs as a process of its own.
    pub listen_admin: SocketAddr,
    /// Allow servers that aren't on this machine, without TLS and authentication.
    pub insecure: bool,
    /// What to log, and how.
    pub log: telemetry::Settings,
}

/// How chunks are compressed on their way to a gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// By zstd to a gateway on another machine, not at all to one on this.
    #[default]
    Auto,
    /// By zstd. A gateway that can't open it gets chunks as they are.
    Zstd,
    /// Not at all.
    None,
}

impl Compression {
    /// Whether to compress what goes to this gateway.
    pub(crate) fn applies_to(self, address: &str) -> bool {
        match self {
            Self::Auto => !is_local(address),
            Self::Zstd => true,
            Self::None => false,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            id: None,
            host: None,
            ips: Vec::new(),
            servers: vec!["127.0.0.1:7400".to_owned()],
            allow: vec!["/var/log/**".to_owned()],
            labels: BTreeMap::new(),
            state_dir: PathBuf::from("/var/lib/logmesh-agent"),
            own_dirs: Vec::new(),
            max_in_flight: ByteSize(IN_FLIGHT_BYTES),
            compression: Compression::default(),
            drain: Span(Duration::from_secs(5)),
            listen_admin: SocketAddr::from(([127, 0, 0, 1], 7499)),
            insecure: false,
            log: telemetry::Settings::default(),
        }
    }
}

impl Settings {
    /// Says which setting can't work.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.servers.is_empty(), "servers is empty; name at least one, such as 127.0.0.1:7400");
        for server in &self.servers {
            logmesh_grpc::check_address(server)?;
            self.check_server(server)?;
        }
        for (place, glob) in self.allow.iter().enumerate() {
            PathGlob::new(glob).with_context(|| format!("allow[{place}] {glob:?}"))?;
        }
        telemetry::level(&self.log.level).context("log.level")?;
        let host = self.host.as_deref().unwrap_or("unset");
        ensure!(!host.is_empty() && host.len() <= MAX_HOST_BYTES, "host must have 1 to {MAX_HOST_BYTES} bytes");
        ensure!(self.ips.len() <= MAX_ADDRESSES, "ips has {} addresses, more than {MAX_ADDRESSES}", self.ips.len());
        for key in self.labels.keys() {
            ensure!(!["host", "os", "ip"].contains(&key.as_str()), "label {key:?} is set by the agent itself");
        }
        let (count, size) = (self.labels.len(), serde_json::to_vec(&self.labels)?.len());
        ensure!(
            count <= MAX_LABELS && size <= MAX_LABELS_BYTES,
            "labels has {count} labels of {size} bytes in all; at most {MAX_LABELS} of {MAX_LABELS_BYTES} bytes go"
        );
        for (key, value) in &self.labels {
            let length = key.len().max(value.len());
            ensure!(length <= MAX_LABEL_BYTES, "label {key:?} has {length} bytes, more than {MAX_LABEL_BYTES}");
        }
        let least = 2 * MAX_CHUNK_BYTES as u64;
        ensure!(self.max_in_flight.0 >= least, "max_in_flight must be at least {}", ByteSize(least));
        Ok(())
    }

    /// These settings with the values of `present` where they can't change while the agent runs; and which those are that
    /// would have changed.
    pub(crate) fn with_fixed_of(self, present: &Self) -> (Self, Vec<&'static str>) {
        let differs = [
            ("id", self.id != present.id),
            ("host", self.host != present.host),
            ("ips", self.ips != present.ips),
            ("state_dir", self.state_dir != present.state_dir),
            ("listen_admin", self.listen_admin != present.listen_admin),
            ("log.format", self.log.format != present.log.format),
        ];
        let Self { id, host, ips, state_dir, listen_admin, .. } = present.clone();
        let log = telemetry::Settings { format: present.log.format, ..self.log };
        let fixed = differs.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect();
        (Self { id, host, ips, state_dir, listen_admin, log, ..self }, fixed)
    }

    /// Refuses a server on another machine, unless the owner said `--insecure`.
    pub(crate) fn check_server(&self, server: &str) -> anyhow::Result<()> {
        ensure!(
            is_local(server) || self.insecure,
            "{server} is on another machine, and without TLS and authentication anybody on the way could read or change \
             what is sent; accept that with --insecure"
        );
        Ok(())
    }
}

/// A label as an option says it: `key=value`.
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form key=value"))?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_off_this_machine_want_a_word() {
        let with = |server: &str, insecure| Settings { servers: vec![server.into()], insecure, ..Settings::default() };
        for local in ["127.0.0.1:7400", "localhost:1", "[::1]:7400", "http://127.0.0.1:1"] {
            with(local, false).check().unwrap();
        }
        for remote in ["10.0.0.7:7401", "config.example:7401", "[2001:db8::1]:7401"] {
            assert!(with(remote, false).check().unwrap_err().to_string().contains("--insecure"));
            with(remote, true).check().unwrap();
        }
    }

    #[test]
    fn what_leaves_the_machine_is_compressed() {
        for (compression, near, far) in
            [(Compression::Auto, false, true), (Compression::Zstd, true, true), (Compression::None, false, false)]
        {
            let applies = ["127.0.0.1:7402", "10.0.0.7:7402"].map(|address| compression.applies_to(address));
            assert_eq!(applies, [near, far], "{compression:?}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_name() {
        let refused = |settings: Settings| format!("{:#}", settings.check().unwrap_err());
        let relative = refused(Settings { allow: vec!["/var/log/**".into(), "rel/*".into()], ..Settings::default() });
        assert!(relative.contains("allow[1] \"rel/*\""), "{relative}");
        let host = refused(Settings { host: Some("h".repeat(256)), ..Settings::default() });
        assert!(host.contains("host"), "{host}");
        let ips = refused(Settings { ips: vec![IpAddr::from([10, 0, 0, 7]); 17], ..Settings::default() });
        assert!(ips.contains("ips"), "{ips}");
        let log = telemetry::Settings { level: "chatty".into(), ..telemetry::Settings::default() };
        assert!(refused(Settings { log, ..Settings::default() }).contains("chatty"));
    }

    #[test]
    fn labels_of_its_own_are_refused() {
        let settings = Settings { labels: BTreeMap::from([("ip".into(), "1.2.3.4".into())]), ..Settings::default() };
        assert!(settings.check().unwrap_err().to_string().contains("\"ip\""));
    }

    #[test]
    fn labels_that_a_gateway_would_refuse_are_refused() {
        let check = |count: usize, length: usize| {
            let labels = (0..count).map(|n| (format!("l{n:02}"), "v".repeat(length))).collect();
            Settings { labels, ..Settings::default() }.check()
        };
        check(64, 20).unwrap();
        check(1, 1_024).unwrap();
        for (count, length) in [(65, 1), (64, 30), (1, 1_025)] {
            assert!(check(count, length).unwrap_err().to_string().contains("label"), "{count} {length}");
        }
    }
}
