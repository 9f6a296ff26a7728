//! The books as the bus holds them now, kept between pages and audits: each is read once, and then what is new.
//!
//! Memory is bounded by [`MAX_BYTES`]. A partition whose books have no room is read from its beginning each time, and a
//! warning says so: an audit is slower then, and no less true.

use std::collections::HashMap;
use std::mem::size_of;
use std::time::Duration;

use logmesh_bus::{Bus, BusError, NextOffset, TopicPartition};
use logmesh_record::Book;
use logmesh_types::{ByteRange, StreamId};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::warn;

use super::marks::Followed;

/// Bytes that all books together may take in memory: those of about 800,000 whole files.
const MAX_BYTES: usize = 256 << 20;

/// Bytes that are read from the bus at a time.
const READ_BYTES: usize = 4 << 20;

/// Books that weren't asked for as long are forgotten. Far below the day for which the bus keeps the record of a removal.
const KEEP: Duration = Duration::from_secs(10 * 60);

/// The books of all partitions that were asked for lately.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    partitions: Mutex<HashMap<TopicPartition, Kept>>,
    /// Which days of the index are retired.
    pub(super) marks: Followed,
    /// [`MAX_BYTES`], or less in a test.
    max_bytes: Option<usize>,
}

/// The books of one partition.
#[derive(Debug)]
struct Kept {
    books: HashMap<StreamId, Book>,
    /// Where to read on.
    next: NextOffset,
    bytes: usize,
    used: Instant,
}

/// There is no room for the books of a partition.
struct Full;

impl Shelf {
    /// Hands out the books of a partition, as the bus holds them when this is called or later. A book may come several times, and
    /// then all that was said of it is true; `None` takes back what was said before.
    pub(super) async fn read(
        &self,
        bus: &dyn Bus,
        at: &TopicPartition,
        mut take: impl FnMut(StreamId, Option<&Book>),
    ) -> Result<(), BusError> {
        let mut partitions = self.partitions.lock().await;
        partitions.retain(|_, kept| kept.used.elapsed() < KEEP);
        // Taken out: an error on the way must not leave half of what was read.
        let kept = partitions.remove(at).unwrap_or_else(Kept::new);
        let others: usize = partitions.values().map(|kept| kept.bytes).sum();
        let room = self.max_bytes.unwrap_or(MAX_BYTES).saturating_sub(others);
        if let Ok(kept) = kept.catch_up(bus, at, room).await? {
            kept.books.iter().for_each(|(stream, book)| take(*stream, Some(book)));
            partitions.insert(at.clone(), kept);
            return Ok(());
        }
        drop(partitions);
        warn!(topic = %at.topic, partition = at.partition, "the console has no room for these books and reads them anew for each page");
        let mut next = NextOffset(0);
        let high = bus.watermarks(at).await?.high;
        each_record(bus, at, &mut next, high, |stream, book| {
            take(stream, book.as_ref());
            true
        })
        .await?;
        Ok(())
    }
}

impl Kept {
    fn new() -> Self {
        Self { books: HashMap::new(), next: NextOffset(0), bytes: 0, used: Instant::now() }
    }

    /// Reads what is new.
    async fn catch_up(
        mut self,
        bus: &dyn Bus,
        at: &TopicPartition,
        room: usize,
    ) -> Result<Result<Self, Full>, BusError> {
        let high = bus.watermarks(at).await?.high;
        if high < self.next {
            // The topic was removed and made anew.
            self = Self::new();
        }
        let mut next = self.next;
        let whole = each_record(bus, at, &mut next, high, |stream, book| {
            self.take(stream, book);
            self.bytes <= room
        });
        if !whole.await? {
            return Ok(Err(Full));
        }
        (self.next, self.used) = (next, Instant::now());
        Ok(Ok(self))
    }

    fn take(&mut self, stream: StreamId, book: Option<Book>) {
        let before = self.books.remove(&stream);
        self.bytes -= before.as_ref().map_or(0, size);
        if let Some(mut book) = book {
            before.iter().for_each(|before| book.merge(before));
            self.bytes += size(&book);
            self.books.insert(stream, book);
        }
    }
}

/// About the bytes that a book takes in memory.
fn size(book: &Book) -> usize {
    let ranges = book.done.as_slice().len() + book.rejected.as_slice().len() + 2 * book.slices.len();
    2 * size_of::<Book>() + book.agent.len() + book.path.len() + ranges * size_of::<ByteRange>()
}

