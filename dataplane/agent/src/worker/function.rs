//! One function on this node: its plan, its image, its stripes, its counters.
//!
//! LIFECYCLE: assigned (descriptor unknown) → open (fetching) → complete, or failed; dropped at any time. A new image of the same
//! function is a new `Function`.

use std::sync::Arc;
use std::time::Duration;

use faasnet_api::{BlockIndex, FunctionId, ImageId, Stripe as StripeId, Ticket};
use faasnet_relay::plan::{StripePlan, Target, acquaintances};
use faasnet_relay::upstream::Now;
use faasnet_relay::wire::{Challenge, Hello, Refusal, UNSIGNED};
use faasnet_ring::{LeaseMut, Outcome};
use faasnet_store::StoredImage;

use super::io::{ConnId, Direction, DiskOp, Io, Purpose};
use super::journal::{GivenUp, Journal};
use super::mailbox::{Assignment, FunctionReport, ReportState, WorkerEvent};
use super::mover::Mover;
use super::newcomer::Newcomer;
use super::stripe::Stripe;

/// What the stripes of a function have in common.
pub(super) struct Shared {
    pub(super) function: FunctionId,
    pub(super) image: ImageId,
    pub(super) stored: Option<Arc<StoredImage>>,
    /// The control side is opening the image's file.
    pub(super) descriptor_is_opening: bool,
    pub(super) failed: Option<String>,
    pub(super) counters: Counters,
    pub(super) journal: Journal,
    since: Now,
    stripes: u8,
    term: u64,
    epoch: u64,
    ticket: Ticket,
    encoded: Option<Vec<u8>>,
}

/// What a function's report counts; payload bytes.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) bytes_received: u64,
    pub(super) bytes_refetched: u64,
    pub(super) bytes_live: u64,
    pub(super) bytes_from_store: u64,
    pub(super) bytes_copied: u64,
    pub(super) bytes_direct: u64,
    pub(super) edges_failed: u64,
    pub(super) blocks_refused: u64,
    /// The last of them, until it is reported.
    pub(super) refused: Option<BlockIndex>,
    upstreams: Vec<(StripeId, Target, u64)>,
    by_mover: Vec<(&'static str, u64)>,
}

/// See the module's documentation.
pub(super) struct Function {
    shared: Shared,
    stripes: Vec<Stripe>,
    /// Set with the last block.
    took: Option<Duration>,
}

impl Function {
    pub(super) fn new(assignment: Assignment, io: &mut Io) -> Self {
        let count = assignment.stripes.len() as u8;
        let shared = Shared {
            function: assignment.function,
            image: assignment.image,
            stored: None,
            descriptor_is_opening: false,
            failed: None,
            counters: Counters::default(),
            journal: Journal::new(count),
            since: io.now(),
            stripes: count,
            term: assignment.term,
            epoch: assignment.epoch,
            ticket: assignment.ticket,
            encoded: None,
        };
        let plans = assignment.stripes.iter().enumerate();
        let stripes = plans.map(|(index, plan)| Stripe::new(StripeId(index as u8), count, plan.clone(), io)).collect();
        let mut function = Self { shared, stripes, took: None };
        function.introduce(&assignment.stripes);
        match assignment.stored {
            Some(stored) => function.open_image(stored, io),
            None => function.tick(io),
        }
        function
    }

    pub(super) fn image(&self) -> ImageId {
        self.shared.image
    }

    pub(super) fn stripe_count(&self) -> u8 {
        self.shared.stripes
    }

    /// Whether a plan of this version is older than the one that is followed.
    pub(super) fn is_newer_than(&self, term: u64, epoch: u64) -> bool {
        (self.shared.term, self.shared.epoch) > (term, epoch)
    }

