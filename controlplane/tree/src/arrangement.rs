//! The interface behind which every policy stands. It speaks of parents and children only, so a policy need not be an array heap.

use crate::plan::{ChangeLog, Stand};

/// One policy's trees.
pub(crate) trait Arrangement<K> {
    fn len(&self) -> usize;
    fn contains(&self, node: &K) -> bool;
    /// False when the node is a member already; nothing has changed then.
    fn insert(&mut self, node: K, log: &mut ChangeLog<K>) -> bool;
    /// False when the node is no member.
    fn remove(&mut self, node: K, log: &mut ChangeLog<K>) -> bool;
    /// Swaps the node with one that is not slow and stands where as few as possible depend on it; does nothing when there is none lower.
    fn demote(&mut self, node: &K, is_slow: &dyn Fn(&K) -> bool, log: &mut ChangeLog<K>);
    /// Exchanges two members' places, in the one tree where they are inner nodes if they are of the same kind, else in all.
    fn exchange(&mut self, one: &K, other: &K, log: &mut ChangeLog<K>);
    /// The member whose removal moves the fewest: a leaf of all trees if there is one.
    fn expendable(&self) -> Option<K>;
    fn root(&self, stripe: u8) -> Option<K>;
    /// `None`: no such node or stripe; `Some(None)`: the root.
    fn parent(&self, stripe: u8, node: &K) -> Option<Option<K>>;
    /// Who stands at a place that was noted in the log.
    fn stand(&self, stripe: u8, place: u32) -> Stand<K>;
    fn children(&self, stripe: u8, node: &K) -> [Option<K>; 2];
    /// The members of one stripe's tree in the policy's own order.
    fn order(&self, stripe: u8) -> Box<dyn DoubleEndedIterator<Item = K> + '_>;
    /// What holds by construction, checked the slow way.
    fn check(&self) -> Result<(), String>;
}
