//! Which nodes are there: streams opened and ended, silence, probes.
//!
//! A closed stream or silence makes a node suspect; only the controller's own probe, or twice the silence (a stopped process still
//! accepts connections), makes it dead. A node that is heard again is live again and gets its places back.

use std::net::SocketAddr;

use faasnet_api::{FunctionId, NodeId, PublicKey, v1};

use super::io::{Now, Output, ProbeAnswer, ProbeId, Refusal, SessionId};
use super::names::check_node_name;
use super::node::{Liveness, Node};
use super::records::Key;
use super::{State, words};

/// The pause between probes of a node whose stream ended: a dying process closes its sockets one after another, so the first probe may
/// still find the data port open.
const DETACHED_PROBE_MS: u64 = 100;
/// A pause between two ticks that says that this process stood still, not the nodes.
const STALL_MS: u64 = 1_000;
/// When a node was seen is stored again after so long.
const REMEMBER_SECONDS: u64 = 10 * 60;

/// An agent counts its starts: so many more than the last time are not a count. A number near the end of the range would lock the node out.
const LEAP: u64 = 1 << 32;

/// What an agent says about itself, checked.
struct Introduction {
    id: NodeId,
    key: PublicKey,
    address: SocketAddr,
    name: String,
}

impl State {
    pub(super) fn attached(&mut self, now: Now, session: SessionId, attached: v1::Attached) {
        let introduction = match introduce(&attached) {
            Ok(introduction) => introduction,
            Err(refusal) => return self.emit(Output::Close { session, refusal }),
        };
        let Introduction { id, key, address, name } = introduction;
        let known = self.nodes.get(&id);
        let refused = known.and_then(|node| recognise(node, key, attached.incarnation).err());
        let refused =
            refused.or_else(|| follows(id, known.map_or(0, |node| node.incarnation), attached.incarnation).err());
        if let Some(refusal) = refused {
            return self.emit(Output::Close { session, refusal });
        }
        let mut held = attached.held.iter();
        if let Err(refusal) = held.try_for_each(|held| self.believe(&held.function_id, held.term, held.epoch)) {
            return self.emit(Output::Close { session, refusal });
        }
        let restarted = known.is_none_or(|node| node.incarnation != attached.incarnation);
        let moved = known.is_some_and(|node| node.address != address);
        if let Some(old) = known.and_then(|node| node.session) {
            self.sessions.remove(&old);
            let refusal = Refusal::precondition(format!("node {id} has attached again"));
            self.emit(Output::Close { session: old, refusal });
        }
        self.take_address(now, address, id);
        self.raise_term(now, &attached);
        let name = self.free_name(id, name);
        if let Some(old) = self.nodes.get(&id).map(|node| node.address).filter(|old| *old != address)
            && self.addresses.get(&old) == Some(&id)
        {
            self.addresses.remove(&old);
        }
        let node = self.nodes.entry(id).or_insert_with(|| Node::new(id, address, now.ms));
        node.name = name;
        node.address = address;
        node.key = Some(key);
        node.incarnation = attached.incarnation;
        node.memory_mib = attached.memory_mib;
        node.version = words::version(&attached.version);
        node.session = Some(session);
        node.liveness = Liveness::Live;
        node.seen(now);
        node.stored_unix_s = now.unix_s;
        node.transferring = false;
        node.probe = None;
        node.must_answer = false;
        self.sessions.insert(session, id);
        self.capacity_changed = true;
        self.emit(Output::Store(Key::Node(id)));
        self.emit(Output::Store(Key::NodeKey(id)));
        let accepted = v1::Accepted {
            term: self.term,
            heartbeat_ms: self.settings.heartbeat_ms,
            idle_heartbeat_ms: self.settings.idle_heartbeat_ms,
            ticket_keys: Some(self.ticket_keys()),
        };
        self.emit(Output::Send { session, command: v1::command::Command::Accepted(accepted) });
        self.note(format!("node {} attached from {address}, incarnation {}", self.name_of(&id), attached.incarnation));
        if restarted {
            self.forget_pace(now, id);
        }
        self.take_held(now, id, &attached.held, restarted);
        self.rejoin(now, id, moved);
    }

