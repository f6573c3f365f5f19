//! The node's rate limit, divided over the connections to children on which something goes out.
//!
//! Each worker counts its own, publishes the number, and divides by the sum of all: one atomic per worker, no lock. Who sets the rates on
//! the sockets is the stripe.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use faasnet_relay::upstream::Now;

/// One worker's part; see the module's documentation.
#[derive(Debug)]
pub(super) struct Pacing {
    bytes_per_second: u64,
    active: Arc<[AtomicUsize]>,
    worker: usize,
    due: Now,
}

/// How often the rate is divided anew.
const EVERY: Duration = Duration::from_millis(100);

impl Pacing {
    /// One part for each of `workers`.
    pub(super) fn for_all(workers: usize, bytes_per_second: u64) -> Vec<Self> {
        let active: Arc<[AtomicUsize]> = (0..workers).map(|_| AtomicUsize::new(0)).collect();
        let part = |worker| Self { bytes_per_second, active: Arc::clone(&active), worker, due: Now::ZERO };
        (0..workers).map(part).collect()
    }

    /// Whether it is time to divide anew.
    pub(super) fn is_due(&mut self, now: Now) -> bool {
        let due = now >= self.due;
        if due {
            self.due = now + EVERY;
        }
        due
    }

    /// The rate of each connection when `active` of this worker's send something.
    pub(super) fn share(&self, active: usize) -> u64 {
        // Relaxed: the numbers are estimates and guard nothing; the next turn corrects what was seen late.
        self.active[self.worker].store(active, Ordering::Relaxed);
        let all: usize = self.active.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        (self.bytes_per_second / all.max(1) as u64).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches workers that each hand out the whole rate, and a share that is kept when others have stopped.
    #[test]
    fn workers_share_one_limit() {
        let mut parts = Pacing::for_all(2, 1000);
        assert_eq!(parts[0].share(2), 500);
        assert_eq!(parts[1].share(3), 200);
        assert_eq!(parts[0].share(2), 200);
        assert_eq!((parts[1].share(0), parts[0].share(1)), (500, 1000));
        assert!(parts[0].is_due(Now::ZERO) && !parts[0].is_due(Duration::from_millis(99)));
        assert!(parts[0].is_due(Duration::from_millis(100)));
    }
}
