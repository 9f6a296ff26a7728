//! Which slices there are, and which of them are open. Blocking: called from blocking tasks only.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use logmesh_index::{FieldType, FieldTypes, IndexError, NewDoc, Outcome, Slice};
use logmesh_types::{DocId, TopicName};
use tantivy::TantivyError;
use tracing::{error, warn};

use crate::Settings;
use crate::damage::{cause, damage};
use crate::error::from_tantivy;
use crate::folder::{Folder, Topics, nameless};
use crate::slice::{SliceIndex, Written};
use crate::suspect::{check, watched};

/// How often a bulk is tried again on a slice that was deleted meanwhile.
const REOPENED: usize = 3;

/// All slices.
#[derive(Debug)]
pub(crate) struct Catalog {
    folder: Folder,
    settings: Settings,
    topics: RwLock<Topics>,
    slices: Mutex<Slices>,
    /// Counts slices that were set aside.
    set_aside: AtomicU64,
}

#[derive(Debug, Default)]
struct Slices {
    known: BTreeMap<Slice, Known>,
    /// Counts uses, for finding the one that is longest ago.
    clock: u64,
}

#[derive(Debug, Default)]
struct Known {
    open: Option<Arc<SliceIndex>>,
    used: u64,
    /// When it was made; 0 if before this process. Tells it from a later one of the same name.
    made: u64,
}

impl Catalog {
    pub(crate) fn open(settings: Settings, folder: Folder) -> Result<Self, IndexError> {
        let topics = RwLock::new(folder.load_topics()?);
        let known = folder.slices()?.into_iter().map(|slice| (slice, Known::default())).collect();
        Ok(Self {
            folder,
            settings,
            topics,
            slices: Mutex::new(Slices { known, clock: 0 }),
            set_aside: AtomicU64::new(0),
        })
    }

    fn slices(&self) -> MutexGuard<'_, Slices> {
        self.slices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The declared types of a topic.
    pub(crate) fn types(&self, topic: &TopicName) -> FieldTypes {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.get(topic).cloned().unwrap_or_default()
    }

    /// The declared types of these topics, or of all.
    pub(crate) fn types_of(&self, wanted: &[TopicName]) -> Topics {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        let asked = topics.iter().filter(|(topic, _)| wanted.is_empty() || wanted.contains(topic));
        asked.map(|(topic, types)| (topic.clone(), types.clone())).collect()
    }

    /// Declares fields of a topic; see [`logmesh_index::IndexWriter::ensure_topic`].
    pub(crate) fn ensure_topic(&self, topic: &TopicName, fields: &FieldTypes) -> Result<(), IndexError> {
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        let mut types = topics.get(topic).cloned().unwrap_or_default();
        if let Some((name, was, is)) = changed(&types, fields) {
            return Err(IndexError::Unsupported {
                reason: format!(
                    "attributes.{name} of topic {topic} is {was:?} and can't become {is:?}: use another name"
                ),
            });
        }
        types.extend(fields.clone());
        if topics.get(topic) == Some(&types) {
            return Ok(());
        }
        let mut wanted = topics.clone();
        wanted.insert(topic.clone(), types);
        self.folder.store_topics(&wanted)?;
        *topics = wanted;
        Ok(())
    }

    /// The slices of these topics, or of all; newest date first.
    pub(crate) fn names(&self, topics: &[TopicName]) -> Vec<Slice> {
        let slices = self.slices();
        let wanted = |slice: &&Slice| topics.is_empty() || topics.contains(&slice.topic);
        let mut names: Vec<Slice> = slices.known.keys().filter(wanted).cloned().collect();
        names.sort_by(|a, b| b.date.cmp(&a.date).then_with(|| a.topic.cmp(&b.topic)));
        names
    }

    /// Opens a slice that is there.
    pub(crate) fn get(&self, slice: &Slice) -> Result<Option<Arc<SliceIndex>>, IndexError> {
        let mut slices = self.slices();
        if !slices.known.contains_key(slice) {
            return Ok(None);
        }
        self.open_slice(&mut slices, slice).map(Some)
    }

    fn get_or_make(&self, slice: &Slice) -> Result<Arc<SliceIndex>, IndexError> {
        let mut slices = self.slices();
        self.open_slice(&mut slices, slice)
    }

    fn open_slice(&self, slices: &mut Slices, slice: &Slice) -> Result<Arc<SliceIndex>, IndexError> {
        slices.clock += 1;
        let clock = slices.clock;
        if let Some(Known { open: Some(open), used, .. }) = slices.known.get_mut(slice) {
            *used = clock;
            return Ok(Arc::clone(open));
        }
        slices.make_room(self.settings.open_slices);
        let (dir, made) = (self.folder.slice_dir(slice), slices.made(slice));
        if let Some(damage) = check(&dir)? {
            return Err(self.rename(slices, slice, &damage)?);
        }
        if let Some(damage) = nameless(&dir, made.is_some())? {
            return Err(self.rename(slices, slice, damage)?);
        }
        self.folder.make_slice(slice)?;
        let open = watched(&dir, || SliceIndex::open(&dir));
        let open = Arc::new(open.map_err(|error| self.cannot_open(slices, slice, &dir, error))?);
        let known = Known { open: Some(Arc::clone(&open)), used: clock, made: made.unwrap_or(clock) };
        slices.known.insert(slice.clone(), known);
        Ok(open)
    }

