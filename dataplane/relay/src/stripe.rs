//! One stripe of one image on one node: what has arrived, who is owed what, and where the node stands in the tree.
//!
//! The worker owns it and tells it what happened; it decides. A block passes `expect` (is this frame a block that we want?), is verified
//! by the worker, then `received` and `forward` (live), and after the disk write `stored`, from when on it can be served from the store.

use std::sync::Arc;

use faasnet_api::{BlockIndex, ChunkIndex, Geometry, NodeId, Stripe};

use crate::blocks::BlockSet;
use crate::downstream::{Admission, ChildId, Downstream, MAX_DEMANDS};
use crate::plan::{Patience, StripePlan, Target};
use crate::upstream::{Now, Upstreams};
use crate::wire::{Frame, Hello, Refusal, WaitingFor};

/// The answer to a `Hello`.
#[derive(Debug, PartialEq, Eq)]
pub enum Greeting {
    /// Send `Welcome` with the path, close the displaced connections.
    Welcome {
        /// Connections that make room.
        displaced: Vec<ChildId>,
    },
    /// Send `Busy` and close.
    Busy(Vec<std::net::SocketAddr>),
    /// Send `Refused` and close.
    Refused(Refusal, &'static str),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct StripeRelay {
    me: NodeId,
    stripe: Stripe,
    stripes: u8,
    patience: Patience,
    /// From whom.
    pub upstreams: Upstreams,
    /// To whom.
    pub downstream: Downstream,
    image: Option<ImageState>,
    told_path: Vec<NodeId>,
    /// Missing blocks for which somebody here or below waits, in the order in which they were asked for.
    hurried: Vec<BlockIndex>,
}

#[derive(Debug)]
struct ImageState {
    geometry: Arc<Geometry>,
    /// The blocks of this stripe.
    ours: BlockSet,
    /// Blocks of this stripe that have not arrived.
    missing: BlockSet,
    /// Blocks of this stripe that can be served from the store.
    present: BlockSet,
}

/// Why a block frame is not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unexpected {
    /// No descriptor yet, so nothing was asked for.
    #[error("a block arrived before it was asked for")]
    TooEarly,
    /// The image has no such block, or it has another length, or it is of another stripe.
    #[error("a block frame that does not fit the image (chunk {chunk}, block {block}, {len} bytes)")]
    NoSuchBlock {
        /// As the frame says.
        chunk: u32,
        /// As the frame says.
        block: u32,
        /// As the frame says.
        len: u32,
    },
}

impl StripeRelay {
    /// A stripe without descriptor, upstream or children.
    pub fn new(me: NodeId, stripe: Stripe, stripes: u8, plan: StripePlan, patience: Patience) -> Self {
        let mut downstream = Downstream::default();
        downstream.set_planned(&plan.children);
        let upstreams = Upstreams::new(me, plan, patience);
        Self {
            me,
            stripe,
            stripes,
            patience,
            upstreams,
            downstream,
            image: None,
            told_path: Vec::new(),
            hurried: Vec::new(),
        }
    }

    /// Follows a new plan.
    pub fn set_plan(&mut self, plan: StripePlan) {
        self.downstream.set_planned(&plan.children);
        self.upstreams.set_plan(plan);
    }

    /// The descriptor is known, and `present` are the blocks in the store.
    pub fn set_image(&mut self, geometry: Arc<Geometry>, present: &BlockSet) {
        let mut ours = BlockSet::new(geometry.blocks());
        geometry.stripe_blocks(self.stripe, self.stripes).for_each(|block| {
            ours.insert(block);
        });
        let mut held = present.clone();
        held.intersect(&ours);
        let mut missing = ours.clone();
        held.iter().for_each(|block| {
            missing.remove(block);
        });
        self.image = Some(ImageState { geometry, ours, missing, present: held });
    }

    /// Whether the descriptor is known.
    pub fn has_image(&self) -> bool {
        self.image.is_some()
    }

    /// Whether anything is still to be received.
    pub fn is_needed(&self) -> bool {
        self.image.as_ref().is_none_or(|image| !image.missing.is_empty())
    }

    /// The bitmap for `Want`.
    pub fn want_bitmap(&self) -> Vec<u8> {
        self.image.as_ref().map(|image| image.missing.to_bitmap()).unwrap_or_default()
    }

    /// Which block a `Block` frame carries.
    pub fn expect(&self, frame: &Frame) -> Result<BlockIndex, Unexpected> {
        let image = self.image.as_ref().ok_or(Unexpected::TooEarly)?;
        let geometry = &image.geometry;
        let block = geometry.block_at(ChunkIndex(frame.chunk), frame.block);
        block
            .filter(|block| image.ours.contains(*block))
            .filter(|block| geometry.place(*block).is_some_and(|place| place.len == frame.len))
            .ok_or(Unexpected::NoSuchBlock { chunk: frame.chunk, block: frame.block, len: frame.len })
    }

