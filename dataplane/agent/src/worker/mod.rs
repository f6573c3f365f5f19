//! The data plane of one agent: threads that each receive, verify, forward and keep blocks, and never wait but in one place.
//!
//! `run` holds the loop; `function` and `stripe` the state around the relay core; `inbox`, `forward`, `outbox` the path of a block from
//! socket to sockets; `mailbox` what the control side may say. Nothing here awaits, locks or calls the controller.

use std::net::SocketAddr;

use anyhow::Context;
use faasnet_api::{NodeId, Verify};
use faasnet_relay::plan::Patience;
use faasnet_ring::SocketOptions;
use faasnet_store::WriteMode;

use crate::config::Engine;
use crate::trust::Trust;
use crate::tuning::Tuning;

mod allowance;
mod child;
mod forward;
mod function;
mod handle;
mod inbox;
mod io;
pub mod journal;
pub mod leases;
mod link;
pub mod mailbox;
mod mover;
mod newcomer;
mod outbox;
mod pacing;
mod pass;
mod placement;
mod run;
mod stripe;

pub use handle::{WorkerHandle, start};

/// What a worker needs to start.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Where children connect to; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The address that parents tell others for this node; `None`: what `listen` turned out to be.
    pub advertise: Option<SocketAddr>,
    /// This node.
    pub node: NodeId,
    /// Signs what this node says to parents, and judges its children.
    pub trust: Trust,
    /// The loopback address of this agent's origin feed.
    pub feed: SocketAddr,
    /// How to move bytes.
    pub engine: Engine,
    /// Time-outs.
    pub patience: Patience,
    /// Block buffers.
    pub buffers: usize,
    /// Data sockets.
    pub socket_options: SocketOptions,
    /// Threads, cores, and what they ask of the kernel.
    pub tuning: Tuning,
    /// How blocks are checked.
    pub verify: Verify,
    /// How blocks are written.
    pub store_write: WriteMode,
    /// Blocks are passed on without being looked at or kept. An experiment: the node has nothing for whoever comes late, and a child that
    /// is slow holds the stream.
    pub forward_only: bool,
}

/// The core of each worker; `None`: they are not pinned.
fn cores(tuning: &Tuning) -> anyhow::Result<Option<Vec<usize>>> {
    let Some(pin) = &tuning.pin else { return Ok(None) };
    let allowed = faasnet_ring::cores::allowed().context("cannot tell on which cores this process may run")?;
    pin.cores(tuning.workers.max(1), &allowed).map(Some).map_err(|problem| anyhow::anyhow!("pin: {problem}"))
}

#[cfg(test)]
mod tests;
