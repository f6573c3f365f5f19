//! The driver on io_uring: one ring, one-shot polls, receives and sends for sockets, reads and writes for files.
//!
//! Owned by a [`crate::Driver`]. Everything that the kernel may touch (buffers, files, descriptors that are being closed) is held in
//! `ops` until its completion has been seen. `user_data` is a slab key, so that a completion of something finished finds nothing.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode, squeue};

use crate::driver::{Buffer, Direction, Exchange, Transfer};
use crate::setup::{COMPLETIONS, keep_together, poll_cards, register, setup};
use crate::slab::Slab;
use crate::{Arena, Completion, DriverOptions, SetupError, Token};

/// `user_data` of cancellations, whose own results do not matter; no slab key has this index.
const CANCELLATION: u64 = u64::MAX;
/// The arena is registered as one buffer, at this index.
const ARENA_BUFFER: u16 = 0;
/// So many bytes of files are handed to the kernel at once, and not with the next wait: a disk that gets all of a long turn's writes at
/// its end is idle during the turn, and gives all buffers back at the same moment. Enough for neighbours to be joined to one request.
const SUBMIT_BYTES: usize = 1 << 20;

pub(crate) struct UringDriver {
    /// Dropped by hand: never while an operation may still be running.
    ops: ManuallyDrop<Slab<Op>>,
    /// Keys of what is in flight on each descriptor, by number.
    lanes: Vec<Lanes>,
    /// Entries that found the submission queue full even after a submit.
    backlog: VecDeque<squeue::Entry>,
    /// Completions taken from the queue and not handled yet.
    reaped: VecDeque<(u64, i32)>,
    /// Bytes of transfers that the kernel has not been told of yet.
    unsubmitted_bytes: usize,
    ring: IoUring,
    arena: Arena,
    registered: bool,
    stopping: bool,
    notes: Vec<String>,
    stale: u64,
}

/// What the kernel is doing for us.
enum Op {
    Armed {
        fd: RawFd,
        direction: Direction,
        token: Token,
    },
    Exchange(RawFd, Exchange),
    /// Something whose completion must be swallowed; the last one of a descriptor that is being closed closes it. The kernel uses the
    /// buffer until then.
    Cancelled {
        _closing: Option<Rc<OwnedFd>>,
        _buffer: Option<Buffer>,
    },
    Transfer(Transfer),
}

/// What is in flight on one descriptor: one thing of each kind and direction.
#[derive(Clone, Default)]
struct Lanes {
    arms: [Option<u64>; 2],
    exchanges: [Option<u64>; 2],
}

impl UringDriver {
    pub(crate) fn new(arena: &Arena, options: &DriverOptions) -> Result<Self, SetupError> {
        let mut notes = Vec::new();
        let ring = setup(options, &mut notes).map_err(SetupError::Uring)?;
        poll_cards(&ring, options, &mut notes);
        let registered = register(&ring, arena, &mut notes);
        keep_together(&ring);
        Ok(Self {
            ops: ManuallyDrop::new(Slab::with_capacity(COMPLETIONS as usize)),
            lanes: Vec::new(),
            backlog: VecDeque::new(),
            reaped: VecDeque::with_capacity(COMPLETIONS as usize),
            unsubmitted_bytes: 0,
            ring,
            arena: arena.clone(),
            registered,
            stopping: false,
            notes,
            stale: 0,
        })
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    pub(crate) fn stale_completions(&self) -> u64 {
        self.stale
    }

    pub(crate) fn arm(&mut self, fd: BorrowedFd<'_>, direction: Direction, token: Token) {
        let fd = fd.as_raw_fd();
        if let Some(key) = self.lanes(fd).arms[direction as usize] {
            if let Some(Op::Armed { token: armed, .. }) = self.ops.get_mut(key) {
                *armed = token;
                return;
            }
            debug_assert!(false, "an arm is listed that is not in flight");
        }
        let key = self.ops.insert(Op::Armed { fd, direction, token });
        self.lanes(fd).arms[direction as usize] = Some(key);
        let events = match direction {
            Direction::Read => libc::POLLIN | libc::POLLRDHUP,
            Direction::Write => libc::POLLOUT,
        };
        self.push(opcode::PollAdd::new(Fd(fd), events as u32).build().user_data(key));
    }

    pub(crate) fn exchange(&mut self, fd: BorrowedFd<'_>, exchange: Exchange) {
        let (fd, direction) = (fd.as_raw_fd(), exchange.direction());
        debug_assert!(self.lanes(fd).exchanges[direction as usize].is_none(), "two exchanges in one direction");
        let key = self.ops.insert(Op::Exchange(fd, exchange));
        self.lanes(fd).exchanges[direction as usize] = Some(key);
        let Some(Op::Exchange(_, exchange)) = self.ops.get_mut(key) else { return };
        let entry = exchange_entry(fd, exchange).user_data(key);
        self.push(entry);
    }

    fn lanes(&mut self, fd: RawFd) -> &mut Lanes {
        let index = fd as usize;
        if self.lanes.len() <= index {
            self.lanes.resize(index + 1, Lanes::default());
        }
        &mut self.lanes[index]
    }

    pub(crate) fn disarm(&mut self, fd: BorrowedFd<'_>) {
        let arms = std::mem::take(&mut self.lanes(fd.as_raw_fd()).arms);
        self.cancel(arms, None);
    }

    pub(crate) fn close(&mut self, fd: OwnedFd) {
        let Lanes { arms, exchanges } = std::mem::take(self.lanes(fd.as_raw_fd()));
        // Closed here if nothing is in flight on it, else by the last completion.
        let closing = Some(Rc::new(fd));
        self.cancel(arms, closing.clone());
        self.cancel(exchanges, closing);
    }

    fn cancel(&mut self, keys: [Option<u64>; 2], closing: Option<Rc<OwnedFd>>) {
        for key in keys.into_iter().flatten() {
            if let Some(op) = self.ops.get_mut(key) {
                let cancelled = Op::Cancelled { _closing: closing.clone(), _buffer: None };
                if let Op::Exchange(_, exchange) = std::mem::replace(op, cancelled) {
                    *op = Op::Cancelled { _closing: closing.clone(), _buffer: Some(exchange.buffer) };
                }
                self.push(opcode::AsyncCancel::new(key).build().user_data(CANCELLATION));
            }
        }
    }

    pub(crate) fn start(&mut self, transfer: Transfer) {
        self.unsubmitted_bytes += transfer.range.len();
        let key = self.ops.insert(Op::Transfer(transfer));
        self.proceed(key);
        if self.unsubmitted_bytes >= SUBMIT_BYTES {
            self.unsubmitted_bytes = 0;
            // Ignored: what the kernel does not take now it is given with the next wait, which meets the error again.
            let _ = self.ring.submit();
        }
    }

    /// Submits what is still to do of a transfer.
    fn proceed(&mut self, key: u64) {
        let Some(Op::Transfer(transfer)) = self.ops.get_mut(key) else { return };
        let entry = entry(transfer, &self.arena, self.registered).user_data(key);
        self.push(entry);
    }

    fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() || !self.try_push(&entry) {
            // Ignored: if the kernel takes nothing now, the entry waits in the backlog, and `wait` meets the error again.
            let _ = self.ring.submit();
            self.backlog.push_back(entry);
            self.push_backlog();
        }
    }