    /// Follows a plan for the same image and number of stripes.
    pub(super) fn set_plan(&mut self, assignment: Assignment, io: &mut Io) {
        self.shared.term = assignment.term;
        self.shared.epoch = assignment.epoch;
        self.shared.ticket = assignment.ticket;
        self.introduce(&assignment.stripes);
        for (stripe, plan) in self.stripes.iter_mut().zip(assignment.stripes) {
            stripe.set_plan(plan, &mut self.shared, io);
        }
        if let Some(stored) = assignment.stored {
            self.open_image(stored, io);
        }
    }

    fn introduce(&mut self, plans: &[StripePlan]) {
        for (index, stripe) in self.stripes.iter_mut().enumerate() {
            stripe.meet(acquaintances(plans, index));
        }
    }

    /// The controller's answer to a node that has nobody left.
    pub(super) fn origin_leave(&mut self, stripe: StripeId, lease: Duration, io: &mut Io) {
        if let Some(stripe) = self.stripes.get_mut(stripe.index()) {
            stripe.origin_leave(lease, &mut self.shared, io);
        }
    }

    /// The image's file is open.
    pub(super) fn open_image(&mut self, stored: Arc<StoredImage>, io: &mut Io) {
        if self.shared.stored.is_some() || stored.descriptor().id() != self.shared.image {
            return;
        }
        self.shared.stored = Some(stored);
        self.shared.descriptor_is_opening = false;
        self.shared.journal.opened = Some(self.shared.elapsed(io));
        for stripe in &mut self.stripes {
            stripe.open_image(&mut self.shared, io);
        }
        self.note_completion(io);
    }

    /// The image cannot be received here.
    pub(super) fn fail(&mut self, reason: String, io: &mut Io) {
        if self.shared.failed.is_none() {
            let (function, image) = (self.shared.function, self.shared.image);
            io.tell(WorkerEvent::Failed { function, image, reason: reason.clone() });
            self.shared.failed = Some(reason);
            // Children find a better parent at once.
            for stripe in &mut self.stripes {
                stripe.part(&mut self.shared, io);
            }
        }
    }

