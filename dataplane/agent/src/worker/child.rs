//! One child: its connection, what it said, what is on its way to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use faasnet_api::{BlockIndex, NodeId};
use faasnet_relay::downstream::ChildId;
use faasnet_relay::upstream::Now;
use faasnet_ring::{Lease, Outcome, Pipe};

use super::inbox::{ControlReader, Read};
use super::io::{ConnId, Direction, FRAME_START, Io, TICK};
use super::outbox::{Flushed, Outbox};

/// See the module's documentation.
pub(super) struct Child {
    pub(super) id: ConnId,
    pub(super) node: NodeId,
    fd: OwnedFd,
    reader: ControlReader,
    pub(super) outbox: Outbox,
    /// Has `Want` arrived and been understood?
    pub(super) wanted: bool,
    /// The bitmap of `Want` while its parts arrive, or while the descriptor is unknown here.
    pub(super) want: Vec<u8>,
    pub(super) want_is_whole: bool,
    /// The child still has to be sent the descriptor.
    pub(super) wants_descriptor: bool,
    /// Said `Stop`: nothing is appended any more, the connection ends when the queue is empty.
    pub(super) stopping: bool,
    /// No buffer was free for a read-back; tried again with the next tick.
    pub(super) unleased: bool,
    /// Block that is being read back for it.
    pub(super) loading: Option<BlockIndex>,
    /// The front of its queue lies on the disk: nothing is sent before it has been read back.
    pub(super) cold: bool,
    /// `Path` to be sent when the queue is empty; only the latest counts.
    pub(super) new_path: Option<Vec<u8>>,
    /// Blocks are passed to it as they arrive. A child that falls behind is detached, served from the store at its own pace, and
    /// attached again when it has caught up.
    pub(super) attached: bool,
    /// What its connection is bounded to, in bytes per second; 0: not set by us.
    pub(super) pacing_rate: u64,
    patience: Patience,
    last_said: Now,
    said_bytes: u64,
    paced_bytes: u64,
}

/// How long the upstream may be held back so that a child which is attached can make room. A child that hiccups stays attached; one
/// that is slower than the stream uses its budget up once and is detached, so it costs its siblings [`HOLD_BUDGET`] and then 1 %.
struct Patience {
    budget: Duration,
    /// Since when the stream is held for this child.
    holding: Option<Now>,
    refilled: Now,
}

const HOLD_BUDGET: Duration = Duration::from_millis(50);
/// A hundredth of the time goes back into the budget.
const REFILL_DIVISOR: u32 = 100;

/// The longest bitmap: one bit for each of the most blocks that an image may have.
const MAX_WANT_BYTES: usize = (faasnet_api::geometry::MAX_BLOCKS / 8) as usize;

impl Child {
    pub(super) fn new(id: ConnId, node: NodeId, fd: OwnedFd, reader: ControlReader, wants_descriptor: bool) -> Self {
        Self {
            id,
            node,
            fd,
            reader,
            outbox: Outbox::default(),
            wanted: false,
            want: Vec::new(),
            want_is_whole: false,
            wants_descriptor,
            stopping: false,
            unleased: false,
            loading: None,
            cold: false,
            new_path: None,
            attached: false,
            pacing_rate: 0,
            patience: Patience { budget: HOLD_BUDGET, holding: None, refilled: Now::ZERO },
            last_said: Now::ZERO,
            said_bytes: 0,
            paced_bytes: 0,
        }
    }

    /// The relay core's name for it.
    pub(super) fn child_id(&self) -> ChildId {
        ChildId(self.id.0)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The next frame from the child.
    pub(super) fn read(&mut self) -> Read {
        self.reader.step(&self.fd)
    }

    /// Takes a part of `Want`; an error says what is wrong with it.
    pub(super) fn take_want(&mut self, first_block: u32, last: bool, part: &[u8]) -> Result<(), &'static str> {
        if self.want_is_whole || self.want.len() * 8 != first_block as usize {
            return Err("parts of a Want out of order");
        }
        if self.want.len() + part.len() > MAX_WANT_BYTES {
            return Err("a Want longer than any image");
        }
        self.want.extend_from_slice(part);
        self.want_is_whole = last;
        Ok(())
    }

    /// Whether a block that arrives now may go to this child at once.
    pub(super) fn is_ready_for_live(&self, io: &Io, in_socket: bool, frame_bytes: usize) -> bool {
        self.attached && self.has_room(io, in_socket, frame_bytes)
    }

    /// Whether the stream should wait a moment for this child to make room for a frame; detaches it when it has waited enough.
    /// `in_socket`: frames can be left in the upstream's socket for its pipe.
    pub(super) fn holds_stream(&mut self, io: &Io, in_socket: bool, frame_bytes: usize, now: Now) -> bool {
        if !self.attached {
            return false;
        }
        let refill = now.saturating_sub(self.patience.refilled) / REFILL_DIVISOR;
        (self.patience.budget, self.patience.refilled) = ((self.patience.budget + refill).min(HOLD_BUDGET), now);
        // A held stream is looked at every tick; a longer gap means that its link has gone meanwhile, and nobody was held.
        let held = self.patience.holding.take().map_or(Duration::ZERO, |since| now.saturating_sub(since).min(TICK * 2));
        self.patience.budget = self.patience.budget.saturating_sub(held);
        if self.has_room(io, in_socket, frame_bytes) {
            return false;
        }
        // Where the disk has the buffers that this child could do with, it is not the child that is slow.
        let is_ready = self.outbox.has_room_for_lease() && self.outbox.queued_bytes() <= frame_bytes;
        if is_ready && !io.may_lease_for_sending() && io.writes_are_many() {
            self.patience.holding = None;
            return true;
        }
        // Where nothing is kept a child that falls behind could never catch up.
        self.attached = !io.keeps || !self.patience.budget.is_zero();
        self.patience.holding = self.attached.then_some(now);
        self.attached
    }

