//! Members on their way out: scaled down, idle, or on a node that is drained.
//!
//! LIFECYCLE: wanted and planned → leaving (out of the trees, so that its children are planned elsewhere; it still serves them) → let go
//! (told to drop the function) when it feeds nobody any more and its successor, if it has one, holds the image; after some patience in
//! any case. So nobody loses a parent before the next one delivers.

use std::collections::BTreeSet;

use faasnet_api::{FunctionId, NodeId, v1};

use super::State;
use super::function::{Function, Leaving};
use super::io::{Now, Output, Refusal, RequestId};
use super::records::Key;

/// A word about who is fed counts when it was said so long after the plan without the node was sent.
const CHILDREN_MOVE_MS: u64 = 1_000;
/// Idle members are looked for this often.
const RECLAIM_EVERY_MS: u64 = 1_000;

/// A client that waits until a node is empty.
#[derive(Debug)]
pub(crate) struct DrainWatch {
    node: NodeId,
    reported_ms: Option<u64>,
    last: v1::DrainProgress,
}

impl State {
    /// Takes members out of the trees and lets them go as soon as nobody needs them. `replaced`: somebody is going to take their place, for
    /// whom they wait.
    pub(super) fn leave(&mut self, now: Now, id: FunctionId, nodes: &[NodeId], replaced: bool) {
        let Some(function) = self.functions.get_mut(&id) else { return };
        let (mut leaving, mut fed) = (Vec::new(), BTreeSet::new());
        for node in nodes {
            let stripes = 0..function.trees.stripes();
            let children: Vec<NodeId> = stripes.flat_map(|stripe| function.children(stripe, *node)).collect();
            let receives = |child: &NodeId| function.wanted.get(child).is_some_and(|member| !member.is_complete());
            // Children that have not moved to it yet, or not away from it, and guests are told by itself.
            let progress = function.wanted.get(node).and_then(|member| member.progress.as_ref());
            let serves = progress.is_some_and(|progress| !progress.downstreams.is_empty());
            if serves || children.iter().any(receives) {
                fed.insert(*node);
            }
            if let Some(member) = function.wanted.get_mut(node).filter(|member| member.leaving.is_none()) {
                member.leaving = Some(Leaving { since_ms: now.ms, successor: None });
                leaving.push(*node);
            }
        }
        self.leaving.extend(leaving.iter().map(|node| (id, *node)));
        self.emit(Output::Store(Key::Function(id)));
        self.align_trees(now, id, &leaving);
        let function = self.functions.get(&id);
        let donates = |node: &NodeId| function.is_some_and(|function| function.is_donor(node));
        let waits = |node: &NodeId| fed.contains(node) || replaced || donates(node);
        let (stay, go): (Vec<NodeId>, Vec<NodeId>) = leaving.into_iter().partition(waits);
        self.unwant(now, id, &go, false);
        stay.iter().for_each(|node| self.touch_watches(id, *node));
    }

    /// Lets those go for whom nobody waits any more.
    pub(super) fn advance_leaving(&mut self, now: Now) {
        let due: Vec<(FunctionId, NodeId)> =
            self.leaving.iter().filter(|(id, node)| self.stays_for(now, *id, *node).is_none()).copied().collect();
        for (id, node) in due {
            self.leaving.remove(&(id, node));
            self.unwant(now, id, &[node], false);
        }
        self.report_drains(now);
    }

    /// A heartbeat that does not name a function says that the node has it no more, so it feeds nobody.
    pub(super) fn note_absent(&mut self, now: Now, node: NodeId, rows: &[v1::FunctionProgress]) {
        if self.leaving.is_empty() {
            return;
        }
        for id in self.functions_of(&node) {
            if !self.leaving.contains(&(id, node)) || rows.iter().any(|row| row.function_id == id.as_bytes()) {
                continue;
            }
            if let Some(member) = self.functions.get_mut(&id).and_then(|function| function.wanted.get_mut(&node)) {
                member.progress = None;
                member.reported_ms = now.ms;
            }
        }
    }

