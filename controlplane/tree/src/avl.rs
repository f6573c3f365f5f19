//! Policy `avl`: the paper's tree. Insert at the first node with a free side in breadth-first order; remove with the four rotations,
//! so that the heights of left and right differ by at most one at every node. Nodes have no keys: only the shape matters.
//!
//! Every node knows the height of its subtree and how far below it the nearest free side is, so both operations walk one path and cost
//! O(log n). The root's place goes to its heir when it leaves, since the heir has data; a leaf would have to read the origin again.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use crate::arrangement::Arrangement;
use crate::hash::Seed;
use crate::index::Slot;
use crate::plan::{ChangeLog, Stand};

/// No node.
const NONE: Slot = Slot::MAX;

/// The sides of a node.
const LEFT: usize = 0;
const RIGHT: usize = 1;

/// A node's neighbours and what it knows of its subtree.
#[derive(Debug, Clone, Copy)]
struct Links {
    parent: Slot,
    children: [Slot; 2],
    /// Nodes on the longest way down, itself included.
    height: u8,
    /// Edges down to the nearest node with a free side.
    free: u8,
}

#[derive(Debug, Clone)]
pub(crate) struct Avl<K> {
    root: Slot,
    /// The members, in no order; a member's index is its slot.
    members: Vec<K>,
    links: Vec<Links>,
    slot_of: HashMap<K, Slot, Seed>,
    /// Where the last node was inserted, while nothing else changed: the first free side is there as long as it has one.
    hint: Slot,
}

impl<K: Copy + Eq + Hash> Avl<K> {
    pub(crate) fn new() -> Self {
        Self { root: NONE, members: Vec::new(), links: Vec::new(), slot_of: HashMap::default(), hint: NONE }
    }

    /// A tree from its members in pre-order and the sets of those that have a left or a right child; `None` when that is no tree.
    pub(crate) fn from_lists(preorder: Vec<K>, left: &[K], right: &[K]) -> Option<Self> {
        let sets: [HashSet<&K>; 2] = [left.iter().collect(), right.iter().collect()];
        if sets[LEFT].len() != left.len() || sets[RIGHT].len() != right.len() {
            return None;
        }
        let mut avl = Self::new();
        // Places that wait for the next node of the list, the next one on top.
        let mut open = vec![(NONE, LEFT)];
        for node in preorder {
            let (parent, side) = open.pop()?;
            let slot = avl.add(node, parent)?;
            avl.set_child(parent, side, slot);
            for side in [RIGHT, LEFT] {
                if sets[side].contains(&node) {
                    open.push((slot, side));
                }
            }
        }
        let is_whole = open.is_empty() || (avl.members.is_empty() && left.is_empty() && right.is_empty());
        let known = left.iter().chain(right).all(|node| avl.slot_of.contains_key(node));
        // Children come after their parents in pre-order.
        for slot in (0..avl.members.len() as Slot).rev() {
            avl.measure(slot);
        }
        (is_whole && known).then_some(avl)
    }

    /// What [`Avl::from_lists`] needs.
    pub(crate) fn to_lists(&self) -> [Vec<K>; 3] {
        let (mut preorder, mut left, mut right) = (Vec::with_capacity(self.members.len()), Vec::new(), Vec::new());
        let mut open = vec![self.root];
        while let Some(slot) = open.pop().filter(|slot| *slot != NONE) {
            let (node, children) = (self.members[slot as usize], self.links[slot as usize].children);
            preorder.push(node);
            left.extend((children[LEFT] != NONE).then_some(node));
            right.extend((children[RIGHT] != NONE).then_some(node));
            open.extend(children.into_iter().rev().filter(|child| *child != NONE));
        }
        [preorder, left, right]
    }

    fn slot(&self, node: &K) -> Option<Slot> {
        self.slot_of.get(node).copied()
    }

    fn at(&self, slot: Slot) -> &Links {
        &self.links[slot as usize]
    }

    fn key(&self, slot: Slot) -> Option<K> {
        self.members.get(slot as usize).copied()
    }

