//! How long to wait before something is tried again.

use std::time::Duration;

use rand::Rng;
use tokio_util::sync::CancellationToken;

/// Exponential back-off with full jitter: the wait before attempt `n` is uniform in zero to `initial * 2^n`, at most
/// `max`, so that a thousand agents which lost the same server don't return at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The longest wait after the first failure.
    pub initial: Duration,
    /// The longest wait of all.
    pub max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { initial: Duration::from_millis(100), max: Duration::from_secs(10) }
    }
}

impl RetryPolicy {
    /// A random wait for this attempt, counted from 0.
    pub fn delay(&self, attempt: u32) -> Duration {
        self.bound(attempt).mul_f64(rand::rng().random::<f64>())
    }

    /// Waits [`delay`](Self::delay); false as soon as the token is cancelled.
    pub async fn pause(&self, attempt: u32, token: &CancellationToken) -> bool {
        tokio::select! {
            () = token.cancelled() => false,
            () = tokio::time::sleep(self.delay(attempt)) => !token.is_cancelled(),
        }
    }

    fn bound(&self, attempt: u32) -> Duration {
        self.initial.saturating_mul(2u32.saturating_pow(attempt)).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_the_maximum() {
        let policy = RetryPolicy { initial: Duration::from_millis(100), max: Duration::from_secs(1) };
        let bounds: Vec<u128> = [0, 1, 3, 4, 40, u32::MAX].iter().map(|n| policy.bound(*n).as_millis()).collect();
        assert_eq!(bounds, [100, 200, 800, 1000, 1000, 1000]);
        assert!((0..100).all(|n| policy.delay(n) <= policy.bound(n)));
    }

    #[tokio::test]
    async fn a_cancelled_pause_says_so() {
        let token = CancellationToken::new();
        token.cancel();
        let policy = RetryPolicy { initial: Duration::from_secs(3600), max: Duration::from_secs(3600) };
        assert!(!policy.pause(0, &token).await);
        let quick = RetryPolicy { initial: Duration::ZERO, max: Duration::ZERO };
        assert!(quick.pause(0, &CancellationToken::new()).await);
    }
}
