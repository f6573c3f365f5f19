//! What the agent tells the controller, put into protobuf.
//!
//! Pure.

use std::sync::atomic::Ordering;
use std::time::Duration;

use faasnet_api::{BlockIndex, FunctionId, ImageId, NodeId, Stripe, v1};
use v1::event::Event as Kind;

use crate::mirror::questions::Wish;
use crate::table::{Row, Table};
use crate::worker::journal::{GivenUp, Journal, Stalls};
use crate::worker::mailbox::{Downstream, FunctionReport, ReportState, Target};

/// Wraps an event.
pub(crate) fn event(kind: Kind) -> v1::Event {
    v1::Event { event: Some(kind) }
}

/// A heartbeat with the progress of every function.
pub(crate) fn heartbeat(table: &Table) -> v1::Event {
    let functions = table.rows().map(|(function, row)| progress(function, row)).collect();
    event(Kind::Heartbeat(v1::Heartbeat { functions }))
}

/// What this node holds, for `Attached`.
pub(crate) fn held(table: &Table) -> Vec<v1::HeldFunction> {
    let held = |(function, row): (FunctionId, &Row)| v1::HeldFunction {
        function_id: function.to_vec(),
        image_id: row.image.to_vec(),
        term: row.version.term,
        epoch: row.version.epoch,
        bytes_present: row.bytes_present(),
        complete: row.is_complete(),
    };
    table.rows().map(held).collect()
}

/// An upstream was given up.
pub(crate) fn edge_failed(
    function: FunctionId,
    stripe: Stripe,
    upstream: Target,
    reason: String,
    wrong_bytes: bool,
    refused: Option<BlockIndex>,
) -> v1::Event {
    event(Kind::EdgeFailed(v1::EdgeFailed {
        function_id: function.to_vec(),
        stripe: stripe.0.into(),
        upstream: upstream_id(upstream),
        reason,
        wrong_bytes,
        block: refused.map_or(0, |block| block.0),
    }))
}

/// Nobody known has a stripe's blocks.
pub(crate) fn origin_wanted(function: FunctionId, stripe: Stripe) -> v1::Event {
    event(Kind::OriginWanted(v1::OriginWanted { function_id: function.to_vec(), stripe: stripe.0.into() }))
}

/// Blocks were read back from the disk.
pub(crate) fn blocks_reread(function: FunctionId, request: u64, checked: u32, wrong: u32) -> v1::Event {
    event(Kind::BlocksReread(v1::BlocksReread { function_id: function.to_vec(), request, checked, wrong }))
}

/// An image cannot be held here.
pub(crate) fn image_failed(function: FunctionId, image: ImageId, reason: String) -> v1::Event {
    event(Kind::ImageFailed(v1::ImageFailed { function_id: function.to_vec(), image_id: image.to_vec(), reason }))
}

/// A function was let go.
pub(crate) fn dropped(function: FunctionId) -> v1::Event {
    event(Kind::Dropped(v1::Dropped { function_id: function.to_vec() }))
}

/// Somebody here asks for a function.
pub(crate) fn join_requested(tenant: String, function: String) -> v1::Event {
    event(Kind::JoinRequested(v1::JoinRequested { tenant, function }))
}

/// The runtime here asks for an image.
pub(crate) fn image_wanted(request: u64, wish: Wish) -> v1::Event {
    let Wish { reference, register, plain_http } = wish;
    event(Kind::ImageWanted(v1::ImageWanted { request, reference, register, plain_http, reads: true }))
}

/// How the reading of an image goes that the controller ordered.
pub(crate) fn image_read(read: v1::ImageRead) -> v1::Event {
    event(Kind::ImageRead(read))
}

/// A row's progress: the worker's counters, and what only the control side knows.
pub(crate) fn progress(function: FunctionId, row: &Row) -> v1::FunctionProgress {
    let counters = row.report.as_ref().map(counters).unwrap_or_default();
    let (state, error) = match row.state() {
        ReportState::Waiting => (v1::FunctionState::Waiting, String::new()),
        ReportState::Fetching => (v1::FunctionState::Fetching, String::new()),
        ReportState::Complete => (v1::FunctionState::Complete, String::new()),
        ReportState::Failed(reason) => (v1::FunctionState::Failed, reason),
    };
    let length = row.stored.as_ref().map_or(0, |stored| stored.descriptor().geometry().image_bytes());
    v1::FunctionProgress {
        function_id: function.to_vec(),
        image_id: row.image.to_vec(),
        term: row.version.term,
        epoch: row.version.epoch,
        state: state.into(),
        error,
        bytes_total: counters.bytes_total.max(length),
        bytes_present: counters.bytes_present.max(row.bytes_present()),
        bytes_reused: row.stored.as_ref().map_or(0, |stored| stored.bytes_reused()),
        uses: row.uses.load(Ordering::Relaxed),
        ..counters
    }
}

fn counters(report: &FunctionReport) -> v1::FunctionProgress {
    let used = |(stripe, upstream, bytes): &(Stripe, Target, u64)| v1::UpstreamUse {
        stripe: stripe.0.into(),
        node_id: upstream_id(*upstream),
        bytes: *bytes,
        ..v1::UpstreamUse::default()
    };
    let serves = |child: &Downstream| v1::DownstreamUse {
        stripe: child.stripe.0.into(),
        node_id: child.node.to_vec(),
        blocks_ready: child.blocks_ready,
    };
    v1::FunctionProgress {
        bytes_total: report.bytes_total,
        bytes_present: report.bytes_present,
        bytes_received: report.bytes_received,
        bytes_refetched: report.bytes_refetched,
        bytes_live: report.bytes_live,
        bytes_from_store: report.bytes_from_store,
        bytes_copied: report.bytes_copied,
        mover: report.mover.into(),
        elapsed_us: report.elapsed.as_micros() as u64,
        upstreams: report.upstreams.iter().map(used).collect(),
        downstreams: report.downstreams.iter().map(serves).collect(),
        levels: report.levels.clone(),
        edges_failed: report.edges_failed,
        blocks_refused: report.blocks_refused,
        story: Some(story(&report.journal)),
        ..v1::FunctionProgress::default()
    }
}

fn story(journal: &Journal) -> v1::PullStory {
    let micros = |time: Duration| time.as_micros() as u64;
    let since = |time: Option<Duration>| time.map_or(0, |time| micros(time).max(1));
    let stalls = |(stripe, stalls): (u32, &Stalls)| v1::StripeStalls {
        stripe,
        count: stalls.count,
        total_us: micros(stalls.total),
        longest_us: micros(stalls.longest),
    };
    let given_up = |entry: &GivenUp| v1::UpstreamGivenUp {
        at_us: micros(entry.at),
        stripe: entry.stripe.0.into(),
        node_id: upstream_id(entry.upstream),
        reason: entry.reason.clone(),
    };
    v1::PullStory {
        welcomed_us: since(journal.welcomed),
        opened_us: since(journal.opened),
        first_block_us: since(journal.first_block),
        verifying_us: micros(journal.verifying),
        blocks_verified: journal.blocks_verified,
        stalls: (0..).zip(&journal.stalls).map(stalls).collect(),
        given_up: journal.given_up.iter().map(given_up).collect(),
        queued_us: 0,
    }
}

/// A node's id as the contract has it: empty is the origin, zeros a node that was never told by name.
fn upstream_id(upstream: Target) -> Vec<u8> {
    match upstream {
        Target::Node(id, _) => id.to_vec(),
        Target::Address(_) => NodeId([0; 16]).to_vec(),
        Target::Origin => Vec::new(),
    }
}
