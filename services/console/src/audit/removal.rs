//! The repair's last part: copies of documents are removed from the index.
//!
//! What a stream has twice is read again, page by page, with the slices that it lies in; [`copies`] says what goes, and that is
//! deleted at once: whatever stays was seen in the index a moment before. Nothing else in logmesh deletes single documents.

use logmesh_index::{IndexError, IndexRepair, PageLimit, Place, Stored};
use logmesh_proto::audit::v1::{FindingCause, RangeRemoval, StreamAudit};
use logmesh_types::{ByteRange, Ranges, StreamId, TopicName};
use tracing::info;

use super::copies;
use super::repair::{Want, Wanted};

/// What is read of a stream's documents at a time, and decided on.
const PAGE: PageLimit = PageLimit { hits: 500, bytes: 16 << 20 };

/// The most copies of a stream that one repair removes. What is left is found by the next one.
const MAX_REMOVED: u64 = 100_000;

/// Ranges of a stream of which is told what was removed, and of which why not.
const MAX_TOLD: usize = 200;

/// What was removed of a stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Removal {
    /// Copies that are gone.
    pub(super) documents: u64,
    /// Where they lay.
    pub(super) told: Vec<RangeRemoval>,
    /// What was left, and why.
    left: Vec<(ByteRange, String)>,
    /// Why the index deletes nothing.
    refused: Option<String>,
    /// There were more than one repair removes.
    full: bool,
}

/// A removal, under way.
struct Removing<'a> {
    index: &'a dyn IndexRepair,
    topic: &'a TopicName,
    stream: &'a StreamId,
    /// See [`PAGE`] and [`MAX_REMOVED`]; less in a test.
    page: PageLimit,
    most: u64,
    removal: Removal,
}

/// Removes copies of what streams have more than once.
pub(super) async fn remove(index: &dyn IndexRepair, wanted: &mut Wanted) {
    for (at, streams) in wanted.iter_mut() {
        for (stream, want) in streams.iter_mut().filter(|(_, want)| !want.doubled.is_empty()) {
            let topic = &at.topic;
            let removal = Removal::default();
            let removing = Removing { index, topic, stream, page: PAGE, most: MAX_REMOVED, removal };
            want.removal = removing.run(&want.doubled).await;
            let documents = want.removal.documents;
            info!(%topic, %stream, documents, "a repair removed copies from the index");
        }
    }
}

impl Removing<'_> {
    /// What was removed, though the index refuses to go on: other streams have their turn.
    async fn run(mut self, doubled: &Ranges) -> Removal {
        if let Err(error) = self.take_all(doubled).await {
            self.removal.refused.get_or_insert_with(|| error.to_string());
        }
        self.removal
    }

    async fn take_all(&mut self, doubled: &Ranges) -> Result<(), IndexError> {
        for range in doubled.as_slice() {
            let mut from = range.start;
            while from < range.end && self.removal.refused.is_none() {
                if self.removal.documents >= self.most {
                    self.removal.full = true;
                    return Ok(());
                }
                from = self.take_page(ByteRange::new(from, range.end)).await?;
            }
        }
        Ok(())
    }

    /// Removes the copies of one page; where the next one begins.
    async fn take_page(&mut self, starts: ByteRange) -> Result<u64, IndexError> {
        let page = self.index.stored(self.topic, self.stream, starts, self.page).await?;
        let Some(last) = page.documents.last().map(|stored| stored.range.start) else { return Ok(starts.end) };
        // More may begin where the last one does: they are decided on together, unless they fill a page.
        let whole = page.documents.partition_point(|stored| stored.range.start < last);
        let complete = if page.more && whole > 0 { whole } else { page.documents.len() };
        let removed = self.remove_from(&page.documents[..complete]).await;
        Ok(match page.more {
            false => starts.end,
            true if whole == 0 && removed == 0 => last.saturating_add(1),
            true => last,
        })
    }

    /// Removes copies among documents, which stand by their start; how many.
    async fn remove_from(&mut self, documents: &[Stored]) -> u64 {
        let mut gone = Vec::new();
        for group in documents.chunk_by(|a, b| a.range.start == b.range.start).filter(|group| group.len() > 1) {
            let verdict = copies::decide(self.stream, group);
            gone.extend(verdict.copies);
            let end = group.iter().map(|stored| stored.range.end).max().unwrap_or_default();
            self.leave(ByteRange::new(group[0].range.start, end), verdict.left);
        }
        let (ranges, places): (Vec<ByteRange>, Vec<Place>) = gone.into_iter().unzip();
        let deleted = match places.is_empty() {
            true => Ok(Vec::new()),
            false => self.index.delete(self.topic, &places).await,
        };
        match deleted {
            Ok(deleted) => {
                let gone = ranges.into_iter().zip(places).zip(deleted).filter(|(_, was_there)| *was_there);
                gone.map(|((range, place), _)| self.removal.note(range, place.slice)).count() as u64
            }
            Err(error) => {
                self.removal.refused = Some(error.to_string());
                0
            }
        }
    }

    fn leave(&mut self, range: ByteRange, why: Option<String>) {
        if let Some(why) = why.filter(|_| self.removal.left.len() < MAX_TOLD) {
            self.removal.left.push((range, why));
        }
    }
}

