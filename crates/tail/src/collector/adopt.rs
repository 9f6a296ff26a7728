//! How a file begins to be followed: with which record, from where, and for which rule.

use std::path::Path;
use std::time::Instant;

use logmesh_types::{ByteRange, UnixNanos};

use super::discover::Refused;
use super::{Collector, Running};
use crate::follow::{Followed, Written};
use crate::framing::Framing;
use crate::pace::Rate;
use crate::pathguard::Opened;
use crate::state::{Assignment, Guard, Past, Record};

impl Collector {
    /// Begins to follow an open file: from where its record stands, or anew.
    pub(super) fn adopt(
        &mut self,
        opened: Opened,
        path: &Path,
        rule: usize,
        from_end: bool,
        now: Instant,
    ) -> Result<u64, Refused> {
        let resumed = self.wake_up(opened.meta.key);
        let is_new = resumed.is_none();
        let mut record = match resumed {
            Some(record) => Record {
                key: opened.meta.key,
                path: path.to_owned(),
                missing: 0,
                missing_since: None,
                ignored: false,
                ..record
            },
            None => self.new_record(&opened, path, rule, from_end)?,
        };
        // A rule that owned the file under its former name keeps it.
        let owner = self.rules.iter().position(|r| r.compiled.matches(&record.matched).is_some());
        let owner = owner.unwrap_or_else(|| {
            record.matched = path.to_owned();
            rule
        });
        let framing = Framing::new(&record.assignment.framing).unwrap_or_default();
        let number = record.number;
        // What was sent before a crash lay in the file, so before its present end, unless it was truncated since.
        let end = if opened.meta.size < record.size { u64::MAX } else { opened.meta.size };
        let bound = record.sent_to.map_or(opened.meta.size, |bound| bound.min(end));
        let framed_to = record.framed_to.take().unwrap_or(if is_new { record.acked } else { bound });
        let size_before = std::mem::replace(&mut record.size, opened.meta.size);
        let stream = Followed::stream_of(&self.settings.agent, &record);
        let born = (is_new || record.fresh).then_some(now);
        let written = if is_new { Written::of_new(record.key.birth, UnixNanos::now()) } else { Written::default() };
        let file = Followed {
            rule: owner,
            real: opened.real.clone(),
            checked: size_before,
            framed_to,
            grown: now,
            durable: !is_new,
            last_turn: self.next_turn(),
            rate: Rate::new(now),
            born,
            written,
            ..Followed::new(stream, record, framing)
        };
        self.changes += 1;
        self.by_key.insert(opened.meta.key, number);
        self.by_stream.insert(file.stream, number);
        self.files.insert(number, Box::new(file));
        self.hold_open(number, opened.file);
        self.add_name(number, path.to_owned());
        self.add_name(number, opened.real);
        self.position(number, size_before, now);
        self.assign(number, owner);
        // Now, so that the heads of many new files are made durable by one commit. An error comes again at its turn.
        if let Some(file) = self.files.get_mut(&number) {
            file.note_head().ok();
            file.note_sending();
        }
        self.list_head(number);
        self.dirty.insert(number);
        self.enqueue(number);
        Ok(number)
    }

    fn next_turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    /// Sets the read position: after what is on its way, or at the acked offset, if the file still is what it was.
    fn position(&mut self, number: u64, size_before: u64, now: Instant) {
        let Some(file) = self.files.get_mut(&number) else { return };
        let flight = self.draining.remove(&file.stream).map(|draining| draining.flight).unwrap_or_default();
        let (offset, guard) = match flight.sent.back() {
            Some(sent) => (sent.chunk.range.end, sent.guard),
            None => (file.record.acked, file.record.guard),
        };
        file.flight = flight;
        file.read = offset;
        let size = file.record.size;
        if size >= offset && file.seek(offset, guard).unwrap_or(false) {
            let cut_short = size < size_before;
            if cut_short && file.is_cut_short(size) {
                return self.note_cut_short(number, ByteRange::new(size, size_before));
            }
            if !cut_short && file.has_head().unwrap_or(false) {
                return;
            }
        }
        // What it held when it was last seen and wasn't read is lost, unless a copy has it.
        (file.checked, file.back_to) = (size_before, Some(guard));
        self.begin_generation(number, "was written anew while it wasn't watched", now);
    }

    pub(super) fn new_record(
        &mut self,
        opened: &Opened,
        path: &Path,
        rule: usize,
        from_end: bool,
    ) -> Result<Record, Refused> {
        let key = opened.meta.key;
        let framing = &self.rules[rule].compiled.framing;
        let start = match from_end {
            true => Followed::last_line(&opened.file, opened.meta.size, framing).map_err(Refused::Io)?,
            false => 0,
        };
        let mut record = Record {
            number: self.next_record,
            key,
            stream_birth: key.birth.unwrap_or_else(|| UnixNanos::now().0),
            epoch: 0,
            stream_inode: None,
            fresh: !from_end,
            ignored: false,
            path: path.to_owned(),
            matched: path.to_owned(),
            size: opened.meta.size,
            start,
            acked: start,
            guard: Guard::of(&[]),
            head: Guard::of(&[]),
            cuts: Vec::new(),
            past: Some(Past::since(start)),
            assignment: self.rules[rule].assignment(),
            lost_bytes: 0,
            losses: Vec::new(),
            missing: 0,
            missing_since: None,
            former: 0,
            former_ranges: Vec::new(),
            sent_to: None,
            framed_to: None,
            seen: UnixNanos::now(),
        };
        // The same inode and birth on two file systems: the later one gets a birth of its own.
        while self.by_stream.contains_key(&Followed::stream_of(&self.settings.agent, &record)) {
            record.stream_birth = record.stream_birth.wrapping_add((key.dev as i64) | 1);
        }
        self.next_record += 1;
        Ok(record)
    }

    /// Gives a file to a rule: at once, or where all is acked if the rule cuts or places events differently.
    pub(super) fn assign(&mut self, number: u64, rule: usize) {
        let wanted = self.rules[rule].assignment();
        let framing = self.rules[rule].compiled.framing.clone();
        let Some(file) = self.files.get_mut(&number) else { return };
        file.rule = rule;
        file.next = None;
        if file.record.assignment == wanted {
            return;
        }
        self.dirty.insert(number);
        if wanted.cuts_like(&file.record.assignment) {
            file.record.assignment = wanted;
            file.source = Followed::source_of(&file.record);
        } else {
            file.next = Some(Box::new((wanted, framing)));
        }
        // What was refused of it may be taken now.
        let stream = file.stream;
        self.retry(stream);
        if let Some(file) = self.files.get_mut(&number) {
            // Where nothing is on its way the rule runs from now on, even if there's nothing to read or nowhere to send.
            file.try_switch();
        }
    }
}

impl Running {
    fn assignment(&self) -> Assignment {
        let rule = &self.compiled.rule;
        Assignment {
            rule: rule.name.clone(),
            revision: rule.revision,
            topic: rule.topic.clone(),
            framing: rule.framing.clone(),
            service: rule.service.clone(),
        }
    }
}
