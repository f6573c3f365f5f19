//! The virtual network: hosts with an uplink and a downlink of their own rates, and connections between them.
//!
//! An uplink sends one block at a time and takes its connections in turn, so children share it evenly; a downlink takes what arrives in
//! order. A block begins to arrive while it is still being sent. A connection has a window: blocks that the receiver has not consumed
//! yet. Control frames cost no rate, only the latency, and never overtake what was sent before them on the same connection.

use std::collections::VecDeque;

use faasnet_api::BlockIndex;

use crate::agenda::{Agenda, Time};

/// One connection from a child to a parent; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnId(pub(crate) u32);

/// A host's number; the origin is the last one.
pub(crate) type Host = usize;

/// What a parent sends.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    /// An encoded control frame.
    Control(Vec<u8>),
    /// The frames of the descriptor, so many bytes.
    Descriptor(u64),
    /// A block.
    Block { block: BlockIndex, len: u32, content: Content },
}

/// What stands for the bytes of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Right,
    /// Damaged on purpose, on its way.
    Damaged,
    /// Read from a place of the disk that was never written.
    Unwritten,
}

/// What the network does to itself and to those at its ends.
#[derive(Debug)]
pub(crate) enum NetEvent {
    UplinkFree(Host),
    /// A connection attempt arrives at the parent's host.
    Knock(ConnId),
    /// The child's host learns whether the attempt succeeded.
    Answered(ConnId, Result<(), &'static str>),
    Down(ConnId, Item),
    Up(ConnId, Vec<u8>),
    /// The child's host learns that the parent's side was closed.
    ChildSees(ConnId),
    /// The parent's host learns that the child's side was closed.
    ParentSees(ConnId),
}

/// Who stands at the child's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChildEnd {
    pub(crate) host: Host,
    pub(crate) function: usize,
    pub(crate) stripe: usize,
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) child: ChildEnd,
    pub(crate) parent: Host,
    queue: VecDeque<Item>,
    queued_blocks: u32,
    in_flight: u32,
    /// Arrived at the child's host and not read yet.
    pub(crate) inbox: VecDeque<Item>,
    /// Arrived at the parent's host and not read yet.
    pub(crate) up_inbox: VecDeque<Vec<u8>>,
    /// Whether the parent's process has the connection; before that it waits in the listener's queue.
    pub(crate) child_open: bool,
    pub(crate) parent_open: bool,
    /// The other side was closed and everything before that has arrived.
    pub(crate) child_sees_end: bool,
    pub(crate) parent_sees_end: bool,
    in_turn: bool,
    last_down: Time,
    last_up: Time,
    /// When bytes arrive at the child without being a whole frame yet.
    arriving: (Time, Time),
    pub(crate) last_progress: Time,
}

#[derive(Debug)]
struct Links {
    up_rate: u64,
    down_rate: u64,
    latency: Time,
    sending: bool,
    turn: VecDeque<ConnId>,
    down_free: Time,
    /// Has power and a working card.
    up: bool,
    sent_bytes: u64,
}

/// See the module's documentation.
pub(crate) struct Network {
    pub(crate) agenda: Agenda<crate::cluster::Event>,
    conns: Vec<Conn>,
    hosts: Vec<Links>,
    window: u32,
    /// Connections whose queue got shorter: their parents may have something to add.
    pub(crate) drained: Vec<ConnId>,
}

/// Blocks in flight per connection: the receive window of an agent.
const WINDOW_BLOCKS: u32 = 4;

impl Network {
    pub(crate) fn new() -> Self {
        Self { agenda: Agenda::new(), conns: Vec::new(), hosts: Vec::new(), window: WINDOW_BLOCKS, drained: Vec::new() }
    }

    /// Rates in bytes per second; the latency is one host's half of a way.
    pub(crate) fn add_host(&mut self, up_rate: u64, down_rate: u64, latency: Time) -> Host {
        self.hosts.push(Links {
            up_rate: up_rate.max(1),
            down_rate: down_rate.max(1),
            latency,
            sending: false,
            turn: VecDeque::new(),
            down_free: 0,
            up: true,
            sent_bytes: 0,
        });
        self.hosts.len() - 1
    }

    pub(crate) fn now(&self) -> Time {
        self.agenda.now()
    }

    pub(crate) fn conn(&self, id: ConnId) -> &Conn {
        &self.conns[id.0 as usize]
    }

    pub(crate) fn conn_mut(&mut self, id: ConnId) -> &mut Conn {
        &mut self.conns[id.0 as usize]
    }

