//! Reads: linearizable, and lists page by page at one revision.

use etcd_client::proto::PbKeyValue;
use etcd_client::{Client, GetOptions, ResponseHeader};
use logmesh_store::{Entry, LeaseId, Revision, Snapshot, StoreError, Versioned};

use crate::cluster::{Cluster, Repeat};
use crate::error::{Failure, Kind};
use crate::space::Space;
use crate::{number, revision};

/// Keys in one page of a list, as long as they fit into [`MAX_ANSWER_BYTES`].
const PAGE: i64 = 512;

/// The largest message taken from etcd. One key with the largest value that etcd takes fits several times.
pub(crate) const MAX_ANSWER_BYTES: usize = 16 << 20;

/// How often a list begins anew because what it was reading was compacted.
const LIST_TRIES: u32 = 5;

pub(crate) async fn get(cluster: &Cluster, key: String) -> Result<Option<Versioned>, StoreError> {
    let get = async |mut client: Client| client.get(key.as_str(), None).await;
    let mut answer = cluster.call(Repeat::Harmless, get).await?;
    Ok(answer.0.kvs.pop().map(versioned))
}

pub(crate) async fn list(cluster: &Cluster, space: &Space, prefix: &str) -> Result<Snapshot, StoreError> {
    list_with(cluster, space, prefix, GetOptions::new()).await
}

pub(crate) async fn keys(cluster: &Cluster, space: &Space, prefix: &str) -> Result<Vec<String>, StoreError> {
    let listed = list_with(cluster, space, prefix, GetOptions::new().with_keys_only()).await?;
    Ok(listed.entries.into_iter().map(|entry| entry.key).collect())
}

async fn list_with(
    cluster: &Cluster,
    space: &Space,
    prefix: &str,
    options: GetOptions,
) -> Result<Snapshot, StoreError> {
    for _ in 0..LIST_TRIES {
        match pages(cluster, space, prefix, &options).await {
            Err(failure) if failure.kind == Kind::Compacted => {}
            result => return Ok(result?),
        }
    }
    Err(StoreError::unavailable("etcd is compacted faster than its keys can be listed"))
}

async fn pages(cluster: &Cluster, space: &Space, prefix: &str, options: &GetOptions) -> Result<Snapshot, Failure> {
    let mut range = space.range(prefix);
    let mut limit = PAGE;
    let mut snapshot = Snapshot { revision: Revision(0), entries: Vec::new() };
    loop {
        let options = options
            .clone()
            .with_range(range.end.as_slice())
            .with_limit(limit)
            .with_revision(number(snapshot.revision.0));
        let page = async |client: Client| {
            let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
            kv.get(range.start.as_slice(), Some(options.clone())).await
        };
        let page = match cluster.call(Repeat::Harmless, page).await {
            Err(failure) if failure.kind == Kind::AnswerTooLarge && limit > 1 => {
                limit = (limit / 8).max(1);
                continue;
            }
            page => page?,
        };
        if snapshot.revision == Revision(0) {
            snapshot.revision = revision(page.header().map_or(0, ResponseHeader::revision));
        }
        let more = page.more();
        let last = page.0.kvs.last().map(|kv| kv.key.clone());
        let entries = page.0.kvs.into_iter().filter_map(|mut kv| {
            let key = space.strip(std::mem::take(&mut kv.key))?;
            Some(Entry { key, versioned: versioned(kv) })
        });
        snapshot.entries.extend(entries);
        match last {
            Some(last) if more => range = range.after(last),
            _ => return Ok(snapshot),
        }
    }
}

pub(crate) fn versioned(kv: PbKeyValue) -> Versioned {
    Versioned {
        mod_revision: revision(kv.mod_revision),
        lease: u64::try_from(kv.lease).ok().filter(|id| *id != 0).map(LeaseId),
        value: kv.value.into(),
    }
}
