//! One function: its image, its trees, and who shall be a member.

use std::collections::{BTreeMap, BTreeSet};

use faasnet_api::{Descriptor, FunctionId, ImageId, NodeId, Origin, Ticket, v1};
use faasnet_tree::FunctionTrees;

use super::update::NextImage;

/// Why a node shall hold a function, and how far it is.
#[derive(Debug, Default)]
pub(crate) struct Member {
    pub(crate) progress: Option<v1::FunctionProgress>,
    /// When it was reported.
    pub(crate) reported_ms: u64,
    /// The image cannot be received there; it is in no tree until somebody provisions it again or its agent restarts.
    pub(crate) failed: bool,
    /// (term, epoch) of its entry into the trees: reports about older plans say nothing about this membership.
    pub(crate) joined: (u64, u64),
    /// What its agent was last told on the present stream.
    pub(crate) sent: Option<Sent>,
    /// From whom it might receive by the plan before that one.
    pub(crate) sources_before: BTreeSet<NodeId>,
    /// Its permission to fetch, as last signed.
    pub(crate) ticket: Option<Ticket>,
    /// When it was last provisioned, received, fed somebody or was read by its host.
    pub(crate) used_ms: u64,
    /// When somebody wished that it holds the image, until it does.
    pub(crate) asked_ms: Option<u64>,
    /// How long that wish waited until the node began.
    pub(crate) queued_ms: Option<u64>,
    /// On its way out: in no tree any more, but still there for those who receive from it.
    pub(crate) leaving: Option<Leaving>,
}

/// A member that lets its children move before it goes.
#[derive(Debug, Clone)]
pub(crate) struct Leaving {
    pub(crate) since_ms: u64,
    /// Who comes instead; it goes when that one is complete.
    pub(crate) successor: Option<NodeId>,
}

/// Leave to read the origin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    pub(crate) node: NodeId,
    pub(crate) until_ms: u64,
}

#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) stripes: Vec<v1::StripePlan>,
}

impl Sent {
    /// From whom a node may receive by this plan.
    pub(crate) fn sources(&self) -> BTreeSet<NodeId> {
        let all = self.stripes.iter().flat_map(|plan| plan.upstream.iter().chain(&plan.fallbacks));
        let node = |upstream: &v1::Upstream| match &upstream.upstream {
            Some(v1::upstream::Upstream::Node(node)) => NodeId::try_from(&node.node_id[..]).ok(),
            _ => None,
        };
        all.filter_map(node).collect()
    }
}

impl Member {
    pub(crate) fn is_complete(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| progress.state() == v1::FunctionState::Complete)
    }
}

/// A stripe's root and heir.
pub(crate) type Leaders = (Option<NodeId>, Option<NodeId>);

#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) id: FunctionId,
    pub(crate) tenant: String,
    pub(crate) name: String,
    pub(crate) reference: String,
    /// Where its roots read, as `https://host`; empty: not at a registry.
    pub(crate) registry: String,
    pub(crate) image: ImageId,
    /// By which runtimes ask for it.
    pub(crate) image_names: Vec<String>,
    pub(crate) image_bytes: u64,
    pub(crate) blobs: u32,
    pub(crate) descriptor: Vec<u8>,
    pub(crate) memory_mib: u32,
    pub(crate) note: String,
    /// How many nodes shall hold it, when it was provisioned by number.
    pub(crate) count: Option<u32>,
    /// The intent: every node that shall hold it, dead or alive.
    pub(crate) wanted: BTreeMap<NodeId, Member>,
    pub(crate) trees: FunctionTrees<NodeId>,
    pub(crate) epoch: u64,
    /// Nodes that only receive, outside the trees: per stripe, who feeds them in addition to its planned children.
    pub(crate) riders: BTreeMap<NodeId, Vec<NodeId>>,
    /// The most bytes of the image that any member had.
    pub(crate) most_present: u64,
    /// Somebody said that he fetches.
    pub(crate) moving_ms: Option<u64>,
    /// Who may read the origin for a while though he is neither root nor heir, per stripe.
    pub(crate) leases: BTreeMap<u8, Lease>,
    /// Per stripe: who feeds a root that came to its place without the image while others have all of it.
    pub(crate) donors: Vec<Option<NodeId>>,
    /// The image of an update that no provision has taken up yet.
    pub(crate) next: Option<NextImage>,
}

/// The address of the registry that an image comes from; empty if it is none.
pub(crate) fn registry_of(descriptor: &Descriptor) -> String {
    match descriptor.origin() {
        Origin::Registry { base_url, .. } => base_url.clone(),
        Origin::Layout { .. } => String::new(),
    }
}

