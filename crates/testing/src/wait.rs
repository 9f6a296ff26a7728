//! Waiting for a state, never for a time: tests name the condition, and a failure says what the state was last.

use std::future::Future;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often the state is looked at.
const STEP: Duration = Duration::from_millis(20);

/// Calls `state` until it gives `Ok`. Panics after `limit` with `what` was waited for and the last `Err`.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut state: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + limit;
    loop {
        match state() {
            Ok(value) => return value,
            Err(last) if Instant::now() >= end => panic!("waited {limit:?} for {what}; last: {last}"),
            Err(_) => sleep(STEP),
        }
    }
}

/// [`wait_for`] for asynchronous tests.
pub async fn wait_for_async<T, F>(what: &str, limit: Duration, mut state: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let end = Instant::now() + limit;
    loop {
        match state().await {
            Ok(value) => return value,
            Err(last) if Instant::now() >= end => panic!("waited {limit:?} for {what}; last: {last}"),
            Err(_) => tokio::time::sleep(STEP).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_with_the_condition() {
        let mut calls = 0;
        let seen = wait_for("three calls", Duration::from_secs(30), || {
            calls += 1;
            if calls == 3 { Ok(calls) } else { Err(format!("{calls} calls")) }
        });
        assert_eq!(seen, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "for a miracle; last: still nothing")]
    async fn a_failure_says_what_was_seen_last() {
        wait_for_async("a miracle", Duration::ZERO, || async { Err::<(), _>("still nothing".to_owned()) }).await;
    }
}
