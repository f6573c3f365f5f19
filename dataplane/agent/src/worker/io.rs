//! What a worker's functions share: its ring, buffers, clock, and the names of connections and disk operations.
//!
//! Owned by the worker, lent to whatever handles an event. Decides nothing about blocks.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faasnet_api::{BlockIndex, ClusterSecret, FunctionId, NodeId, Stripe, Verify};
use faasnet_relay::plan::Patience;
use faasnet_relay::upstream::Now;
use faasnet_ring::{Arena, Driver, HEADROOM_BYTES, Lease, LeaseMut, Pipe, SocketOptions, Token};
use faasnet_store::StoredImage;
use std::net::SocketAddr;
use tokio::sync::mpsc;

use super::mailbox::WorkerEvent;

/// The name of a connection, listener or waker of this worker; never used twice, so a late completion finds nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ConnId(pub(super) u32);

/// How blocks pass through this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mover {
    /// Peek, verify, then splice and tee the same bytes: forwarded bytes are not copied.
    Splice,
    /// Read, verify, write.
    Copy,
}

impl Mover {
    /// The name in reports and flags.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Splice => "splice",
            Self::Copy => "copy",
        }
    }
}

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
#[derive(Debug)]
pub(super) struct DiskOp {
    pub(super) function: FunctionId,
    /// Tells a completion for an image that was replaced meanwhile from one for the present image.
    pub(super) image: Arc<StoredImage>,
    pub(super) stripe: Stripe,
    pub(super) block: BlockIndex,
    /// `Some`: a read-back for this child; `None`: a block that is kept.
    pub(super) child: Option<ConnId>,
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
    pub(super) mover: Mover,
    pub(super) patience: Patience,
    pub(super) socket_options: SocketOptions,
    /// Of each child's pipe.
    pub(super) pipe_bytes: usize,
    pub(super) verify: Verify,
    pub(super) me: NodeId,
    pub(super) secret: ClusterSecret,
    pub(super) data_address: SocketAddr,
    pub(super) feed: SocketAddr,
    pub(super) routes: HashMap<ConnId, Route>,
    /// Between an upstream's socket and its children's pipes; empty outside of one call.
    pub(super) transit: Option<Pipe>,
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
const DISK_BIT: u64 = 1 << 63;

impl Io {
    pub(super) fn new(
        driver: Driver,
        arena: Arena,
        mover: Mover,
        config: &super::WorkerConfig,
        data_address: SocketAddr,
        transit: Option<Pipe>,
        events: mpsc::Sender<WorkerEvent>,
    ) -> Self {
        Self {
            driver,
            arena,
            mover,
            patience: config.patience,
            socket_options: config.socket_options.clone(),
            pipe_bytes: config.tuning.pipe_bytes,
            verify: config.verify,
            me: config.node,
            secret: config.secret.clone(),
            data_address,
            feed: config.feed,
            routes: HashMap::new(),
            transit,
            lost_events: 0,
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
        let token = Token(u64::from(id.0) << 1 | u64::from(direction == Direction::Write));
        match direction {
            Direction::Read => self.driver.arm_read(fd.as_fd(), token),
            Direction::Write => self.driver.arm_write(fd.as_fd(), token),
        }
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

    /// Writes a verified block into the image file.
    pub(super) fn keep(&mut self, op: DiskOp, lease: Lease, len: usize) {
        let (file, offset) = (Arc::clone(op.image.file()), self.file_offset(&op));
        let token = self.begin(op);
        self.driver.write(&file, lease, HEADROOM_BYTES..HEADROOM_BYTES + len, offset, token);
    }

    /// Reads a stored block back into `lease`, behind the room for its header.
    pub(super) fn read_back(&mut self, op: DiskOp, lease: LeaseMut, len: usize) {
        let (file, offset) = (Arc::clone(op.image.file()), self.file_offset(&op));
        let token = self.begin(op);
        self.driver.read(&file, lease, HEADROOM_BYTES..HEADROOM_BYTES + len, offset, token);
    }

    /// The operation that a completion ends.
    pub(super) fn finish(&mut self, token: Token) -> Option<DiskOp> {
        self.disk.remove(&token.0)
    }

    /// Whether writes or reads are in flight.
    pub(super) fn disk_is_busy(&self) -> bool {
        !self.disk.is_empty()
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
