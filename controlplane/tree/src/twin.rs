//! Policy `twin`: two trees over the same nodes, whose inner nodes are disjoint.
//!
//! Nodes are red or blue and |red − blue| ≤ 1. In tree 0 the reds fill the first places of an array heap and the blues hang below
//! them; in tree 1 the other way round. A heap of n nodes has ⌊n/2⌋ inner nodes, which never exceeds either colour's number, so nobody
//! is an inner node in both. The order among the nodes of the other colour has no meaning.

use std::collections::HashSet;
use std::hash::Hash;

use crate::arrangement::Arrangement;
use crate::index::{Index, Slot};
use crate::plan::{ChangeLog, Stand};
use crate::row::Row;

#[derive(Debug, Clone)]
pub(crate) struct Twin<K> {
    rows: [Row<K>; 2],
    index: Index<K>,
    /// How many nodes of each colour; a node is red (0) exactly when its place in tree 0 is below the first number.
    counts: [usize; 2],
}

impl<K: Copy + Eq + Hash> Twin<K> {
    /// Trees in the given order, of which the first `reds` nodes of tree 0 are red.
    pub(crate) fn new(rows: [Row<K>; 2], index: Index<K>, reds: usize) -> Option<Self> {
        let blues = rows[0].len().checked_sub(reds)?;
        Some(Self { rows, index, counts: [reds, blues] })
    }

    pub(crate) fn reds(&self) -> usize {
        self.counts[0]
    }

    fn colour(&self, slot: Slot) -> Option<usize> {
        self.rows[0].place(slot).map(|place| usize::from(place >= self.counts[0]))
    }

    /// Exchanges two nodes in both trees, and with that their colours.
    fn trade(&mut self, one: Slot, other: Slot, log: &mut ChangeLog<K>) {
        for row in &mut self.rows {
            if let (Some(one), Some(other)) = (row.place(one), row.place(other)) {
                row.swap(one, other, log);
            }
        }
    }

    /// After a colour lost a node and the other is two ahead: the other's last own node, a leaf in both trees, changes sides.
    fn even_out(&mut self, colour: usize, log: &mut ChangeLog<K>) {
        let other = 1 - colour;
        if self.counts[other] < self.counts[colour] + 2 {
            return;
        }
        let changing = self.rows[other].slot_at(self.counts[other] - 1);
        if let Some(place) = self.rows[colour].place(changing) {
            self.rows[colour].swap(place, self.counts[colour], log);
        }
        self.counts[colour] += 1;
        self.counts[other] -= 1;
    }
}

impl<K: Copy + Eq + Hash> Arrangement<K> for Twin<K> {
    fn len(&self) -> usize {
        self.rows[0].len()
    }

    fn contains(&self, node: &K) -> bool {
        self.index.get(node).is_some()
    }

    fn insert(&mut self, node: K, log: &mut ChangeLog<K>) -> bool {
        let Ok(slot) = self.index.add_new(node) else { return false };
        let colour = usize::from(self.counts[1] < self.counts[0]);
        let last = self.len();
        self.rows[0].push(node, slot, log);
        self.rows[1].push(node, slot, log);
        // The first leaf of the own tree makes room and becomes the last leaf.
        self.rows[colour].swap(self.counts[colour], last, log);
        self.counts[colour] += 1;
        true
    }

    fn remove(&mut self, node: K, log: &mut ChangeLog<K>) -> bool {
        let Some(slot) = self.index.remove(&node) else { return false };
        let Some(colour) = self.colour(slot) else { return false };
        let last = self.len() - 1;
        let (own, foreign) = (colour, 1 - colour);
        if let Some(mut hole) = self.rows[own].place(slot) {
            let last_own = self.counts[own] - 1;
            if hole == 0 && last_own > 0 {
                // The heir has what the root read; anybody else would read the origin again.
                self.rows[own].swap(0, 1, log);
                hole = 1;
            }
            self.rows[own].swap(hole, last_own, log);
            self.rows[own].swap(last_own, last, log);
            self.rows[own].pop(log);
        }
        if let Some(hole) = self.rows[foreign].place(slot) {
            self.rows[foreign].swap(hole, last, log);
            self.rows[foreign].pop(log);
        }
        self.counts[colour] -= 1;
        self.even_out(colour, log);
        true
    }