/// Hands out the records of a partition of books up to `high`, `None` for a book that was removed, until `take` answers
/// false. True if all were handed out.
async fn each_record(
    bus: &dyn Bus,
    at: &TopicPartition,
    next: &mut NextOffset,
    high: NextOffset,
    mut take: impl FnMut(StreamId, Option<Book>) -> bool,
) -> Result<bool, BusError> {
    while *next < high {
        let records = bus.read(at, *next, READ_BYTES).await?;
        let Some(last) = records.last() else { break };
        *next = last.offset.next();
        for record in &records {
            let key = std::str::from_utf8(&record.key).ok().and_then(|key| key.parse::<StreamId>().ok());
            let more = match (key, Book::decode(&at.topic, &record.value)) {
                (Some(stream), _) if record.value.is_empty() => take(stream, None),
                (Some(stream), Ok(book)) => take(stream, Some(book)),
                (_, Err(error)) => {
                    warn!(error, "the audit leaves a book out");
                    true
                }
                (None, Ok(_)) => {
                    warn!(topic = %at.topic, "the audit leaves out a book whose key is no stream");
                    true
                }
            };
            if !more {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use logmesh_bus::NewRecord;
    use logmesh_bus_embedded::EmbeddedBus;
    use logmesh_record::Topics;
    use logmesh_testing::Folder;
    use logmesh_types::TopicName;

    use super::*;

    struct Books {
        bus: EmbeddedBus,
        topic: TopicName,
        _folder: Folder,
    }

    impl Books {
        async fn new() -> Self {
            let folder = Folder::new();
            let bus = EmbeddedBus::open(&folder.join("bus"), logmesh_bus_embedded::Settings::default()).unwrap();
            let topic: TopicName = "logs".parse().unwrap();
            for spec in Topics::default().specs(&topic) {
                bus.ensure_topic(&spec).await.unwrap();
            }
            Self { bus, topic: topic.books(), _folder: folder }
        }

        async fn write(&self, number: u8, range: (u64, u64)) {
            let mut book = Book::new(StreamId::from_bytes([number; 16]));
            book.add(ByteRange::new(range.0, range.1));
            self.append(book.encode()).await;
        }

        async fn append(&self, record: NewRecord) {
            self.bus.append(&self.topic, record).await.unwrap().await.unwrap();
        }

        /// How many bytes are done of each stream, over all partitions.
        async fn read(&self, shelf: &Shelf) -> BTreeMap<StreamId, u64> {
            let mut done: BTreeMap<StreamId, Book> = BTreeMap::new();
            for partition in 0..4 {
                let at = TopicPartition { topic: self.topic.clone(), partition };
                let take = |stream, book: Option<&Book>| match book {
                    Some(book) => done.entry(stream).or_insert_with(|| Book::new(stream)).merge(book),
                    None => drop(done.remove(&stream)),
                };
                shelf.read(&self.bus, &at, take).await.unwrap();
            }
            done.into_iter().map(|(stream, book)| (stream, book.done.bytes())).collect()
        }
    }

    /// What is kept and what is read anew say the same, whatever was added to and removed.
    #[tokio::test]
    async fn with_room_or_without_the_books_are_the_same() {
        let books = Books::new().await;
        let (kept, small) = (Shelf::default(), Shelf { max_bytes: Some(1), ..Shelf::default() });
        for round in 1..4 {
            for number in 1..=9 {
                books.write(number, (0, u64::from(round) * 20 + u64::from(number))).await;
            }
            let gone = StreamId::from_bytes([round; 16]);
            books.append(NewRecord { key: Bytes::from(gone.to_string()), ..NewRecord::default() }).await;
            let read = books.read(&kept).await;
            assert_eq!(read, books.read(&small).await);
            assert_eq!(read, books.read(&Shelf::default()).await);
            assert!(!read.contains_key(&gone));
            assert_eq!(read[&StreamId::from_bytes([9; 16])], 9 + 20 * u64::from(round));
        }
        assert_eq!(kept.partitions.lock().await.values().map(|kept| kept.books.len()).sum::<usize>(), 8);
        assert!(small.partitions.lock().await.values().all(|kept| kept.books.is_empty()), "none had room");
    }

    /// A view goes on where it was, and what it takes in memory is known.
    #[tokio::test]
    async fn only_what_is_new_is_read() {
        let books = Books::new().await;
        let shelf = Shelf::default();
        books.write(1, (0, 5)).await;
        books.read(&shelf).await;
        let places = async || {
            let kept = shelf.partitions.lock().await;
            (kept.values().map(|kept| kept.next.0).sum::<u64>(), kept.values().map(|kept| kept.bytes).sum::<usize>())
        };
        let (read, bytes) = places().await;
        assert!(read == 1 && bytes > 0, "{read} records, {bytes} bytes");
        books.write(1, (5, 9)).await;
        assert_eq!(books.read(&shelf).await[&StreamId::from_bytes([1; 16])], 9);
        assert_eq!(places().await, (2, bytes), "the book is one range as before");
    }
}
