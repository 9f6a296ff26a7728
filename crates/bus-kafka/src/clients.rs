//! What each kind of client of librdkafka's is told; appends have a client of our own ([`crate::producer`]).

use logmesh_types::limits;
use logmesh_types::unit::Span;
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::settings::{Mechanism, Settings};

/// The largest batch that Kafka takes from us: the largest record and what its headers and framing come to.
pub(crate) const MAX_BATCH_BYTES: usize = limits::MAX_RECORD_BYTES + (1 << 20);

/// What a record costs in the queue beyond its bytes, so that empty ones are bounded too.
pub(crate) const RECORD_COST: usize = 256;

impl Settings {
    /// What every client is told.
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("client.id", "logmesh")
            .set("reconnect.backoff.max.ms", "2000")
            .set("socket.keepalive.enable", "true")
            .set("socket.connection.setup.timeout.ms", "5000")
            .set("log.connection.close", "false");
        for (name, value) in &self.client {
            config.set(name, value);
        }
        config
            .set("bootstrap.servers", self.brokers.join(","))
            .set("socket.timeout.ms", millis(self.request_timeout))
            // A topic made by the way would have the broker's partitions, not ours.
            .set("allow.auto.create.topics", "false");
        self.secure(&mut config);
        config.set_log_level(RDKafkaLogLevel::Warning);
        config
    }

    fn secure(&self, config: &mut ClientConfig) {
        let protocol = match (self.tls.enabled, self.sasl.is_some()) {
            (false, false) => "plaintext",
            (true, false) => "ssl",
            (false, true) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        let files = [
            ("ssl.ca.location", &self.tls.ca_file),
            ("ssl.certificate.location", &self.tls.cert_file),
            ("ssl.key.location", &self.tls.key_file),
        ];
        for (name, file) in files {
            if let Some(file) = file {
                config.set(name, file.to_string_lossy());
            }
        }
        if let Some(sasl) = &self.sasl {
            let mechanism = match sasl.mechanism {
                Mechanism::Plain => "PLAIN",
                Mechanism::ScramSha256 => "SCRAM-SHA-256",
                Mechanism::ScramSha512 => "SCRAM-SHA-512",
            };
            config
                .set("sasl.mechanism", mechanism)
                .set("sasl.username", &sasl.user)
                .set("sasl.password", &sasl.password);
        }
    }

    /// For a client that asks and makes, but reads and writes nothing. What goes wrong there its calls tell; its log
    /// would fill a queue that nobody empties.
    pub(crate) fn asking(&self) -> ClientConfig {
        let mut config = self.client();
        config.set_log_level(RDKafkaLogLevel::Emerg);
        config
    }

    /// For what reads, ahead of its reader by so many bytes.
    fn fetching(&self, group: &str, ahead: u64) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            // As they are stored: logs that are unpacked take ten times as much memory. A batch that is larger comes
            // nevertheless, alone.
            .set("message.max.bytes", "1000000")
            .set("fetch.max.bytes", "2000000")
            .set("max.partition.fetch.bytes", "250000")
            .set("queued.max.messages.kbytes", (ahead / 1024).to_string())
            // Else a full queue makes it pause for a second.
            .set("fetch.queue.backoff.ms", "10");
        config
    }

    /// For reading without a group. librdkafka wants a group's name nevertheless; nothing is ever committed to it.
    pub(crate) fn reading(&self) -> ClientConfig {
        let mut config = self.fetching("logmesh-reader", 4 << 20);
        // Requests go one after another, so one that waits for records holds up that for the next partition.
        config.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "5");
        config.set_log_level(RDKafkaLogLevel::Emerg);
        config
    }

    /// For a member of a group.
    pub(crate) fn joining(&self, group: &str) -> ClientConfig {
        let mut config = self.fetching(group, self.fetch_bytes.0 / 2);
        config
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", millis(self.session_timeout))
            .set("heartbeat.interval.ms", (self.session_timeout.0.as_millis() / 4).to_string())
            // How soon a topic that is made later is noticed.
            .set("topic.metadata.refresh.interval.ms", "2000");
        config
    }

    /// For asking what a group has committed.
    pub(crate) fn asking_group(&self, group: &str) -> ClientConfig {
        let mut config = self.asking();
        config.set("group.id", group).set("enable.auto.commit", "false");
        config
    }
}

fn millis(span: Span) -> String {
    span.0.as_millis().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Sasl;

    /// What an operator sets is used, or refused.
    #[test]
    fn nothing_that_is_set_here_is_taken_and_then_ignored() {
        let user = |name: &str| format!("of the operator: {name}");
        let client = |names: &[String]| Settings {
            client: names.iter().map(|name| (name.clone(), user(name))).collect(),
            sasl: Some(Sasl { user: "u".to_owned(), ..Sasl::default() }),
            ..Settings::default()
        };
        let ours = |settings: &Settings| {
            [settings.asking(), settings.reading(), settings.joining("g"), settings.asking_group("g")]
        };
        let mut allowed = Vec::new();
        for config in ours(&client(&[])) {
            let names: Vec<String> = config.config_map().keys().map(|name| name.to_string()).collect();
            allowed.extend(names.into_iter().filter(|name| client(std::slice::from_ref(name)).check().is_ok()));
        }
        assert!(allowed.iter().any(|name| name == "client.id"));
        for config in ours(&client(&allowed)) {
            for name in &allowed {
                assert_eq!(config.get(name), Some(user(name).as_str()));
            }
        }
    }
}
