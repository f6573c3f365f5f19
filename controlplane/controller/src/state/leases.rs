//! Leave to read the origin, for members that are neither root nor heir and have nobody else left.
//!
//! One per function and stripe at a time, for a short while: a burst of orphans costs the origin one more reader, and the others receive
//! from it.

use faasnet_api::{FunctionId, NodeId, v1};

use super::State;
use super::function::Lease;
use super::io::{Now, Output};
use super::node::Node;

impl State {
    /// A node knows nobody any more from whom it could receive a stripe.
    pub(super) fn origin_wanted(&mut self, now: Now, id: NodeId, wanted: &v1::OriginWanted) {
        let Ok(function_id) = FunctionId::try_from(&wanted.function_id[..]) else { return };
        let Some(session) = self.nodes.get(&id).and_then(|node| node.session) else { return };
        let Ok(stripe) = u8::try_from(wanted.stripe) else { return };
        let lease_ms = self.settings.origin_lease_ms;
        let granted = self.grant_lease(now, id, function_id, stripe, lease_ms);
        let member = self.functions.get(&function_id).and_then(|function| function.wanted.get(&id));
        let knows_image = member.and_then(|member| member.progress.as_ref()).is_some_and(|row| row.bytes_total > 0);
        if granted && (!knows_image || self.login_for(function_id, &id).is_some()) {
            // Whoever could have sent it the descriptor is gone as well; or the origin lets it read only with what comes along.
            self.send_assign(now, function_id, id, true);
        }
        // Even who has no place is answered: an agent that hears nothing reads the origin on its own after a while.
        let seconds = if granted { lease_ms.div_ceil(1_000) as u32 } else { 0 };
        let lease = v1::OriginLease { function_id: wanted.function_id.clone(), stripe: wanted.stripe, seconds };
        self.emit(Output::Send { session, command: v1::command::Command::OriginLease(lease) });
    }

    fn grant_lease(&mut self, now: Now, id: NodeId, function: FunctionId, stripe: u8, lease_ms: u64) -> bool {
        let nodes = &self.nodes;
        let function = self.functions.get_mut(&function).filter(|function| function.has_place(&id));
        let Some(function) = function.filter(|function| stripe < function.trees.stripes()) else { return false };
        let trusted = |node: &NodeId| nodes.get(node).is_some_and(Node::is_trusted);
        // Who died, left or has everything needs it no more. From one in quarantine nobody else would receive.
        let uses = |lease: &Lease| {
            let member = function.wanted.get(&lease.node);
            now.ms < lease.until_ms
                && (trusted(&lease.node) || !trusted(&id))
                && nodes.get(&lease.node).is_some_and(|node| !node.is_dead())
                && member.is_some_and(|member| !member.failed && !member.is_complete())
        };
        let held = function.leases.get(&stripe).filter(|lease| uses(lease));
        if held.is_some_and(|lease| lease.node != id) {
            return false;
        }
        let before = function.leases.insert(stripe, Lease { node: id, until_ms: now.ms + lease_ms });
        let function = function.id;
        if let Some(before) = before.filter(|before| before.node != id) {
            // It is to forget what it was told for its reading.
            self.send_assign(now, function, before.node, true);
        }
        true
    }
}