    /// Writes documents of one slice.
    pub(crate) fn write(&self, slice: &Slice, docs: &[&NewDoc]) -> Result<Vec<Outcome>, IndexError> {
        let open = || self.get_or_make(slice).map(Some);
        self.change(slice, open, |open| open.write(docs, self.settings.writer_memory_bytes))
    }

    /// Deletes documents of one slice, and says of each whether it was there; of none if there's no such slice.
    pub(crate) fn delete_ids(&self, slice: &Slice, ids: &[DocId]) -> Result<Vec<bool>, IndexError> {
        self.change(slice, || self.get(slice), |open| open.delete(ids, self.settings.writer_memory_bytes))
    }

    /// Does some work with a slice's writer; nothing if there is no slice.
    fn change<T: Default>(
        &self,
        slice: &Slice,
        open: impl Fn() -> Result<Option<Arc<SliceIndex>>, IndexError>,
        work: impl Fn(&SliceIndex) -> tantivy::Result<Written<T>>,
    ) -> Result<T, IndexError> {
        for _ in 0..REOPENED {
            let Some(open) = open()? else { return Ok(T::default()) };
            self.limit_writers(&open)?;
            match watched(&self.folder.slice_dir(slice), || work(&open)) {
                Ok(Written::Done(done)) => return Ok(done),
                Ok(Written::Gone) => self.forget(slice, &open),
                Err(error) => {
                    warn!(?slice, %error, "cannot write to a slice; it will be opened anew");
                    self.forget(slice, &open);
                    return Err(self.fault(slice, error));
                }
            }
        }
        Err(IndexError::Unavailable { reason: format!("slice {}/{} is being deleted", slice.topic, slice.date) })
    }

    /// Closes writers that haven't been used for longest, so that `next` may have one.
    fn limit_writers(&self, next: &Arc<SliceIndex>) -> Result<(), IndexError> {
        if next.is_writing() {
            return Ok(());
        }
        let mut writing: Vec<(u64, Slice, Arc<SliceIndex>)> = {
            let slices = self.slices();
            let open = slices.known.iter().filter_map(|(slice, known)| Some((known.used, slice, known.open.as_ref()?)));
            let writing = open.filter(|(_, _, open)| open.is_writing());
            writing.map(|(used, slice, open)| (used, slice.clone(), Arc::clone(open))).collect()
        };
        writing.sort_by_key(|(used, ..)| *used);
        let surplus = (writing.len() + 1).saturating_sub(self.settings.open_writers.max(1));
        writing.iter().take(surplus).try_for_each(|(_, slice, open)| self.on(slice, || open.close_writer()))
    }

    /// Forgets a handle that is of no use any more; the slice is opened anew when it's wanted.
    fn forget(&self, slice: &Slice, gone: &Arc<SliceIndex>) {
        if let Some(known) = self.slices().known.get_mut(slice)
            && known.open.as_ref().is_some_and(|open| Arc::ptr_eq(open, gone))
        {
            known.open = None;
        }
    }

    /// Says of each id whether any slice of the topic holds it.
    pub(crate) fn contains(&self, topic: &TopicName, ids: &[DocId]) -> Result<Vec<bool>, IndexError> {
        let mut found = vec![false; ids.len()];
        for slice in self.names(std::slice::from_ref(topic)) {
            let missing: Vec<usize> = (0..ids.len()).filter(|at| !found[*at]).collect();
            if missing.is_empty() {
                break;
            }
            let Some(open) = self.get(&slice)? else { continue };
            let wanted: Vec<DocId> = missing.iter().map(|at| ids[*at]).collect();
            for (at, there) in missing.into_iter().zip(self.on(&slice, || open.contains(&wanted))?) {
                found[at] = there;
            }
        }
        Ok(found)
    }

    /// Removes a slice.
    pub(crate) fn delete(&self, slice: &Slice) -> Result<(), IndexError> {
        let Some(open) = self.get(slice)? else { return Ok(()) };
        open.retire(|| {
            // Whoever comes now makes the slice anew, and must find no trace of the old one.
            let mut slices = self.slices();
            self.folder.remove_slice(slice)?;
            slices.known.remove(slice);
            Ok(())
        })
    }
}

