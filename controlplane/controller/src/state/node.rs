//! One host as the controller knows it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use faasnet_api::{FunctionId, NodeId, v1};

use super::io::{ProbeId, SessionId};
use super::settings::Settings;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// Known from the state store; not back yet since the controller's start.
    Registered,
    Live,
    Suspect {
        since_ms: u64,
    },
    Dead {
        since_ms: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) incarnation: u64,
    pub(crate) memory_mib: u64,
    pub(crate) version: String,
    pub(crate) session: Option<SessionId>,
    pub(crate) liveness: Liveness,
    pub(crate) last_seen_ms: u64,
    /// It said so in its last heartbeat, so it sends the next ones at the quick pace.
    pub(crate) transferring: bool,
    /// The probe under way; answers to others are late and mean nothing.
    pub(crate) probe: Option<ProbeId>,
    pub(crate) probed_ms: u64,
    /// Its data address refused a connection while its stream was open: words alone do not bring it back to life.
    pub(crate) must_answer: bool,
    /// The functions that want it as a member.
    pub(crate) functions: BTreeSet<FunctionId>,
}

impl Node {
    pub(crate) fn new(id: NodeId, address: SocketAddr, now_ms: u64) -> Self {
        Self {
            id,
            name: id.short(),
            address,
            incarnation: 0,
            memory_mib: 0,
            version: String::new(),
            session: None,
            liveness: Liveness::Registered,
            last_seen_ms: now_ms,
            transferring: false,
            probe: None,
            probed_ms: 0,
            must_answer: false,
            functions: BTreeSet::new(),
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.liveness == Liveness::Live
    }

    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.liveness, Liveness::Dead { .. })
    }

    /// The silence after which it is suspect; after twice that it is dead.
    pub(crate) fn silence_limit_ms(&self, settings: &Settings) -> u64 {
        let period = if self.transferring { settings.heartbeat_ms } else { settings.idle_heartbeat_ms };
        u64::from(period) * u64::from(settings.suspect_after_missed)
    }

    pub(crate) fn state_name(&self) -> &'static str {
        match self.liveness {
            Liveness::Registered => "registered",
            Liveness::Live => "live",
            Liveness::Suspect { .. } => "suspect",
            Liveness::Dead { .. } => "dead",
        }
    }

    pub(crate) fn info(&self, now_ms: u64) -> v1::NodeInfo {
        v1::NodeInfo {
            node_id: self.id.to_vec(),
            name: self.name.clone(),
            data_address: self.address.to_string(),
            state: self.state_name().into(),
            functions: self.functions.len() as u32,
            incarnation: self.incarnation,
            version: self.version.clone(),
            last_seen_ms: now_ms.saturating_sub(self.last_seen_ms),
        }
    }
}
