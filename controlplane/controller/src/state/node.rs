//! One host as the controller knows it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use faasnet_api::{FunctionId, NodeId, PublicKey, v1};

use super::io::{Now, ProbeId, SessionId};
use super::pace::Pace;
use super::quarantine::Blame;
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
    /// It is bound to it from its first registration on.
    pub(crate) key: Option<PublicKey>,
    pub(crate) session: Option<SessionId>,
    pub(crate) liveness: Liveness,
    pub(crate) last_seen_ms: u64,
    /// The same by the wall clock, as it is kept over restarts; 0: never.
    pub(crate) last_seen_unix_s: u64,
    /// When its record was stored last.
    pub(crate) stored_unix_s: u64,
    /// Heard since this start of the controller, so `last_seen_ms` is true.
    pub(crate) heard: bool,
    /// It said so in its last heartbeat, so it sends the next ones at the quick pace.
    pub(crate) transferring: bool,
    /// The probe under way; answers to others are late and mean nothing.
    pub(crate) probe: Option<ProbeId>,
    pub(crate) probed_ms: u64,
    /// Its data address refused a connection while its stream was open: words alone do not bring it back to life.
    pub(crate) must_answer: bool,
    /// The functions that want it as a member.
    pub(crate) functions: BTreeSet<FunctionId>,
    /// Whose they are; `None`: it is in the free pool.
    pub(crate) tenant: Option<String>,
    /// What they need in all.
    pub(crate) memory_used_mib: u64,
    /// It gets no new function.
    pub(crate) draining: bool,
    pub(crate) blame: Blame,
    pub(crate) pace: Pace,
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
            key: None,
            session: None,
            liveness: Liveness::Registered,
            last_seen_ms: now_ms,
            last_seen_unix_s: 0,
            stored_unix_s: 0,
            heard: false,
            transferring: false,
            probe: None,
            probed_ms: 0,
            must_answer: false,
            functions: BTreeSet::new(),
            tenant: None,
            memory_used_mib: 0,
            draining: false,
            blame: Blame::default(),
            pace: Pace::default(),
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

    /// It gives its word that it is there.
    pub(crate) fn seen(&mut self, now: Now) {
        self.last_seen_ms = now.ms;
        self.last_seen_unix_s = now.unix_s;
        self.heard = true;
    }

    /// How long ago that was.
    pub(crate) fn unseen_ms(&self, now: Now) -> u64 {
        match self.heard {
            true => now.ms.saturating_sub(self.last_seen_ms),
            false => now.unix_s.saturating_sub(self.last_seen_unix_s).saturating_mul(1_000),
        }
    }

    /// Whether functions may be given to it and receive from it.
    pub(crate) fn is_trusted(&self) -> bool {
        self.blame.quarantine.is_none()
    }

    pub(crate) fn state_name(&self) -> &'static str {
        match self.liveness {
            Liveness::Registered => "registered",
            Liveness::Live => "live",
            Liveness::Suspect { .. } => "suspect",
            Liveness::Dead { .. } => "dead",
        }
    }

    pub(crate) fn info(&self, now: Now) -> v1::NodeInfo {
        v1::NodeInfo {
            node_id: self.id.to_vec(),
            name: self.name.clone(),
            data_address: self.address.to_string(),
            state: self.state_name().into(),
            functions: self.functions.len() as u32,
            incarnation: self.incarnation,
            version: self.version.clone(),
            last_seen_ms: self.unseen_ms(now),
            draining: self.draining,
            quarantine: self.blame.quarantine.clone().unwrap_or_default(),
            tenant: self.tenant.clone().unwrap_or_default(),
            memory_mib: self.memory_mib,
            memory_used_mib: self.memory_used_mib,
            pace: self.pace.name().into(),
        }
    }
}