impl Removal {
    /// Counts a document that is gone; neighbours of one slice are told together.
    fn note(&mut self, range: ByteRange, slice: String) {
        self.documents += 1;
        let room = self.told.len() < MAX_TOLD;
        let mut told = self.told.iter_mut().rev();
        match told.find(|one| one.slice == slice && (one.start_offset..=one.end_offset).contains(&range.start)) {
            Some(one) => (one.end_offset, one.documents) = (one.end_offset.max(range.end), one.documents + 1),
            None if room => {
                let (start_offset, end_offset) = (range.start, range.end);
                self.told.push(RangeRemoval { start_offset, end_offset, documents: 1, slice });
            }
            None => {}
        }
    }

    /// Why these bytes are still there more than once.
    fn reason(&self, range: &Ranges) -> String {
        let mut left = self.left.iter();
        match (left.find(|(left, _)| !range.and(&[*left].into_iter().collect()).is_empty()), &self.refused) {
            (Some((_, why)), _) => why.clone(),
            (None, Some(refused)) => refused.clone(),
            (None, None) => "they overlap and aren't of the same bytes".to_owned(),
        }
    }
}

impl Want {
    /// Says of the doubles that are left why they are. True if there are some that another repair may remove.
    pub(super) fn explain_doubles(&self, audit: &mut StreamAudit) -> bool {
        let mut again = self.removal.full;
        for double in &mut audit.doubles {
            let range: Ranges = [ByteRange::new(double.start_offset, double.end_offset)].into_iter().collect();
            let why = match double.cause() {
                FindingCause::OtherTopic => {
                    "a repair removes nothing of it: each topic has what it was to collect".to_owned()
                }
                _ if range.and(&self.doubled).is_empty() => {
                    again = true;
                    "found after the repair: another one looks at it".to_owned()
                }
                _ if self.removal.full => "more than one repair removes: another one goes on".to_owned(),
                _ => format!("left as it is: {}", self.removal.reason(&range)),
            };
            double.detail = format!("{}; {why}", double.detail);
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use logmesh_index::{IndexWriter, NewDoc, Slice};
    use logmesh_index_embedded::{EmbeddedIndex, Settings};
    use logmesh_proto::audit::v1::Finding;
    use logmesh_record::document;
    use logmesh_testing::Folder;

    use super::super::tests::{chunk, stream};
    use super::*;

    const DAYS: [&str; 3] = ["2026-01-31", "2026-02-01", "2026-02-02"];

    /// Three lines of five bytes, in these slices.
    async fn filled(days: &[&str]) -> (EmbeddedIndex, TopicName, Folder) {
        let (folder, topic): (_, TopicName) = (Folder::new(), "logs".parse().unwrap());
        let index = EmbeddedIndex::open(&folder.join("index"), Settings::default()).await.unwrap();
        let documents = document::of_chunk(&chunk(stream(1), &topic, 0, "2026-01-31T12:00:00Z"));
        for day in days {
            let slice = std::sync::Arc::new(Slice { topic: topic.clone(), date: (*day).to_owned() });
            let docs = documents.iter().map(|one| NewDoc {
                slice: slice.clone(),
                id: one.id.unwrap(),
                body: one.body.clone(),
            });
            index.write(docs.collect()).await.unwrap();
        }
        (index, topic, folder)
    }

    async fn removed(index: &EmbeddedIndex, topic: &TopicName, page: PageLimit, most: u64) -> Removal {
        let (stream, removal) = (stream(1), Removal::default());
        let removing = Removing { index, topic, stream: &stream, page, most, removal };
        removing.run(&[ByteRange::new(0, 15)].into_iter().collect()).await
    }

    async fn slices(index: &EmbeddedIndex, topic: &TopicName) -> Vec<(u64, String)> {
        let page = index.stored(topic, &stream(1), ByteRange::new(0, 99), PageLimit::hits(99)).await.unwrap();
        page.documents.into_iter().map(|stored| (stored.range.start, stored.place.slice)).collect()
    }

    fn whole() -> Vec<(u64, String)> {
        [0, 5, 10].map(|start| (start, DAYS[0].to_owned())).into()
    }

    /// However small the pages are, each line stays once, where it belongs.
    #[tokio::test]
    async fn pages_of_any_size_leave_each_document_once() {
        for page in [1, 2, 3, 4, 500].map(PageLimit::hits).into_iter().chain([PageLimit { hits: 500, bytes: 1 }]) {
            let (index, topic, _folder) = filled(&DAYS).await;
            let removal = removed(&index, &topic, page, 99).await;
            if page.hits == 1 || page.bytes == 1 {
                assert_eq!(removal.documents, 0, "what is seen alone is no copy");
                continue;
            }
            assert_eq!(slices(&index, &topic).await, whole(), "{page:?}");
            assert_eq!((removal.documents, removal.full), (6, false), "{page:?}");
            let mut told: Vec<_> = removal
                .told
                .iter()
                .map(|one| (one.slice.as_str(), one.start_offset, one.end_offset, one.documents))
                .collect();
            told.sort_unstable();
            assert_eq!(told, [(DAYS[1], 0, 15, 3), (DAYS[2], 0, 15, 3)]);
        }
    }

    #[tokio::test]
    async fn one_repair_removes_a_bounded_number_and_says_that_there_are_more() {
        let (index, topic, _folder) = filled(&DAYS).await;
        let first = removed(&index, &topic, PageLimit::hits(4), 2).await;
        assert!(first.full && first.documents < 6, "{first:?}");
        let mut want =
            Want { doubled: [ByteRange::new(0, 15)].into_iter().collect(), removal: first, ..Want::default() };
        let mut audit = StreamAudit {
            doubles: vec![Finding { start_offset: 10, end_offset: 15, ..Finding::default() }],
            ..StreamAudit::default()
        };
        assert!(want.explain_doubles(&mut audit) && audit.doubles[0].detail.contains("another one goes on"));
        want.removal = removed(&index, &topic, PAGE, MAX_REMOVED).await;
        assert!(!want.removal.full);
        assert_eq!(slices(&index, &topic).await, whole());
    }

    #[test]
    fn what_is_left_is_explained() {
        let mut want = Want { doubled: [ByteRange::new(0, 20)].into_iter().collect(), ..Want::default() };
        want.removal.left.push((ByteRange::new(0, 5), "they differ".into()));
        let double = |start_offset, cause: FindingCause| Finding {
            start_offset,
            end_offset: start_offset + 5,
            cause: cause.into(),
            ..Finding::default()
        };
        let (same, overlap) = (FindingCause::SameDocument, FindingCause::Overlap);
        let doubles = vec![double(0, overlap), double(10, overlap), double(12, FindingCause::OtherTopic)];
        let mut audit = StreamAudit { doubles, ..StreamAudit::default() };
        assert!(!want.explain_doubles(&mut audit));
        let said: Vec<&str> = audit.doubles.iter().map(|one| one.detail.as_str()).collect();
        assert!(
            said[0].contains("left as it is: they differ") && said[1].contains("aren't of the same bytes"),
            "{said:?}"
        );
        assert!(said[2].contains("each topic has"), "{said:?}");
        want.removal.refused = Some("the index is read-only".into());
        let mut audit = StreamAudit { doubles: vec![double(10, same), double(30, same)], ..StreamAudit::default() };
        assert!(want.explain_doubles(&mut audit));
        assert!(audit.doubles[0].detail.contains("read-only") && audit.doubles[1].detail.contains("another one looks"));
    }
}
