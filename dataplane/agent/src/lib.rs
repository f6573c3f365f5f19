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
mod view;
#[allow(missing_docs, dead_code)]
pub mod worker {
    pub mod mailbox;
}

pub use config::{Config, ConfigError, Engine, Secret};
