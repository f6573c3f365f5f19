//! The controller as a library: function trees, placement and liveness behind gRPC.
//!
//! [`state`] decides and does nothing else; a single task owns it, commits what it must not forget to a [`StateStore`], and carries out
//! what it answers. Agents and clients talk to that task through bounded queues.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod config;
mod daemon;
mod http;
mod registrar;
mod shell;
pub mod state;
mod store;

pub use config::Config;
pub use daemon::Controller;
pub use registrar::{ImageRegistrar, Progress, Registered, Registrar, Registration, Resolved};
pub use store::{Contents, ImportError, RedbStore, StateStore, StoreError, export, import};
