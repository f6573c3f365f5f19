//! Receiving a stripe: frames from the links, each block verified, passed on live, and kept.

use std::os::fd::AsFd;
use std::sync::Arc;

use faasnet_api::BlockIndex;
use faasnet_relay::plan::Target;
use faasnet_relay::stripe::StripeRelay;
use faasnet_relay::upstream::Now;
use faasnet_relay::wire::{self, Frame, Kind, Refusal, WaitingFor};
use faasnet_ring::HEADROOM_BYTES;
use faasnet_store::StoredImage;

use super::super::child::Child;
use super::super::forward::{Forwarded, discard, forward};
use super::super::function::Shared;
use super::super::inbox::{Arrival, Judge, Step};
use super::super::io::{ConnId, Direction, DiskOp, Io, Purpose};
use super::super::link::Link;
use super::super::mailbox::WorkerEvent;
use super::super::mover::Intake;
use super::super::pass::pass;
use super::{LinkEnd, Stripe, TURN};

/// The largest block frame.
const MAX_FRAME_BYTES: usize = faasnet_api::MAX_BLOCK_BYTES as usize + wire::HEADER_BYTES;

impl Stripe {
    pub(super) fn pump_by_id(&mut self, id: ConnId, shared: &mut Shared, io: &mut Io) {
        if let Err(end) = self.pump(id, false, shared, io) {
            self.end_link(id, end, io);
        }
    }

    /// Goes on with links that waited for a buffer.
    pub(in super::super) fn resume_starved(&mut self, shared: &mut Shared, io: &mut Io) {
        for id in self.links.iter().filter(|link| link.starved).map(|link| link.id).collect::<Vec<_>>() {
            self.pump_by_id(id, shared, io);
        }
    }

    /// Receives frames from a link until it has no more, or its turn is over. `fired`: it was just reported readable.
    pub(super) fn pump(
        &mut self,
        id: ConnId,
        mut fired: bool,
        shared: &mut Shared,
        io: &mut Io,
    ) -> Result<(), LinkEnd> {
        let mut blocked = false;
        // Where nothing more is wanted the link is about to be closed, and that its other end was faster is nobody's failure.
        if io.stopping || !self.core.is_needed() {
            return Ok(());
        }
        for _ in 0..TURN {
            let Some(index) = self.links.iter().position(|link| link.id == id) else { return Ok(()) };
            if self.links[index].inbox.is_receiving() {
                return Ok(());
            }
            let now = io.now();
            if self.must_hold(index, now, io) || self.runs_ahead(index, now, shared) {
                self.links[index].starved = true;
                return Ok(());
            }
            let Link { fd, inbox, wanted, starved, .. } = &mut self.links[index];
            let judge = LinkJudge { core: &self.core, children: &self.children, wanted: *wanted, keeps: io.keeps };
            *starved = false;
            match inbox.step(fd.as_fd(), &io.arena, now, std::mem::take(&mut fired), &judge) {
                Step::Blocked => {
                    blocked = true;
                    break;
                }
                Step::NoLease => {
                    *starved = true;
                    return Ok(());
                }
                Step::Receive(lease, range) => {
                    let token = io.token(id, Direction::Read);
                    io.driver.receive(fd.as_fd(), lease, range, token);
                    return Ok(());
                }
                Step::Control(frame, payload) => self.control(index, &frame, payload, shared, io)?,
                Step::Block(arrival) => {
                    self.arrived(index, arrival, shared, io)?;
                    if !self.core.is_needed() {
                        // The link ends as planned; whether the parent was faster in ending it is nobody's failure.
                        return Ok(());
                    }
                }
                Step::Unseen(block, frame) => {
                    self.unseen(index, block, &frame, shared, io)?;
                    if !self.core.is_needed() {
                        return Ok(());
                    }
                }
                Step::Ended(reason) => return Err(LinkEnd::new(reason)),
            }
        }
        if let Some(link) = self.links.iter_mut().find(|link| link.id == id) {
            if !blocked {
                link.inbox.await_header(link.fd.as_fd()).map_err(|error| LinkEnd::new(error.to_string()))?;
            }
            io.arm(id, link.fd(), Direction::Read);
        }
        Ok(())
    }

    /// Whether an attached child is to be given a moment to make room for the next block.
    fn must_hold(&mut self, link: usize, now: Now, io: &Io) -> bool {
        let in_socket = self.links[link].inbox.intake() == Intake::Whole;
        // All of them are asked: each counts its own waiting.
        let holds = |child: &mut Child| child.holds_stream(io, in_socket, MAX_FRAME_BYTES, now);
        self.children.iter_mut().map(holds).fold(false, |any, holds| any | holds)
    }

