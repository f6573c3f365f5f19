//! Serving a stripe: what children say, and blocks from the store at each child's own pace.

use faasnet_relay::wire::{self, Kind};

use super::super::child::{Child, append_stored};
use super::super::function::Shared;
use super::super::inbox::Read;
use super::super::io::{Direction, DiskOp, FRAME_START, Io, Purpose};
use super::{Stripe, TURN};

impl Stripe {
    /// Sends a child what is queued and then what it is owed and is here, until its socket takes no more.
    pub(super) fn serve(&mut self, index: usize, shared: &mut Shared, io: &mut Io) {
        if self.children[index].cold {
            return self.warm(index, shared, io);
        }
        for turn in 0..=TURN {
            let appended = turn < TURN && self.append_from_store(index, shared, io);
            let child = &mut self.children[index];
            if let Err(reason) = child.flush(io) {
                tracing::debug!(child = %child.node, stripe = self.id.0, reason, "child lost");
                return self.remove_child(index, io);
            }
            if child.cold {
                return self.warm(index, shared, io);
            }
            if !appended {
                break;
            }
        }
        let child = &self.children[index];
        if child.outbox.queued_bytes() == 0 && self.core.downstream.owed_count(child.child_id()) > 0 {
            // Its turn may be over with more to send: readiness comes at once if so.
            if self.core.backlog(child.child_id()) > 0 && child.loading.is_none() && !child.unleased {
                io.arm(child.id, child.fd(), Direction::Write);
            }
        }
    }

    /// Queues the next stored block for a child that has little queued; false when there is none, or no room.
    fn append_from_store(&mut self, index: usize, shared: &mut Shared, io: &mut Io) -> bool {
        let Some(stored) = &shared.stored else { return false };
        let child = &mut self.children[index];
        let full = child.outbox.queued_bytes() >= stored.geometry().block_bytes() as usize;
        if !child.wanted || child.stopping || child.loading.is_some() || full {
            return false;
        }
        let id = child.child_id();
        // Caught up, all but a few: from here on blocks are passed on as they arrive, and these few in between.
        child.attached |= self.core.backlog(id) <= ATTACH_BACKLOG;
        let Some(block) = self.core.next_from_store(id) else { return self.append_being_written(index, shared, io) };
        let Some(frame) = self.core.frame_of(block) else { return false };
        if io.movers.may_splice() && append_stored(child, stored, block, frame.header()) {
            shared.counters.bytes_from_store += u64::from(frame.len);
            return true;
        }
        match io.lease_for_sending() {
            Some(lease) => {
                child.loading = Some(block);
                let image = std::sync::Arc::clone(stored);
                let purpose = Purpose::ReadBack(child.id);
                let op = DiskOp { function: shared.function, image, stripe: self.id, block, purpose };
                io.read_back(op, lease, frame.len as usize);
            }
            None => {
                child.unleased = true;
                self.core.downstream.owe_again(id, block);
            }
        }
        false
    }

    /// Has the front of a child's queue read back: it left memory after it was queued, and a worker does not wait for a disk.
    fn warm(&mut self, index: usize, shared: &Shared, io: &mut Io) {
        let child = &mut self.children[index];
        let (Some(block), Some(stored)) = (child.outbox.cold_block(), &shared.stored) else { return };
        let Some(frame) = self.core.frame_of(block) else { return };
        if child.loading.is_some() {
            // Its own turn comes when that is here.
            return;
        }
        let Some(lease) = io.lease_for_sending() else {
            child.unleased = true;
            return;
        };
        child.loading = Some(block);
        let (image, purpose) = (std::sync::Arc::clone(stored), Purpose::Warm(child.id));
        io.read_back(
            DiskOp { function: shared.function, image, stripe: self.id, block, purpose },
            lease,
            frame.len as usize,
        );
    }

