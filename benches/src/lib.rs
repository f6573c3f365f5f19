//! Micro-benches of what happens per frame and per block; see `benches/`. Run them with `cargo bench -p faasnet-benches`.

#![forbid(unsafe_code)]
