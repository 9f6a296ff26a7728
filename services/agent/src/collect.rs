//! The thread that drives the collector, and the handle by which tasks talk to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use logmesh_runtime::{CancellationToken, Tasks};
use logmesh_tail::{Chunk, Collector, FileStatus, GlobError, Recall, RuleError, RuleStatus, TailRule, Totals, Waker};
use logmesh_types::{ByteRange, RuleName, StreamId};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};

use crate::repeats::{Fate, Repeats};
use crate::settings::Settings;

/// Commands that may wait for the thread.
const COMMANDS: usize = 1024;

/// Chunks that may wait for the connection; their bytes are counted as in flight already.
const CHUNKS: usize = 8;

/// The most chunks that are sent before acks are looked at again.
const BURST: usize = 32;

/// The longest sleep.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What became of a rule that was to run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub name: RuleName,
    pub result: Result<(), RuleError>,
    /// Something of the rule runs: as it was to, or as it ran before.
    pub runs: bool,
}

/// How things stand with the collector.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub files: Vec<FileStatus>,
    pub rules: Vec<RuleStatus>,
    pub totals: Totals,
    pub state_error: Option<String>,
}

#[derive(Debug)]
enum Command {
    Apply(Vec<TailRule>, oneshot::Sender<Vec<Outcome>>),
    Connected(mpsc::Sender<Chunk>),
    Credit(u64),
    Ack(StreamId, u64),
    Reject(StreamId, ByteRange, String),
    /// Send nothing more; the acks still count.
    Disconnected,
    Snapshot(oneshot::Sender<Snapshot>),
    Reconfigure(Arc<Settings>, oneshot::Sender<Result<(), GlobError>>),
    Recall(StreamId, oneshot::Sender<Option<Recall>>),
    Repeat(Chunk, oneshot::Sender<Fate>),
    Stop,
}

/// Talks to the collector's thread. Calls fail only when the thread has ended.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    waker: Waker,
    activity: watch::Receiver<u64>,
}

/// Starts the thread. When the token is cancelled, it writes its positions and ends.
pub(crate) fn start(collector: Collector, tasks: &Tasks, token: CancellationToken) -> anyhow::Result<Handle> {
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let (activity, seen) = watch::channel(0);
    let handle = Handle { commands, waker: collector.waker(), activity: seen };
    let (ended, end) = oneshot::channel();
    let repeats = Repeats::default();
    let driver = Driver { collector, commands: receiver, connection: None, repeats, activity, stop: false };
    std::thread::Builder::new()
        .name("collector".into())
        .spawn(move || {
            // If nobody listens any more, the process is ending.
            ended.send(driver.run()).ok();
        })
        .context("cannot start the collector's thread")?;
    let stop = handle.clone();
    tasks.spawn("collector", async move {
        let mut end = end;
        tokio::select! {
            result = &mut end => return result.context("the collector's thread panicked")?,
            () = token.cancelled() => {}
        }
        stop.send(Command::Stop).await.ok();
        end.await.context("the collector's thread panicked")?
    });
    Ok(handle)
}

impl Handle {
    /// Runs these rules and no others.
    pub(crate) async fn apply(&self, rules: Vec<TailRule>) -> anyhow::Result<Vec<Outcome>> {
        let (answer, outcomes) = oneshot::channel();
        self.send(Command::Apply(rules, answer)).await?;
        outcomes.await.map_err(|_| ended())
    }

    /// A connection is there: gives its chunks, once there's credit. All that is unacked is sent again.
    pub(crate) async fn connected(&self) -> anyhow::Result<mpsc::Receiver<Chunk>> {
        let (sender, chunks) = mpsc::channel(CHUNKS);
        self.send(Command::Connected(sender)).await?;
        Ok(chunks)
    }

    /// More bytes may be sent over the present connection.
    pub(crate) async fn credit(&self, bytes: u64) -> anyhow::Result<()> {
        self.send(Command::Credit(bytes)).await
    }

    /// A stream is durable up to here.
    pub(crate) async fn ack(&self, stream: StreamId, end: u64) -> anyhow::Result<()> {
        self.send(Command::Ack(stream, end)).await
    }

    /// A chunk was refused.
    pub(crate) async fn reject(&self, stream: StreamId, range: ByteRange, reason: String) -> anyhow::Result<()> {
        self.send(Command::Reject(stream, range, reason)).await
    }

    /// Nothing more can be sent over the present connection; acks may still come.
    pub(crate) async fn disconnected(&self) -> anyhow::Result<()> {
        self.send(Command::Disconnected).await
    }

    /// How things stand.
    pub(crate) async fn snapshot(&self) -> anyhow::Result<Snapshot> {
        let (answer, snapshot) = oneshot::channel();
        self.send(Command::Snapshot(answer)).await?;
        snapshot.await.map_err(|_| ended())
    }

    /// Takes what the collector needs of changed settings; an error: a bad glob, and nothing has changed.
    pub(crate) async fn reconfigure(&self, settings: Arc<Settings>) -> anyhow::Result<()> {
        let (answer, outcome) = oneshot::channel();
        self.send(Command::Reconfigure(settings, answer)).await?;
        outcome.await.map_err(|_| ended())?.context("allow")
    }

