//! The controller's real state machine on the virtual clock: its store in memory, its streams as events.
//!
//! It answers with what has to travel; the cluster makes it travel.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::{BLOCK_BYTES, CHUNK_BYTES, Descriptor, Entry, FunctionId, Geometry, ImageId, NodeId, PublicKey};
use faasnet_api::{BlockDigest, Origin, v1};
use faasnet_controller::state::{
    Answer, Ask, Input, Key, NewFunction, Now, Output, ProbeAnswer, ProbeId, RequestId, SessionId, Settings, State,
};
use faasnet_relay::plan::{StripePlan, Target};
use faasnet_tree::Policy;
use v1::command::Command;

use crate::agenda::{MILLISECOND, SECOND, Time};
use crate::function::{Assignment, Spec};
use crate::io::Report;
use crate::network::Host;

/// Something on its way to the controller.
#[derive(Debug)]
pub(crate) enum Message {
    Attached(Host, SessionId, Box<v1::Attached>),
    Heard(SessionId, v1::event::Event),
    Detached(SessionId),
    Probed(NodeId, ProbeId, ProbeAnswer),
    /// A client provisions a function on hosts.
    Provision(usize, Vec<Host>),
}

/// Something that the controller sends.
#[derive(Debug)]
pub(crate) enum Effect {
    Send(Host, SessionId, Box<Command>),
    Close(Host, SessionId),
    Probe(NodeId, ProbeId),
}

/// See the module's documentation.
pub(crate) struct Control {
    state: Option<State>,
    records: BTreeMap<Key, Vec<u8>>,
    sessions: HashMap<SessionId, Host>,
    numbers: u64,
    judges_stragglers: bool,
    /// Messages that nobody heard because the controller was away.
    unheard: Vec<(usize, Vec<Host>)>,
    pub(crate) commands: u64,
    pub(crate) failures: Vec<String>,
}

const UNIX_SECONDS: u64 = 1_700_000_000;

impl Control {
    pub(crate) fn start(now: Time, judges_stragglers: bool) -> Result<Self> {
        let mut control = Self {
            state: None,
            records: BTreeMap::new(),
            sessions: HashMap::new(),
            numbers: 0,
            judges_stragglers,
            unheard: Vec::new(),
            commands: 0,
            failures: Vec::new(),
        };
        control.come(now)?;
        Ok(control)
    }

    pub(crate) fn is_there(&self) -> bool {
        self.state.is_some()
    }

    /// The process ends; what it committed stays.
    pub(crate) fn go(&mut self) {
        self.state = None;
        self.sessions.clear();
    }

    /// The process starts with what was committed.
    pub(crate) fn come(&mut self, now: Time) -> Result<()> {
        let records = self.records.iter().map(|(key, value)| (*key, value.clone())).collect();
        let state = State::restore(settings(self.judges_stragglers), clock(now), records)?;
        if let Some(term) = state.record(Key::Term) {
            self.records.insert(Key::Term, term);
        }
        self.state = Some(state);
        Ok(())
    }

    /// Creates a function and answers what the cluster has to know of it.
    pub(crate) fn create(&mut self, now: Time, index: usize, policy: Policy, bytes: u64) -> Result<Spec> {
        let name = format!("f{index}");
        let descriptor = descriptor(&name, bytes)?;
        let spec = spec(index, &name, &descriptor);
        let new = NewFunction { tenant: TENANT.into(), name, policy, memory_mib: 128, descriptor, holder: None };
        let request = RequestId(self.number());
        let state = self.state.as_mut().context("the controller is not there")?;
        let outputs = state.handle(clock(now), Input::Asked { request, ask: Ask::Create(Box::new(new)) });
        let refused = outputs.iter().find_map(|output| match output {
            Output::Answer { answer: Err(refusal), .. } => Some(refusal.message.clone()),
            Output::Answer { answer: Ok(Answer::Created(info)), .. } if info.policy != policy.to_string() => {
                Some(info.note.clone())
            }
            _ => None,
        });
        self.carry_out(outputs);
        match refused {
            Some(reason) => bail!("the controller refused the function: {reason}"),
            None => Ok(spec),
        }
    }

