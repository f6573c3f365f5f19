//! A kernel pipe as a container of page references: filled from a socket, teed to other pipes, drained to sockets.
//!
//! A pipe counts slots, not bytes: one slot holds one fragment of a socket buffer, whatever its length. So every call may move less
//! than asked for, and less is not `WouldBlock`. Owned by one worker.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice, tee};

use crate::Outcome;

/// The size of a slot in terms of what F_SETPIPE_SZ counts.
const SLOT_BYTES: usize = 4096;

/// Both ends of one pipe, non-blocking.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    slots: usize,
    buffered: Cell<usize>,
    /// Where [`Pipe::discard`] lets go; there before any byte is, so that discarding needs no new descriptor.
    null: &'static File,
}

impl Pipe {
    /// Makes a pipe of `wanted_bytes`, or the largest below it that this user may have; [`Pipe::slots`] tells.
    pub fn new(wanted_bytes: usize) -> io::Result<Self> {
        let null = null()?;
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        let mut wanted = wanted_bytes.max(SLOT_BYTES);
        // Above fs.pipe-max-size, or past the user's total, the kernel says EPERM: half may still be allowed.
        while wanted > SLOT_BYTES && fcntl_setpipe_size(&writer, wanted).is_err() {
            wanted /= 2;
        }
        let slots = fcntl_getpipe_size(&reader)? / SLOT_BYTES;
        Ok(Self { reader, writer, slots, buffered: Cell::new(0), null })
    }

    /// How many fragments fit; read back from the kernel.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// What it holds where fragments are whole pages.
    pub fn capacity_bytes(&self) -> usize {
        self.slots * SLOT_BYTES
    }

    /// Bytes in the pipe.
    pub fn buffered(&self) -> usize {
        self.buffered.get()
    }

    /// Moves up to `len` bytes from a socket's receive queue into the pipe. `WouldBlock`: the queue is empty, or the pipe is full
    /// ([`Pipe::buffered`] and [`crate::socket::readable_bytes`] tell which). The socket must be non-blocking.
    pub fn fill_from_socket(&self, fd: impl AsFd, len: usize) -> Outcome {
        if len == 0 {
            return Outcome::Moved(0);
        }
        let spliced = rustix::io::retry_on_intr(|| splice(&fd, None, &self.writer, None, len, FLAGS));
        self.gained(Outcome::of_read(spliced))
    }

    /// Shows up to `len` bytes from the front of this pipe to `other` without consuming them. There is no offset: calling it again
    /// before the front is consumed shows the same bytes again.
    pub fn tee_to(&self, other: &Pipe, len: usize) -> Outcome {
        if len == 0 {
            return Outcome::Moved(0);
        }
        let teed = rustix::io::retry_on_intr(|| tee(&self.reader, &other.writer, len, SpliceFlags::NONBLOCK));
        other.gained(Outcome::of_write(teed))
    }

    /// Moves up to `len` bytes from the front of this pipe to `other`.
    pub fn move_to(&self, other: &Pipe, len: usize) -> Outcome {
        if len == 0 {
            return Outcome::Moved(0);
        }
        let moved = rustix::io::retry_on_intr(|| splice(&self.reader, None, &other.writer, None, len, FLAGS));
        other.gained(self.lost(Outcome::of_write(moved)))
    }

    /// Moves up to `len` bytes from the front of this pipe into a socket's send queue. `more` as in [`crate::socket::send`].
    /// `WouldBlock` also when the pipe is empty. The socket must be non-blocking.
    pub fn drain_to_socket(&self, fd: impl AsFd, len: usize, more: bool) -> Outcome {
        if len == 0 {
            return Outcome::Moved(0);
        }
        let mut flags = FLAGS;
        flags.set(SpliceFlags::MORE, more);
        self.lost(Outcome::of_write(rustix::io::retry_on_intr(|| splice(&self.reader, None, &fd, None, len, flags))))
    }

    /// Copies bytes from the front into `bytes` and consumes them.
    pub fn read(&self, bytes: &mut [u8]) -> Outcome {
        if bytes.is_empty() {
            return Outcome::Moved(0);
        }
        self.lost(Outcome::of_read(rustix::io::retry_on_intr(|| rustix::io::read(&self.reader, &mut *bytes))))
    }

    /// Throws up to `len` bytes from the front away.
    pub fn discard(&self, len: usize) -> Outcome {
        if len == 0 {
            return Outcome::Moved(0);
        }
        self.lost(Outcome::of_write(rustix::io::retry_on_intr(|| {
            splice(&self.reader, None, self.null, None, len, FLAGS)
        })))
    }

    fn gained(&self, outcome: Outcome) -> Outcome {
        if let Outcome::Moved(moved) = outcome {
            self.buffered.set(self.buffered.get() + moved);
        }
        outcome
    }

    fn lost(&self, outcome: Outcome) -> Outcome {
        if let Outcome::Moved(moved) = outcome {
            debug_assert!(moved <= self.buffered.get(), "a pipe gave more than it got");
            self.buffered.set(self.buffered.get().saturating_sub(moved));
        }
        outcome
    }
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// `/dev/null`, opened once: splicing into it drops page references without copying them.
fn null() -> io::Result<&'static File> {
    static NULL: OnceLock<File> = OnceLock::new();
    if let Some(null) = NULL.get() {
        return Ok(null);
    }
    let opened = File::options().write(true).open("/dev/null")?;
    Ok(NULL.get_or_init(|| opened))
}
