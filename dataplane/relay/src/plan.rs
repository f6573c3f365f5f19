//! A stripe's place in its tree, as the controller planned it, and the time-outs of life on an edge.

use std::net::SocketAddr;
use std::time::Duration;

use faasnet_api::NodeId;

/// Somebody to receive a stripe from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// Another agent's data address.
    Node(NodeId, SocketAddr),
    /// An agent whose address a busy parent named; its id is not known before it answers.
    Address(SocketAddr),
    /// The origin, through this agent's own feed.
    Origin,
}

/// One stripe's place in its tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripePlan {
    /// From whom to receive.
    pub upstream: Target,
    /// Whom to try when the upstream fails, in this order.
    pub fallbacks: Vec<Target>,
    /// Who is expected as a child; others are guests.
    pub children: Vec<NodeId>,
}

/// How long to bear what on an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A parent that sends nothing at all for this long, or four usual gaps, is left.
    pub silence: Duration,
    /// A parent that only says that its own upstream is lost is left after this long.
    pub waiting: Duration,
    /// A connection that is not established and welcomed by then has failed.
    pub greeting: Duration,
    /// A guest keeps its place at least this long.
    pub guest: Duration,
    /// A parent with nothing to send says so this often.
    pub waiting_every: Duration,
    /// A node that nobody feeds for this long, while everybody it knows has failed, asks for leave to read the origin.
    pub stranded: Duration,
    /// It waits between a quarter of this and all of it for an answer before it reads the origin on its own.
    pub unanswered: Duration,
}

impl Patience {
    /// How long `node` waits for an answer: spread, so that nodes which were cut off together do not read the origin together.
    pub(crate) fn unanswered_by(&self, node: NodeId) -> Duration {
        let (least, most) = (self.unanswered / 4, self.unanswered);
        let seed = node.0.iter().fold(0_u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(u32::from(*byte)));
        least + most.saturating_sub(least) * (seed % 1024) / 1024
    }
}

impl StripePlan {
    /// Whether the origin may be read without asking.
    pub fn names_origin(&self) -> bool {
        std::iter::once(&self.upstream).chain(&self.fallbacks).any(|target| *target == Target::Origin)
    }
}

/// The nodes that the plans of the other stripes name. Every member receives every stripe, so they can help out in `stripe`.
pub fn acquaintances(plans: &[StripePlan], stripe: usize) -> Vec<Target> {
    let others = plans.iter().enumerate().filter(|(index, _)| *index != stripe);
    let targets = others.flat_map(|(_, plan)| std::iter::once(&plan.upstream).chain(&plan.fallbacks));
    targets.filter(|target| **target != Target::Origin).copied().collect()
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: Duration::from_millis(250),
            waiting: Duration::from_secs(2),
            greeting: Duration::from_millis(1000),
            guest: Duration::from_secs(5),
            waiting_every: Duration::from_millis(50),
            stranded: Duration::from_secs(3),
            unanswered: Duration::from_secs(20),
        }
    }
}
