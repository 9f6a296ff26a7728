//! Leases. etcd counts in whole seconds, and grants no lease shorter than its members' election: 2 s by default.

use std::time::Duration;

use etcd_client::{Client, Error};
use logmesh_store::{Lease, LeaseId, MAX_LEASE_TTL, StoreError};

use crate::cluster::{Cluster, Repeat};
use crate::error::Kind;
use crate::number;

pub(crate) async fn grant(cluster: &Cluster, ttl: Duration) -> Result<Lease, StoreError> {
    if ttl.is_zero() || ttl > MAX_LEASE_TTL {
        let longest = MAX_LEASE_TTL.as_secs();
        return Err(StoreError::Invalid(format!("a lease lives for more than 0 s and at most {longest} s")));
    }
    let whole = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    // Done twice, it leaves a lease without keys, which ends by itself.
    let grant = async |mut client: Client| client.lease_grant(number(whole), None).await;
    let granted = cluster.call(Repeat::Harmless, grant).await?;
    let id = u64::try_from(granted.id()).map_err(|_| StoreError::unavailable("etcd granted a lease without an id"))?;
    Ok(Lease { id: LeaseId(id), ttl: seconds(granted.ttl()) })
}

pub(crate) async fn keep_alive(cluster: &Cluster, lease: LeaseId) -> Result<Duration, StoreError> {
    let keep_alive = async |mut client: Client| {
        // The client keeps the answer to the first sign of life to itself, so a second one is given.
        let (mut keeper, mut answers) = client.lease_keep_alive(number(lease.0)).await?;
        keeper.keep_alive().await?;
        let answer = answers.message().await?;
        answer.ok_or_else(|| Error::LeaseKeepAliveError("the stream ended without an answer".to_owned()))
    };
    let kept = cluster.call(Repeat::Harmless, keep_alive).await.map_err(|failure| failure.of_lease(lease))?;
    if kept.ttl() > 0 { Ok(seconds(kept.ttl())) } else { Err(StoreError::LeaseNotFound(lease)) }
}

pub(crate) async fn revoke(cluster: &Cluster, lease: LeaseId) -> Result<(), StoreError> {
    let revoke = async |mut client: Client| client.lease_revoke(number(lease.0)).await;
    match cluster.call(Repeat::Harmless, revoke).await {
        Err(failure) if failure.kind != Kind::LeaseNotFound => Err(failure.into()),
        _ => Ok(()),
    }
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or_default())
}
