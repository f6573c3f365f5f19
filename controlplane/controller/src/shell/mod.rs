//! The shell around the state machine: the task that owns it, the gRPC services in front, the probes.

pub(crate) mod agents;
pub(crate) mod clients;
pub(crate) mod gate;
pub(crate) mod owner;
mod probe;
pub(crate) mod reading;
mod registration;
mod watching;
pub(crate) mod wishes;