    /// What is needed to read what was acked of a stream again; `None`: there's no file of it.
    pub(crate) async fn recall(&self, stream: StreamId) -> anyhow::Result<Option<Recall>> {
        let (answer, recall) = oneshot::channel();
        self.send(Command::Recall(stream, answer)).await?;
        recall.await.map_err(|_| ended())
    }

    /// Sends a chunk once more, when nothing new can be sent or it's its turn; gives what becomes of it. Dropped, it may not be sent.
    pub(crate) async fn repeat(&self, chunk: Chunk) -> anyhow::Result<oneshot::Receiver<Fate>> {
        let (fate, told) = oneshot::channel();
        self.send(Command::Repeat(chunk, fate)).await?;
        Ok(told)
    }

    /// A chunk was taken out of the connection's queue: there's room for another.
    pub(crate) fn chunk_taken(&self) {
        self.waker.wake();
    }

    /// Changes whenever a snapshot would differ.
    pub(crate) fn activity(&self) -> watch::Receiver<u64> {
        self.activity.clone()
    }

    async fn send(&self, command: Command) -> anyhow::Result<()> {
        self.commands.send(command).await.map_err(|_| ended())?;
        self.waker.wake();
        Ok(())
    }
}

fn ended() -> anyhow::Error {
    anyhow!("the collector has ended")
}

struct Connection {
    chunks: mpsc::Sender<Chunk>,
    credit: u64,
}

struct Driver {
    collector: Collector,
    commands: mpsc::Receiver<Command>,
    connection: Option<Connection>,
    repeats: Repeats,
    activity: watch::Sender<u64>,
    stop: bool,
}

impl Driver {
    fn run(mut self) -> anyhow::Result<()> {
        loop {
            self.take_commands();
            if self.stop {
                return Ok(self.collector.flush(Instant::now())?);
            }
            let more = self.send_chunks();
            self.note_activity();
            if !more {
                self.collector.wait(Instant::now(), LONGEST_SLEEP);
            }
        }
    }

