//! The interface behind which every policy stands. It speaks of parents and children only, so a policy need not be an array heap.

use crate::index::Slot;
use crate::plan::ChangeLog;

/// One policy's trees. Callers have checked that an inserted key is new and that a removed one is a member.
pub(crate) trait Arrangement<K> {
    fn len(&self) -> usize;
    fn contains(&self, node: &K) -> bool;
    fn insert(&mut self, node: K, log: &mut ChangeLog<K>);
    fn remove(&mut self, node: K, log: &mut ChangeLog<K>);
    /// Swaps the node with one that is not slow and stands where as few as possible depend on it; does nothing when there is none lower.
    fn demote(&mut self, node: &K, is_slow: &dyn Fn(&K) -> bool, log: &mut ChangeLog<K>);
    /// Exchanges two members' places, in the one tree where they are inner nodes if they are of the same kind, else in all.
    fn exchange(&mut self, one: &K, other: &K, log: &mut ChangeLog<K>);
    /// The member whose removal moves the fewest: a leaf of all trees if there is one.
    fn expendable(&self) -> Option<K>;
    fn root(&self, stripe: u8) -> Option<K>;
    /// `None`: no such node or stripe; `Some(None)`: the root.
    fn parent(&self, stripe: u8, node: &K) -> Option<Option<K>>;
    /// The same for a node whose number was `slot` when it was noted.
    fn parent_by_slot(&self, stripe: u8, slot: Slot, node: &K) -> Option<Option<K>>;
    fn children(&self, stripe: u8, node: &K) -> [Option<K>; 2];
    /// The members of one stripe's tree in the policy's own order.
    fn order(&self, stripe: u8) -> &[K];
    /// What holds by construction, checked the slow way.
    fn check(&self) -> Result<(), String>;
}
