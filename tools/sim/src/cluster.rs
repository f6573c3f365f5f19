//! The whole cluster: hosts, network, origin and controller, driven by one agenda of events.
//!
//! LIFECYCLE of a run: agents attach → after a second the first wave is provisioned → faults happen at their times → the run ends when
//! every node that lives holds everything it shall hold and no fault is outstanding, at the first violation, or at the deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Result;
use faasnet_api::{BlockIndex, FunctionId, NodeId, v1};
use faasnet_controller::state::{ProbeId, SessionId};
use faasnet_relay::plan::Patience;
use v1::command::Command;

use crate::agenda::{MICROSECOND, MILLISECOND, SECOND, Time};
use crate::checks::Rings;
use crate::control::{self, Control, Message, Order};
use crate::faults::Fault;
use crate::feed::Feed;
use crate::function::{File, Spec};
use crate::io::{Directory, Io, Report, Tally};
use crate::network::{ConnId, Host, NetEvent, Network};
use crate::node::{Node, Parts, Process};
use crate::plan::{Bug, SimPlan, Topology};
use crate::random::Random;

/// Everything that can happen.
#[derive(Debug)]
pub(crate) enum Event {
    Net(NetEvent),
    Tick {
        host: Host,
        incarnation: u64,
    },
    Written {
        host: Host,
        incarnation: u64,
        function: usize,
        block: BlockIndex,
    },
    Open {
        host: Host,
        incarnation: u64,
        function: usize,
    },
    /// An agent opens its stream to the controller.
    Attach {
        host: Host,
        incarnation: u64,
    },
    Heartbeat {
        host: Host,
        session: SessionId,
    },
    Command {
        host: Host,
        session: SessionId,
        command: Box<Command>,
    },
    /// A command that arrives once more.
    Again {
        host: Host,
        command: Box<Command>,
    },
    Order {
        host: Host,
        order: Order,
    },
    Hear(Message),
    Probe(NodeId, ProbeId),
    ControlTick,
    Provision(usize),
    Fault(Fault),
}

impl From<NetEvent> for Event {
    fn from(event: NetEvent) -> Self {
        Self::Net(event)
    }
}

/// When a (host, function) was provisioned, and how long it took.
pub(crate) type Key = (Host, usize);

/// See the module's documentation.
pub(crate) struct Cluster {
    pub(crate) plan: SimPlan,
    pub(crate) net: Network,
    pub(crate) nodes: Vec<Node>,
    pub(crate) directory: Directory,
    pub(crate) tally: Tally,
    pub(crate) feed: Feed,
    pub(crate) control: Control,
    pub(crate) specs: Vec<Arc<Spec>>,
    pub(crate) by_id: BTreeMap<FunctionId, Arc<Spec>>,
    /// Blocks are damaged by this stream.
    damage: Random,
    pub(crate) random: Random,
    pub(crate) wanted: BTreeMap<Key, Time>,
    pub(crate) done: BTreeMap<Key, Time>,
    pub(crate) outstanding: BTreeSet<Key>,
    pub(crate) provisions_left: usize,
    /// Nothing that was planned to go wrong happens after this.
    pub(crate) settled_at: Time,
    pub(crate) rings: Rings,
    /// The newest version that was sent to a host.
    pub(crate) sent: BTreeMap<Key, (u64, u64)>,
}

/// The first provision.
pub(crate) const FIRST_PROVISION: Time = SECOND;
const TICK: Time = 20 * MILLISECOND;
const CONTROL_TICK: Time = 100 * MILLISECOND;

impl Cluster {
    pub(crate) fn new(plan: &SimPlan) -> Result<Self> {
        let mut control = Control::start(0, plan.judges_stragglers)?;
        let specs: Vec<Arc<Spec>> = specs(plan, &mut control)?.into_iter().map(Arc::new).collect();
        let mut cluster = Self {
            net: Network::new(),
            nodes: Vec::new(),
            directory: Directory::default(),
            tally: Tally::default(),
            feed: Feed::new(plan.origin_connections),
            control,
            by_id: specs.iter().map(|spec| (spec.id, Arc::clone(spec))).collect(),
            specs,
            damage: Random::new(plan.seed, "damage"),
            random: Random::new(plan.seed, "cluster"),
            wanted: BTreeMap::new(),
            done: BTreeMap::new(),
            outstanding: BTreeSet::new(),
            provisions_left: 0,
            settled_at: 0,
            rings: Rings::new(),
            sent: BTreeMap::new(),
            plan: plan.clone(),
        };
        cluster.add_hosts();
        cluster.schedule_provisions();
        cluster.schedule_faults();
        cluster.net.agenda.at(CONTROL_TICK, Event::ControlTick);
        Ok(cluster)
    }

