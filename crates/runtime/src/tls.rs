//! How a connection to a backend is encrypted: one shape of settings for etcd, Kafka and Elasticsearch.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// TLS towards a backend. With nothing set and `enabled = false` the connection is plain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Encrypt, and trust what the system trusts unless `ca_file` is set.
    pub enabled: bool,
    /// PEM file with the only authorities to trust.
    pub ca_file: Option<PathBuf>,
    /// PEM file with this client's certificate; needs `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the key of `cert_file`.
    pub key_file: Option<PathBuf>,
}

impl Tls {
    /// Says which setting can't work; `section` is the key that holds these settings.
    pub fn check(&self, section: &str) -> anyhow::Result<()> {
        let files = [("ca_file", &self.ca_file), ("cert_file", &self.cert_file), ("key_file", &self.key_file)];
        for (name, file) in files {
            let Some(file) = file else { continue };
            anyhow::ensure!(self.enabled, "{section}.{name} is set but {section}.enabled is false");
            anyhow::ensure!(file.is_file(), "{section}.{name}: there is no file {}", file.display());
        }
        let pair = self.cert_file.is_some() == self.key_file.is_some();
        anyhow::ensure!(pair, "{section}: cert_file and key_file belong together; set both or none");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_setting_is_refused_by_its_key() {
        Tls::default().check("store.tls").unwrap();
        let message = |tls: Tls| tls.check("store.tls").unwrap_err().to_string();
        let missing = Some(PathBuf::from("/nowhere/ca.pem"));
        assert!(message(Tls { ca_file: missing.clone(), ..Tls::default() }).contains("store.tls.enabled"));
        assert!(message(Tls { enabled: true, ca_file: missing, ..Tls::default() }).contains("/nowhere/ca.pem"));
        let cargo = Some(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")));
        assert!(message(Tls { enabled: true, cert_file: cargo, ..Tls::default() }).contains("key_file"));
    }
}
