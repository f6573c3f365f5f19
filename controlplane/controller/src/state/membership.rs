//! Who is in a function's trees, and telling the agents: the only place where trees change and assignments are made.

use std::collections::{BTreeSet, HashSet};

use faasnet_api::ticket::LIFETIME_SECONDS;
use faasnet_api::{FunctionId, NodeId, Ticket, v1};
use faasnet_tree::Edge;

use super::function::{Function, Member, Sent};
use super::io::{Now, Output, Refusal};
use super::records::Key;
use super::{State, plan};

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
            if let Some(node) = self.nodes.get_mut(node) {
                node.functions.insert(id);
            }
        }
        self.emit(Output::Store(Key::Function(id)));
        self.align_trees(now, id, nodes);
        for node in nodes {
            self.touch_watches(id, *node);
        }
    }

    /// Takes nodes out of the intent and tells them. Answers how many were in it.
    pub(super) fn unwant(&mut self, now: Now, id: FunctionId, nodes: &[NodeId]) -> u32 {
        let Some(function) = self.functions.get_mut(&id) else { return 0 };
        let gone: Vec<NodeId> = nodes.iter().copied().filter(|node| function.wanted.remove(node).is_some()).collect();
        if gone.is_empty() {
            return 0;
        }
        self.emit(Output::Store(Key::Function(id)));
        if !self.align_trees(now, id, &gone) {
            // A new epoch even when no tree changes: the drop must be newer than what the agent holds.
            self.raise_epoch(id);
        }
        for node in &gone {
            if let Some(node) = self.nodes.get_mut(node) {
                node.functions.remove(&id);
            }
            self.send_drop(id, *node, 0);
            self.touch_watches(id, *node);
        }
        gone.len() as u32
    }

    /// Makes the trees agree with intent and liveness as far as these nodes are concerned, and tells everybody whose plan changed.
    /// Answers whether a tree changed.
    pub(super) fn align_trees(&mut self, now: Now, id: FunctionId, nodes: &[NodeId]) -> bool {
        let nodes_known = &self.nodes;
        let Some(function) = self.functions.get_mut(&id) else { return false };
        let leaders = function.leaders();
        let version = (self.term, function.epoch + 1);
        let mut edges: HashSet<Edge<NodeId>> = HashSet::new();
        for node in nodes {
            let dead = nodes_known.get(node).is_none_or(|node| node.is_dead());
            let planned = !dead && function.wanted.get(node).is_some_and(|member| !member.failed);
            let change = match (planned, function.trees.contains(node)) {
                (true, false) => function.trees.insert(*node),
                (false, true) => function.trees.remove(*node),
                _ => continue,
            };
            if let Ok(change) = change {
                edges.extend(change.changed.into_iter().chain(change.freed));
            }
            if let Some(member) = function.wanted.get_mut(node).filter(|_| planned) {
                member.joined = version;
            }
        }
        if edges.is_empty() {
            return false;
        }
        function.epoch += 1;
        let leaders_after = function.leaders();
        let heirs_changed = leaders.iter().zip(&leaders_after).any(|(before, after)| before.1 != after.1);
        let mut concerned = match heirs_changed {
            // The heir is a fallback of nearly everybody.
            true => function.trees.members().iter().copied().collect(),
            false => plan::concerned(function, &edges),
        };
        concerned.extend(self.choose_donors(id, &leaders));
        self.emit(Output::Store(Key::Order(id)));
        self.send_assigns(now, id, concerned);
        true
    }

    /// A root that came to its place without the image gets it from a member that has all of it, if there is one, instead of having the
    /// origin read a second time. Answers whose plan that changes.
    fn choose_donors(&mut self, id: FunctionId, leaders: &[(Option<NodeId>, Option<NodeId>)]) -> Vec<NodeId> {
        let nodes = &self.nodes;
        let Some(function) = self.functions.get_mut(&id) else { return Vec::new() };
        let mut concerned = Vec::new();
        for stripe in 0..function.trees.stripes() {
            let index = usize::from(stripe);
            let (before, root) = (leaders.get(index).and_then(|leaders| leaders.0), function.trees.root(stripe));
            let old = function.donors.get(index).copied().flatten();
            let serves = |donor: &NodeId| {
                function.trees.contains(donor) && nodes.get(donor).is_some_and(|node| node.session.is_some())
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
        let Some(function) = self.functions.get_mut(&id).filter(|function| function.trees.contains(&node)) else {
            return;
        };
        let address = |id: NodeId| nodes.get(&id).map(|node| node.address.to_string()).unwrap_or_default();
        let stripes = plan::stripe_plans(function, node, &address);
        let told = function.wanted.get(&node).and_then(|member| member.sent.as_ref());
        if !even_if_unchanged && told.is_some_and(|sent| sent.stripes == stripes) {
            return;
        }
        let ticket = Ticket::issue(&self.settings.secret, node, id, function.image, now.unix_s);
        let assign = v1::Assign {
            function_id: id.to_vec(),
            tenant: function.tenant.clone(),
            function: function.name.clone(),
            image_id: function.image.to_vec(),
            term: self.term,
            epoch: function.epoch,
            ticket: ticket.as_bytes().to_vec(),
            stripes: stripes.clone(),
            descriptor: if function.leads(&node) { function.descriptor.clone() } else { Vec::new() },
        };
        if let Some(member) = function.wanted.get_mut(&node) {
            member.sent = Some(Sent { stripes, unix_s: now.unix_s });
        }
        self.emit(Output::Send { session, command: v1::command::Command::Assign(assign) });
    }

    /// Tells a node to forget a function that it shall not hold, with an epoch above the one that it `holds`.
    pub(super) fn send_drop(&mut self, id: FunctionId, node: NodeId, holds_epoch: u64) {
        let Some(session) = self.nodes.get(&node).and_then(|node| node.session) else { return };
        let epoch = match self.functions.get_mut(&id) {
            Some(function) => {
                function.epoch = function.epoch.max(holds_epoch.saturating_add(1));
                function.epoch
            }
            None => {
                let epoch = self.retired.entry(id).or_default();
                *epoch = (*epoch).max(holds_epoch.saturating_add(1));
                *epoch
            }
        };
        let drop = v1::Drop { function_id: id.to_vec(), term: self.term, epoch };
        self.emit(Output::Send { session, command: v1::command::Command::Drop(drop) });
    }

    pub(super) fn raise_epoch(&mut self, id: FunctionId) {
        if let Some(function) = self.functions.get_mut(&id) {
            function.epoch += 1;
        }
    }

    /// Tells every member of a function its plan again, whatever it was told before; after a new epoch or term.
    pub(super) fn resend_assigns(&mut self, now: Now, id: FunctionId) {
        let members = self.functions.get(&id).map(|function| function.trees.members().to_vec()).unwrap_or_default();
        for node in members {
            self.send_assign(now, id, node, true);
        }
    }

    /// Brings a function that is provisioned by number to `count` members that are not dead. Those that are added stand in for dead ones,
    /// which are forgotten. `strict`: refuse, changing nothing, when there are not enough nodes; else take what there is.
    pub(super) fn place(&mut self, now: Now, id: FunctionId, count: u32, strict: bool) -> Result<Vec<NodeId>, Refusal> {
        let Some(function) = self.functions.get(&id) else { return Ok(Vec::new()) };
        let (serving, lost) = self.split_members(function);
        let short = (count as usize).saturating_sub(serving);
        if short == 0 {
            return Ok(Vec::new());
        }
        let limit = self.settings.functions_per_node as usize;
        let mut spare: Vec<(usize, NodeId)> = self
            .nodes
            .values()
            .filter(|node| node.is_live() && node.functions.len() < limit && !function.wanted.contains_key(&node.id))
            .map(|node| (node.functions.len(), node.id))
            .collect();
        if strict && spare.len() < short {
            let live = self.nodes.values().filter(|node| node.is_live()).count();
            return Err(Refusal::precondition(format!(
                "{count} nodes are asked for; {serving} have the function already and {} more of {live} live nodes have room for it \
                 (functions_per_node = {limit}). Start more agents, release other functions or ask for at most {}",
                spare.len(),
                serving + spare.len()
            )));
        }
        spare.sort_unstable();
        let added: Vec<NodeId> = spare.into_iter().take(short).map(|(_, node)| node).collect();
        let replaced: Vec<NodeId> = lost.into_iter().take(added.len()).collect();
        if !added.is_empty() {
            self.unwant(now, id, &replaced);
            self.want(now, id, &added);
        }
        Ok(added)
    }

    /// How many members are there, and which are dead. One where the image failed counts as there: an image that fails everywhere shall
    /// not be tried on every node of the cluster.
    fn split_members(&self, function: &Function) -> (usize, Vec<NodeId>) {
        let dead = |node: &NodeId| self.nodes.get(node).is_none_or(|node| node.is_dead());
        let lost: Vec<NodeId> = function.wanted.keys().copied().filter(dead).collect();
        (function.wanted.len() - lost.len(), lost)
    }

    /// Closes the gap between the number of members asked for and the number there is.
    pub(super) fn reconcile(&mut self, now: Now) {
        let counted: Vec<(FunctionId, u32)> =
            self.functions.values().filter_map(|function| Some((function.id, function.count?))).collect();
        for (id, count) in counted {
            match self.place(now, id, count, false) {
                Ok(added) => self.widen_watches(id, &added),
                // Ignored: only strict placement refuses.
                Err(_) => continue,
            }
        }
    }

    /// Sends new tickets before the old ones expire.
    pub(super) fn renew_tickets(&mut self, now: Now) {
        if now.unix_s < self.tickets_checked_s + TICKET_CHECK_SECONDS {
            return;
        }
        self.tickets_checked_s = now.unix_s;
        let old = |sent: &Sent| now.unix_s > sent.unix_s.saturating_add(LIFETIME_SECONDS / 2);
        let due: Vec<(FunctionId, NodeId)> = self
            .functions
            .values()
            .flat_map(|function| function.wanted.iter().map(|(node, member)| (function.id, *node, member)))
            .filter(|(_, _, member)| member.sent.as_ref().is_some_and(old))
            .map(|(function, node, _)| (function, node))
            .collect();
        for (function, node) in due {
            self.send_assign(now, function, node, true);
        }
    }

    /// The functions that a node shall hold.
    pub(super) fn functions_of(&self, node: &NodeId) -> BTreeSet<FunctionId> {
        self.nodes.get(node).map(|node| node.functions.clone()).unwrap_or_default()
    }
}
