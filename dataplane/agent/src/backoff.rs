//! Delays before another try: doubling, with jitter, bounded.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// The next delay of a series of failures.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Delays from about `first` to at most `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// How long to wait now: between half of the full delay and all of it, so that a thousand agents do not come back at once.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let full = self.first.saturating_mul(1 << self.failures.min(20)).min(self.longest);
        self.failures += 1;
        full.mul_f64(0.5 + 0.5 * fraction())
    }

    /// Something worked: the next delay is the first one again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A number in 0..1 that differs between calls and processes. `RandomState` takes its keys from the system's randomness; that is
/// enough to spread retries and spares a dependency.
fn fraction() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches delays that leave their bounds, do not grow, overflow, or do not start anew.
    #[test]
    fn delays_grow_within_bounds() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(first, longest);
        for failure in 0..100u32 {
            let full = first.saturating_mul(1 << failure.min(10)).min(longest);
            let delay = backoff.next_delay();
            assert!(delay >= full / 2 && delay <= full, "{delay:?} after {failure} failures");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= first);
    }
}