    /// A number for a stream or a call.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(crate) fn tick(&mut self, now: Time) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (function, hosts) in std::mem::take(&mut self.unheard) {
            effects.extend(self.hear(now, Message::Provision(function, hosts)));
        }
        effects.extend(self.apply(now, Input::Tick));
        effects
    }

    /// A message arrives.
    pub(crate) fn hear(&mut self, now: Time, message: Message) -> Vec<Effect> {
        if self.state.is_none() {
            if let Message::Provision(function, hosts) = message {
                // A client tries again until somebody answers.
                self.unheard.push((function, hosts));
            }
            return Vec::new();
        }
        let input = match message {
            Message::Attached(host, session, attached) => {
                self.sessions.insert(session, host);
                Input::Attached { session, attached }
            }
            Message::Heard(session, event) => Input::Heard { session, event },
            Message::Detached(session) => Input::Detached { session },
            Message::Probed(node, probe, answer) => Input::Probed { node, probe, answer },
            Message::Provision(function, hosts) => {
                let nodes = hosts.iter().map(|host| node_name(*host)).collect();
                let (tenant, function) = (TENANT.into(), format!("f{function}"));
                let ask = Ask::Provision(v1::ProvisionRequest { tenant, function, count: 0, nodes });
                Input::Asked { request: RequestId(self.number()), ask }
            }
        };
        self.apply(now, input)
    }

    fn apply(&mut self, now: Time, input: Input) -> Vec<Effect> {
        let Some(state) = &mut self.state else { return Vec::new() };
        let outputs = state.handle(clock(now), input);
        self.carry_out(outputs)
    }

    fn carry_out(&mut self, outputs: Vec<Output>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for output in outputs {
            match output {
                Output::Store(key) => match self.state.as_ref().and_then(|state| state.record(key)) {
                    Some(value) => drop(self.records.insert(key, value)),
                    None => drop(self.records.remove(&key)),
                },
                Output::Send { session, command } => {
                    self.commands += 1;
                    let command = Box::new(command);
                    effects.extend(self.sessions.get(&session).map(|host| Effect::Send(*host, session, command)));
                }
                Output::Close { session, .. } => {
                    effects.extend(self.sessions.remove(&session).map(|host| Effect::Close(host, session)));
                }
                Output::Probe { node, probe, .. } => effects.push(Effect::Probe(node, probe)),
                Output::Answer { answer: Err(refusal), .. } => self.failures.push(refusal.message),
                // Words for people and clients, of whom there are none here.
                _ => {}
            }
        }
        effects
    }
}

/// What an order means to the agent that gets it.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    Assign(usize, Assignment),
    Drop(usize, (u64, u64)),
    /// The answer to a node that has nobody left.
    Leave {
        function: usize,
        stripe: usize,
        lease: Duration,
    },
}

/// What the controller is told, in its words.
pub(crate) fn said(report: Report, id_of: impl Fn(usize) -> FunctionId) -> v1::event::Event {
    match report {
        Report::OriginWanted { function, stripe } => v1::event::Event::OriginWanted(v1::OriginWanted {
            function_id: id_of(function).to_vec(),
            stripe: stripe.0.into(),
        }),
        Report::EdgeFailed { function, stripe, target, reason, wrong_bytes } => {
            let upstream = match target {
                Target::Node(id, _) => id.to_vec(),
                Target::Address(_) => NodeId([0; 16]).to_vec(),
                Target::Origin => Vec::new(),
            };
            let function_id = id_of(function).to_vec();
            let stripe = stripe.0.into();
            v1::event::Event::EdgeFailed(v1::EdgeFailed {
                function_id,
                stripe,
                upstream,
                reason,
                wrong_bytes,
                block: 0,
            })
        }
    }
}

/// Reads a command; `None`: it asks for nothing that a simulated agent does.
pub(crate) fn order_of(command: &Command, index_of: impl Fn(FunctionId) -> Option<usize>) -> Result<Option<Order>> {
    let id = |bytes: &[u8]| FunctionId::try_from(bytes).map_err(|error| anyhow!("{error}"));
    Ok(match command {
        Command::Assign(assign) => {
            let function = index_of(id(&assign.function_id)?).context("an assignment of an unknown function")?;
            let assignment = Assignment {
                version: (assign.term, assign.epoch),
                ticket: assign.ticket.clone(),
                stripes: assign.stripes.iter().map(stripe_plan).collect::<Result<_>>()?,
                has_descriptor: !assign.descriptor.is_empty(),
            };
            Some(Order::Assign(function, assignment))
        }
        Command::Drop(drop) => {
            let function = index_of(id(&drop.function_id)?).context("a drop of an unknown function")?;
            Some(Order::Drop(function, (drop.term, drop.epoch)))
        }
        Command::OriginLease(lease) => {
            let function = index_of(id(&lease.function_id)?).context("a lease for an unknown function")?;
            let lease_for = Duration::from_secs(lease.seconds.into());
            Some(Order::Leave { function, stripe: lease.stripe as usize, lease: lease_for })
        }
        _ => None,
    })
}

