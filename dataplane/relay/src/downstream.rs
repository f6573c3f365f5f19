//! The children of one stripe: who may attach, and which blocks each is still owed.
//!
//! A block is owed from the child's `Want` until it has been handed to the child's connection, live or from the store. So resume, late
//! joiners, slow children and demand are one mechanism.

use std::collections::VecDeque;
use std::net::SocketAddr;

use faasnet_api::{BlockIndex, NodeId};

use crate::blocks::BlockSet;
use crate::upstream::Now;

/// The shell's name for the connection to a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChildId(pub u32);

/// Children outside the plan that are served at the same time.
pub const MAX_GUESTS: usize = 2;
/// Children that are served at the same time, whoever they are: two planned ones, riders, guests, and those that a new plan has moved
/// elsewhere and that have not gone yet. What a node may take of its host's memory is counted from this.
pub const MAX_CHILDREN: usize = 6;

#[derive(Debug)]
struct Child {
    id: ChildId,
    node: NodeId,
    address: SocketAddr,
    since: Now,
    owed: BlockSet,
    demanded: VecDeque<BlockIndex>,
    /// Where the search for the next owed block begins, so that a child gets blocks in stream order.
    cursor: BlockIndex,
}

/// The downstream side of one stripe.
#[derive(Debug, Default)]
pub struct Downstream {
    children: Vec<Child>,
    planned: Vec<NodeId>,
}

/// Whether a child is taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes; the connections listed must be closed to make room.
    Accepted {
        /// Older connections of the same node, or a guest whose time is over.
        displaced: Vec<ChildId>,
    },
    /// No room; the children's addresses.
    Busy(Vec<SocketAddr>),
}

impl Downstream {
    /// Who is expected; others are guests.
    pub fn set_planned(&mut self, planned: &[NodeId]) {
        self.planned = planned.to_vec();
    }

    /// A node wants to attach. Planned children may, in place of one that is not planned where [`MAX_CHILDREN`] are here; guests while
    /// there is room, or in place of one that had `guest` time.
    pub fn admit(&mut self, now: Now, id: ChildId, node: NodeId, address: SocketAddr, guest: Now) -> Admission {
        let mut displaced: Vec<ChildId> =
            self.children.iter().filter(|child| child.node == node).map(|child| child.id).collect();
        let is_guest = |child: &&Child| !self.planned.contains(&child.node) && child.node != node;
        let is_planned = self.planned.contains(&node);
        let is_full = self.children.len() - displaced.len() >= MAX_CHILDREN;
        if is_full || (!is_planned && self.children.iter().filter(is_guest).count() >= MAX_GUESTS) {
            let oldest = self.children.iter().filter(is_guest).min_by_key(|child| child.since);
            match oldest.filter(|child| is_planned || now.saturating_sub(child.since) > guest) {
                Some(child) => displaced.push(child.id),
                None => return Admission::Busy(self.children.iter().map(|child| child.address).collect()),
            }
        }
        displaced.iter().for_each(|id| self.remove(*id));
        self.children.push(Child {
            id,
            node,
            address,
            since: now,
            owed: BlockSet::default(),
            demanded: VecDeque::new(),
            cursor: BlockIndex(0),
        });
        Admission::Accepted { displaced }
    }

    /// The child's connection is gone.
    pub fn remove(&mut self, id: ChildId) {
        self.children.retain(|child| child.id != id);
    }

    /// The child lacks `owed`.
    pub fn set_owed(&mut self, id: ChildId, owed: BlockSet) {
        if let Some(child) = self.child(id) {
            child.owed = owed;
            child.demanded.clear();
        }
    }

    /// The child asks for an owed block before the others.
    pub fn demand(&mut self, id: ChildId, block: BlockIndex) {
        if let Some(child) = self.child(id)
            && child.owed.contains(block)
            && !child.demanded.contains(&block)
            && child.demanded.len() < MAX_DEMANDS
        {
            child.demanded.push_back(block);
        }
    }

    /// Whether a child is owed `block`: whether passing it on live could be of use.
    pub fn is_owed(&self, block: BlockIndex) -> bool {
        self.children.iter().any(|child| child.owed.contains(block))
    }

    /// Moves `block` from owed to sent for each child that is owed it and is `ready`; those are put into `live`.
    pub fn forward(&mut self, block: BlockIndex, mut ready: impl FnMut(ChildId) -> bool, live: &mut Vec<ChildId>) {
        for child in &mut self.children {
            if child.owed.contains(block) && ready(child.id) {
                child.owed.remove(block);
                child.demanded.retain(|demanded| *demanded != block);
                live.push(child.id);
            }
        }
    }

    /// The next block to send to a child from the store: demanded ones first, then in stream order. It is no longer owed.
    pub fn next_from_store(&mut self, id: ChildId, present: &BlockSet) -> Option<BlockIndex> {
        let child = self.child(id)?;
        let demanded = child.demanded.iter().position(|block| present.contains(*block));
        let block = match demanded {
            Some(index) => child.demanded.remove(index)?,
            None => {
                let block = child.owed.next_in_both(present, child.cursor)?;
                child.cursor = BlockIndex(block.0 + 1);
                block
            }
        };
        child.owed.remove(block);
        child.demanded.retain(|other| *other != block);
        Some(block)
    }

    /// Whether a child is owed `block`.
    pub fn owes(&self, id: ChildId, block: BlockIndex) -> bool {
        self.children.iter().any(|child| child.id == id && child.owed.contains(block))
    }

    /// A child gets `block` by another way than live or from the store: it is no longer owed.
    pub fn sent(&mut self, id: ChildId, block: BlockIndex) {
        if let Some(child) = self.child(id) {
            child.owed.remove(block);
            child.demanded.retain(|demanded| *demanded != block);
        }
    }

    /// A block that was taken for sending could not be sent: it is owed again.
    pub fn owe_again(&mut self, id: ChildId, block: BlockIndex) {
        if let Some(child) = self.child(id) {
            child.owed.insert(block);
        }
    }

    /// How many of `present` a child is owed.
    pub fn backlog(&self, id: ChildId, present: &BlockSet) -> u32 {
        let child = self.children.iter().find(|child| child.id == id);
        child.map_or(0, |child| child.owed.count_in_both(present))
    }

    /// How many blocks a child is still owed.
    pub fn owed_count(&self, id: ChildId) -> u32 {
        self.children.iter().find(|child| child.id == id).map_or(0, |child| child.owed.count())
    }

    /// How many children are attached.
    pub fn len(&self) -> usize {
        self.children.len()
    }

    /// Whether no child is attached.
    pub fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    fn child(&mut self, id: ChildId) -> Option<&mut Child> {
        self.children.iter_mut().find(|child| child.id == id)
    }
}

/// The most blocks out of turn that one child may ask for at a time, and that this node asks for itself.
pub const MAX_DEMANDS: usize = 64;