    /// A new leaf; `None` when the node is a member already.
    fn add(&mut self, node: K, parent: Slot) -> Option<Slot> {
        let slot = self.members.len() as Slot;
        match self.slot_of.entry(node) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(entry) => entry.insert(slot),
        };
        self.members.push(node);
        self.links.push(Links { parent, children: [NONE; 2], height: 1, free: 0 });
        Some(slot)
    }

    /// Puts `child` (or nobody) under `parent`; under nobody it is the root.
    fn set_child(&mut self, parent: Slot, side: usize, child: Slot) {
        match self.links.get_mut(parent as usize) {
            Some(links) => links.children[side] = child,
            None => self.root = child,
        }
        if let Some(links) = self.links.get_mut(child as usize) {
            links.parent = parent;
        }
    }

    fn side_of(&self, parent: Slot, child: Slot) -> usize {
        if parent != NONE && self.at(parent).children[RIGHT] == child { RIGHT } else { LEFT }
    }

    fn height(&self, slot: Slot) -> u8 {
        self.links.get(slot as usize).map_or(0, |links| links.height)
    }

    /// Works out what a node knows of its subtree; answers whether that changed.
    fn measure(&mut self, slot: Slot) -> bool {
        let (height, free) = self.measured(self.at(slot).children);
        let links = &mut self.links[slot as usize];
        let changed = (links.height, links.free) != (height, free);
        (links.height, links.free) = (height, free);
        changed
    }

    /// Height and free side of a node with these children.
    fn measured(&self, [left, right]: [Slot; 2]) -> (u8, u8) {
        let free = match (left, right) {
            (NONE, _) | (_, NONE) => 0,
            _ => 1 + self.at(left).free.min(self.at(right).free),
        };
        (1 + self.height(left).max(self.height(right)), free)
    }

    /// The first node with a free side in breadth-first order.
    fn first_free(&self) -> Slot {
        let mut slot = self.root;
        while self.at(slot).free > 0 {
            let [left, right] = self.at(slot).children;
            slot = if self.at(left).free <= self.at(right).free { left } else { right };
        }
        slot
    }

    /// Notes a node's present parent before it may change.
    fn note(&self, slot: Slot, log: &mut ChangeLog<K>) {
        if slot != NONE {
            log.note(0, slot, || self.stand_at(slot));
        }
    }

    fn stand_at(&self, slot: Slot) -> Stand<K> {
        let (node, links) = (self.key(slot)?, self.links.get(slot as usize)?);
        Some((node, self.key(links.parent)))
    }

    fn note_children(&self, slot: Slot, log: &mut ChangeLog<K>) {
        for child in self.at(slot).children {
            self.note(child, log);
        }
    }

    /// Exchanges the nodes at two places of the tree; the shape stays.
    fn exchange(&mut self, one: Slot, other: Slot, log: &mut ChangeLog<K>) {
        if one == other {
            return;
        }
        for slot in [one, other] {
            self.note(slot, log);
            self.note_children(slot, log);
        }
        self.members.swap(one as usize, other as usize);
        for slot in [one, other] {
            self.slot_of.insert(self.members[slot as usize], slot);
        }
    }

    /// Lifts the child on `side` above `slot`: to the right when that is the left side. Answers the new top.
    fn rotate(&mut self, slot: Slot, side: usize, log: &mut ChangeLog<K>) -> Slot {
        let lifted = self.at(slot).children[side];
        let moved = self.at(lifted).children[1 - side];
        for slot in [slot, lifted, moved] {
            self.note(slot, log);
        }
        let above = self.at(slot).parent;
        self.set_child(above, self.side_of(above, slot), lifted);
        self.set_child(slot, side, moved);
        self.set_child(lifted, 1 - side, slot);
        self.measure(slot);
        self.measure(lifted);
        lifted
    }

    /// Restores the balance from `slot` upwards, until nothing changes any more.
    fn rebalance(&mut self, mut slot: Slot, log: &mut ChangeLog<K>) {
        while slot != NONE {
            let mut changed = self.measure(slot);
            let [left, right] = self.at(slot).children.map(|child| self.height(child));
            if left.abs_diff(right) > 1 {
                let side = if left > right { LEFT } else { RIGHT };
                let tall = self.at(slot).children[side];
                let [outer, inner] = [side, 1 - side].map(|side| self.height(self.at(tall).children[side]));
                if inner > outer {
                    self.rotate(tall, 1 - side, log);
                }
                slot = self.rotate(slot, side, log);
                changed = true;
            }
            if !changed {
                return;
            }
            slot = self.at(slot).parent;
        }
    }

    /// Where the node that takes an inner node's place is found: the innermost node of the taller side, which has at most one child.
    fn substitute(&self, slot: Slot) -> Slot {
        let [left, right] = self.at(slot).children;
        let side = if self.height(left) >= self.height(right) { LEFT } else { RIGHT };
        let mut substitute = self.at(slot).children[side];
        while self.at(substitute).children[1 - side] != NONE {
            substitute = self.at(substitute).children[1 - side];
        }
        substitute
    }

    /// Takes away a node that has at most one child, which moves up.
    fn unhook(&mut self, slot: Slot, log: &mut ChangeLog<K>) {
        self.note(slot, log);
        self.note_children(slot, log);
        let Links { parent, children: [left, right], .. } = *self.at(slot);
        let child = if left == NONE { right } else { left };
        self.set_child(parent, self.side_of(parent, slot), child);
        self.rebalance(parent, log);
        self.free(slot, log);
        self.hint = NONE;
    }

    /// Gives the slot of an unhooked node to the last one, so that the arrays stay dense.
    fn free(&mut self, slot: Slot, log: &mut ChangeLog<K>) {
        let last = self.members.len() as Slot - 1;
        // The last one keeps its neighbours; its place has another number.
        self.note(last, log);
        if slot != last {
            let Links { parent, children, .. } = *self.at(last);
            self.set_child(parent, self.side_of(parent, last), slot);
            for child in children {
                if let Some(links) = self.links.get_mut(child as usize) {
                    links.parent = slot;
                }
            }
            self.slot_of.insert(self.members[last as usize], slot);
        }
        self.slot_of.remove(&self.members[slot as usize]);
        self.members.swap_remove(slot as usize);
        self.links.swap_remove(slot as usize);
    }

    /// A leaf at the end of the longest way down from `slot`.
    fn deepest_below(&self, mut slot: Slot) -> Slot {
        loop {
            let [left, right] = self.at(slot).children;
            slot = match (left, right) {
                (NONE, NONE) => return slot,
                _ if self.height(left) >= self.height(right) => left,
                _ => right,
            };
        }
    }

    fn is_leaf(&self, slot: Slot) -> bool {
        self.at(slot).children == [NONE; 2]
    }

    fn check_node(&self, slot: Slot) -> Result<(), String> {
        let Links { parent, children, height, free } = *self.at(slot);
        let fits = self.slot(&self.members[slot as usize]) == Some(slot);
        let under = children.into_iter().filter(|child| *child != NONE).all(|child| self.at(child).parent == slot);
        let above = if parent == NONE { self.root == slot } else { self.at(parent).children.contains(&slot) };
        let [left, right] = children.map(|child| self.height(child));
        if !(fits && under && above) {
            return Err(format!("slot {slot} does not fit its neighbours"));
        }
        if left.abs_diff(right) > 1 {
            return Err(format!("heights {left} and {right} below slot {slot}"));
        }
        if self.measured(children) != (height, free) {
            return Err(format!("slot {slot} knows a wrong height or free side"));
        }
        Ok(())
    }
}

