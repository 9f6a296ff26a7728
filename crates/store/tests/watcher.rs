//! How a [`ConfigWatcher`] behaves towards a store that comes and goes: paced, quiet in the log, never reading more than it
//! must. The store is a script, since no real one fails on demand, at a time that stands still.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use logmesh_store::*;

/// What one call answers; a watch gives these items and stays open if the last isn't an error.
#[derive(Debug)]
enum Answer {
    List(u64),
    ListLost,
    Watch(Vec<Result<u64, Option<u64>>>),
}

/// A store that answers by a script, then loses everything, and keeps what it was asked.
#[derive(Debug, Default)]
struct Script {
    answers: Mutex<VecDeque<Answer>>,
    asked: Mutex<Vec<String>>,
}

impl Script {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Arc<Self> {
        Arc::new(Self { answers: Mutex::new(answers.into_iter().collect()), asked: Mutex::default() })
    }

    fn answer(&self, question: String) -> Option<Answer> {
        self.asked.lock().unwrap().push(question);
        self.answers.lock().unwrap().pop_front()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn lost() -> StoreError {
    StoreError::unavailable("it is away")
}

#[async_trait]
impl ConfigStore for Script {
    async fn get(&self, _: &str) -> Result<Option<Versioned>, StoreError> {
        Err(lost())
    }

    async fn list(&self, _: &str) -> Result<Snapshot, StoreError> {
        match self.answer("list".to_owned()) {
            Some(Answer::List(revision)) => Ok(Snapshot { revision: Revision(revision), entries: Vec::new() }),
            Some(Answer::ListLost) | None => Err(lost()),
            Some(other) => panic!("a list was asked, {other:?} was next"),
        }
    }

    async fn txn(&self, _: Txn) -> Result<Revision, StoreError> {
        Err(lost())
    }

    fn watch(&self, _: &str, after: Revision) -> ChangeStream {
        let items = match self.answer(format!("watch {after}")) {
            Some(Answer::Watch(items)) => items,
            None => vec![Err(None)],
            Some(other) => panic!("a watch was asked, {other:?} was next"),
        };
        let ended = items.iter().any(Result::is_err);
        let items = items.into_iter().map(|item| match item {
            Ok(revision) => Ok(Change { revision: Revision(revision), keys: Vec::new() }),
            Err(None) => Err(WatchError::Lost(lost())),
            Err(Some(oldest)) => Err(WatchError::Compacted { oldest: Revision(oldest) }),
        });
        let items = futures::stream::iter(items.collect::<Vec<_>>());
        if ended { items.boxed() } else { items.chain(futures::stream::pending()).boxed() }
    }

    async fn compact(&self, _: Revision) -> Result<(), StoreError> {
        Err(lost())
    }

    async fn grant_lease(&self, _: Duration) -> Result<Lease, StoreError> {
        Err(lost())
    }

    async fn keep_alive(&self, _: LeaseId) -> Result<Duration, StoreError> {
        Err(lost())
    }

    async fn revoke_lease(&self, _: LeaseId) -> Result<(), StoreError> {
        Err(lost())
    }
}

/// Drives a watcher of the script for a while, and gives what it logged.
async fn follow(script: &Arc<Script>, time: Duration) -> (ConfigWatcher, String) {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (watcher, driver) = ConfigWatcher::new(script.clone(), "/p/");
    let driven = tokio::time::timeout(time, driver).await;
    assert!(driven.is_err(), "the driver ended");
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    (watcher, text)
}

#[tokio::test(start_paused = true)]
async fn a_long_outage_is_paced_and_told_once() {
    let script = Script::new([Answer::List(7), Answer::Watch(vec![Err(None)])]);
    let (watcher, log) = follow(&script, Duration::from_secs(600)).await;
    let attempts = script.asked().len();
    // Half of 2 s is the mean wait.
    assert!((300..1_200).contains(&attempts), "{attempts} attempts in ten minutes");
    assert_eq!(log.matches("cannot follow the config store").count(), 1, "{log}");
    assert_eq!(watcher.latest().revision, Revision(7), "the last state stays");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_back_is_told_although_nothing_changes() {
    let lost = || Answer::Watch(vec![Err(None)]);
    let back = Answer::Watch(Vec::new());
    let script = Script::new([Answer::ListLost, Answer::ListLost, Answer::List(3), lost(), lost(), back]);
    let (_, log) = follow(&script, Duration::from_secs(60)).await;
    assert_eq!(script.asked(), ["list", "list", "list", "watch 3", "watch 3", "watch 3"]);
    let told =
        ["cannot follow", "following the config store again", "cannot follow", "following the config store again"];
    let mut rest = log.as_str();
    for told in told {
        rest = rest.split_once(told).unwrap_or_else(|| panic!("no {told:?} in {log}")).1;
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_compaction_makes_it_read_the_prefix_anew() {
    let answers = [
        Answer::List(3),
        Answer::Watch(vec![Ok(5), Ok(9), Err(None)]),
        Answer::Watch(vec![Err(Some(20))]),
        Answer::List(21),
        Answer::Watch(Vec::new()),
    ];
    let script = Script::new(answers);
    let (watcher, _) = follow(&script, Duration::from_secs(60)).await;
    assert_eq!(
        script.asked(),
        ["list", "watch 3", "watch 9", "list", "watch 21"],
        "bookmarks move the place to resume"
    );
    assert_eq!(watcher.latest().revision, Revision(21));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_compacts_all_the_time_is_not_asked_all_the_time() {
    let rounds = (0..1_000_000).flat_map(|n| [Answer::List(n + 1), Answer::Watch(vec![Err(Some(n + 2))])]);
    let script = Script::new(rounds.take(100_000));
    follow(&script, Duration::from_secs(60)).await;
    let asked = script.asked().len();
    assert!(asked < 2 * 60 * 40, "{asked} calls in a minute");
}
