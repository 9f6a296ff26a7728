//! How to reach etcd.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, ensure};
use http::Uri;
use logmesh_runtime::Tls;
use logmesh_types::Span;
use serde::{Deserialize, Serialize};

/// The longest prefix in bytes, so that no key comes near a limit of etcd's.
const MAX_PREFIX_BYTES: usize = 256;

/// How to reach etcd, and where in it the keys lie.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Members of one cluster: `host:port`, or with the scheme that `tls` says, `http://host:port` or `https://host:port`.
    /// One is used at a time; the next one when it doesn't answer.
    pub endpoints: Vec<String>,
    /// Put before every key, so that several meshes can share an etcd: `/staging`. Keys begin with `/logmesh/` by
    /// themselves.
    pub prefix: String,
    /// The user, if etcd wants one; it needs to read and write the keys beneath the prefix.
    pub user: Option<String>,
    /// The password of `user`.
    pub password: Option<String>,
    /// Encryption, and this client's certificate.
    pub tls: Tls,
    /// How long one request may take before etcd counts as not available.
    pub timeout: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoints: vec!["127.0.0.1:2379".to_owned()],
            prefix: String::new(),
            user: None,
            password: None,
            tls: Tls::default(),
            timeout: Span(Duration::from_secs(5)),
        }
    }
}

impl Settings {
    /// Says which setting can't work.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.endpoints.is_empty(), "endpoints must name a member of etcd, such as 127.0.0.1:2379");
        for endpoint in &self.endpoints {
            self.uri(endpoint)?;
        }
        let longest = MAX_PREFIX_BYTES;
        ensure!(self.prefix.len() <= longest, "prefix has {} bytes; at most {longest} are taken", self.prefix.len());
        ensure!(self.user.is_some() == self.password.is_some(), "user and password belong together; set both or none");
        let timeout = self.timeout.0;
        let sensible = Duration::from_millis(500)..=Duration::from_secs(60);
        ensure!(sensible.contains(&timeout), "timeout must be 500ms to 1m");
        self.tls.check("tls")
    }

    /// The address of one of `endpoints`.
    pub(crate) fn uri(&self, endpoint: &str) -> anyhow::Result<Uri> {
        let scheme = if self.tls.enabled { "https" } else { "http" };
        let text = if endpoint.contains("://") { endpoint.to_owned() } else { format!("{scheme}://{endpoint}") };
        let wanted = || format!("endpoints: {endpoint:?} is not an address; write host:port, such as 127.0.0.1:2379");
        let uri: Uri = text.parse().ok().with_context(wanted)?;
        let known = matches!(uri.scheme_str(), Some("http" | "https"));
        ensure!(known && uri.port_u16().is_some() && matches!(uri.path(), "" | "/"), wanted());
        let found = uri.scheme_str().unwrap_or_default();
        ensure!(found == scheme, "endpoints: {endpoint:?} is {found}, but tls.enabled is {}", self.tls.enabled);
        Ok(uri)
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "hidden"))
            .field("tls", &self.tls)
            .field("timeout", &self.timeout)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(endpoint: &str) -> Settings {
        Settings { endpoints: vec![endpoint.to_owned()], ..Settings::default() }
    }

    #[test]
    fn endpoints_are_checked() {
        Settings::default().check().unwrap();
        for good in ["etcd-1:2379", "http://10.0.0.7:2379", "[::1]:2379", "http://localhost:2379/"] {
            settings(good).check().unwrap();
        }
        for bad in ["", "localhost", "ftp://a:1", "a:1/path", "http://", "a b:1", "a:70000"] {
            let message = settings(bad).check().unwrap_err().to_string();
            assert!(message.contains(&format!("{bad:?}")) && message.contains("host:port"), "{message}");
        }
        let none = Settings { endpoints: Vec::new(), ..Settings::default() };
        assert!(none.check().unwrap_err().to_string().contains("endpoints"));
    }

    #[test]
    fn a_scheme_must_be_what_tls_says() {
        assert!(settings("https://a:1").check().unwrap_err().to_string().contains("tls.enabled is false"));
        let mut encrypted = settings("http://a:1");
        encrypted.tls.enabled = true;
        assert!(encrypted.check().unwrap_err().to_string().contains("tls.enabled is true"));
        encrypted.endpoints = vec!["a:1".to_owned(), "https://b:2".to_owned()];
        encrypted.check().unwrap();
        assert_eq!(encrypted.uri("a:1").unwrap().scheme_str(), Some("https"));
    }

    #[test]
    fn a_password_is_never_shown() {
        let mut with_user = settings("a:1");
        with_user.user = Some("mesh".to_owned());
        assert!(with_user.check().is_err());
        with_user.password = Some("wachtwoord".to_owned());
        with_user.check().unwrap();
        assert!(!format!("{with_user:?}").contains("wachtwoord"));
    }
}
