//! `copytruncate`: the copy goes on where reading stood.

use super::tests::{Bench, texts};
use super::*;
use crate::status::LossCause;

/// As long as the bytes by which a copy is told.
pub(super) const ONE: &str = "one line that has as many bytes as it takes to tell a copy by them\n";

/// Copies and truncates, as logrotate does.
pub(super) fn copytruncate(bench: &Bench, name: &str, copy: &str) {
    std::fs::copy(bench.path(name), bench.path(copy)).unwrap();
    std::fs::File::create(bench.path(name)).unwrap();
}

fn bytes_of(chunks: &[Chunk], stream: StreamId) -> Vec<u8> {
    chunks.iter().filter(|chunk| chunk.stream == stream).flat_map(|chunk| chunk.data.to_vec()).collect()
}

#[test]
fn what_was_unread_goes_on_in_the_copy_whatever_its_name() {
    for (glob, copy) in [("app.log*", "app.log.1"), ("app.log", "app.log.1")] {
        let mut bench = Bench::new(glob);
        bench.append("app.log", ONE);
        let first = bench.poll().unwrap();
        bench.append("app.log", "two\nthree\n");
        copytruncate(&bench, "app.log", copy);
        bench.append("app.log", "four\n");
        let rest = bench.drain();
        assert_eq!(bytes_of(&rest, first.stream), b"two\nthree\n", "{glob}");
        assert_eq!(rest.iter().map(|chunk| chunk.data.len()).sum::<usize>(), 15, "{glob}: and the new file's line");
        bench.ack(&first);
        rest.iter().for_each(|chunk| bench.ack(chunk));
        bench.pass(Duration::from_secs(60));
        assert_eq!(bench.take(), [], "{glob}");
        assert_eq!((bench.lost("app.log").0, bench.lost(copy).0, bench.it().totals().lost_bytes), (0, 0, 0), "{glob}");
    }
}

#[test]
fn a_copy_of_what_was_read_is_not_read_again_while_the_original_goes_on() {
    let mut bench = Bench::new("app.log*");
    bench.append("app.log", ONE);
    assert_eq!(bench.take(), texts(&[(0, ONE)]));
    std::fs::copy(bench.path("app.log"), bench.path("app.log.1")).unwrap();
    assert_eq!(bench.take(), [], "it waits for what becomes of its original");
    // Written after the copy and read before the truncation.
    bench.append("app.log", "three\n");
    assert_eq!(bench.take(), texts(&[(ONE.len() as u64, "three\n")]));
    std::fs::File::create(bench.path("app.log")).unwrap();
    assert_eq!(bench.take(), []);
    bench.pass(Duration::from_secs(60));
    bench.append("app.log", "four\n");
    assert_eq!(bench.take(), texts(&[(0, "four\n")]));
    bench.restart();
    assert_eq!(bench.take(), []);
}

#[test]
fn a_plain_copy_is_a_file_of_its_own() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", ONE);
    bench.take();
    std::fs::copy(bench.path("a.log"), bench.path("b.log")).unwrap();
    assert_eq!(bench.take(), []);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.take(), []);
    bench.restart();
    assert_eq!(bench.take(), [], "that it waits is known after a crash");
    bench.pass(Duration::from_secs(4));
    assert_eq!(bench.take(), texts(&[(0, ONE)]));
    bench.append("b.log", "three\n");
    assert_eq!(bench.take(), texts(&[(ONE.len() as u64, "three\n")]));
}

#[test]
fn files_that_only_begin_alike_are_read_at_once() {
    let mut bench = Bench::new("*.log");
    let header = "# a header that is longer than what is looked at first of a file, as many programs write\n";
    bench.append("a.log", &format!("{header}one\n"));
    bench.take();
    bench.append("b.log", &format!("{header}two\n"));
    assert_eq!(bench.take().len(), 1);
    bench.append("c.log", "\n");
    bench.take();
    bench.append("d.log", "\n");
    assert_eq!(bench.take(), texts(&[(0, "\n")]), "a byte is read at once");
}

#[test]
fn many_equal_files_that_come_at_once_are_read_at_once() {
    let mut bench = Bench::new("*.log");
    for file in 0..50 {
        bench.append(&format!("{file}.log"), "the same line in each of them\n");
    }
    assert_eq!(bench.take().len(), 50);
}