impl Function {
    pub(crate) fn info(&self) -> v1::FunctionInfo {
        v1::FunctionInfo {
            tenant: self.tenant.clone(),
            function: self.name.clone(),
            function_id: self.id.to_vec(),
            image_id: self.image.to_vec(),
            reference: self.reference.clone(),
            policy: self.trees.policy().to_string(),
            stripes: self.trees.stripes().into(),
            image_bytes: self.image_bytes,
            blobs: self.blobs,
            nodes: self.wanted.len() as u32,
            note: self.note.clone(),
            next_image_id: self.next.as_ref().map(|next| next.image.to_vec()).unwrap_or_default(),
            next_reference: self.next.as_ref().map(|next| next.reference.clone()).unwrap_or_default(),
            memory_mib: self.memory_mib,
            count: self.count.unwrap_or(0),
        }
    }

    /// What a client is shown of a member.
    pub(crate) fn progress(&self, node: &NodeId) -> v1::FunctionProgress {
        let waiting = || v1::FunctionProgress {
            function_id: self.id.to_vec(),
            image_id: self.image.to_vec(),
            state: v1::FunctionState::Waiting.into(),
            bytes_total: self.image_bytes,
            ..Default::default()
        };
        self.wanted.get(node).and_then(|member| member.progress.clone()).unwrap_or_else(waiting)
    }

    /// Whether it stands in the trees or hangs on them.
    pub(crate) fn has_place(&self, node: &NodeId) -> bool {
        self.trees.contains(node) || self.riders.contains_key(node)
    }

    /// Everybody with a place.
    pub(crate) fn placed(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.trees.members().chain(self.riders.keys().copied())
    }

    /// From whom a member receives; `None`: the origin, or nobody yet.
    pub(crate) fn parent(&self, stripe: u8, node: &NodeId) -> Option<NodeId> {
        let host = || self.riders.get(node)?.get(usize::from(stripe)).copied();
        self.trees.parent(stripe, node).or_else(host)
    }

    /// The nodes that receive from it only.
    pub(crate) fn riders_of(&self, stripe: u8, host: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let rides = move |hosts: &Vec<NodeId>| hosts.get(usize::from(stripe)) == Some(&host);
        self.riders.iter().filter(move |(_, hosts)| rides(hosts)).map(|(rider, _)| *rider)
    }

    /// Its planned children: those in the tree and those that only receive.
    pub(crate) fn children(&self, stripe: u8, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.trees.children(stripe, &node).chain(self.riders_of(stripe, node))
    }

    /// Whether it is counted as there: not on its way out.
    pub(crate) fn stays(&self, node: &NodeId) -> bool {
        self.wanted.get(node).is_some_and(|member| member.leaving.is_none())
    }

    /// The root and the heir of every stripe.
    pub(crate) fn leaders(&self) -> Vec<Leaders> {
        (0..self.trees.stripes()).map(|stripe| (self.trees.root(stripe), self.trees.heir(stripe))).collect()
    }

    /// Bytes of the image that a member is known to have.
    pub(crate) fn bytes_present(&self, node: &NodeId) -> u64 {
        let Some(member) = self.wanted.get(node) else { return 0 };
        let reported = member.progress.as_ref().map_or(0, |progress| progress.bytes_present);
        if member.is_complete() { self.image_bytes } else { reported }
    }

    /// The nodes in the trees that have less than half of what the best of them has, the poorest last.
    pub(crate) fn without_data(&self) -> Vec<NodeId> {
        let mut members: Vec<(u64, NodeId)> =
            self.trees.members().map(|node| (self.bytes_present(&node), node)).collect();
        let most = members.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0);
        members.retain(|(bytes, _)| bytes.saturating_mul(2) < most);
        // Of those that have the same the ones that came last go first: they stand lower.
        members.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        members.into_iter().map(|(_, node)| node).collect()
    }

    /// Whether a root that lacks something is to receive it from this member.
    pub(crate) fn is_donor(&self, node: &NodeId) -> bool {
        let lacks = |stripe: u8| {
            let root = self.trees.root(stripe).and_then(|root| self.wanted.get(&root));
            root.is_some_and(|root| !root.failed && !root.is_complete())
        };
        (0u8..).zip(&self.donors).any(|(stripe, donor)| *donor == Some(*node) && lacks(stripe))
    }

    /// Whether a node needs the descriptor from the controller: root, heir, who has leave to read the origin, and who only receives but has
    /// nobody from whom.
    pub(crate) fn reads_origin(&self, node: &NodeId) -> bool {
        let leads = |(root, heir): &Leaders| root.as_ref() == Some(node) || heir.as_ref() == Some(node);
        let alone = |hosts: &Vec<NodeId>| hosts.len() < usize::from(self.trees.stripes());
        self.leaders().iter().any(leads)
            || self.leases.values().any(|lease| lease.node == *node)
            || self.riders.get(node).is_some_and(alone)
    }
}
