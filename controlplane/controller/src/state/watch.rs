//! Clients that watch a provision until every node of it is complete, failed or dead.

use std::collections::BTreeSet;

use faasnet_api::{FunctionId, NodeId, v1};

use super::State;
use super::function::Function;
use super::io::{Now, Output, Refusal, RequestId};

/// Without any change a client still hears this often, so that it knows that the call lives.
pub(super) const QUIET_MS: u64 = 1_000;

#[derive(Debug)]
pub(crate) struct Watch {
    function: FunctionId,
    nodes: BTreeSet<NodeId>,
    /// Nodes that are neither complete, failed nor dead.
    pending: BTreeSet<NodeId>,
    /// Members that are to go and are still there.
    leaving: BTreeSet<NodeId>,
    /// Asked for by number: nodes that stand in for lost ones belong to it too.
    by_count: bool,
    reported_ms: Option<u64>,
    changed: bool,
}

impl Watch {
    fn is_settled(&self) -> bool {
        self.pending.is_empty() && self.leaving.is_empty()
    }
}

impl State {
    pub(super) fn watch(&mut self, request: RequestId, function: FunctionId, nodes: BTreeSet<NodeId>, by_count: bool) {
        let pending = nodes.iter().copied().filter(|node| !self.is_settled(function, node)).collect();
        let leaves = |(id, node): &&(FunctionId, NodeId)| *id == function && by_count && !nodes.contains(node);
        let leaving = self.leaving.iter().filter(leaves).map(|(_, node)| *node).collect();
        let watch = Watch { function, nodes, pending, leaving, by_count, reported_ms: None, changed: true };
        self.watches.insert(request, watch);
    }

    /// Something about a member changed.
    pub(super) fn touch_watches(&mut self, function: FunctionId, node: NodeId) {
        if self.watches.is_empty() {
            return;
        }
        let settled = self.is_settled(function, &node);
        let member = self.functions.get(&function).is_some_and(|function| function.wanted.contains_key(&node));
        let leaves = self.leaving.contains(&(function, node));
        for watch in self.watches.values_mut().filter(|watch| watch.function == function) {
            watch.changed |= !leaves && watch.leaving.remove(&node);
            if !watch.nodes.contains(&node) {
                continue;
            }
            watch.changed = true;
            if settled {
                watch.pending.remove(&node);
            } else {
                watch.pending.insert(node);
            }
            if !member {
                watch.nodes.remove(&node);
            }
        }
    }

    /// New members stand in for lost ones.
    pub(super) fn widen_watches(&mut self, function: FunctionId, added: &[NodeId]) {
        for watch in self.watches.values_mut().filter(|watch| watch.function == function && watch.by_count) {
            watch.nodes.extend(added);
            watch.pending.extend(added);
        }
        for node in added {
            self.touch_watches(function, *node);
        }
    }

    pub(super) fn end_settled_watches(&mut self, now: Now) {
        let settled: Vec<RequestId> =
            self.watches.iter().filter(|(_, watch)| watch.is_settled()).map(|(request, _)| *request).collect();
        for request in settled {
            self.report_watch(now, request);
            self.watches.remove(&request);
        }
        let fresh = self.watches.iter().filter(|(_, watch)| watch.reported_ms.is_none());
        let fresh: Vec<RequestId> = fresh.map(|(request, _)| *request).collect();
        fresh.into_iter().for_each(|request| self.report_watch(now, request));
    }

    pub(super) fn report_watches(&mut self, now: Now) {
        let (period, quiet) = (self.settings.progress_ms, self.settings.progress_ms.max(QUIET_MS));
        let due = |watch: &Watch| {
            let pause = now.ms.saturating_sub(watch.reported_ms.unwrap_or(0));
            pause >= if watch.changed { period } else { quiet }
        };
        let due: Vec<RequestId> =
            self.watches.iter().filter(|(_, watch)| due(watch)).map(|(request, _)| *request).collect();
        due.into_iter().for_each(|request| self.report_watch(now, request));
    }

    /// The function is gone: nothing will be complete any more.
    pub(super) fn fail_watches(&mut self, function: FunctionId) {
        let gone: Vec<RequestId> =
            self.watches.iter().filter(|(_, watch)| watch.function == function).map(|(request, _)| *request).collect();
        for request in gone {
            self.watches.remove(&request);
            let answer = Err(Refusal::not_found("the function was removed while it was being provisioned"));
            self.emit(Output::Answer { request, answer });
        }
    }

    /// How a member is shown to clients.
    pub(super) fn node_progress(&self, function: &Function, node: NodeId) -> v1::NodeProgress {
        let known = self.nodes.get(&node);
        v1::NodeProgress {
            node_id: node.to_vec(),
            name: known.map_or_else(|| node.short(), |known| known.name.clone()),
            progress: Some(function.progress(&node)),
            alive: known.is_some_and(|known| !known.is_dead()),
        }
    }

    fn report_watch(&mut self, now: Now, request: RequestId) {
        let Some(watch) = self.watches.get(&request) else { return };
        let Some(function) = self.functions.get(&watch.function) else { return };
        let nodes = watch.nodes.iter().map(|node| self.node_progress(function, *node)).collect();
        let progress = v1::ProvisionProgress { nodes, done: watch.is_settled(), leaving: watch.leaving.len() as u32 };
        if let Some(watch) = self.watches.get_mut(&request) {
            watch.reported_ms = Some(now.ms);
            watch.changed = false;
        }
        self.emit(Output::Progress { request, progress });
    }

    fn is_settled(&self, function: FunctionId, node: &NodeId) -> bool {
        let member = self.functions.get(&function).and_then(|function| function.wanted.get(node));
        let dead = self.nodes.get(node).is_none_or(|node| node.is_dead());
        let trusted = self.nodes.get(node).is_none_or(|node| node.is_trusted());
        let settles = |member: &super::function::Member| {
            dead || !trusted || member.failed || member.leaving.is_some() || member.is_complete()
        };
        member.is_none_or(settles)
    }
}
