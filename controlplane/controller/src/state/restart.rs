//! After a start with a stored state: what agents report corrects the stored order.
//!
//! The order itself is never behind, since no command leaves before its records are committed. What is not stored is who has which bytes.
//! When the grace is over, those that are back have said it, and those that are not are probed; a function is looked at when all of its
//! members are back, or had the time for it.

use std::collections::HashSet;

use faasnet_api::FunctionId;

use super::State;
use super::function::Function;
use super::io::Now;

impl State {
    /// Once for each function, when its agents had the time to come back.
    pub(super) fn settle_restart(&mut self, now: Now) {
        if self.unsettled.is_empty() || now.ms < self.started_ms + self.settings.restart_grace_ms {
            return;
        }
        let over = now.ms >= self.started_ms + self.settings.reattach_ms;
        let back = |id: &FunctionId| self.functions.get(id).is_none_or(|function| self.all_are_back(function));
        let due: Vec<FunctionId> = self.unsettled.iter().copied().filter(|id| over || back(id)).collect();
        for id in due {
            self.unsettled.remove(&id);
            if self.functions.get(&id).is_some_and(|function| self.lacks_bytes_at_the_top(function)) {
                // As if all leaders were new: each is compared with those beside it, and gets a donor if it needs one.
                self.settle_trees(now, id, &[], HashSet::new(), Vec::new());
            }
        }
    }

    fn all_are_back(&self, function: &Function) -> bool {
        let mut nodes = function.wanted.keys().filter_map(|id| self.nodes.get(id));
        nodes.all(|node| node.session.is_some() || node.is_dead())
    }

    /// Whether a root would have to read the origin. Of one that is not back it is not known.
    fn lacks_bytes_at_the_top(&self, function: &Function) -> bool {
        let roots = (0..function.trees.stripes()).filter_map(|stripe| function.trees.root(stripe));
        let back = roots.filter(|root| self.nodes.get(root).is_some_and(|node| node.session.is_some()));
        back.filter_map(|root| function.wanted.get(&root)).any(|member| !member.is_complete())
    }
}
