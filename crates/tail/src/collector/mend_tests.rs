//! What a review of the tailer found wrong.

use super::copy_tests::{ONE, copytruncate};
use super::tests::{Bench, texts};
use super::*;
use crate::status::{FileState, LossCause};

fn cut_to(bench: &Bench, name: &str, size: u64) {
    std::fs::File::options().write(true).open(bench.path(name)).unwrap().set_len(size).unwrap();
}

fn lengths(taken: &[(u64, String)]) -> usize {
    taken.iter().map(|(_, text)| text.len()).sum()
}

#[test]
fn the_bytes_that_a_file_is_written_anew_with_are_not_lost_of_the_old() {
    for first in ["one\n".to_owned(), ONE.repeat(20)] {
        for unread in ["", "begun"] {
            let mut bench = Bench::new("*.log");
            bench.append("a.log", &format!("{first}{unread}"));
            bench.take();
            std::fs::write(bench.path("a.log"), "other and longer than it was before\n".repeat(80)).unwrap();
            assert_eq!(lengths(&bench.take()), 36 * 80);
            let read = first.len() as u64;
            let lost = (!unread.is_empty()).then_some((read, read + 5, LossCause::Truncated));
            assert_eq!(bench.lost("a.log"), (unread.len() as u64, lost.into_iter().collect()));
            assert_eq!(bench.it().totals().lost_bytes, unread.len() as u64);
        }
    }
}

#[test]
fn the_bytes_after_a_copytruncate_are_not_lost_of_the_copy() {
    let mut bench = Bench::new("app.log");
    bench.append("app.log", ONE);
    bench.take();
    bench.append("app.log", "two\n");
    copytruncate(&bench, "app.log", "app.log.1");
    bench.append("app.log", &ONE.to_uppercase().repeat(3));
    assert_eq!(lengths(&bench.take()), 4 + 3 * ONE.len());
    assert_eq!((bench.it().totals().lost_bytes, bench.lost("app.log").0, bench.lost("app.log.1").0), (0, 0, 0));
}

#[test]
fn what_is_seen_and_waits_for_credit_is_told_when_it_is_gone() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\n");
    bench.take();
    let now = bench.now;
    assert!(bench.it().poll(now + Duration::from_millis(1), 0).is_none());
    bench.append("a.log", "two\nthree\n");
    assert!(bench.it().poll(now + Duration::from_millis(2), 0).is_none());
    std::fs::write(bench.path("a.log"), "x\n").unwrap();
    bench.take();
    assert_eq!(bench.lost("a.log"), (10, vec![(4, 14, LossCause::Truncated)]));
}

#[test]
fn copies_are_told_with_few_open_files() {
    let mut bench = Bench::with("*.log*", |settings| settings.max_open_files = 4);
    let text = |n: usize| format!("{n} {ONE}");
    for n in 0..12 {
        bench.append(&format!("{n}.log"), &text(n));
    }
    assert_eq!(bench.take().len(), 12);
    for n in 0..12 {
        std::fs::copy(bench.path(&format!("{n}.log")), bench.path(&format!("{n}.log.1"))).unwrap();
    }
    assert_eq!(bench.take(), [], "all of them wait");
    // One that lacks the end of what was read is compared with its original's bytes, too.
    for n in 0..12 {
        bench.append(&format!("{n}.log"), "more\n");
    }
    assert_eq!(lengths(&bench.take()), 60);
    bench.scan();
    for n in 0..12 {
        std::fs::File::create(bench.path(&format!("{n}.log"))).unwrap();
    }
    bench.poll();
    assert!(bench.it().totals().open_files <= 6, "{}", bench.it().totals().open_files);
}