    /// Whom a leaving member still serves: how many, and for people what it waits for. `None`: nothing keeps it.
    fn stays_for(&self, now: Now, id: FunctionId, node: NodeId) -> Option<(u32, String)> {
        let function = self.functions.get(&id)?;
        let member = function.wanted.get(&node)?;
        let leaving = member.leaving.as_ref()?;
        let dead = self.nodes.get(&node).is_none_or(|node| node.is_dead());
        if dead || now.ms >= leaving.since_ms + self.settings.drain_patience_ms {
            return None;
        }
        let children = member.progress.as_ref().map_or(0, |progress| progress.downstreams.len() as u32);
        if member.reported_ms < leaving.since_ms + CHILDREN_MOVE_MS {
            return Some((children, "its children move to other parents".into()));
        }
        if children > 0 {
            return Some((children, format!("{children} of its children still receive from it")));
        }
        if function.is_donor(&node) {
            return Some((1, "a root without the image receives it from there".into()));
        }
        let successor = leaving.successor.filter(|successor| self.is_on_its_way(function, successor))?;
        Some((0, format!("{} takes its place and is still receiving", self.name_of(&successor))))
    }

    /// Whether the node that stands in for another is going to hold the image, and does not yet.
    fn is_on_its_way(&self, function: &Function, node: &NodeId) -> bool {
        let alive = self.nodes.get(node).is_some_and(|node| !node.is_dead());
        alive
            && function.stays(node)
            && function.wanted.get(node).is_some_and(|member| !member.failed && !member.is_complete())
    }

    pub(super) fn scale(&mut self, now: Now, request: RequestId, scale: &v1::ScaleRequest) -> Result<(), Refusal> {
        let id = self.named(&scale.tenant, &scale.function)?;
        self.place(now, id, scale.count, true)?;
        self.take_up_next(now, id, None);
        let Some(function) = self.functions.get_mut(&id) else { return Ok(()) };
        function.count = Some(scale.count).filter(|count| *count > 0);
        self.emit(Output::Store(Key::Function(id)));
        let going = self.surplus(id, scale.count as usize);
        if let Some(lost) = self.functions.get(&id).map(|function| self.split_members(function).1) {
            // Nobody stands in for them any more: the number asked for is there.
            self.unwant(now, id, &lost, false);
        }
        self.leave(now, id, &going, false);
        if let Some(function) = self.functions.get(&id) {
            let stay = function.wanted.keys().copied().filter(|node| function.stays(node)).collect();
            self.watch(request, id, stay, true);
        }
        Ok(())
    }

    /// The members that go when only `count` shall stay: first those that cannot hold the image, then those that only receive, then
    /// those that lack most of what others have, or the origin would be read again, then those whose place in the trees costs the others
    /// the least, which are leaves.
    fn surplus(&self, id: FunctionId, count: usize) -> Vec<NodeId> {
        let Some(function) = self.functions.get(&id) else { return Vec::new() };
        let (serving, _) = self.split_members(function);
        let surplus = serving.saturating_sub(count);
        let here = |node: &NodeId| self.nodes.get(node).is_some_and(|node| !node.is_dead() && node.is_trusted());
        let unplaced =
            function.wanted.keys().filter(|node| !function.has_place(node) && function.stays(node) && here(node));
        let mut going: Vec<NodeId> = unplaced.chain(function.riders.keys()).copied().take(surplus).collect();
        let mut trees = function.trees.clone();
        let mut poor = function.without_data();
        while going.len() < surplus {
            let Some(node) = poor.pop().or_else(|| trees.expendable()) else { break };
            // Ignored: it is a member.
            let _ = trees.remove(node);
            going.push(node);
        }
        going
    }

    /// Members that nobody used for long: the function is taken from their nodes, which return to the free pool with their last one.
    pub(super) fn reclaim_idle(&mut self, now: Now) {
        let limit = self.settings.idle_reclaim_ms;
        if limit == 0 || now.ms < self.reclaimed_ms + RECLAIM_EVERY_MS {
            return;
        }
        self.reclaimed_ms = now.ms;
        let mut idle: Vec<(FunctionId, Vec<NodeId>)> = Vec::new();
        for function in self.functions.values() {
            let rests = |(node, member): &(&NodeId, &super::function::Member)| {
                let settled = member.failed
                    || member.is_complete()
                    || self.nodes.get(node).is_none_or(|node| node.is_dead() || !node.is_trusted());
                settled && member.leaving.is_none() && now.ms >= member.used_ms.saturating_add(limit)
            };
            let nodes: Vec<NodeId> = function.wanted.iter().filter(rests).map(|(node, _)| *node).collect();
            if !nodes.is_empty() {
                idle.push((function.id, nodes));
            }
        }
        for (id, nodes) in idle {
            if let Some(function) = self.functions.get_mut(&id) {
                // Who is dead or in quarantine was not one of the number: somebody stands in for it, or shall.
                let there = |id: &&NodeId| self.nodes.get(id).is_some_and(|node| !node.is_dead() && node.is_trusted());
                let going = nodes.iter().filter(there).count() as u32;
                function.count = function.count.map(|count| count.saturating_sub(going)).filter(|left| *left > 0);
                let text = format!("{}/{}: {} idle nodes are reclaimed", function.tenant, function.name, nodes.len());
                self.note(text);
            }
            self.leave(now, id, &nodes, false);
        }
    }

