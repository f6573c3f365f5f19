//! How long to wait before the next try: exponential, with jitter, bounded, and never sooner than the origin asked for.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::Error;

/// How often and how patiently a failed read is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Failures in a row, without a byte in between, after which the error is given to the caller.
    pub attempts: u32,
    /// The wait after the first failure; doubles with each.
    pub first: Duration,
    /// The longest wait of our own; `Retry-After` may ask for up to `retry_after_max`.
    pub max: Duration,
    /// The longest `Retry-After` that is obeyed; a longer one ends the tries.
    pub retry_after_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 8,
            first: Duration::from_millis(100),
            max: Duration::from_secs(5),
            retry_after_max: Duration::from_secs(60),
        }
    }
}

/// The state of one sequence of tries.
#[derive(Debug)]
pub struct Backoff {
    policy: RetryPolicy,
    failures: u32,
}

impl Backoff {
    /// No failure yet.
    pub fn new(policy: RetryPolicy) -> Self {
        Self { policy, failures: 0 }
    }

    /// Forgets the failures: something worked.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// The wait before the next try, or the error back when trying again is no use.
    pub fn failed(&mut self, error: Error) -> Result<Duration, Error> {
        self.failures += 1;
        if !error.is_transient() || self.failures >= self.policy.attempts {
            return Err(error);
        }
        let asked = error.retry_after().unwrap_or_default();
        if asked > self.policy.retry_after_max {
            return Err(error);
        }
        let doubled = self.policy.first.saturating_mul(1 << (self.failures - 1).min(16)).min(self.policy.max);
        // Between half and all of it, so that nodes that failed together do not come back together.
        Ok(doubled.mul_f64(0.5 + random_unit() / 2.0).max(asked))
    }
}

/// A number in 0..1 from the standard library's randomly keyed hasher: jitter needs no better source.
fn random_unit() -> f64 {
    (RandomState::new().hash_one(0u8) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut() -> Error {
        Error::Cut { url: String::new(), received: 0, cause: String::new() }
    }

    /// Catches a wait that does not grow, grows without bound, or never gives up.
    #[test]
    fn waits_grow_and_end() {
        let policy = RetryPolicy { attempts: 10, ..RetryPolicy::default() };
        let mut backoff = Backoff::new(policy);
        for failure in 1..10 {
            let wait = backoff.failed(cut()).unwrap();
            let full = (policy.first * (1 << (failure - 1))).min(policy.max);
            assert!(wait >= full / 2 && wait <= full, "{failure}: {wait:?}");
        }
        assert!(backoff.failed(cut()).is_err());
        backoff.succeeded();
        assert!(backoff.failed(cut()).unwrap() <= policy.first);
    }

    /// Catches a retry that comes before the time that the registry asked for, or for an error that lasts.
    #[test]
    fn retry_after_is_obeyed_and_permanent_errors_end_it() {
        let mut backoff = Backoff::new(RetryPolicy::default());
        let busy =
            |seconds| Error::TooManyRequests { url: String::new(), retry_after: Some(Duration::from_secs(seconds)) };
        assert!(backoff.failed(busy(7)).unwrap() >= Duration::from_secs(7));
        assert!(backoff.failed(busy(3600)).is_err());
        assert!(Backoff::new(RetryPolicy::default()).failed(Error::Digest(String::new())).is_err());
    }
}