#[test]
fn copies_that_are_truncated_with_few_open_files_are_not_read_twice() {
    let mut bench = Bench::with("*.log*", |settings| settings.max_open_files = 4);
    for n in 0..6 {
        bench.append(&format!("{n}.log"), &format!("{n} {ONE}"));
    }
    bench.take();
    for n in 0..6 {
        bench.append(&format!("{n}.log"), "more\n");
        std::fs::copy(bench.path(&format!("{n}.log")), bench.path(&format!("{n}.log.1"))).unwrap();
    }
    assert_eq!(lengths(&bench.take()), 30, "of the originals");
    for n in 0..6 {
        std::fs::File::create(bench.path(&format!("{n}.log"))).unwrap();
    }
    assert_eq!(bench.take(), []);
    bench.pass(Duration::from_secs(20));
    assert_eq!(bench.take(), []);
}

#[test]
fn many_copies_at_once_keep_to_the_budget_of_open_files() {
    let mut bench = Bench::with("*.log*", |settings| settings.max_open_files = 16);
    let count = 400;
    for n in 0..count {
        bench.append(&format!("{n}.log"), &format!("{n} {ONE}"));
    }
    assert_eq!(bench.take().len(), count);
    for n in 0..count {
        bench.append(&format!("{n}.log.1"), "");
    }
    bench.take();
    for n in 0..count {
        std::fs::copy(bench.path(&format!("{n}.log")), bench.path(&format!("{n}.log.1"))).unwrap();
    }
    bench.scan();
    assert_eq!(bench.take(), []);
    assert!(bench.it().totals().open_files <= 18, "{}", bench.it().totals().open_files);
    bench.pass(Duration::from_secs(30));
    assert_eq!(bench.take().len(), count, "they're files of their own");
}

#[test]
fn a_second_copy_that_no_rule_matches_is_let_go() {
    let mut bench = Bench::new("app.log");
    bench.append("app.log", ONE);
    bench.take();
    bench.append("app.log", "two\nthree\n");
    std::fs::copy(bench.path("app.log"), bench.path("app.log.bak")).unwrap();
    copytruncate(&bench, "app.log", "app.log.1");
    assert_eq!(bench.take(), texts(&[(ONE.len() as u64, "two\nthree\n")]));
    for _ in 0..3 {
        bench.scan();
        assert_eq!(bench.take(), []);
    }
    bench.restart();
    assert_eq!(bench.take(), []);
}

#[test]
fn what_is_cut_off_while_the_agent_is_down_is_told() {
    for first in ["one\n", &ONE.repeat(3)] {
        for down in [false, true] {
            let mut bench = Bench::new("*.log");
            let read = first.len() as u64;
            bench.append("a.log", &format!("{first}begun more"));
            assert_eq!(bench.take().len(), 1);
            bench.poll();
            if down {
                bench.collector = None;
            }
            cut_to(&bench, "a.log", read + 2);
            if down {
                bench.restart();
            }
            assert_eq!(bench.take(), [], "what is acked isn't sent again");
            assert_eq!(bench.lost("a.log"), (8, vec![(read + 2, read + 10, LossCause::CutShort)]), "down: {down}");
            bench.append("a.log", "tter\n");
            assert_eq!(bench.take(), texts(&[(read, "better\n")]));
            bench.restart();
            assert_eq!(bench.take(), []);
            assert_eq!(bench.lost("a.log").0, 8);
        }
    }
}

#[test]
fn a_cut_above_the_end_of_a_file_that_became_shorter_splits_nothing() {
    for down in [false, true] {
        let mut bench = Bench::new("*.log");
        bench.append("a.log", ONE);
        bench.take();
        bench.append("a.log", "begun more");
        bench.poll();
        bench.pass(Duration::from_secs(6));
        // The cut is made durable, and what it ends isn't sent for want of credit.
        let now = bench.now;
        bench.it().poll(now, 5);
        bench.it().flush(now).unwrap();
        if down {
            bench.collector = None;
        }
        cut_to(&bench, "a.log", ONE.len() as u64);
        if down {
            bench.restart();
        }
        bench.poll();
        bench.append("a.log", "0123456789abcdef\n");
        assert_eq!(bench.take(), texts(&[(ONE.len() as u64, "0123456789abcdef\n")]), "down: {down}");
    }
}

