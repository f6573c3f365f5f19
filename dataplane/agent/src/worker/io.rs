//! What a worker's functions share: its ring, buffers, clock, and the names of connections and disk operations.
//!
//! Owned by the worker, lent to whatever handles an event. Decides nothing about blocks.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faasnet_api::{BlockIndex, FunctionId, NodeId, Stripe, Verify};
use faasnet_relay::plan::Patience;
use faasnet_relay::upstream::Now;
use faasnet_ring::{Arena, Driver, HEADROOM_BYTES, Lease, LeaseMut, Pipe, SocketOptions, Token};
use faasnet_store::{StoredImage, WriteMode};
use std::net::SocketAddr;
use tokio::sync::mpsc;

use super::forward::Transit;
use super::mailbox::WorkerEvent;
use super::mover::Movers;
use crate::trust::Trust;

/// The name of a connection, listener or waker of this worker; never used twice, so a late completion finds nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ConnId(pub(super) u32);

/// Who a connection belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// The listener for children.
    Listener,
    /// The control side's wake-up.
    Waker,
    /// Accepted, `Hello` not complete or its function not known yet.
    Newcomer,
    /// A link to an upstream.
    Link(FunctionId, Stripe),
    /// A child.
    Child(FunctionId, Stripe),
}

/// What a disk operation is for.
#[derive(Debug, Clone)]
pub(super) struct DiskOp {
    pub(super) function: FunctionId,
    /// Tells a completion for an image that was replaced meanwhile from one for the present image.
    pub(super) image: Arc<StoredImage>,
    pub(super) stripe: Stripe,
    pub(super) block: BlockIndex,
    pub(super) purpose: Purpose,
}

/// See [`DiskOp`].
#[derive(Debug, Clone)]
pub(super) enum Purpose {
    /// A block that is kept: its bytes, from [`HEADROOM_BYTES`] on, and how many. [`Io::keep`] fills in the rest.
    Keep {
        lease: Lease,
        len: usize,
        /// Past the page cache.
        direct: bool,
        /// Ticks that it has seen.
        ticks: u8,
    },
    /// A read-back for this child.
    ReadBack(ConnId),
    /// The same for the block at the front of its queue, which has left memory.
    Warm(ConnId),
}

/// What became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// See the module's documentation.
pub(super) struct Io {
    pub(super) driver: Driver,
    pub(super) arena: Arena,
    pub(super) movers: Movers,
    pub(super) patience: Patience,
    pub(super) socket_options: SocketOptions,
    /// Of each child's pipe.
    pub(super) pipe_bytes: usize,
    pub(super) verify: Verify,
    /// The worker ends: nothing more is received, what is being written still is.
    pub(super) stopping: bool,
    /// False: forward-only.
    pub(super) keeps: bool,
    write_mode: WriteMode,
    writes: usize,
    disk_is_slow: bool,
    pub(super) me: NodeId,
    pub(super) trust: Trust,
    pub(super) data_address: SocketAddr,
    pub(super) feed: SocketAddr,
    pub(super) routes: HashMap<ConnId, Route>,
    transit: Option<Pipe>,
    gauge: Option<Pipe>,
    pub(super) lost_events: u64,
    events: mpsc::Sender<WorkerEvent>,
    disk: HashMap<u64, DiskOp>,
    next_conn: u32,
    next_disk: u64,
    started: Instant,
}

/// Where the header of a frame starts in a lease, so that its payload starts on a page.
pub(super) const FRAME_START: usize = HEADROOM_BYTES - faasnet_relay::wire::HEADER_BYTES;
/// Leases that only receiving may take, so that slow children cannot starve it.
const RESERVED_LEASES: usize = 4;
/// What goes to a slow disk goes through the page cache while it has more than one part in so many of the buffers.
const SLOW_SHARE: usize = 4;
/// A write that is still under way at so many ticks was on the disk for a whole one. Not judged by the clock: when this thread is kept off
/// its core, writes that have long ended look old.
pub(super) const SLOW_TICKS: u8 = 2;
/// Shorter blocks are cheaper through the page cache, which joins them.
const MIN_DIRECT_BYTES: usize = 64 << 10;
const DISK_BIT: u64 = 1 << 63;

