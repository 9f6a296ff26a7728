//! The settings of standalone.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use logmesh_glob::PathGlob;
use logmesh_record::Topics;
use logmesh_runtime::telemetry;
use serde::{Deserialize, Serialize};

/// Everything that standalone can be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// The folder that keeps all data.
    pub(crate) data_dir: PathBuf,
    /// Where every gRPC service is served.
    pub(crate) listen: SocketAddr,
    /// Where `/metrics`, `/healthz` and `/readyz` are; unset: the gRPC port + 100.
    pub(crate) listen_admin: Option<SocketAddr>,
    /// Allow an address that other machines can reach, without TLS and authentication.
    pub(crate) insecure: bool,
    /// Globs of files to collect into topic `logs`.
    pub(crate) collect: Vec<String>,
    /// What this host's agent may read, beside what `collect` says.
    pub(crate) allow: Vec<String>,
    /// Labels of this host's agent.
    pub(crate) labels: std::collections::BTreeMap<String, String>,
    /// What topics are.
    pub(crate) topics: Topics,
    /// What to log, and how.
    pub(crate) log: telemetry::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: default_data_dir(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            listen_admin: None,
            insecure: false,
            collect: Vec::new(),
            allow: logmesh_agent::Settings::default().allow,
            labels: std::collections::BTreeMap::new(),
            topics: Topics::default(),
            log: telemetry::Settings::default(),
        }
    }
}

impl Settings {
    /// Says which setting can't work.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        for (name, globs) in [("collect", &self.collect), ("allow", &self.allow)] {
            for glob in globs {
                PathGlob::new(glob).with_context(|| format!("{name} {glob:?}"))?;
            }
        }
        logmesh_agent::Settings { labels: self.labels.clone(), log: self.log.clone(), ..Default::default() }.check()
    }

    /// The address of the operator's port.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.listen_admin.unwrap_or_else(|| crate::address::admin(self.listen))
    }
}

/// `/var/lib/logmesh` for root, else `~/.local/state/logmesh` (the XDG base directory specification).
fn default_data_dir() -> PathBuf {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    match rustix::process::geteuid().is_root() {
        true => PathBuf::from("/var/lib/logmesh"),
        false => state.or_else(home).unwrap_or_else(|| PathBuf::from(".")).join("logmesh"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_that_cannot_match_is_refused_by_its_name() {
        for bad in ["[", "var/log/*.log", "/a/../b"] {
            let settings = Settings { collect: vec![bad.to_owned()], ..Settings::default() };
            assert!(settings.check().unwrap_err().to_string().contains("collect"), "{bad}");
        }
        assert!(Settings::default().check().is_ok());
    }

    #[test]
    fn the_operator_s_port_follows_the_grpc_port() {
        let mut settings = Settings::default();
        assert_eq!(settings.admin().to_string(), "127.0.0.1:7500");
        settings.listen.set_port(0);
        assert_eq!(settings.admin().port(), 0);
        settings.listen_admin = Some("127.0.0.1:9".parse().unwrap());
        assert_eq!(settings.admin().port(), 9);
    }
}
