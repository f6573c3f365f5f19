//! Who is in a function's trees, and telling the agents: the only place where trees change and assignments are made.

use std::collections::{BTreeSet, HashSet};

use faasnet_api::{FunctionId, NodeId, v1};
use faasnet_tree::Edge;

use super::function::{Leaders, Member, Sent};
use super::io::{Now, Output};
use super::keys::is_old;
use super::pace::Level;
use super::records::Key;
use super::{State, leading, plan, riding};

/// Tickets are renewed when half of their life is over, checked this often.
const TICKET_CHECK_SECONDS: u64 = 60;

impl State {
    /// Takes nodes into the intent of a function and plans those that can take part. A member that failed gets another try.
    pub(super) fn want(&mut self, now: Now, id: FunctionId, nodes: &[NodeId]) {
        let Some(function) = self.functions.get_mut(&id) else { return };
        for node in nodes {
            let member = function.wanted.entry(*node).or_default();
            if std::mem::take(&mut member.failed) {
                member.progress = None;
            }
            member.used_ms = now.ms;
            member.asked_for(now);
            member.leaving = None;
            self.leaving.remove(&(id, *node));
            if let Some(node) = self.nodes.get_mut(node) {
                node.occupy(id, &function.tenant, function.memory_mib);
            }
        }
        self.emit(Output::Store(Key::Function(id)));
        self.align_trees(now, id, nodes);
        for node in nodes {
            self.touch_watches(id, *node);
        }
    }

    /// Takes nodes out of the intent and tells them, to free their disks too if `discard`. Answers how many were in it.
    pub(super) fn unwant(&mut self, now: Now, id: FunctionId, nodes: &[NodeId], discard: bool) -> u32 {
        let Some(function) = self.functions.get_mut(&id) else { return 0 };
        let gone: Vec<NodeId> = nodes.iter().copied().filter(|node| function.wanted.remove(node).is_some()).collect();
        if gone.is_empty() {
            return 0;
        }
        let memory_mib = function.memory_mib;
        self.emit(Output::Store(Key::Function(id)));
        if !self.align_trees(now, id, &gone) {
            // A new epoch even when no tree changes: the drop must be newer than what the agent holds.
            self.raise_epoch(id);
        }
        self.replace_donors(now, id, &gone);
        for node in &gone {
            if let Some(node) = self.nodes.get_mut(node) {
                node.vacate(id, memory_mib);
            }
            self.leaving.remove(&(id, *node));
            self.send_drop(id, *node, 0, discard);
            self.touch_watches(id, *node);
        }
        gone.len() as u32
    }

    /// Makes the trees agree with intent and liveness as far as these nodes are concerned, and tells everybody whose plan changed.
    /// Answers whether anybody's place changed.
    pub(super) fn align_trees(&mut self, now: Now, id: FunctionId, nodes: &[NodeId]) -> bool {
        let nodes_known = &self.nodes;
        let Some(function) = self.functions.get_mut(&id) else { return false };
        let (leaders, version) = (function.leaders(), (self.term, function.epoch + 1));
        let (mut edges, mut moved) = (HashSet::new(), Vec::new());
        for id in nodes {
            let node = nodes_known.get(id).filter(|node| !node.is_dead());
            let member = function.wanted.get(id).filter(|member| !member.failed && member.leaving.is_none());
            let there = node.filter(|_| member.is_some());
            let (in_trees, riding) = (function.trees.contains(id), function.riders.contains_key(id));
            // Who is in quarantine still receives, but nobody receives from it. Those are as many as there are.
            let has_room = || riding || riding::slow(function, nodes_known) < riding::most(function);
            let rides =
                there.is_some_and(|node| !node.is_trusted() || node.pace.level == Level::ReceivesOnly && has_room());
            if (there.is_some() && !rides, rides) == (in_trees, riding) {
                continue;
            }
            // Whoever fed it feeds it no more.
            moved.extend(function.riders.remove(id).unwrap_or_default());
            let change = match (there.is_some() && !rides, in_trees) {
                (true, false) => function.trees.insert(*id),
                (false, true) => function.trees.remove(*id),
                _ => Ok(Default::default()),
            };
            if rides {
                function.riders.insert(*id, Vec::new());
            }
            let change = change.unwrap_or_default();
            edges.extend(change.changed.into_iter().chain(change.freed));
            moved.push(*id);
            if let Some(member) = function.wanted.get_mut(id).filter(|_| there.is_some()) {
                member.joined = version;
            }
        }
        if moved.is_empty() {
            return false;
        }
        self.settle_trees(now, id, &leaders, edges, moved);
        true
    }

