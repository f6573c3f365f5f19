//! A pretended cluster around the state machine: agents that remember what they were told, processes that live, stop or die, a store in
//! memory, a clock that tests move.

use std::collections::{BTreeMap, HashMap, VecDeque};

use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::v1::command::Command;
use faasnet_api::v1::event::Event;
use faasnet_api::{BLOCK_BYTES, BlockDigest, Descriptor, Entry, FunctionId, NodeId, Origin, PublicKey, v1};
use faasnet_tree::Policy;

use super::super::plan::stripe_plans;
use super::super::*;

/// One pretended host.
#[derive(Default)]
pub(super) struct Agent {
    pub(super) incarnation: u64,
    pub(super) session: Option<SessionId>,
    /// Whether its data address accepts connections.
    pub(super) listening: bool,
    /// What it was told on its streams and has not been told to drop.
    pub(super) assigned: BTreeMap<FunctionId, v1::Assign>,
    /// The highest version heard per function.
    pub(super) versions: HashMap<FunctionId, (u64, u64)>,
    pub(super) commands: u64,
    pub(super) key_sets: u64,
    pub(super) refused_joins: Vec<String>,
    pub(super) image_answers: Vec<v1::ImageAnswer>,
    pub(super) leases: Vec<v1::OriginLease>,
    pub(super) rereads: Vec<v1::Reread>,
    /// Payload received, for reports of edges.
    pub(super) received: u64,
    /// What was assigned and dropped again to be kept on disk no more.
    pub(super) discarded: u64,
    pub(super) closed: Vec<String>,
}

pub(super) struct World {
    pub(super) state: State,
    pub(super) now: Now,
    pub(super) agents: BTreeMap<NodeId, Agent>,
    pub(super) records: BTreeMap<Key, Vec<u8>>,
    pub(super) answers: HashMap<RequestId, Result<Answer, Refusal>>,
    pub(super) progress: HashMap<RequestId, v1::ProvisionProgress>,
    pub(super) drains: HashMap<RequestId, v1::DrainProgress>,
    sessions: HashMap<SessionId, NodeId>,
    numbers: u64,
}

pub(super) fn settings() -> Settings {
    Settings { forget_dead_ms: 3_600_000, ..Settings::new([1; 32]) }
}

pub(super) fn node(n: u32) -> NodeId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    NodeId(id)
}

pub(super) fn node_key(n: u32) -> PublicKey {
    let mut key = [0; 32];
    key[..16].copy_from_slice(&node(n).0);
    PublicKey(key)
}

pub(super) fn function(name: &str) -> FunctionId {
    FunctionId::new("default", name)
}

pub(super) fn descriptor(reference: &str, origin: Origin) -> Descriptor {
    Descriptor::new(DescriptorParts {
        block_bytes: BLOCK_BYTES,
        reference: reference.into(),
        origin,
        manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        manifest_digest: format!("sha256:{}", "0".repeat(64)),
        manifest: b"{}".to_vec(),
        entries: vec![Entry { digest: format!("sha256:{}", "a".repeat(64)), media_type: "m".into(), len: 10 }],
        blocks: vec![BlockDigest::of(b"0123456789")],
    })
    .unwrap()
}

pub(super) fn layout() -> Origin {
    Origin::Layout { path: "/images/app".into() }
}

impl World {
    pub(super) fn new() -> Self {
        let now = Now { ms: 1_000, unix_s: 1_700_000_000 };
        let state = State::restore(settings(), now, Vec::new()).unwrap();
        Self {
            records: [Key::Term, Key::TicketKeys].map(|key| (key, state.record(key).unwrap())).into(),
            state,
            now,
            agents: BTreeMap::new(),
            answers: HashMap::new(),
            progress: HashMap::new(),
            drains: HashMap::new(),
            sessions: HashMap::new(),
            numbers: 0,
        }
    }

