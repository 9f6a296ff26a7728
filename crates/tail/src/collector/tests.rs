//! The collector on real files in a temporary folder.

use std::io::Write;
use std::os::unix::fs::symlink;

use super::*;
use crate::framing::{FramingSpec, Pattern};
use crate::rule::{Pace, StartAt};
use crate::status::{FileState, LossCause};
use logmesh_types::ByteRange;

const CREDIT: u64 = u64::MAX;

pub(super) struct Bench {
    pub dir: tempfile::TempDir,
    pub collector: Option<Collector>,
    pub rules: Vec<TailRule>,
    /// Time as the collector is told it.
    pub now: Instant,
    pub change: fn(&mut Settings),
}

pub(super) fn rule(dir: &std::path::Path, name: &str, glob: &str) -> TailRule {
    TailRule {
        name: name.parse().unwrap(),
        revision: 1,
        globs: vec![dir.join("logs").join(glob).display().to_string()],
        exclude: Vec::new(),
        topic: "t".parse().unwrap(),
        priority: 0,
        start_at: StartAt::Beginning,
        framing: FramingSpec::default(),
        ignore_older: None,
        flush_after: None,
        pace: Pace::default(),
        service: None,
    }
}

impl Bench {
    pub(super) fn new(glob: &str) -> Self {
        Self::with(glob, |_| {})
    }

    pub(super) fn with(glob: &str, change: fn(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        let rules = vec![rule(dir.path(), "a", glob)];
        let mut bench = Self { dir, collector: None, rules, now: Instant::now(), change };
        bench.restart();
        bench
    }

    /// Drops the collector as a crash does, and opens it again.
    pub(super) fn restart(&mut self) {
        self.collector = None;
        let allow = vec![format!("{}/logs/**", self.dir.path().display())];
        let mut settings = Settings::new("agent".parse().unwrap(), self.dir.path().join("state"), allow);
        settings.linger = Duration::ZERO;
        settings.commit_every = Duration::ZERO;
        (self.change)(&mut settings);
        self.collector = Some(Collector::open(settings).unwrap());
        self.now = self.now.max(Instant::now());
        self.apply();
    }

    pub(super) fn apply(&mut self) {
        for (_, outcome) in self.collector.as_mut().unwrap().apply(self.rules.clone(), self.now) {
            outcome.unwrap();
        }
    }

    pub(super) fn it(&mut self) -> &mut Collector {
        self.collector.as_mut().unwrap()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("logs").join(name)
    }

    pub(super) fn append(&self, name: &str, text: &str) {
        let mut file = std::fs::File::options().append(true).create(true).open(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    pub(super) fn poll(&mut self) -> Option<Chunk> {
        self.now += Duration::from_millis(1);
        let now = self.now;
        self.it().poll(now, CREDIT)
    }

    pub(super) fn drain(&mut self) -> Vec<Chunk> {
        std::iter::from_fn(|| self.poll()).collect()
    }

    pub(super) fn ack(&mut self, chunk: &Chunk) {
        let now = self.now;
        self.it().ack(chunk.stream, chunk.range.end, now);
    }

    /// What is sent now, acked at once: (range, text).
    pub(super) fn take(&mut self) -> Vec<(u64, String)> {
        let mut texts = Vec::new();
        while let Some(chunk) = self.poll() {
            self.ack(&chunk);
            assert_eq!(chunk.crc32c, crc32c::crc32c(&chunk.data));
            texts.push((chunk.range.start, String::from_utf8_lossy(&chunk.data).into_owned()));
        }
        texts
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    pub(super) fn scan(&mut self) {
        self.pass(Duration::from_secs(11));
    }

    pub(super) fn status(&mut self, name: &str) -> crate::status::FileStatus {
        let path = self.path(name);
        self.it().status().into_iter().find(|file| file.path == path).unwrap()
    }

    /// Bytes that all generations of a file lost, and of which ranges that is known: start, end, cause.
    pub(super) fn lost(&mut self, name: &str) -> (u64, Vec<(u64, u64, LossCause)>) {
        let path = self.path(name);
        let mut all: Vec<_> = self.it().status().into_iter().filter(|file| file.path == path).collect();
        all.sort_by_key(|file| file.state != FileState::Draining);
        let losses = all.iter().flat_map(|file| &file.losses);
        let mut ranges: Vec<_> = losses.map(|loss| (loss.range.start, loss.range.end, loss.cause)).collect();
        ranges.sort_by_key(|range| (range.0, range.1));
        (all.iter().map(|file| file.lost_bytes).sum(), ranges)
    }
}

pub(super) fn starts(pattern: &str) -> FramingSpec {
    FramingSpec { pattern: Some(Pattern::Start(pattern.into())), ..FramingSpec::default() }
}

pub(super) fn texts(list: &[(u64, &str)]) -> Vec<(u64, String)> {
    list.iter().map(|(at, text)| (*at, (*text).to_owned())).collect()
}

#[test]
fn lines_come_as_they_are_written() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\ntwo\nthr");
    assert_eq!(bench.take(), texts(&[(0, "one\ntwo\n")]));
    bench.append("a.log", "ee\n\n");
    bench.append("b.log", "x\r\n");
    bench.append("b.txt", "no\n");
    assert_eq!(bench.take(), texts(&[(8, "three\n\n"), (0, "x\r\n")]));
    assert_eq!(bench.take(), []);
    let status = bench.status("a.log");
    assert_eq!((status.size, status.read, status.acked, status.lag()), (15, 15, 15, 0));
}

#[test]
fn after_a_crash_it_goes_on_at_the_acked_offset() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\n");
    assert_eq!(bench.take(), texts(&[(0, "one\n")]));
    bench.poll();
    bench.append("a.log", "two\n");
    let sent = bench.poll().unwrap();
    bench.restart();
    let again = bench.poll().unwrap();
    assert_eq!((again.stream, again.range, &again.data), (sent.stream, sent.range, &sent.data));
    bench.ack(&again);
    bench.poll();
    bench.restart();
    assert_eq!(bench.take(), []);
}

#[test]
fn a_lost_state_finds_the_same_streams() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\n");
    let first = bench.poll().unwrap();
    bench.collector = None;
    std::fs::remove_dir_all(bench.dir.path().join("state")).unwrap();
    bench.restart();
    assert_eq!(bench.poll().unwrap().stream, first.stream);
}

#[test]
fn a_connection_lost_sends_the_same_chunks_again() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\n");
    let first = bench.poll().unwrap();
    bench.append("a.log", "two\n");
    let second = bench.poll().unwrap();
    bench.ack(&first);
    bench.it().reconnect();
    let again = bench.drain();
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].range, again[0].read_time), (second.range, second.read_time));
}

