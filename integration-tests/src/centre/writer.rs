//! A stream of rule changes: rules are made, changed and deleted by one of the config services, whatever happens to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use logmesh_proto::config::v1::rule_service_client::RuleServiceClient;
use logmesh_proto::config::v1::{DeleteRuleRequest, Rule, UpdateRuleRequest};
use logmesh_testing::wait_for;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::client::PATIENCE;

/// The rules that are written, by number.
const RULES: u32 = 8;

/// Whom they are for.
const SELECTORS: [&str; 6] = ["", "group=1", "group in (0, 2)", "group!=3", "role=real", "os=linux, group!=2"];

/// Between two writes.
const BREATH: Duration = Duration::from_millis(30);

/// How long an answer may take. etcd's own limit is shorter.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A running writer.
#[derive(Debug)]
pub struct RuleWriter {
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl RuleWriter {
    /// Begins to write at one of the servers, and goes to the next when a write fails.
    pub fn start(servers: Vec<String>, seed: u64) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be started").block_on(write(&servers, seed, &stopped, &count));
        });
        Self { thread: Some(thread), stop, done }
    }

    /// Waits until so many more writes were answered.
    #[track_caller]
    pub fn wait_writes(&self, more: u64) {
        let wanted = self.done.load(Ordering::Relaxed) + more;
        wait_for(&format!("{more} more writes"), PATIENCE, || {
            let done = self.done.load(Ordering::Relaxed);
            let ended = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
            assert!(!ended, "the writer has ended");
            if done >= wanted { Ok(()) } else { Err(format!("{done} of {wanted} are answered")) }
        });
    }

    /// Stops it; the number of writes that were answered.
    pub fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it runs");
        thread.join().expect("every refusal was of a kind that a fault explains");
        self.done.load(Ordering::Relaxed)
    }
}

async fn write(servers: &[String], seed: u64, stop: &AtomicBool, done: &AtomicU64) {
    let client = |server: &String| RuleServiceClient::new(logmesh_grpc::channel(server).expect("an address"));
    let mut clients: Vec<RuleServiceClient<Channel>> = servers.iter().map(client).collect();
    let (mut rng, mut place) = (StdRng::seed_from_u64(seed), 0);
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let count = clients.len();
        match one(&mut clients[place % count], &mut rng, number).await {
            Ok(()) => {
                done.fetch_add(1, Ordering::Relaxed);
            }
            Err(status) => {
                let explained =
                    [Code::Unavailable, Code::Aborted, Code::Unknown, Code::Cancelled, Code::DeadlineExceeded];
                assert!(explained.contains(&status.code()), "{status}");
                place += 1;
            }
        }
        tokio::time::sleep(BREATH).await;
    }
}

async fn one(client: &mut RuleServiceClient<Channel>, rng: &mut StdRng, number: u64) -> Result<(), Status> {
    let name = format!("rules/r-{}", rng.random_range(0..RULES));
    let selector = SELECTORS[rng.random_range(0..SELECTORS.len())].to_owned();
    let write = async {
        if rng.random_bool(0.2) {
            let deleted = client.delete_rule(DeleteRuleRequest { name, ..DeleteRuleRequest::default() }).await;
            return deleted
                .map(drop)
                .or_else(|status| if status.code() == Code::NotFound { Ok(()) } else { Err(status) });
        }
        let paths = vec![format!("/var/log/logmesh-test-{number}/*.log")];
        let rule = Rule { name, selector, paths, topic: "logs".into(), ..Rule::default() };
        let request = UpdateRuleRequest { rule: Some(rule), allow_missing: true, ..UpdateRuleRequest::default() };
        client.update_rule(request).await.map(drop)
    };
    let timed_out = |_| Err(Status::deadline_exceeded("no answer in time"));
    tokio::time::timeout(ANSWER_TIMEOUT, write).await.unwrap_or_else(timed_out)
}
