//! Policy `complete`: one array heap. Insert appends; remove moves the last node into the hole.
//!
//! When the root leaves, its heir takes its place first, because the heir holds nearly everything that the root read; the last node
//! would have to read the origin again. That costs two re-parented nodes more, at roots only.

use std::hash::Hash;

use crate::arrangement::Arrangement;
use crate::plan::ChangeLog;
use crate::row::Row;

#[derive(Debug, Clone)]
pub(crate) struct Complete<K> {
    row: Row<K>,
}

impl<K: Copy + Eq + Hash> Complete<K> {
    pub(crate) fn new(row: Row<K>) -> Self {
        Self { row }
    }
}

impl<K: Copy + Eq + Hash> Arrangement<K> for Complete<K> {
    fn len(&self) -> usize {
        self.row.places().len()
    }

    fn contains(&self, node: &K) -> bool {
        self.row.place(node).is_some()
    }

    fn insert(&mut self, node: K, log: &mut ChangeLog<K>) {
        self.row.push(node, log);
    }

    fn remove(&mut self, node: K, log: &mut ChangeLog<K>) {
        let Some(mut hole) = self.row.place(&node) else { return };
        let last = self.len() - 1;
        if hole == 0 && last > 0 {
            self.row.swap(0, 1, log);
            hole = 1;
        }
        self.row.swap(hole, last, log);
        self.row.pop(log);
    }

    fn demote(&mut self, node: &K, is_slow: &dyn Fn(&K) -> bool, log: &mut ChangeLog<K>) {
        let Some(mut place) = self.row.place(node).filter(|place| *place < self.len() / 2) else { return };
        // The last place stays a leaf the longest while others join.
        let leaves = self.len() / 2..self.len();
        let Some(leaf) = leaves.rev().find(|leaf| !is_slow(&self.row.places()[*leaf])) else { return };
        if place == 0 && leaf > 1 {
            self.row.swap(0, 1, log);
            place = 1;
        }
        self.row.swap(place, leaf, log);
    }

    fn root(&self, stripe: u8) -> Option<K> {
        self.order(stripe).first().copied()
    }

    fn parent(&self, stripe: u8, node: &K) -> Option<Option<K>> {
        if stripe == 0 { self.row.parent(node) } else { None }
    }

    fn children(&self, stripe: u8, node: &K) -> [Option<K>; 2] {
        if stripe == 0 { self.row.children(node) } else { [None, None] }
    }

    fn order(&self, stripe: u8) -> &[K] {
        if stripe == 0 { self.row.places() } else { &[] }
    }

    fn check(&self) -> Result<(), String> {
        self.row.check()
    }
}
