//! One function on one simulated node: its file, its plan, its stripes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use faasnet_api::{BlockIndex, FunctionId, Geometry, ImageId, Stripe as StripeId, Ticket};
use faasnet_relay::blocks::BlockSet;
use faasnet_relay::plan::{StripePlan, Target, acquaintances};
use faasnet_relay::wire::{Hello, UNSIGNED};

use crate::agenda::{MILLISECOND, Time};
use crate::cluster::Event;
use crate::io::{Directory, Io};
use crate::network::{ChildEnd, ConnId, Host};
use crate::stripe::Stripe;

/// A function as the whole cluster knows it.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) index: usize,
    pub(crate) id: FunctionId,
    pub(crate) image: ImageId,
    pub(crate) geometry: Arc<Geometry>,
    pub(crate) descriptor_bytes: u64,
}

/// An image file: it outlives the process.
#[derive(Debug, Clone)]
pub(crate) struct File {
    /// Blocks whose bytes are on the disk.
    pub(crate) written: BlockSet,
    /// Blocks that the map says are there.
    pub(crate) marked: BlockSet,
}

impl File {
    pub(crate) fn new(spec: &Spec) -> Self {
        let empty = BlockSet::new(spec.geometry.blocks());
        Self { written: empty.clone(), marked: empty }
    }
}

/// An assignment, parsed.
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    pub(crate) version: (u64, u64),
    pub(crate) ticket: Vec<u8>,
    pub(crate) stripes: Vec<StripePlan>,
    pub(crate) has_descriptor: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) received_bytes: u64,
    pub(crate) refetched_bytes: u64,
    /// The longest time between two blocks of one stripe.
    pub(crate) longest_stall: Time,
    /// When the last block of each stripe arrived.
    last_block: BTreeMap<usize, Time>,
    /// Payload per stripe and upstream; `None`: the origin.
    pub(crate) upstreams: BTreeMap<(usize, Option<Host>), u64>,
}

/// What the stripes of a function have in common.
pub(crate) struct Shared {
    pub(crate) spec: Arc<Spec>,
    pub(crate) file: File,
    pub(crate) counters: Counters,
    pub(crate) version: (u64, u64),
    ticket: Vec<u8>,
    stripes: u8,
    /// The descriptor is known, and its file is being opened or is open.
    pub(crate) opening: bool,
}

/// See the module's documentation.
pub(crate) struct Function {
    pub(crate) shared: Shared,
    pub(crate) stripes: Vec<Stripe>,
    pub(crate) plans: Vec<StripePlan>,
    pub(crate) complete_at: Option<Time>,
    open: bool,
}

/// What opening an image's file takes.
const OPENING: Time = 2 * MILLISECOND;

impl Function {
    pub(crate) fn new(spec: Arc<Spec>, file: Option<File>, assignment: Assignment, io: &mut Io<'_>) -> Self {
        let count = assignment.stripes.len() as u8;
        let stripes = (0u8..).zip(&assignment.stripes);
        let stripes = stripes.map(|(index, plan)| Stripe::new(StripeId(index), count, plan.clone(), io)).collect();
        let has_file = file.is_some();
        let shared = Shared {
            file: file.unwrap_or_else(|| File::new(&spec)),
            spec,
            counters: Counters::default(),
            version: assignment.version,
            ticket: assignment.ticket,
            stripes: count,
            opening: false,
        };
        let mut function = Self { shared, stripes, plans: assignment.stripes, complete_at: None, open: false };
        if assignment.has_descriptor || has_file {
            function.shared.descriptor_arrived(io);
        }
        function.introduce();
        function.tick(io);
        function
    }

    pub(crate) fn follow(&mut self, assignment: Assignment, io: &mut Io<'_>) {
        self.shared.version = assignment.version;
        self.shared.ticket = assignment.ticket;
        if assignment.has_descriptor {
            self.shared.descriptor_arrived(io);
        }
        for (before, after) in self.plans.iter().zip(&assignment.stripes) {
            io.tally.reparented += u64::from(before.upstream != after.upstream);
        }
        self.plans = assignment.stripes;
        self.introduce();
        for (stripe, plan) in self.stripes.iter_mut().zip(&self.plans) {
            stripe.set_plan(plan.clone(), &mut self.shared, io);
        }
    }

    fn introduce(&mut self) {
        for (index, stripe) in self.stripes.iter_mut().enumerate() {
            stripe.meet(acquaintances(&self.plans, index));
        }
    }

    /// The controller's answer to a node that has nobody left.
    pub(crate) fn origin_leave(&mut self, stripe: usize, lease: Duration, io: &mut Io<'_>) {
        if let Some(stripe) = self.stripes.get_mut(stripe) {
            stripe.origin_leave(lease, &mut self.shared, io);
        }
    }