#[test]
fn a_refused_chunk_stands_and_is_sent_again() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\n");
    let first = bench.poll().unwrap();
    bench.append("a.log", "two\n");
    let second = bench.poll().unwrap();
    let now = bench.now;
    bench.it().reject(first.stream, first.range, "BAD_CHECKSUM", now);
    bench.ack(&second);
    assert_eq!(bench.status("a.log").acked, 0, "nothing may pass a refused chunk");
    assert_eq!(bench.status("a.log").state, FileState::Blocked);
    assert!(bench.drain().is_empty());
    bench.pass(Duration::from_secs(31));
    let again = bench.drain();
    assert_eq!(again.iter().map(|c| c.range).collect::<Vec<_>>(), [ByteRange::new(0, 8)]);
    bench.ack(&second);
    let status = bench.status("a.log");
    assert_eq!((status.acked, status.state, status.error), (8, FileState::Active, None));
}

#[test]
fn a_refused_stream_holds_up_no_other_and_keeps_its_time_and_reason() {
    let mut bench = Bench::with("*.log", |settings| settings.max_in_flight_bytes = 16);
    bench.append("a.log", "one\n");
    let first = bench.poll().unwrap();
    bench.append("a.log", "two\n");
    let second = bench.poll().unwrap();
    let now = bench.now;
    bench.it().reject(first.stream, first.range, "TOPIC_REFUSED", now);
    assert_eq!(bench.it().totals().in_flight_bytes, 0);
    bench.append("a.log", &"more\n".repeat(9));
    bench.append("b.log", "b\n");
    bench.pass(Duration::from_secs(20));
    assert_eq!(bench.take(), texts(&[(0, "b\n")]));
    let now = bench.now;
    bench.it().reject(second.stream, second.range, "AFTER_REJECTED", now);
    assert!(bench.status("a.log").error.unwrap().contains("TOPIC_REFUSED"));
    bench.pass(Duration::from_secs(11));
    assert_eq!(bench.poll().unwrap().range.start, 0, "30 s after the first refusal");
    assert_eq!(bench.status("a.log").state, FileState::Blocked, "nothing of it was taken yet");
}

#[test]
fn a_refused_stream_that_nobody_reads_keeps_its_time_and_reason() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\n");
    let first = bench.poll().unwrap();
    bench.append("a.log", "two\n");
    let second = bench.poll().unwrap();
    bench.rules.clear();
    bench.apply();
    let now = bench.now;
    bench.it().reject(first.stream, first.range, "TOPIC_REFUSED", now);
    bench.it().reject(second.stream, second.range, "AFTER_REJECTED", now + Duration::from_secs(20));
    assert!(bench.status("a.log").error.unwrap().contains("TOPIC_REFUSED"));
    bench.pass(Duration::from_secs(31));
    assert_eq!(bench.drain().iter().map(|c| c.range).collect::<Vec<_>>(), [first.range, second.range]);
}

