//! The admin endpoint's JSON: the names and units that tools on this host rely on.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use faasnet_api::{FunctionId, Verify, v1};
use serde::Serialize;

use super::Shared;
use crate::budget::Budget;
use crate::session::events::progress;
use crate::table::Row;
use crate::view::View;
use crate::worker::journal::Stalls;

/// `GET /v1/state`.
#[derive(Debug, Serialize)]
pub(super) struct State {
    node_id: String,
    name: String,
    incarnation: u64,
    version: &'static str,
    data_address: SocketAddr,
    admin_address: SocketAddr,
    /// `null` when the mirror is off or on a unix socket.
    mirror_address: Option<SocketAddr>,
    /// `null` while the controller is away.
    controller_term: Option<u64>,
    /// `blake3`; `xxh3` or `off` where every host is trusted.
    verify: Verify,
    /// The most memory that the data path takes; see the start-up log for the same as a sum.
    memory_budget: Budget,
    /// Buffers of the workers that somebody holds; 0 at rest.
    leased_buffers: usize,
    functions: Vec<Function>,
}

/// One function: in `State`, and `GET /v1/functions/{tenant}/{function}`.
#[derive(Debug, Serialize)]
pub(super) struct Function {
    tenant: String,
    function: String,
    function_id: String,
    image_id: String,
    term: u64,
    epoch: u64,
    /// `waiting`, `fetching`, `complete` or `failed`.
    state: &'static str,
    error: Option<String>,
    bytes_total: u64,
    bytes_present: u64,
    bytes_received: u64,
    bytes_refetched: u64,
    bytes_reused: u64,
    bytes_live: u64,
    bytes_from_store: u64,
    bytes_copied: u64,
    mover: String,
    /// Why this one; empty before the worker has reported.
    mover_reason: String,
    elapsed_us: u64,
    /// When `elapsed_us` began: microseconds since 1970. 0 before the worker has reported.
    assigned_at_us: u64,
    /// One per stripe: the longest time between two new blocks.
    stalls: Vec<Stall>,
    upstreams: Vec<Upstream>,
    levels: Vec<u32>,
    edges_failed: u64,
    blocks_refused: u64,
}

#[derive(Debug, Serialize)]
struct Stall {
    stripe: usize,
    /// Since `assigned_at_us`.
    from_us: u64,
    longest_us: u64,
}

#[derive(Debug, Serialize)]
struct Upstream {
    stripe: u32,
    /// `null`: the origin.
    node_id: Option<String>,
    bytes: u64,
}

impl State {
    pub(super) fn new(shared: &Shared, view: &View) -> Self {
        let identity = &shared.identity;
        Self {
            node_id: identity.node.to_string(),
            name: identity.name.clone(),
            incarnation: identity.incarnation,
            version: env!("CARGO_PKG_VERSION"),
            data_address: identity.data_address,
            admin_address: shared.admin_address,
            mirror_address: shared.mirror_address,
            controller_term: view.term,
            verify: identity.verify,
            memory_budget: shared.budget.clone(),
            leased_buffers: shared.leases.total(),
            functions: view.rows.iter().map(|(function, row)| Function::new(*function, row)).collect(),
        }
    }
}

impl Function {
    pub(super) fn new(function: FunctionId, row: &Row) -> Self {
        let progress = progress(function, row);
        Self {
            tenant: row.tenant.clone(),
            function: row.name.clone(),
            function_id: function.to_string(),
            image_id: row.image.to_string(),
            term: progress.term,
            epoch: progress.epoch,
            state: state_name(&progress),
            error: Some(progress.error).filter(|error| !error.is_empty()),
            bytes_total: progress.bytes_total,
            bytes_present: progress.bytes_present,
            bytes_received: progress.bytes_received,
            bytes_refetched: progress.bytes_refetched,
            bytes_reused: progress.bytes_reused,
            bytes_live: progress.bytes_live,
            bytes_from_store: progress.bytes_from_store,
            bytes_copied: progress.bytes_copied,
            mover: progress.mover,
            mover_reason: row.report.as_ref().map_or_else(String::new, |report| report.mover_reason.clone()),
            elapsed_us: progress.elapsed_us,
            assigned_at_us: row.report.as_ref().and_then(|report| report.journal.assigned_at).map_or(0, unix_us),
            stalls: row
                .report
                .iter()
                .flat_map(|report| report.journal.stalls.iter().enumerate().map(Stall::new))
                .collect(),
            upstreams: progress.upstreams.iter().map(Upstream::new).collect(),
            levels: progress.levels,
            edges_failed: progress.edges_failed,
            blocks_refused: progress.blocks_refused,
        }
    }
}

impl Stall {
    fn new((stripe, stall): (usize, &Stalls)) -> Self {
        Self { stripe, from_us: stall.longest_from.as_micros() as u64, longest_us: stall.longest.as_micros() as u64 }
    }
}

impl Upstream {
    fn new(used: &v1::UpstreamUse) -> Self {
        let hex = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect();
        let node_id = Some(&used.node_id).filter(|id| !id.is_empty()).map(|id| hex(id));
        Self { stripe: used.stripe, node_id, bytes: used.bytes }
    }
}

fn unix_us(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

fn state_name(progress: &v1::FunctionProgress) -> &'static str {
    match progress.state() {
        v1::FunctionState::Unspecified | v1::FunctionState::Waiting => "waiting",
        v1::FunctionState::Fetching => "fetching",
        v1::FunctionState::Complete => "complete",
        v1::FunctionState::Failed => "failed",
    }
}
