//! What one worker waits with: readiness of sockets, whole reads and writes of files, and, for the movers that want it, receives and
//! sends of sockets; by io_uring, by epoll and a disk thread, or by the tokio-uring runtime.
//!
//! Owned by one worker and not `Send`. It never closes a descriptor that the kernel still uses: [`Driver::close`] stops what is in
//! flight, waits for its last completion, and closes then.
//!
//! LIFECYCLE of a descriptor: idle → `arm_read`/`arm_write`/`receive`/`send` → in flight → its completion → idle; from in flight,
//! `close` or `disarm` → cancelled → its last completion is swallowed → closed. A descriptor that was ever used here must be closed
//! through [`Driver::close`] or be idle: the driver knows it by its number.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::epoll::EpollDriver;
use crate::tokio_driver::TokioUringDriver;
use crate::uring::UringDriver;
use crate::{Arena, Lease, LeaseMut, Outcome, SetupError};

/// Which kernel interface a driver uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverKind {
    /// One io_uring.
    Uring,
    /// epoll, and one thread for the disk: for hosts where io_uring is disabled.
    Epoll,
    /// The tokio-uring runtime: to compare with, and as an oracle.
    TokioUring,
}

impl DriverKind {
    /// The name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uring => "io_uring",
            Self::Epoll => "epoll",
            Self::TokioUring => "tokio-uring",
        }
    }
}

/// What a driver may be asked for beyond the ordinary. What a kernel lacks is done without and noted ([`Driver::notes`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DriverOptions {
    /// A kernel thread takes submissions and sleeps when there were none for this many milliseconds (IORING_SETUP_SQPOLL): fewer
    /// system calls for a core that is never idle.
    pub sqpoll_idle_ms: Option<u32>,
    /// Waits poll the network cards for this many microseconds before they sleep (IORING_REGISTER_NAPI, Linux 6.9).
    pub busy_poll_us: Option<u32>,
}

/// The caller's name for what it armed or started; comes back in the completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// Something that was armed or started has happened.
#[derive(Debug)]
pub enum Completion {
    /// The descriptor is ready, ended or broken; the next call on it tells. It is not armed any more.
    Ready {
        /// As given to `arm_read` or `arm_write`.
        token: Token,
    },
    /// A write is done, wholly or not at all as far as anyone may rely on.
    Wrote {
        /// As given to `write`.
        token: Token,
        /// Why it failed.
        result: io::Result<()>,
    },
    /// A read is done; the range is filled.
    Read {
        /// As given to `read`.
        token: Token,
        /// The buffer, or why it failed (the buffer is then back in the arena).
        result: io::Result<LeaseMut>,
    },
    /// A receive is done.
    Received {
        /// As given to `receive`.
        token: Token,
        /// The buffer; what moved lies at the start of the range.
        buffer: LeaseMut,
        /// How much came.
        outcome: Outcome,
    },
    /// A send is done. Fewer bytes than asked for: the next call on the socket tells why.
    Sent {
        /// As given to `send`.
        token: Token,
        /// How much the socket took.
        outcome: Outcome,
    },
}

/// See the module's documentation.
pub struct Driver {
    backend: Backend,
    /// Completions that needed no kernel: given out by the next `wait`.
    done: VecDeque<Completion>,
}

enum Backend {
    Uring(Box<UringDriver>),
    Epoll(Box<EpollDriver>),
    TokioUring(Box<TokioUringDriver>),
}

impl Driver {
    /// Makes a driver for the buffers of `arena`, on the thread that will use it.
    pub fn new(kind: DriverKind, arena: &Arena) -> Result<Self, SetupError> {
        Self::with_options(kind, arena, &DriverOptions::default())
    }

    /// The same with `options`.
    pub fn with_options(kind: DriverKind, arena: &Arena, options: &DriverOptions) -> Result<Self, SetupError> {
        let backend = match kind {
            DriverKind::Uring => Backend::Uring(Box::new(UringDriver::new(arena, options)?)),
            DriverKind::Epoll => Backend::Epoll(Box::new(EpollDriver::new(arena.slots())?)),
            DriverKind::TokioUring => Backend::TokioUring(Box::new(TokioUringDriver::new()?)),
        };
        Ok(Self { backend, done: VecDeque::new() })
    }

    /// What it runs on.
    pub fn kind(&self) -> DriverKind {
        match self.backend {
            Backend::Uring(_) => DriverKind::Uring,
            Backend::Epoll(_) => DriverKind::Epoll,
            Backend::TokioUring(_) => DriverKind::TokioUring,
        }
    }

    /// Whether [`Driver::receive`] and [`Driver::send`] work.
    pub fn moves_sockets(&self) -> bool {
        !matches!(self.backend, Backend::Epoll(_))
    }