    fn push_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the entry refers to is owned by the `Op` under its `user_data`, which stays in `ops` until the completion: the
        // lease (buffer) and file of a transfer, the descriptor of a close. A descriptor of `arm` is the caller's, who lends it until
        // the completion or `close`; the kernel takes its own reference when the entry is submitted.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    pub(crate) fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        self.push_backlog();
        self.unsubmitted_bytes = 0;
        let timeout = if self.reaped.is_empty() && self.backlog.is_empty() { timeout } else { Some(Duration::ZERO) };
        match self.enter(timeout) {
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                // The time is over, a signal came, or the kernel first wants its completions to be taken.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => return Err(error),
            },
        }
        self.reaped.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        while let Some((key, result)) = self.reaped.pop_front() {
            self.completed(key, result, out);
        }
        Ok(())
    }

    /// Submits what is queued and waits for one completion. Asks for events even without waiting: only then does the kernel run
    /// what it deferred, and refill a completion queue that overflowed.
    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        match timeout {
            None => self.ring.submitter().submit_and_wait(1),
            // The kernel's own thread runs what was deferred.
            Some(timeout) if timeout.is_zero() && self.ring.params().is_setup_sqpoll() => self.ring.submit(),
            Some(timeout) if timeout.is_zero() => {
                let queued = self.ring.submission().len() as u32;
                // SAFETY: without an argument the kernel reads no memory of ours but the queue, whose entries `try_push` vouches for.
                unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, EnterFlags::GETEVENTS.bits(), None) }
            }
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
        }
    }

    fn completed(&mut self, key: u64, result: i32, out: &mut Vec<Completion>) {
        if key == CANCELLATION {
            return;
        }
        match self.ops.get_mut(key) {
            None => self.stale += 1,
            Some(Op::Cancelled { .. }) => {
                self.stale += 1;
                self.ops.remove(key);
            }
            Some(Op::Armed { fd, direction, token }) => {
                // An error counts as ready: the caller's next call on the descriptor meets it.
                out.push(Completion::Ready { token: *token });
                self.lanes[*fd as usize].arms[*direction as usize] = None;
                self.ops.remove(key);
            }
            Some(Op::Exchange(fd, exchange)) => {
                self.lanes[*fd as usize].exchanges[exchange.direction() as usize] = None;
                if let Some(Op::Exchange(_, exchange)) = self.ops.remove(key) {
                    let moved = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
                    out.push(exchange.complete(moved));
                }
            }
            Some(Op::Transfer(transfer)) => match transferred(transfer, result) {
                Some(result) => self.finish(key, result, out),
                None if self.stopping => self.finish(key, Err(io::ErrorKind::Interrupted.into()), out),
                None => self.proceed(key),
            },
        }
    }

    fn finish(&mut self, key: u64, result: io::Result<()>, out: &mut Vec<Completion>) {
        if let Some(Op::Transfer(transfer)) = self.ops.remove(key) {
            out.push(transfer.complete(result));
        }
    }

    /// Cancels the arms and waits until the kernel uses nothing of ours.
    fn stop(&mut self) -> io::Result<()> {
        self.stopping = true;
        let keys: Vec<u64> = self.ops.iter_mut().map(|(key, _)| key).collect();
        for key in keys {
            // A write that is running is not stopped by this; it is waited for.
            self.push(opcode::AsyncCancel::new(key).build().user_data(CANCELLATION));
        }
        let mut out = Vec::new();
        while !self.ops.is_empty() {
            self.wait(None, &mut out)?;
            out.clear();
        }
        Ok(())
    }
}

