//! Which of several documents of the same bytes stays, and which are copies of it.
//!
//! The one stays whose id is the one that its stream, its start and its bytes give, in the slice of the day on which it was read.
//! The choice is a function of the documents alone: two repairs at a time make the same one, and never delete each other's.
//! Documents that say different things, and those none of which is known to have its right id, are left alone.

use std::collections::BTreeMap;

use logmesh_index::{Place, Stored};
use logmesh_record::Origin;
use logmesh_types::{ByteRange, StreamId};

/// What is to be done about the documents that begin at one byte.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    /// Copies of a document that stays, and the bytes that they hold.
    pub(super) copies: Vec<(ByteRange, Place)>,
    /// Why others are left.
    pub(super) left: Option<String>,
}

/// A document, and what it says.
struct Told<'a> {
    stored: &'a Stored,
    origin: Origin,
}

/// What documents have in common that are of one event: its bytes' place, and what it says.
type Content<'a> = (ByteRange, &'a str, Option<&'a str>);

/// Decides on the documents of a stream that begin at one byte.
pub(super) fn decide(stream: &StreamId, documents: &[Stored]) -> Verdict {
    let told: Vec<Told<'_>> = documents.iter().filter_map(|stored| Told::of(stream, stored)).collect();
    let mut groups: BTreeMap<Content<'_>, Vec<&Told<'_>>> = BTreeMap::new();
    told.iter().for_each(|one| groups.entry(one.content()).or_default().push(one));
    let mut verdict = Verdict::default();
    groups.values().for_each(|group| verdict.take(choose(group)));
    if documents.len() > 1 && (groups.len() > 1 || told.len() < documents.len()) {
        verdict.left = Some(format!("they don't say the same: {}", names(documents)));
    }
    verdict
}

/// Decides on documents that say the same.
fn choose(group: &[&Told<'_>]) -> Verdict {
    let right = group.iter().find(|one| one.is_right()).map(|one| one.id());
    let mut by_id: BTreeMap<&str, &Told<'_>> = BTreeMap::new();
    for one in group.iter().filter(|one| right.is_none_or(|right| one.id() == right)) {
        let best = by_id.entry(one.id()).or_insert(one);
        if one.rank() > best.rank() {
            *best = one;
        }
    }
    // By an id within a slice both would go of two that have the same: who stays must have another place.
    let stays = |place: &Place| by_id.values().any(|one| one.stored.place == *place);
    let copies = group.iter().filter(|one| !stays(&one.stored.place));
    let copies: Vec<_> = copies.map(|one| (one.stored.range, one.stored.place.clone())).collect();
    let undecided = group.len() - copies.len() > by_id.len();
    let left = match (by_id.len(), undecided) {
        (_, true) => Some("one id is more than once in one slice: deleted by id, all of them would go".to_owned()),
        (2.., _) => {
            let ids: Vec<&str> = by_id.keys().copied().take(2).collect();
            Some(format!("they say the same, and which id is right can't be told from them: {}", ids.join(", ")))
        }
        _ => None,
    };
    Verdict { copies, left }
}

impl<'a> Told<'a> {
    /// `None`: it isn't as logmesh writes documents.
    fn of(stream: &StreamId, stored: &'a Stored) -> Option<Self> {
        let origin = Origin::read(&stored.body)?;
        (origin.stream == *stream && origin.range() == stored.range).then_some(Self { stored, origin })
    }

    fn id(&self) -> &'a str {
        &self.stored.place.id
    }

    fn content(&self) -> Content<'_> {
        (self.stored.range, &self.origin.message, self.origin.original.as_deref())
    }

    fn is_right(&self) -> bool {
        self.id().parse().is_ok_and(|id| self.origin.gives(&id))
    }

    /// Of documents of one id, which were written by one record each, the greatest stays: one that lies where its record says
    /// before one that doesn't; of those, as the books have it, the one of the latest day.
    fn rank(&self) -> (bool, Option<&str>, &str) {
        let (date, day) = (self.stored.date.as_deref(), self.origin.day().map(|day| day.to_string()));
        (date.is_some() && date == day.as_deref(), date, &self.stored.place.slice)
    }
}

impl Verdict {
    fn take(&mut self, other: Self) {
        self.copies.extend(other.copies);
        self.left = self.left.take().or(other.left);
    }
}