    /// Its stream ended: suspect at once, and probed.
    pub(super) fn detached(&mut self, now: Now, session: SessionId) {
        let Some(id) = self.sessions.remove(&session) else { return };
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.session = None;
        for function in self.functions_of(&id) {
            if let Some(member) = self.functions.get_mut(&function).and_then(|function| function.wanted.get_mut(&id)) {
                member.sent = None;
            }
        }
        self.suspect(now, id);
    }

    pub(super) fn probed(&mut self, now: Now, id: NodeId, probe: ProbeId, answer: ProbeAnswer) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.probe == Some(probe)) else { return };
        node.probe = None;
        match (answer, node.liveness) {
            (ProbeAnswer::Reachable, Liveness::Dead { .. }) if node.session.is_some() => self.revive(now, id),
            (ProbeAnswer::Reachable, _) | (_, Liveness::Dead { .. }) => {}
            (ProbeAnswer::Silent, Liveness::Live) => self.suspect(now, id),
            (ProbeAnswer::Refused | ProbeAnswer::Silent, _) => {
                node.must_answer = node.session.is_some();
                self.bury(now, id);
            }
        }
    }

    pub(super) fn tick(&mut self, now: Now) {
        let pause = now.ms.saturating_sub(self.last_tick_ms);
        self.last_tick_ms = now.ms;
        if pause > STALL_MS {
            self.nodes.values_mut().for_each(|node| node.last_seen_ms = now.ms.min(node.last_seen_ms + pause));
        }
        let due: Vec<NodeId> =
            self.nodes.values().filter(|node| self.needs_watching(now, node)).map(|node| node.id).collect();
        for id in due {
            self.watch_node(now, id);
        }
        self.settle_restart(now);
        self.judge_paces(now);
        self.reclaim_idle(now);
        self.advance_leaving(now);
        self.advance_keys(now);
        self.renew_tickets(now);
        self.report_watches(now);
    }

    /// What an event of its stream says about a node, whatever the event is.
    pub(super) fn seen(&mut self, now: Now, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.seen(now);
        if now.unix_s >= node.stored_unix_s + REMEMBER_SECONDS {
            // So that after a restart it is known about when it was seen.
            node.stored_unix_s = now.unix_s;
            self.out.push(Output::Store(Key::Node(id)));
        }
        match node.liveness {
            Liveness::Live => {}
            Liveness::Dead { .. } if node.must_answer => self.probe_after_pause(now, id),
            Liveness::Dead { .. } => self.revive(now, id),
            Liveness::Suspect { .. } | Liveness::Registered => {
                node.liveness = Liveness::Live;
                self.capacity_changed = true;
            }
        }
    }

    pub(super) fn probe(&mut self, now: Now, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.probe.is_none()) else { return };
        self.probes += 1;
        let (probe, address) = (ProbeId(self.probes), node.address);
        node.probe = Some(probe);
        node.probed_ms = now.ms;
        self.emit(Output::Probe { node: id, probe, address });
    }

    /// Whether time alone may change what is thought of a node: seldom, and there are many nodes.
    fn needs_watching(&self, now: Now, node: &Node) -> bool {
        match node.liveness {
            Liveness::Live => now.ms.saturating_sub(node.last_seen_ms) >= node.silence_limit_ms(&self.settings),
            Liveness::Registered | Liveness::Suspect { .. } | Liveness::Dead { .. } => true,
        }
    }

    fn watch_node(&mut self, now: Now, id: NodeId) {
        let Some(node) = self.nodes.get(&id) else { return };
        let silence = now.ms.saturating_sub(node.last_seen_ms);
        let limit = node.silence_limit_ms(&self.settings);
        let attached = node.session.is_some();
        match node.liveness {
            Liveness::Registered if now.ms >= self.started_ms + self.settings.restart_grace_ms => self.suspect(now, id),
            Liveness::Live if silence >= limit => self.suspect(now, id),
            Liveness::Suspect { .. } if attached && silence >= 2 * limit => self.bury(now, id),
            Liveness::Suspect { since_ms } if !attached && now.ms >= since_ms + self.settings.reattach_ms => {
                self.bury(now, id);
            }
            Liveness::Suspect { .. } => self.probe_after_pause(now, id),
            Liveness::Dead { .. } if node.unseen_ms(now) >= self.settings.forget_dead_ms => self.forget(id),
            Liveness::Registered | Liveness::Live | Liveness::Dead { .. } => {}
        }
    }

    fn suspect(&mut self, now: Now, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.is_dead()) {
            node.liveness = Liveness::Suspect { since_ms: now.ms };
            self.note(format!("node {} is suspect", self.name_of(&id)));
            self.probe(now, id);
        }
    }

    fn probe_after_pause(&mut self, now: Now, id: NodeId) {
        let Some(node) = self.nodes.get(&id) else { return };
        let pause = if node.session.is_some() { self.settings.heartbeat_ms.into() } else { DETACHED_PROBE_MS };
        if now.ms >= node.probed_ms + pause {
            self.probe(now, id);
        }
    }

    /// Dead: out of all its trees. The intent stays.
    fn bury(&mut self, now: Now, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.liveness = Liveness::Dead { since_ms: now.ms };
        self.capacity_changed = true;
        self.emit(Output::Store(Key::Node(id)));
        self.note(format!("node {} is dead", self.name_of(&id)));
        for function in self.functions_of(&id) {
            if let Some(member) = self.functions.get_mut(&function).and_then(|function| function.wanted.get_mut(&id)) {
                member.sent = None;
            }
            self.align_trees(now, function, &[id]);
            self.touch_watches(function, id);
        }
    }

    /// A dead node is back on the stream that it had.
    fn revive(&mut self, now: Now, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.liveness = Liveness::Live;
        node.must_answer = false;
        self.capacity_changed = true;
        self.emit(Output::Store(Key::Node(id)));
        self.note(format!("node {} is back", self.name_of(&id)));
        self.rejoin(now, id, false);
    }

    /// A live node takes its places and is told all its plans; its neighbours are told where it is when it `moved`.
    fn rejoin(&mut self, now: Now, id: NodeId, moved: bool) {
        for function in self.functions_of(&id) {
            if let Some(member) = self.functions.get_mut(&function).and_then(|function| function.wanted.get_mut(&id)) {
                member.sent = None;
            }
            if !self.align_trees(now, function, &[id]) && moved {
                self.raise_epoch(function);
            }
            self.send_assigns(now, function, [id]);
            if moved {
                let members = self.functions.get(&function).map(|function| function.placed().collect::<Vec<_>>());
                self.send_assigns(now, function, members.unwrap_or_default());
            }
            self.touch_watches(function, id);
        }
    }

    /// Whoever had this data address before and has no stream is not there any more: a probe would only reach the newcomer.
    fn take_address(&mut self, now: Now, address: SocketAddr, id: NodeId) {
        let Some(old) = self.addresses.insert(address, id).filter(|old| *old != id) else { return };
        if self.nodes.get(&old).is_some_and(|node| node.session.is_none() && node.address == address && !node.is_dead())
        {
            self.bury(now, old);
        }
    }

    /// The name that a node is known by: its own, unless another node that is there has that one already.
    fn free_name(&mut self, id: NodeId, name: String) -> String {
        let taken = |node: &&Node| node.id != id && node.name == name && !node.is_dead();
        let holder = self.names.get(&name).and_then(|holder| self.nodes.get(holder)).filter(taken);
        let Some(other) = holder.map(|node| node.id.short()) else {
            if let Some(old) = self.nodes.get(&id).map(|node| node.name.clone()).filter(|old| *old != name) {
                self.free_up_name(&old, id);
            }
            self.names.insert(name.clone(), id);
            return name;
        };
        let own = format!("{name}-{}", id.short());
        if self.nodes.get(&id).is_some_and(|node| node.name == own) {
            return own;
        }
        self.note(format!(
            "two nodes are named {name:?}: {other} keeps the name, {id} is called {own:?}; give each agent a name of its own (name)"
        ));
        own
    }

    fn free_up_name(&mut self, name: &str, id: NodeId) {
        if self.names.get(name) == Some(&id) {
            self.names.remove(name);
        }
    }

    /// An agent holds a plan of a later term than ours: the state was lost or restored from an old copy. Ours becomes the latest.
    fn raise_term(&mut self, now: Now, attached: &v1::Attached) {
        let reported = attached.held.iter().map(|held| held.term).max().unwrap_or(0);
        if reported <= self.term {
            return;
        }
        self.term = reported.saturating_add(1);
        self.emit(Output::Store(Key::Term));
        let functions: Vec<FunctionId> = self.functions.keys().copied().collect();
        for function in functions {
            self.resend_assigns(now, function);
        }
    }

    fn forget(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get(&id).filter(|node| node.functions.is_empty() && node.session.is_none()) {
            if self.addresses.get(&node.address) == Some(&id) {
                self.addresses.remove(&node.address);
            }
            let name = node.name.clone();
            self.free_up_name(&name, id);
            self.nodes.remove(&id);
            self.forget_blame(id);
            self.emit(Output::Store(Key::Node(id)));
            self.emit(Output::Store(Key::NodeKey(id)));
        }
    }
}

