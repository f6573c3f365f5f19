//! What travels between agents and the controller: streams that open and end, heartbeats, commands, probes.
//!
//! Owns nothing: it moves messages of the cluster between its nodes and its controller.

use std::sync::Arc;

use faasnet_api::{NodeId, v1};
use faasnet_controller::state::{ProbeAnswer, ProbeId, SessionId};
use v1::command::Command;
use v1::event::Event as Said;

use crate::agenda::{MICROSECOND, MILLISECOND, SECOND, Time};
use crate::cluster::{Cluster, Event};
use crate::control::{self, Effect, Message, Order};
use crate::function::Function;
use crate::io::Directory;
use crate::network::Host;
use crate::node::Process;

/// A connection attempt to a host without power.
const PROBE_TIMEOUT: Time = SECOND;

impl Cluster {
    pub(crate) fn attach(&mut self, host: Host, incarnation: u64) {
        let node = &self.nodes[host];
        if node.incarnation != incarnation || node.process == Process::Gone || node.session.is_some() {
            return;
        }
        if !self.control.is_there() || !self.nodes[host].is_running() {
            let pause = 200 * MILLISECOND + self.random.below(600) * MILLISECOND;
            return self.net.agenda.after(pause, Event::Attach { host, incarnation });
        }
        let session = SessionId(self.control.number());
        let node = &mut self.nodes[host];
        node.session = Some(session);
        let held = node.functions.values().map(|function| {
            let (shared, complete) = (&function.shared, function.complete_at.is_some());
            control::held(&shared.spec, shared.version, complete, shared.present_bytes())
        });
        let attached = v1::Attached {
            node_id: node.id.to_vec(),
            incarnation,
            name: control::node_name(host),
            data_address: Directory::address(host).to_string(),
            version: "sim".into(),
            memory_mib: 65_536,
            held: held.collect(),
            public_key: control::node_key(node.id).to_vec(),
            // Signatures are checked by the shell of the controller, which does not run here.
            proof: Vec::new(),
        };
        let way = self.plan.latency_us * MICROSECOND;
        self.net.agenda.after(way, Event::Hear(Message::Attached(host, session, Box::new(attached))));
        self.net.agenda.after(u64::from(control::HEARTBEAT_MS) * MILLISECOND, Event::Heartbeat { host, session });
    }

    pub(crate) fn heartbeat(&mut self, host: Host, session: SessionId) {
        let node = &self.nodes[host];
        if node.session != Some(session) {
            return;
        }
        let moving = node.functions.values().any(|function| function.complete_at.is_none());
        if node.is_running() && self.net.has_power(host) {
            let progress = node.functions.values().map(|function| {
                let state = match (function.is_open(), function.complete_at) {
                    (_, Some(_)) => v1::FunctionState::Complete,
                    (true, None) => v1::FunctionState::Fetching,
                    (false, None) => v1::FunctionState::Waiting,
                };
                let shared = &function.shared;
                let progress = control::progress(&shared.spec, shared.version, state, shared.present_bytes());
                self.edges_of(function, progress)
            });
            let beat = Said::Heartbeat(v1::Heartbeat { functions: progress.collect() });
            let way = self.plan.latency_us * MICROSECOND;
            self.net.agenda.after(way, Event::Hear(Message::Heard(session, beat)));
        }
        let pause = if moving { u64::from(control::HEARTBEAT_MS) } else { 5 * u64::from(control::HEARTBEAT_MS) };
        self.net.agenda.after(pause * MILLISECOND, Event::Heartbeat { host, session });
    }

    /// What a node reports of the edges of a function.
    fn edges_of(&self, function: &Function, mut progress: v1::FunctionProgress) -> v1::FunctionProgress {
        let id = |host: Host| self.directory.id(host).to_vec();
        for ((stripe, from), bytes) in &function.shared.counters.upstreams {
            let node_id = from.map(id).unwrap_or_default();
            progress.bytes_received += bytes;
            let (stripe, bytes) = (*stripe as u32, *bytes);
            progress.upstreams.push(v1::UpstreamUse { stripe, node_id, bytes, ..Default::default() });
        }
        for (stripe, edges) in (0u32..).zip(&function.stripes) {
            for (conn, blocks_ready) in edges.downstreams() {
                let node_id = id(self.net.conn(conn).child.host);
                progress.downstreams.push(v1::DownstreamUse { stripe, node_id, blocks_ready });
            }
        }
        progress
    }

