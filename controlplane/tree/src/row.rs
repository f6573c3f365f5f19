//! One tree as an array heap: the children of place i are at 2i+1 and 2i+2, so a tree of n nodes has minimum height and exactly
//! ⌊n/2⌋ inner nodes, the first ones.
//!
//! Policies change it only by `push`, `swap` and `pop`, which note every place that they may touch.

use std::hash::Hash;

use crate::index::{Index, Slot};
use crate::plan::{ChangeLog, Stand};

#[derive(Debug, Clone)]
pub(crate) struct Row<K> {
    stripe: u8,
    /// Who stands at each place. Name and number lie side by side: a place costs one miss of the cache.
    places: Vec<Member<K>>,
    /// Where each number stands; [`NOWHERE`] for those that are not in the row.
    place_of: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Member<K> {
    node: K,
    slot: Slot,
}

const NOWHERE: u32 = u32::MAX;

impl<K: Copy + Eq + Hash> Row<K> {
    pub(crate) fn new(stripe: u8) -> Self {
        Self { stripe, places: Vec::new(), place_of: Vec::new() }
    }

    /// A row in the given order; `None` when a node is listed twice.
    pub(crate) fn from_places(stripe: u8, places: Vec<K>, index: &mut Index<K>) -> Option<Self> {
        let mut row = Self::new(stripe);
        for node in places {
            let slot = index.add(node);
            if row.place(slot).is_some() {
                return None;
            }
            row.append(node, slot);
        }
        Some(row)
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn nodes(&self) -> impl DoubleEndedIterator<Item = K> + '_ {
        self.places.iter().map(|member| member.node)
    }

    /// Who stands at a place that exists.
    pub(crate) fn node_at(&self, place: usize) -> K {
        self.places[place].node
    }

    pub(crate) fn slot_at(&self, place: usize) -> Slot {
        self.places[place].slot
    }

    pub(crate) fn place(&self, slot: Slot) -> Option<usize> {
        self.place_of.get(slot as usize).filter(|place| **place != NOWHERE).map(|place| *place as usize)
    }

    pub(crate) fn parent(&self, slot: Slot) -> Option<Option<K>> {
        self.place(slot).map(|place| self.parent_of_place(place))
    }

    pub(crate) fn children(&self, slot: Slot) -> [Option<K>; 2] {
        let child =
            |n| self.place(slot).and_then(|place| self.places.get(2 * place + n)).map(|member: &Member<K>| member.node);
        [child(1), child(2)]
    }

    /// Who stands at a place, and under whom.
    pub(crate) fn stand(&self, place: u32) -> Stand<K> {
        let place = place as usize;
        self.places.get(place).map(|member| (member.node, self.parent_of_place(place)))
    }

    /// Appends `node` as the last leaf.
    pub(crate) fn push(&mut self, node: K, slot: Slot, log: &mut ChangeLog<K>) {
        log.note(self.stripe, self.places.len() as u32, || None);
        self.append(node, slot);
    }

    /// Exchanges the nodes at two places, which must exist.
    pub(crate) fn swap(&mut self, one: usize, other: usize, log: &mut ChangeLog<K>) {
        if one == other {
            return;
        }
        self.note(one, log);
        self.note(other, log);
        self.places.swap(one, other);
        for place in [one, other] {
            self.place_of[self.places[place].slot as usize] = place as u32;
        }
    }

    /// Takes the last leaf away.
    pub(crate) fn pop(&mut self, log: &mut ChangeLog<K>) {
        if let Some(last) = self.places.len().checked_sub(1) {
            self.note(last, log);
            if let Some(member) = self.places.pop() {
                self.place_of[member.slot as usize] = NOWHERE;
            }
        }
    }

    /// Whether the index agrees with the array.
    pub(crate) fn check(&self, index: &Index<K>) -> Result<(), String> {
        let agrees = |(place, member): (usize, &Member<K>)| {
            self.place(member.slot) == Some(place) && index.get(&member.node) == Some(member.slot)
        };
        let listed = self.place_of.iter().filter(|place| **place != NOWHERE).count();
        if listed == self.places.len() && index.len() == listed && self.places.iter().enumerate().all(agrees) {
            return Ok(());
        }
        Err(format!("stripe {}: the index and the array disagree", self.stripe))
    }

    fn append(&mut self, node: K, slot: Slot) {
        if self.place_of.len() <= slot as usize {
            self.place_of.resize(slot as usize + 1, NOWHERE);
        }
        self.place_of[slot as usize] = self.places.len() as u32;
        self.places.push(Member { node, slot });
    }

    fn parent_of_place(&self, place: usize) -> Option<K> {
        place.checked_sub(1).map(|below| self.places[below / 2].node)
    }

    /// Notes a place and those below it.
    fn note(&self, place: usize, log: &mut ChangeLog<K>) {
        for touched in [place, 2 * place + 1, 2 * place + 2] {
            if touched < self.places.len() {
                log.note(self.stripe, touched as u32, || self.stand(touched as u32));
            }
        }
    }
}