impl<K: Copy + Eq + Hash> Arrangement<K> for Avl<K> {
    fn len(&self) -> usize {
        self.members.len()
    }

    fn contains(&self, node: &K) -> bool {
        self.slot_of.contains_key(node)
    }

    fn insert(&mut self, node: K, log: &mut ChangeLog<K>) -> bool {
        let hint = self.links.get(self.hint as usize).filter(|links| links.free == 0);
        let parent = match (self.root, hint) {
            (NONE, _) => NONE,
            (_, Some(_)) => self.hint,
            (_, None) => self.first_free(),
        };
        let Some(slot) = self.add(node, parent) else { return false };
        log.note(0, slot, || None);
        self.hint = parent;
        let side = match self.links.get(parent as usize) {
            Some(links) if links.children[LEFT] != NONE => RIGHT,
            _ => LEFT,
        };
        self.set_child(parent, side, slot);
        // Never unbalanced: all nodes above the first free side have two children.
        self.rebalance(parent, log);
        true
    }

    fn remove(&mut self, node: K, log: &mut ChangeLog<K>) -> bool {
        let Some(mut slot) = self.slot(&node) else { return false };
        if slot == self.root {
            let heir = self.at(slot).children.into_iter().find(|child| *child != NONE);
            if let Some(heir) = heir {
                self.exchange(slot, heir, log);
                slot = heir;
            }
        }
        if !self.at(slot).children.contains(&NONE) {
            let substitute = self.substitute(slot);
            self.exchange(slot, substitute, log);
            slot = substitute;
        }
        self.unhook(slot, log);
        true
    }

