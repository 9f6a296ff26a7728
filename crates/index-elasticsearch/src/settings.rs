//! Where Elasticsearch is, who we are to it, and how our indices are made.

use std::fmt;

use anyhow::{Context, ensure};
use logmesh_runtime::Tls;
use logmesh_types::{ByteSize, Span};
use reqwest::Url;
use serde::{Deserialize, Serialize};

/// Elasticsearch as the index.
#[derive(Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Its nodes, `https://host:9200`. Calls go round them; one that can't be reached is left out for a while.
    pub urls: Vec<String>,
    /// The user, with `password`.
    pub user: String,
    /// The password of `user`.
    pub password: String,
    /// An API key instead of a user: as Elasticsearch encoded it, or `id:key`.
    pub api_key: String,
    /// TLS; the URLs begin with `https://` then.
    pub tls: Tls,
    /// What the names of indices and templates begin with. Another mesh on the same Elasticsearch needs another one
    /// that this isn't the beginning of.
    pub index_prefix: String,
    /// Primary shards of an index, which is one day of one topic. Counts for indices made from then on.
    pub shards: u32,
    /// Copies of each shard. With 0, what was acked is lost with its node's disk.
    pub replicas: u32,
    /// How long one call may take.
    pub request_timeout: Span,
    /// The most bytes in one bulk request; less than Elasticsearch's `http.max_content_length`.
    pub bulk_bytes: ByteSize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            urls: vec!["http://127.0.0.1:9200".to_owned()],
            user: String::new(),
            password: String::new(),
            api_key: String::new(),
            tls: Tls::default(),
            index_prefix: "logmesh-".to_owned(),
            shards: 1,
            replicas: 1,
            request_timeout: Span(std::time::Duration::from_secs(30)),
            bulk_bytes: ByteSize(8 << 20),
        }
    }
}

impl Settings {
    /// Says which setting can't work.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.urls.is_empty(), "urls: name at least one node of Elasticsearch");
        let scheme = if self.tls.enabled { "https" } else { "http" };
        for text in &self.urls {
            let url: Url = text.parse().with_context(|| format!("urls: {text:?} is not a URL"))?;
            let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
            ensure!(bare, "urls: leave user, password and query out of the URL of {:?}", url.host_str());
            ensure!(
                url.scheme() == scheme,
                "urls: {text} must begin with {scheme}:// because tls.enabled is {}",
                self.tls.enabled
            );
        }
        self.tls.check("tls")?;
        ensure!(
            self.user.is_empty() == self.password.is_empty(),
            "user and password belong together; set both or none"
        );
        ensure!(self.user.is_empty() || self.api_key.is_empty(), "set either api_key or user and password, not both");
        let printable = |text: &str| text.chars().all(|c| c.is_ascii_graphic());
        ensure!(printable(&self.api_key), "api_key has characters that no key of Elasticsearch has");
        self.check_prefix()?;
        ensure!((1..=1024).contains(&self.shards), "shards must be 1 to 1024");
        ensure!(!self.request_timeout.0.is_zero(), "request_timeout must be more than nothing");
        ensure!((1 << 16..=1 << 30).contains(&self.bulk_bytes.0), "bulk_bytes must be 64KiB to 1GiB");
        Ok(())
    }

    fn check_prefix(&self) -> anyhow::Result<()> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
        let prefix = &self.index_prefix;
        ensure!(
            prefix.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && prefix.chars().all(allowed)
                && prefix.len() <= 100,
            "index_prefix {prefix:?} is not 1 to 100 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit"
        );
        Ok(())
    }
}

impl fmt::Debug for Settings {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { urls, user, password, api_key, tls, index_prefix, shards, replicas, request_timeout, bulk_bytes } =
            self;
        let hidden = |secret: &str| if secret.is_empty() { "" } else { "(hidden)" };
        f.debug_struct("Settings")
            .field("urls", urls)
            .field("user", user)
            .field("password", &hidden(password))
            .field("api_key", &hidden(api_key))
            .field("tls", tls)
            .field("index_prefix", index_prefix)
            .field("shards", shards)
            .field("replicas", replicas)
            .field("request_timeout", request_timeout)
            .field("bulk_bytes", bulk_bytes)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        Settings::default().check().unwrap();
        let refused = |change: &dyn Fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert!(refused(&|s| s.urls.clear()).contains("urls"));
        assert!(refused(&|s| s.urls = vec!["https://es:9200".to_owned()]).contains("tls.enabled is false"));
        assert!(refused(&|s| s.urls = vec!["http://a:b@es:9200".to_owned()]).contains("leave user"));
        assert!(refused(&|s| s.user = "elastic".to_owned()).contains("password"));
        assert!(
            refused(&|s| (s.user, s.password, s.api_key) = ("u".into(), "p".into(), "k".into())).contains("api_key")
        );
        assert!(refused(&|s| s.api_key = "a\nb".to_owned()).contains("api_key"));
        for prefix in ["", "-a", "A", "a@b", ".a", "a*"] {
            assert!(refused(&|s| s.index_prefix = prefix.to_owned()).contains("index_prefix"), "{prefix}");
        }
        assert!(refused(&|s| s.shards = 0).contains("shards"));
        assert!(refused(&|s| s.bulk_bytes = ByteSize(1)).contains("bulk_bytes"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let settings = Settings { password: "hunter2".into(), api_key: "sesame".into(), ..Settings::default() };
        let shown = format!("{settings:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("sesame"), "{shown}");
    }
}
