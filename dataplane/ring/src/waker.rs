//! A bell that any thread may ring to end a worker's wait: an eventfd.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};

use crate::SetupError;

/// Clones ring the same bell. The worker arms a read on [`Waker::as_fd`] and drains it before it looks at its queue.
#[derive(Debug, Clone)]
pub struct Waker {
    fd: Arc<OwnedFd>,
}

impl Waker {
    /// A bell that nobody has rung.
    pub fn new() -> Result<Self, SetupError> {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|source| SetupError::Kernel { what: "an eventfd", source: source.into() })?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// Makes the descriptor readable until the next [`Waker::drain`]. Never blocks.
    pub fn wake(&self) {
        // Ignored: the one failure of an 8-byte write to an eventfd is a full counter, and then it is readable already.
        let _ = write(&self.fd, &1u64.to_ne_bytes());
    }

    /// What to arm a read on.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Silences the bell; `true` if it had been rung.
    pub fn drain(&self) -> bool {
        read(&self.fd, &mut [0u8; 8]).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a ring that is lost, or a bell that never falls silent.
    #[test]
    fn a_ring_from_another_thread_is_seen_once() {
        let waker = Waker::new().unwrap();
        assert!(!waker.drain());
        let remote = waker.clone();
        std::thread::spawn(move || (0..3).for_each(|_| remote.wake())).join().unwrap();
        assert!(waker.drain());
        assert!(!waker.drain());
    }
}