/// Whether it is the node that we know, at this start of its agent or a later one. That it holds the key was proven before.
fn recognise(node: &Node, key: PublicKey, incarnation: u64) -> Result<(), Refusal> {
    let id = node.id;
    if node.incarnation > incarnation {
        return Err(Refusal::precondition(format!(
            "node {id} has attached as incarnation {} already and this agent is incarnation {incarnation}; \
             if its store was copied from another host, empty it so that the agent makes an id of its own",
            node.incarnation
        )));
    }
    if node.key.is_some_and(|known| known != key) {
        return Err(Refusal::precondition(format!(
            "node {id} is registered with another key; the agent's store has lost its `node-key` file or took over the id of \
             another: empty the store, so that the agent makes an id and a key of its own"
        )));
    }
    Ok(())
}

/// Whether an agent can have been started so often since it was heard last.
fn follows(id: NodeId, before: u64, incarnation: u64) -> Result<(), Refusal> {
    if incarnation.saturating_sub(before) <= LEAP {
        return Ok(());
    }
    Err(Refusal::invalid(format!(
        "node {id} was at its start {before} when it attached last and now says {incarnation}: no agent starts so often; its store's \
         `node` file is damaged: empty the store"
    )))
}

fn introduce(attached: &v1::Attached) -> Result<Introduction, Refusal> {
    let id = NodeId::try_from(&attached.node_id[..]).map_err(|error| Refusal::invalid(error.to_string()))?;
    let address: SocketAddr = attached.data_address.parse().map_err(|_| {
        Refusal::invalid(format!(
            "data address {:?} is not IP:port; set the agent's advertise address",
            words::plain(&attached.data_address, 64)
        ))
    })?;
    if address.ip().is_unspecified() || address.port() == 0 {
        return Err(Refusal::invalid(format!(
            "nobody can connect to the data address {address}; set the agent's advertise address to one that other nodes reach"
        )));
    }
    let key = PublicKey::try_from(&attached.public_key[..]).map_err(|error| {
        Refusal::invalid(format!("{error}; tickets are bound to an agent's key: upgrade the agent"))
    })?;
    let name = if attached.name.is_empty() { id.short() } else { attached.name.clone() };
    check_node_name(&name)?;
    Ok(Introduction { id, key, address, name })
}
