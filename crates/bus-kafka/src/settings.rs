//! How to reach Kafka, and figures that an operator may want to move.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::ensure;
use logmesh_runtime::Tls;
use logmesh_types::unit::{ByteSize, Span};
use serde::{Deserialize, Serialize};

/// Properties of librdkafka that are ours: the bus's promises, or a setting of its own, depend on them. So are those of its producer,
/// which isn't used: what is set must not be without effect.
const RESERVED: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.commit.enable",
    "auto.offset.reset",
    "batch.num.messages",
    "batch.size",
    "bootstrap.servers",
    "check.crcs",
    "compression.codec",
    "compression.level",
    "compression.type",
    "delivery.report.only.error",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.partition.eof",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "heartbeat.interval.ms",
    "isolation.level",
    "linger.ms",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "max.partition.fetch.bytes",
    "message.max.bytes",
    "message.send.max.retries",
    "message.timeout.ms",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "partitioner",
    "plugin.library.paths",
    "queue.buffering.backpressure.threshold",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "queued.max.messages.kbytes",
    "receive.message.max.bytes",
    "request.required.acks",
    "request.timeout.ms",
    "retries",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "socket.timeout.ms",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "sticky.partitioning.linger.ms",
    "topic.metadata.propagation.max.ms",
    "topic.metadata.refresh.interval.ms",
    "transactional.id",
];

/// What the names of properties begin with that say how a broker is reached and trusted: appends would go on without them.
const UNSHARED: &[&str] = &["broker.address.", "client.dns.", "connections.", "enable.ssl.", "ssl."];

/// What is in the names of properties that are secrets, or of ways to log in that need them.
const SECRET: &[&str] = &["oauthbearer", "password", "pem", "secret"];

/// How to reach Kafka, and figures that an operator may want to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Some of the brokers, as `host:port`; the others are learnt from them.
    pub brokers: Vec<String>,
    /// How the connections are encrypted.
    pub tls: Tls,
    /// How to say who we are, if Kafka asks.
    pub sasl: Option<Sasl>,
    /// Copies of each partition of a new topic; unset: three, or as many as there are brokers if they are fewer, or the
    /// broker's `default.replication.factor` if that is more.
    pub replication: Option<u16>,
    /// Copies that must have a record before it is durable, of a new topic; unset: the broker's `min.insync.replicas`,
    /// but 2 at least if there are three copies: at 1, a broker that breaks for good may take acknowledged records with it.
    pub min_in_sync: Option<u16>,
    /// How batches are compressed.
    pub compression: Compression,
    /// Bytes of records that wait to be durable; more make `append` wait. Each record counts 256 bytes more.
    pub queue_bytes: ByteSize,
    /// Bytes of records that one consumer holds in memory ahead of its reader.
    pub fetch_bytes: ByteSize,
    /// How long an append may take before it fails. A broker that is killed should be back, or replaced, within it.
    pub delivery_timeout: Span,
    /// How long one request may take.
    pub request_timeout: Span,
    /// How long a consumer may be silent before its partitions go to others.
    pub session_timeout: Span,
    /// How long a consumer may take to release a partition before it loses it.
    pub release_timeout: Span,
    /// More properties of librdkafka, which reads, asks and makes topics. Those on which the bus's promises rest are refused. Appends go
    /// by the settings above and `client.id` alone.
    pub client: BTreeMap<String, String>,
}

/// How to say who we are.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sasl {
    /// How the password is shown.
    pub mechanism: Mechanism,
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Sasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mechanism, user, password: _ } = self;
        f.debug_struct("Sasl").field("mechanism", mechanism).field("user", user).finish_non_exhaustive()
    }
}

/// How the password is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Mechanism {
    /// As it is; only with TLS.
    #[serde(rename = "plain")]
    Plain,
    /// By a proof.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// By a proof.
    #[default]
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
}

