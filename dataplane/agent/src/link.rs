//! The control side's hold on the worker: commands go out, events come in.
//!
//! A trait, so that the control side can be tested against a worker that moves no bytes.

use std::future::Future;

use crate::worker::leases::Leases;
use crate::worker::mailbox::{WorkerCommand, WorkerEvent};

/// The worker's thread has ended; nothing will be moved any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the data worker of this agent has ended unexpectedly; see the log above for its reason, then restart the agent"
)]
pub struct WorkerEnded;

/// See the module's documentation.
pub trait WorkerLink: Send + 'static {
    /// Puts a command into the worker's mailbox; waits, shortly, while that is full.
    fn send(&self, command: WorkerCommand) -> Result<(), WorkerEnded>;

    /// The worker's next event; `None` when it has ended. May be dropped and called again without losing an event.
    fn next_event(&mut self) -> impl Future<Output = Option<WorkerEvent>> + Send;

    /// How many of its buffers are on lease; one that has no buffers leases none.
    fn leases(&self) -> Leases {
        Leases::default()
    }

    /// Ends the worker: edges are closed, writes in flight finish. Blocks until that is done.
    fn stop(self);
}
