//! How fast the collector reads: one file, or many, with acks that come at once.
//!
//! `cargo run --release -p logmesh-tail --example throughput -- [MIB] [FILES]`

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use logmesh_tail::{Collector, FramingSpec, Pace, Pattern, Settings, StartAt, TailRule};

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let mib = numbers.next().transpose()?.unwrap_or(1024);
    let files = numbers.next().transpose()?.unwrap_or(1).max(1);
    let dir = tempfile::tempdir()?;
    let logs = dir.path().join("logs");
    std::fs::create_dir(&logs)?;
    let total = write_files(&logs, mib << 20, files)?;
    for framing in [None, Some(r"^2026-")] {
        let state = dir.path().join(format!("state-{}", framing.is_some()));
        let glob = format!("{}/*.log", logs.display());
        let mut collector = Collector::open(Settings::new("bench".parse()?, state, vec![glob.clone()]))?;
        let rule = TailRule {
            name: "bench".parse()?,
            revision: 1,
            globs: vec![glob],
            exclude: Vec::new(),
            topic: "bench".parse()?,
            priority: 0,
            start_at: StartAt::Beginning,
            framing: FramingSpec {
                pattern: framing.map(|text| Pattern::Start(text.to_owned())),
                ..FramingSpec::default()
            },
            ignore_older: None,
            flush_after: None,
            pace: Pace::default(),
            service: None,
        };
        let start = Instant::now();
        collector.apply(vec![rule], start);
        let mut events = 0;
        while let Some(chunk) = collector.poll(Instant::now(), u64::MAX) {
            events += u64::from(chunk.events);
            collector.ack(chunk.stream, chunk.range.end, Instant::now());
        }
        let seconds = start.elapsed().as_secs_f64();
        // The last event of a multiline file stays open.
        if collector.totals().read_bytes + (files * 200) as u64 <= total as u64 {
            return Err(format!("not all was read: {:?} {:?}", collector.totals(), collector.rules()).into());
        }
        let (bytes, commits) = (collector.totals().read_bytes, collector.totals().commits);
        println!(
            "{files} files, {}: {bytes} of {total} bytes, {events} events in {seconds:.2} s: {:.0} MB/s, {commits} commits",
            if framing.is_some() { "multiline" } else { "lines" },
            bytes as f64 / seconds / 1e6,
        );
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
    Ok(())
}

/// Writes lines of about 100 bytes; answers how many bytes.
fn write_files(folder: &std::path::Path, bytes: usize, files: usize) -> std::io::Result<usize> {
    let mut total = 0;
    for file in 0..files {
        let mut out = std::io::BufWriter::new(std::fs::File::create(folder.join(format!("{file}.log")))?);
        let mut written = 0;
        for line in 0usize.. {
            if written >= bytes / files {
                break;
            }
            let text = format!("2026-11-22T18:05:{:02}Z GET /a/path/{line} 200 {:>50}\n", line % 60, "agent/1.0");
            out.write_all(text.as_bytes())?;
            written += text.len();
        }
        out.flush()?;
        total += written;
    }
    Ok(total)
}
