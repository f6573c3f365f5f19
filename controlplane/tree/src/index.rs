//! Members by number: one look-up by name per operation, everything else through arrays.
//!
//! Among a million members a hash look-up is a miss of the cache and costs about a tenth of a microsecond; an operation touches twenty
//! places.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use crate::hash::Seed;

/// A member's number, used again when it has left.
pub(crate) type Slot = u32;

#[derive(Debug, Clone)]
pub(crate) struct Index<K> {
    slot_of: HashMap<K, Slot, Seed>,
    vacant: Vec<Slot>,
}

impl<K: Copy + Eq + Hash> Index<K> {
    pub(crate) fn new() -> Self {
        Self { slot_of: HashMap::default(), vacant: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.slot_of.len()
    }

    pub(crate) fn get(&self, node: &K) -> Option<Slot> {
        self.slot_of.get(node).copied()
    }

    /// The number of `node`, which gets one if it has none.
    pub(crate) fn add(&mut self, node: K) -> Slot {
        self.add_new(node).unwrap_or_else(|slot| slot)
    }

    /// A number for a new member; an error with its number when it is one already.
    pub(crate) fn add_new(&mut self, node: K) -> Result<Slot, Slot> {
        let fresh = self.slot_of.len() as Slot;
        match self.slot_of.entry(node) {
            Entry::Occupied(known) => Err(*known.get()),
            Entry::Vacant(entry) => Ok(*entry.insert(self.vacant.pop().unwrap_or(fresh))),
        }
    }

    /// Forgets `node`; answers the number that it had.
    pub(crate) fn remove(&mut self, node: &K) -> Option<Slot> {
        let slot = self.slot_of.remove(node)?;
        self.vacant.push(slot);
        Some(slot)
    }
}
