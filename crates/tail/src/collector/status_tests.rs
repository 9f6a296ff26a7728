//! What is said of rules: which revision runs and what waits for it, how fast, how far behind, and what can't be read.

use super::tests::{Bench, starts};
use super::*;
use crate::framing::FramingSpec;
use crate::status::{RATE_MEMORY, RuleStatus};

impl Bench {
    fn rule(&mut self) -> RuleStatus {
        self.it().rules().remove(0)
    }

    fn waiting(&mut self) -> (usize, Option<i64>, i64) {
        let rule = self.rule();
        (rule.waiting, rule.earliest_revision, rule.running_revision)
    }

    fn edit_rule(&mut self, change: impl FnOnce(&mut TailRule)) {
        self.rules[0].revision += 1;
        change(&mut self.rules[0]);
        self.apply();
    }
}

#[test]
fn a_rule_waits_for_acks_where_it_cuts_otherwise() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "1\n");
    bench.append("idle.log", "1\n");
    let chunks = bench.drain();
    bench.ack(&chunks[1]);
    assert_eq!(bench.waiting(), (0, None, 1));
    let before = bench.it().activity();
    bench.edit_rule(|rule| rule.framing = starts("x"));
    assert_eq!(bench.waiting(), (1, Some(1), 2), "the file that is acked needn't wait, nor be polled");
    bench.edit_rule(|rule| rule.service = Some("other".into()));
    assert_eq!(bench.waiting(), (1, Some(1), 3));
    bench.ack(&chunks[0]);
    bench.drain();
    assert_eq!(bench.waiting(), (0, None, 3));
    assert!(bench.it().activity() > before);
}

#[test]
fn an_equal_rule_of_another_revision_reads_nothing_again() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "1\n");
    bench.take();
    let stream = bench.status("a.log").stream;
    bench.rules[0].revision = 1_000;
    bench.apply();
    bench.append("a.log", "2\n");
    let chunks = bench.drain();
    assert_eq!((chunks.len(), chunks[0].range.start, chunks[0].source.revision), (1, 2, 1_000));
    assert_eq!(chunks[0].stream, stream);
    bench.restart();
    assert_eq!(bench.drain()[0].range.start, 2, "after a restart neither");
}

#[test]
fn rates_and_lag_are_those_of_the_rule() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", &"0123456789\n".repeat(1_000));
    let chunk = bench.poll().unwrap();
    let rule = bench.rule();
    assert_eq!((rule.lines_per_second, rule.bytes_per_second, rule.lag_bytes), (100, 1_100, 11_000));
    bench.ack(&chunk);
    assert_eq!(bench.rule().lag_bytes, 0);
    bench.pass(RATE_MEMORY);
    bench.drain();
    let rule = bench.rule();
    assert_eq!((rule.lines_per_second, rule.bytes_per_second), (0, 0), "an idle rule has no rate that changes");
}

#[test]
fn the_lag_of_a_file_that_is_gone_counts() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "1\n2\n");
    let chunk = bench.poll().unwrap();
    std::fs::remove_file(bench.path("a.log")).unwrap();
    bench.scan();
    bench.drain();
    bench.pass(Duration::from_secs(60));
    bench.drain();
    assert_eq!(bench.rule().lag_bytes, 4);
    bench.ack(&chunk);
    assert_eq!(bench.rule().lag_bytes, 0);
}

#[test]
fn lines_that_cannot_be_read_are_counted() {
    let mut bench = Bench::new("*.log");
    std::fs::write(bench.path("a.log"), b"fine\n\xc4\xe3\n\xff\n").unwrap();
    bench.take();
    assert_eq!((bench.rule().decode_errors, bench.it().totals().decode_errors), (2, 2));
    bench.edit_rule(|rule| rule.priority = 7);
    assert_eq!(bench.rule().decode_errors, 2);
    bench.edit_rule(|rule| rule.framing = FramingSpec { container: true, ..FramingSpec::default() });
    assert_eq!(bench.rule().decode_errors, 0, "it is read otherwise from now on");
    let time = "2026-01-31T12:00:00.000000005Z";
    // Each line is looked at more than once, and a runtime may break a line within a character.
    let pieces = [b" stdout P gr\xc3".as_slice(), b" stdout F \xbcn", b" stdout F \xff", b" stdout F fine"];
    let mut text = b"not wrapped\n".to_vec();
    for piece in pieces {
        text.extend([time.as_bytes(), piece, b"\n"].concat());
    }
    std::fs::write(bench.path("b.log"), &text).unwrap();
    bench.scan();
    bench.take();
    assert_eq!((bench.rule().decode_errors, bench.it().totals().decode_errors), (2, 4));
}