impl Drop for UringDriver {
    fn drop(&mut self) {
        if self.stop().is_ok() {
            // SAFETY: dropped once, here, and not used after; the kernel has completed every operation in it.
            unsafe { ManuallyDrop::drop(&mut self.ops) }
        }
        // Else the ring is broken and the kernel may still write to the buffers: they stay leased, and so mapped, for good.
    }
}

/// What a completion says about a transfer: `None` when a part is left to do.
fn transferred(transfer: &mut Transfer, result: i32) -> Option<io::Result<()>> {
    match (result, &transfer.buffer) {
        (moved @ 1.., _) => transfer.advance(moved as usize).then_some(Ok(())),
        (0, Buffer::Read(_)) => Some(Err(io::ErrorKind::UnexpectedEof.into())),
        (0, Buffer::Write(_)) => Some(Err(io::ErrorKind::WriteZero.into())),
        (error, _) if [libc::EINTR, libc::EAGAIN].contains(&-error) => None,
        (error, _) => Some(Err(io::Error::from_raw_os_error(-error))),
    }
}

/// Plain addresses: the kernel copies to or from them while it runs the operation, so a registered buffer would save nothing.
fn exchange_entry(fd: RawFd, exchange: &mut Exchange) -> squeue::Entry {
    let range = exchange.range.clone();
    let len = range.len().min(1 << 30) as u32;
    match &mut exchange.buffer {
        Buffer::Read(buffer) => opcode::Recv::new(Fd(fd), buffer[range].as_mut_ptr(), len).build(),
        // MSG_WAITALL: the kernel goes on when the socket has room again, so a slow child costs one completion per buffer.
        Buffer::Write(data) => {
            let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
            opcode::Send::new(Fd(fd), data[range].as_ptr(), len).flags(flags).build()
        }
    }
}

fn entry(transfer: &mut Transfer, arena: &Arena, registered: bool) -> squeue::Entry {
    let fd = Fd(transfer.file.as_raw_fd());
    let (range, offset) = (transfer.range.clone(), transfer.offset);
    // A slot may be larger than one call can say; the rest follows as after a short write.
    let len = range.len().min(1 << 30) as u32;
    match &mut transfer.buffer {
        Buffer::Write(data) => {
            let start = data[range].as_ptr();
            match registered && arena.owns(data) {
                true => opcode::WriteFixed::new(fd, start, len, ARENA_BUFFER).offset(offset).build(),
                false => opcode::Write::new(fd, start, len).offset(offset).build(),
            }
        }
        Buffer::Read(buffer) => {
            let fixed = registered && arena.owns(buffer.as_lease());
            let start = buffer[range].as_mut_ptr();
            match fixed {
                true => opcode::ReadFixed::new(fd, start, len, ARENA_BUFFER).offset(offset).build(),
                false => opcode::Read::new(fd, start, len).offset(offset).build(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn transfer(arena: &Arena) -> Transfer {
        let buffer = Buffer::Write(arena.take().unwrap().freeze());
        Transfer {
            file: Arc::new(tempfile::tempfile().unwrap()),
            buffer,
            range: 50..350,
            offset: 1000,
            token: Token(0),
        }
    }

    /// Catches a short write that passes for a whole one, or goes on at the wrong place.
    #[test]
    fn a_short_write_goes_on_where_it_stopped() {
        let arena = Arena::new(1, 4096).unwrap();
        let mut short = transfer(&arena);
        assert!(transferred(&mut short, 100).is_none());
        assert_eq!((short.range.clone(), short.offset), (150..350, 1100));
        assert!(transferred(&mut short, -libc::EINTR).is_none());
        assert_eq!((short.range.clone(), short.offset), (150..350, 1100));
        assert!(matches!(transferred(&mut short, 200), Some(Ok(()))));
    }

    /// Catches a failure that is tried for ever.
    #[test]
    fn a_failed_write_ends() {
        let arena = Arena::new(1, 4096).unwrap();
        let mut failed = transfer(&arena);
        let full = transferred(&mut failed, -libc::ENOSPC);
        assert!(matches!(full, Some(Err(error)) if error.kind() == io::ErrorKind::StorageFull));
        assert!(matches!(transferred(&mut failed, 0), Some(Err(error)) if error.kind() == io::ErrorKind::WriteZero));
    }
}
