//! The state as records that a store keeps, and back.
//!
//! Epochs and progress are not kept: a restart raises the term, and agents say what they have when they attach again.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use faasnet_api::{Descriptor, DescriptorError, FunctionId, ImageId, NodeId, PublicKey, is_node_name};
use faasnet_tree::{FunctionTrees, Order, Policy};
use serde::{Deserialize, Serialize};

use super::function::{Function, Leaving, Member, registry_of};
use super::io::Now;
use super::keys::Keyring;
use super::node::{Liveness, Node};
use super::quarantine::Blame;
use super::secrets::Secrets;
use super::settings::Settings;
use super::update::NextImage;
use super::{State, words};

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The term.
    Term,
    /// The private keys that sign tickets.
    TicketKeys,
    /// The passwords of private registries.
    Secrets,
    /// One node.
    Node(NodeId),
    /// The public key that a node registered with.
    NodeKey(NodeId),
    /// A function's names, settings and intent.
    Function(FunctionId),
    /// The order of a function's trees.
    Order(FunctionId),
    /// A function's image descriptor, in its own encoding.
    Descriptor(FunctionId),
    /// The descriptor of an update that no provision has taken up yet.
    NextDescriptor(FunctionId),
}

/// Why records are not a state.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A value that was not written by this program.
    #[error("record {key:?} is damaged: {reason}")]
    Damaged {
        /// Which.
        key: Key,
        /// What is wrong with it.
        reason: String,
    },
    /// A part of a function is not there.
    #[error("record {0:?} is missing")]
    Missing(Key),
}

