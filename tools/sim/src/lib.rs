//! A seeded, deterministic simulator of whole clusters.
//!
//! The real relay core, the real trees and the controller's real state machine run over a virtual clock and network. What is simulated
//! is what lies around them: sockets, cards, disks, processes, the origin. A seed is a history: the same plan gives the same one.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod agenda;
mod checks;
mod child;
mod cluster;
mod control;
mod faults;
mod feed;
mod function;
mod io;
mod network;
mod node;
mod outcome;
mod plan;
mod provision;
mod random;
mod reparenting;
mod scenario;
mod sessions;
mod stripe;
#[cfg(test)]
mod tests;

pub use outcome::{Outcome, Seconds, run};
pub use plan::{Bug, Faults, SimPlan, Topology};
pub use reparenting::{Reparenting, reparenting_table};
pub use scenario::{Case, Scenario, at_once};
