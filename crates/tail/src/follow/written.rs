//! When what is read was written, as well as a reader can know.
//!
//! A file tells when it was last written to, not when each of its bytes was. While the reader keeps up that is nearly the
//! same: what it finds beyond a place where nothing was left to read was written since it looked there, and the last of it at
//! the file's modification time. Of a backlog (a file's first reading, or after a pause) nothing is known, and nothing is told.

use logmesh_types::UnixNanos;

/// A file that isn't older when it is first seen was found as it was made: all of it was written since.
const YOUNG: i64 = 10_000_000_000;

/// What is known of one file.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Written {
    /// What lies beyond the mark, or is still to come, was or will be written after this. `None`: the reader has never
    /// caught up.
    since: Option<UnixNanos>,
    /// Bytes before this offset were written by this time.
    mark: Option<(u64, UnixNanos)>,
}

impl Written {
    /// Of a file that is seen for the first time.
    pub(crate) fn of_new(birth: Option<i64>, now: UnixNanos) -> Self {
        let young = birth.filter(|birth| (0..YOUNG).contains(&now.0.saturating_sub(*birth)));
        Self { since: young.map(UnixNanos), mark: None }
    }

    /// The file was looked at: it ends at `size`, and what lies before `reach` is read or no whole event yet.
    pub(crate) fn look(&mut self, reach: u64, size: u64, modified: UnixNanos, now: UnixNanos) {
        if let Some((_, time)) = self.mark.take_if(|(end, _)| *end <= reach) {
            self.since = Some(time);
        }
        if size <= reach {
            (self.since, self.mark) = (Some(now), None);
        } else if let (None, Some(since)) = (self.mark, self.since) {
            // Anybody may set a modification time, and clocks are set: within these two it is believed.
            self.mark = Some((size, modified.max(since).min(now)));
        }
    }

    /// The file's bytes are others than those that were seen.
    pub(crate) fn begin_again(&mut self) {
        self.mark = None;
    }

    /// When what is read now was written, at the latest; `None` if that isn't known.
    pub(crate) fn time(&self) -> Option<UnixNanos> {
        self.mark.map(|(_, time)| time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> UnixNanos {
        UnixNanos(seconds * 1_000_000_000)
    }

    #[test]
    fn of_a_backlog_nothing_is_told_until_it_is_read() {
        let mut written = Written::of_new(Some(0), at(100));
        written.look(0, 50, at(99), at(100));
        assert_eq!(written.time(), None);
        written.look(50, 50, at(99), at(101));
        assert_eq!(written.time(), None, "nothing is there");
        written.look(50, 60, at(103), at(104));
        assert_eq!(written.time(), Some(at(103)));
    }

    #[test]
    fn a_file_that_is_found_as_it_is_made_is_no_backlog() {
        let mut written = Written::of_new(Some(at(99).0), at(100));
        written.look(0, 50, at(99), at(100));
        assert_eq!(written.time(), Some(at(99)));
    }

    #[test]
    fn a_slow_reader_knows_the_wait_of_what_it_reads() {
        let mut written = Written::default();
        written.look(10, 10, at(1), at(1));
        written.look(10, 20, at(2), at(2));
        written.look(15, 30, at(8), at(9));
        assert_eq!(written.time(), Some(at(2)), "the bytes before 20 were there at 2");
        written.look(20, 40, at(9), at(9));
        assert_eq!(written.time(), Some(at(9)), "those behind came after 2; the last at 9");
    }

    #[test]
    fn half_a_line_waits_for_its_other_half() {
        let mut written = Written::default();
        written.look(0, 0, at(1), at(1));
        written.look(0, 5, at(2), at(2));
        // Nothing could be framed of these 5 bytes.
        written.look(5, 9, at(50), at(51));
        assert_eq!(written.time(), Some(at(50)));
    }

    #[test]
    fn a_modification_time_is_believed_within_reason() {
        let time = |modified| {
            let mut written = Written::default();
            written.look(0, 0, at(0), at(10));
            written.look(0, 5, modified, at(20));
            written.time()
        };
        assert_eq!(time(at(3)), Some(at(10)), "touched into the past");
        assert_eq!(time(at(900)), Some(at(20)), "into the future");
        let mut written = Written::default();
        written.look(0, 0, at(0), at(10));
        written.look(0, 5, at(12), at(4));
        assert_eq!(written.time(), Some(at(4)), "the clock was set back");
    }
}
