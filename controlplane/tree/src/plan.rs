//! The difference that one change made to the trees, and the log from which it is worked out.

use crate::index::Slot;

/// One node's upstream in one stripe's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge<K> {
    /// Which tree.
    pub stripe: u8,
    /// The node that receives.
    pub node: K,
    /// From whom; `None`: the node is the root and reads the origin.
    pub parent: Option<K>,
}

/// What an `insert`, `remove` or `demote` changed: exactly the edges after it minus those before it, and the reverse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<K> {
    /// Edges that are there now and were not before.
    pub changed: Vec<Edge<K>>,
    /// Edges that were there before and are not any more.
    pub freed: Vec<Edge<K>>,
}

impl<K> Default for Plan<K> {
    fn default() -> Self {
        Self { changed: Vec::new(), freed: Vec::new() }
    }
}

/// Remembers how the edges that an operation may touch were before it. An operation touches a bounded number of places, so a
/// linear search is the fastest look-up.
pub(crate) struct ChangeLog<K> {
    before: Vec<Noted<K>>,
}

struct Noted<K> {
    stripe: u8,
    /// The node's number when it was noted, so that it need not be looked up again.
    slot: Slot,
    node: K,
    upstream: Option<Option<K>>,
}

impl<K: Copy + Eq> ChangeLog<K> {
    pub(crate) fn new() -> Self {
        Self { before: Vec::with_capacity(24) }
    }

    /// Notes the upstream of `node` before its first change; `None`: it was not in the tree. Later notes of the same edge change nothing.
    pub(crate) fn note(&mut self, stripe: u8, slot: Slot, node: K, upstream: Option<Option<K>>) {
        if !self.before.iter().any(|noted| (noted.stripe, noted.node) == (stripe, node)) {
            self.before.push(Noted { stripe, slot, node, upstream });
        }
    }

    /// The difference between what was noted and what `upstream` says now.
    pub(crate) fn finish(self, upstream: impl Fn(u8, Slot, &K) -> Option<Option<K>>) -> Plan<K> {
        let noted = self.before.len();
        let mut plan = Plan { changed: Vec::with_capacity(noted), freed: Vec::with_capacity(noted) };
        for Noted { stripe, slot, node, upstream: before } in self.before {
            let after = upstream(stripe, slot, &node);
            if before == after {
                continue;
            }
            plan.freed.extend(before.map(|parent| Edge { stripe, node, parent }));
            plan.changed.extend(after.map(|parent| Edge { stripe, node, parent }));
        }
        plan
    }
}
