//! The embedded index does what every index must.

use std::sync::Arc;

use async_trait::async_trait;
use logmesh_index::conformance::Fixture;
use logmesh_index_embedded::{EmbeddedIndex, Settings};
use tempfile::TempDir;

struct Folder(TempDir);

#[async_trait]
impl Fixture for Folder {
    type Index = EmbeddedIndex;

    async fn open(&self) -> Arc<EmbeddedIndex> {
        // Fewer slices than the tests use, so that they are closed and opened all the time.
        let settings = Settings { open_writers: 2, open_slices: 4, ..Settings::default() };
        Arc::new(EmbeddedIndex::open(self.0.path(), settings).await.expect("a folder of the test opens"))
    }
}

logmesh_index::conformance!(Folder(TempDir::new().unwrap()));
