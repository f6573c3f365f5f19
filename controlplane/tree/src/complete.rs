//! Policy `complete`: one array heap. Insert appends; remove moves the last node into the hole.
//!
//! When the root leaves, its heir takes its place first, because the heir holds nearly everything that the root read; the last node
//! would have to read the origin again. That costs two re-parented nodes more, at roots only.

use std::hash::Hash;

use crate::arrangement::Arrangement;
use crate::index::Index;
use crate::plan::{ChangeLog, Stand};
use crate::row::Row;

#[derive(Debug, Clone)]
pub(crate) struct Complete<K> {
    row: Row<K>,
    index: Index<K>,
}

impl<K: Copy + Eq + Hash> Complete<K> {
    pub(crate) fn new(row: Row<K>, index: Index<K>) -> Self {
        Self { row, index }
    }
}

impl<K: Copy + Eq + Hash> Arrangement<K> for Complete<K> {
    fn len(&self) -> usize {
        self.row.len()
    }

    fn contains(&self, node: &K) -> bool {
        self.index.get(node).is_some()
    }

    fn insert(&mut self, node: K, log: &mut ChangeLog<K>) -> bool {
        let Ok(slot) = self.index.add_new(node) else { return false };
        self.row.push(node, slot, log);
        true
    }

    fn remove(&mut self, node: K, log: &mut ChangeLog<K>) -> bool {
        let Some(mut hole) = self.index.remove(&node).and_then(|slot| self.row.place(slot)) else { return false };
        let last = self.row.len() - 1;
        if hole == 0 && last > 0 {
            self.row.swap(0, 1, log);
            hole = 1;
        }
        self.row.swap(hole, last, log);
        self.row.pop(log);
        true
    }

    fn demote(&mut self, node: &K, is_slow: &dyn Fn(&K) -> bool, log: &mut ChangeLog<K>) {
        let place = self.index.get(node).and_then(|slot| self.row.place(slot));
        let Some(mut place) = place.filter(|place| *place < self.len() / 2) else { return };
        // The last place stays a leaf the longest while others join.
        let leaves = self.len() / 2..self.len();
        let Some(leaf) = leaves.rev().find(|leaf| !is_slow(&self.row.node_at(*leaf))) else { return };
        // A heir that is slow itself does not lead.
        if place == 0 && leaf > 1 && !is_slow(&self.row.node_at(1)) {
            self.row.swap(0, 1, log);
            place = 1;
        }
        self.row.swap(place, leaf, log);
    }

    fn exchange(&mut self, one: &K, other: &K, log: &mut ChangeLog<K>) {
        let place = |node| self.index.get(node).and_then(|slot| self.row.place(slot));
        if let (Some(one), Some(other)) = (place(one), place(other)) {
            self.row.swap(one, other, log);
        }
    }

    fn expendable(&self) -> Option<K> {
        self.row.nodes().next_back()
    }

    fn root(&self, stripe: u8) -> Option<K> {
        self.order(stripe).next()
    }

    fn parent(&self, stripe: u8, node: &K) -> Option<Option<K>> {
        let slot = self.index.get(node).filter(|_| stripe == 0)?;
        self.row.parent(slot)
    }

    fn stand(&self, _stripe: u8, place: u32) -> Stand<K> {
        self.row.stand(place)
    }

    fn children(&self, stripe: u8, node: &K) -> [Option<K>; 2] {
        match self.index.get(node).filter(|_| stripe == 0) {
            Some(slot) => self.row.children(slot),
            None => [None, None],
        }
    }

    fn order(&self, stripe: u8) -> Box<dyn DoubleEndedIterator<Item = K> + '_> {
        Box::new((stripe == 0).then(|| self.row.nodes()).into_iter().flatten())
    }

    fn check(&self) -> Result<(), String> {
        self.row.check(&self.index)
    }
}
