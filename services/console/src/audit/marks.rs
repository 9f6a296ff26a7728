//! Which days of the index are retired, as transfer's leader wrote it: read once, and then what is new.

use logmesh_bus::{Bus, BusError, NextOffset, TopicPartition};
use logmesh_record::Marks;
use logmesh_types::TopicName;
use tokio::sync::Mutex;

/// Bytes that are read from the bus at a time.
const READ_BYTES: usize = 4 << 20;

/// The marks as far as they were read.
#[derive(Debug)]
pub(super) struct Followed(Mutex<(NextOffset, Marks)>);

impl Default for Followed {
    fn default() -> Self {
        Self(Mutex::new((NextOffset(0), Marks::default())))
    }
}

impl Followed {
    /// The marks that were written before this call.
    pub(super) async fn read(&self, bus: &dyn Bus) -> Result<Marks, BusError> {
        let at = TopicPartition { topic: TopicName::jobs(), partition: 0 };
        let high = match bus.watermarks(&at).await {
            Ok(marks) => marks.high,
            // Transfer has never run.
            Err(BusError::UnknownPartition { .. }) => return Ok(Marks::default()),
            Err(error) => return Err(error),
        };
        let mut followed = self.0.lock().await;
        let (next, marks) = &mut *followed;
        while *next < high {
            let records = bus.read(&at, *next, READ_BYTES).await?;
            let Some(last) = records.last() else { break };
            *next = last.offset.next();
            records.iter().for_each(|record| marks.read(&record.key, &record.value));
        }
        Ok(marks.clone())
    }
}