    /// Roots that were fed by somebody who is gone need another donor, or the origin.
    fn replace_donors(&mut self, now: Now, id: FunctionId, gone: &[NodeId]) {
        let Some(function) = self.functions.get(&id) else { return };
        if function.donors.iter().flatten().any(|donor| gone.contains(donor)) {
            let leaders = function.leaders();
            self.settle_trees(now, id, &leaders, HashSet::new(), Vec::new());
        }
    }

    /// Moves a straggler where it holds up few.
    pub(super) fn demote(&mut self, now: Now, id: FunctionId, node: NodeId) {
        let nodes = &self.nodes;
        let Some(function) = self.functions.get_mut(&id) else { return };
        let leaders = function.leaders();
        let is_slow = |other: &NodeId| nodes.get(other).is_some_and(|other| other.pace.is_slow());
        let change = function.trees.demote(node, is_slow).unwrap_or_default();
        let edges: HashSet<Edge<NodeId>> = change.changed.into_iter().chain(change.freed).collect();
        if !edges.is_empty() {
            self.settle_trees(now, id, &leaders, edges, Vec::new());
        }
    }

    /// After a change of the trees: a new epoch, leaders that have data, parents for those that only receive, and new plans for all whose
    /// neighbourhood changed.
    pub(super) fn settle_trees(
        &mut self,
        now: Now,
        id: FunctionId,
        leaders: &[Leaders],
        mut edges: HashSet<Edge<NodeId>>,
        moved: Vec<NodeId>,
    ) {
        let nodes = &self.nodes;
        let Some(function) = self.functions.get_mut(&id) else { return };
        function.epoch += 1;
        let is_slow = |other: &NodeId| nodes.get(other).is_some_and(|other| other.pace.is_slow());
        edges.extend(leading::lead_with_data(function, &is_slow));
        // A removal moves the last of a tree up, where stragglers were put.
        for straggler in &self.slow {
            // Ignored: who is not in the trees has no place in them to leave.
            let change = function.trees.demote(*straggler, is_slow).unwrap_or_default();
            edges.extend(change.changed.into_iter().chain(change.freed));
        }
        let hosts_changed = riding::host_riders(function, nodes, &mut edges);
        let leaders_after = function.leaders();
        let heirs_changed = leaders.iter().zip(&leaders_after).any(|(before, after)| before.1 != after.1);
        let mut concerned = match heirs_changed {
            // The heir is a fallback of nearly everybody.
            true => function.placed().collect(),
            false => plan::concerned(function, &edges),
        };
        concerned.extend(hosts_changed.into_iter().chain(moved).filter(|node| function.has_place(node)));
        concerned.extend(self.choose_donors(id, leaders));
        self.emit(Output::Store(Key::Order(id)));
        self.send_assigns(now, id, concerned);
    }

    /// A root that came to its place without the image gets it from a member that has all of it, if there is one, instead of having the
    /// origin read a second time. Answers whose plan that changes.
    fn choose_donors(&mut self, id: FunctionId, leaders: &[Leaders]) -> Vec<NodeId> {
        let nodes = &self.nodes;
        let Some(function) = self.functions.get_mut(&id) else { return Vec::new() };
        let mut concerned = Vec::new();
        for stripe in 0..function.trees.stripes() {
            let index = usize::from(stripe);
            let (before, root) = (leaders.get(index).and_then(|leaders| leaders.0), function.trees.root(stripe));
            let old = function.donors.get(index).copied().flatten();
            // One on its way out still has everything, and is kept for it: its children have moved, so there is room for a guest.
            let serves = |donor: &NodeId| {
                let member = function.wanted.get(donor);
                let there = member.is_some_and(|member| function.trees.contains(donor) || member.leaving.is_some());
                there && nodes.get(donor).is_some_and(|node| node.session.is_some() && node.is_trusted())
            };
            if before == root && old.is_none_or(|donor| serves(&donor)) {
                continue;
            }
            let root_complete = root.and_then(|root| function.wanted.get(&root)).is_none_or(Member::is_complete);
            let donor = function.wanted.iter().find(|(node, member)| {
                let has_room = function.trees.children(stripe, node).count() < 2;
                !root_complete && Some(**node) != root && member.is_complete() && has_room && serves(node)
            });
            let donor = donor.map(|(node, _)| *node);
            if donor != old {
                concerned.extend([root, old, donor].into_iter().flatten().filter(|node| function.trees.contains(node)));
            }
            if let Some(place) = function.donors.get_mut(index) {
                *place = donor;
            }
        }
        concerned
    }

    /// Sends an `Assign` to those of `nodes` that can hear it and whose plan is not what they were last told.
    pub(super) fn send_assigns(&mut self, now: Now, id: FunctionId, nodes: impl IntoIterator<Item = NodeId>) {
        for node in nodes {
            self.send_assign(now, id, node, false);
        }
    }

