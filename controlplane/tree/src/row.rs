//! One tree as an array heap: the children of place i are at 2i+1 and 2i+2, so a tree of n nodes has minimum height and exactly
//! ⌊n/2⌋ inner nodes, the first ones.
//!
//! Policies change it only by `push`, `swap` and `pop`, which note every edge that they may touch.

use std::collections::HashMap;
use std::hash::Hash;

use crate::plan::ChangeLog;

#[derive(Debug, Clone)]
pub(crate) struct Row<K> {
    stripe: u8,
    places: Vec<K>,
    place_of: HashMap<K, usize>,
}

impl<K: Copy + Eq + Hash> Row<K> {
    pub(crate) fn new(stripe: u8) -> Self {
        Self { stripe, places: Vec::new(), place_of: HashMap::new() }
    }

    /// A row in the given order; `None` when a node is listed twice.
    pub(crate) fn from_places(stripe: u8, places: Vec<K>) -> Option<Self> {
        let place_of: HashMap<K, usize> = places.iter().enumerate().map(|(place, &node)| (node, place)).collect();
        (place_of.len() == places.len()).then_some(Self { stripe, places, place_of })
    }

    pub(crate) fn places(&self) -> &[K] {
        &self.places
    }

    pub(crate) fn place(&self, node: &K) -> Option<usize> {
        self.place_of.get(node).copied()
    }

    pub(crate) fn parent(&self, node: &K) -> Option<Option<K>> {
        self.place(node).map(|place| self.parent_of_place(place))
    }

    pub(crate) fn children(&self, node: &K) -> [Option<K>; 2] {
        let child = |n| self.place(node).and_then(|place| self.places.get(2 * place + n).copied());
        [child(1), child(2)]
    }

    /// Appends `node` as the last leaf.
    pub(crate) fn push(&mut self, node: K, log: &mut ChangeLog<K>) {
        log.note(self.stripe, node, None);
        self.place_of.insert(node, self.places.len());
        self.places.push(node);
    }

    /// Exchanges the nodes at two places, which must exist.
    pub(crate) fn swap(&mut self, one: usize, other: usize, log: &mut ChangeLog<K>) {
        if one == other {
            return;
        }
        self.note(one, log);
        self.note(other, log);
        self.places.swap(one, other);
        self.place_of.insert(self.places[one], one);
        self.place_of.insert(self.places[other], other);
    }

    /// Takes the last leaf away.
    pub(crate) fn pop(&mut self, log: &mut ChangeLog<K>) {
        if let Some(last) = self.places.len().checked_sub(1) {
            self.note(last, log);
            self.place_of.remove(&self.places[last]);
            self.places.pop();
        }
    }

    /// Whether the index agrees with the array.
    pub(crate) fn check(&self) -> Result<(), String> {
        let agrees = self.place_of.len() == self.places.len()
            && self.places.iter().enumerate().all(|(place, node)| self.place(node) == Some(place));
        if agrees { Ok(()) } else { Err(format!("stripe {}: the index and the array disagree", self.stripe)) }
    }

    fn parent_of_place(&self, place: usize) -> Option<K> {
        place.checked_sub(1).map(|below| self.places[below / 2])
    }

    /// Notes the edges above and below a place.
    fn note(&self, place: usize, log: &mut ChangeLog<K>) {
        for touched in [place, 2 * place + 1, 2 * place + 2] {
            if let Some(&node) = self.places.get(touched) {
                log.note(self.stripe, node, Some(self.parent_of_place(touched)));
            }
        }
    }
}