impl Io {
    pub(super) fn new(
        driver: Driver,
        arena: Arena,
        movers: Movers,
        config: &super::WorkerConfig,
        data_address: SocketAddr,
        [transit, gauge]: [Option<Pipe>; 2],
        events: mpsc::Sender<WorkerEvent>,
    ) -> Self {
        Self {
            driver,
            arena,
            movers,
            patience: config.patience,
            socket_options: config.socket_options.clone(),
            pipe_bytes: config.tuning.pipe_bytes,
            verify: if config.forward_only { Verify::Off } else { config.verify },
            keeps: !config.forward_only,
            write_mode: config.store_write,
            writes: 0,
            disk_is_slow: false,
            me: config.node,
            trust: config.trust.clone(),
            data_address,
            feed: config.feed,
            routes: HashMap::new(),
            transit,
            gauge,
            lost_events: 0,
            stopping: false,
            events,
            disk: HashMap::new(),
            next_conn: 0,
            next_disk: 0,
            started: Instant::now(),
        }
    }

    /// Time since the worker started.
    pub(super) fn now(&self) -> Now {
        self.started.elapsed()
    }

    /// A fresh name, routed to `route`.
    pub(super) fn route(&mut self, route: Route) -> ConnId {
        self.next_conn += 1;
        let id = ConnId(self.next_conn);
        self.routes.insert(id, route);
        id
    }

    /// Asks to be told once when `fd` is readable or writable.
    pub(super) fn arm(&mut self, id: ConnId, fd: impl AsFd, direction: Direction) {
        let token = self.token(id, direction);
        match direction {
            Direction::Read => self.driver.arm_read(fd.as_fd(), token),
            Direction::Write => self.driver.arm_write(fd.as_fd(), token),
        }
    }

    /// What a completion on the connection carries.
    pub(super) fn token(&self, id: ConnId, direction: Direction) -> Token {
        Token(u64::from(id.0) << 1 | u64::from(direction == Direction::Write))
    }

