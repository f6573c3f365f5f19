//! The agent daemon as a library: the worker that moves image bytes, and the control side around it — the session with the controller,
//! the origin feed of roots, the admin endpoint.
//!
//! The control side is tokio; the data path knows nothing of it but two bounded queues (`worker::mailbox`).

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod admin;
mod agent;
mod backoff;
pub mod config;
mod control;
mod feed;
mod link;
mod session;
mod table;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
mod view;
pub mod worker;

use std::future::Future;
use std::net::SocketAddr;

use faasnet_api::NodeId;
use faasnet_ring::SocketOptions;

pub use config::{Config, ConfigError, Engine, Secret};
pub use faasnet_store::WriteMode;
pub use link::{WorkerEnded, WorkerLink};
use worker::{WorkerConfig, WorkerHandle};

/// An agent that has bound its ports and opened its store; [`Agent::run_until`] makes it work.
pub struct Agent(agent::Parts<WorkerHandle>);

impl Agent {
    /// Checks the settings, opens the store and binds every port, so that what can fail at start fails here. Port 0 takes a free one.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let parts = agent::Parts::start(&config, async |needs: agent::WorkerNeeds| {
            let worker = worker::start(WorkerConfig {
                listen: config.listen,
                advertise: Some(needs.advertise),
                node: needs.node,
                secret: needs.secret,
                feed: needs.feed,
                engine: config.engine,
                patience: config.patience(),
                buffers: config.buffers,
                socket_options: SocketOptions::default(),
                verify: config.verify,
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

    /// Works until `shutdown` is ready; then ends the session, lets the worker finish its writes, and syncs the store. An error if the
    /// worker ended by itself.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        self.0.run_until(shutdown).await
    }
}
