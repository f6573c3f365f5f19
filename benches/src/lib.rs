//! Benches of the data plane: `relay` is what `faasnet bench relay` runs; micro-benches of single steps are in `benches/`
//! (`cargo bench -p faasnet-benches`).
//!
//! Our rows run the agent's own code; what is written here is only what stands around it and what it is compared with.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod relay;
