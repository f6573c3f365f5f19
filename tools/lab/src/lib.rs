//! A cluster of hosts on one machine: network namespaces on a bridge, shaped links, and what is needed to watch, disturb and account for
//! them. Used by `faasnet lab` and by benches that want real links.
//!
//! Knows nothing of FaaSNet's daemons. Makes only things whose names begin with `fnlab-<id>-`, and touches nothing else; the routing and
//! the interfaces of the machine's own namespace stay as they are.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod enter;
pub mod error;
pub mod flow;
pub mod http;
pub mod leftovers;
pub mod links;
pub mod name;
pub mod network;
pub mod plot;
pub mod process;
pub mod proxy;
pub mod rate;
pub mod recording;
pub mod rivals;
pub mod sampler;
pub mod scheduling;
pub mod state;
mod tail;
mod tool;

pub use error::LabError;
pub use links::Links;
pub use name::LabId;
pub use network::{Host, Network, NetworkOptions};
pub use rate::Rate;
pub use tail::tail;