    /// What the host lacked and what is used instead, for the log.
    pub fn notes(&self) -> Vec<String> {
        match &self.backend {
            Backend::Uring(uring) => uring.notes(),
            Backend::Epoll(_) | Backend::TokioUring(_) => Vec::new(),
        }
    }

    /// Asks for one `Ready` when `fd` can be read, ended or broke. While armed, only the token is changed.
    pub fn arm_read(&mut self, fd: BorrowedFd<'_>, token: Token) {
        self.arm(fd, Direction::Read, token);
    }

    /// Asks for one `Ready` when `fd` can be written or broke. While armed, only the token is changed.
    pub fn arm_write(&mut self, fd: BorrowedFd<'_>, token: Token) {
        self.arm(fd, Direction::Write, token);
    }

    fn arm(&mut self, fd: BorrowedFd<'_>, direction: Direction, token: Token) {
        match &mut self.backend {
            Backend::Uring(uring) => uring.arm(fd, direction, token),
            Backend::Epoll(epoll) => self.done.extend(epoll.arm_or_ready(fd, direction, token)),
            Backend::TokioUring(tokio) => self.done.extend(tokio.arm(fd, direction, token)),
        }
    }

    /// Takes back what is armed on `fd`; no `Ready` follows.
    pub fn disarm(&mut self, fd: BorrowedFd<'_>) {
        match &mut self.backend {
            Backend::Uring(uring) => uring.disarm(fd),
            Backend::Epoll(epoll) => drop(epoll.disarm(fd)),
            Backend::TokioUring(tokio) => tokio.disarm(fd),
        }
    }

    /// Takes back what is armed on `fd` and closes it as soon as nothing in the kernel refers to it; no `Ready` follows.
    pub fn close(&mut self, fd: OwnedFd) {
        match &mut self.backend {
            Backend::Uring(uring) => uring.close(fd),
            Backend::Epoll(epoll) => epoll.close(fd),
            Backend::TokioUring(tokio) => tokio.close(fd),
        }
    }

    /// Receives what comes next on `fd`, at least one byte, into `buffer[range]`: `Received` follows. One at a time per descriptor. It
    /// takes at once what is there; when nothing is, it wakes up like a poll does (SO_RCVLOWAT).
    ///
    /// # Panics
    /// When `range` is empty or not within `buffer`, or the driver does not move socket bytes ([`Driver::moves_sockets`]).
    pub fn receive(&mut self, fd: BorrowedFd<'_>, buffer: LeaseMut, range: Range<usize>, token: Token) {
        assert!(
            range.start < range.end && range.end <= buffer.len(),
            "a receive of {range:?} to {} bytes",
            buffer.len()
        );
        self.exchange(fd, Exchange { buffer: Buffer::Read(buffer), range, token });
    }

    /// Sends `data[range]` on `fd`, whole unless the connection breaks: `Sent` follows. One at a time per descriptor, and nothing else may
    /// be sent on it meanwhile. The lease is held until then.
    ///
    /// # Panics
    /// As [`Driver::receive`].
    pub fn send(&mut self, fd: BorrowedFd<'_>, data: Lease, range: Range<usize>, token: Token) {
        assert!(range.start < range.end && range.end <= data.len(), "a send of {range:?} from {} bytes", data.len());
        self.exchange(fd, Exchange { buffer: Buffer::Write(data), range, token });
    }

    fn exchange(&mut self, fd: BorrowedFd<'_>, exchange: Exchange) {
        match &mut self.backend {
            Backend::Uring(uring) => uring.exchange(fd, exchange),
            Backend::TokioUring(tokio) => tokio.exchange(fd, exchange),
            Backend::Epoll(_) => panic!("epoll tells readiness and moves no bytes of sockets"),
        }
    }

    /// Writes `data[range]` to `file` at `offset`, whole.
    ///
    /// # Panics
    /// When `range` is not within `data`.
    pub fn write(&mut self, file: &Arc<File>, data: Lease, range: Range<usize>, offset: u64, token: Token) {
        assert!(range.start <= range.end && range.end <= data.len(), "a write of {range:?} from {} bytes", data.len());
        if range.is_empty() {
            return self.done.push_back(Completion::Wrote { token, result: Ok(()) });
        }
        self.start(Transfer { file: Arc::clone(file), buffer: Buffer::Write(data), range, offset, token });
    }