    /// Whether this node is so far ahead of all its children that its parent's uplink is better spent on others.
    fn runs_ahead(&mut self, link: usize, now: Now, shared: &Shared) -> bool {
        let Some(stored) = &shared.stored else { return false };
        // A link that is being greeted, or left, brings words that must be heard and blocks that were sent already.
        if !self.links[link].wanted || self.links[link].stopping {
            return false;
        }
        if self.pace.is_due(now) {
            let fastest = self.children.iter_mut().map(Child::sent_since_last).max();
            self.pace.turn(now, fastest.unwrap_or(0));
        }
        let core = &self.core;
        let taking = self.children.iter().filter(|child| child.wanted && !child.stopping);
        let backlog = taking
            .filter(|child| core.downstream.owed_count(child.child_id()) > 0)
            .map(|child| core.backlog(child.child_id()))
            .min();
        let block_bytes = u64::from(stored.geometry().block_bytes());
        backlog.is_some_and(|blocks| self.pace.should_wait(now, u64::from(blocks) * block_bytes))
    }

    fn control(
        &mut self,
        index: usize,
        frame: &Frame,
        payload: Vec<u8>,
        shared: &mut Shared,
        io: &mut Io,
    ) -> Result<(), LinkEnd> {
        let wants_descriptor = !self.core.has_image();
        let (link, now) = (&mut self.links[index], io.now());
        let upstreams = &mut self.core.upstreams;
        let malformed = |error: wire::WireError| LinkEnd::new(error.to_string());
        upstreams.heard(link.link, now);
        match frame.kind {
            Kind::Challenge if !link.greeted => {
                let challenge = wire::Challenge::parse(&payload).map_err(malformed)?;
                if !link.leads_to(challenge.node, io) {
                    return Err(LinkEnd::new(format!("node {} answers at this address", challenge.node.short())));
                }
                link.greeted = true;
                let hello = shared.hello(self.id, wants_descriptor, &challenge, io);
                link.send(hello.encode(), io).map_err(LinkEnd::new)?;
            }
            Kind::Welcome if link.greeted => {
                let path = wire::parse_path(frame.kind, &payload).map_err(malformed)?;
                if path.is_empty() != (link.target == Target::Origin) {
                    return Err(LinkEnd::new("a welcome with an impossible path"));
                }
                link.welcomed = true;
                tracing::debug!(stripe = self.id.0, link = link.link.0, levels = path.len(), "welcomed");
                link.learn_name(&path);
                upstreams.welcomed(link.link, now, path);
                let elapsed = shared.elapsed(io);
                shared.journal.welcomed.get_or_insert(elapsed);
            }
            _ if frame.kind == Kind::Refused => {
                let text = String::from_utf8_lossy(&payload).into_owned();
                upstreams.refused(link.link, now, Refusal::from_frame(frame), &text);
            }
            Kind::Busy => upstreams.busy(link.link, now, &wire::parse_busy(&payload).map_err(malformed)?),
            Kind::Waiting => upstreams.waiting(link.link, now, WaitingFor::from_frame(frame)),
            Kind::Path if link.welcomed => {
                tracing::debug!(stripe = self.id.0, link = link.link.0, "the path changed");
                upstreams.path_changed(link.link, now, wire::parse_path(frame.kind, &payload).map_err(malformed)?);
            }
            Kind::Descriptor if link.welcomed => {
                if let Some(bytes) = link.take_descriptor(frame, &payload, shared.image).map_err(LinkEnd::new)?
                    && shared.stored.is_none()
                    && !shared.descriptor_is_opening
                {
                    let (function, image) = (shared.function, shared.image);
                    shared.descriptor_is_opening = io.tell(WorkerEvent::DescriptorArrived { function, image, bytes });
                    if !shared.descriptor_is_opening {
                        return Err(LinkEnd::new("the control side is too busy to take the descriptor"));
                    }
                }
            }
            other => return Err(LinkEnd::new(format!("a {other:?} frame that an upstream does not send now"))),
        }
        Ok(())
    }

    fn arrived(&mut self, index: usize, arrival: Arrival, shared: &mut Shared, io: &mut Io) -> Result<(), LinkEnd> {
        let Some(stored) = shared.stored.clone() else { return Err(LinkEnd::new("a block before the descriptor")) };
        let Arrival { block, frame, lease, in_socket } = arrival;
        let (len, total) = (frame.len as usize, frame.total_bytes());
        let link = &self.links[index];
        shared.counters.received(self.id, link.target, link.mover.mover(), frame.len);
        self.pace.received(frame.len.into());
        // Verified here, before a single byte of it goes to a child or to the map.
        let began = io.now();
        let right = stored.descriptor().verify(block, &lease[HEADROOM_BYTES..HEADROOM_BYTES + len], io.verify);
        shared.journal.verified(shared.elapsed(io), io.now().saturating_sub(began));
        if !right {
            shared.counters.blocks_refused += 1;
            shared.counters.refused = Some(block);
            return Err(LinkEnd { reason: format!("block {} failed verification", block.0), wrong_bytes: true });
        }
        if self.core.received(block) {
            self.core.upstreams.block(link.link, io.now());
            let at = shared.elapsed(io);
            shared.journal.stalls[self.id.index()].block(at);
        } else {
            // Not a sign that the stream goes on: an upstream that repeats itself is left like one that sends nothing.
            shared.counters.bytes_refetched += u64::from(frame.len);
            return if in_socket { discard(link.fd(), total).map_err(LinkEnd::new) } else { Ok(()) };
        }
        let live = self.take_live(block, total, in_socket, io);
        let lease = lease.freeze();
        let forwarded = if in_socket {
            let transit = io.transit(self.links[index].mover.is_gauge_due());
            forward(self.links[index].fd(), &transit, &lease, total, &mut self.children, &live)
        } else {
            let copied = live.iter().map(|&child| self.children[child].append_rest(&lease, 0, total)).sum();
            Ok(Forwarded { copied, fragment_bytes: None })
        };
        let forwarded = forwarded.map_err(LinkEnd::new);
        shared.counters.bytes_live += (live.len() * len) as u64;
        if let Ok(Forwarded { copied, fragment_bytes }) = forwarded {
            shared.counters.bytes_copied += copied as u64;
            self.adapt(index, fragment_bytes);
        }
        self.keep(block, stored, lease, len, shared, io);
        for index in live.into_iter().rev() {
            self.serve(index, shared, io);
        }
        forwarded.map(|_| ())
    }