#[test]
fn a_stream_that_lives_on_in_a_copy_is_told_once_with_its_losses() {
    let mut bench = Bench::new("app.log*");
    bench.append("app.log", &format!("{ONE}begun"));
    bench.take();
    cut_to(&bench, "app.log", ONE.len() as u64 + 2);
    bench.take();
    bench.append("app.log", "x\nmore\n");
    copytruncate(&bench, "app.log", "app.log.1");
    bench.take();
    for again in [false, true] {
        if again {
            bench.poll();
            bench.restart();
            bench.take();
        }
        let (mut seen, status) = (HashSet::new(), bench.it().status());
        assert!(status.iter().all(|file| seen.insert(file.stream)), "{status:?}");
        let at = ONE.len() as u64;
        assert_eq!(bench.lost("app.log.1"), (3, vec![(at + 2, at + 5, LossCause::CutShort)]));
        assert_eq!(bench.lost("app.log").0, 0);
    }
}

#[test]
fn what_was_lost_of_a_file_is_told_when_it_holds_no_text_any_more() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\nbegun");
    let first = bench.poll().unwrap();
    bench.ack(&first);
    bench.poll();
    std::fs::write(bench.path("a.log"), b"\x1f\x8b\x08").unwrap();
    for again in [false, true] {
        bench.take();
        if again {
            bench.restart();
            bench.take();
        }
        let status = bench.it().status();
        let [lost] = &status[..] else { panic!("{status:?}") };
        assert_eq!((lost.stream, lost.state, lost.lost_bytes), (first.stream, FileState::Draining, 5));
        assert_eq!(bench.it().rules()[0].problems[0].reason, "COMPRESSED");
    }
    std::fs::remove_file(bench.path("a.log")).unwrap();
    bench.scan();
    bench.take();
    assert_eq!(bench.it().status().iter().map(|file| file.lost_bytes).sum::<u64>(), 5, "and nothing else");
    bench.restart();
    bench.take();
    assert_eq!(bench.it().status().iter().map(|file| file.lost_bytes).sum::<u64>(), 5);
}

#[test]
fn what_is_on_its_way_of_a_file_that_holds_no_text_any_more_is_told_after_a_crash() {
    for acked in [true, false] {
        let mut bench = Bench::new("*.log");
        bench.append("a.log", "one\n");
        let first = bench.poll().unwrap();
        bench.poll();
        std::fs::write(bench.path("a.log"), b"\x1f\x8b\x08").unwrap();
        bench.poll();
        bench.poll();
        if acked {
            bench.ack(&first);
            bench.poll();
        }
        bench.restart();
        bench.take();
        let lost: u64 = bench.it().status().iter().map(|file| file.lost_bytes).sum();
        assert_eq!(lost, if acked { 0 } else { 4 });
    }
}

#[test]
fn a_file_that_begins_with_the_same_few_bytes_is_no_copy() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "start\n");
    bench.take();
    bench.append("b.log", "start\nother work\n");
    assert_eq!(bench.take(), texts(&[(0, "start\nother work\n")]));
    std::fs::write(bench.path("a.log"), "").unwrap();
    bench.scan();
    assert_eq!(bench.take(), []);
}

#[test]
fn what_comes_into_a_copy_after_it_was_judged_is_read() {
    let mut bench = Bench::new("app.log*");
    bench.append("app.log", &format!("{ONE}two\n"));
    bench.take();
    std::fs::write(bench.path("app.log.1"), ONE).unwrap();
    bench.take();
    let key = crate::pathguard::meta_at(&bench.path("app.log.1")).unwrap().key;
    let copy = bench.it().by_key[&key];
    bench.append("app.log.1", "new\n");
    bench.it().pass_over(copy, ONE.len() as u64);
    assert_eq!(bench.take(), texts(&[(ONE.len() as u64, "new\n")]));
}