#[test]
fn another_topic_frees_a_refused_stream_at_once() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\n");
    let first = bench.poll().unwrap();
    bench.ack(&first);
    bench.append("a.log", "two\nthree\n");
    let now = bench.now;
    let second = bench.it().poll(now, 4);
    let second = second.or_else(|| bench.poll()).unwrap();
    bench.it().reject(second.stream, second.range, "TOPIC_REFUSED", now);
    bench.rules[0].topic = "other".parse().unwrap();
    bench.apply();
    let again = bench.drain();
    assert_eq!(
        again.iter().map(|c| (c.range, c.source.topic.as_str())).collect::<Vec<_>>(),
        [(ByteRange::new(4, 14), "other")]
    );
}

#[test]
fn a_last_line_is_flushed_and_its_rest_continues_it() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\ntw");
    assert_eq!(bench.take(), texts(&[(0, "one\n")]));
    bench.pass(Duration::from_secs(6));
    let flushed = bench.poll().unwrap();
    assert_eq!(
        (&flushed.data[..], flushed.lengths.as_deref(), flushed.continuations.len()),
        (&b"tw"[..], Some(&[2][..]), 0)
    );
    bench.append("a.log", "o\nthree\n");
    let rest = bench.poll().unwrap();
    assert_eq!((&rest.data[..], &rest.continuations[..]), (&b"o\nthree\n"[..], &[0][..]));
    // Nothing of it was acked: after a crash it is cut in the same places.
    bench.restart();
    let again = bench.drain();
    assert_eq!(
        again.iter().map(|c| (c.range, c.lengths.clone())).collect::<Vec<_>>(),
        [(flushed.range, flushed.lengths), (rest.range, None)]
    );
}

#[test]
fn a_truncated_file_is_a_new_stream() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\ntwo\n");
    let before = bench.poll().unwrap();
    std::fs::write(bench.path("a.log"), "x\n").unwrap();
    let after = bench.poll().unwrap();
    assert_ne!(before.stream, after.stream);
    assert_eq!((after.range.start, &after.data[..]), (0, &b"x\n"[..]));
    bench.ack(&before);
    bench.ack(&after);
    // Longer than before, and of the same length: told by the bytes.
    std::fs::write(bench.path("a.log"), "a longer line than before\n").unwrap();
    assert_eq!(bench.take(), texts(&[(0, "a longer line than before\n")]));
    std::fs::write(bench.path("a.log"), "A LONGER LINE THAN BEFORE\n").unwrap();
    assert_eq!(bench.take(), texts(&[(0, "A LONGER LINE THAN BEFORE\n")]));
    bench.poll();
    bench.collector = None;
    std::fs::write(bench.path("a.log"), "written anew while nobody looked\n").unwrap();
    bench.restart();
    assert_eq!(bench.take(), texts(&[(0, "written anew while nobody looked\n")]));
}

#[test]
fn unread_bytes_that_are_truncated_are_counted() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\npartial");
    bench.take();
    std::fs::write(bench.path("a.log"), "").unwrap();
    bench.take();
    assert_eq!(bench.lost("a.log"), (7, vec![(4, 11, LossCause::Truncated)]));
    assert_eq!(bench.it().totals().lost_bytes, 7);
}

#[test]
fn a_renamed_file_is_read_to_its_end() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\n");
    let stream = bench.poll().unwrap().stream;
    std::fs::rename(bench.path("a.log"), bench.path("a.log.1")).unwrap();
    bench.append("a.log.1", "two\n");
    bench.append("a.log", "new\n");
    let chunks = bench.drain();
    let of =
        |old: bool| chunks.iter().filter(|c| (c.stream == stream) == old).map(|c| c.data.to_vec()).collect::<Vec<_>>();
    assert_eq!((of(true), of(false)), (vec![b"two\n".to_vec()], vec![b"new\n".to_vec()]));
    assert_eq!(bench.status("a.log.1").state, FileState::Draining);
    // Renamed again while nobody watches.
    bench.collector = None;
    std::fs::rename(bench.path("a.log.1"), bench.path("a.log.2")).unwrap();
    bench.append("a.log.2", "three\n");
    bench.restart();
    let chunks = bench.drain();
    let old: Vec<u8> = chunks.iter().filter(|c| c.stream == stream).flat_map(|c| c.data.to_vec()).collect();
    assert_eq!(old, b"one\ntwo\nthree\n");
}

