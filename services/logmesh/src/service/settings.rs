//! The settings of services that run apart: one file can serve them all, and each reads what it needs.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use logmesh_record::{Format, Topics};
use logmesh_runtime::{is_local, telemetry};
use serde::{Deserialize, Serialize};

use super::Kind;

/// Everything that a service run apart can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// Where the service's gRPC is served; unset: its port on loopback (console 7400, config 7401, gateway 7402, transfer
    /// 7403).
    pub(crate) listen: Option<SocketAddr>,
    /// Where `/metrics`, `/healthz` and `/readyz` are; unset: the gRPC port + 100.
    pub(crate) listen_admin: Option<SocketAddr>,
    /// Where other services and agents reach this one, `host:port`; unset: `listen`, with this host's name if that's all
    /// interfaces.
    pub(crate) advertise: Option<String>,
    /// Allow an address that other machines can reach, without TLS and authentication.
    pub(crate) insecure: bool,
    /// The config services, `host:port`, for all others.
    pub(crate) config_servers: Vec<String>,
    /// What topics are: for gateway and transfer. Topics that name no format hold `events`, which others read too.
    pub(crate) topics: Topics,
    /// What to log, and how.
    pub(crate) log: telemetry::Settings,
    /// The store: for config.
    pub(crate) etcd: logmesh_store_etcd::Settings,
    /// The bus: for gateway, transfer and console.
    pub(crate) kafka: logmesh_bus_kafka::Settings,
    /// The index: for transfer and console.
    pub(crate) elasticsearch: logmesh_index_elasticsearch::Settings,
    /// How config works.
    pub(crate) config: logmesh_config::Settings,
    /// How a gateway works.
    pub(crate) gateway: logmesh_gateway::Settings,
    /// How transfer works.
    pub(crate) transfer: logmesh_transfer::Settings,
    /// How the console works.
    pub(crate) console: logmesh_console::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: None,
            listen_admin: None,
            advertise: None,
            insecure: false,
            config_servers: vec!["127.0.0.1:7401".to_owned()],
            topics: Topics::default(),
            log: telemetry::Settings::default(),
            etcd: Default::default(),
            kafka: Default::default(),
            elasticsearch: Default::default(),
            config: Default::default(),
            gateway: Default::default(),
            transfer: Default::default(),
            console: Default::default(),
        }
    }
}

impl Settings {
    /// Gives each part what it shares with others, and says which setting can't work.
    pub(crate) fn complete(mut self, kind: Kind) -> anyhow::Result<Self> {
        self.topics = self.topics.or_defaults(Format::Events, None);
        self.gateway.topics = self.topics.clone();
        self.transfer.topics = self.topics.clone();
        self.console.config_servers = self.config_servers.clone();
        ensure!(
            kind == Kind::Config || !self.config_servers.is_empty(),
            "config_servers must name a config service, such as 127.0.0.1:7401"
        );
        for server in &self.config_servers {
            logmesh_grpc::check_address(server).context("config_servers")?;
        }
        telemetry::level(&self.log.level).context("log.level")?;
        self.etcd.check().context("etcd")?;
        self.kafka.check().context("kafka")?;
        self.elasticsearch.check().context("elasticsearch")?;
        self.config.check().context("config")?;
        self.gateway.check().context("gateway and topics")?;
        self.check_secrets()?;
        if let Some(address) = &self.advertise {
            logmesh_grpc::check_address(address).context("advertise")?;
        }
        Ok(self)
    }

    /// Refuses to send a password or a key in clear text to another machine, unless the operator said `--insecure`. (Kafka's own
    /// settings refuse it whatever is said.)
    fn check_secrets(&self) -> anyhow::Result<()> {
        let elastic = &self.elasticsearch;
        let secrets = [
            ("etcd", &self.etcd.endpoints, self.etcd.user.is_some(), self.etcd.tls.enabled),
            ("elasticsearch", &elastic.urls, !elastic.user.is_empty() || !elastic.api_key.is_empty(), false),
        ];
        for (section, addresses, secret, encrypted) in secrets {
            let open = |address: &&String| !encrypted && !address.starts_with("https://") && !is_local(address);
            let exposed = if secret && !self.insecure { addresses.iter().find(open) } else { None };
            ensure!(
                exposed.is_none(),
                "{section}: a password or key would go to {} in clear text; use TLS, or accept that with --insecure",
                exposed.map_or("", String::as_str)
            );
        }
        Ok(())
    }

    /// Where this service listens.
    pub(crate) fn listen(&self, kind: Kind) -> SocketAddr {
        self.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], kind.port())))
    }

    /// Where its operator's port is.
    pub(crate) fn admin(&self, kind: Kind) -> SocketAddr {
        self.listen_admin.unwrap_or_else(|| crate::address::admin(self.listen(kind)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_its_port_and_all_share_what_a_topic_is() {
        let settings = Settings::default().complete(Kind::Gateway).unwrap();
        let ports =
            [Kind::Console, Kind::Config, Kind::Gateway, Kind::Transfer].map(|kind| settings.listen(kind).port());
        assert_eq!(ports, [7400, 7401, 7402, 7403]);
        assert_eq!(settings.admin(Kind::Transfer).port(), 7503);
        assert_eq!(settings.gateway.topics.default.format, Some(Format::Events));
        assert_eq!(settings.gateway.topics, settings.transfer.topics);
    }

    #[test]
    fn nonsense_is_named() {
        let complaint = |settings: Settings| format!("{:#}", settings.complete(Kind::Console).unwrap_err());
        let none = Settings { config_servers: Vec::new(), ..Settings::default() };
        assert!(complaint(none).contains("config_servers"));
        let nowhere = Settings { config_servers: vec!["nowhere".to_owned()], ..Settings::default() };
        assert!(complaint(nowhere).contains("nowhere"));
        let mut clear = Settings::default();
        clear.elasticsearch.api_key = "key".to_owned();
        clear.elasticsearch.urls = vec!["http://127.0.0.1:9200".to_owned(), "http://[::1]:9200".to_owned()];
        clear.clone().complete(Kind::Console).unwrap();
        clear.elasticsearch.urls.push("http://es:9200".to_owned());
        assert!(complaint(clear.clone()).contains("http://es:9200"));
        Settings { insecure: true, ..clear }.complete(Kind::Console).unwrap();
        let mut kafka = Settings::default();
        kafka.kafka.brokers = vec!["127.0.0.1:29092x".to_owned()];
        assert!(complaint(kafka).starts_with("kafka: brokers"));
        let bad = Settings { advertise: Some("me".to_owned()), ..Settings::default() };
        assert!(complaint(bad).contains("advertise"));
    }
}
