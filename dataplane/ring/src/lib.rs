//! The kernel: readiness and disk I/O for one worker, buffers, pipes, sockets and files.
//!
//! The only crate of the workspace with unsafe code. It decides nothing: it moves bytes when told to and says what happened. What it
//! hands out is single-threaded where a worker owns it ([`Arena`], [`Driver`], [`Pipe`]) and thread-safe where planes meet
//! ([`Waker`]).
//!
//! Programs that use it must ignore SIGPIPE, as Rust programs do by default: `splice` and `sendfile` have no flag against it.

#![deny(unsafe_op_in_unsafe_fn)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod arena;
pub mod cores;
mod driver;
mod epoll;
mod error;
pub mod file;
mod pipe;
mod probe;
mod setup;
mod slab;
pub mod socket;
mod tokio_driver;
mod uring;
mod waker;

pub use arena::{Arena, HEADROOM_BYTES, Lease, LeaseMut};
pub use driver::{Completion, Driver, DriverKind, DriverOptions, Token};
pub use error::SetupError;
pub use pipe::Pipe;
pub use probe::{Probe, probe};
pub use socket::{Outcome, SocketOptions};
pub use waker::Waker;