#[test]
fn a_deleted_file_is_held_until_it_is_acked() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\ntwo\n");
    let now = bench.now;
    let first = bench.it().poll(now, 4).unwrap();
    assert_eq!(&first.data[..], b"one\n");
    std::fs::remove_file(bench.path("a.log")).unwrap();
    bench.pass(Duration::from_secs(60));
    assert_eq!(&bench.poll().unwrap().data[..], b"two\n");
    bench.pass(Duration::from_secs(60));
    assert!(bench.poll().is_none());
    assert_eq!(bench.it().totals().open_files, 1, "its second line isn't acked");
    bench.it().reconnect();
    let again = bench.drain();
    again.iter().for_each(|chunk| bench.ack(chunk));
    bench.pass(Duration::from_secs(60));
    assert!(bench.poll().is_none());
    assert_eq!(bench.it().totals().files, 0);
    bench.append("a.log", "new\n");
    assert_eq!(bench.take(), texts(&[(0, "new\n")]));
}

#[test]
fn tiny_and_empty_files_are_followed() {
    let mut bench = Bench::new("*.log");
    bench.append("empty.log", "");
    bench.append("one.log", "\n");
    assert_eq!(bench.take(), texts(&[(0, "\n")]));
    assert_eq!(bench.it().totals().files, 2);
    bench.append("empty.log", "x");
    assert_eq!(bench.take(), []);
    bench.pass(Duration::from_secs(6));
    assert_eq!(bench.take(), texts(&[(0, "x")]));
}

#[test]
fn folders_that_appear_later_are_found() {
    let mut bench = Bench::new("x/**/*.log");
    assert_eq!(bench.take(), []);
    std::fs::create_dir_all(bench.path("x/y/z")).unwrap();
    bench.append("x/a.log", "1\n");
    bench.append("x/y/z/b.log", "2\n");
    bench.pass(Duration::from_millis(300));
    assert_eq!(bench.take().len(), 2);
    bench.append("x/y/z/c.log", "3\n");
    assert_eq!(bench.take(), texts(&[(0, "3\n")]), "the new folder is watched");
}

#[test]
fn one_rule_owns_a_file() {
    let mut bench = Bench::new("*.log");
    let dir = bench.dir.path().to_owned();
    bench.rules.push(rule(&dir, "b", "a*"));
    bench.rules.push(TailRule { priority: 5, ..rule(&dir, "z", "b.log") });
    bench.apply();
    bench.append("a.log", "1\n");
    bench.append("b.log", "2\n");
    let mut owners: Vec<_> = bench.drain().iter().map(|c| (c.data.to_vec(), c.source.rule.id().to_owned())).collect();
    owners.sort();
    assert_eq!(owners, [(b"1\n".to_vec(), "a".into()), (b"2\n".to_vec(), "z".into())]);
    bench.scan();
    bench.drain();
    let rules = bench.it().rules();
    let shadowed: Vec<_> = rules.iter().map(|r| (r.name.id().to_owned(), r.files, r.shadowed)).collect();
    assert_eq!(shadowed, [("z".into(), 1, 0), ("a".into(), 1, 1), ("b".into(), 0, 1)]);
    let problem = &rules[2].problems[0];
    assert_eq!((problem.reason, problem.detail.as_str()), ("SHADOWED", "rules/a"));
}

fn shadows(bench: &mut Bench, rule: usize) -> (usize, usize, String) {
    let rule = &bench.it().rules()[rule];
    let owners: Vec<&str> = rule.shadowed_by.iter().map(|owner| owner.id()).collect();
    (rule.files, rule.shadowed, owners.join(" "))
}

#[test]
fn who_owns_the_files_of_a_rule_is_told() {
    let mut bench = Bench::new("a*.log");
    let dir = bench.dir.path().to_owned();
    bench.rules.push(rule(&dir, "b", "b*.log"));
    bench.rules.push(TailRule { globs: vec![], ..rule(&dir, "c", "") });
    bench.rules[2].globs = ["*1.log", "*.log"].map(|glob| bench.path(glob).display().to_string()).to_vec();
    for name in ["a1.log", "a2.log", "b1.log"] {
        bench.append(name, "1\n");
    }
    bench.apply();
    bench.take();
    assert_eq!(shadows(&mut bench, 2), (0, 3, "a b".into()), "a file that two globs find counts once");
    bench.rules[1].priority = -1;
    let before = bench.it().activity();
    bench.apply();
    bench.take();
    assert_eq!(shadows(&mut bench, 1), (1, 2, "a".into()), "by precedence c comes before b now");
    assert_eq!(shadows(&mut bench, 2), (0, 1, "c".into()));
    assert!(bench.it().activity() > before);
    bench.rules.remove(0);
    bench.apply();
    bench.take();
    assert_eq!(shadows(&mut bench, 0), (3, 0, String::new()), "the owner is gone");
}