    fn demote(&mut self, node: &K, is_slow: &dyn Fn(&K) -> bool, log: &mut ChangeLog<K>) {
        let Some(mut slot) = self.slot(node).filter(|slot| !self.is_leaf(*slot)) else { return };
        if slot == self.root {
            let heir = self.at(slot).children.into_iter().find(|child| *child != NONE);
            if let Some(heir) = heir.filter(|heir| !self.is_leaf(*heir) && !is_slow(&self.members[*heir as usize])) {
                self.exchange(slot, heir, log);
                slot = heir;
            }
        }
        let slots = 0..self.members.len() as Slot;
        let fits = |leaf: &Slot| self.is_leaf(*leaf) && !is_slow(&self.members[*leaf as usize]);
        let near = Some(self.deepest_below(slot)).filter(fits);
        // With many slow nodes any leaf has to do; then the search is long, and rare.
        if let Some(leaf) = near.or_else(|| slots.rev().find(fits)) {
            self.exchange(slot, leaf, log);
        }
    }

    fn exchange(&mut self, one: &K, other: &K, log: &mut ChangeLog<K>) {
        if let (Some(one), Some(other)) = (self.slot(one), self.slot(other)) {
            Self::exchange(self, one, other, log);
        }
    }

    fn expendable(&self) -> Option<K> {
        let deepest = (self.root != NONE).then(|| self.deepest_below(self.root))?;
        self.key(deepest)
    }

    fn root(&self, stripe: u8) -> Option<K> {
        if stripe == 0 { self.key(self.root) } else { None }
    }

    fn parent(&self, stripe: u8, node: &K) -> Option<Option<K>> {
        let slot = self.slot(node).filter(|_| stripe == 0)?;
        Some(self.key(self.at(slot).parent))
    }

    fn stand(&self, _stripe: u8, place: u32) -> Stand<K> {
        self.stand_at(place)
    }

    fn children(&self, stripe: u8, node: &K) -> [Option<K>; 2] {
        match self.slot(node).filter(|_| stripe == 0) {
            Some(slot) => self.at(slot).children.map(|child| self.key(child)),
            None => [None, None],
        }
    }

    fn order(&self, stripe: u8) -> Box<dyn DoubleEndedIterator<Item = K> + '_> {
        let members: &[K] = if stripe == 0 { &self.members } else { &[] };
        Box::new(members.iter().copied())
    }

    fn check(&self) -> Result<(), String> {
        if self.slot_of.len() != self.members.len() || self.links.len() != self.members.len() {
            return Err("the index and the arrays disagree".into());
        }
        if self.to_lists()[0].len() != self.members.len() {
            return Err("not everybody is below the root".into());
        }
        (0..self.members.len() as Slot).try_for_each(|slot| self.check_node(slot))
    }
}
