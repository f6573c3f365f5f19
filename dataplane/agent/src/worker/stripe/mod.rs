//! One stripe of one function on this node: the connections around its relay core.
//!
//! Owned by the function. Every handler ends in [`Stripe::settle`], which lets the core decide and carries the decisions out.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use faasnet_api::{BlockIndex, Stripe as StripeId};
use faasnet_relay::downstream::ChildId;
use faasnet_relay::pace::Pace;
use faasnet_relay::plan::{StripePlan, Target};
use faasnet_relay::stripe::{Greeting, StripeRelay};
use faasnet_relay::upstream::UpstreamAction;
use faasnet_relay::wire::{self, Frame, Hello, Kind, WaitingFor};
use faasnet_ring::{HEADROOM_BYTES, LeaseMut, Outcome};

use super::child::Child;
use super::function::Shared;
use super::io::{ConnId, Direction, DiskOp, FRAME_START, Io, Purpose, Route};
use super::link::Link;
use super::mailbox::{Downstream, WorkerEvent};
use super::mover::Change;
use super::newcomer::Newcomer;

mod receive;
mod serve;

/// See the module's documentation.
pub(super) struct Stripe {
    id: StripeId,
    core: StripeRelay,
    links: Vec<Link>,
    children: Vec<Child>,
    pace: Pace,
    /// What the present link changed to, if it did.
    mover: Option<Change>,
}

/// Why a link ends.
struct LinkEnd {
    reason: String,
    wrong_bytes: bool,
}

/// Blocks that one link or child may move before others get their turn.
const TURN: usize = 8;

impl LinkEnd {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), wrong_bytes: false }
    }
}

impl Stripe {
    pub(super) fn new(id: StripeId, stripes: u8, plan: StripePlan, io: &Io) -> Self {
        let core = StripeRelay::new(io.me, id, stripes, plan, io.patience);
        Self { id, core, links: Vec::new(), children: Vec::new(), pace: Pace::default(), mover: None }
    }

    /// Remembers members who are not in this stripe's plan.
    pub(super) fn meet(&mut self, members: Vec<Target>) {
        self.core.upstreams.meet(members);
    }

    /// The controller's answer to a node that has nobody left.
    pub(super) fn origin_leave(&mut self, lease: Duration, shared: &mut Shared, io: &mut Io) {
        self.core.upstreams.origin_leave(io.now(), lease);
        self.settle(shared, io);
    }

    pub(super) fn set_plan(&mut self, plan: StripePlan, shared: &mut Shared, io: &mut Io) {
        self.core.set_plan(plan);
        self.settle(shared, io);
    }

    /// The descriptor is known: what is missing can be asked for, and children can be told what they need.
    pub(super) fn open_image(&mut self, shared: &mut Shared, io: &mut Io) {
        let Some(stored) = shared.stored.clone() else { return };
        let present = faasnet_relay::blocks::BlockSet::from_words(stored.geometry().blocks(), stored.present().words());
        self.core.set_image(Arc::clone(stored.geometry()), &present);
        for index in (0..self.links.len()).rev() {
            if self.links[index].want_due {
                self.send_want(index, io);
            }
        }
        for index in (0..self.children.len()).rev() {
            self.greet_with_image(index, shared, io);
            self.serve(index, shared, io);
        }
        self.settle(shared, io);
    }

    /// The mover of the present link, where it is not the one that links start with.
    pub(super) fn mover(&self) -> Option<&Change> {
        self.mover.as_ref()
    }