    /// Fills `buffer[range]` from `file` at `offset`, whole; a file that ends before is `UnexpectedEof`.
    ///
    /// # Panics
    /// When `range` is not within `buffer`.
    pub fn read(&mut self, file: &Arc<File>, buffer: LeaseMut, range: Range<usize>, offset: u64, token: Token) {
        assert!(range.start <= range.end && range.end <= buffer.len(), "a read of {range:?} to {} bytes", buffer.len());
        if range.is_empty() {
            return self.done.push_back(Completion::Read { token, result: Ok(buffer) });
        }
        self.start(Transfer { file: Arc::clone(file), buffer: Buffer::Read(buffer), range, offset, token });
    }

    fn start(&mut self, transfer: Transfer) {
        match &mut self.backend {
            Backend::Uring(uring) => uring.start(transfer),
            Backend::Epoll(epoll) => {
                if let Err(failed) = epoll.start(transfer) {
                    self.done.push_back(failed);
                }
            }
            Backend::TokioUring(tokio) => tokio.start(transfer),
        }
    }

    /// Appends what has completed to `out`; waits for it up to `timeout` (`None`: until something happens). Nothing is an `Ok`, too.
    ///
    /// What lies in `out` cannot be taken back: a caller that closes a descriptor while it works through `out` may still find that
    /// descriptor's `Ready` further on, so tokens should carry a generation.
    pub fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        let had = out.len();
        out.extend(self.done.drain(..));
        let timeout = if out.len() > had { Some(Duration::ZERO) } else { timeout };
        // A wait longer than the clock can tell is a wait without end.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut left = deadline.and(timeout);
        loop {
            match &mut self.backend {
                Backend::Uring(uring) => uring.wait(left, out)?,
                Backend::Epoll(epoll) => epoll.wait(left, out)?,
                Backend::TokioUring(tokio) => tokio.wait(left, out)?,
            }
            if out.len() > had {
                return Ok(());
            }
            // A signal or a swallowed completion ended the wait before its time.
            left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(());
            }
        }
    }

    /// Completions of arms that had been cancelled, and of things that this driver does not know; they were not passed on.
    pub fn stale_completions(&self) -> u64 {
        match &self.backend {
            Backend::Uring(uring) => uring.stale_completions(),
            Backend::Epoll(epoll) => epoll.stale_completions(),
            Backend::TokioUring(tokio) => tokio.stale_completions(),
        }
    }
}

/// Which readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Read = 0,
    Write = 1,
}

/// One read or write of a file in flight: owns everything that the kernel or the disk thread uses, until it has completed.
pub(crate) struct Transfer {
    pub(crate) file: Arc<File>,
    pub(crate) buffer: Buffer,
    /// What is still to do of the buffer.
    pub(crate) range: Range<usize>,
    /// Where `range.start` lies in the file.
    pub(crate) offset: u64,
    pub(crate) token: Token,
}

/// One receive or send of a socket in flight: owns the memory until it has completed.
pub(crate) struct Exchange {
    pub(crate) buffer: Buffer,
    pub(crate) range: Range<usize>,
    pub(crate) token: Token,
}

impl Exchange {
    /// Which way it goes.
    pub(crate) fn direction(&self) -> Direction {
        match self.buffer {
            Buffer::Write(_) => Direction::Write,
            Buffer::Read(_) => Direction::Read,
        }
    }

    /// The completion; gives the buffer back.
    pub(crate) fn complete(self, result: io::Result<usize>) -> Completion {
        let token = self.token;
        let outcome = match result {
            Ok(0) => Outcome::Ended,
            Ok(moved) => Outcome::Moved(moved),
            // Interrupted before anything moved: not the connection's fault.
            Err(error) if [Some(libc::EAGAIN), Some(libc::EINTR)].contains(&error.raw_os_error()) => {
                Outcome::WouldBlock
            }
            Err(error) => Outcome::Failed(error),
        };
        match self.buffer {
            Buffer::Write(_) => Completion::Sent { token, outcome },
            Buffer::Read(buffer) => Completion::Received { token, buffer, outcome },
        }
    }
}

/// The memory of a transfer, and with it the direction.
pub(crate) enum Buffer {
    Write(Lease),
    Read(LeaseMut),
}

impl Transfer {
    /// The completion of the whole transfer; gives the buffer back.
    pub(crate) fn complete(self, result: io::Result<()>) -> Completion {
        let token = self.token;
        match self.buffer {
            Buffer::Write(_) => Completion::Wrote { token, result },
            Buffer::Read(buffer) => Completion::Read { token, result: result.map(|()| buffer) },
        }
    }

    /// Counts `moved` bytes as done; `true` when that was the rest.
    pub(crate) fn advance(&mut self, moved: usize) -> bool {
        debug_assert!(moved <= self.range.len(), "more bytes than were asked for");
        self.range.start = (self.range.start + moved).min(self.range.end);
        self.offset += moved as u64;
        self.range.is_empty()
    }
}