    fn take_commands(&mut self) {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.take(command),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.stop = true;
                    return;
                }
            }
        }
    }

    fn take(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            // An answer that nobody waits for any more is as well.
            Command::Apply(rules, answer) => {
                answer.send(self.apply(rules, now)).ok();
            }
            Command::Connected(chunks) => {
                self.collector.reconnect();
                self.repeats.lost();
                self.connection = Some(Connection { chunks, credit: 0 });
            }
            Command::Credit(bytes) => {
                if let Some(connection) = &mut self.connection {
                    connection.credit = connection.credit.saturating_add(bytes);
                }
            }
            Command::Ack(stream, end) => {
                self.repeats.acked(stream, end);
                self.collector.ack(stream, end, now);
            }
            Command::Reject(stream, range, reason) => {
                self.repeats.refused(stream, range, &reason);
                self.collector.reject(stream, range, &reason, now);
            }
            Command::Disconnected => self.connection = None,
            Command::Snapshot(answer) => {
                // A rule that was just applied is told with what it found: a scan that is due comes first.
                self.collector.poll(now, 0);
                answer.send(self.snapshot()).ok();
            }
            Command::Reconfigure(settings, answer) => {
                let Settings { allow, own_dirs, max_in_flight, .. } = &*settings;
                answer.send(self.collector.reconfigure(allow.clone(), own_dirs.clone(), max_in_flight.0)).ok();
            }
            Command::Recall(stream, answer) => {
                answer.send(self.collector.recall(stream)).ok();
            }
            Command::Repeat(chunk, fate) => self.repeats.add(chunk, fate),
            Command::Stop => self.stop = true,
        }
    }

    fn apply(&mut self, rules: Vec<TailRule>, now: Instant) -> Vec<Outcome> {
        let results = self.collector.apply(rules, now).into_iter();
        let outcome = |(name, result): (RuleName, Result<(), RuleError>)| {
            let runs = result.is_ok() || self.collector.running_revision(&name).is_some();
            Outcome { name, result, runs }
        };
        results.map(outcome).collect()
    }

    /// Gives the connection what it can take; true: there may be more at once.
    fn send_chunks(&mut self) -> bool {
        if self.connection.as_ref().is_some_and(|connection| connection.chunks.is_closed()) {
            self.connection = None;
        }
        for _ in 0..BURST {
            let now = Instant::now();
            let room = self.connection.as_mut().and_then(|Connection { chunks, credit }| {
                // Full or closed: nothing can be sent.
                chunks.try_reserve().ok().map(|room| (room, credit))
            });
            let Some((room, credit)) = room else {
                // Files are still found, watched and kept open.
                self.collector.poll(now, 0);
                return false;
            };
            let chunk = match self.repeats.are_due() {
                // It waits for its credit: a gateway's is enough for any chunk once what is on its way is acked.
                true => self.repeats.next(*credit).or_else(|| self.collector.poll(now, 0)),
                false => self.collector.poll(now, *credit).inspect(|_| self.repeats.overtake()),
            };
            let Some(chunk) = chunk.or_else(|| self.repeats.next(*credit)) else { return false };
            *credit -= chunk.data.len() as u64;
            room.send(chunk);
        }
        true
    }

    fn note_activity(&mut self) {
        let activity = self.collector.activity();
        self.activity.send_if_modified(|seen| std::mem::replace(seen, activity) != activity);
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            files: self.collector.status(),
            rules: self.collector.rules(),
            totals: self.collector.totals(),
            state_error: self.collector.state_error().map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use logmesh_tail::{FramingSpec, Pace, StartAt};
    use tempfile::TempDir;

    use super::*;

    const CREDIT: u64 = 64 << 10;

    /// A collector of one file, connected.
    struct Bench {
        driver: Driver,
        chunks: mpsc::Receiver<Chunk>,
        folder: TempDir,
        _commands: mpsc::Sender<Command>,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let glob = folder.path().join("logs/*.log").display().to_string();
            std::fs::create_dir(folder.path().join("logs")).unwrap();
            let state = folder.path().join("state");
            let mut settings = logmesh_tail::Settings::new("agent".parse().unwrap(), state, vec![glob.clone()]);
            settings.linger = Duration::ZERO;
            let mut collector = Collector::open(settings).unwrap();
            let rule = TailRule {
                name: "a".parse().unwrap(),
                revision: 1,
                globs: vec![glob],
                exclude: Vec::new(),
                topic: "t".parse().unwrap(),
                priority: 0,
                start_at: StartAt::Beginning,
                framing: FramingSpec::default(),
                ignore_older: None,
                flush_after: None,
                pace: Pace::default(),
                service: None,
            };
            collector.apply(vec![rule], Instant::now()).into_iter().for_each(|(_, result)| result.unwrap());
            let ((commands, receiver), (activity, _)) = (mpsc::channel(COMMANDS), watch::channel(0));
            let (sender, chunks) = mpsc::channel(CHUNKS);
            let connection = Some(Connection { chunks: sender, credit: 0 });
            let repeats = Repeats::default();
            let driver = Driver { collector, commands: receiver, connection, repeats, activity, stop: false };
            let bench = Self { driver, chunks, folder, _commands: commands };
            bench.write(8 << 20);
            bench
        }

        /// More new lines than are sent here.
        fn write(&self, bytes: usize) {
            let path = self.folder.path().join("logs/a.log");
            let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
            file.write_all("a line of the file, of which there is always more\n".repeat(bytes / 50).as_bytes())
                .unwrap();
        }

        /// What is sent with so much more credit; acked at once.
        fn step(&mut self, credit: u64) -> Vec<Chunk> {
            self.driver.take(Command::Credit(credit));
            let mut sent = Vec::new();
            // One at a time: all that the credit is good for.
            while self.driver.connection.is_some() {
                self.driver.send_chunks();
                match self.chunks.try_recv() {
                    Ok(chunk) => sent.push(chunk),
                    Err(_) => break,
                }
            }
            sent.iter().for_each(|chunk| self.driver.take(Command::Ack(chunk.stream, chunk.range.end)));
            sent
        }
    }

    /// Under constant load a repeat that needs more credit than ever is left comes all the same, and takes its share, not more.
    #[test]
    fn what_is_new_leaves_repeats_their_turns() {
        let mut bench = Bench::new();
        let first = bench.step(3 * CREDIT).remove(0);
        assert!(first.data.len() as u64 > CREDIT, "void: it fits into what each ack gives");
        let mut fates = Vec::new();
        for _ in 0..3 {
            let (fate, told) = oneshot::channel();
            bench.driver.take(Command::Repeat(Chunk { again: true, ..first.clone() }, fate));
            fates.push(told);
        }
        let sent: Vec<bool> = (0..60).flat_map(|_| bench.step(CREDIT)).map(|chunk| chunk.again).collect();
        let repeats: Vec<usize> = (0..sent.len()).filter(|place| sent[*place]).collect();
        assert_eq!(repeats.len(), 3, "{sent:?}");
        let turn = crate::repeats::TURN as usize;
        assert!(repeats.windows(2).all(|pair| pair[1] - pair[0] == turn), "{repeats:?}");
        assert!(sent.len() > 5 * turn && sent[repeats[2] + 1..].iter().all(|again| !again), "{sent:?}");
        assert!(fates.iter_mut().all(|told| told.try_recv() == Ok(Fate::Acked)));
    }

    /// One that nobody waits for any more holds nothing up.
    #[test]
    fn a_repeat_that_was_given_up_is_forgotten() {
        let mut bench = Bench::new();
        let first = bench.step(3 * CREDIT).remove(0);
        let (fate, told) = oneshot::channel();
        bench.driver.take(Command::Repeat(Chunk { again: true, ..first }, fate));
        drop(told);
        let sent: Vec<Chunk> = (0..20).flat_map(|_| bench.step(CREDIT)).collect();
        assert!(sent.len() >= 20 && sent.iter().all(|chunk| !chunk.again));
    }
}
