//! The suite of `logmesh-store` on a real etcd.

mod support;

use std::sync::Arc;

use logmesh_store::ConfigStore;
use logmesh_store_etcd::{EtcdStore, Settings};
use logmesh_testing::servers;
use tokio::sync::{Mutex, MutexGuard};

/// The suite wants a shared server for one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

async fn shared() -> (Arc<dyn ConfigStore>, MutexGuard<'static, ()>) {
    let turn = ONE_AT_A_TIME.lock().await;
    let settings = Settings { prefix: "/conformance".to_owned(), ..support::settings(&[servers::etcd()]) };
    (Arc::new(EtcdStore::new(&settings).expect("good settings")), turn)
}

logmesh_store::conformance_suite!(shared);