    /// Lets a link go by the fragments in which its bytes come.
    fn adapt(&mut self, index: usize, fragment_bytes: Option<usize>) {
        let link = &mut self.links[index];
        match fragment_bytes.map(|bytes| link.mover.measured(bytes)) {
            None => link.mover.passed(),
            Some(None) => {}
            Some(Some(change)) => {
                tracing::info!(stripe = self.id.0, upstream = ?link.target, mover = change.mover.name(), reason = change.reason, "mover changed");
                link.inbox.set_intake(change.mover.intake());
                self.mover = Some(change);
            }
        }
        if link.mover.is_gauge_due() && self.children.iter().any(Child::can_be_piped_to) {
            link.inbox.leave_next_in_socket();
        }
    }

    /// Passes a block on that lies in the socket, without looking at it.
    fn unseen(
        &mut self,
        index: usize,
        block: BlockIndex,
        frame: &Frame,
        shared: &mut Shared,
        io: &mut Io,
    ) -> Result<(), LinkEnd> {
        let (total, link) = (frame.total_bytes(), &self.links[index]);
        shared.counters.received(self.id, link.target, link.mover.mover(), frame.len);
        self.core.upstreams.block(link.link, io.now());
        let at = shared.elapsed(io);
        shared.journal.stalls[self.id.index()].block(at);
        let live = if self.core.received(block) { self.take_live(block, total, true, io) } else { Vec::new() };
        let transit = io.transit(self.links[index].mover.is_gauge_due());
        let passed = pass(self.links[index].fd(), &transit, total, &mut self.children, &live);
        shared.counters.bytes_live += live.len() as u64 * u64::from(frame.len);
        let Forwarded { copied, fragment_bytes } = passed.map_err(LinkEnd::new)?;
        shared.counters.bytes_copied += copied as u64;
        self.adapt(index, fragment_bytes);
        for index in live.into_iter().rev() {
            self.serve(index, shared, io);
        }
        Ok(())
    }

    /// Indexes of the children that get `block` now.
    fn take_live(&mut self, block: BlockIndex, total: usize, in_socket: bool, io: &Io) -> Vec<usize> {
        let (mut ids, children) = (Vec::new(), &self.children);
        let ready = |id| {
            let child = children.iter().find(|child| child.child_id() == id);
            // Where nothing is kept it is now or never.
            child.is_some_and(|child| child.is_ready_for_live(io, in_socket, total) || (!io.keeps && child.attached))
        };
        self.core.downstream.forward(block, ready, &mut ids);
        (0..self.children.len()).filter(|&index| ids.contains(&self.children[index].child_id())).collect()
    }

    fn keep(
        &mut self,
        block: BlockIndex,
        stored: Arc<StoredImage>,
        lease: faasnet_ring::Lease,
        len: usize,
        shared: &Shared,
        io: &mut Io,
    ) {
        if !io.keeps {
            return;
        }
        let purpose = Purpose::Keep { lease, len, direct: false, ticks: 0 };
        // Whoever did not get it live gets it from the store.
        let read_soon = self.core.downstream.is_owed(block);
        io.keep(DiskOp { function: shared.function, image: stored, stripe: self.id, block, purpose }, read_soon);
    }
}

/// What the inbox may know of the stripe.
struct LinkJudge<'a> {
    core: &'a StripeRelay,
    children: &'a [Child],
    wanted: bool,
    keeps: bool,
}

impl Judge for LinkJudge<'_> {
    fn expect(&self, frame: &Frame) -> Result<BlockIndex, String> {
        if !self.wanted {
            return Err("a block before it was asked for".into());
        }
        self.core.expect(frame).map_err(|error| error.to_string())
    }

    fn passes_unseen(&self, block: BlockIndex) -> bool {
        let mut attached = self.children.iter().filter(|child| child.attached);
        !self.keeps && self.core.downstream.is_owed(block) && attached.all(Child::can_be_piped_to)
    }

    fn wants_peek(&self, block: BlockIndex) -> bool {
        self.core.downstream.is_owed(block) && self.children.iter().any(Child::can_be_piped_to)
    }
}