#[test]
fn a_file_stays_with_the_rule_that_found_it_whatever_its_names() {
    let mut bench = Bench::new("a.log");
    let dir = bench.dir.path().to_owned();
    bench.rules.push(rule(&dir, "b", "a.log.1"));
    bench.apply();
    bench.append("a.log", "1\n");
    bench.take();
    std::fs::rename(bench.path("a.log"), bench.path("a.log.1")).unwrap();
    bench.scan();
    assert_eq!(bench.take(), []);
    assert_eq!((shadows(&mut bench, 0), shadows(&mut bench, 1)), ((1, 0, String::new()), (0, 1, "a".into())));
}

#[test]
fn the_owner_that_is_told_is_the_rule_that_reads_the_file() {
    let mut bench = Bench::new("a.log");
    let dir = bench.dir.path().to_owned();
    bench.rules.push(rule(&dir, "b", "second.log"));
    bench.rules.push(rule(&dir, "c", "*.log"));
    bench.append("a.log", "1\n");
    std::fs::hard_link(bench.path("a.log"), bench.path("second.log")).unwrap();
    bench.apply();
    assert_eq!(bench.take(), texts(&[(0, "1\n")]));
    assert_eq!(shadows(&mut bench, 0), (1, 0, String::new()));
    assert_eq!(shadows(&mut bench, 1), (0, 1, "a".into()));
    assert_eq!(shadows(&mut bench, 2), (0, 2, "a".into()), "b is shadowed itself");

    // The third found it first, by a name that is its own; the second name comes to it later.
    bench.append("own.log", "2\n");
    assert_eq!(bench.take(), texts(&[(0, "2\n")]));
    std::fs::remove_file(bench.path("second.log")).unwrap();
    std::fs::hard_link(bench.path("own.log"), bench.path("second.log")).unwrap();
    bench.scan();
    assert_eq!(bench.take(), []);
    assert_eq!(shadows(&mut bench, 0), (1, 0, String::new()));
    assert_eq!(shadows(&mut bench, 1), (0, 1, "c".into()));
    assert_eq!(shadows(&mut bench, 2), (1, 1, "a".into()), "its own file isn't another's");
}

#[test]
fn what_cannot_be_read_is_reported_and_stops_nothing() {
    let mut bench = Bench::new("*");
    std::fs::write(bench.path("binary"), b"ELF\0\0\x01").unwrap();
    symlink("nowhere", bench.path("dangling")).unwrap();
    symlink("/etc/hostname", bench.path("outside")).unwrap();
    std::fs::create_dir(bench.path("folder")).unwrap();
    bench.append("fine", "1\n");
    let folder = bench.path("folder").display().to_string();
    bench.rules[0].globs.push(folder);
    bench.apply();
    assert_eq!(bench.take(), texts(&[(0, "1\n")]));
    let rules = bench.it().rules();
    let mut reasons: Vec<_> = rules[0].problems.iter().map(|p| p.reason).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["BINARY", "NOT_ALLOWED", "NOT_A_REGULAR_FILE", "NOT_FOUND"]);
    assert_eq!((rules[0].files, rules[0].refused), (1, 4));
    let by_reason: Vec<(&str, usize)> = rules[0].refused_by.iter().map(|(reason, files)| (*reason, *files)).collect();
    assert_eq!(by_reason, [("BINARY", 1), ("NOT_ALLOWED", 1), ("NOT_A_REGULAR_FILE", 1), ("NOT_FOUND", 1)]);
    bench.append("fine", "2\n");
    assert_eq!(bench.take(), texts(&[(2, "2\n")]));
}

#[test]
fn links_and_second_names_are_one_file() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "1\n");
    symlink("a.log", bench.path("link.log")).unwrap();
    std::fs::hard_link(bench.path("a.log"), bench.path("hard.log")).unwrap();
    assert_eq!(bench.take(), texts(&[(0, "1\n")]));
    std::fs::remove_file(bench.path("a.log")).unwrap();
    bench.append("hard.log", "2\n");
    assert_eq!(bench.take(), texts(&[(2, "2\n")]));
}

#[test]
fn start_at_end_holds_for_what_is_there_first() {
    let mut bench = Bench::new("*.log");
    bench.append("old.log", "old\nbegun ");
    bench.rules = vec![TailRule { start_at: StartAt::End, ..rule(bench.dir.path(), "e", "*.log") }];
    bench.apply();
    assert_eq!(bench.take(), []);
    bench.append("old.log", "line\n");
    bench.append("new.log", "new\n");
    assert_eq!(bench.take(), texts(&[(4, "begun line\n"), (0, "new\n")]));
    bench.poll();
    bench.collector = None;
    bench.append("later.log", "later\n");
    bench.restart();
    assert_eq!(bench.take(), texts(&[(0, "later\n")]));
}

