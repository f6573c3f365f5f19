//! A pretended cluster around the state machine: agents that remember what they were told, processes that live, stop or die, a store in
//! memory, a clock that tests move.

use std::collections::{BTreeMap, HashMap, VecDeque};

use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::v1::command::Command;
use faasnet_api::v1::event::Event;
use faasnet_api::{BLOCK_BYTES, BlockDigest, ClusterSecret, Descriptor, Entry, FunctionId, NodeId, Origin, v1};
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
    pub(super) refused_joins: Vec<String>,
    pub(super) closed: Vec<String>,
}

pub(super) struct World {
    pub(super) state: State,
    pub(super) now: Now,
    pub(super) agents: BTreeMap<NodeId, Agent>,
    pub(super) records: BTreeMap<Key, Vec<u8>>,
    pub(super) answers: HashMap<RequestId, Result<Answer, Refusal>>,
    pub(super) progress: HashMap<RequestId, v1::ProvisionProgress>,
    sessions: HashMap<SessionId, NodeId>,
    numbers: u64,
}

pub(super) fn settings() -> Settings {
    Settings {
        secret: ClusterSecret::new(b"0123456789abcdef"),
        heartbeat_ms: 500,
        idle_heartbeat_ms: 5_000,
        suspect_after_missed: 2,
        reattach_ms: 10_000,
        restart_grace_ms: 2_000,
        functions_per_node: 20,
        forget_dead_ms: 3_600_000,
        progress_ms: 200,
    }
}

pub(super) fn node(n: u32) -> NodeId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    NodeId(id)
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
            records: BTreeMap::from([(Key::Term, state.record(Key::Term).unwrap())]),
            state,
            now,
            agents: BTreeMap::new(),
            answers: HashMap::new(),
            progress: HashMap::new(),
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
            Command::Accepted(_) => return,
            Command::JoinRefused(refused) => return agent.refused_joins.push(refused.reason.clone()),
            Command::Assign(assign) => (&assign.function_id, (assign.term, assign.epoch)),
            Command::Drop(drop) => (&drop.function_id, (drop.term, drop.epoch)),
        };
        let id = FunctionId::try_from(&id[..]).unwrap();
        let before = agent.versions.insert(id, version);
        assert!(before.is_none_or(|before| before <= version), "a stale command: {version:?} after {before:?}");
        match command {
            Command::Assign(assign) => drop(agent.assigned.insert(id, assign)),
            _ => drop(agent.assigned.remove(&id)),
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
        let new = NewFunction {
            tenant: "default".into(),
            name: name.into(),
            policy,
            memory_mib: 128,
            descriptor: descriptor("example/app:1", origin),
        };
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

    pub(super) fn release(&mut self, name: &str, nodes: &[u32]) -> Result<u32, Refusal> {
        let nodes = nodes.iter().map(|n| format!("n{n}")).collect();
        match self.ask(Ask::Release(v1::ReleaseRequest { tenant: String::new(), function: name.into(), nodes }))? {
            Answer::Released(released) => Ok(released),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.ask(Ask::Remove(v1::RemoveFunctionRequest { tenant: String::new(), function: name.into() })).unwrap();
    }

    pub(super) fn members(&self, name: &str) -> Vec<NodeId> {
        let mut members = self.state.functions[&function(name)].trees.members().to_vec();
        members.sort_unstable();
        members
    }

    pub(super) fn live_state(&self, n: u32) -> String {
        self.state.nodes[&node(n)].info(self.now.ms).state
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
            let planned =
                |(node, member): (&NodeId, &function::Member)| (!dead(node) && !member.failed).then_some(*node);
            let planned: Vec<NodeId> = function.wanted.iter().filter_map(planned).collect();
            let mut members = function.trees.members().to_vec();
            members.sort_unstable();
            assert_eq!(members, planned, "the trees and the intent differ");
            members.iter().for_each(|node| self.check_assign(function, *node));
        }
        for (id, node) in &self.state.nodes {
            let wanting = self.state.functions.values().filter(|function| function.wanted.contains_key(id));
            assert!(
                wanting.map(|function| function.id).eq(node.functions.iter().copied()),
                "the index of {id} is wrong"
            );
        }
        self.check_records();
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
        assert_eq!(assign.descriptor.is_empty(), !function.leads(&id), "the descriptor goes to roots and heirs");
    }

    /// What is stored is what is so.
    fn check_records(&self) {
        for id in self.state.functions.keys() {
            for key in [Key::Function(*id), Key::Order(*id), Key::Descriptor(*id)] {
                assert_eq!(self.records.get(&key).cloned(), self.state.record(key), "{key:?} is not stored");
            }
        }
        for id in self.state.nodes.keys() {
            assert_eq!(self.records.get(&Key::Node(*id)).cloned(), self.state.record(Key::Node(*id)));
        }
        for key in self.records.keys() {
            assert!(self.state.record(*key).is_some(), "{key:?} was not deleted");
        }
    }
}