    /// Bytes of payload that a host has sent.
    pub(crate) fn sent_bytes(&self, host: Host) -> u64 {
        self.hosts[host].sent_bytes
    }

    pub(crate) fn has_power(&self, host: Host) -> bool {
        self.hosts[host].up
    }

    /// Begins to connect.
    pub(crate) fn connect(&mut self, child: ChildEnd, parent: Host) -> ConnId {
        let id = ConnId(self.conns.len() as u32);
        self.conns.push(Conn {
            child,
            parent,
            queue: VecDeque::new(),
            queued_blocks: 0,
            in_flight: 0,
            inbox: VecDeque::new(),
            up_inbox: VecDeque::new(),
            child_open: true,
            parent_open: false,
            child_sees_end: false,
            parent_sees_end: false,
            in_turn: false,
            last_down: 0,
            last_up: 0,
            arriving: (0, 0),
            last_progress: self.now(),
        });
        let way = self.way(id);
        self.agenda.after(way, NetEvent::Knock(id).into());
        id
    }

    /// Time that a byte takes between the ends.
    pub(crate) fn way(&self, id: ConnId) -> Time {
        let conn = self.conn(id);
        self.hosts[conn.child.host].latency + self.hosts[conn.parent].latency
    }

    /// The child sends an encoded control frame.
    pub(crate) fn send_up(&mut self, id: ConnId, bytes: Vec<u8>) {
        if !self.conn(id).child_open {
            return;
        }
        let at = (self.now() + self.way(id)).max(self.conn(id).last_up);
        self.conn_mut(id).last_up = at;
        self.agenda.at(at, NetEvent::Up(id, bytes).into());
    }

    /// The parent sends something.
    pub(crate) fn send_down(&mut self, id: ConnId, item: Item) {
        let conn = self.conn_mut(id);
        if !conn.parent_open {
            return;
        }
        conn.queued_blocks += u32::from(matches!(item, Item::Block { .. }));
        conn.queue.push_back(item);
        self.advance(id);
    }

    /// Blocks that were given to the connection and are not on the wire.
    pub(crate) fn queued_blocks(&self, id: ConnId) -> u32 {
        self.conn(id).queued_blocks
    }

    /// Blocks that the parent has given away and the child has not read.
    pub(crate) fn blocks_under_way(&self, id: ConnId) -> u32 {
        self.conn(id).queued_blocks + self.conn(id).in_flight
    }

    pub(crate) fn is_queue_empty(&self, id: ConnId) -> bool {
        self.conn(id).queue.is_empty()
    }

    /// Whether bytes are arriving at the child that are not a whole frame yet, or lie there unread.
    pub(crate) fn is_child_hearing(&self, id: ConnId) -> bool {
        let conn = self.conn(id);
        let now = self.now();
        // Cards share their rate packet by packet, so a block that waits for its turn has begun to trickle.
        let trickles = conn.in_turn && conn.parent_open && self.hosts[conn.parent].up;
        !conn.inbox.is_empty() || trickles || (conn.arriving.0 <= now && now <= conn.arriving.1)
    }

    /// The child has read a block: the window opens.
    pub(crate) fn consumed(&mut self, id: ConnId) {
        let conn = self.conn_mut(id);
        conn.in_flight = conn.in_flight.saturating_sub(1);
        self.advance(id);
    }

    /// The child closes its side; what is on its way to it is lost.
    pub(crate) fn close_child(&mut self, id: ConnId) {
        let conn = self.conn_mut(id);
        if !std::mem::take(&mut conn.child_open) {
            return;
        }
        conn.inbox.clear();
        let child = conn.child.host;
        let at = (self.now() + self.way(id)).max(self.conn(id).last_up);
        if self.hosts[child].up {
            self.agenda.at(at, NetEvent::ParentSees(id).into());
        }
    }

    /// The parent closes its side; what is on the wire still arrives.
    pub(crate) fn close_parent(&mut self, id: ConnId) {
        let conn = self.conn_mut(id);
        if !std::mem::take(&mut conn.parent_open) {
            return;
        }
        conn.queue.clear();
        conn.queued_blocks = 0;
        let parent = conn.parent;
        let at = (self.now() + self.way(id)).max(self.conn(id).last_down);
        if self.hosts[parent].up {
            self.agenda.at(at, NetEvent::ChildSees(id).into());
        }
    }

    /// The host loses its power: nothing comes from it any more, not even the end of a connection.
    pub(crate) fn cut(&mut self, host: Host) {
        self.hosts[host].up = false;
    }

