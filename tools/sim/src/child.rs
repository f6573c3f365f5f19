//! One child of a simulated stripe: what it said, and how far the stream may be held back for it.
//!
//! The times and counts are those of the agent's worker.

use std::time::Duration;

use faasnet_relay::downstream::ChildId;
use faasnet_relay::upstream::Now;

use crate::agenda::SECOND;
use crate::io::Io;
use crate::network::ConnId;

/// See the module's documentation.
pub(crate) struct Child {
    pub(crate) conn: ConnId,
    pub(crate) wanted: bool,
    pub(crate) want: Vec<u8>,
    pub(crate) want_is_whole: bool,
    pub(crate) wants_descriptor: bool,
    pub(crate) stopping: bool,
    /// Gets blocks as they pass.
    pub(crate) attached: bool,
    budget: Duration,
    holding: Option<Now>,
    refilled: Now,
    last_said: Now,
}

/// How long a stream is held back for one child in all.
const HOLD_BUDGET: Duration = Duration::from_millis(50);
/// A hundredth of the time goes back into the budget.
const REFILL_DIVISOR: u32 = 100;
/// Blocks that may wait for a child's uplink: three in its pipe, one in its socket.
const ROOM_BLOCKS: u32 = 4;
/// Blocks from the store that may wait there.
const STORED_BLOCKS: u32 = 2;
/// A child that takes nothing for so long is cut (TCP_USER_TIMEOUT).
const STUCK: u64 = 10 * SECOND;

impl Child {
    pub(crate) fn new(conn: ConnId, wants_descriptor: bool) -> Self {
        Self {
            conn,
            wanted: false,
            want: Vec::new(),
            want_is_whole: false,
            wants_descriptor,
            stopping: false,
            attached: false,
            budget: HOLD_BUDGET,
            holding: None,
            refilled: Now::ZERO,
            last_said: Now::ZERO,
        }
    }

    pub(crate) fn id(&self) -> ChildId {
        ChildId(self.conn.0)
    }

    pub(crate) fn is_ready_for_live(&self, io: &Io<'_>) -> bool {
        self.attached && self.has_room(io)
    }

    pub(crate) fn has_room_for_stored(&self, io: &Io<'_>) -> bool {
        self.wanted && !self.stopping && io.net.queued_blocks(self.conn) < STORED_BLOCKS
    }

    /// Whether the stream should wait a moment for this child to make room; detaches it when it has waited enough.
    pub(crate) fn holds_stream(&mut self, io: &Io<'_>) -> bool {
        if !self.attached {
            return false;
        }
        let now = io.now();
        let refill = now.saturating_sub(self.refilled) / REFILL_DIVISOR;
        (self.budget, self.refilled) = ((self.budget + refill).min(HOLD_BUDGET), now);
        let held = self.holding.take().map_or(Duration::ZERO, |since| now.saturating_sub(since));
        self.budget = self.budget.saturating_sub(held);
        if self.has_room(io) {
            return false;
        }
        self.attached = !self.budget.is_zero();
        self.holding = self.attached.then_some(now);
        self.attached
    }

    /// Whether it has heard nothing for so long that it has to be told that we live.
    pub(crate) fn is_quiet(&self, io: &Io<'_>) -> bool {
        let last = self.last_said.max(Duration::from_nanos(io.net.conn(self.conn).last_progress));
        io.net.is_queue_empty(self.conn) && io.now().saturating_sub(last) >= io.patience.waiting_every
    }

    pub(crate) fn said(&mut self, io: &Io<'_>) {
        self.last_said = io.now();
    }

    /// Whether it takes nothing any more.
    pub(crate) fn is_stuck(&self, io: &Io<'_>) -> bool {
        !io.net.is_queue_empty(self.conn) && io.net.now() > io.net.conn(self.conn).last_progress + STUCK
    }

    fn has_room(&self, io: &Io<'_>) -> bool {
        io.net.queued_blocks(self.conn) < ROOM_BLOCKS
    }
}
