//! What was acked is read again from its file, or the reason is told why not.

use logmesh_types::ByteRange;

use super::tests::{Bench, starts};
use super::*;
use crate::follow::{Again, NotAgain, NotAgainCause, Recall};

const TEXT: &str =
    "one\ntwo\nthree\nfour of the lines that are longer than a head\nfive, so that there is more of it\n";

/// All of `a.log` is acked.
fn acked(text: &str) -> (Bench, StreamId) {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", text);
    bench.take();
    let stream = bench.status("a.log").stream;
    (bench, stream)
}

impl Bench {
    fn recall(&mut self, stream: StreamId) -> Recall {
        self.it().recall(stream).unwrap()
    }

    fn guard(&self) -> PathGuard {
        PathGuard::new(&[format!("{}/logs/**", self.dir.path().display())], &[]).unwrap()
    }

    fn again(&mut self, stream: StreamId) -> Result<Again, NotAgain> {
        let guard = self.guard();
        self.recall(stream).open(&guard)
    }
}

fn read(again: &mut Again, start: u64, end: u64) -> Result<String, NotAgainCause> {
    let chunk = again.read(ByteRange::new(start, end), &"t".parse().unwrap()).map_err(|error| error.cause)?;
    assert!(chunk.again && chunk.range.start == start);
    Ok(String::from_utf8_lossy(&chunk.data).into_owned())
}

#[test]
fn a_range_is_read_by_whatever_name_the_file_has() {
    let (mut bench, stream) = acked(TEXT);
    assert_eq!(read(&mut bench.again(stream).unwrap(), 4, 14), Ok("two\nthree\n".to_owned()));
    std::fs::rename(bench.path("a.log"), bench.path("a.log.1")).unwrap();
    bench.rules.clear();
    bench.apply();
    bench.restart();
    let mut again = bench.again(stream).unwrap();
    assert_eq!(read(&mut again, 0, 4), Ok("one\n".to_owned()));
    assert_eq!(read(&mut again, 8, 14), Ok("three\n".to_owned()));
}

#[test]
fn only_what_was_collected_is_read_and_only_where_events_are() {
    let (mut bench, stream) = acked(TEXT);
    bench.append("a.log", "unacked\n");
    let length = TEXT.len() as u64;
    let mut again = bench.again(stream).unwrap();
    assert_eq!(read(&mut again, 4, length + 8), Err(NotAgainCause::NotCollected));
    assert_eq!(read(&mut again, 5, 14), Err(NotAgainCause::Changed), "no event begins there");
    assert_eq!(read(&mut again, 4, 10), Ok("two\n".to_owned()));
    assert_eq!(read(&mut again, 8, 10), Err(NotAgainCause::Changed), "no event ends there");
    let other = again.read(ByteRange::new(0, 4), &"other".parse().unwrap()).unwrap_err();
    assert_eq!(other.cause, NotAgainCause::NotCollected);
    assert_eq!(read(&mut again, 0, 4), Ok("one\n".to_owned()), "after all of that");
}

#[test]
fn what_is_another_file_now_is_not_read() {
    let cause = |change: &dyn Fn(&Bench)| {
        let (mut bench, stream) = acked(TEXT);
        let recall = bench.recall(stream);
        change(&bench);
        recall.open(&bench.guard()).err().map(|error| error.cause)
    };
    let write = |bench: &Bench, text: &str| std::fs::write(bench.path("a.log"), text).unwrap();
    assert_eq!(cause(&|_| {}), None);
    assert_eq!(cause(&|bench| std::fs::remove_file(bench.path("a.log")).unwrap()), Some(NotAgainCause::Gone));
    assert_eq!(cause(&|bench| write(bench, &TEXT[..20])), Some(NotAgainCause::Changed));
    assert_eq!(cause(&|bench| write(bench, &TEXT.replace("one", "ONE"))), Some(NotAgainCause::Changed));
    assert_eq!(cause(&|bench| write(bench, &TEXT.replace("of it", "of IT"))), Some(NotAgainCause::Changed));
    let renamed = |bench: &Bench| std::fs::rename(bench.path("a.log"), bench.dir.path().join("a.log")).unwrap();
    assert_eq!(cause(&renamed), Some(NotAgainCause::Gone), "it may lie anywhere");
    let replaced = |bench: &Bench| {
        std::fs::rename(bench.path("a.log"), bench.dir.path().join("a.log")).unwrap();
        std::os::unix::fs::symlink(bench.dir.path().join("a.log"), bench.path("a.log")).unwrap();
    };
    assert_eq!(cause(&replaced), Some(NotAgainCause::NotAllowed));
}

#[test]
fn a_file_that_changes_while_it_is_read_is_left() {
    let (mut bench, stream) = acked(TEXT);
    let mut again = bench.again(stream).unwrap();
    assert!(read(&mut again, 0, 4).is_ok());
    std::fs::write(bench.path("a.log"), TEXT.replace("one", "ONE")).unwrap();
    assert_eq!(read(&mut again, 4, 8), Err(NotAgainCause::Changed));
}

#[test]
fn each_range_is_cut_under_the_rule_of_its_time() {
    let (mut bench, stream) = acked("1 a\n b\n2\n");
    // The last one waits for more; time ends it.
    bench.rules[0].framing = starts(r"^\d");
    bench.apply();
    bench.append("a.log", "3 c\n d\n4\n e\n");
    bench.take();
    bench.pass(Duration::from_secs(6));
    assert_eq!(bench.take(), [(16, "4\n e\n".to_owned())]);
    bench.append("a.log", " f\n5\n6\n");
    bench.take();
    let mut again = bench.again(stream).unwrap();
    let mut events = |start, end| {
        let chunk = again.read(ByteRange::new(start, end), &"t".parse().unwrap()).unwrap();
        (chunk.range.end, chunk.source.revision, chunk.lengths.map(|lengths| lengths.to_vec()))
    };
    assert_eq!(events(4, 21), (9, 1, None), "lines, up to where the rule changed");
    assert_eq!(events(9, 21), (21, 1, Some(vec![7, 5])));
    assert_eq!(events(16, 26), (21, 1, Some(vec![5])), "up to the cut");
    assert_eq!(events(21, 26), (26, 1, Some(vec![3, 2])));
}

#[test]
fn what_an_earlier_version_cut_is_not_cut_anew() {
    let (mut bench, stream) = acked(TEXT);
    let mut recall = bench.recall(stream);
    recall.record.past = None;
    let mut again = recall.open(&bench.guard()).unwrap();
    assert_eq!(read(&mut again, 0, 4), Err(NotAgainCause::Forgotten));
}
