//! The relay's decisions, without its I/O: wire frames, per-child and per-stripe bookkeeping, when to wait and when to move.
//!
//! Everything here is pure: `(state, now, input) → outputs`. It owns no descriptor, clock, thread or randomness, so that a worker, a
//! simulator and a fuzzer drive the same code.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod blocks;
pub mod downstream;
mod leave;
pub mod pace;
pub mod plan;
pub mod stripe;
pub mod upstream;
pub mod wire;