    /// The host is back.
    pub(crate) fn restore(&mut self, host: Host) {
        let (now, links) = (self.agenda.now(), &mut self.hosts[host]);
        links.up = true;
        links.down_free = now;
    }

    /// Ends of connections at `host`, as a child and as a parent, that its process still has open.
    pub(crate) fn conns_of(&self, host: Host) -> Vec<ConnId> {
        let open =
            |conn: &Conn| (conn.child.host == host && conn.child_open) || (conn.parent == host && conn.parent_open);
        (0u32..).zip(&self.conns).filter(|(_, conn)| open(conn)).map(|(id, _)| ConnId(id)).collect()
    }

    /// Connections of which `host` was an end and which the other side still has open.
    pub(crate) fn conns_forgotten_by(&self, host: Host) -> Vec<ConnId> {
        let open =
            |conn: &Conn| (conn.child.host == host && conn.parent_open) || (conn.parent == host && conn.child_open);
        (0u32..).zip(&self.conns).filter(|(_, conn)| open(conn)).map(|(id, _)| ConnId(id)).collect()
    }

    /// The uplink has sent a block.
    pub(crate) fn uplink_free(&mut self, host: Host) {
        self.hosts[host].sending = false;
        self.start(host);
    }

    /// Whether an event between these hosts arrives at all.
    pub(crate) fn carries(&self, id: ConnId) -> bool {
        let conn = self.conn(id);
        self.hosts[conn.child.host].up && self.hosts[conn.parent].up
    }

    /// Sends control frames at the head of the queue, and takes a turn at the uplink for what has a size.
    fn advance(&mut self, id: ConnId) {
        let way = self.way(id);
        let (now, window) = (self.agenda.now(), self.window);
        let conn = &mut self.conns[id.0 as usize];
        while matches!(conn.queue.front(), Some(Item::Control(_))) {
            let at = (now + way).max(conn.last_down);
            conn.last_down = at;
            if let Some(item) = conn.queue.pop_front() {
                self.agenda.at(at, NetEvent::Down(id, item).into());
            }
        }
        if conn.can_send(window) && !conn.in_turn {
            conn.in_turn = true;
            let host = conn.parent;
            self.hosts[host].turn.push_back(id);
            self.start(host);
        }
    }

    /// Begins to send what is next in turn.
    fn start(&mut self, host: Host) {
        while !self.hosts[host].sending && self.hosts[host].up {
            let Some(id) = self.hosts[host].turn.pop_front() else { return };
            let window = self.window;
            let conn = &mut self.conns[id.0 as usize];
            conn.in_turn = false;
            if !conn.can_send(window) {
                continue;
            }
            if let Some(item) = conn.queue.pop_front() {
                self.transmit(host, id, item);
                self.drained.push(id);
            }
            self.advance(id);
        }
    }

    fn transmit(&mut self, host: Host, id: ConnId, item: Item) {
        let (now, way) = (self.now(), self.way(id));
        let bytes = match &item {
            Item::Block { len, .. } => u64::from(*len),
            Item::Descriptor(bytes) => *bytes,
            Item::Control(_) => 0,
        };
        let sender = &mut self.hosts[host];
        let sent = now + duration(bytes, sender.up_rate);
        sender.sending = true;
        sender.sent_bytes += bytes;
        let conn = &mut self.conns[id.0 as usize];
        if matches!(item, Item::Block { .. }) {
            conn.queued_blocks -= 1;
            conn.in_flight += 1;
        }
        conn.last_progress = now;
        let receiver = &mut self.hosts[conn.child.host];
        let begins = (now + way).max(receiver.down_free);
        let arrives = (sent + way).max(begins + duration(bytes, receiver.down_rate)).max(conn.last_down);
        receiver.down_free = arrives;
        conn.last_down = arrives;
        conn.arriving = (if conn.arriving.1 >= now { conn.arriving.0 } else { now + way }, arrives);
        self.agenda.at(sent, NetEvent::UplinkFree(host).into());
        self.agenda.at(arrives, NetEvent::Down(id, item).into());
    }
}

impl Conn {
    fn can_send(&self, window: u32) -> bool {
        match self.queue.front() {
            Some(Item::Block { .. }) => self.parent_open && self.in_flight < window,
            Some(Item::Descriptor(_)) => self.parent_open,
            _ => false,
        }
    }
}

fn duration(bytes: u64, rate: u64) -> Time {
    (u128::from(bytes) * 1_000_000_000 / u128::from(rate)) as Time
}