#[test]
fn pace_is_kept_and_changes_at_once() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", &"123456789\n".repeat(10_000));
    bench.rules[0].pace.bytes_per_second = Some(10_000);
    bench.rules[0].revision = 2;
    bench.apply();
    let mut bytes = 0;
    for _ in 0..20 {
        bench.pass(Duration::from_millis(100));
        bytes += bench.take().iter().map(|(_, text)| text.len()).sum::<usize>();
    }
    assert!((20_000..=31_100).contains(&bytes), "{bytes} in 2 s");
    bench.rules[0].pace = Pace { bytes_per_second: None, lines_per_second: Some(100) };
    bench.apply();
    let lines: usize = bench.take().iter().map(|(_, text)| text.lines().count()).sum();
    assert!((90..=110).contains(&lines), "{lines}");
    bench.rules[0].pace = Pace::default();
    bench.apply();
    assert_eq!(bytes + lines * 10 + bench.take().iter().map(|(_, t)| t.len()).sum::<usize>(), 100_000);
}

#[test]
fn unacked_bytes_are_bounded_and_credit_is_kept() {
    let mut bench = Bench::with("*.log", |settings| settings.max_in_flight_bytes = 3 << 20);
    bench.append("a.log", &"0123456789abcde\n".repeat(1 << 18));
    let now = bench.now;
    assert!(bench.it().poll(now, 0).is_none());
    assert!(bench.it().poll(now, 15).is_none(), "no event is so small");
    assert_eq!(bench.it().poll(now, 40).unwrap().range.end, 32);
    let chunks = bench.drain();
    assert_eq!(bench.it().totals().in_flight_bytes, 3 << 20);
    chunks.iter().for_each(|chunk| bench.ack(chunk));
    assert!(bench.poll().is_some());
}

#[test]
fn a_long_line_is_split_and_marked() {
    let mut bench = Bench::new("*.log");
    let text = format!("{}\nshort\n", "x".repeat(10_000_000));
    bench.append("a.log", &text);
    let chunks = bench.drain();
    let whole: Vec<u8> = chunks.iter().flat_map(|c| c.data.to_vec()).collect();
    assert!(whole == text.as_bytes());
    assert_eq!(chunks.len(), 10);
    assert!(chunks[0].continuations.is_empty() && chunks[1..].iter().all(|c| *c.continuations == [0]));
    assert_eq!((chunks[9].events, chunks[9].lengths.clone()), (2, None));
}

#[test]
fn a_new_framing_begins_where_all_is_acked() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "1\n x\n2\n");
    let first = bench.poll().unwrap();
    assert_eq!(first.events, 3);
    bench.rules[0].framing = starts(r"^\d");
    bench.rules[0].revision = 2;
    bench.apply();
    bench.append("a.log", "3\n y\n4\n");
    assert!(bench.poll().is_none(), "the first chunk isn't acked");
    // A crash: what was sent is cut as before, and so is all that may have been sent.
    bench.restart();
    let again = bench.poll().unwrap();
    assert_eq!((again.events, again.source.revision), (6, 1));
    bench.ack(&again);
    bench.append("a.log", "5\n y\n6\n");
    let new = bench.poll().unwrap();
    assert_eq!((new.events, new.lengths.as_deref(), new.source.revision), (1, Some(&[5][..]), 2));
}

#[test]
fn a_rule_that_cannot_run_leaves_its_former_revision_running() {
    let mut bench = Bench::new("*.log");
    let now = bench.now;
    let mut bad = bench.rules.clone();
    bad[0].globs = vec!["relative".into()];
    bad[0].revision = 2;
    let outcomes = bench.it().apply(bad, now);
    assert_eq!(outcomes[0].1.as_ref().unwrap_err().field, "paths[0]");
    assert_eq!(bench.it().rules()[0].running_revision, 1);
    bench.append("a.log", "1\n");
    assert_eq!(bench.take(), texts(&[(0, "1\n")]));
}

#[test]
fn a_rule_that_comes_back_goes_on_where_it_was() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "1\n");
    let chunk = bench.poll().unwrap();
    let rules = std::mem::take(&mut bench.rules);
    bench.apply();
    bench.append("a.log", "2\n");
    assert!(bench.drain().is_empty());
    bench.ack(&chunk);
    bench.rules = rules;
    bench.apply();
    assert_eq!(bench.take(), texts(&[(2, "2\n")]));
}