    pub(crate) fn carry_out(&mut self, effects: Vec<Effect>) {
        let way = self.plan.latency_us * MICROSECOND;
        for effect in effects {
            match effect {
                Effect::Send(host, session, command) => {
                    self.note_sent(host, &command);
                    self.net.agenda.after(way, Event::Command { host, session, command });
                }
                Effect::Close(host, session) => {
                    if self.nodes[host].session == Some(session) {
                        self.lose_session(host);
                    }
                }
                Effect::Probe(node, probe) => self.net.agenda.after(way, Event::Probe(node, probe)),
            }
        }
    }

    /// The agent's stream ended; it opens another.
    pub(crate) fn lose_session(&mut self, host: Host) {
        let node = &mut self.nodes[host];
        node.session = None;
        let incarnation = node.incarnation;
        let pause = 100 * MILLISECOND + self.random.below(400) * MILLISECOND;
        self.net.agenda.after(pause, Event::Attach { host, incarnation });
    }

    fn note_sent(&mut self, host: Host, command: &Command) {
        let by_id = &self.by_id;
        let order = control::order_of(command, |id| by_id.get(&id).map(|spec| spec.index));
        let sent = match order {
            Ok(Some(Order::Assign(function, assignment))) => (function, assignment.version),
            Ok(Some(Order::Drop(function, version))) => (function, version),
            Ok(Some(Order::Leave { .. }) | None) => return,
            Err(error) => return self.tally.violate(format!("the controller sent nonsense: {error}")),
        };
        let newest = self.sent.entry((host, sent.0)).or_default();
        *newest = (*newest).max(sent.1);
    }

    /// A fault: the same command arrives once more, when it may be old.
    pub(crate) fn repeat(&mut self, host: Host, command: &Command) {
        if self.random.chance(self.plan.faults.repeated_commands) {
            let after = self.random.between(1, 2_000) * MILLISECOND;
            self.net.agenda.after(after, Event::Again { host, command: Box::new(command.clone()) });
        }
    }

    pub(crate) fn obey(&mut self, host: Host, command: Command) {
        match self.nodes[host].process {
            Process::Gone => {}
            Process::Standing => self.nodes[host].unread.push(command),
            Process::Running => {
                let by_id = &self.by_id;
                let order = control::order_of(&command, |id| by_id.get(&id).map(|spec| spec.index));
                if let Ok(Some(order)) = order {
                    self.order(host, order);
                }
            }
        }
    }

    pub(crate) fn order(&mut self, host: Host, order: Order) {
        if !self.nodes[host].is_running() {
            return;
        }
        let (function, version, held) = match &order {
            Order::Assign(index, assignment) => (*index, assignment.version, self.nodes[host].held_version(*index)),
            Order::Drop(index, version) => (*index, *version, self.nodes[host].held_version(*index)),
            Order::Leave { function, .. } => {
                let held = self.nodes[host].held_version(*function);
                (*function, held, held)
            }
        };
        let spec = Arc::clone(&self.specs[function]);
        self.on_node(host, |parts, io| match order {
            Order::Assign(_, assignment) => parts.assign(&spec, assignment, io),
            Order::Drop(index, version) => parts.drop_function(index, version, io),
            Order::Leave { function, stripe, lease } => {
                if let Some(function) = parts.functions.get_mut(&function) {
                    function.origin_leave(stripe, lease, io);
                }
            }
        });
        let now_held = self.nodes[host].held_version(function);
        if now_held < held {
            self.tally.violate(format!("node {host} went back from {held:?} to {version:?}"));
        }
        self.note_completion(host, function);
    }

    pub(crate) fn probe(&mut self, node: NodeId, probe: ProbeId) {
        let Some(host) = self.directory.host(node) else { return };
        let way = self.plan.latency_us * MICROSECOND;
        let (answer, after) = match (self.net.has_power(host), self.nodes[host].process) {
            (false, _) => (ProbeAnswer::Silent, PROBE_TIMEOUT),
            (true, Process::Gone) => (ProbeAnswer::Refused, way),
            (true, _) => (ProbeAnswer::Reachable, way),
        };
        self.net.agenda.after(after, Event::Hear(Message::Probed(node, probe, answer)));
    }
}
