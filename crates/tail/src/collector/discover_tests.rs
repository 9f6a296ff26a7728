//! Which files are begun, and which aren't.

use std::os::unix::fs::symlink;

use super::tests::{Bench, rule, texts};
use super::*;
use crate::rule::StartAt;

impl Bench {
    /// Why files aren't read: file name and reason, by name.
    fn problems(&mut self) -> Vec<(String, &'static str)> {
        let rules = self.it().rules();
        let problems = rules.iter().flat_map(|rule| &rule.problems);
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        let mut problems: Vec<_> = problems.map(|problem| (name(&problem.path), problem.reason)).collect();
        problems.sort();
        problems
    }

    fn age(&self, name: &str, age: Duration) {
        let file = std::fs::File::options().write(true).open(self.path(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    }
}

#[test]
fn compressed_files_are_told_by_their_bytes_and_never_read() {
    let mut bench = Bench::new("*");
    let packed: [(&str, &[u8]); 5] = [
        ("gzip.log", b"\x1f\x8b\x08\x08abcdefgh\n"),
        ("zstd", b"\x28\xb5\x2f\xfdabcdefgh\n"),
        ("xz", b"\xfd7zXZ\0abcdefgh\n"),
        ("bzip2", b"BZh91AY&SYabcdefgh\n"),
        ("lz4", b"\x04\x22\x4d\x18abcdefgh\n"),
    ];
    for (name, bytes) in packed {
        std::fs::write(bench.path(name), bytes).unwrap();
    }
    bench.append("text.gz", "BZh9 is text, whatever its name\n");
    assert_eq!(bench.take(), texts(&[(0, "BZh9 is text, whatever its name\n")]));
    let expected = ["bzip2", "gzip.log", "lz4", "xz", "zstd"].map(|name| (name.to_owned(), "COMPRESSED"));
    assert_eq!(bench.problems(), expected);
    std::fs::rename(bench.path("gzip.log"), bench.path("gzip.log.1")).unwrap();
    bench.scan();
    assert_eq!(bench.take(), []);
    bench.restart();
    assert_eq!(bench.take(), []);
    assert_eq!(bench.it().rules()[0].refused, 5);
    // A rule that begins at the end doesn't begin behind what is compressed.
    bench.rules = vec![TailRule { start_at: StartAt::End, ..rule(bench.dir.path(), "e", "*") }];
    bench.apply();
    std::fs::OpenOptions::new().append(true).open(bench.path("zstd")).unwrap().set_len(40).unwrap();
    assert_eq!(bench.take(), []);
}

#[test]
fn a_file_that_is_compressed_after_it_was_read_is_read_once() {
    let mut bench = Bench::new("app.log*");
    bench.append("app.log", "one\n");
    bench.take();
    std::fs::rename(bench.path("app.log"), bench.path("app.log.1")).unwrap();
    bench.append("app.log", "two\n");
    assert_eq!(bench.take(), texts(&[(0, "two\n")]));
    std::fs::write(bench.path("app.log.1.gz"), b"\x1f\x8b\x08\0packed\n").unwrap();
    std::fs::remove_file(bench.path("app.log.1")).unwrap();
    bench.scan();
    assert_eq!(bench.take(), []);
    assert_eq!((bench.problems(), bench.it().totals().lost_bytes), (vec![("app.log.1.gz".into(), "COMPRESSED")], 0));
}

#[test]
fn a_file_that_is_too_old_is_begun_when_it_is_written_to() {
    let mut bench = Bench::new("*.log");
    bench.append("old.log", "old\n");
    bench.age("old.log", Duration::from_secs(7200));
    bench.append("new.log", "new\n");
    bench.rules[0].ignore_older = Some(Duration::from_secs(3600));
    bench.restart();
    assert_eq!(bench.take(), texts(&[(0, "new\n")]));
    assert_eq!((bench.problems(), bench.it().rules()[0].refused), (vec![("old.log".into(), "IGNORED_OLDER")], 1));
    bench.append("old.log", "more\n");
    assert_eq!(bench.take(), texts(&[(0, "old\nmore\n")]), "at once");
    bench.scan();
    bench.take();
    assert_eq!(bench.problems(), []);
    // What is known is followed, however old it is.
    bench.age("new.log", Duration::from_secs(7200));
    bench.restart();
    assert_eq!(bench.take(), []);
    assert_eq!(bench.problems(), []);
}

#[test]
fn a_file_that_is_too_old_is_begun_where_its_end_was() {
    let mut bench = Bench::new("*.log");
    bench.append("old.log", "old\n");
    bench.age("old.log", Duration::from_secs(7200));
    let ignore_older = Some(Duration::from_secs(3600));
    bench.rules = vec![TailRule { start_at: StartAt::End, ignore_older, ..rule(bench.dir.path(), "e", "*.log") }];
    bench.apply();
    assert_eq!(bench.take(), []);
    assert_eq!(bench.problems(), [("old.log".into(), "IGNORED_OLDER")]);
    bench.pass(Duration::from_secs(1));
    bench.poll();
    bench.restart();
    assert_eq!(bench.take(), []);
    assert_eq!(bench.problems(), [("old.log".into(), "IGNORED_OLDER")]);
    bench.append("old.log", "more\n");
    assert_eq!(bench.take(), texts(&[(4, "more\n")]));
    assert_eq!(bench.it().totals().lost_bytes, 0);
}

#[test]
fn absolute_links_are_opened_under_their_targets_own_root() {
    let mut bench = Bench::new("links/*");
    std::fs::create_dir_all(bench.path("links")).unwrap();
    std::fs::create_dir_all(bench.path("real")).unwrap();
    bench.append("real/a", "one\n");
    symlink(bench.path("real/a"), bench.path("links/a")).unwrap();
    symlink("../real/a", bench.path("links/b")).unwrap();
    std::fs::hard_link(bench.path("real/a"), bench.path("links/c")).unwrap();
    assert_eq!(bench.take(), texts(&[(0, "one\n")]), "one file, three names");
    bench.append("real/a", "two\n");
    bench.scan();
    assert_eq!(bench.take(), texts(&[(4, "two\n")]));
    // The link leads to another file now: the next day's.
    bench.append("real/b", "other\n");
    for name in ["links/a", "links/b", "links/c"] {
        std::fs::remove_file(bench.path(name)).unwrap();
    }
    symlink(bench.path("real/b"), bench.path("links/a")).unwrap();
    bench.append("real/a", "three\n");
    bench.scan();
    let mut taken = bench.take();
    taken.sort();
    assert_eq!(taken, texts(&[(0, "other\n"), (8, "three\n")]));
}

#[test]
fn a_folder_that_is_renamed_keeps_its_streams() {
    let mut bench = Bench::new("**/*.log");
    std::fs::create_dir_all(bench.path("x/y")).unwrap();
    bench.append("x/y/a.log", "one\n");
    let first = bench.poll().unwrap();
    bench.ack(&first);
    std::fs::rename(bench.path("x"), bench.path("z")).unwrap();
    bench.append("z/y/a.log", "two\n");
    bench.append("z/y/b.log", "new\n");
    bench.scan();
    let chunks = bench.drain();
    assert_eq!(chunks.len(), 2);
    let of_first = chunks.iter().find(|chunk| chunk.stream == first.stream).unwrap();
    assert_eq!((of_first.range.start, &of_first.data[..]), (4, &b"two\n"[..]));
    chunks.iter().for_each(|chunk| bench.ack(chunk));
    bench.poll();
    // While the agent is down.
    bench.collector = None;
    std::fs::rename(bench.path("z"), bench.path("x")).unwrap();
    bench.append("x/y/a.log", "three\n");
    bench.restart();
    assert_eq!(bench.take(), texts(&[(8, "three\n")]));
    assert_eq!(bench.it().totals().lost_bytes, 0);
}

#[test]
fn inodes_that_are_given_out_again_are_other_files() {
    let mut bench = Bench::new("*.log");
    let mut streams = HashSet::new();
    for round in 0..200 {
        bench.append("a.log", &format!("{round}\n"));
        let chunk = bench.poll().unwrap();
        assert_eq!((chunk.range.start, &chunk.data[..]), (0, format!("{round}\n").as_bytes()));
        assert!(streams.insert(chunk.stream), "{round}");
        bench.ack(&chunk);
        std::fs::remove_file(bench.path("a.log")).unwrap();
        if round % 3 == 0 {
            bench.pass(Duration::from_secs(6));
        }
        if round % 7 == 0 {
            bench.poll();
            bench.restart();
        }
    }
    assert_eq!(bench.it().totals().lost_bytes, 0);
}

#[test]
fn a_busy_file_leaves_others_their_turns() {
    let mut bench = Bench::new("*.log");
    bench.append("busy.log", &"a line of the busy file\n".repeat(1 << 18));
    for file in 0..9 {
        bench.append(&format!("{file}.log"), "1\n");
    }
    let first: Vec<Chunk> = (0..11).map(|_| bench.poll().unwrap()).collect();
    assert_eq!(first.iter().map(|chunk| chunk.stream).collect::<HashSet<_>>().len(), 10);
}

#[test]
fn a_vanished_files_record_expires() {
    let mut bench = Bench::with("*.log", |settings| settings.forget_after = Duration::ZERO);
    bench.append("a.log", "one\nbegun");
    bench.take();
    bench.poll();
    bench.collector = None;
    std::fs::remove_file(bench.path("a.log")).unwrap();
    bench.restart();
    bench.poll();
    bench.scan();
    bench.poll();
    bench.scan();
    bench.poll();
    assert_eq!(bench.it().status(), []);
    bench.collector = None;
    let (_, loaded, _) = crate::state::State::open(&bench.dir.path().join("state")).unwrap();
    assert_eq!(loaded.records, []);
}

#[test]
fn thousands_of_new_files_are_begun_by_few_commits() {
    const FILES: usize = 1_000;
    let mut bench = Bench::with("*.log", |settings| {
        settings.commit_every = Duration::from_millis(200);
        settings.max_open_files = 100;
    });
    let write = |bench: &Bench, from: usize, text: &str| {
        (from..from + FILES).for_each(|file| bench.append(&format!("{file}.log"), text));
    };
    // There before the first scan; while the agent watches, at once; and empty first.
    write(&bench, 0, "1\n");
    bench.restart();
    let begin = Instant::now();
    assert_eq!(bench.take().len(), FILES);
    write(&bench, FILES, "2\n");
    bench.scan();
    let mut taken = bench.take().len();
    write(&bench, 2 * FILES, "");
    bench.scan();
    bench.take();
    write(&bench, 2 * FILES, "3\n");
    bench.scan();
    bench.scan();
    taken += bench.take().len();
    bench.scan();
    taken += bench.take().len();
    println!("{:?}, {} commits", begin.elapsed(), bench.it().totals().commits);
    assert_eq!(taken, 2 * FILES);
    // By far most of them are those of the acks, five in a second of the test's time.
    let commits = bench.it().totals().commits;
    assert!(commits < FILES as u64 / 20, "{commits}");
    assert!(bench.it().totals().open_files <= 100);
}

#[test]
fn a_hint_before_the_first_scan_does_not_begin_an_old_file_at_its_beginning() {
    let mut bench = Bench::new("*.log");
    bench.append("old.txt", "old\n");
    bench.take();
    bench.rules.push(TailRule { start_at: StartAt::End, ..rule(bench.dir.path(), "e", "*.txt") });
    bench.apply();
    std::fs::rename(bench.path("old.txt"), bench.path("older.txt")).unwrap();
    assert_eq!(bench.take(), []);
    bench.append("older.txt", "new\n");
    assert_eq!(bench.take(), texts(&[(4, "new\n")]));
}