#[test]
fn files_take_turns_within_the_budget_of_open_files() {
    let mut bench = Bench::with("*.log", |settings| settings.max_open_files = 3);
    for file in 0..20 {
        bench.append(&format!("{file}.log"), &"0123456789\n".repeat(200_000));
    }
    let mut first_round = HashSet::new();
    for _ in 0..20 {
        let chunk = bench.poll().unwrap();
        bench.ack(&chunk);
        first_round.insert(chunk.stream);
        assert!(bench.it().totals().open_files <= 3);
    }
    assert_eq!(first_round.len(), 20, "each file has had its turn");
    let rest: usize = bench.take().iter().map(|(_, text)| text.len()).sum();
    assert!(rest > 0);
    assert_eq!(bench.it().totals().read_bytes, 20 * 2_200_000);
}

#[test]
fn too_many_files_are_refused_and_counted() {
    let mut bench = Bench::with("*.log", |settings| settings.max_files = 2);
    for file in 0..4 {
        bench.append(&format!("{file}.log"), "1\n");
    }
    bench.scan();
    assert_eq!(bench.take().len(), 2);
    let rules = bench.it().rules();
    assert_eq!((rules[0].files, rules[0].refused, rules[0].problems[0].reason), (2, 2, "TOO_MANY_FILES"));
}

#[test]
fn a_thread_that_waits_is_woken_by_growth_and_by_its_waker() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "1\n");
    bench.take();
    let waker = bench.it().waker();
    let long = Duration::from_secs(9);
    waker.wake();
    let start = Instant::now();
    bench.it().wait(start, long);
    bench.append("a.log", "2\n");
    bench.it().wait(start, long);
    assert!(start.elapsed() < long, "it was woken, not timed out");
    assert_eq!(bench.take(), texts(&[(2, "2\n")]));
}

#[test]
fn any_file_name_will_do() {
    use std::os::unix::ffi::OsStrExt;
    let mut bench = Bench::new("*.log");
    let odd = bench.path("x").with_file_name(std::ffi::OsStr::from_bytes(b"a \xff\n.log"));
    std::fs::write(&odd, "odd\n").unwrap();
    bench.append("ä ß.log", "fine\n");
    assert_eq!(bench.take().len(), 2);
    bench.poll();
    bench.restart();
    assert_eq!(bench.take(), []);
}

#[test]
fn without_rules_it_sleeps() {
    let mut bench = Bench::new("*.log");
    bench.rules.clear();
    bench.apply();
    bench.take();
    let waker = bench.it().waker();
    let (set, woken) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        set.send(()).unwrap();
        waker.wake();
    });
    let mut rounds = 0;
    while woken.try_recv().is_err() {
        bench.it().wait(Instant::now(), Duration::from_secs(30));
        rounds += 1;
    }
    assert!(rounds < 20, "it woke {rounds} times for nothing");
}

#[test]
fn what_drains_keeps_its_start() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "old\n");
    bench.rules = vec![TailRule { start_at: StartAt::End, ..rule(bench.dir.path(), "e", "*.log") }];
    bench.apply();
    assert_eq!(bench.take(), []);
    bench.append("a.log", "new\n");
    bench.poll().unwrap();
    bench.rules.clear();
    bench.apply();
    let status = bench.status("a.log");
    assert_eq!((status.start, status.acked, status.size), (4, 4, 8));
}

#[test]
fn what_was_deleted_unread_is_told_until_it_is_found_again() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\n");
    bench.append("b.log", "b\n");
    assert_eq!(bench.take().len(), 2);
    bench.append("a.log", "two\n");
    let sent = bench.drain();
    assert_eq!(sent.len(), 1);
    bench.pass(Duration::from_secs(1));
    bench.poll();
    bench.collector = None;
    let elsewhere = bench.dir.path().join("elsewhere");
    std::fs::rename(bench.path("a.log"), &elsewhere).unwrap();
    std::fs::remove_file(bench.path("b.log")).unwrap();
    bench.restart();
    bench.poll();
    let status = bench.status("a.log");
    assert_eq!(
        (status.stream, status.lost_bytes, status.lag(), status.state),
        (sent[0].stream, 4, 0, FileState::Draining)
    );
    assert_eq!(bench.lost("a.log"), (4, vec![(4, 8, LossCause::Gone)]));
    assert_eq!(bench.it().totals().lost_bytes, 4, "and nothing of b.log, which was read");
    bench.restart();
    bench.poll();
    assert_eq!((bench.status("a.log").lost_bytes, bench.it().totals().lost_bytes), (4, 0), "it is counted once");
    std::fs::rename(&elsewhere, bench.path("a.log")).unwrap();
    bench.scan();
    assert_eq!(bench.take(), texts(&[(4, "two\n")]));
    assert_eq!(bench.status("a.log").lost_bytes, 0);
}