#[test]
fn it_holds_while_the_agent_is_down() {
    for (glob, copy) in [("app.log*", "app.log.1"), ("app.log", "app.log.1"), ("*app.log", "0-app.log")] {
        let mut bench = Bench::new(glob);
        bench.append("app.log", ONE);
        let first = bench.poll().unwrap();
        bench.ack(&first);
        bench.poll();
        bench.append("app.log", "two\n");
        let second = bench.poll().unwrap();
        bench.poll();
        bench.collector = None;
        bench.append("app.log", "three\n");
        copytruncate(&bench, "app.log", copy);
        bench.append("app.log", "four\n");
        bench.restart();
        let chunks = bench.drain();
        assert_eq!(bytes_of(&chunks, first.stream), b"two\nthree\n", "{glob} {:?}", second.range);
        assert_eq!(chunks.iter().map(|chunk| chunk.data.len()).sum::<usize>(), 15, "{glob}");
        assert_eq!(bench.it().totals().lost_bytes, 0, "{glob}");
        chunks.iter().for_each(|chunk| bench.ack(chunk));
        bench.poll();
        bench.restart();
        assert_eq!(bench.take(), [], "{glob}");
    }
}

#[test]
fn a_copy_that_is_truncated_itself_has_a_stream_of_its_own() {
    let mut bench = Bench::new("app.log*");
    bench.append("app.log", ONE);
    let first = bench.poll().unwrap();
    copytruncate(&bench, "app.log", "app.log.1");
    bench.append("app.log", "two\n");
    let second = bench.drain();
    std::fs::write(bench.path("app.log.1"), "x\n").unwrap();
    let third = bench.drain();
    assert_eq!((second.len(), third.len()), (1, 1));
    let streams: HashSet<_> = [&first, &second[0], &third[0]].map(|chunk| chunk.stream).into();
    assert_eq!(streams.len(), 3);
}

#[test]
fn a_copy_that_lacks_the_end_tells_what_is_lost() {
    let mut bench = Bench::new("app.log");
    let line = "x".repeat(99);
    bench.append("app.log", &format!("{line}\nbegun"));
    let first = bench.poll().unwrap();
    bench.poll();
    bench.ack(&first);
    std::fs::write(bench.path("app.log.1"), format!("{line}\nbeg")).unwrap();
    std::fs::File::create(bench.path("app.log")).unwrap();
    bench.scan();
    assert_eq!(bench.take(), []);
    bench.pass(Duration::from_secs(6));
    assert_eq!(bench.take(), texts(&[(100, "beg")]));
    assert_eq!(bench.lost("app.log.1"), (2, vec![(103, 105, LossCause::Truncated)]));
    assert_eq!(bench.it().totals().lost_bytes, 2);
}

#[test]
fn unacked_bytes_of_a_truncated_file_that_has_a_copy_survive_a_crash() {
    let mut bench = Bench::new("app.log");
    bench.append("app.log", ONE);
    let first = bench.poll().unwrap();
    copytruncate(&bench, "app.log", "app.log.1");
    bench.append("app.log", "two\n");
    let second = bench.poll().unwrap();
    bench.restart();
    let again = bench.drain();
    assert_eq!((bytes_of(&again, first.stream), again.len()), (ONE.as_bytes().to_vec(), 2));
    assert_eq!((second.range.start, bench.it().totals().lost_bytes), (0, 0));
}

#[test]
fn generations_that_come_and_go_without_credit_are_kept_in_their_copies() {
    let mut bench = Bench::new("app.log");
    bench.append("app.log", ONE);
    let first = bench.poll().unwrap();
    bench.ack(&first);
    for rotation in 1..6 {
        bench.append(
            "app.log",
            &format!("{rotation} of the lines that are written while nobody takes a single one of them\n"),
        );
        let now = bench.now;
        assert!(bench.it().poll(now, 0).is_none());
        for old in (1..rotation).rev() {
            std::fs::rename(bench.path(&format!("app.log.{old}")), bench.path(&format!("app.log.{}", old + 1)))
                .unwrap();
        }
        copytruncate(&bench, "app.log", "app.log.1");
        assert!(bench.it().poll(now, 0).is_none());
    }
    let mut taken: Vec<String> = bench.take().into_iter().map(|(_, text)| text[..1].to_owned()).collect();
    taken.sort();
    assert_eq!(taken, ["1", "2", "3", "4", "5"]);
    assert_eq!(bench.it().totals().lost_bytes, 0);
}

#[test]
fn it_holds_with_one_open_file() {
    let mut bench = Bench::with("app.log*", |settings| settings.max_open_files = 1);
    bench.append("app.log", ONE);
    bench.append("app.log.other", "another file\n");
    let mut taken = bench.take().len();
    for rotation in 0..5 {
        bench.append("app.log", &format!("{rotation} unread\n"));
        copytruncate(&bench, "app.log", &format!("app.log.{rotation}"));
        bench.append(
            "app.log",
            &format!("{rotation} in the new one, with enough bytes to tell a copy of it by them {rotation}\n"),
        );
        taken += bench.take().iter().map(|(_, text)| text.lines().count()).sum::<usize>();
    }
    bench.pass(Duration::from_secs(9));
    taken += bench.take().len();
    assert_eq!((taken, bench.it().totals().lost_bytes), (12, 0));
}
