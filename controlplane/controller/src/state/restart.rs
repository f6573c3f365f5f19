//! After a start with a stored state: what agents report corrects the stored order.
//!
//! The order itself is never behind, since no command leaves before its records are committed. What is not stored is who has which bytes, and
//! with it who feeds a root that has none. When the grace is over, those that are back have said it, and those that are not are probed.

use std::collections::HashSet;

use faasnet_api::FunctionId;

use super::State;
use super::function::Function;
use super::io::Now;

impl State {
    /// Once, when agents had the time to come back.
    pub(super) fn settle_restart(&mut self, now: Now) {
        if !self.restarted || now.ms < self.started_ms + self.settings.restart_grace_ms {
            return;
        }
        self.restarted = false;
        let functions: Vec<FunctionId> = self
            .functions
            .values()
            .filter(|function| lacks_bytes_at_the_top(function))
            .map(|function| function.id)
            .collect();
        for id in functions {
            // As if all leaders were new: each is compared with those beside it, and gets a donor if it needs one.
            self.settle_trees(now, id, &[], HashSet::new(), Vec::new());
        }
    }
}

/// Whether a root would have to read the origin.
fn lacks_bytes_at_the_top(function: &Function) -> bool {
    let roots = (0..function.trees.stripes()).filter_map(|stripe| function.trees.root(stripe));
    roots.filter_map(|root| function.wanted.get(&root)).any(|member| !member.is_complete())
}