    /// A world with `nodes` attached agents and one function, "f".
    pub(super) fn with(nodes: u32, policy: Policy) -> Self {
        let mut world = Self::new();
        (0..nodes).for_each(|n| world.attach(n));
        world.create("f", policy).unwrap();
        world
    }

    pub(super) fn apply(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for output in self.state.handle(self.now, input) {
                inputs.extend(self.carry_out(output));
            }
        }
    }

    fn carry_out(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Store(key) => {
                match self.state.record(key) {
                    Some(value) => self.records.insert(key, value),
                    None => self.records.remove(&key),
                };
            }
            Output::Send { session, command } => self.deliver(session, command),
            Output::Close { session, refusal } => {
                if let Some(agent) = self.sessions.get(&session).and_then(|node| self.agents.get_mut(node)) {
                    agent.closed.push(refusal.message);
                    if agent.session == Some(session) {
                        agent.session = None;
                        return Some(Input::Detached { session });
                    }
                }
            }
            Output::Probe { node, probe, .. } => {
                let listening = self.agents.get(&node).is_some_and(|agent| agent.listening);
                let answer = if listening { ProbeAnswer::Reachable } else { ProbeAnswer::Refused };
                return Some(Input::Probed { node, probe, answer });
            }
            Output::Answer { request, answer } => drop(self.answers.insert(request, answer)),
            Output::Progress { request, progress } => drop(self.progress.insert(request, progress)),
            Output::Drained { request, progress } => drop(self.drains.insert(request, progress)),
            Output::Note(_) => {}
        }
        None
    }

    fn deliver(&mut self, session: SessionId, command: Command) {
        let agent = self.agents.get_mut(&self.sessions[&session]).unwrap();
        if agent.session != Some(session) {
            return;
        }
        agent.commands += 1;
        let (id, version) = match &command {
            Command::Accepted(_) | Command::Challenge(_) | Command::ReadImage(_) => return,
            Command::TicketKeys(_) => return agent.key_sets += 1,
            Command::OriginLease(lease) => return agent.leases.push(lease.clone()),
            Command::Reread(reread) => return agent.rereads.push(reread.clone()),
            Command::JoinRefused(refused) => return agent.refused_joins.push(refused.reason.clone()),
            Command::ImageAnswer(answer) => return agent.image_answers.push(answer.clone()),
            Command::Assign(assign) => (&assign.function_id, (assign.term, assign.epoch)),
            Command::Drop(drop) => (&drop.function_id, (drop.term, drop.epoch)),
        };
        let id = FunctionId::try_from(&id[..]).unwrap();
        let before = agent.versions.insert(id, version);
        assert!(before.is_none_or(|before| before <= version), "a stale command: {version:?} after {before:?}");
        match command {
            Command::Assign(assign) => drop(agent.assigned.insert(id, assign)),
            Command::Drop(drop) => {
                agent.discarded += u64::from(drop.discard);
                agent.assigned.remove(&id);
            }
            _ => {}
        }
    }

    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn attach_with(&mut self, n: u32, held: Vec<v1::HeldFunction>) {
        let session = SessionId(self.number());
        let agent = self.agents.entry(node(n)).or_default();
        agent.session = Some(session);
        agent.listening = true;
        let attached = v1::Attached {
            node_id: node(n).to_vec(),
            incarnation: agent.incarnation,
            name: format!("n{n}"),
            data_address: format!("10.{}.{}.{}:7410", n >> 16, (n >> 8) & 255, n & 255),
            version: "test".into(),
            memory_mib: 1_024,
            held,
            public_key: node_key(n).to_vec(),
            // Checked before the state machine hears of it.
            proof: Vec::new(),
        };
        self.sessions.insert(session, node(n));
        self.apply(Input::Attached { session, attached: Box::new(attached) });
    }

    pub(super) fn attach(&mut self, n: u32) {
        self.attach_with(n, Vec::new());
    }

    /// The process dies: its stream ends and nobody listens any more.
    pub(super) fn kill(&mut self, n: u32) {
        let agent = self.agents.get_mut(&node(n)).unwrap();
        agent.listening = false;
        agent.incarnation += 1;
        agent.assigned.clear();
        agent.versions.clear();
        if let Some(session) = agent.session.take() {
            self.apply(Input::Detached { session });
        }
    }

    /// Only the stream ends.
    pub(super) fn cut(&mut self, n: u32) {
        if let Some(session) = self.agents.get_mut(&node(n)).unwrap().session.take() {
            self.apply(Input::Detached { session });
        }
    }

    pub(super) fn hear(&mut self, n: u32, event: Event) {
        if let Some(session) = self.agents[&node(n)].session {
            self.apply(Input::Heard { session, event });
        }
    }

    /// A heartbeat that says the same state of everything that the agent was assigned.
    pub(super) fn beat(&mut self, n: u32, state: v1::FunctionState) {
        let assigned = self.agents[&node(n)].assigned.values();
        let functions = assigned
            .map(|assign| v1::FunctionProgress {
                function_id: assign.function_id.clone(),
                image_id: assign.image_id.clone(),
                term: assign.term,
                epoch: assign.epoch,
                state: state.into(),
                ..Default::default()
            })
            .collect();
        self.hear(n, Event::Heartbeat(v1::Heartbeat { functions }));
    }

    /// Moves the clock in steps of the shell's ticks; agents whose heartbeat is in `beating` send it every half second.
    pub(super) fn pass(&mut self, ms: u64, beating: &[(u32, v1::FunctionState)]) {
        for step in 1..=ms / 100 {
            self.now.ms += 100;
            if step % 5 == 0 {
                beating.iter().for_each(|(n, state)| self.beat(*n, *state));
            }
            self.apply(Input::Tick);
        }
    }

    pub(super) fn ask(&mut self, ask: Ask) -> Result<Answer, Refusal> {
        let request = RequestId(self.number());
        self.apply(Input::Asked { request, ask });
        self.answers.remove(&request).unwrap()
    }

    pub(super) fn create_from(
        &mut self,
        name: &str,
        policy: Policy,
        origin: Origin,
    ) -> Result<v1::FunctionInfo, Refusal> {
        self.create_for("default", name, policy, origin, 16)
    }

    pub(super) fn create_for(
        &mut self,
        tenant: &str,
        name: &str,
        policy: Policy,
        origin: Origin,
        memory_mib: u32,
    ) -> Result<v1::FunctionInfo, Refusal> {
        let descriptor = descriptor("example/app:1", origin);
        let new =
            NewFunction { tenant: tenant.into(), name: name.into(), policy, memory_mib, descriptor, holder: None };
        match self.ask(Ask::Create(Box::new(new)))? {
            Answer::Created(info) => Ok(info),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn create(&mut self, name: &str, policy: Policy) -> Result<v1::FunctionInfo, Refusal> {
        self.create_from(name, policy, layout())
    }

    pub(super) fn provision(&mut self, name: &str, count: u32, nodes: &[u32]) -> Result<RequestId, Refusal> {
        let request = RequestId(self.number());
        let nodes = nodes.iter().map(|n| format!("n{n}")).collect();
        let ask = Ask::Provision(v1::ProvisionRequest { tenant: String::new(), function: name.into(), count, nodes });
        self.apply(Input::Asked { request, ask });
        match self.answers.remove(&request) {
            Some(Err(refusal)) => Err(refusal),
            None => Ok(request),
            Some(Ok(answer)) => panic!("{answer:?}"),
        }
    }

    /// A call that is answered by progress.
    pub(super) fn begin(&mut self, ask: Ask) -> Result<RequestId, Refusal> {
        let request = RequestId(self.number());
        self.apply(Input::Asked { request, ask });
        match self.answers.remove(&request) {
            Some(Err(refusal)) => Err(refusal),
            None => Ok(request),
            Some(Ok(answer)) => panic!("{answer:?}"),
        }
    }

    pub(super) fn scale(&mut self, name: &str, count: u32) -> Result<RequestId, Refusal> {
        let (tenant, function) = (String::new(), name.into());
        self.begin(Ask::Scale(v1::ScaleRequest { tenant, function, count }))
    }

    pub(super) fn drain(&mut self, n: u32, undo: bool) -> Result<RequestId, Refusal> {
        self.begin(Ask::Drain(v1::DrainRequest { node: node(n).to_string(), undo }))
    }

    /// A heartbeat of a node that received so many bytes since the last one from each of its parents, and has so many blocks ready for
    /// each of its children.
    pub(super) fn flow(&mut self, n: u32, bytes: u64, ready: impl Fn(NodeId) -> u32) {
        let agent = self.agents.get_mut(&node(n)).unwrap();
        agent.received += bytes;
        let received = agent.received;
        let report = |assign: &v1::Assign| {
            let (mut upstreams, mut downstreams) = (Vec::new(), Vec::new());
            for (stripe, plan) in (0u32..).zip(&assign.stripes) {
                if let Some(v1::upstream::Upstream::Node(from)) =
                    plan.upstream.as_ref().and_then(|up| up.upstream.clone())
                {
                    upstreams.push(v1::UpstreamUse {
                        stripe,
                        node_id: from.node_id,
                        bytes: received,
                        ..Default::default()
                    });
                }
                for child in &plan.children {
                    let blocks_ready = ready(NodeId::try_from(&child[..]).unwrap());
                    downstreams.push(v1::DownstreamUse { stripe, node_id: child.clone(), blocks_ready });
                }
            }
            v1::FunctionProgress {
                function_id: assign.function_id.clone(),
                image_id: assign.image_id.clone(),
                term: assign.term,
                epoch: assign.epoch,
                state: v1::FunctionState::Fetching.into(),
                upstreams,
                downstreams,
                ..Default::default()
            }
        };
        let functions = agent.assigned.values().map(report).collect();
        self.hear(n, Event::Heartbeat(v1::Heartbeat { functions }));
    }

    pub(super) fn blame(&mut self, reporter: u32, parent: u32) {
        let function_id = function("f").to_vec();
        let upstream = node(parent).to_vec();
        let failed = v1::EdgeFailed { function_id, upstream, wrong_bytes: true, block: 3, ..Default::default() };
        self.hear(reporter, Event::EdgeFailed(failed));
    }

    /// Brings somebody who feeds another into quarantine by its own disk; answers who.
    pub(super) fn condemn(&mut self, name: &str) -> u32 {
        let trees = &self.state.functions[&function(name)].trees;
        let number = |id: NodeId| u32::from_be_bytes(id.0[..4].try_into().unwrap());
        let root = trees.root(0).unwrap();
        let (bad, reporter) = (number(root), number(trees.children(0, &root).next().unwrap()));
        let function_id = function(name).to_vec();
        let upstream = root.to_vec();
        let failed =
            v1::EdgeFailed { function_id: function_id.clone(), upstream, wrong_bytes: true, ..Default::default() };
        self.hear(reporter, Event::EdgeFailed(failed));
        let request = self.agents[&root].rereads.last().unwrap().request;
        self.hear(bad, Event::BlocksReread(v1::BlocksReread { function_id, request, checked: 9, wrong: 1 }));
        assert!(!self.is_trusted(bad));
        bad
    }

    /// From whom a node may receive by what it was told.
    pub(super) fn sources(&self, n: u32) -> Vec<u32> {
        let stripes = self.agents[&node(n)].assigned[&function("f")].stripes.clone();
        let sources = function::Sent { stripes }.sources();
        sources.into_iter().map(|id| u32::from_be_bytes(id.0[..4].try_into().unwrap())).collect()
    }

    /// A node reports that it receives from `upstreams` and serves `downstreams`, whatever the plan says.
    pub(super) fn names(&mut self, n: u32, upstreams: &[u32], downstreams: &[u32]) {
        let told = &self.state.functions[&function("f")];
        let used = |n: &u32| v1::UpstreamUse { node_id: node(*n).to_vec(), ..Default::default() };
        let serves = |n: &u32| v1::DownstreamUse { node_id: node(*n).to_vec(), ..Default::default() };
        let row = v1::FunctionProgress {
            function_id: told.id.to_vec(),
            image_id: told.image.to_vec(),
            term: self.state.term,
            epoch: told.epoch,
            state: v1::FunctionState::Fetching.into(),
            upstreams: upstreams.iter().map(used).collect(),
            downstreams: downstreams.iter().map(serves).collect(),
            ..Default::default()
        };
        self.hear(n, Event::Heartbeat(v1::Heartbeat { functions: vec![row] }));
    }

    pub(super) fn is_trusted(&self, n: u32) -> bool {
        self.state.nodes[&node(n)].is_trusted()
    }

    pub(super) fn release(&mut self, name: &str, nodes: &[u32]) -> Result<u32, Refusal> {
        let nodes = nodes.iter().map(|n| format!("n{n}")).collect();
        match self.ask(Ask::Release(v1::ReleaseRequest {
            tenant: String::new(),
            function: name.into(),
            nodes,
            discard: false,
        }))? {
            Answer::Released(released) => Ok(released),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.ask(Ask::Remove(v1::RemoveFunctionRequest { tenant: String::new(), function: name.into() })).unwrap();
    }

    pub(super) fn members(&self, name: &str) -> Vec<NodeId> {
        let mut members: Vec<NodeId> = self.state.functions[&function(name)].placed().collect();
        members.sort_unstable();
        members
    }

    /// Whether a node only receives.
    pub(super) fn rides(&self, name: &str, n: u32) -> bool {
        self.state.functions[&function(name)].riders.contains_key(&node(n))
    }

    pub(super) fn live_state(&self, n: u32) -> String {
        self.state.nodes[&node(n)].info(self.now).state
    }

    pub(super) fn restart_controller(&mut self) {
        let records = self.records.iter().map(|(key, value)| (*key, value.clone())).collect();
        self.state = State::restore(settings(), self.now, records).unwrap();
        // As the shell does before it serves.
        self.records.insert(Key::Term, self.state.record(Key::Term).unwrap());
        self.agents.values_mut().for_each(|agent| agent.session = None);
        self.sessions.clear();
    }

    /// Everything that must hold after every input.
    pub(super) fn check(&self) {
        for function in self.state.functions.values() {
            function.trees.check_invariants().unwrap();
            let dead = |node: &NodeId| self.state.nodes.get(node).is_none_or(|node| node.is_dead());
            let trusted = |node: &NodeId| self.state.nodes.get(node).is_none_or(|node| node.is_trusted());
            let planned = |(node, member): (&NodeId, &function::Member)| {
                (!dead(node) && trusted(node) && !member.failed && member.leaving.is_none()).then_some(*node)
            };
            let planned: Vec<NodeId> = function.wanted.iter().filter_map(planned).collect();
            let mut members: Vec<NodeId> = function.placed().collect();
            members.sort_unstable();
            // Who is in quarantine has a place only as one that receives.
            let served: Vec<NodeId> = members.iter().copied().filter(trusted).collect();
            assert_eq!(served, planned, "the trees and the intent differ");
            assert!(function.trees.members().all(|node| trusted(&node)), "somebody receives from a node in quarantine");
            let owed = |(node, member): (&NodeId, &function::Member)| {
                (!dead(node) && !trusted(node) && !member.failed && member.leaving.is_none()).then_some(*node)
            };
            let riding = |node: &NodeId| function.riders.contains_key(node);
            assert!(
                function.wanted.iter().filter_map(owed).all(|node| riding(&node)),
                "quarantine takes the image away"
            );
            assert!(!function.trees.is_empty() || !function.riders.keys().any(trusted), "nobody leads");
            Self::check_riders(function);
            members.iter().for_each(|node| self.check_assign(function, *node));
        }
        for (id, node) in &self.state.nodes {
            let wanting = self.state.functions.values().filter(|function| function.wanted.contains_key(id));
            assert!(
                wanting.map(|function| function.id).eq(node.functions.iter().copied()),
                "the index of {id} is wrong"
            );
            self.check_accounts(node);
        }
        self.check_records();
    }

    /// A node is one tenant's or nobody's, and its memory is counted.
    fn check_accounts(&self, node: &node::Node) {
        let held: Vec<_> = node.functions.iter().map(|id| &self.state.functions[id]).collect();
        let memory: u64 = held.iter().map(|function| u64::from(function.memory_mib)).sum();
        assert_eq!(node.memory_used_mib, memory, "the memory of {} is counted wrong", node.id);
        assert_eq!(node.tenant.is_none(), held.is_empty(), "{} is in the wrong pool", node.id);
        assert!(
            held.iter().all(|function| Some(&function.tenant) == node.tenant.as_ref()),
            "{} has two tenants",
            node.id
        );
        assert!(held.len() <= self.state.settings.functions_per_node as usize);
        if node.draining {
            assert!(
                held.iter().all(|function| !function.stays(&node.id)),
                "{} is drained and keeps functions",
                node.id
            );
        }
        for function in &held {
            let leaving = !function.stays(&node.id);
            assert_eq!(
                self.state.leaving.contains(&(function.id, node.id)),
                leaving,
                "the list of those who leave is wrong"
            );
        }
        let alone = |other: &node::Node| other.id == node.id || other.name != node.name || other.is_dead();
        assert!(node.is_dead() || self.state.nodes.values().all(alone), "two nodes are named {}", node.name);
    }

    /// Those who only receive do so from somebody in the trees, if anybody is.
    fn check_riders(function: &function::Function) {
        let hosted = if function.trees.is_empty() { 0 } else { usize::from(function.trees.stripes()) };
        for (rider, hosts) in &function.riders {
            assert_eq!(hosts.len(), hosted, "{rider} has no parent in some stripe");
            assert!(hosts.iter().all(|host| function.trees.contains(host)), "{rider} hangs on nobody");
        }
    }

    /// An agent knows exactly its present plan.
    fn check_assign(&self, function: &function::Function, id: NodeId) {
        if self.state.nodes[&id].session.is_none() {
            return;
        }
        let address = |id: NodeId| self.state.nodes[&id].address.to_string();
        let assign = self.agents[&id].assigned.get(&function.id).expect("a member was never told");
        assert_eq!(assign.stripes, stripe_plans(function, id, &address), "{id} holds an old plan");
        assert_eq!(assign.term, self.state.term);
        assert!(assign.epoch <= function.epoch);
        assert_eq!(
            assign.descriptor.is_empty(),
            !function.reads_origin(&id),
            "the descriptor goes to who reads the origin"
        );
    }

    /// What is stored is what is so.
    fn check_records(&self) {
        for id in self.state.functions.keys() {
            for key in [Key::Function(*id), Key::Order(*id), Key::Descriptor(*id)] {
                assert_eq!(self.records.get(&key).cloned(), self.state.record(key), "{key:?} is not stored");
            }
        }
        for id in self.state.nodes.keys() {
            for key in [Key::Node(*id), Key::NodeKey(*id), Key::TicketKeys] {
                assert_eq!(self.records.get(&key).cloned(), self.state.record(key), "{key:?} is not stored");
            }
        }
        for key in self.records.keys() {
            assert!(self.state.record(*key).is_some(), "{key:?} was not deleted");
        }
    }
}