    /// The children that are served.
    pub(super) fn downstreams(&self) -> impl Iterator<Item = Downstream> + '_ {
        let served = self.children.iter().filter(|child| !child.stopping);
        served.map(|child| Downstream {
            stripe: self.id,
            node: child.node,
            blocks_ready: self.core.backlog(child.child_id()),
            bytes_sent: child.outbox.sent_bytes(),
        })
    }

    pub(super) fn level(&self) -> u32 {
        self.core.upstreams.level().unwrap_or(0)
    }

    /// Whether the upstream lives and has nothing to send.
    pub(super) fn waits(&self) -> bool {
        self.core.upstreams.is_told_to_wait()
    }

    /// Somebody on this host waits for `block`.
    pub(super) fn hurry(&mut self, block: BlockIndex, shared: &mut Shared, io: &mut Io) {
        if let Some(request) = self.core.hurry(block) {
            self.ask_upstream(request, io);
            self.settle(shared, io);
        }
    }

    /// Whether nothing is still to be received.
    pub(super) fn has_passed_everything(&self) -> bool {
        self.core.has_image() && !self.core.is_needed()
    }

    /// Whether anybody is connected.
    pub(super) fn is_quiet(&self) -> bool {
        self.links.is_empty() && self.children.is_empty()
    }

    /// A newcomer whose `Hello` is for this stripe and has been checked.
    pub(super) fn adopt(&mut self, newcomer: Newcomer, hello: &Hello, shared: &mut Shared, io: &mut Io) {
        let (id, fd, reader) = newcomer.into_parts();
        let (displaced, parting) = match self.core.greet(io.now(), ChildId(id.0), hello) {
            Greeting::Welcome { displaced } => (displaced, None),
            Greeting::Busy(children) => (Vec::new(), Some(wire::encode_busy(children))),
            Greeting::Refused(refusal, text) => (Vec::new(), Some(refusal.encode(text))),
        };
        if let Some(bytes) = parting {
            // Ignored: the child may be gone already; either way the connection ends here.
            let _ = faasnet_ring::socket::send(&fd, &bytes, false);
            return io.close(id, fd);
        }
        for old in displaced {
            if let Some(index) = self.children.iter().position(|child| child.child_id() == old) {
                self.remove_child(index, io);
            }
        }
        io.routes.insert(id, Route::Child(shared.function, self.id));
        let mut child = Child::new(id, hello.node, fd, reader, hello.wants_descriptor);
        child.outbox.bytes(wire::encode_path(Kind::Welcome, &self.core.path()));
        self.children.push(child);
        let index = self.children.len() - 1;
        self.greet_with_image(index, shared, io);
        self.child_ready(id, Direction::Read, shared, io);
    }

    pub(super) fn link_ready(&mut self, id: ConnId, direction: Direction, shared: &mut Shared, io: &mut Io) {
        let Some(index) = self.links.iter().position(|link| link.id == id) else { return };
        let ended = match direction {
            Direction::Read => self.pump(id, true, shared, io),
            Direction::Write if self.links[index].connected => self.links[index].flush(io).map_err(LinkEnd::new),
            Direction::Write => self.connected(index, io),
        };
        if let Err(end) = ended {
            self.end_link(id, end, io);
        }
        self.settle(shared, io);
    }

    pub(super) fn child_ready(&mut self, id: ConnId, direction: Direction, shared: &mut Shared, io: &mut Io) {
        let Some(index) = self.children.iter().position(|child| child.id == id) else { return };
        if direction == Direction::Read
            && let Err(reason) = self.read_child(index, shared, io)
        {
            tracing::debug!(child = %self.children[index].node, stripe = self.id.0, reason, "child left");
            self.remove_child(index, io);
        } else {
            self.serve(index, shared, io);
        }
        // The stream may have been held for this child.
        self.resume_starved(shared, io);
    }

    /// The driver has received for a link.
    pub(super) fn received(
        &mut self,
        id: ConnId,
        buffer: LeaseMut,
        outcome: Outcome,
        shared: &mut Shared,
        io: &mut Io,
    ) {
        let Some(link) = self.links.iter_mut().find(|link| link.id == id) else { return };
        let ended = match link.inbox.received(buffer, outcome) {
            Ok(()) => self.pump(id, false, shared, io),
            Err(reason) => Err(LinkEnd::new(reason)),
        };
        if let Err(end) = ended {
            self.end_link(id, end, io);
        }
        self.settle(shared, io);
    }

    /// The driver has sent to a child.
    pub(super) fn sent(&mut self, id: ConnId, outcome: Outcome, shared: &mut Shared, io: &mut Io) {
        let Some(index) = self.children.iter().position(|child| child.id == id) else { return };
        if let Err(reason) = self.children[index].sent(outcome, io) {
            tracing::debug!(child = %self.children[index].node, stripe = self.id.0, reason, "child lost");
            self.remove_child(index, io);
        } else {
            self.serve(index, shared, io);
        }
        // The stream may have been held for this child, or for its buffer.
        self.resume_starved(shared, io);
    }

    /// A block is on disk: whoever is owed it can have it from the store.
    pub(super) fn stored(&mut self, block: BlockIndex, shared: &mut Shared, io: &mut Io) {
        self.core.stored(block);
        for index in (0..self.children.len()).rev() {
            self.serve(index, shared, io);
        }
        self.resume_starved(shared, io);
    }

    /// A block that was read back for a child is in `lease`.
    pub(super) fn loaded(&mut self, op: &DiskOp, mut lease: LeaseMut, shared: &mut Shared, io: &mut Io) {
        let (Purpose::ReadBack(id) | Purpose::Warm(id)) = op.purpose else { return };
        let child = self.children.iter().position(|child| child.id == id);
        let (Some(index), Some(frame)) = (child, self.core.frame_of(op.block)) else { return };
        let (child, end) = (&mut self.children[index], FRAME_START + frame.total_bytes());
        child.loading = None;
        if matches!(op.purpose, Purpose::Warm(_)) {
            // Counted when it was queued.
            shared.counters.bytes_copied += u64::from(frame.len);
            child.cold = false;
            child.outbox.warmed(lease.freeze(), end);
            return self.serve(index, shared, io);
        }
        lease[FRAME_START..HEADROOM_BYTES].copy_from_slice(&frame.header());
        child.outbox.leased(lease.freeze(), FRAME_START..end);
        shared.counters.bytes_from_store += u64::from(frame.len);
        shared.counters.bytes_copied += u64::from(frame.len);
        self.serve(index, shared, io);
    }

    /// Judges time-outs, goes on with what waited for a buffer, tells quiet children that we live.
    pub(super) fn tick(&mut self, shared: &mut Shared, io: &mut Io) {
        let now = io.now();
        for link in &mut self.links {
            if link.connected && link.has_life() {
                self.core.upstreams.heard(link.link, now);
            }
        }
        for id in self.links.iter().filter(|link| link.inbox.is_mid_frame()).map(|link| link.id).collect::<Vec<_>>() {
            self.pump_by_id(id, shared, io);
        }
        self.resume_starved(shared, io);
        for index in (0..self.children.len()).rev() {
            self.children[index].unleased = false;
            if self.children[index].is_quiet(io) && self.children[index].loading.is_none() {
                let waiting = wire::encode_waiting(self.waiting_for(shared));
                self.children[index].outbox.bytes(waiting.to_vec());
            }
            self.serve(index, shared, io);
        }
        self.settle(shared, io);
    }

    /// Ends every connection, since nothing can be received any more.
    pub(super) fn part(&mut self, shared: &mut Shared, io: &mut Io) {
        while !self.children.is_empty() {
            self.remove_child(0, io);
        }
        self.settle(shared, io);
    }

    /// Ends every connection.
    pub(super) fn close(mut self, io: &mut Io) {
        for link in self.links.drain(..) {
            io.close(link.id, link.into_fd());
        }
        for child in self.children.drain(..) {
            io.close(child.id, child.into_fd());
        }
    }

    fn waiting_for(&self, shared: &Shared) -> WaitingFor {
        // While the control side opens the file nothing is wrong with the upstream.
        if shared.descriptor_is_opening && shared.stored.is_none() {
            WaitingFor::Progress
        } else {
            self.core.waiting_for()
        }
    }

    fn settle(&mut self, shared: &mut Shared, io: &mut Io) {
        let needed = self.core.is_needed() && shared.failed.is_none();
        loop {
            let actions = self.core.upstreams.poll(io.now(), needed);
            if actions.is_empty() {
                break;
            }
            for action in actions {
                self.act(action, shared, io);
            }
        }
        if let Some(path) = self.core.changed_path() {
            for index in (0..self.children.len()).rev() {
                self.children[index].new_path = Some(wire::encode_path(Kind::Path, &path));
                self.serve(index, shared, io);
            }
        }
    }

    fn act(&mut self, action: UpstreamAction, shared: &mut Shared, io: &mut Io) {
        // Rare, and what a stall is understood by.
        tracing::debug!(function = %shared.function.short(), stripe = self.id.0, ?action, "upstream");
        match action {
            UpstreamAction::Connect(link, target) => {
                let id = io.route(Route::Link(shared.function, self.id));
                match Link::open(id, link, target, io) {
                    Ok(link) => {
                        self.mover = None;
                        self.links.push(link);
                    }
                    Err(error) => {
                        io.routes.remove(&id);
                        self.core.upstreams.closed(link, io.now(), &error.to_string(), false);
                    }
                }
            }
            UpstreamAction::Want(link) => {
                if let Some(index) = self.links.iter().position(|other| other.link == link) {
                    self.send_want(index, io);
                }
            }
            UpstreamAction::Stop(link) => {
                if let Some(link) = self.links.iter_mut().find(|other| other.link == link) {
                    link.stopping = true;
                    let id = link.id;
                    if let Err(reason) = link.send(Frame::new(Kind::Stop, 0, 0, 0).header().to_vec(), io) {
                        self.end_link(id, LinkEnd::new(reason), io);
                    }
                }
            }
            UpstreamAction::Close(link) => {
                if let Some(index) = self.links.iter().position(|other| other.link == link) {
                    let link = self.links.swap_remove(index);
                    io.close(link.id, link.into_fd());
                }
            }
            UpstreamAction::AskForOrigin => {
                tracing::info!(stripe = self.id.0, "nobody known has the blocks: asking for leave to read the origin");
                io.tell(WorkerEvent::OriginWanted { function: shared.function, stripe: self.id });
            }
            UpstreamAction::Report { target, reason, wrong_bytes } => {
                shared.gave_up(self.id, target, &reason, io);
                tracing::info!(stripe = self.id.0, upstream = ?target, reason, "upstream given up");
                let event = WorkerEvent::EdgeFailed {
                    function: shared.function,
                    stripe: self.id,
                    upstream: target,
                    reason,
                    wrong_bytes,
                    refused: shared.counters.refused.take().filter(|_| wrong_bytes),
                };
                io.tell(event);
            }
        }
    }

    fn connected(&mut self, index: usize, io: &mut Io) -> Result<(), LinkEnd> {
        let link = &mut self.links[index];
        faasnet_ring::socket::connect_result(link.fd())
            .map_err(|error| LinkEnd::new(format!("cannot connect: {error}")))?;
        link.inbox
            .prepare(link.fd.as_fd())
            .map_err(|error| LinkEnd::new(format!("cannot set up the connection: {error}")))?;
        link.connected = true;
        self.core.upstreams.connected(link.link, io.now());
        io.arm(link.id, link.fd(), Direction::Read);
        Ok(())
    }

    fn send_want(&mut self, index: usize, io: &mut Io) {
        let link = &mut self.links[index];
        link.want_due = !self.core.has_image();
        if link.want_due || link.wanted {
            return;
        }
        link.wanted = true;
        let mut bytes = wire::encode_want(&self.core.want_bitmap());
        self.core.hurried().for_each(|request| bytes.extend_from_slice(&request.header()));
        if let Err(reason) = link.send(bytes, io) {
            let id = link.id;
            self.end_link(id, LinkEnd::new(reason), io);
        }
    }

    /// Asks the upstream that delivers for a block out of turn. One that is not there yet is asked together with `Want`.
    fn ask_upstream(&mut self, request: Frame, io: &mut Io) {
        let Some(link) = self.links.iter_mut().find(|link| link.wanted && !link.stopping) else { return };
        if let Err(reason) = link.send(request.header().to_vec(), io) {
            let id = link.id;
            self.end_link(id, LinkEnd::new(reason), io);
        }
    }

    fn end_link(&mut self, id: ConnId, end: LinkEnd, io: &mut Io) {
        let Some(index) = self.links.iter().position(|link| link.id == id) else { return };
        let link = self.links.swap_remove(index);
        self.core.upstreams.closed(link.link, io.now(), &end.reason, end.wrong_bytes);
        io.close(link.id, link.into_fd());
    }
}
