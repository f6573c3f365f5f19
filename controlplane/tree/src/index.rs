//! Members by number: one look-up by name per operation, everything else through arrays.
//!
//! Among a million members a hash look-up is a miss of the cache and costs about a tenth of a microsecond; an operation touches twenty
//! places.

use std::collections::HashMap;
use std::hash::Hash;

/// A member's number, used again when it has left.
pub(crate) type Slot = u32;

#[derive(Debug, Clone)]
pub(crate) struct Index<K> {
    slot_of: HashMap<K, Slot>,
    vacant: Vec<Slot>,
}

impl<K: Copy + Eq + Hash> Index<K> {
    pub(crate) fn new() -> Self {
        Self { slot_of: HashMap::new(), vacant: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.slot_of.len()
    }

    pub(crate) fn get(&self, node: &K) -> Option<Slot> {
        self.slot_of.get(node).copied()
    }

    /// The number of `node`, which gets one if it has none.
    pub(crate) fn add(&mut self, node: K) -> Slot {
        let fresh = self.vacant.last().copied().unwrap_or(self.slot_of.len() as Slot);
        let slot = *self.slot_of.entry(node).or_insert(fresh);
        if self.vacant.last() == Some(&slot) {
            self.vacant.pop();
        }
        slot
    }

    /// Forgets `node`; answers the number that it had.
    pub(crate) fn remove(&mut self, node: &K) -> Option<Slot> {
        let slot = self.slot_of.remove(node)?;
        self.vacant.push(slot);
        Some(slot)
    }
}
