//! The state as records that a store keeps, and back.
//!
//! Epochs and progress are not kept: a restart raises the term, and agents say what they have when they attach again.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use faasnet_api::{Descriptor, DescriptorError, FunctionId, ImageId, NodeId};
use faasnet_tree::{FunctionTrees, Order, Policy};
use serde::{Deserialize, Serialize};

use super::State;
use super::function::{Function, Member};
use super::io::Now;
use super::node::{Liveness, Node};
use super::settings::Settings;
use super::update::NextImage;

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The term.
    Term,
    /// One node.
    Node(NodeId),
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
    /// Its descriptor is a record of its own.
    pub(super) next: Option<ImageId>,
}

#[derive(Serialize, Deserialize)]
struct OrderRecord {
    stripes: Vec<Vec<NodeId>>,
    reds: u64,
}

impl State {
    /// The state that `records` describe, one term later. The new term is not committed yet: store [`Key::Term`] before anybody hears of it.
    pub fn restore(settings: Settings, now: Now, records: Vec<(Key, Vec<u8>)>) -> Result<Self, RestoreError> {
        let records: BTreeMap<Key, Vec<u8>> = records.into_iter().collect();
        let term: u64 = records.get(&Key::Term).map(|bytes| decode(Key::Term, bytes)).transpose()?.unwrap_or(0);
        let mut state = Self {
            settings,
            term: term.saturating_add(1),
            started_ms: now.ms,
            last_tick_ms: now.ms,
            tickets_checked_s: now.unix_s,
            probes: 0,
            nodes: BTreeMap::new(),
            sessions: Default::default(),
            addresses: Default::default(),
            functions: BTreeMap::new(),
            retired: Default::default(),
            watches: BTreeMap::new(),
            capacity_changed: false,
            out: Vec::new(),
        };
        for (key, bytes) in &records {
            if let Key::Node(id) = key {
                let node = restore_node(*id, decode(*key, bytes)?, now.ms);
                state.addresses.insert(node.address, *id);
                state.nodes.insert(*id, node);
            }
        }
        for (key, bytes) in &records {
            if let Key::Function(id) = key {
                let function = restore_function(*id, decode(*key, bytes)?, &records)?;
                state.adopt(function);
            }
        }
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
                })
            }),
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
                    next: function.next.as_ref().map(|next| next.image),
                })
            }),
            Key::Order(id) => self.functions.get(&id).map(|function| {
                let Order { stripes, reds } = function.trees.to_order();
                encode(&OrderRecord { stripes, reds })
            }),
            Key::Descriptor(id) => self.functions.get(&id).map(|function| function.descriptor.clone()),
            Key::NextDescriptor(id) => {
                self.functions.get(&id).and_then(|function| Some(function.next.as_ref()?.descriptor.clone()))
            }
        }
    }

    fn adopt(&mut self, function: Function) {
        for node in function.wanted.keys() {
            if let Some(node) = self.nodes.get_mut(node) {
                node.functions.insert(function.id);
            }
        }
        self.functions.insert(function.id, function);
    }
}

fn restore_node(id: NodeId, record: NodeRecord, now_ms: u64) -> Node {
    let mut node = Node::new(id, record.address, now_ms);
    node.name = record.name;
    node.incarnation = record.incarnation;
    node.memory_mib = record.memory_mib;
    node.version = record.version;
    if record.dead {
        node.liveness = Liveness::Dead { since_ms: now_ms };
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
    let wanted: BTreeMap<NodeId, Member> = record.wanted.into_iter().map(member).collect();
    if let Some(stranger) = trees.members().iter().find(|node| !wanted.contains_key(node)) {
        return Err(damaged(Key::Order(id), format!("node {stranger} is in the trees but not wanted")));
    }
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
        image: record.image,
        image_bytes: descriptor.geometry().image_bytes(),
        blobs: descriptor.entries().len() as u32,
        descriptor: encoded,
        memory_mib: record.memory_mib,
        note: record.note,
        count: record.count,
        wanted,
        donors: vec![None; policy.stripes().into()],
        trees,
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