    /// A fault: a plan that no controller made.
    pub(crate) fn cross(&mut self, index: usize, plan: StripePlan, io: &mut Io<'_>) {
        if let Some(stripe) = self.stripes.get_mut(index) {
            stripe.set_plan(plan, &mut self.shared, io);
        }
    }

    /// The image's file is open.
    pub(crate) fn open(&mut self, io: &mut Io<'_>) {
        if std::mem::replace(&mut self.open, true) {
            return;
        }
        for stripe in &mut self.stripes {
            stripe.open_image(&mut self.shared, io);
        }
        self.note_completion(io);
    }

    pub(crate) fn adopt(&mut self, conn: ConnId, hello: &Hello, io: &mut Io<'_>) {
        if let Some(stripe) = self.stripes.get_mut(hello.stripe.index()) {
            stripe.adopt(conn, hello, &mut self.shared, io);
            io.tally.most_children = io.tally.most_children.max(stripe.children());
        }
    }

    pub(crate) fn answered(&mut self, end: ChildEnd, conn: ConnId, answer: Result<(), &'static str>, io: &mut Io<'_>) {
        if let Some(stripe) = self.stripes.get_mut(end.stripe) {
            stripe.answered(conn, answer, &mut self.shared, io);
        }
    }

    pub(crate) fn link_ready(&mut self, stripe: usize, conn: ConnId, io: &mut Io<'_>) {
        if let Some(stripe) = self.stripes.get_mut(stripe) {
            stripe.link_ready(conn, &mut self.shared, io);
        }
    }

    pub(crate) fn child_ready(&mut self, stripe: usize, conn: ConnId, io: &mut Io<'_>) {
        if let Some(stripe) = self.stripes.get_mut(stripe) {
            stripe.child_ready(conn, &mut self.shared, io);
        }
    }

    /// A write has completed.
    pub(crate) fn written(&mut self, block: BlockIndex, io: &mut Io<'_>) {
        self.shared.file.written.insert(block);
        self.shared.file.marked.insert(block);
        let stripe = self.shared.spec.geometry.stripe_of(block, self.shared.stripes).map_or(0, StripeId::index);
        if let Some(stripe) = self.stripes.get_mut(stripe) {
            stripe.stored(block, &mut self.shared, io);
        }
        self.note_completion(io);
    }

    pub(crate) fn resume(&mut self, io: &mut Io<'_>) {
        for stripe in &mut self.stripes {
            stripe.resume(&mut self.shared, io);
        }
    }

    pub(crate) fn tick(&mut self, io: &mut Io<'_>) {
        for stripe in &mut self.stripes {
            stripe.tick(&mut self.shared, io);
        }
    }

    pub(crate) fn close(self, io: &mut Io<'_>) -> File {
        self.stripes.into_iter().for_each(|stripe| stripe.close(io));
        self.shared.file
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    fn note_completion(&mut self, io: &Io<'_>) {
        let blocks = self.shared.spec.geometry.blocks();
        if self.complete_at.is_none() && self.shared.file.marked.count() == blocks {
            self.complete_at = Some(io.net.now());
        }
    }
}

impl Shared {
    /// What this node says first to a parent.
    pub(crate) fn hello(&self, stripe: StripeId, wants_descriptor: bool, io: &Io<'_>) -> Hello {
        Hello {
            function: self.spec.id,
            image: self.spec.image,
            node: io.me,
            term: self.version.0,
            epoch: self.version.1,
            ticket: ticket_of(&self.ticket),
            address: Directory::address(io.host),
            stripe,
            stripes: self.stripes,
            wants_descriptor,
            proof: UNSIGNED,
        }
    }

    pub(crate) fn present_bytes(&self) -> u64 {
        u64::from(self.file.marked.count()) * u64::from(self.spec.geometry.block_bytes())
    }

    pub(crate) fn descriptor_arrived(&mut self, io: &mut Io<'_>) {
        if !std::mem::replace(&mut self.opening, true) {
            let (host, incarnation, function) = (io.host, io.incarnation, self.spec.index);
            io.net.agenda.after(OPENING, Event::Open { host, incarnation, function });
        }
    }

    pub(crate) fn received(&mut self, stripe: StripeId, from: Target, len: u32, io: &Io<'_>) {
        let now = io.net.now();
        let last = self.counters.last_block.insert(stripe.index(), now).unwrap_or(now);
        self.counters.longest_stall = self.counters.longest_stall.max(now - last);
        self.counters.received_bytes += u64::from(len);
        let from = io.resolve(from).filter(|host| *host < io.directory.len());
        *self.counters.upstreams.entry((stripe.index(), from)).or_default() += u64::from(len);
    }
}

/// What the controller signed is compared with what is asked for; signatures are not checked: simulated nodes do not lie about who they are.
fn ticket_of(bytes: &[u8]) -> Ticket {
    Ticket::from_bytes(bytes.try_into().unwrap_or([0; faasnet_api::ticket::TICKET_BYTES]))
}
