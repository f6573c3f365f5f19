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
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: Duration::from_millis(250),
            waiting: Duration::from_secs(2),
            greeting: Duration::from_millis(1000),
            guest: Duration::from_secs(5),
            waiting_every: Duration::from_millis(50),
        }
    }
}
