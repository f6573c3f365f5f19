//! What happens when: events ordered by virtual time, and by the order of their making at the same time.
//!
//! The only clock of a simulation. Two runs that schedule the same events in the same order see the same history.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Nanoseconds since the start of the simulation.
pub(crate) type Time = u64;

/// One microsecond.
pub(crate) const MICROSECOND: Time = 1_000;
/// One millisecond.
pub(crate) const MILLISECOND: Time = 1_000_000;
/// One second.
pub(crate) const SECOND: Time = 1_000_000_000;

/// See the module's documentation.
pub(crate) struct Agenda<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    now: Time,
    made: u64,
    done: u64,
}

struct Entry<E> {
    at: Time,
    number: u64,
    event: E,
}

impl<E> Agenda<E> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), now: 0, made: 0, done: 0 }
    }

    pub(crate) fn now(&self) -> Time {
        self.now
    }

    /// How many events have happened.
    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    /// Schedules `event`; a time that is over means now.
    pub(crate) fn at(&mut self, at: Time, event: E) {
        self.made += 1;
        self.heap.push(Reverse(Entry { at: at.max(self.now), number: self.made, event }));
    }

    pub(crate) fn after(&mut self, delay: Time, event: E) {
        self.at(self.now + delay, event);
    }

    /// The next event, to whose time the clock moves.
    pub(crate) fn next(&mut self) -> Option<E> {
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        self.done += 1;
        Some(entry.event)
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches events of the same moment that change places, which would make a seed mean two histories.
    #[test]
    fn events_come_in_order_of_time_then_of_making() {
        let mut agenda = Agenda::new();
        for (at, name) in [(5, "c"), (1, "a"), (5, "d"), (1, "b")] {
            agenda.at(at, name);
        }
        let order: Vec<_> = std::iter::from_fn(|| agenda.next().map(|name| (agenda.now(), name))).collect();
        assert_eq!(order, [(1, "a"), (1, "b"), (5, "c"), (5, "d")]);
    }
}