/// Two of the documents, with their slices.
fn names(documents: &[Stored]) -> String {
    let name = |stored: &Stored| format!("{} {} in {}", stored.place.id, stored.range, stored.place.slice);
    documents.iter().take(2).map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use logmesh_types::DocId;
    use serde_json::json;

    use super::*;

    const RIGHT: u8 = 0;

    fn stream() -> StreamId {
        StreamId::from_bytes([7; 16])
    }

    fn id(which: u8) -> String {
        match which {
            RIGHT => DocId::of_event(&stream(), 5, b"line\n").to_string(),
            other => DocId::from_bytes([other; 16]).to_string(),
        }
    }

    /// A document of five bytes that was read on the 31st, and lies where?
    fn copy(which: u8, date: &str, message: &str) -> Stored {
        let body = json!({
            "message": message, "logmesh.stream": stream(), "logmesh.offset": 5, "logmesh.length": 5,
            "logmesh.read_time": "2026-01-31T12:00:00Z",
        });
        Stored {
            place: Place { slice: date.into(), id: id(which) },
            date: (date.len() == 10).then(|| date.into()),
            range: ByteRange::new(5, 10),
            body: body.to_string().into(),
        }
    }

    /// Which of the documents go, by their places among them, and why others are left.
    fn decided(documents: &[Stored]) -> (Vec<usize>, String) {
        let verdict = decide(&stream(), documents);
        let mut gone: Vec<usize> = (0..documents.len())
            .filter(|at| verdict.copies.contains(&(documents[*at].range, documents[*at].place.clone())))
            .collect();
        gone.sort_unstable();
        assert!(gone.len() < documents.len(), "nothing would stay");
        (gone, verdict.left.unwrap_or_default())
    }

    const HOME: &str = "2026-01-31";
    const LATER: &str = "2026-02-02";

    #[test]
    fn the_one_in_the_slice_of_its_day_stays() {
        let (home, later, stray) =
            (copy(RIGHT, HOME, "line"), copy(RIGHT, LATER, "line"), copy(RIGHT, "2026.01.31-copy", "line"));
        let none = String::new();
        assert_eq!(decided(&[later.clone(), home.clone()]), (vec![0], none.clone()));
        assert_eq!(decided(&[home.clone(), stray.clone(), later.clone()]), (vec![1, 2], none.clone()));
        assert_eq!(decided(&[stray, later.clone()]), (vec![0], none.clone()), "a day before what is none");
        assert_eq!(decided(std::slice::from_ref(&home)), (vec![], none.clone()));
        // Read on two days, and each lies where its record says: the later one, whose day the books have.
        let mut again = later;
        again.body = String::from_utf8(again.body.to_vec()).unwrap().replace("2026-01-31T", "2026-02-02T").into();
        assert_eq!(decided(&[again, home]), (vec![1], none));
    }

    #[test]
    fn the_right_id_stays_wherever_it_lies() {
        let (home, other, foreign) = (copy(RIGHT, HOME, "line"), copy(1, HOME, "line"), copy(2, LATER, "line"));
        assert_eq!(decided(&[other.clone(), home.clone(), foreign]), (vec![0, 2], String::new()));
        let moved = copy(RIGHT, LATER, "line");
        assert_eq!(decided(&[other, moved]), (vec![0], String::new()), "its id proves it");
        let mut strange = home.clone();
        strange.place.id = "by hand".into();
        assert_eq!(decided(&[strange, home]), (vec![0], String::new()));
    }

    #[test]
    fn what_cannot_be_decided_is_left_and_told() {
        let (one, other) = (copy(1, HOME, "line"), copy(2, HOME, "line"));
        let (gone, left) = decided(&[one.clone(), other.clone()]);
        assert!(gone.is_empty() && left.contains("which id is right can't be told"), "{left}");
        let (gone, left) = decided(&[one, copy(1, LATER, "line"), other]);
        assert!(gone == [1] && left.contains("which id is right"), "one id of two slices is one document: {left}");
        for different in [copy(RIGHT, LATER, "tampered"), copy(3, HOME, "else")] {
            let (gone, left) = decided(&[copy(RIGHT, HOME, "line"), different]);
            assert!(gone.is_empty() && left.contains("they don't say the same"), "{left}");
        }
        let mut broken = copy(RIGHT, LATER, "line");
        broken.body = "{}".into();
        assert!(decided(&[broken, copy(RIGHT, HOME, "line")]).1.contains("don't say the same"));
        let mut longer = copy(RIGHT, LATER, "line");
        longer.range.end = 12;
        assert!(decided(&[longer, copy(RIGHT, HOME, "line")]).0.is_empty());
    }

    #[test]
    fn what_has_one_place_is_not_deleted_by_it() {
        let home = copy(RIGHT, HOME, "line");
        let (gone, left) = decided(&[home.clone(), home.clone(), copy(RIGHT, LATER, "line")]);
        assert!(gone == [2] && left.contains("more than once in one slice"), "{left}");
        let twice = copy(RIGHT, LATER, "line");
        assert_eq!(decided(&[home, twice.clone(), twice]), (vec![1, 2], String::new()));
    }
}