    /// Somebody on this host waits for these blocks.
    pub(super) fn hurry(&mut self, blocks: &[BlockIndex], io: &mut Io) {
        let Some(geometry) = self.shared.stored.as_ref().map(|stored| stored.geometry().clone()) else { return };
        for block in blocks {
            if let Some(stripe) = geometry.stripe_of(*block, self.shared.stripes) {
                self.stripes[stripe.index()].hurry(*block, &mut self.shared, io);
            }
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.shared.failed.is_some()
    }

    pub(super) fn adopt(&mut self, newcomer: Newcomer, hello: &Hello, io: &mut Io) {
        // A child's ticket must be of the tenant whose ticket this node has itself.
        let stranger = hello.ticket.is_of(self.shared.ticket.claims().tenant).err();
        let refusal = stranger.map(|error| (Refusal::Ticket, error.to_string()));
        if let Some((refusal, reason)) = refusal.or_else(|| Some((Refusal::Other, self.shared.failed.clone()?))) {
            newcomer.refuse(refusal, &reason);
            let (id, fd, _) = newcomer.into_parts();
            return io.close(id, fd);
        }
        let stripe = hello.stripe.index().min(self.stripes.len() - 1);
        self.stripes[stripe].adopt(newcomer, hello, &mut self.shared, io);
    }

    pub(super) fn link_ready(&mut self, stripe: StripeId, id: ConnId, direction: Direction, io: &mut Io) {
        self.stripes[stripe.index()].link_ready(id, direction, &mut self.shared, io);
        self.note_passage(io);
    }

    pub(super) fn child_ready(&mut self, stripe: StripeId, id: ConnId, direction: Direction, io: &mut Io) {
        self.stripes[stripe.index()].child_ready(id, direction, &mut self.shared, io);
        self.note_passage(io);
    }

    /// The driver has received for a link.
    pub(super) fn received(&mut self, stripe: StripeId, id: ConnId, buffer: LeaseMut, outcome: Outcome, io: &mut Io) {
        self.stripes[stripe.index()].received(id, buffer, outcome, &mut self.shared, io);
    }

    /// The driver has sent to a child.
    pub(super) fn sent(&mut self, stripe: StripeId, id: ConnId, outcome: Outcome, io: &mut Io) {
        self.stripes[stripe.index()].sent(id, outcome, &mut self.shared, io);
    }

    /// A block was written, or not.
    pub(super) fn wrote(&mut self, op: &DiskOp, result: std::io::Result<()>, io: &mut Io) {
        if !self.is_of_this_image(op) {
            return;
        }
        match result.and_then(|()| op.image.mark(op.block)) {
            Ok(_) => {
                match op.purpose {
                    Purpose::Keep { direct: true, len, .. } => self.shared.counters.bytes_direct += len as u64,
                    _ => op.image.went_through_cache(op.block),
                }
                self.stripes[op.stripe.index()].stored(op.block, &mut self.shared, io);
                self.note_completion(io);
            }
            Err(error) if io.keep_otherwise(op, &error) => {}
            Err(error) => self.fail(disk_error("write", op.block, &error), io),
        }
    }

    /// A block was read back for a child, or not.
    pub(super) fn loaded(&mut self, op: &DiskOp, result: std::io::Result<LeaseMut>, io: &mut Io) {
        if !self.is_of_this_image(op) {
            return;
        }
        match result {
            Ok(lease) => {
                op.image.went_through_cache(op.block);
                self.stripes[op.stripe.index()].loaded(op, lease, &mut self.shared, io);
            }
            Err(error) => self.fail(disk_error("read", op.block, &error), io),
        }
    }

    pub(super) fn tick(&mut self, io: &mut Io) {
        for stripe in &mut self.stripes {
            stripe.tick(&mut self.shared, io);
        }
        self.note_passage(io);
    }

    /// Goes on with links that waited for a buffer.
    pub(super) fn resume_starved(&mut self, io: &mut Io) {
        for stripe in &mut self.stripes {
            stripe.resume_starved(&mut self.shared, io);
        }
    }

    /// Children to which something goes, or will as soon as it is here.
    pub(super) fn active_children(&self) -> usize {
        self.stripes.iter().map(Stripe::active_children).sum()
    }

    /// Bounds what each child is sent, in bytes per second.
    pub(super) fn pace(&mut self, rate: u64) {
        self.stripes.iter_mut().for_each(|stripe| stripe.pace(rate));
    }

    /// Whether nothing is to be done before somebody says something.
    pub(super) fn is_quiet(&self) -> bool {
        (self.took.is_some() || self.shared.failed.is_some()) && self.stripes.iter().all(Stripe::is_quiet)
    }

    pub(super) fn close(self, io: &mut Io) {
        self.stripes.into_iter().for_each(|stripe| stripe.close(io));
    }

    pub(super) fn report(&self, io: &Io) -> FunctionReport {
        let Shared { counters, stored, .. } = &self.shared;
        let state = match (&self.shared.failed, stored, self.took) {
            (Some(reason), ..) => ReportState::Failed(reason.clone()),
            (None, None, _) => ReportState::Waiting,
            (None, Some(_), None) => ReportState::Fetching,
            (None, Some(_), Some(_)) => ReportState::Complete,
        };
        let (mover, mover_reason) = self.mover(io);
        FunctionReport {
            function: self.shared.function,
            image: self.shared.image,
            term: self.shared.term,
            epoch: self.shared.epoch,
            state,
            bytes_present: stored.as_ref().map_or(0, |stored| stored.bytes_present()),
            bytes_total: stored.as_ref().map_or(0, |stored| stored.geometry().image_bytes()),
            bytes_received: counters.bytes_received,
            bytes_refetched: counters.bytes_refetched,
            bytes_live: counters.bytes_live,
            bytes_from_store: counters.bytes_from_store,
            bytes_copied: counters.bytes_copied,
            bytes_direct: counters.bytes_direct,
            bytes_by_mover: counters.by_mover.clone(),
            mover,
            mover_reason,
            stale_completions: io.driver.stale_completions(),
            elapsed: self.took.unwrap_or_else(|| self.shared.elapsed(io)),
            upstreams: counters.upstreams.clone(),
            downstreams: self.stripes.iter().flat_map(Stripe::downstreams).collect(),
            levels: self.stripes.iter().map(Stripe::level).collect(),
            upstream_waits: self.stripes.iter().any(Stripe::waits),
            edges_failed: counters.edges_failed,
            blocks_refused: counters.blocks_refused,
            journal: self.shared.journal.clone(),
        }
    }

    /// How its blocks pass, and why so: what a link changed to, else what links start with.
    fn mover(&self, io: &Io) -> (&'static str, String) {
        let changed = self.stripes.iter().find_map(Stripe::mover);
        let first = (io.movers.first.name(), io.movers.reason.clone());
        changed.map_or(first, |change| (change.mover.name(), change.reason.clone()))
    }

    /// Where nothing is kept no write tells that the image is complete.
    fn note_passage(&mut self, io: &mut Io) {
        if !io.keeps {
            self.note_completion(io);
        }
    }

    fn note_completion(&mut self, io: &mut Io) {
        let complete = match io.keeps {
            true => self.shared.stored.as_ref().is_some_and(|stored| stored.is_complete()),
            false => self.stripes.iter().all(Stripe::has_passed_everything),
        };
        if complete && self.took.is_none() {
            self.took = Some(self.shared.elapsed(io));
            io.tell(WorkerEvent::Completed { function: self.shared.function, image: self.shared.image });
        }
    }

    fn is_of_this_image(&self, op: &DiskOp) -> bool {
        self.shared.stored.as_ref().is_some_and(|stored| Arc::ptr_eq(stored, &op.image))
    }
}

impl Shared {
    /// Time since the first assignment.
    pub(super) fn elapsed(&self, io: &Io) -> Duration {
        io.now().saturating_sub(self.since)
    }

