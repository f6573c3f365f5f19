//! The data plane of one agent: a thread that receives, verifies, forwards and keeps blocks, and never waits but in one place.
//!
//! `run` holds the loop; `function` and `stripe` the state around the relay core; `inbox`, `forward`, `outbox` the path of a block from
//! socket to sockets; `mailbox` what the control side may say. Nothing here awaits, locks or calls the controller.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use anyhow::Context;
use crossbeam::channel;
use faasnet_api::{ClusterSecret, NodeId, Verify};
use faasnet_relay::plan::Patience;
use faasnet_ring::{SocketOptions, Waker};
use tokio::sync::{mpsc, oneshot};

use crate::config::Engine;
use crate::link::{WorkerEnded, WorkerLink};

mod child;
mod forward;
mod function;
mod inbox;
mod io;
mod link;
pub mod mailbox;
mod newcomer;
mod outbox;
mod run;
mod stripe;

use mailbox::{WorkerCommand, WorkerEvent};

/// What a worker needs to start.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Where children connect to; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The address that parents tell others for this node; `None`: what `listen` turned out to be.
    pub advertise: Option<SocketAddr>,
    /// This node.
    pub node: NodeId,
    /// Checks children's tickets.
    pub secret: ClusterSecret,
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
    /// How blocks are checked.
    pub verify: Verify,
}

/// The control side's hold on a running worker. Dropping it stops the worker without waiting.
pub struct WorkerHandle {
    commands: channel::Sender<WorkerCommand>,
    events: mpsc::Receiver<WorkerEvent>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    data_address: SocketAddr,
}

/// Commands and events that may wait; a burst of joins fits.
const MAILBOX_DEPTH: usize = 1024;

/// Starts the worker's thread and waits until it listens.
pub async fn start(config: WorkerConfig) -> anyhow::Result<WorkerHandle> {
    let (commands, command_queue) = channel::bounded(MAILBOX_DEPTH);
    let (event_queue, events) = mpsc::channel(MAILBOX_DEPTH);
    let waker = Waker::new().context("cannot make the worker's wake-up descriptor")?;
    let (ready, started) = oneshot::channel();
    let worker_waker = waker.clone();
    let thread = std::thread::Builder::new()
        .name("faasnet-worker".into())
        .spawn(move || run::run(config, command_queue, event_queue, worker_waker, ready))
        .context("cannot start the worker's thread")?;
    let data_address = started.await.context("the worker ended while starting")??;
    Ok(WorkerHandle { commands, events, waker, thread: Some(thread), data_address })
}

impl WorkerHandle {
    /// Where children connect to.
    pub fn data_address(&self) -> SocketAddr {
        self.data_address
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        // Ignored: a full or closed mailbox; its end, with this handle, stops the worker as well.
        let _ = self.commands.try_send(WorkerCommand::Stop);
        self.waker.wake();
    }
}

impl WorkerLink for WorkerHandle {
    fn send(&self, command: WorkerCommand) -> Result<(), WorkerEnded> {
        self.commands.send(command).map_err(|_| WorkerEnded)?;
        self.waker.wake();
        Ok(())
    }

    async fn next_event(&mut self) -> Option<WorkerEvent> {
        self.events.recv().await
    }

    fn stop(mut self) {
        // Ignored: a worker that has ended already needs no command.
        let _ = self.send(WorkerCommand::Stop);
        if let Some(thread) = self.thread.take() {
            // Ignored: a panic of the worker has been printed by its thread.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