    /// Runs to the end; the virtual time of it.
    pub(crate) fn run(&mut self) -> Time {
        let deadline = (self.plan.deadline_seconds * SECOND as f64) as Time;
        while let Some(event) = self.net.agenda.next() {
            if self.net.now() > deadline {
                self.report_unfinished();
                break;
            }
            self.happen(event);
            self.refill();
            if !self.tally.violations.is_empty() || self.is_over() {
                break;
            }
        }
        self.check_end();
        self.net.now()
    }

    fn add_hosts(&mut self) {
        let plan = self.plan.clone();
        let (rate, latency) = (plan.rate_bits / 8, plan.latency_us * MICROSECOND / 2);
        let mut random = Random::new(plan.seed, "hosts");
        for host in 0..plan.nodes {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&random.next().to_be_bytes());
            id[8..].copy_from_slice(&(host as u64).to_be_bytes());
            let slow = random.chance(plan.faults.slow);
            let rate = if slow { rate / 10 } else { rate };
            let disk = if random.chance(plan.faults.slow_disks) { rate / 2 } else { plan.disk_bytes };
            self.net.add_host(rate, rate, latency);
            self.directory.add(NodeId(id));
            self.nodes.push(Node::new(NodeId(id), disk));
            self.nodes[host].slow = slow;
            self.start_process(host, random.below(100) * MILLISECOND);
        }
        let origin_latency = latency + 5 * MILLISECOND;
        self.net.add_host(plan.origin_bits / 8, plan.origin_bits / 8, origin_latency);
    }

    pub(crate) fn start_process(&mut self, host: Host, after: Time) {
        let node = &mut self.nodes[host];
        node.process = Process::Running;
        node.incarnation += 1;
        let incarnation = node.incarnation;
        if matches!(self.plan.topology, Topology::Trees(_)) {
            self.net.agenda.after(after, Event::Attach { host, incarnation });
        }
        self.net.agenda.after(after % TICK, Event::Tick { host, incarnation });
    }

    fn schedule_provisions(&mut self) {
        let waves = self.plan.waves.map_or(1, |(waves, _)| waves.max(1));
        self.provisions_left = waves;
        for wave in 0..waves {
            let pause = self.plan.waves.map_or(0.0, |(_, seconds)| seconds * wave as f64);
            let at = FIRST_PROVISION + (pause * SECOND as f64) as Time;
            self.settled_at = self.settled_at.max(at);
            self.net.agenda.at(at, Event::Provision(wave));
        }
    }

    /// Whether everybody who lives has everything, and nothing more is to happen.
    fn is_over(&self) -> bool {
        self.provisions_left == 0 && self.outstanding.is_empty() && self.net.now() >= self.settled_at
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Net(event) => self.net_event(event),
            Event::Tick { host, incarnation } => self.tick(host, incarnation),
            Event::Written { host, incarnation, function, block } => self.written(host, incarnation, function, block),
            Event::Open { host, incarnation, function } if self.is_at_work(host, incarnation) => {
                self.on_node(host, |parts, io| {
                    if let Some(function) = parts.functions.get_mut(&function) {
                        function.open(io);
                    }
                });
                self.note_completion(host, function);
            }
            // Opening is done by the control side; a process that stands still finds it done when it goes on.
            Event::Open { host, incarnation, function } if self.nodes[host].incarnation == incarnation => {
                self.net.agenda.after(TICK, Event::Open { host, incarnation, function });
            }
            Event::Open { .. } => {}
            Event::Attach { host, incarnation } => self.attach(host, incarnation),
            Event::Heartbeat { host, session } => self.heartbeat(host, session),
            Event::Command { host, session, command } => {
                let node = &mut self.nodes[host];
                if node.session == Some(session) && self.net.has_power(host) {
                    self.repeat(host, &command);
                    self.obey(host, *command);
                }
            }
            Event::Again { host, command } => self.obey(host, *command),
            Event::Order { host, order } => self.order(host, order),
            Event::Hear(message) => {
                let effects = self.control.hear(self.net.now(), message);
                self.carry_out(effects);
            }
            Event::Probe(node, probe) => self.probe(node, probe),
            Event::ControlTick => {
                let effects = self.control.tick(self.net.now());
                self.carry_out(effects);
                self.feed.tick(&mut self.net);
                self.check_edges();
                self.net.agenda.after(CONTROL_TICK, Event::ControlTick);
            }
            Event::Provision(wave) => self.provision(wave),
            Event::Fault(fault) => self.fault(fault),
        }
    }

    fn is_at_work(&self, host: Host, incarnation: u64) -> bool {
        self.nodes[host].incarnation == incarnation && self.nodes[host].is_running()
    }

    /// Lets an agent do something, then sends what it reports to the controller.
    pub(crate) fn on_node(&mut self, host: Host, work: impl FnOnce(&mut Parts<'_>, &mut Io<'_>)) {
        let node = &mut self.nodes[host];
        let (me, incarnation, session) = (node.id, node.incarnation, node.session);
        let (mut parts, disk, reports) = node.parts();
        let mut io = Io {
            net: &mut self.net,
            directory: &self.directory,
            disk,
            tally: &mut self.tally,
            reports,
            random: &mut self.damage,
            host,
            me,
            incarnation,
            patience: Patience::default(),
            bug: self.plan.bug,
            damaged: self.plan.faults.damaged,
        };
        work(&mut parts, &mut io);
        for report in std::mem::take(reports) {
            self.tally.edges_failed += u64::from(matches!(report, Report::EdgeFailed { .. }));
            if let Some(session) = session {
                let said = control::said(report, |function| self.specs[function].id);
                let way = self.plan.latency_us * MICROSECOND;
                self.net.agenda.after(way, Event::Hear(Message::Heard(session, said)));
            }
        }
    }

    fn net_event(&mut self, event: NetEvent) {
        match event {
            NetEvent::UplinkFree(host) => self.net.uplink_free(host),
            NetEvent::Knock(conn) => self.knock(conn),
            NetEvent::Answered(conn, answer) => {
                if self.net.conn(conn).child_open {
                    let end = self.net.conn(conn).child;
                    self.on_node(end.host, |parts, io| {
                        if let Some(function) = parts.functions.get_mut(&end.function) {
                            function.answered(end, conn, answer, io);
                        }
                    });
                }
            }
            NetEvent::Down(conn, item) => {
                if self.net.carries(conn) && self.net.conn(conn).child_open {
                    self.net.conn_mut(conn).inbox.push_back(item);
                    self.child_reads(conn);
                }
            }
            NetEvent::ChildSees(conn) => {
                if self.net.carries(conn) && self.net.conn(conn).child_open {
                    self.net.conn_mut(conn).child_sees_end = true;
                    self.child_reads(conn);
                }
            }
            NetEvent::Up(conn, bytes) => {
                if self.net.carries(conn) && self.net.conn(conn).parent_open {
                    self.net.conn_mut(conn).up_inbox.push_back(bytes);
                    self.parent_reads(conn);
                }
            }
            NetEvent::ParentSees(conn) => {
                if self.net.carries(conn) && self.net.conn(conn).parent_open {
                    self.net.conn_mut(conn).parent_sees_end = true;
                    self.parent_reads(conn);
                }
            }
        }
    }

    /// A connection attempt arrives. A process that stands still is connected to all the same: its kernel does that.
    fn knock(&mut self, conn: ConnId) {
        if !self.net.carries(conn) {
            return;
        }
        let (parent, way) = (self.net.conn(conn).parent, self.net.way(conn));
        let there = parent >= self.nodes.len() || self.nodes[parent].process != Process::Gone;
        let answer = if there { Ok(()) } else { Err("connection refused") };
        if there {
            self.net.conn_mut(conn).parent_open = true;
            if parent < self.nodes.len() {
                self.on_node(parent, |parts, io| parts.accept(conn, io));
            }
        }
        // The child speaks when it was challenged: the parent learns of the connection one way later, and its challenge takes another.
        let until_challenged = if there { 3 * way } else { way };
        self.net.agenda.after(until_challenged, NetEvent::Answered(conn, answer).into());
    }

    fn child_reads(&mut self, conn: ConnId) {
        let end = self.net.conn(conn).child;
        if self.nodes[end.host].is_running() {
            self.on_node(end.host, |parts, io| {
                if let Some(function) = parts.functions.get_mut(&end.function) {
                    function.link_ready(end.stripe, conn, io);
                }
            });
        }
    }

    fn parent_reads(&mut self, conn: ConnId) {
        let (parent, function) = (self.net.conn(conn).parent, self.net.conn(conn).child.function);
        if parent >= self.nodes.len() {
            let spec = Arc::clone(&self.specs[function]);
            return self.feed.up(conn, &spec.geometry, spec.descriptor_bytes, &mut self.net);
        }
        if self.nodes[parent].is_running() {
            let by_id = std::mem::take(&mut self.by_id);
            self.on_node(parent, |parts, io| parts.up(conn, &by_id, io));
            self.by_id = by_id;
        }
    }

    /// Connections that sent a block have room for another.
    fn refill(&mut self) {
        while let Some(conn) = self.net.drained.pop() {
            let (parent, function) = (self.net.conn(conn).parent, self.net.conn(conn).child.function);
            if parent < self.nodes.len() {
                self.parent_reads(conn);
            } else {
                let spec = Arc::clone(&self.specs[function]);
                self.feed.serve(conn, &spec.geometry, &mut self.net);
            }
        }
    }

    fn tick(&mut self, host: Host, incarnation: u64) {
        if self.nodes[host].incarnation != incarnation || self.nodes[host].process == Process::Gone {
            return;
        }
        if self.nodes[host].is_running() {
            self.on_node(host, |parts, io| parts.tick(io));
        }
        self.net.agenda.after(TICK, Event::Tick { host, incarnation });
    }

    fn written(&mut self, host: Host, incarnation: u64, function: usize, block: BlockIndex) {
        let node = &mut self.nodes[host];
        if node.incarnation != incarnation || node.process == Process::Gone {
            // The kernel finishes a write that it has taken; nobody marks the block.
            if let Some(file) = node.files.get_mut(&function).filter(|_| self.net.has_power(host)) {
                file.written.insert(block);
            }
            return;
        }
        if !node.is_running() {
            return self.net.agenda.after(TICK, Event::Written { host, incarnation, function, block });
        }
        node.disk.written();
        self.on_node(host, |parts, io| {
            if let Some(function) = parts.functions.get_mut(&function) {
                function.written(block, io);
            }
            for function in parts.functions.values_mut() {
                function.resume(io);
            }
        });
        self.note_completion(host, function);
    }

    /// Remembers when a node has everything for the first time, and that its bytes are really there.
    pub(crate) fn note_completion(&mut self, host: Host, index: usize) {
        let Some(function) = self.nodes[host].functions.get(&index) else { return };
        let Some(at) = function.complete_at else { return };
        if self.outstanding.remove(&(host, index)) {
            self.done.entry((host, index)).or_insert(at);
            let File { written, marked } = &function.shared.file;
            if written != marked {
                self.tally.violate(format!("node {host} says that function {index} is complete, but lacks bytes"));
            }
        }
    }

    /// What every node holds in the end is the newest that it was told.
    fn check_end(&mut self) {
        if self.plan.bug.is_some_and(|bug| bug != Bug::StaleEpoch) || !self.tally.violations.is_empty() {
            return;
        }
        let behind = |(&(host, function), &newest): (&Key, &(u64, u64))| {
            let node = &self.nodes[host];
            let held = node.held_version(function);
            (held > newest && node.is_running()).then(|| format!("node {host} holds {held:?}, nobody sent that"))
        };
        let violations: Vec<String> = self.sent.iter().filter_map(behind).collect();
        violations.into_iter().for_each(|violation| self.tally.violate(violation));
    }

    fn report_unfinished(&mut self) {
        let mut text = format!("{} transfers are not complete at the deadline:", self.outstanding.len());
        for (host, index) in self.outstanding.iter().take(4) {
            let node = &self.nodes[*host];
            text += &format!("\n  node {host} {} ({:?}), function {index}: ", node.id, node.process);
            text += &node.functions.get(index).map_or("not assigned".into(), |function| {
                let stripes = function.stripes.iter().zip(&function.plans);
                let stripes = stripes.map(|(stripe, plan)| stripe.describe(&function.shared, plan));
                format!("{:?} {}", function.shared.version, stripes.collect::<Vec<_>>().join("; "))
            });
        }
        self.tally.violate(text);
    }

    /// Puts what arrived while a process stood still before it.
    pub(crate) fn wake(&mut self, host: Host) {
        self.nodes[host].process = Process::Running;
        for command in std::mem::take(&mut self.nodes[host].unread) {
            self.obey(host, command);
        }
        for conn in self.net.conns_of(host) {
            let (child, parent) = (self.net.conn(conn).child.host, self.net.conn(conn).parent);
            if child == host {
                self.child_reads(conn);
            }
            if parent == host && !self.net.conn(conn).up_inbox.is_empty() | self.net.conn(conn).parent_sees_end {
                self.parent_reads(conn);
            }
        }
    }
}

fn specs(plan: &SimPlan, control: &mut Control) -> Result<Vec<Spec>> {
    match plan.topology {
        Topology::Trees(policy) => {
            (0..plan.functions).map(|index| control.create(0, index, policy, plan.image_bytes)).collect()
        }
        Topology::Layers(layers) => {
            let layers = layers.max(1) as usize;
            (0..layers).map(|index| control::lone_spec(index, plan.image_bytes / layers as u64)).collect()
        }
        Topology::Registry | Topology::Chain => {
            (0..plan.functions).map(|index| control::lone_spec(index, plan.image_bytes)).collect()
        }
    }
}
