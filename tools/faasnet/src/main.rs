//! The `faasnet` program: process-wide set-up, nothing else.

#![forbid(unsafe_code)]

use std::process::ExitCode;

// The daemons allocate short-lived buffers on many threads; mimalloc keeps their resident size flat.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Ignored: it fails only when a provider is installed already, and nothing ran before this line.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    faasnet::run::main(std::env::args_os())
}
