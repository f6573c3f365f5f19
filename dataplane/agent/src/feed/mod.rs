//! The origin feed: a parent on loopback that reads an image's blobs from the origin and speaks the wire protocol of any parent.
//!
//! A root's worker connects to it as to another node, so the data path knows no HTTP. It serves this agent's own worker only. It keeps
//! nothing: what it read is verified, sent and forgotten.

mod edge;
mod frames;
mod plan;
mod reader;
mod sources;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use faasnet_api::NodeId;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::control::Input;
use crate::trust::Trust;
use crate::view::Descriptors;
pub(crate) use sources::Sources;

/// Connections at once: 20 functions with two stripes each, an old and a new connection of each, and some room.
const MAX_EDGES: usize = 96;

/// What the feed has taken from origins since the agent's start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Range requests.
    pub(crate) requests: AtomicU64,
    /// Body bytes.
    pub(crate) bytes: AtomicU64,
    /// Blocks that failed verification.
    pub(crate) wrong_blocks: AtomicU64,
    /// Reads that failed and were tried again.
    pub(crate) retries: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// What all connections need.
pub(crate) struct Shared {
    pub(crate) node: NodeId,
    pub(crate) trust: Trust,
    pub(crate) descriptors: watch::Receiver<Descriptors>,
    pub(crate) waiting_every: Duration,
    pub(crate) counters: Arc<Counters>,
    pub(crate) sources: Arc<Sources>,
    /// Where a lying origin is reported.
    pub(crate) reports: mpsc::Sender<Input>,
}

/// A feed that listens and does not serve yet.
pub(crate) struct Feed {
    listener: TcpListener,
    shared: Arc<Shared>,
}

impl Feed {
    /// Listens on a free port of the loopback address.
    pub(crate) async fn bind(shared: Shared) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .context("no free port on 127.0.0.1 for the origin feed")?;
        Ok(Self { listener, shared: Arc::new(shared) })
    }

    /// Where the worker connects to.
    pub(crate) fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Serves for ever; dropping the future ends all connections.
    pub(crate) async fn run(self) {
        let places = Arc::new(Semaphore::new(MAX_EDGES));
        let mut edges = JoinSet::new();
        loop {
            // Ends are collected as connections come, so that the set does not grow.
            while edges.try_join_next().is_some() {}
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, from)) if from.ip().is_loopback() => {
                    let shared = self.shared.clone();
                    edges.spawn(async move {
                        edge::serve(stream, shared).await;
                        drop(place);
                    });
                }
                Ok((_, from)) => tracing::warn!(%from, "a connection to the feed from elsewhere was closed"),
                Err(error) => {
                    // Out of descriptors, most likely: the connections that exist will end some day.
                    tracing::warn!(%error, "the feed cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}
