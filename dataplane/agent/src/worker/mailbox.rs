//! What the control side and a worker say to each other, and the bounded queues that carry it.
//!
//! Commands are verbs, events are past tense. A full command queue makes the sender wait on the control side, never the worker; a full
//! event queue is counted by the worker and the event dropped, since `Report` repeats what matters.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Sender, TrySendError};
use faasnet_api::{BlockIndex, FunctionId, ImageId, NodeId, Stripe, Ticket};
pub use faasnet_relay::plan::{StripePlan, Target};
use faasnet_ring::Waker;
use faasnet_store::StoredImage;

use super::journal::Journal;
use super::newcomer::Newcomer;
use crate::link::WorkerEnded;

/// The wanted state of one function on this node.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// Which function.
    pub function: FunctionId,
    /// Which image.
    pub image: ImageId,
    /// Version of the plan: terms first, then epochs; an older one than the worker holds is ignored.
    pub term: u64,
    /// See `term`.
    pub epoch: u64,
    /// This node's permission to fetch.
    pub ticket: Ticket,
    /// One plan per stripe: 1 or 2.
    pub stripes: Vec<StripePlan>,
    /// The opened image when its descriptor is known on this node; else the worker asks its parents for the descriptor.
    pub stored: Option<Arc<StoredImage>>,
}

/// Control side → worker.
#[derive(Debug)]
pub enum WorkerCommand {
    /// Takes, or changes, a function's plan.
    Assign(Box<Assignment>),
    /// The answer to `WorkerEvent::DescriptorArrived`: the image's file is open.
    OpenImage {
        /// Which function.
        function: FunctionId,
        /// Its file and map.
        stored: Arc<StoredImage>,
    },
    /// The answer to `WorkerEvent::DescriptorArrived` when the store could not open the image.
    FailImage {
        /// Which function.
        function: FunctionId,
        /// The image that failed.
        image: ImageId,
        /// Why, for people.
        reason: String,
    },
    /// The controller's answer to `WorkerEvent::OriginWanted`.
    OriginLease {
        /// Which function.
        function: FunctionId,
        /// Which stripe.
        stripe: Stripe,
        /// How long the origin may be read; zero: not now.
        lease: Duration,
    },
    /// Forgets a function: its edges end. The store is the control side's to clean.
    Drop {
        /// Which function.
        function: FunctionId,
        /// As in `Assignment`.
        term: u64,
        /// As in `Assignment`.
        epoch: u64,
    },
    /// Somebody on this host waits for these blocks: they are asked for before others. For what is not missing it does nothing.
    Hurry {
        /// Which function.
        function: FunctionId,
        /// Which image the blocks are of.
        image: ImageId,
        /// A few.
        blocks: Vec<BlockIndex>,
    },
    /// Asks for `WorkerEvent::Reported`.
    Report,
    /// Ends the worker: edges are closed, writes in flight finish.
    Stop,
}

/// Worker → control side.
#[derive(Debug)]
pub enum WorkerEvent {
    /// A parent sent the descriptor of an image; the bytes are checked to belong to `image`.
    DescriptorArrived {
        /// Which function.
        function: FunctionId,
        /// Which image.
        image: ImageId,
        /// The encoded descriptor.
        bytes: Vec<u8>,
    },
    /// An upstream was given up.
    EdgeFailed {
        /// Which function.
        function: FunctionId,
        /// Which stripe.
        stripe: Stripe,
        /// Who it was.
        upstream: Target,
        /// Why, for people.
        reason: String,
        /// A block failed verification.
        wrong_bytes: bool,
        /// Which, in that case.
        refused: Option<BlockIndex>,
    },
    /// Nobody whom this node knows has a stripe's blocks: it asks for leave to read the origin.
    OriginWanted {
        /// Which function.
        function: FunctionId,
        /// Which stripe.
        stripe: Stripe,
    },
    /// Every block is verified and stored.
    Completed {
        /// Which function.
        function: FunctionId,
        /// Which image.
        image: ImageId,
    },
    /// The image cannot be received here (disk full, I/O error); others go on.
    Failed {
        /// Which function.
        function: FunctionId,
        /// Which image.
        image: ImageId,
        /// Why, for people.
        reason: String,
    },
    /// A `Drop` was carried out.
    Dropped {
        /// Which function.
        function: FunctionId,
    },
    /// The answer to `Report`: one row per function.
    Reported(Vec<FunctionReport>),
}