    /// Writes down that an upstream was given up.
    pub(super) fn gave_up(&mut self, stripe: StripeId, upstream: Target, reason: &str, io: &Io) {
        self.counters.edges_failed += 1;
        let at = self.elapsed(io);
        self.journal.gave_up(GivenUp { at, stripe, upstream, reason: reason.to_owned() });
    }

    /// What this node answers to a parent's challenge.
    pub(super) fn hello(&self, stripe: StripeId, wants_descriptor: bool, challenge: &Challenge, io: &Io) -> Hello {
        let hello = Hello {
            function: self.function,
            image: self.image,
            node: io.me,
            term: self.term,
            epoch: self.epoch,
            ticket: self.ticket,
            address: io.data_address,
            stripe,
            stripes: self.stripes,
            wants_descriptor,
            proof: UNSIGNED,
        };
        io.trust.sign(hello, challenge)
    }

    /// The descriptor's bytes, encoded once.
    pub(super) fn encoded_descriptor(&mut self) -> Option<&[u8]> {
        if self.encoded.is_none() {
            self.encoded = self.stored.as_ref().map(|stored| stored.descriptor().encode());
        }
        self.encoded.as_deref()
    }
}

impl Counters {
    /// A block arrived from `target` by `mover`.
    pub(super) fn received(&mut self, stripe: StripeId, target: Target, mover: Mover, len: u32) {
        self.bytes_received += u64::from(len);
        match self.by_mover.iter_mut().find(|(name, _)| *name == mover.name()) {
            Some((_, bytes)) => *bytes += u64::from(len),
            None => self.by_mover.push((mover.name(), u64::from(len))),
        }
        match self.upstreams.iter_mut().find(|(of, from, _)| *of == stripe && *from == target) {
            Some((_, _, bytes)) => *bytes += u64::from(len),
            None => self.upstreams.push((stripe, target, u64::from(len))),
        }
    }
}

fn disk_error(what: &str, block: BlockIndex, error: &std::io::Error) -> String {
    let next = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "; free space in the store's file system, then provision again"
        }
        _ => "; check the disk under the store",
    };
    format!("cannot {what} block {} in the store: {error}{next}", block.0)
}