    fn demote(&mut self, node: &K, is_slow: &dyn Fn(&K) -> bool, log: &mut ChangeLog<K>) {
        let Some(slot) = self.index.get(node) else { return };
        let Some(colour) = self.colour(slot) else { return };
        let Some(mut place) = self.rows[colour].place(slot) else { return };
        // With an odd number of nodes the last of the larger colour is a leaf in both trees.
        let (own, other) = (self.counts[colour], self.counts[1 - colour]);
        let idle = other.checked_sub(1).filter(|last| other > own && !is_slow(&self.rows[1 - colour].node_at(*last)));
        let idle = idle.map(|last| self.rows[1 - colour].slot_at(last));
        let lower = (place + 1..own).rev().find(|lower| !is_slow(&self.rows[colour].node_at(*lower)));
        if idle.is_none() && lower.is_none() {
            return;
        }
        // A heir that is slow itself does not lead.
        if place == 0 && own > 1 && !is_slow(&self.rows[colour].node_at(1)) {
            self.rows[colour].swap(0, 1, log);
            place = 1;
        }
        match (idle, lower) {
            (Some(idle), _) => self.trade(slot, idle, log),
            // Otherwise the last inner place of the own tree has one or two leaves below it.
            (None, Some(lower)) => self.rows[colour].swap(place, lower, log),
            (None, None) => {}
        }
    }

    fn exchange(&mut self, one: &K, other: &K, log: &mut ChangeLog<K>) {
        let (Some(one), Some(other)) = (self.index.get(one), self.index.get(other)) else { return };
        let (Some(colour), Some(foreign)) = (self.colour(one), self.colour(other)) else { return };
        if colour != foreign {
            return self.trade(one, other, log);
        }
        if let (Some(one), Some(other)) = (self.rows[colour].place(one), self.rows[colour].place(other)) {
            self.rows[colour].swap(one, other, log);
        }
    }

    fn expendable(&self) -> Option<K> {
        // The last of the larger colour; with an odd number of nodes it is a leaf in both trees.
        let colour = usize::from(self.counts[1] > self.counts[0]);
        self.counts[colour].checked_sub(1).map(|last| self.rows[colour].node_at(last))
    }

    fn root(&self, stripe: u8) -> Option<K> {
        self.order(stripe).next()
    }

    fn parent(&self, stripe: u8, node: &K) -> Option<Option<K>> {
        self.rows.get(usize::from(stripe))?.parent(self.index.get(node)?)
    }

    fn stand(&self, stripe: u8, place: u32) -> Stand<K> {
        self.rows.get(usize::from(stripe))?.stand(place)
    }

    fn children(&self, stripe: u8, node: &K) -> [Option<K>; 2] {
        match (self.rows.get(usize::from(stripe)), self.index.get(node)) {
            (Some(row), Some(slot)) => row.children(slot),
            _ => [None, None],
        }
    }

    fn order(&self, stripe: u8) -> Box<dyn DoubleEndedIterator<Item = K> + '_> {
        Box::new(self.rows.get(usize::from(stripe)).into_iter().flat_map(Row::nodes))
    }

    fn check(&self) -> Result<(), String> {
        self.rows.iter().try_for_each(|row| row.check(&self.index))?;
        let [reds, blues] = self.counts;
        if reds.abs_diff(blues) > 1 || reds + blues != self.len() {
            return Err(format!("{reds} reds and {blues} blues among {} nodes", self.len()));
        }
        let red: HashSet<K> = self.rows[0].nodes().take(reds).collect();
        let other: Vec<K> = self.rows[1].nodes().collect();
        if other.len() != self.len() || !other.iter().all(|node| self.contains(node)) {
            return Err("the two trees have different members".into());
        }
        if other[..blues].iter().any(|node| red.contains(node)) {
            return Err("a red node stands among the blues of tree 1".into());
        }
        Ok(())
    }
}