/// A function's counters on this worker.
#[derive(Debug, Clone)]
pub struct FunctionReport {
    /// Which function.
    pub function: FunctionId,
    /// Which image.
    pub image: ImageId,
    /// Plan version.
    pub term: u64,
    /// Plan version.
    pub epoch: u64,
    /// What it is doing.
    pub state: ReportState,
    /// Blocks that are verified and stored, in bytes.
    pub bytes_present: u64,
    /// The image's length; 0 while the descriptor is unknown.
    pub bytes_total: u64,
    /// Payload from upstreams, the origin included.
    pub bytes_received: u64,
    /// Payload received of blocks that were already complete here.
    pub bytes_refetched: u64,
    /// Payload sent to children as the block passed.
    pub bytes_live: u64,
    /// Payload sent to children later, from the store.
    pub bytes_from_store: u64,
    /// Payload sent to children through a user-space buffer.
    pub bytes_copied: u64,
    /// Payload written to the store past the page cache, and so without a copy.
    pub bytes_direct: u64,
    /// Payload received by each mover that was used.
    pub bytes_by_mover: Vec<(&'static str, u64)>,
    /// `"splice"`, `"registered"`, `"copy"` or `"tokio-uring"`.
    pub mover: &'static str,
    /// Why this one, for people.
    pub mover_reason: String,
    /// Of the worker that holds the function: completions of what had been closed, which it counted and did not believe.
    pub stale_completions: u64,
    /// From the first assignment to the last block, or to now.
    pub elapsed: Duration,
    /// Payload per upstream and stripe, in the order in which they were used.
    pub upstreams: Vec<(Stripe, Target, u64)>,
    /// The children that are served.
    pub downstreams: Vec<Downstream>,
    /// Edges to the root per stripe, as last told by the upstream.
    pub levels: Vec<u32>,
    /// An upstream lives and says that it has nothing to send now.
    pub upstream_waits: bool,
    /// Upstreams given up.
    pub edges_failed: u64,
    /// Blocks that failed verification.
    pub blocks_refused: u64,
    /// Where the time went.
    pub journal: Journal,
}

/// A child that is served.
#[derive(Debug, Clone, Copy)]
pub struct Downstream {
    /// In which stripe.
    pub stripe: Stripe,
    /// Who.
    pub node: NodeId,
    /// Blocks that lie here for it and are not sent.
    pub blocks_ready: u32,
    /// Bytes that its connection took, frames' headers included.
    pub bytes_sent: u64,
}

/// A function's state on a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportState {
    /// The descriptor has not arrived.
    Waiting,
    /// Blocks are missing.
    Fetching,
    /// All blocks are here.
    Complete,
    /// It cannot be received here.
    Failed(String),
}

/// What lies in a worker's queue.
pub(super) enum Mail {
    /// From the control side.
    Command(WorkerCommand),
    /// To the front: where children of a function go; `None`: it keeps them.
    Route {
        /// Which function.
        function: FunctionId,
        /// On which worker it lives.
        worker: Option<usize>,
    },
    /// The function's new image lives on another worker: its edges end, nothing is reported.
    Leave(FunctionId),
    /// From the front: a child of a function that lives here.
    Newcomer(Box<Newcomer>),
}

/// One end of a worker's queue, and the bell that wakes it.
#[derive(Clone)]
pub(super) struct Mailbox {
    queue: Sender<Mail>,
    bell: Waker,
}

impl Mailbox {
    pub(super) fn new(queue: Sender<Mail>, bell: Waker) -> Self {
        Self { queue, bell }
    }

    /// Waits, shortly, while the queue is full: for the control side only.
    pub(super) fn send(&self, mail: Mail) -> Result<(), WorkerEnded> {
        self.queue.send(mail).map_err(|_| WorkerEnded)?;
        self.bell.wake();
        Ok(())
    }

    /// Never waits: what does not fit, or finds nobody, comes back.
    pub(super) fn try_send(&self, mail: Mail) -> Result<(), TrySendError<Mail>> {
        self.queue.try_send(mail)?;
        self.bell.wake();
        Ok(())
    }
}
