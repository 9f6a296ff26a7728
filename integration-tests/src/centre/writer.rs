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
    /// Begins to make, change and delete a few rules at one of the servers, and goes to the next when a write fails.
    pub fn start(servers: Vec<String>, seed: u64) -> Self {
        Self::begin(servers, StdRng::seed_from_u64(seed), false)
    }

    /// Begins to make rules and to delete each at once, so that nothing is left but their history.
    pub fn churn(servers: Vec<String>) -> Self {
        Self::begin(servers, StdRng::seed_from_u64(0), true)
    }

    fn begin(servers: Vec<String>, rng: StdRng, churn: bool) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be started").block_on(write(&servers, rng, churn, &stopped, &count));
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

async fn write(servers: &[String], mut rng: StdRng, churn: bool, stop: &AtomicBool, done: &AtomicU64) {
    let client = |server: &String| RuleServiceClient::new(logmesh_grpc::channel(server).expect("an address"));
    let mut clients: Vec<RuleServiceClient<Channel>> = servers.iter().map(client).collect();
    let mut place = 0;
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let count = clients.len();
        let client = &mut clients[place % count];
        let change = if churn { Change::passing(number) } else { Change::random(&mut rng, number) };
        match change.make(client).await {
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

/// What is done to a rule.
enum Change {
    Write(Box<Rule>),
    Delete(String),
}

impl Change {
    fn random(rng: &mut StdRng, number: u64) -> Self {
        let name = format!("rules/r-{}", rng.random_range(0..RULES));
        let selector = SELECTORS[rng.random_range(0..SELECTORS.len())];
        if rng.random_bool(0.2) { Self::Delete(name) } else { Self::Write(Box::new(rule(name, selector, number))) }
    }

    /// Each rule is made, and deleted with the next change.
    fn passing(number: u64) -> Self {
        let name = format!("rules/passing-{}", number / 2);
        if number % 2 == 1 { Self::Delete(name) } else { Self::Write(Box::new(rule(name, "", number))) }
    }

    async fn make(self, client: &mut RuleServiceClient<Channel>) -> Result<(), Status> {
        let made = async {
            match self {
                Self::Write(rule) => {
                    let request =
                        UpdateRuleRequest { rule: Some(*rule), allow_missing: true, ..UpdateRuleRequest::default() };
                    client.update_rule(request).await.map(drop)
                }
                Self::Delete(name) => {
                    match client.delete_rule(DeleteRuleRequest { name, ..DeleteRuleRequest::default() }).await {
                        Err(status) if status.code() != Code::NotFound => Err(status),
                        _ => Ok(()),
                    }
                }
            }
        };
        let timed_out = |_| Err(Status::deadline_exceeded("no answer in time"));
        tokio::time::timeout(ANSWER_TIMEOUT, made).await.unwrap_or_else(timed_out)
    }
}

fn rule(name: String, selector: &str, number: u64) -> Rule {
    let paths = vec![format!("/var/log/logmesh-test-{number}/*.log")];
    Rule { name, selector: selector.to_owned(), paths, topic: "logs".into(), ..Rule::default() }
}