    /// The pipes for a frame that passes; `measured` with the one that measures.
    pub(super) fn transit(&self, measured: bool) -> Transit<'_> {
        Transit { pipe: self.transit.as_ref(), gauge: self.gauge.as_ref().filter(|_| measured) }
    }

    /// Forgets a connection and closes it when nothing is in flight on it.
    pub(super) fn close(&mut self, id: ConnId, fd: std::os::fd::OwnedFd) {
        self.routes.remove(&id);
        self.driver.close(fd);
    }

    /// Forgets a connection that another worker takes over.
    pub(super) fn release(&mut self, id: ConnId, fd: impl AsFd) {
        self.routes.remove(&id);
        self.driver.disarm(fd.as_fd());
    }

    /// Whose readiness a token tells; `None` for disk operations and for what is gone.
    pub(super) fn ready(&self, token: Token) -> Option<(ConnId, Route, Direction)> {
        let id = ConnId((token.0 >> 1) as u32);
        let direction = if token.0 & 1 == 0 { Direction::Read } else { Direction::Write };
        (token.0 & DISK_BIT == 0).then(|| self.routes.get(&id).map(|route| (id, *route, direction))).flatten()
    }

    /// Writes a verified block into the image file. `read_soon`: somebody is about to need it from there.
    pub(super) fn keep(&mut self, mut op: DiskOp, read_soon: bool) {
        let offset = self.file_offset(&op);
        let cached = read_soon || self.disk_is_behind();
        let Purpose::Keep { lease, len, direct, ticks } = &mut op.purpose else { return };
        let wanted = match self.write_mode {
            WriteMode::Buffered => false,
            WriteMode::Direct => true,
            WriteMode::Auto => !cached && *len >= MIN_DIRECT_BYTES,
        };
        *ticks = 0;
        let file = wanted.then(|| op.image.direct_file(offset, *len as u64)).flatten();
        *direct = file.is_some();
        let file = Arc::clone(file.unwrap_or(op.image.file()));
        let (lease, range) = (lease.clone(), HEADROOM_BYTES..HEADROOM_BYTES + *len);
        self.writes += 1;
        let token = self.begin(op);
        self.driver.write(&file, lease, range, offset, token);
    }

    /// Writes a block again, through the page cache, because the file system took back that it can do direct writes. False: that was
    /// not it.
    pub(super) fn keep_otherwise(&mut self, op: &DiskOp, error: &std::io::Error) -> bool {
        let again = matches!(op.purpose, Purpose::Keep { direct: true, .. }) && op.image.gives_up_direct(error);
        if again {
            self.keep(op.clone(), false);
        }
        again
    }

    /// Whether blocks go through the page cache, which has more room than our buffers, because the disk is slow. Not because the disk has
    /// most of the buffers: a fast one has them too when this core is busy, and then writing through the page cache takes more of it.
    fn disk_is_behind(&self) -> bool {
        self.writes_are_many() && self.disk_is_slow
    }

    /// Whether so many buffers wait for the disk that others want for them.
    pub(super) fn writes_are_many(&self) -> bool {
        self.writes >= self.arena.slots() / SLOW_SHARE
    }

    /// The first block of this stripe of `image` that is being written and for which `wanted` holds, in its buffer. A function may have
    /// got another image while blocks of the old one are still being written.
    pub(super) fn being_written(
        &self,
        image: &Arc<StoredImage>,
        stripe: Stripe,
        wanted: impl Fn(BlockIndex) -> bool,
    ) -> Option<(BlockIndex, Lease)> {
        let leases = self.disk.values().filter_map(|op| match &op.purpose {
            Purpose::Keep { lease, .. } if Arc::ptr_eq(&op.image, image) && op.stripe == stripe => {
                Some((op.block, lease))
            }
            _ => None,
        });
        let first = leases.filter(|(block, _)| wanted(*block)).min_by_key(|(block, _)| *block);
        first.map(|(block, lease)| (block, lease.clone()))
    }

    /// Reads a stored block back into `lease`, behind the room for its header.
    pub(super) fn read_back(&mut self, op: DiskOp, lease: LeaseMut, len: usize) {
        let (file, offset) = (Arc::clone(op.image.file()), self.file_offset(&op));
        let token = self.begin(op);
        self.driver.read(&file, lease, HEADROOM_BYTES..HEADROOM_BYTES + len, offset, token);
    }

    /// The operation that a completion ends.
    pub(super) fn finish(&mut self, token: Token) -> Option<DiskOp> {
        let op = self.disk.remove(&token.0)?;
        self.writes -= usize::from(matches!(op.purpose, Purpose::Keep { .. }));
        Some(op)
    }

    /// Judges the disk; called every tick, when all that has completed has been taken.
    pub(super) fn judge_disk(&mut self) {
        self.disk_is_slow = false;
        for op in self.disk.values_mut() {
            if let Purpose::Keep { ticks, .. } = &mut op.purpose {
                *ticks = ticks.saturating_add(1);
                self.disk_is_slow |= *ticks >= SLOW_TICKS;
            }
        }
    }

    /// Writes past the page cache that are under way.
    #[cfg(test)]
    pub(super) fn direct_writes(&self) -> usize {
        let is_direct = |op: &&DiskOp| matches!(op.purpose, Purpose::Keep { direct: true, .. });
        self.disk.values().filter(is_direct).count()
    }

    /// Whether writes or reads are in flight.
    pub(super) fn disk_is_busy(&self) -> bool {
        !self.disk.is_empty()
    }

    /// Buffers that somebody holds.
    pub(super) fn leased_buffers(&self) -> usize {
        self.arena.slots() - self.arena.free()
    }

    /// Whether a child may hold another buffer: not when receiving would go short.
    pub(super) fn may_lease_for_sending(&self) -> bool {
        self.arena.free() > RESERVED_LEASES
    }

    /// A buffer for something that a child waits for.
    pub(super) fn lease_for_sending(&self) -> Option<LeaseMut> {
        self.may_lease_for_sending().then(|| self.arena.take()).flatten()
    }

    /// Tells the control side; false, and counted, when its queue is full. Reports repeat what matters.
    pub(super) fn tell(&mut self, event: WorkerEvent) -> bool {
        let told = self.events.try_send(event).is_ok();
        self.lost_events += u64::from(!told);
        told
    }

    fn begin(&mut self, op: DiskOp) -> Token {
        self.next_disk += 1;
        let token = self.next_disk | DISK_BIT;
        self.disk.insert(token, op);
        Token(token)
    }

    fn file_offset(&self, op: &DiskOp) -> u64 {
        // Callers take the block from the image's own geometry.
        op.image.geometry().place(op.block).map_or(0, |place| place.file_offset)
    }
}

/// How long to sleep at most while anything transfers: time-outs are judged this often.
pub(super) const TICK: Duration = Duration::from_millis(20);