fn stripe_plan(plan: &v1::StripePlan) -> Result<StripePlan> {
    Ok(StripePlan {
        upstream: target(plan.upstream.as_ref().context("a stripe without an upstream")?)?,
        fallbacks: plan.fallbacks.iter().map(target).collect::<Result<_>>()?,
        children: plan.children.iter().map(|id| node_id(id)).collect::<Result<_>>()?,
    })
}

fn target(upstream: &v1::Upstream) -> Result<Target> {
    match upstream.upstream.as_ref().context("an empty upstream")? {
        v1::upstream::Upstream::Node(node) => Ok(Target::Node(node_id(&node.node_id)?, node.address.parse()?)),
        v1::upstream::Upstream::Origin(_) => Ok(Target::Origin),
    }
}

fn node_id(bytes: &[u8]) -> Result<NodeId> {
    NodeId::try_from(bytes).map_err(|error| anyhow!("{error}"))
}

/// The key of a node: its id, since nobody signs anything here.
pub(crate) fn node_key(node: NodeId) -> PublicKey {
    let mut key = [0; 32];
    key[..16].copy_from_slice(&node.0);
    PublicKey(key)
}

/// The name of a host.
pub(crate) fn node_name(host: Host) -> String {
    format!("n{host}")
}

/// A function that no controller knows, for the topologies that compare.
pub(crate) fn lone_spec(index: usize, bytes: u64) -> Result<Spec> {
    let name = format!("f{index}");
    Ok(spec(index, &name, &descriptor(&name, bytes)?))
}

fn spec(index: usize, name: &str, descriptor: &Descriptor) -> Spec {
    Spec {
        index,
        id: FunctionId::new(TENANT, name),
        image: descriptor.id(),
        geometry: std::sync::Arc::clone(descriptor.geometry()),
        descriptor_bytes: descriptor.encode().len() as u64,
    }
}

fn descriptor(name: &str, bytes: u64) -> Result<Descriptor> {
    let blocks = Geometry::new(CHUNK_BYTES, BLOCK_BYTES, [bytes])?.blocks();
    let digest = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32));
    let parts = DescriptorParts {
        block_bytes: BLOCK_BYTES,
        reference: format!("registry.example/{name}:1"),
        origin: Origin::Layout { path: format!("/images/{name}") },
        manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        manifest_digest: digest(0),
        manifest: b"{}".to_vec(),
        entries: vec![Entry { digest: digest(1), media_type: "layer".into(), len: bytes }],
        blocks: vec![BlockDigest::of(b"block"); blocks as usize],
    };
    Ok(Descriptor::new(parts)?)
}

fn settings(judges_stragglers: bool) -> Settings {
    let usual = Settings::new([7; 32]);
    let percent = |percent: u32| if judges_stragglers { percent } else { 0 };
    Settings {
        slow_percent: percent(usual.slow_percent),
        receive_only_percent: percent(usual.receive_only_percent),
        heartbeat_ms: HEARTBEAT_MS,
        idle_heartbeat_ms: 5_000,
        suspect_after_missed: 2,
        reattach_ms: 10_000,
        restart_grace_ms: 2_000,
        functions_per_node: 64,
        forget_dead_ms: 3_600_000,
        progress_ms: 200,
        ..usual
    }
}

/// The state machine's clock; it does not begin at zero.
fn clock(now: Time) -> Now {
    Now { ms: 1_000 + now / MILLISECOND, unix_s: UNIX_SECONDS + now / SECOND }
}

/// How often agents send a heartbeat while something moves.
pub(crate) const HEARTBEAT_MS: u32 = 500;
const TENANT: &str = "default";

/// What an agent says of one function in its heartbeat.
pub(crate) fn progress(
    spec: &Spec,
    version: (u64, u64),
    state: v1::FunctionState,
    present: u64,
) -> v1::FunctionProgress {
    v1::FunctionProgress {
        function_id: spec.id.to_vec(),
        image_id: image_bytes(spec.image),
        term: version.0,
        epoch: version.1,
        state: state.into(),
        bytes_total: spec.geometry.image_bytes(),
        bytes_present: present,
        ..Default::default()
    }
}

/// What an agent that attaches says of a function that it holds.
pub(crate) fn held(spec: &Spec, version: (u64, u64), complete: bool, present: u64) -> v1::HeldFunction {
    v1::HeldFunction {
        function_id: spec.id.to_vec(),
        image_id: image_bytes(spec.image),
        term: version.0,
        epoch: version.1,
        bytes_present: present,
        complete,
    }
}

fn image_bytes(image: ImageId) -> Vec<u8> {
    image.to_vec()
}
