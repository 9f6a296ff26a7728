//! Framing by rules, on real files: what time decides, what is too long, encodings, and edits of all of it.

use super::tests::Bench;
use super::*;
use crate::framing::{FramingSpec, Pattern};
use logmesh_types::ByteRange;

fn with(change: impl FnOnce(&mut FramingSpec)) -> Bench {
    let mut bench = Bench::new("*.log");
    change(&mut bench.rules[0].framing);
    bench.apply();
    bench
}

fn cut_at(most: usize) -> Bench {
    with(|framing| (framing.max_event_bytes, framing.cut) = (most, true))
}

impl Bench {
    /// Polls as often as the thread would while the end of a long line is sought.
    fn take_all(&mut self) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let mut idle = 0;
        while idle < 100 {
            match self.poll() {
                Some(chunk) => chunks.push(chunk),
                None => idle += 1,
            }
        }
        chunks
    }

    fn edit(&mut self, framing: FramingSpec) {
        self.rules[0].framing = framing;
        self.rules[0].revision += 1;
        self.apply();
    }
}

fn write(bench: &Bench, name: &str, bytes: &[u8]) {
    use std::io::Write;
    let mut file = std::fs::File::options().append(true).create(true).open(bench.path(name)).unwrap();
    file.write_all(bytes).unwrap();
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn a_rule_says_how_long_an_unfinished_event_waits() {
    let mut bench = with(|framing| framing.pattern = Some(Pattern::End(";$".into())));
    bench.rules[0].flush_after = Some(Duration::from_secs(60));
    bench.apply();
    bench.append("a.log", "a\nb");
    bench.take_all();
    bench.pass(Duration::from_secs(30));
    assert!(bench.take_all().is_empty());
    // A shorter time holds for what waits already; it decides nothing that was decided by bytes.
    bench.rules[0].flush_after = Some(Duration::from_millis(200));
    bench.apply();
    let flushed = bench.take_all();
    assert_eq!((flushed.len(), &flushed[0].data[..], flushed[0].lengths.as_deref()), (1, &b"a\nb"[..], Some(&[3][..])));
    bench.append("a.log", ";\nc;\n");
    let rest = bench.take_all();
    assert_eq!((rest[0].lengths.as_deref(), &rest[0].continuations[..]), (Some(&[2, 3][..]), &[0][..]));
    bench.append("a.log", "d");
    assert!(bench.take_all().is_empty());
    bench.pass(Duration::from_millis(200));
    assert_eq!(bench.take_all().len(), 1, "a look is taken in time");
}

#[test]
fn of_a_line_that_is_cut_only_the_start_is_held() {
    let mut bench = cut_at(1_000);
    let long = 3 * MAX_IN_FLIGHT_BYTES as usize;
    write(&bench, "a.log", &[&b"one\n"[..], &vec![b'x'; long], b"\ntwo\n"].concat());
    let chunks = bench.take_all();
    let seen: Vec<_> = chunks.iter().map(|c| (c.range.start, c.range.len() as usize, c.data.len(), c.events)).collect();
    assert_eq!(seen, [(0, 4, 4, 1), (4, long + 1, 1_000, 1), (5 + long as u64, 4, 4, 1)]);
    assert_eq!((chunks[1].omitted(), chunks[1].crc32c), (long as u64 - 999, crc32c::crc32c(&chunks[1].data)));
    let totals = bench.it().totals();
    assert_eq!((totals.in_flight_bytes, totals.cut_events, totals.read_bytes), (1_008, 1, long as u64 + 9));
    // After a crash the same is found again; what was acked stays.
    bench.ack(&chunks[0]);
    bench.it().flush(Instant::now()).unwrap();
    bench.restart();
    let again = bench.take_all();
    assert_eq!(again.iter().map(|c| c.range).collect::<Vec<_>>(), [chunks[1].range, chunks[2].range]);
    again.iter().for_each(|chunk| bench.ack(chunk));
    let totals = bench.it().totals();
    assert_eq!((totals.in_flight_bytes, totals.acked_bytes), (0, long as u64 + 5));
    bench.append("a.log", "three\n");
    assert_eq!(bench.take_all().len(), 1);
}

#[test]
fn an_endless_line_is_sought_in_turns_and_flushed_by_time() {
    let mut bench = cut_at(1_000);
    write(&bench, "a.log", &vec![b'x'; 5 << 20]);
    bench.append("b.log", "other\n");
    let other = bench.poll().unwrap();
    assert_eq!(other.source.path, bench.path("b.log").display().to_string(), "nobody waits for the end of a line");
    assert!(bench.take_all().is_empty());
    bench.pass(Duration::from_secs(6));
    let flushed = bench.take_all();
    assert_eq!(
        flushed.iter().map(|c| (c.range, c.data.len())).collect::<Vec<_>>(),
        [(ByteRange::new(0, 5 << 20), 1_000)]
    );
    bench.append("a.log", "rest\n");
    let rest = bench.take_all();
    assert_eq!((&rest[0].data[..], &rest[0].continuations[..]), (&b"rest\n"[..], &[0][..]));
}

#[test]
fn utf_16_is_no_binary_file() {
    let mut bench = Bench::new("*.log");
    write(&bench, "a.log", &utf16("\u{feff}one\ntwo\n"));
    let chunks = bench.take_all();
    assert_eq!((chunks[0].charset.name(), chunks[0].lengths.as_deref()), ("UTF-16LE", Some(&[10, 8][..])));
    write(&bench, "b.log", &utf16("one\n"));
    assert!(bench.take_all().is_empty());
    assert_eq!(bench.it().rules()[0].problems[0].reason, "BINARY");
    let mut bench = with(|framing| framing.encoding = Some("utf-16le".into()));
    write(&bench, "b.log", &utf16("one\n"));
    assert_eq!(bench.take_all()[0].events, 1);
}

#[test]
fn an_edit_of_the_framing_neither_reads_again_nor_leaves_out() {
    let lines = FramingSpec::default();
    let joined = |pattern| FramingSpec { pattern: Some(pattern), ..lines.clone() };
    let specs = [
        joined(Pattern::Start(r"^\d".into())),
        FramingSpec { max_event_bytes: 4, ..lines.clone() },
        FramingSpec { container: true, ..lines.clone() },
        joined(Pattern::End("x$".into())),
        FramingSpec { encoding: Some("gbk".into()), ..lines.clone() },
        FramingSpec { max_event_bytes: 4, cut: true, ..lines.clone() },
        joined(Pattern::Continue("^ ".into())),
        FramingSpec { encoding: Some("utf-16be".into()), ..lines.clone() },
        lines.clone(),
    ];
    let mut bench = Bench::new("*.log");
    let (mut written, mut at) = (0, 0);
    for (turn, spec) in specs.into_iter().enumerate() {
        bench.append("a.log", "1 long\n x\n2\nunfini");
        written += 18;
        let unacked = if turn % 2 == 0 { bench.poll() } else { None };
        bench.edit(spec);
        unacked.iter().for_each(|chunk| bench.ack(chunk));
        if turn % 3 == 0 {
            bench.it().flush(Instant::now()).unwrap();
            bench.restart();
        }
        let mut chunks: Vec<Chunk> = unacked.into_iter().collect();
        for _ in 0..4 {
            bench.take_all().into_iter().for_each(|chunk| {
                bench.ack(&chunk);
                chunks.push(chunk);
            });
            bench.pass(Duration::from_secs(6));
        }
        for chunk in chunks {
            assert_eq!(chunk.range.start, at, "turn {turn}");
            at = chunk.range.end;
        }
        assert_eq!(at, written, "turn {turn}");
    }
    let status = &bench.it().status()[0];
    assert_eq!((status.lag(), status.lost_bytes), (0, 0));
}