    fn has_room(&self, io: &Io, in_socket: bool, frame_bytes: usize) -> bool {
        if in_socket && self.outbox.pipe_has_room(frame_bytes) {
            return true;
        }
        io.may_lease_for_sending() && self.outbox.has_room_for_lease() && self.outbox.queued_bytes() <= frame_bytes
    }

    /// Whether blocks can be left in the upstream's socket for it.
    pub(super) fn can_be_piped_to(&self) -> bool {
        self.attached && self.pipe().is_some()
    }

    /// The pipe to tee into; none when this child is served from buffers.
    pub(super) fn pipe(&self) -> Option<&Pipe> {
        self.outbox.pipe()
    }

    /// Queues the part of a frame that did not go through the pipe; `sent` bytes of the frame did. Returns the bytes queued.
    pub(super) fn append_rest(&mut self, lease: &Lease, sent: usize, total: usize) -> usize {
        if sent < total {
            self.outbox.leased(lease.clone(), FRAME_START + sent..FRAME_START + total);
        }
        total - sent
    }

    /// Sends what the socket takes; an error says why the connection is to be closed.
    pub(super) fn flush(&mut self, io: &mut Io) -> Result<(), String> {
        if self.outbox.queued_bytes() == 0
            && let Some(path) = self.new_path.take()
        {
            self.outbox.bytes(path);
        }
        let token = io.token(self.id, Direction::Write);
        let driver = io.movers.driver_sends().then_some((&mut io.driver, token));
        let flushed = self.outbox.flush(self.fd.as_fd(), driver);
        self.flushed(flushed, io)
    }

    /// The driver has sent, or not; an error says why the connection is to be closed.
    pub(super) fn sent(&mut self, outcome: Outcome, io: &mut Io) -> Result<(), String> {
        match self.outbox.sent(outcome) {
            None => Ok(()),
            Some(end) => self.flushed(end, io),
        }
    }

    fn flushed(&mut self, flushed: Flushed, io: &mut Io) -> Result<(), String> {
        if self.outbox.sent_bytes() != self.said_bytes {
            (self.said_bytes, self.last_said) = (self.outbox.sent_bytes(), io.now());
        }
        self.cold = matches!(flushed, Flushed::Cold);
        match flushed {
            Flushed::Empty if self.stopping && self.loading.is_none() => Err("stopped as it asked".into()),
            Flushed::Empty | Flushed::InFlight | Flushed::Cold => Ok(()),
            Flushed::Blocked => {
                io.arm(self.id, &self.fd, Direction::Write);
                Ok(())
            }
            Flushed::Failed(reason) => Err(reason),
        }
    }

    /// Bytes that its socket took since this was last asked.
    pub(super) fn sent_since_last(&mut self) -> u64 {
        let sent = self.outbox.sent_bytes();
        sent - std::mem::replace(&mut self.paced_bytes, sent)
    }

    /// Whether it has heard nothing for so long that it has to be told that we live.
    pub(super) fn is_quiet(&self, io: &Io) -> bool {
        self.outbox.queued_bytes() == 0 && io.now().saturating_sub(self.last_said) >= io.patience.waiting_every
    }
}

/// Shows the `len` bytes at the front of `from` to the child's pipe; returns how many it got.
pub(super) fn tee(from: &Pipe, child: &mut Child, len: usize) -> usize {
    let moved = match child.pipe().map(|pipe| from.tee_to(pipe, len)) {
        Some(Outcome::Moved(moved)) => moved,
        _ => 0,
    };
    child.outbox.piped(moved);
    moved
}

/// Moves up to `len` bytes from the front of `from` to the child's pipe; returns how many it got.
pub(super) fn hand_over(from: &Pipe, child: &mut Child, len: usize) -> usize {
    let mut done = 0;
    while done < len {
        match child.pipe().map(|pipe| from.move_to(pipe, len - done)) {
            Some(Outcome::Moved(moved)) if moved > 0 => {
                done += moved;
                child.outbox.piped(moved);
            }
            _ => break,
        }
    }
    done
}

/// Moves up to `len` bytes from the socket straight to the child's pipe; returns how many it got.
pub(super) fn fill_from(socket: BorrowedFd<'_>, child: &mut Child, len: usize) -> usize {
    let mut done = 0;
    while done < len {
        match child.pipe().map(|pipe| pipe.fill_from_socket(socket, len - done)) {
            Some(Outcome::Moved(moved)) if moved > 0 => {
                done += moved;
                child.outbox.piped(moved);
            }
            _ => break,
        }
    }
    done
}

/// A stored block on its way to a child: from the file where it is in memory, else `false`: it has to be read back.
pub(super) fn append_stored(
    child: &mut Child,
    image: &Arc<faasnet_store::StoredImage>,
    block: BlockIndex,
    header: [u8; 16],
) -> bool {
    let Some(place) = image.geometry().place(block) else { return false };
    if faasnet_ring::file::resident(image.file(), place.file_offset, place.len.into()) != Some(true) {
        return false;
    }
    child.outbox.bytes(header.to_vec());
    child.outbox.stored(image.file(), block, place.file_offset, place.len as usize);
    true
}
