//! What a simulated agent may touch: the network, its disk, the directory of addresses, and the tally of what happened.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use faasnet_api::{BlockIndex, NodeId, Stripe};
use faasnet_relay::plan::{Patience, Target};
use faasnet_relay::upstream::Now;
use faasnet_relay::wire::{Frame, HEADER_BYTES, Kind};

use crate::agenda::{MICROSECOND, Time};
use crate::cluster::Event;
use crate::network::{ChildEnd, ConnId, Content, Host, Item, Network};
use crate::plan::Bug;
use crate::random::Random;

/// What a stripe has to tell the controller.
#[derive(Debug)]
pub(crate) enum Report {
    /// An edge was given up.
    EdgeFailed { function: usize, stripe: Stripe, target: Target, reason: String, wrong_bytes: bool },
    /// Nobody is left to receive from.
    OriginWanted { function: usize, stripe: Stripe },
}

/// Sums over the whole cluster, and what must never happen.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) violations: Vec<String>,
    pub(crate) damaged_blocks: u64,
    pub(crate) edges_failed: u64,
    pub(crate) reparented: u64,
    pub(crate) most_children: usize,
}

impl Tally {
    pub(crate) fn violate(&mut self, what: String) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(what);
        }
    }
}

/// Who has which address.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    hosts: HashMap<NodeId, Host>,
    ids: Vec<NodeId>,
}

impl Directory {
    pub(crate) fn add(&mut self, id: NodeId) {
        self.hosts.insert(id, self.ids.len());
        self.ids.push(id);
    }

    pub(crate) fn host(&self, id: NodeId) -> Option<Host> {
        self.hosts.get(&id).copied()
    }

    pub(crate) fn id(&self, host: Host) -> NodeId {
        self.ids[host]
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn address(host: Host) -> SocketAddr {
        let [_, high, middle, low] = (host as u32).to_be_bytes();
        SocketAddr::from((Ipv4Addr::new(10, high, middle, low), 7410))
    }

    fn host_at(&self, address: SocketAddr) -> Option<Host> {
        let SocketAddr::V4(address) = address else { return None };
        let [_, high, middle, low] = address.ip().octets();
        Some(u32::from_be_bytes([0, high, middle, low]) as Host).filter(|host| *host < self.ids.len())
    }
}

/// A disk that takes writes one after another.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) rate: u64,
    free: Time,
    writing: u32,
}

/// Buffers of a worker: so many blocks may wait for the disk.
const BUFFERS: u32 = 20;
/// From the last byte of a write to its completion.
const WRITE_LATENCY: Time = 100 * MICROSECOND;
const MAX_VIOLATIONS: usize = 20;

impl Disk {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), free: 0, writing: 0 }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.writing >= BUFFERS
    }

    /// Begins a write; the completion is an event.
    pub(crate) fn write(
        &mut self,
        net: &mut Network,
        host: Host,
        incarnation: u64,
        function: usize,
        block: BlockIndex,
        len: u32,
    ) {
        self.writing += 1;
        self.free = self.free.max(net.now()) + u64::from(len) * 1_000_000_000 / self.rate;
        net.agenda.at(self.free + WRITE_LATENCY, Event::Written { host, incarnation, function, block });
    }

    pub(crate) fn written(&mut self) {
        self.writing = self.writing.saturating_sub(1);
    }

    /// The process died; nothing is in its buffers any more.
    pub(crate) fn forget(&mut self) {
        self.writing = 0;
    }
}

/// See the module's documentation.
pub(crate) struct Io<'a> {
    pub(crate) net: &'a mut Network,
    pub(crate) directory: &'a Directory,
    pub(crate) disk: &'a mut Disk,
    pub(crate) tally: &'a mut Tally,
    pub(crate) reports: &'a mut Vec<Report>,
    pub(crate) random: &'a mut Random,
    pub(crate) host: Host,
    pub(crate) me: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) patience: Patience,
    pub(crate) bug: Option<Bug>,
    pub(crate) damaged: f64,
}

impl Io<'_> {
    pub(crate) fn now(&self) -> Now {
        Duration::from_nanos(self.net.now())
    }

    pub(crate) fn end(&self, function: usize, stripe: usize) -> ChildEnd {
        ChildEnd { host: self.host, function, stripe }
    }

    /// The host that a target means; the origin is the last one.
    pub(crate) fn resolve(&self, target: Target) -> Option<Host> {
        match target {
            Target::Node(id, _) => self.directory.host(id),
            Target::Address(address) => self.directory.host_at(address),
            Target::Origin => Some(self.directory.len()),
        }
    }

    pub(crate) fn send_block(&mut self, conn: ConnId, block: BlockIndex, len: u32, mut content: Content) {
        if self.damaged > 0.0 && self.random.chance(self.damaged) {
            self.tally.damaged_blocks += 1;
            content = Content::Damaged;
        }
        self.net.send_down(conn, Item::Block { block, len, content });
    }

    /// Whether something that arrived on a link lies unread, or its end does.
    pub(crate) fn has_unread(&self, conn: ConnId) -> bool {
        let conn = self.net.conn(conn);
        !conn.inbox.is_empty() || conn.child_sees_end
    }

    /// Reads a frame that a simulated agent has encoded.
    pub(crate) fn parse<'b>(&mut self, bytes: &'b [u8]) -> (Frame, &'b [u8]) {
        parse(bytes).unwrap_or_else(|| {
            self.tally.violate(format!("{} got a frame that its neighbour should not have encoded", self.me));
            (Frame::new(Kind::Stop, 0, 0, 0), &[])
        })
    }
}

/// A frame and its payload; `None` when that is not one whole frame.
pub(crate) fn parse(bytes: &[u8]) -> Option<(Frame, &[u8])> {
    let (header, payload) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let frame = Frame::parse(header).ok()?;
    (frame.len as usize == payload.len()).then_some((frame, payload))
}

/// Cuts encoded frames that follow each other apart.
pub(crate) fn frames_of(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some(Ok(frame)) = bytes.first_chunk::<HEADER_BYTES>().map(Frame::parse) {
        let (one, rest) = bytes.split_at(frame.total_bytes().min(bytes.len()));
        frames.push(one.to_vec());
        bytes = rest;
    }
    frames
}