    pub(super) fn drain(&mut self, now: Now, request: RequestId, drain: &v1::DrainRequest) -> Result<(), Refusal> {
        let id = self.resolve_node(&drain.node)?;
        let Some(node) = self.nodes.get_mut(&id) else { return Err(Refusal::not_found("the node is gone")) };
        node.draining = !drain.undo;
        if drain.undo {
            node.blame = Default::default();
            self.undo_drain(now, id);
        } else {
            self.empty_node(now, id);
        }
        self.capacity_changed = true;
        self.emit(Output::Store(Key::Node(id)));
        let watch = DrainWatch { node: id, reported_ms: None, last: v1::DrainProgress::default() };
        self.drains.insert(request, watch);
        self.report_drains(now);
        Ok(())
    }

    /// Lets every function of a node go; where a number of nodes is asked for, another one comes first.
    fn empty_node(&mut self, now: Now, node: NodeId) {
        for id in self.functions_of(&node) {
            let Some(function) = self.functions.get(&id).filter(|function| function.stays(&node)) else { continue };
            let counted = function.count;
            self.leave(now, id, &[node], counted.is_some());
            let added = counted.map(|count| self.place(now, id, count, false).unwrap_or_default()).unwrap_or_default();
            self.widen_watches(id, &added);
            let member = self.functions.get_mut(&id).and_then(|function| function.wanted.get_mut(&node));
            if let Some(leaving) = member.and_then(|member| member.leaving.as_mut()) {
                leaving.successor = added.first().copied();
            }
        }
    }

    fn undo_drain(&mut self, now: Now, node: NodeId) {
        let waiting = self.drains.iter().filter(|(_, watch)| watch.node == node).map(|(request, _)| *request);
        for request in waiting.collect::<Vec<_>>() {
            self.drains.remove(&request);
            let refusal = Refusal::precondition("the drain was undone by another call");
            self.emit(Output::Answer { request, answer: Err(refusal) });
        }
        for id in self.functions_of(&node) {
            self.leaving.remove(&(id, node));
            if let Some(member) = self.functions.get_mut(&id).and_then(|function| function.wanted.get_mut(&node)) {
                member.leaving = None;
                member.used_ms = now.ms;
            }
            self.emit(Output::Store(Key::Function(id)));
            self.align_trees(now, id, &[node]);
            self.touch_watches(id, node);
        }
    }

    /// What a drained node still holds, to those who wait for it.
    fn report_drains(&mut self, now: Now) {
        let requests: Vec<RequestId> = self.drains.keys().copied().collect();
        for request in requests {
            let Some(watch) = self.drains.get(&request) else { continue };
            let quiet = watch.reported_ms.is_some_and(|at| now.ms < at + super::watch::QUIET_MS);
            let progress = self.drain_progress(now, watch.node);
            let news = (progress.done, &progress.functions) != (watch.last.done, &watch.last.functions);
            if quiet && !news {
                continue;
            }
            let done = progress.done;
            self.emit(Output::Drained { request, progress: progress.clone() });
            match (done, self.drains.get_mut(&request)) {
                (false, Some(watch)) => (watch.reported_ms, watch.last) = (Some(now.ms), progress),
                _ => drop(self.drains.remove(&request)),
            }
        }
    }

    fn drain_progress(&self, now: Now, id: NodeId) -> v1::DrainProgress {
        let Some(node) = self.nodes.get(&id) else { return v1::DrainProgress { done: true, ..Default::default() } };
        let held = |function: &FunctionId| {
            let function = self.functions.get(function)?;
            let (children, waits_for) = self.stays_for(now, function.id, id).unwrap_or_default();
            let (tenant, function) = (function.tenant.clone(), function.name.clone());
            Some(v1::DrainedFunction { tenant, function, children, waits_for })
        };
        let functions: Vec<_> = node.functions.iter().filter_map(held).collect();
        // A drain that was undone is done: there is nothing to wait for.
        let done = functions.is_empty() || !node.draining;
        v1::DrainProgress { node: Some(node.info(now)), functions, done }
    }
}
