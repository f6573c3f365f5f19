//! How many buffers are on lease, as the admin endpoint shows it: at rest none.
//!
//! Each worker publishes its own number, one atomic that nobody else writes, before it goes to sleep.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The numbers of all workers, for reading.
#[derive(Debug, Clone, Default)]
pub struct Leases(Vec<Arc<AtomicUsize>>);

/// One worker's number, for writing.
#[derive(Debug, Default)]
pub(super) struct Leased(Arc<AtomicUsize>);

impl Leases {
    /// A worker is added.
    pub(super) fn add(&mut self) -> Leased {
        let leased = Leased::default();
        self.0.push(Arc::clone(&leased.0));
        leased
    }

    /// Over all workers.
    pub fn total(&self) -> usize {
        self.0.iter().map(|leased| leased.load(Ordering::Relaxed)).sum()
    }
}

impl Leased {
    pub(super) fn set(&self, buffers: usize) {
        self.0.store(buffers, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a worker that overwrites another's number.
    #[test]
    fn numbers_are_added_up() {
        let mut leases = Leases::default();
        let workers = [leases.add(), leases.add()];
        workers.iter().for_each(|leased| leased.set(9));
        workers[1].set(2);
        assert_eq!(leases.total(), 11);
    }
}