    /// The header under which `block` travels.
    pub fn frame_of(&self, block: BlockIndex) -> Option<Frame> {
        let place = self.image.as_ref()?.geometry.place(block)?;
        Some(Frame::new(crate::wire::Kind::Block, place.len, place.chunk.0, place.in_chunk))
    }

    /// A verified block arrived; false when it had arrived before.
    pub fn received(&mut self, block: BlockIndex) -> bool {
        self.hurried.retain(|hurried| *hurried != block);
        self.image.as_mut().is_some_and(|image| image.missing.remove(block))
    }

    /// Somebody waits for `block`: the frame that asks the upstream for it before others; none if it is here, was asked for already, or
    /// too many are.
    pub fn hurry(&mut self, block: BlockIndex) -> Option<Frame> {
        let missing = self.image.as_ref().is_some_and(|image| image.missing.contains(block));
        if !missing || self.hurried.contains(&block) || self.hurried.len() >= MAX_DEMANDS {
            return None;
        }
        self.hurried.push(block);
        self.request_of(block)
    }

    /// What a new upstream has to be asked for before others.
    pub fn hurried(&self) -> impl Iterator<Item = Frame> + '_ {
        self.hurried.iter().filter_map(|block| self.request_of(*block))
    }

    fn request_of(&self, block: BlockIndex) -> Option<Frame> {
        let place = self.image.as_ref()?.geometry.place(block)?;
        Some(Frame::new(crate::wire::Kind::Request, 0, place.chunk.0, place.in_chunk))
    }

    /// The block is on disk.
    pub fn stored(&mut self, block: BlockIndex) {
        if let Some(image) = &mut self.image {
            image.present.insert(block);
        }
    }

    /// Answers a `Hello` whose ticket, function, image and stripe have been checked.
    pub fn greet(&mut self, now: Now, id: ChildId, hello: &Hello) -> Greeting {
        if hello.stripes != self.stripes {
            return Greeting::Refused(Refusal::Protocol, "the image is cut into another number of stripes here");
        }
        if hello.node == self.me || self.path().contains(&hello.node) {
            return Greeting::Refused(Refusal::Cycle, "you stand above this node");
        }
        // Two nodes that attach to each other at the same moment: the one with the smaller id refuses, so exactly one edge comes up.
        if self.is_needed() && self.upstreams.is_attaching_to(hello.node) && self.me < hello.node {
            return Greeting::Refused(Refusal::Cycle, "this node is attaching to you");
        }
        match self.downstream.admit(now, id, hello.node, hello.address, self.patience.guest) {
            Admission::Accepted { displaced } => {
                // Who leaves this node because it has nothing may find somebody who has.
                self.upstreams.meet([Target::Node(hello.node, hello.address)]);
                Greeting::Welcome { displaced }
            }
            Admission::Busy(children) => Greeting::Busy(children),
        }
    }

    /// A child's whole `Want` arrived; false while the descriptor is unknown here (keep it and tell again).
    pub fn wanted(&mut self, id: ChildId, bitmap: &[u8]) -> bool {
        let Some(image) = &self.image else { return false };
        let mut owed = BlockSet::from_bitmap(image.geometry.blocks(), bitmap);
        owed.intersect(&image.ours);
        self.downstream.set_owed(id, owed);
        true
    }

    /// A child asks for a block before the others: the frame that passes the word on, if the block is not here either.
    pub fn demanded(&mut self, id: ChildId, frame: &Frame) -> Option<Frame> {
        let geometry = &self.image.as_ref()?.geometry;
        let block = geometry.block_at(ChunkIndex(frame.chunk), frame.block)?;
        self.downstream.demand(id, block);
        // Of the others' stripe, or not owed: nobody waits for it.
        if self.downstream.owes(id, block) { self.hurry(block) } else { None }
    }

    /// The next block for a child from the store.
    pub fn next_from_store(&mut self, id: ChildId) -> Option<BlockIndex> {
        let present = &self.image.as_ref()?.present;
        self.downstream.next_from_store(id, present)
    }

    /// How many blocks [`StripeRelay::next_from_store`] would give now, one after another.
    pub fn backlog(&self, id: ChildId) -> u32 {
        self.image.as_ref().map_or(0, |image| self.downstream.backlog(id, &image.present))
    }

    /// Ids from the root to this node. A node that needs nothing more, or has lost its upstream, begins a path.
    pub fn path(&self) -> Vec<NodeId> {
        let above = if self.is_needed() { self.upstreams.path().unwrap_or_default() } else { &[] };
        above.iter().copied().chain([self.me]).collect()
    }

    /// The path if it has changed since it was last asked for, so that the children can be told.
    pub fn changed_path(&mut self) -> Option<Vec<NodeId>> {
        let path = self.path();
        (path != self.told_path).then(|| {
            self.told_path.clone_from(&path);
            path
        })
    }

    /// What to tell a child that is owed nothing that is here.
    pub fn waiting_for(&self) -> WaitingFor {
        if self.is_needed() { self.upstreams.waiting_for() } else { WaitingFor::Progress }
    }
}

#[cfg(test)]
#[path = "stripe_tests.rs"]
mod tests;
