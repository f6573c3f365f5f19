//! The places of the mirror's connections, and which one makes room for a newcomer.
//!
//! Owned by the loop that accepts. Who waits for a request loses its place first: clients that say nothing, or hold a connection that they
//! do not use, must not keep the runtime from being answered. A connection that is being answered is never ended here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::task::AbortHandle;

/// A place whose connection is being answered.
const ANSWERING: u64 = 0;
/// A place that went to somebody else.
const GONE: u64 = u64::MAX;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    taken: Vec<(Arc<Place>, AbortHandle)>,
    waits: Arc<AtomicU64>,
}

/// The place of one connection.
#[derive(Debug)]
pub(super) struct Place {
    /// The number of its wait for a request, rising over all places; or one of the constants above.
    wait: AtomicU64,
    waits: Arc<AtomicU64>,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: Vec::new(), waits: Arc::new(AtomicU64::new(ANSWERING)) }
    }

    /// A place for a newcomer, if need be that of the connection that has waited longest for a request, which ends then. `None`: all are
    /// being answered.
    pub(super) fn find(&mut self) -> Option<Arc<Place>> {
        self.taken.retain(|(_, connection)| !connection.is_finished());
        while self.taken.len() >= self.most {
            let waiting =
                self.taken.iter().enumerate().map(|(at, (place, _))| (place.wait.load(Ordering::Acquire), at));
            let (wait, at) = waiting.filter(|(wait, _)| *wait != ANSWERING).min()?;
            let (place, connection) = &self.taken[at];
            if place.wait.compare_exchange(wait, GONE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                connection.abort();
                self.taken.swap_remove(at);
            }
        }
        let place = Place { wait: AtomicU64::new(ANSWERING), waits: self.waits.clone() };
        place.waits_for_request();
        Some(Arc::new(place))
    }

    /// The connection that sits at `place`.
    pub(super) fn take(&mut self, place: Arc<Place>, connection: AbortHandle) {
        self.taken.push((place, connection));
    }
}

impl Place {
    /// From now on it may be taken away.
    pub(super) fn waits_for_request(&self) {
        self.wait.store(self.waits.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// A request is here: the place is kept until it has been answered. `false`: too late, it is somebody else's.
    #[must_use]
    pub(super) fn answers(&self) -> bool {
        let answering = |wait| (wait != GONE).then_some(ANSWERING);
        self.wait.fetch_update(Ordering::AcqRel, Ordering::Acquire, answering).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches an answer that is broken off for a newcomer, a newcomer that is preferred to who came before, and one that is turned away
    /// though somebody only waits.
    #[tokio::test]
    async fn who_has_waited_longest_makes_room() {
        let mut places = Places::new(3);
        let sit = |places: &mut Places| {
            let place = places.find()?;
            places.take(place.clone(), tokio::spawn(std::future::pending::<()>()).abort_handle());
            Some(place)
        };
        let [first, second, third] = [(); 3].map(|()| sit(&mut places).unwrap());
        assert!(first.answers());
        first.waits_for_request();
        assert!(third.answers());
        let fourth = sit(&mut places).expect("two only wait");
        assert!(!second.answers(), "it has waited longest");
        assert!(fourth.answers());
        let fifth = sit(&mut places).expect("one only waits");
        assert!(!first.answers() && fifth.answers());
        assert!(sit(&mut places).is_none(), "all are being answered");
        third.waits_for_request();
        assert!(sit(&mut places).is_some());
    }
}