    /// Queues a block that the child is owed and that is on its way to the disk, from its buffer: it need not wait for the write, nor
    /// read back what was written past the page cache.
    fn append_being_written(&mut self, index: usize, shared: &mut Shared, io: &Io) -> bool {
        let (child, Some(stored)) = (&mut self.children[index], &shared.stored) else { return false };
        if !child.attached || !child.outbox.has_room_for_lease() || !io.may_lease_for_sending() {
            return false;
        }
        let (id, downstream) = (child.child_id(), &self.core.downstream);
        let found = io.being_written(stored, self.id, |block| downstream.owes(id, block));
        let Some((block, lease)) = found else { return false };
        let Some(frame) = self.core.frame_of(block) else { return false };
        self.core.downstream.sent(id, block);
        child.outbox.leased(lease, FRAME_START..FRAME_START + frame.total_bytes());
        shared.counters.bytes_from_store += u64::from(frame.len);
        shared.counters.bytes_copied += u64::from(frame.len);
        true
    }

    /// What a child has to hear once the descriptor is known here.
    pub(super) fn greet_with_image(&mut self, index: usize, shared: &mut Shared, io: &Io) {
        let child = &mut self.children[index];
        if child.wants_descriptor
            && let Some(encoded) = shared.encoded_descriptor()
        {
            child.wants_descriptor = false;
            child.outbox.bytes(wire::encode_descriptor(encoded));
        }
        if child.want_is_whole && !child.wanted {
            child.wanted = self.core.wanted(child.child_id(), &child.want);
            if child.wanted {
                child.want = Vec::new();
                if io.movers.may_splice() {
                    child.outbox.prepare_pipe(io.pipe_bytes);
                }
            }
        }
    }

    /// Reads what a child says; an error says why it has to go.
    pub(super) fn read_child(&mut self, index: usize, shared: &mut Shared, io: &mut Io) -> Result<(), String> {
        for _ in 0..MAX_FRAMES {
            let child = &mut self.children[index];
            let (frame, payload) = match child.read() {
                Read::Blocked => break,
                Read::Frame(frame, payload) => (frame, payload),
                Read::Ended(reason) => return Err(reason),
            };
            match frame.kind {
                Kind::Want => {
                    child.take_want(frame.chunk, frame.block == 1, &payload)?;
                    self.greet_with_image(index, shared, io);
                }
                Kind::Request => {
                    let id = child.child_id();
                    if let Some(request) = self.core.demanded(id, &frame) {
                        self.ask_upstream(request, io);
                    }
                }
                Kind::Stop => {
                    (child.stopping, child.attached) = (true, false);
                    let id = child.child_id();
                    self.core.downstream.set_owed(id, Default::default());
                }
                other => return Err(format!("a {other:?} frame that a child does not send")),
            }
        }
        let child = &self.children[index];
        io.arm(child.id, child.fd(), Direction::Read);
        Ok(())
    }

    /// Children to which something goes, or will as soon as it is here.
    pub(in super::super) fn active_children(&self) -> usize {
        let owed = |child: &Child| self.core.downstream.owed_count(child.child_id()) > 0;
        self.children.iter().filter(|child| child.outbox.queued_bytes() > 0 || owed(child)).count()
    }

    /// Bounds what each child is sent, in bytes per second.
    pub(in super::super) fn pace(&mut self, rate: u64) {
        for child in self.children.iter_mut().filter(|child| child.pacing_rate != rate) {
            child.pacing_rate = rate;
            // Ignored: a socket that has broken is found by its next bytes.
            let _ = faasnet_ring::socket::set_pacing_rate(child.fd(), rate);
        }
    }

    pub(super) fn remove_child(&mut self, index: usize, io: &mut Io) {
        let child: Child = self.children.remove(index);
        self.core.downstream.remove(child.child_id());
        io.close(child.id, child.into_fd());
    }
}

/// A child that is owed no more stored blocks than this is attached again; a pipe holds as many.
const ATTACH_BACKLOG: u32 = 4;
/// Frames that one child may send before others get their turn.
const MAX_FRAMES: usize = 32;