#[test]
fn a_closed_file_that_is_deleted_unread_is_told() {
    let mut bench = Bench::with("*.log", |settings| settings.max_open_files = 1);
    bench.append("a.log", "one\n");
    assert_eq!(bench.take().len(), 1);
    bench.append("a.log", "begun");
    bench.take();
    bench.append("b.log", "b\n");
    assert_eq!(bench.take().len(), 1);
    std::fs::remove_file(bench.path("a.log")).unwrap();
    bench.scan();
    bench.take();
    assert_eq!(bench.lost("a.log"), (5, vec![(4, 9, LossCause::Gone)]));
    assert_eq!(bench.it().totals().lost_bytes, 5);
}

#[test]
fn unacked_bytes_of_a_truncated_file_are_lost_by_a_crash() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\ntwo\n");
    let before = bench.poll().unwrap();
    std::fs::write(bench.path("a.log"), "x\n").unwrap();
    let after = bench.poll().unwrap();
    assert_eq!(after.range.start, 0);
    bench.restart();
    bench.poll().unwrap();
    assert_eq!(bench.lost("a.log"), (8, vec![(0, 8, LossCause::Unacked)]));
    assert_eq!(bench.it().totals().lost_bytes, 8);
    bench.restart();
    let again = bench.poll().unwrap();
    assert_eq!((bench.lost("a.log").0, bench.it().totals().lost_bytes), (8, 0), "it is counted once");
    bench.ack(&again);
    // What is acked in time isn't lost.
    std::fs::write(bench.path("a.log"), "").unwrap();
    bench.drain();
    bench.append("a.log", "yyyy\n");
    let sent = bench.drain();
    std::fs::write(bench.path("a.log"), "z\n").unwrap();
    assert_eq!((sent.len(), bench.drain().len()), (1, 1));
    sent.iter().for_each(|chunk| bench.ack(chunk));
    bench.poll();
    bench.restart();
    bench.poll();
    assert_eq!((before.range.len(), bench.lost("a.log").0), (8, 8));
}

#[test]
fn with_a_lost_state_files_are_read_from_their_beginning() {
    let mut bench = Bench::new("*.log");
    bench.rules = vec![TailRule { start_at: StartAt::End, ..rule(bench.dir.path(), "e", "*.log") }];
    bench.apply();
    bench.poll();
    bench.append("a.log", "one\n");
    assert_eq!(bench.take().len(), 1);
    bench.collector = None;
    std::fs::write(bench.dir.path().join("state/tail.redb"), "not a database".repeat(1000)).unwrap();
    bench.append("a.log", "two\n");
    bench.restart();
    assert_eq!(bench.take(), texts(&[(0, "one\ntwo\n")]));
    // Later rules begin at the end again.
    bench.pass(Duration::from_secs(1));
    std::fs::write(bench.path("b.txt"), "old\n").unwrap();
    bench.poll();
    let dir = bench.dir.path().to_owned();
    bench.rules.push(TailRule { start_at: StartAt::End, ..rule(&dir, "f", "*.txt") });
    bench.apply();
    assert_eq!(bench.take(), []);
}

#[test]
fn a_file_that_goes_to_another_rule_goes_to_its_topic() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "1\n");
    bench.take();
    let other = TailRule { topic: "other".parse().unwrap(), ..rule(bench.dir.path(), "b", "*.log") };
    bench.rules.clear();
    bench.apply();
    bench.append("a.log", "2\n");
    bench.rules.push(other);
    bench.apply();
    let chunk = bench.poll().unwrap();
    assert_eq!((chunk.range.start, chunk.source.topic.as_str()), (2, "other"));
}

#[test]
fn after_a_restart_only_what_may_have_been_sent_goes_to_the_former_topic() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", &"0123456789abcde\n".repeat(20 << 16));
    let first = bench.poll().unwrap();
    bench.ack(&first);
    bench.poll();
    bench.rules[0].topic = "other".parse().unwrap();
    bench.restart();
    let mut ends = HashMap::new();
    while let Some(chunk) = bench.poll() {
        bench.ack(&chunk);
        ends.insert(chunk.source.topic.as_str().to_owned(), chunk.range.end);
    }
    assert!((16 << 20..18 << 20).contains(&ends["t"]), "{ends:?}");
    assert_eq!(ends["other"], 20 << 20);
}

#[test]
fn chunks_leave_room_for_what_is_stored_with_them() {
    let mut bench = Bench::new("*.log");
    let long = format!("{}\n", "x".repeat(1_000_000));
    bench.append("a.log", &format!("{}{long}{}", format!("{}\n", "l".repeat(63)).repeat(1 << 14), "short\n".repeat(9)));
    let lengths: Vec<u64> = bench.drain().iter().map(|chunk| chunk.range.len()).collect();
    assert_eq!(lengths, [960 << 10, 64 << 10, long.len() as u64, 54]);
}
