//! The suite of `logmesh-store` on the embedded store.

use std::sync::Arc;

use logmesh_store::ConfigStore;
use logmesh_store_embedded::{EmbeddedStore, Options};

async fn fresh() -> (Arc<dyn ConfigStore>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temp folder");
    let store = EmbeddedStore::open(&folder.path().join("config.redb"), Options::default()).expect("open");
    (Arc::new(store), folder)
}

logmesh_store::conformance_suite!(fresh);
