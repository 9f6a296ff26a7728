//! The config store on etcd: 3.5.13 or later, 3.6, 3.7.
//!
//! Nothing is kept here but connections: etcd's revisions, transactions, watches and leases are the store's. One member is
//! used at a time; when it's dead, silent or cut off from its leader, the next one.
//!
//! An etcd that is restored from a snapshot has to be restored with `--bump-revision` and `--mark-compacted`: watchers
//! wait for revisions after those that they have seen.

mod cluster;
mod error;
mod lease;
mod read;
mod settings;
mod space;
mod txn;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logmesh_store::{ChangeStream, ConfigStore, Lease, LeaseId, Revision, Snapshot, StoreError, Txn, Versioned};

use crate::cluster::{Cluster, Repeat};
use crate::error::Kind;
pub use crate::settings::Settings;
use crate::space::Space;

/// The longest that [`EtcdStore::ping`] takes.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Read by [`EtcdStore::ping`]; never written. It lies where every key of the mesh lies, so that a user who may read
/// those may read it.
const PING_KEY: &str = "/logmesh/v1/ping";

/// A [`ConfigStore`] in etcd.
pub struct EtcdStore {
    cluster: Arc<Cluster>,
    space: Space,
}

impl EtcdStore {
    /// The store that `settings` describe. etcd isn't asked: it may be down, and be there later.
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        settings.check()?;
        Ok(Self { cluster: Arc::new(Cluster::new(settings)?), space: Space::new(settings.prefix.clone()) })
    }

    /// The same etcd over the same connections, with another prefix before every key; none if it's empty.
    pub fn at(&self, prefix: &str) -> Self {
        Self { cluster: self.cluster.clone(), space: Space::new(prefix.to_owned()) }
    }

    /// Whether etcd answers, with a majority of its members: a read, within 5 s.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let read = tokio::time::timeout(PING_TIMEOUT, self.get(PING_KEY)).await;
        read.map_err(|_| StoreError::unavailable(format!("etcd did not answer within {PING_TIMEOUT:?}")))?.map(|_| ())
    }
}

#[async_trait]
impl ConfigStore for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        read::get(&self.cluster, self.space.key(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        read::list(&self.cluster, &self.space, prefix).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        read::keys(&self.cluster, &self.space, prefix).await
    }

    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        txn.check()?;
        txn::commit(&self.cluster, &self.space, &txn).await
    }

    fn watch(&self, prefix: &str, after: Revision) -> ChangeStream {
        watch::stream(&self.cluster, &self.space, prefix, after)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let revision = number(revision.0);
        let compact = async |mut client: etcd_client::Client| client.compact(revision, None).await;
        match self.cluster.call(Repeat::Harmless, compact).await {
            Err(failure) if failure.kind != Kind::Compacted => Err(failure.into()),
            _ => Ok(()),
        }
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        lease::grant(&self.cluster, ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        lease::keep_alive(&self.cluster, lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        lease::revoke(&self.cluster, lease).await
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members: Vec<&str> = self.cluster.names().collect();
        f.debug_struct("EtcdStore").field("members", &members).field("space", &self.space).finish()
    }
}

/// A number as etcd writes it. One that it can't write is larger than any that it knows.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A revision that etcd wrote.
fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or_default())
}
