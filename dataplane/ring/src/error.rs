//! Why a worker's kernel objects could not be made.

use std::io;

/// Set-up failed; the message names the cause and the next step.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Buffers of no size, or more than there is address space.
    #[error("{slots} buffers of {payload_bytes} bytes cannot be made; check the worker's buffer settings")]
    ArenaSize {
        /// Buffers that were asked for.
        slots: usize,
        /// Payload bytes of each.
        payload_bytes: usize,
    },
    /// The kernel gave no memory for the buffers.
    #[error("no memory for {bytes} bytes of buffers: {source}; lower the number of buffers or raise the memory limit")]
    Memory {
        /// Bytes that were asked for.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// io_uring cannot be used on this host.
    #[error("{0}")]
    Uring(String),
    /// Another kernel object could not be made.
    #[error("{what} cannot be made: {source}; check the limit of open files (ulimit -n) and of threads")]
    Kernel {
        /// Which object.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
