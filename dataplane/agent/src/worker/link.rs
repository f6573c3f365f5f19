//! One link to an upstream: its connection, what is received on it, the little that is sent.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use faasnet_api::descriptor::MAX_DESCRIPTOR_BYTES;
use faasnet_api::{ImageId, NodeId};
use faasnet_relay::plan::Target;
use faasnet_relay::upstream::LinkId;
use faasnet_relay::wire::Frame;
use faasnet_ring::socket;

use super::inbox::Inbox;
use super::io::{ConnId, Direction, Io};
use super::mover::LinkMover;
use super::outbox::{Flushed, Outbox};

/// See the module's documentation.
pub(super) struct Link {
    pub(super) id: ConnId,
    pub(super) link: LinkId,
    /// Whom it leads to; an address gets its id with the welcome.
    pub(super) target: Target,
    pub(super) fd: OwnedFd,
    pub(super) inbox: Inbox,
    pub(super) mover: LinkMover,
    pub(super) connected: bool,
    /// The parent's challenge was answered with `Hello`.
    pub(super) greeted: bool,
    pub(super) welcomed: bool,
    /// `Want` is due as soon as the descriptor is known.
    pub(super) want_due: bool,
    /// `Want` was sent: blocks may come.
    pub(super) wanted: bool,
    /// `Stop` was sent: only what is on its way still comes.
    pub(super) stopping: bool,
    /// A block waits for a buffer.
    pub(super) starved: bool,
    descriptor: Vec<u8>,
    outbox: Outbox,
    bytes_received: u64,
}

impl Link {
    /// Begins to connect.
    pub(super) fn open(id: ConnId, link: LinkId, target: Target, io: &mut Io) -> std::io::Result<Self> {
        let address = match target {
            Target::Node(_, address) | Target::Address(address) => address,
            Target::Origin => io.feed,
        };
        // Children are seen under this node's own address, unless the way leads through another interface.
        let source =
            Some(io.data_address.ip()).filter(|ip| !ip.is_unspecified() && ip.is_ipv4() == address.ip().is_ipv4());
        let source = source.filter(|_| target != Target::Origin);
        let fd = socket::connect(address, source, &io.socket_options)?;
        io.arm(id, &fd, Direction::Write);
        let mover = LinkMover::new(&io.movers);
        Ok(Self {
            id,
            link,
            target,
            fd,
            inbox: Inbox::new(mover.mover().intake()),
            mover,
            connected: false,
            greeted: false,
            welcomed: false,
            want_due: false,
            wanted: false,
            stopping: false,
            starved: false,
            descriptor: Vec::new(),
            outbox: Outbox::default(),
            bytes_received: 0,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Queues control bytes and sends what the socket takes.
    pub(super) fn send(&mut self, bytes: Vec<u8>, io: &mut Io) -> Result<(), String> {
        self.outbox.bytes(bytes);
        self.flush(io)
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self, io: &mut Io) -> Result<(), String> {
        match self.outbox.flush(self.fd.as_fd(), None) {
            // A link sends nothing from a file.
            Flushed::Empty | Flushed::InFlight | Flushed::Cold => Ok(()),
            Flushed::Blocked => {
                io.arm(self.id, &self.fd, Direction::Write);
                Ok(())
            }
            Flushed::Failed(reason) => Err(reason),
        }
    }

    /// Whether `node` may stand at the other end.
    pub(super) fn leads_to(&self, node: NodeId, io: &Io) -> bool {
        match self.target {
            Target::Node(id, _) => id == node,
            Target::Address(_) => true,
            // The feed speaks in this node's own name.
            Target::Origin => io.me == node,
        }
    }

    /// The welcome's path names the parent that a busy one's address led to.
    pub(super) fn learn_name(&mut self, path: &[NodeId]) {
        if let (Target::Address(address), Some(node)) = (self.target, path.last()) {
            self.target = Target::Node(*node, address);
        }
    }

    /// Whether bytes have come since the last call, or lie unread because we wait for a buffer.
    pub(super) fn has_life(&mut self) -> bool {
        let received = socket::bytes_received(&self.fd).unwrap_or(0);
        let grown = received != self.bytes_received;
        self.bytes_received = received;
        grown || self.starved
    }

    /// Takes a part of the descriptor; gives it back when it is whole and belongs to `image`.
    pub(super) fn take_descriptor(
        &mut self,
        frame: &Frame,
        part: &[u8],
        image: ImageId,
    ) -> Result<Option<Vec<u8>>, String> {
        let total = frame.block as usize;
        if total > MAX_DESCRIPTOR_BYTES
            || frame.chunk as usize != self.descriptor.len()
            || frame.chunk as usize + part.len() > total
        {
            return Err("a descriptor part that does not fit".into());
        }
        self.descriptor.extend_from_slice(part);
        if self.descriptor.len() < total {
            return Ok(None);
        }
        let bytes = std::mem::take(&mut self.descriptor);
        if *blake3::hash(&bytes).as_bytes() != image.0 {
            return Err("a descriptor of another image".into());
        }
        Ok(Some(bytes))
    }
}