    pub(super) fn send_assign(&mut self, now: Now, id: FunctionId, node: NodeId, even_if_unchanged: bool) {
        let nodes = &self.nodes;
        let Some(session) = nodes.get(&node).filter(|node| !node.is_dead()).and_then(|node| node.session) else {
            return;
        };
        let Some(function) = self.functions.get(&id).filter(|function| function.has_place(&node)) else {
            return;
        };
        let address = |id: NodeId| nodes.get(&id).map(|node| node.address.to_string()).unwrap_or_default();
        let stripes = plan::stripe_plans(function, node, &address);
        let told = function.wanted.get(&node).and_then(|member| member.sent.as_ref());
        if !even_if_unchanged && told.is_some_and(|sent| sent.stripes == stripes) {
            return;
        }
        let Some(assign) = self.assign_with(now, id, node, stripes.clone()) else { return };
        if let Some(member) = self.functions.get_mut(&id).and_then(|function| function.wanted.get_mut(&node)) {
            // Told again what it knows, it keeps the plan before.
            let before = member.sent.take().filter(|before| before.stripes != stripes);
            member.sources_before =
                before.map_or_else(|| std::mem::take(&mut member.sources_before), |before| before.sources());
            member.sent = Some(Sent { stripes });
        }
        self.emit(Output::Send { session, command: v1::command::Command::Assign(assign) });
    }

    /// Tells a member without a place, which is on its way out, its last plan again; what goes with it may have changed.
    pub(super) fn repeat_assign(&mut self, now: Now, id: FunctionId, node: NodeId) {
        let Some(session) = self.nodes.get(&node).and_then(|node| node.session) else { return };
        let member = self.functions.get(&id).and_then(|function| function.wanted.get(&node));
        let Some(stripes) = member.and_then(|member| member.sent.as_ref()).map(|sent| sent.stripes.clone()) else {
            return;
        };
        if let Some(assign) = self.assign_with(now, id, node, stripes) {
            self.emit(Output::Send { session, command: v1::command::Command::Assign(assign) });
        }
    }

    fn assign_with(
        &mut self,
        now: Now,
        id: FunctionId,
        node: NodeId,
        stripes: Vec<v1::StripePlan>,
    ) -> Option<v1::Assign> {
        let ticket = self.ticket(now, id, node)?;
        let login = self.login_for(id, &node);
        let function = self.functions.get(&id)?;
        Some(v1::Assign {
            function_id: id.to_vec(),
            tenant: function.tenant.clone(),
            function: function.name.clone(),
            image_id: function.image.to_vec(),
            term: self.term,
            epoch: function.epoch,
            ticket: ticket.as_bytes().to_vec(),
            stripes,
            descriptor: if function.reads_origin(&node) { function.descriptor.clone() } else { Vec::new() },
            login,
        })
    }

    /// Tells a node to forget a function that it shall not hold, with an epoch above the one that it `holds`.
    pub(super) fn send_drop(&mut self, id: FunctionId, node: NodeId, holds_epoch: u64, discard: bool) {
        let Some(session) = self.nodes.get(&node).and_then(|node| node.session) else { return };
        let epoch = match self.functions.get_mut(&id) {
            Some(function) => {
                function.epoch = function.epoch.max(holds_epoch.saturating_add(1));
                function.epoch
            }
            None => {
                self.retired_epoch = self.retired_epoch.max(holds_epoch.saturating_add(1));
                self.retired_epoch
            }
        };
        let drop = v1::Drop { function_id: id.to_vec(), term: self.term, epoch, discard };
        self.emit(Output::Send { session, command: v1::command::Command::Drop(drop) });
    }

    pub(super) fn raise_epoch(&mut self, id: FunctionId) {
        if let Some(function) = self.functions.get_mut(&id) {
            function.epoch += 1;
        }
    }

    /// Tells every member of a function its plan again, whatever it was told before; after a new epoch or term.
    pub(super) fn resend_assigns(&mut self, now: Now, id: FunctionId) {
        let members: Vec<NodeId> =
            self.functions.get(&id).map(|function| function.placed().collect()).unwrap_or_default();
        for node in members {
            self.send_assign(now, id, node, true);
        }
    }

    /// Sends new tickets before the old ones expire.
    pub(super) fn renew_tickets(&mut self, now: Now) {
        self.advance_keys(now);
        if now.unix_s < self.tickets_checked_s + TICKET_CHECK_SECONDS {
            return;
        }
        self.tickets_checked_s = now.unix_s;
        self.renew_where(now, |ticket| is_old(ticket, now));
    }

    /// The functions that a node shall hold.
    pub(super) fn functions_of(&self, node: &NodeId) -> BTreeSet<FunctionId> {
        self.nodes.get(node).map(|node| node.functions.clone()).unwrap_or_default()
    }
}