#[derive(Serialize, Deserialize)]
pub(super) struct NodeRecord {
    pub(super) name: String,
    pub(super) address: SocketAddr,
    pub(super) incarnation: u64,
    pub(super) memory_mib: u64,
    pub(super) version: String,
    pub(super) dead: bool,
    pub(super) draining: bool,
    /// Why nobody may receive from it; empty: it is trusted.
    pub(super) quarantine: String,
    /// Seconds since the Unix epoch.
    pub(super) last_seen_unix_s: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct FunctionRecord {
    pub(super) tenant: String,
    pub(super) name: String,
    pub(super) image: ImageId,
    pub(super) memory_mib: u32,
    pub(super) policy: String,
    pub(super) note: String,
    pub(super) count: Option<u32>,
    /// With the nodes where the image failed marked.
    pub(super) wanted: Vec<(NodeId, bool)>,
    /// Members on their way out.
    pub(super) leaving: Vec<NodeId>,
    /// Its descriptor is a record of its own.
    pub(super) next: Option<ImageId>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct OrderRecord {
    pub(super) stripes: Vec<Vec<NodeId>>,
    pub(super) reds: u64,
    /// Nodes that only receive, with their parents.
    pub(super) riders: Vec<(NodeId, Vec<NodeId>)>,
    /// Per stripe: who feeds a root without the image.
    pub(super) donors: Vec<Option<NodeId>>,
}

impl State {
    /// The state that `records` describe, one term later. The new term is not committed yet: store [`Key::Term`] and [`Key::TicketKeys`] before
    /// anybody hears of them.
    pub fn restore(settings: Settings, now: Now, records: Vec<(Key, Vec<u8>)>) -> Result<Self, RestoreError> {
        let records: BTreeMap<Key, Vec<u8>> = records.into_iter().collect();
        let term: u64 = records.get(&Key::Term).map(|bytes| decode(Key::Term, bytes)).transpose()?.unwrap_or(0);
        let keyring = match records.get(&Key::TicketKeys) {
            Some(bytes) => Keyring::restore(bytes)?,
            None => Keyring::new(settings.ticket_seed),
        };
        let secrets = records.get(&Key::Secrets).map(|bytes| Secrets::restore(bytes)).transpose()?.unwrap_or_default();
        let mut state = Self {
            keyring,
            secrets,
            settings,
            term: term.saturating_add(1),
            started_ms: now.ms,
            last_tick_ms: now.ms,
            tickets_checked_s: now.unix_s,
            probes: 0,
            nodes: BTreeMap::new(),
            sessions: Default::default(),
            addresses: Default::default(),
            names: Default::default(),
            functions: BTreeMap::new(),
            images: BTreeMap::new(),
            retired_epoch: 0,
            leaving: Default::default(),
            latencies: Default::default(),
            drains: BTreeMap::new(),
            rereads: BTreeMap::new(),
            rereads_ordered: 0,
            judged_ms: now.ms,
            reclaimed_ms: now.ms,
            watches: BTreeMap::new(),
            capacity_changed: false,
            unsettled: Default::default(),
            slow: Default::default(),
            out: Vec::new(),
        };
        for (key, bytes) in &records {
            if let Key::Node(id) = key {
                let mut node = restore_node(*id, decode(*key, bytes)?, now);
                let public = records.get(&Key::NodeKey(*id)).map(|bytes| PublicKey::try_from(&bytes[..]));
                node.key = public
                    .transpose()
                    .map_err(|error| RestoreError::Damaged { key: Key::NodeKey(*id), reason: error.to_string() })?;
                state.addresses.insert(node.address, *id);
                state.names.insert(node.name.clone(), *id);
                state.nodes.insert(*id, node);
            }
        }
        for (key, bytes) in &records {
            if let Key::Function(id) = key {
                let function = restore_function(*id, decode(*key, bytes)?, &records)?;
                state.adopt(now, function);
            }
        }
        state.unsettled = state.functions.keys().copied().collect();
        Ok(state)
    }

    /// The present value of a record; `None`: it is to be deleted.
    pub fn record(&self, key: Key) -> Option<Vec<u8>> {
        match key {
            Key::Term => Some(encode(&self.term)),
            Key::Node(id) => self.nodes.get(&id).map(|node| {
                encode(&NodeRecord {
                    name: node.name.clone(),
                    address: node.address,
                    incarnation: node.incarnation,
                    memory_mib: node.memory_mib,
                    version: node.version.clone(),
                    dead: node.is_dead(),
                    draining: node.draining,
                    quarantine: node.blame.quarantine.clone().unwrap_or_default(),
                    last_seen_unix_s: node.last_seen_unix_s,
                })
            }),
            Key::TicketKeys => Some(self.keyring.record()),
            Key::Secrets => self.secrets.record(),
            Key::NodeKey(id) => Some(self.nodes.get(&id)?.key?.to_vec()),
            Key::Function(id) => self.functions.get(&id).map(|function| {
                encode(&FunctionRecord {
                    tenant: function.tenant.clone(),
                    name: function.name.clone(),
                    image: function.image,
                    memory_mib: function.memory_mib,
                    policy: function.trees.policy().to_string(),
                    note: function.note.clone(),
                    count: function.count,
                    wanted: function.wanted.iter().map(|(node, member)| (*node, member.failed)).collect(),
                    leaving: function.wanted.keys().copied().filter(|node| !function.stays(node)).collect(),
                    next: function.next.as_ref().map(|next| next.image),
                })
            }),
            Key::Order(id) => self.functions.get(&id).map(|function| {
                let Order { stripes, reds } = function.trees.to_order();
                let riders = function.riders.iter().map(|(rider, hosts)| (*rider, hosts.clone())).collect();
                encode(&OrderRecord { stripes, reds, riders, donors: function.donors.clone() })
            }),
            Key::Descriptor(id) => self.functions.get(&id).map(|function| function.descriptor.clone()),
            Key::NextDescriptor(id) => {
                self.functions.get(&id).and_then(|function| Some(function.next.as_ref()?.descriptor.clone()))
            }
        }
    }

    fn adopt(&mut self, now: Now, mut function: Function) {
        for (id, member) in &mut function.wanted {
            if let Some(node) = self.nodes.get_mut(id) {
                node.occupy(function.id, &function.tenant, function.memory_mib);
            }
            // Whether it was used before this start is not known.
            member.used_ms = now.ms;
            if let Some(leaving) = &mut member.leaving {
                leaving.since_ms = now.ms;
                self.leaving.insert((function.id, *id));
            }
        }
        self.name_images(&function);
        self.functions.insert(function.id, function);
    }
}

fn restore_node(id: NodeId, record: NodeRecord, now: Now) -> Node {
    let mut node = Node::new(id, record.address, now.ms);
    // An earlier version took any name.
    node.name = Some(record.name).filter(|name| is_node_name(name)).unwrap_or_else(|| id.short());
    node.incarnation = record.incarnation;
    node.memory_mib = record.memory_mib;
    node.version = words::version(&record.version);
    node.draining = record.draining;
    node.blame = Blame::restore(record.quarantine);
    // An earlier version did not keep it.
    node.last_seen_unix_s = if record.last_seen_unix_s == 0 { now.unix_s } else { record.last_seen_unix_s };
    if record.dead {
        node.liveness = Liveness::Dead { since_ms: now.ms };
    }
    node
}

fn restore_function(
    id: FunctionId,
    record: FunctionRecord,
    records: &BTreeMap<Key, Vec<u8>>,
) -> Result<Function, RestoreError> {
    let part = |key| records.get(&key).ok_or(RestoreError::Missing(key));
    let damaged = |key: Key, reason: String| RestoreError::Damaged { key, reason };
    let policy: Policy = record.policy.parse().map_err(|error| damaged(Key::Function(id), format!("{error}")))?;
    let order: OrderRecord = decode(Key::Order(id), part(Key::Order(id))?)?;
    let trees = FunctionTrees::from_order(policy, Order { stripes: order.stripes, reds: order.reds })
        .map_err(|error| damaged(Key::Order(id), error.to_string()))?;
    let member = |(node, failed)| (node, Member { failed, ..Member::default() });
    let mut wanted: BTreeMap<NodeId, Member> = record.wanted.into_iter().map(member).collect();
    for node in record.leaving {
        if let Some(member) = wanted.get_mut(&node) {
            member.leaving = Some(Leaving { since_ms: 0, successor: None });
        }
    }
    let riders: BTreeMap<NodeId, Vec<NodeId>> = order.riders.into_iter().collect();
    if let Some(stranger) = trees.members().chain(riders.keys().copied()).find(|node| !wanted.contains_key(node)) {
        return Err(damaged(Key::Order(id), format!("node {stranger} is in the trees but not wanted")));
    }
    let mut donors = order.donors;
    donors.resize(policy.stripes().into(), None);
    let read = |key: Key, image: ImageId| {
        let encoded = part(key)?;
        let descriptor = Descriptor::decode(encoded, image);
        let descriptor = descriptor.map_err(|error: DescriptorError| damaged(key, error.to_string()))?;
        Ok((descriptor, encoded.clone()))
    };
    let (descriptor, encoded) = read(Key::Descriptor(id), record.image)?;
    let next = record.next.map(|image| read(Key::NextDescriptor(id), image)).transpose()?;
    Ok(Function {
        id,
        tenant: record.tenant,
        name: record.name,
        reference: descriptor.reference().into(),
        registry: registry_of(&descriptor),
        image: record.image,
        image_names: faasnet_origin::image_names(&descriptor),
        image_bytes: descriptor.geometry().image_bytes(),
        blobs: descriptor.entries().len() as u32,
        descriptor: encoded,
        memory_mib: record.memory_mib,
        note: record.note,
        count: record.count,
        wanted,
        donors,
        trees,
        riders,
        most_present: 0,
        moving_ms: None,
        leases: BTreeMap::new(),
        epoch: 0,
        next: next.map(|(descriptor, _)| NextImage::new(&descriptor)),
    })
}

pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    // These values have no maps, floats or skipped fields, and a Vec grows: postcard has no way to fail here.
    postcard::to_stdvec(value).unwrap_or_else(|error| unreachable!("encoding a record cannot fail: {error}"))
}

pub(super) fn decode<'a, T: Deserialize<'a>>(key: Key, bytes: &'a [u8]) -> Result<T, RestoreError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(RestoreError::Damaged { key, reason: format!("{} bytes follow its end", rest.len()) }),
        Err(error) => Err(RestoreError::Damaged { key, reason: error.to_string() }),
    }
}
