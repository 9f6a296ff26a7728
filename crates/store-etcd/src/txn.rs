//! Transactions: the conditions as etcd's comparisons; if one fails, the same request reads what made it fail.

use etcd_client::{
    Client, Compare, CompareOp, GetOptions, LeaseTimeToLiveOptions, PutOptions, ResponseHeader, TxnOp, TxnOpResponse,
    TxnResponse,
};
use logmesh_store::{LeaseId, Op, Precondition, Revision, StoreError, Txn};

use crate::cluster::{Cluster, Repeat};
use crate::error::{Failure, Kind};
use crate::space::Space;
use crate::{number, revision};

pub(crate) async fn commit(cluster: &Cluster, space: &Space, txn: &Txn) -> Result<Revision, StoreError> {
    let conditions: Vec<_> = txn.conditions.iter().filter(|(_, condition)| *condition != Precondition::None).collect();
    let request = etcd_client::Txn::new()
        .when(conditions.iter().map(|(key, condition)| compare(space.key(key), *condition)).collect::<Vec<_>>())
        .and_then(txn.ops.iter().map(|op| write(space, op)).collect::<Vec<_>>())
        .or_else(conditions.iter().map(|(key, _)| look(space.key(key))).collect::<Vec<_>>());
    let repeat = if txn.ops.is_empty() { Repeat::Harmless } else { Repeat::Never };
    let commit = async |mut client: Client| client.txn(request.clone()).await;
    let answer = match cluster.call(repeat, commit).await {
        Err(failure) if failure.kind == Kind::LeaseNotFound => return Err(missing_lease(cluster, txn, failure).await),
        answer => answer?,
    };
    if answer.succeeded() {
        return Ok(revision(answer.header().map_or(0, ResponseHeader::revision)));
    }
    Err(first_failed(&conditions, &answer))
}

fn compare(key: String, condition: Precondition) -> Compare {
    match condition {
        // A key that isn't there has the revision 0 in etcd, which no key has here.
        Precondition::RevisionIs(Revision(0)) => Compare::mod_revision(key, CompareOp::Less, 0),
        Precondition::RevisionIs(expected) => Compare::mod_revision(key, CompareOp::Equal, number(expected.0)),
        Precondition::MustNotExist | Precondition::None => Compare::mod_revision(key, CompareOp::Equal, 0),
    }
}

fn write(space: &Space, op: &Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(number(lease.0)));
            TxnOp::put(space.key(key), value.as_ref(), options)
        }
        Op::Delete { key } => TxnOp::delete(space.key(key), None),
    }
}

/// Reads a key's revision without its value.
fn look(key: String) -> TxnOp {
    TxnOp::get(key, Some(GetOptions::new().with_keys_only()))
}

fn first_failed(conditions: &[&(String, Precondition)], answer: &TxnResponse) -> StoreError {
    for ((key, condition), seen) in conditions.iter().zip(answer.op_responses()) {
        let actual = match &seen {
            TxnOpResponse::Get(seen) => seen.kvs().first().map(|kv| revision(kv.mod_revision())),
            _ => None,
        };
        if !condition.holds(actual) {
            return StoreError::PreconditionFailed { key: key.clone(), actual };
        }
    }
    StoreError::unavailable("etcd refused a transaction whose conditions hold")
}

/// Which of the leases isn't there: etcd doesn't say.
async fn missing_lease(cluster: &Cluster, txn: &Txn, failure: Failure) -> StoreError {
    let mut leases: Vec<LeaseId> = txn.ops.iter().filter_map(lease).collect();
    leases.dedup();
    if let [only] = leases[..] {
        return StoreError::LeaseNotFound(only);
    }
    for lease in leases {
        let left = async |client: Client| {
            client.lease_client().time_to_live(number(lease.0), None::<LeaseTimeToLiveOptions>).await
        };
        match cluster.call(Repeat::Harmless, left).await {
            Ok(left) if left.ttl() > 0 => {}
            Ok(_) => return StoreError::LeaseNotFound(lease),
            Err(failure) => return failure.of_lease(lease),
        }
    }
    failure.into()
}

fn lease(op: &Op) -> Option<LeaseId> {
    match op {
        Op::Put { lease, .. } => *lease,
        Op::Delete { .. } => None,
    }
}
