//! Function Trees as pure values: who receives each stripe of a function's image from whom.
//!
//! The controller's state machine owns them. They know nothing of addresses, liveness, clocks or I/O; an `insert`, `remove` or `demote`
//! answers with the exact difference that it made, so that only the nodes concerned hear of it.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod arrangement;
mod avl;
mod complete;
mod hash;
mod index;
mod plan;
mod policy;
mod row;
mod trees;
mod twin;

pub use plan::{Edge, Plan};
pub use policy::{Policy, UnknownPolicy};
pub use trees::{FunctionTrees, Order, TreeError};
