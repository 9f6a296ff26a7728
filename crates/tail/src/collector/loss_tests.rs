//! Bytes that can't be collected are told by their range and cause.

use super::tests::Bench;
use super::*;
use crate::status::{FileState, LossCause, MAX_LOSSES};
use logmesh_types::ByteRange;

#[test]
fn a_file_that_is_cut_short_above_the_reading_tells_what_is_gone() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\nbegun");
    bench.take();
    std::fs::File::options().write(true).open(bench.path("a.log")).unwrap().set_len(6).unwrap();
    assert_eq!(bench.take(), []);
    assert_eq!(bench.lost("a.log"), (3, vec![(6, 9, LossCause::CutShort)]));
    bench.append("a.log", "other\n");
    assert_eq!(bench.take(), [(4, "beother\n".to_owned())], "later bytes take their place");
    assert_eq!(bench.lost("a.log"), (3, vec![(6, 9, LossCause::CutShort)]));
}

#[test]
fn a_loss_is_told_of_the_generation_that_had_it_for_as_long_as_there_is_room() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\nbegun");
    let first = bench.poll().unwrap();
    bench.ack(&first);
    for _ in 0..MAX_LOSSES as u32 + 3 {
        bench.take();
        std::fs::write(bench.path("a.log"), "").unwrap();
        bench.take();
        bench.append("a.log", "begun");
    }
    bench.take();
    let all = 5 * (MAX_LOSSES as u64 + 3);
    assert_eq!((bench.lost("a.log").0, bench.lost("a.log").1.len()), (all, MAX_LOSSES));
    let status = bench.it().status().into_iter().find(|file| file.stream == first.stream).unwrap();
    assert_eq!((status.state, status.lag(), status.lost_bytes, status.acked), (FileState::Draining, 0, 5, 4));
    bench.poll();
    bench.restart();
    bench.poll();
    assert_eq!((bench.lost("a.log").0, bench.lost("a.log").1.len()), (all, MAX_LOSSES));
}

#[test]
fn what_is_on_its_way_of_a_truncated_file_is_told_with_what_it_lost() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\nbegun");
    let sent = bench.poll().unwrap();
    bench.poll();
    std::fs::write(bench.path("a.log"), "").unwrap();
    bench.scan();
    bench.poll();
    let status = bench.it().status().into_iter().find(|file| file.stream == sent.stream).unwrap();
    assert_eq!((status.acked, status.size, status.lost_bytes, status.losses[0].range), (0, 4, 5, ByteRange::new(4, 9)));
    bench.ack(&sent);
    let status = bench.it().status().into_iter().find(|file| file.stream == sent.stream).unwrap();
    assert_eq!((status.acked, status.lag(), status.lost_bytes), (4, 0, 5));
}

#[test]
fn a_file_whose_inode_went_to_another_while_nobody_watched_is_told() {
    let mut bench = Bench::new("*.log");
    bench.append("a.log", "one\nbegun");
    bench.take();
    bench.poll();
    bench.collector = None;
    let inode = |path: &std::path::Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let before = inode(&bench.path("a.log"));
    std::fs::remove_file(bench.path("a.log")).unwrap();
    // Most file systems give the inode out again soon; where this one doesn't, the file is simply gone.
    for other in 0..200 {
        let name = format!("other-{other}");
        bench.append(&name, "x");
        if inode(&bench.path(&name)) == before {
            break;
        }
    }
    bench.restart();
    bench.poll();
    assert_eq!(bench.lost("a.log"), (5, vec![(4, 9, LossCause::Gone)]));
}

#[test]
fn what_a_slow_pace_leaves_unread_is_told_when_it_is_gone() {
    let mut bench = Bench::new("*.log");
    bench.rules[0].pace.lines_per_second = Some(1);
    bench.apply();
    bench.append("a.log", "one\n");
    assert_eq!(bench.take(), [(0, "one\n".to_owned())]);
    bench.append("a.log", "two\n");
    // Time passes for the watcher, and none for the pace.
    bench.pass(bench.collector.as_ref().unwrap().settings.linger);
    assert_eq!(bench.take(), []);
    std::fs::write(bench.path("a.log"), "").unwrap();
    bench.pass(Duration::from_secs(1));
    bench.take();
    assert_eq!(bench.lost("a.log").0, 4);
}

#[test]
fn a_file_whose_backlog_outlives_its_rotation_is_at_risk() {
    let mut bench = Bench::new("*.log");
    for rotation in 0..3 {
        bench.append("a.log", &format!("{rotation}23456789\n"));
        bench.take();
        assert!(!bench.status("a.log").at_risk);
        bench.pass(Duration::from_secs(60));
        std::fs::rename(bench.path("a.log"), bench.path(&format!("a.{rotation}"))).unwrap();
        bench.poll();
    }
    bench.append("a.log", &"9876543210\n".repeat(1_000));
    let now = bench.now;
    let first = bench.it().poll(now, 110).unwrap();
    let status = bench.status("a.log");
    assert_eq!((status.bytes_per_second, status.at_risk), (11, true), "1000 s for what has 60");
    bench.ack(&first);
    bench.take();
    assert!(!bench.status("a.log").at_risk, "all of it is acked");
    bench.append("a.log", "begun");
    bench.poll();
    std::fs::remove_file(bench.path("a.log")).unwrap();
    bench.poll();
    assert!(bench.status("a.log").at_risk, "it lives only as long as it's held open");
}

#[test]
fn what_was_compressed_while_nobody_watched_is_told_by_its_copy() {
    let line = |n: u32| format!("line {n:058}\n");
    let text: String = (0..20).map(line).collect();
    for (copy, content, lost) in [
        ("app.log.1.gz", &text, vec![(640, 1280, LossCause::Gone)]),
        ("app.log.1.gz", &text[..640].to_owned(), vec![]),
        ("app.log.1.gz", &text.replace("line", "else"), vec![]),
        ("other.log.1.gz", &text, vec![]),
    ] {
        let mut bench = Bench::new("*.log*");
        bench.append("app.log", &text[..640]);
        assert_eq!(bench.take().len(), 1);
        bench.pass(Duration::from_secs(1));
        bench.poll();
        let path = bench.path("app.log");
        bench.collector = None;
        std::fs::remove_file(&path).unwrap();
        let mut packed = flate2::GzBuilder::new().filename("app.log.1").write(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, content.as_bytes()).unwrap();
        std::fs::write(bench.path(copy), packed.finish().unwrap()).unwrap();
        bench.append("app.log", "new\n");
        bench.restart();
        bench.apply();
        assert_eq!(bench.take(), [(0, "new\n".to_owned())]);
        let files = bench.it().status();
        let losses = files.iter().flat_map(|file| &file.losses);
        let losses: Vec<_> = losses.map(|loss| (loss.range.start, loss.range.end, loss.cause)).collect();
        assert_eq!(losses, lost, "{copy} {}", content.len());
    }
}
