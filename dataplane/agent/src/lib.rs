//! The agent daemon as a library: the worker that moves image bytes, and the control side around it — the session with the controller,
//! the origin feed of roots, the admin endpoint.
//!
//! The control side is tokio; the data path knows nothing of it but two bounded queues (`worker::mailbox`).

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod admin;
mod agent;
mod arriving;
mod backoff;
pub mod budget;
pub mod config;
mod control;
mod feed;
mod link;
mod memory;
pub mod mirror;
mod node_key;
mod opening;
mod reading;
mod session;
mod table;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
mod trust;
pub mod tuning;
mod view;
pub mod worker;

use std::future::Future;
use std::net::SocketAddr;

use anyhow::Context;
use faasnet_api::NodeId;

pub use config::{Config, ConfigError, Engine, Secret};
pub use faasnet_store::WriteMode;
pub use link::{WorkerEnded, WorkerLink};
pub use mirror::settings::{MirrorListen, OnMiss};
pub use trust::Trust;
use worker::{WorkerConfig, WorkerHandle};

/// An agent that has bound its ports and opened its store; [`Agent::run_until`] makes it work.
pub struct Agent(agent::Parts<WorkerHandle>);

impl Agent {
    /// Checks the settings, opens the store and binds every port, so that what can fail at start fails here. Port 0 takes a free one.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        try_sockets(&config)?;
        let parts = agent::Parts::start(&config, async |needs: agent::WorkerNeeds| {
            let worker = worker::start(WorkerConfig {
                listen: config.listen,
                advertise: Some(needs.advertise),
                node: needs.node,
                trust: needs.trust,
                feed: needs.feed,
                engine: config.engine,
                patience: config.patience(),
                buffers: config.buffers,
                socket_options: config.socket_options(),
                tuning: config.tuning(),
                verify: config.verify,
                store_write: config.store_write,
                forward_only: config.experiment_forward_only,
            })
            .await?;
            let address = worker.data_address();
            Ok((worker, address))
        })
        .await?;
        let agent = Self(parts);
        tracing::info!(
            name = config.name, node = %agent.node_id(), data = %agent.data_address(), admin = %agent.admin_address(),
            store = %config.store_dir.display(), controller = config.controller, "agent started"
        );
        tracing::info!("memory of the data path: {}", budget::Budget::of_this_host(&config));
        tracing::warn!(
            "image bytes travel between nodes as plain TCP; tickets keep strangers out, but who can read the network can read images"
        );
        Ok(agent)
    }

    /// This node's id, kept in its store.
    pub fn node_id(&self) -> NodeId {
        self.0.identity().node
    }

    /// Where other nodes connect to.
    pub fn data_address(&self) -> SocketAddr {
        self.0.identity().data_address
    }

    /// Where the admin endpoint listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.0.admin_address()
    }

    /// Where the mirror listens, if it listens by TCP.
    pub fn mirror_address(&self) -> Option<SocketAddr> {
        self.0.mirror_address()
    }

    /// Ready as soon as the controller has accepted this agent, or cannot be reached, so that the agent goes on with what it last heard.
    /// Not while the controller refuses it, for which the log says the reason.
    pub fn ready(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.ready()
    }

    /// Works until `shutdown` is ready; then ends the session, lets the worker finish its writes, and syncs the store. An error if the
    /// worker ended by itself.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        self.0.run_until(shutdown).await
    }
}

/// Tries the socket settings on a socket that goes nowhere, so that what this host lacks is said before anything is started; warns when
/// the kernel gives less than they ask for.
fn try_sockets(config: &Config) -> anyhow::Result<()> {
    let options = config.socket_options();
    let granted =
        faasnet_ring::socket::try_options(&options).context("data connections cannot be set up with these settings")?;
    if let Err(reason) = granted.busy_poll {
        tracing::warn!(reason, "busy_poll_us: sockets do not poll their cards");
    }
    let asked = [
        ("receive_buffer_bytes", options.receive_bytes, granted.receive_bytes, "net.core.rmem_max"),
        ("send_buffer_bytes", options.send_bytes, granted.send_bytes, "net.core.wmem_max"),
    ];
    for (setting, asked, granted, limit) in asked {
        if let Some(asked) = asked.filter(|asked| *asked > granted) {
            tracing::warn!(setting, asked, granted, "the kernel gives smaller socket buffers; raise {limit}");
        }
    }
    Ok(())
}