/// How batches are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Not at all.
    None,
    /// Quick.
    #[default]
    Lz4,
    /// Quick.
    Snappy,
    /// Small.
    Gzip,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            brokers: vec!["127.0.0.1:9092".to_owned()],
            tls: Tls::default(),
            sasl: None,
            replication: None,
            min_in_sync: None,
            compression: Compression::default(),
            queue_bytes: ByteSize(64 << 20),
            fetch_bytes: ByteSize(32 << 20),
            delivery_timeout: Span(Duration::from_secs(20)),
            request_timeout: Span(Duration::from_secs(10)),
            session_timeout: Span(Duration::from_secs(10)),
            release_timeout: Span(Duration::from_secs(30)),
            client: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// Says which setting can't work.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.brokers.is_empty(), "brokers is empty; name one at least, as host:port");
        for broker in &self.brokers {
            let port =
                broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            ensure!(port && !broker.contains(','), "brokers: {broker:?} is not host:port");
        }
        self.tls.check("tls")?;
        if let Some(sasl) = &self.sasl {
            ensure!(!sasl.user.is_empty(), "sasl.user is empty");
            let open = sasl.mechanism == Mechanism::Plain && !self.tls.enabled;
            ensure!(!open, "sasl.mechanism plain would send the password as it is; set tls.enabled");
        }
        ensure!(self.replication != Some(0), "replication is 0");
        if let (Some(replication), Some(min)) = (self.replication, self.min_in_sync) {
            ensure!((1..=replication).contains(&min), "min_in_sync is {min}, but there are {replication} copies");
        }
        self.check_bounds()?;
        for name in self.client.keys() {
            ensure!(!RESERVED.contains(&name.as_str()), "client: {name} is set by logmesh and can't be set here");
            let secret = SECRET.iter().any(|part| name.contains(part));
            ensure!(!secret, "client: {name} would be printed with the settings; it can't be set here");
            let unshared = UNSHARED.iter().any(|begin| name.starts_with(begin));
            ensure!(!unshared, "client: {name} would hold for reads and not for appends; it can't be set here");
        }
        Ok(())
    }

    fn check_bounds(&self) -> anyhow::Result<()> {
        let sizes = [("queue_bytes", self.queue_bytes), ("fetch_bytes", self.fetch_bytes)];
        for (name, size) in sizes {
            ensure!((16 << 20..=1 << 30).contains(&size.0), "{name} is {size}; it must be from 16MiB to 1GiB");
        }
        let spans = [
            ("delivery_timeout", self.delivery_timeout, 2),
            ("request_timeout", self.request_timeout, 1),
            ("session_timeout", self.session_timeout, 6),
            ("release_timeout", self.release_timeout, 1),
        ];
        for (name, span, least) in spans {
            let allowed = Duration::from_secs(least)..=Duration::from_secs(300);
            ensure!(allowed.contains(&span.0), "{name} is {span}; it must be from {least}s to 5m");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        Settings::default().check().unwrap();
        let message = |settings: Settings| settings.check().unwrap_err().to_string();
        let client = |name: &str| Settings {
            client: BTreeMap::from([(name.to_owned(), "x".to_owned())]),
            ..Settings::default()
        };
        assert!(message(client("acks")).contains("client: acks"));
        assert!(message(client("enable.idempotence")).contains("enable.idempotence"));
        assert!(message(client("delivery.report.only.error")).contains("set by logmesh"));
        for secret in ["ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.config"] {
            let message = message(client(secret));
            assert!(message.contains(secret) && message.contains("printed"), "{message}");
        }
        assert!(message(client("linger.ms")).contains("linger.ms"));
        assert!(message(client("ssl.crl.location")).contains("not for appends"));
        client("client.rack").check().unwrap();
        assert!(message(Settings { brokers: vec!["kafka".to_owned()], ..Settings::default() }).contains("host:port"));
        assert!(
            message(Settings { min_in_sync: Some(3), replication: Some(2), ..Settings::default() }).contains("copies")
        );
        assert!(message(Settings { fetch_bytes: ByteSize(1), ..Settings::default() }).contains("fetch_bytes"));
        let sasl = Sasl { mechanism: Mechanism::Plain, user: "u".to_owned(), password: "p".to_owned() };
        assert!(message(Settings { sasl: Some(sasl), ..Settings::default() }).contains("tls.enabled"));
    }

    #[test]
    fn a_file_says_it_and_the_password_is_not_printed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kafka.toml");
        let text = r#"
            brokers = ["k1:9093", "k2:9093"]
            replication = 3
            min_in_sync = 2
            compression = "gzip"
            tls = { enabled = true }
            sasl = { mechanism = "scram-sha-256", user = "logmesh", password = "hunter2" }
            client = { "client.rack" = "a" }
        "#;
        std::fs::write(&file, text).unwrap();
        let loaded = logmesh_runtime::settings::load::<Settings>(Some(&file), Settings::default().client).unwrap();
        loaded.value.check().unwrap();
        assert_eq!(loaded.value.sasl.as_ref().unwrap().mechanism, Mechanism::ScramSha256);
        assert_eq!((loaded.value.replication, loaded.value.client["client.rack"].as_str()), (Some(3), "a"));
        let printed = loaded.print();
        assert!(printed.contains("min_in_sync") && !printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn the_password_is_not_shown() {
        let sasl = Sasl { password: "hunter2".to_owned(), ..Sasl::default() };
        let shown = format!("{:?}", Settings { sasl: Some(sasl), ..Settings::default() });
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
