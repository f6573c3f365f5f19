//! The origin: it greets roots like a parent, and sends them what they want in stream order.

use std::collections::BTreeMap;

use faasnet_api::{BlockIndex, Geometry};
use faasnet_relay::blocks::BlockSet;
use faasnet_relay::wire::{self, Hello, Kind, WaitingFor};

use crate::agenda::{MILLISECOND, Time};
use crate::io::parse;
use crate::network::{ConnId, Content, Item, Network};

struct Edge {
    owed: BlockSet,
    cursor: BlockIndex,
    wanted: bool,
    stopping: bool,
    said: Time,
}

/// See the module's documentation.
pub(crate) struct Feed {
    edges: BTreeMap<ConnId, Edge>,
    limit: usize,
    pub(crate) is_away: bool,
    pub(crate) turned_away: u64,
}

/// Blocks that wait for the origin's uplink, per connection.
const QUEUED_BLOCKS: u32 = 2;
const WAITING_EVERY: Time = 50 * MILLISECOND;

impl Feed {
    pub(crate) fn new(limit: usize) -> Self {
        Self { edges: BTreeMap::new(), limit, is_away: false, turned_away: 0 }
    }

    /// Something arrived from a root.
    pub(crate) fn up(&mut self, conn: ConnId, geometry: &Geometry, descriptor_bytes: u64, net: &mut Network) {
        while let Some(bytes) = net.conn_mut(conn).up_inbox.pop_front() {
            let Some((frame, payload)) = parse(&bytes) else { continue };
            match frame.kind {
                Kind::Hello => self.greet(conn, payload, geometry, descriptor_bytes, net),
                Kind::Want => self.want(conn, payload, frame.chunk, geometry),
                Kind::Stop => {
                    if let Some(edge) = self.edges.get_mut(&conn) {
                        edge.owed = BlockSet::default();
                        edge.stopping = true;
                    }
                }
                _ => {}
            }
        }
        if net.conn(conn).parent_sees_end {
            self.edges.remove(&conn);
            net.close_parent(conn);
        }
        self.serve(conn, geometry, net);
    }

    /// Queues what the connection has room for.
    pub(crate) fn serve(&mut self, conn: ConnId, geometry: &Geometry, net: &mut Network) {
        let Some(edge) = self.edges.get_mut(&conn) else { return };
        while !self.is_away && net.queued_blocks(conn) < QUEUED_BLOCKS {
            let Some(block) = edge.owed.next_in_both(&edge.owed, edge.cursor) else { break };
            edge.owed.remove(block);
            edge.cursor = BlockIndex(block.0 + 1);
            let len = geometry.place(block).map_or(0, |place| place.len);
            net.send_down(conn, Item::Block { block, len, content: Content::Right });
        }
        if edge.stopping && net.is_queue_empty(conn) {
            self.edges.remove(&conn);
            net.close_parent(conn);
        }
    }

    /// What is still to be sent on a connection; `None` before `Want` and after `Stop`.
    pub(crate) fn owes(&self, conn: ConnId) -> Option<u32> {
        let edge = self.edges.get(&conn).filter(|edge| edge.wanted && !edge.stopping)?;
        Some(edge.owed.count())
    }

    /// Tells those who wait that it lives.
    pub(crate) fn tick(&mut self, net: &mut Network) {
        let now = net.now();
        for (conn, edge) in &mut self.edges {
            let last = edge.said.max(net.conn(*conn).last_progress);
            if net.is_queue_empty(*conn) && now >= last + WAITING_EVERY {
                edge.said = now;
                net.send_down(*conn, Item::Control(wire::encode_waiting(WaitingFor::Origin).to_vec()));
            }
        }
    }

    pub(crate) fn conns(&self) -> Vec<ConnId> {
        self.edges.keys().copied().collect()
    }

    fn greet(&mut self, conn: ConnId, payload: &[u8], geometry: &Geometry, descriptor_bytes: u64, net: &mut Network) {
        let Ok(hello) = Hello::parse(payload) else { return };
        if self.edges.len() >= self.limit {
            self.turned_away += 1;
            return net.close_parent(conn);
        }
        net.send_down(conn, Item::Control(wire::encode_path(Kind::Welcome, &[])));
        if hello.wants_descriptor {
            net.send_down(conn, Item::Descriptor(descriptor_bytes));
        }
        let owed = BlockSet::new(geometry.blocks());
        self.edges.insert(conn, Edge { owed, cursor: BlockIndex(0), wanted: false, stopping: false, said: net.now() });
    }

    fn want(&mut self, conn: ConnId, bitmap: &[u8], first: u32, geometry: &Geometry) {
        let Some(edge) = self.edges.get_mut(&conn) else { return };
        let part = BlockSet::from_bitmap(geometry.blocks().saturating_sub(first), bitmap);
        edge.wanted = true;
        part.iter().for_each(|block| {
            edge.owed.insert(BlockIndex(block.0 + first));
        });
    }
}