/// What is done with damaged slices.
impl Catalog {
    /// Does some work, anew as long as a slice was found damaged and set aside by it: once for each there is, and some more.
    pub(crate) fn without_damaged<T>(&self, work: impl Fn(&Self) -> Result<T, IndexError>) -> Result<T, IndexError> {
        let most = REOPENED + self.slices().known.len();
        for _ in 0..most {
            let before = self.set_aside.load(Ordering::Acquire);
            match work(self) {
                Err(IndexError::Damaged { .. }) if self.set_aside.load(Ordering::Acquire) != before => {}
                result => return result,
            }
        }
        work(self)
    }

    /// Does some work with a slice. If an error or a panic comes of it because its files are damaged, it's set aside.
    pub(crate) fn on<T>(&self, slice: &Slice, work: impl FnOnce() -> tantivy::Result<T>) -> Result<T, IndexError> {
        watched(&self.folder.slice_dir(slice), work).map_err(|error| self.fault(slice, error))
    }

    /// An error of work with a slice. If the cause is that its files are damaged, it's set aside.
    fn fault(&self, slice: &Slice, error: TantivyError) -> IndexError {
        let made = self.slices().made(slice);
        match cause(&self.folder.slice_dir(slice), &error) {
            Some(damage) => self.put_aside(slice, &damage, made).unwrap_or_else(|error| error),
            None => from_tantivy(error),
        }
    }

    /// Reads all files of a slice, and sets it aside if they're damaged.
    pub(crate) fn verify(&self, slice: &Slice) -> Result<(), IndexError> {
        let made = self.slices().made(slice);
        if made.is_none() {
            return Ok(());
        }
        match damage(&self.folder.slice_dir(slice)) {
            Ok(None) => Ok(()),
            // Deleted meanwhile.
            _ if self.slices().made(slice).is_none() => Ok(()),
            Ok(Some(damage)) => self.put_aside(slice, &damage, made).map(drop),
            Err(error) => Err(error),
        }
    }

    /// Sets the slice aside that was `made` then, and gives the error that says so; unless it isn't there any more.
    fn put_aside(&self, slice: &Slice, damage: &str, made: Option<u64>) -> Result<IndexError, IndexError> {
        let again = || IndexError::Unavailable { reason: format!("slice {}/{}: {damage}", slice.topic, slice.date) };
        let slices = self.slices();
        let open = slices.known.get(slice).ok_or_else(again)?.open.clone();
        let put = |mut slices: MutexGuard<'_, Slices>| match slices.made(slice) == made {
            true => self.rename(&mut slices, slice, damage),
            false => Err(again()),
        };
        let Some(open) = open else { return put(slices) };
        drop(slices);
        open.retire(|| {
            let slices = self.slices();
            match slices.known.get(slice).and_then(|known| known.open.as_ref()) {
                Some(other) if !Arc::ptr_eq(other, &open) => Err(again()),
                _ => put(slices),
            }
        })
    }

    /// The error of a slice that can't be opened. Whoever wants a slice waits while its files are read: only what a damaged
    /// file may be the cause of makes that necessary.
    fn cannot_open(&self, slices: &mut Slices, slice: &Slice, dir: &Path, error: TantivyError) -> IndexError {
        match cause(dir, &error) {
            Some(damage) => self.rename(slices, slice, &damage).unwrap_or_else(|error| error),
            None => from_tantivy(error),
        }
    }

    fn rename(&self, slices: &mut Slices, slice: &Slice, damage: &str) -> Result<IndexError, IndexError> {
        let reason = self.folder.set_aside(slice, damage)?;
        slices.known.remove(slice);
        self.set_aside.fetch_add(1, Ordering::AcqRel);
        error!(reason, "a slice of the index is damaged and was set aside");
        Ok(IndexError::Damaged { reason })
    }
}

impl Slices {
    /// When the slice was made, if it's known.
    fn made(&self, slice: &Slice) -> Option<u64> {
        self.known.get(slice).map(|known| known.made)
    }

    /// Closes slices that haven't been used for longest, until one more may be opened. Those in use or being written
    /// to stay.
    fn make_room(&mut self, most: usize) {
        let mut open: Vec<(u64, Slice)> = self
            .known
            .iter()
            .filter(|(_, known)| known.open.is_some())
            .map(|(slice, known)| (known.used, slice.clone()))
            .collect();
        let surplus = (open.len() + 1).saturating_sub(most.max(1));
        open.sort();
        for (_, slice) in open.into_iter().take(surplus) {
            if let Some(known) = self.known.get_mut(&slice)
                && known.open.as_ref().is_some_and(|open| Arc::strong_count(open) == 1 && !open.is_writing())
            {
                known.open = None;
            }
        }
    }
}

/// The first field whose type isn't what it was.
fn changed<'a>(types: &'a FieldTypes, fields: &'a FieldTypes) -> Option<(&'a str, FieldType, FieldType)> {
    fields.iter().find_map(|(name, is)| {
        let was = types.get(name)?;
        (was != is).then_some((name.as_str(), *was, *is))
    })
}
