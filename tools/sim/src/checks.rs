//! What must hold on every edge at every moment, looked at ten times a simulated second.
//!
//! The relay recovers from much by itself, some seconds later; these checks see the defect before its remedy.

use std::collections::BTreeMap;

use crate::agenda::{SECOND, Time};
use crate::cluster::Cluster;
use crate::network::Host;

/// Rings of parents, by one member's (function, stripe, host): since when they are there.
pub(crate) type Rings = BTreeMap<(usize, usize, Host), Time>;

/// Two nodes that moved at the same moment find out when they hear each other's paths.
const RING_PATIENCE: Time = 3 * SECOND;

impl Cluster {
    pub(crate) fn check_edges(&mut self) {
        let mut parents: BTreeMap<(usize, usize, Host), Host> = BTreeMap::new();
        let mut lost = Vec::new();
        for (host, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_running()) {
            for (index, function) in &node.functions {
                for (stripe, edge) in function.stripes.iter().enumerate() {
                    let Some(conn) = edge.streaming() else { continue };
                    parents.insert((*index, stripe, host), self.net.conn(conn).parent);
                    let (missing, coming) = (edge.missing(), self.net.blocks_under_way(conn));
                    if let Some(owed) = self.owed_to(conn, *index, stripe).filter(|owed| missing > owed + coming) {
                        lost.push(format!(
                            "node {host}, function {index}, stripe {stripe}: {missing} blocks are missing, but node {} \
                             owes {owed} and {coming} are on their way",
                            self.net.conn(conn).parent
                        ));
                    }
                }
            }
        }
        lost.into_iter().for_each(|text| self.tally.violate(text));
        self.check_rings(&parents);
    }

    /// What the parent at the other end of a connection still has to send on it; `None` when it has not heard `Want`, or has heard `Stop`.
    fn owed_to(&self, conn: crate::network::ConnId, function: usize, stripe: usize) -> Option<u32> {
        match self.nodes.get(self.net.conn(conn).parent) {
            Some(parent) => parent.functions.get(&function)?.stripes.get(stripe)?.owes(conn),
            None => self.feed.owes(conn),
        }
    }

    fn check_rings(&mut self, parents: &BTreeMap<(usize, usize, Host), Host>) {
        let now = self.net.now();
        let mut rings = Rings::new();
        for &(function, stripe, start) in parents.keys() {
            let above = |host: &Host| parents.get(&(function, stripe, *host)).copied();
            let mut way = std::iter::successors(above(&start), above).take(self.nodes.len());
            if way.any(|host| host == start) {
                let key = (function, stripe, start);
                let since = self.rings.get(&key).copied().unwrap_or(now);
                rings.insert(key, since);
                if now > since + RING_PATIENCE {
                    let text = format!("node {start}, function {function}, stripe {stripe}: it stands above itself");
                    self.tally.violate(text);
                }
            }
        }
        self.rings = rings;
    }
}
