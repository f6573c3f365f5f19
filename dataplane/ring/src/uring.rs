//! The driver on io_uring: one ring, one-shot polls for sockets, reads and writes for files.
//!
//! Owned by a [`crate::Driver`]. Everything that the kernel may touch (buffers, files, descriptors that are being closed) is held in
//! `ops` until its completion has been seen. `user_data` is a slab key, so that a completion of something finished finds nothing.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::types::{Fd, Napi, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode, squeue};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::driver::{Buffer, Direction, Transfer};
use crate::slab::Slab;
use crate::{Arena, Completion, DriverOptions, SetupError, Token};

/// Entries of the submission queue: a tick rarely starts more; a full queue is submitted early.
const SUBMISSIONS: u32 = 256;
/// Entries of the completion queue: more in flight than this makes the kernel keep the rest for the next wait.
const COMPLETIONS: u32 = 1024;
/// What is tried where locked memory is scarce: two pages.
const SMALL_SUBMISSIONS: u32 = 32;
/// See [`SMALL_SUBMISSIONS`].
const SMALL_COMPLETIONS: u32 = 128;
/// `user_data` of cancellations, whose own results do not matter; no slab key has this index.
const CANCELLATION: u64 = u64::MAX;
/// The arena is registered as one buffer, at this index.
const ARENA_BUFFER: u16 = 0;
/// The kernel's limit for one registered buffer.
const MAX_REGISTERED_BYTES: usize = 1 << 30;
/// Buffers of one worker may take this part of the memory that a user may lock.
const LOCKED_SHARE: u64 = 8;

pub(crate) struct UringDriver {
    /// Dropped by hand: never while an operation may still be running.
    ops: ManuallyDrop<Slab<Op>>,
    /// Keys of what is armed on each descriptor, by number and direction.
    arms: Vec<[Option<u64>; 2]>,
    /// Entries that found the submission queue full even after a submit.
    backlog: VecDeque<squeue::Entry>,
    /// Completions taken from the queue and not handled yet.
    reaped: VecDeque<(u64, i32)>,
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
    /// An arm whose completion must be swallowed; the last one of a descriptor that is being closed closes it.
    Cancelled {
        _closing: Option<Rc<OwnedFd>>,
    },
    Transfer(Transfer),
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
            arms: Vec::new(),
            backlog: VecDeque::new(),
            reaped: VecDeque::with_capacity(COMPLETIONS as usize),
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
        let index = fd as usize;
        if self.arms.len() <= index {
            self.arms.resize(index + 1, [None; 2]);
        }
        if let Some(key) = self.arms[index][direction as usize] {
            if let Some(Op::Armed { token: armed, .. }) = self.ops.get_mut(key) {
                *armed = token;
                return;
            }
            debug_assert!(false, "an arm is listed that is not in flight");
        }
        let key = self.ops.insert(Op::Armed { fd, direction, token });
        self.arms[index][direction as usize] = Some(key);
        let events = match direction {
            Direction::Read => libc::POLLIN | libc::POLLRDHUP,
            Direction::Write => libc::POLLOUT,
        };
        self.push(opcode::PollAdd::new(Fd(fd), events as u32).build().user_data(key));
    }

    pub(crate) fn disarm(&mut self, fd: BorrowedFd<'_>) {
        self.cancel(fd.as_raw_fd(), None);
    }

    pub(crate) fn close(&mut self, fd: OwnedFd) {
        // Closed here if nothing is armed on it, else by the last completion.
        self.cancel(fd.as_raw_fd(), Some(Rc::new(fd)));
    }

    fn cancel(&mut self, fd: RawFd, closing: Option<Rc<OwnedFd>>) {
        let Some(arms) = self.arms.get_mut(fd as usize) else { return };
        for key in std::mem::take(arms).into_iter().flatten() {
            if let Some(op) = self.ops.get_mut(key) {
                *op = Op::Cancelled { _closing: closing.clone() };
                self.push(opcode::AsyncCancel::new(key).build().user_data(CANCELLATION));
            }
        }
    }

    pub(crate) fn start(&mut self, transfer: Transfer) {
        let key = self.ops.insert(Op::Transfer(transfer));
        self.proceed(key);
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
                self.arms[*fd as usize][*direction as usize] = None;
                self.ops.remove(key);
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

/// Lets the kernel's own threads of this ring run only where this thread may run. They ignore its affinity otherwise, so a worker that is
/// pinned to a core would write files on somebody else's (IORING_REGISTER_IOWQ_AFF, Linux 5.14).
fn keep_together(ring: &IoUring) {
    // SAFETY: an all-zero `cpu_set_t` is an empty set.
    let mut cores: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: asks about the calling thread; the kernel writes at most the given size into the live local `cores`.
    let known = unsafe { libc::sched_getaffinity(0, size_of_val(&cores), &raw mut cores) };
    if known == 0 {
        // Ignored: an older kernel has its threads run anywhere, which is a matter of speed only.
        let _ = ring.submitter().register_iowq_aff(&cores);
    }
}

/// Makes the ring in the best way that this kernel and this user's limits allow; the error is a sentence.
pub(crate) fn setup(options: &DriverOptions, notes: &mut Vec<String>) -> Result<IoUring, String> {
    match build(options, SUBMISSIONS, COMPLETIONS, notes) {
        // Rings count against RLIMIT_MEMLOCK, over all processes of an unprivileged user.
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
            let small = build(options, SMALL_SUBMISSIONS, SMALL_COMPLETIONS, notes);
            notes.push(
                "RLIMIT_MEMLOCK leaves room for a small io_uring only; raise ulimit -l to save system calls".into(),
            );
            small
        }
        other => other,
    }
    .map_err(|error| explain(&error))
    .and_then(usable)
}

fn build(options: &DriverOptions, submissions: u32, completions: u32, notes: &mut Vec<String>) -> io::Result<IoUring> {
    if let Some(idle_ms) = options.sqpoll_idle_ms {
        let mut polled = IoUring::builder();
        // Deferred task running needs the worker to submit by itself, so the two exclude each other.
        polled.setup_single_issuer().setup_submit_all().setup_sqpoll(idle_ms);
        match polled.setup_cqsize(completions).setup_clamp().dontfork().build(submissions) {
            Ok(ring) => return Ok(ring),
            Err(error) => notes.push(format!(
                "no kernel thread for submissions (SQPOLL): {error}; the worker submits by itself (Linux 6.0 or later \
                 is needed, and a user who may start threads)"
            )),
        }
    }
    let mut deferred = IoUring::builder();
    // Completions are run by our own wait instead of interrupting us (Linux 6.1).
    deferred.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
    let mut cooperative = IoUring::builder();
    cooperative.setup_coop_taskrun();
    let ways =
        [(deferred, None), (cooperative, Some("deferred")), (IoUring::builder(), Some("deferred or cooperative"))];
    for (mut builder, lacks) in ways {
        match builder.setup_cqsize(completions).setup_clamp().dontfork().build(submissions) {
            // A flag that this kernel does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => {
                if let Some(lacks) = lacks {
                    let cost = "it interrupts the worker more often";
                    notes.push(format!("this kernel's io_uring has no {lacks} task running (Linux 6.1 has); {cost}"));
                }
                return result;
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

/// Has waits poll the network cards, where the kernel can.
fn poll_cards(ring: &IoUring, options: &DriverOptions, notes: &mut Vec<String>) {
    let Some(micros) = options.busy_poll_us else { return };
    let mut napi = Napi::new().set_busy_poll_timeout(micros).set_prefer_busy_poll(true);
    if let Err(error) = ring.submitter().register_napi(&mut napi) {
        notes.push(format!(
            "io_uring cannot poll network cards ({error}; Linux 6.9 or later can); SO_BUSY_POLL of the sockets is left"
        ));
    }
}

fn usable(ring: IoUring) -> Result<IoUring, String> {
    let parameters = ring.params();
    match parameters.is_feature_ext_arg() && parameters.is_feature_nodrop() {
        true => Ok(ring),
        false => {
            Err("this kernel's io_uring lacks timed waits (Linux 5.11 or later has them); run with --engine copy"
                .into())
        }
    }
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            "this kernel or container has no io_uring; allow the io_uring system calls or run with --engine copy".into()
        }
        Some(libc::EPERM) => {
            let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
            match disabled.trim() {
                "" | "0" => {
                    "io_uring is forbidden here (seccomp or a security module); allow it or run with --engine copy"
                        .into()
                }
                level => format!(
                    "io_uring is disabled on this host (kernel.io_uring_disabled={level}); set it to 0 or run with --engine copy"
                ),
            }
        }
        Some(libc::EINVAL) => {
            "this kernel's io_uring is too old (Linux 5.11 or later is needed); run with --engine copy".into()
        }
        Some(libc::ENOMEM) => {
            "no memory for an io_uring; raise RLIMIT_MEMLOCK (ulimit -l) or run with --engine copy".into()
        }
        _ => format!("io_uring cannot be set up: {error}; run with --engine copy"),
    }
}

/// Registers the arena, so that the kernel need not look its pages up for every transfer.
fn register(ring: &IoUring, arena: &Arena, notes: &mut Vec<String>) -> bool {
    let (start, len) = arena.mapping();
    if len > MAX_REGISTERED_BYTES {
        notes.push(format!("{len} bytes of buffers are more than io_uring can register; they are used unregistered"));
        return false;
    }
    let limit = lockable_bytes();
    // Greed would leave no room for the rings of this user's other agents, which fail altogether without it.
    if limit.is_some_and(|limit| len as u64 > limit / LOCKED_SHARE) {
        notes.push(format!(
            "RLIMIT_MEMLOCK ({} bytes for all processes of this user) is too low to register {len} bytes of buffers with io_uring; \
             they are used unregistered (raise ulimit -l to {} to save some CPU)",
            limit.unwrap_or(0),
            (len as u64).div_ceil(1024) * LOCKED_SHARE
        ));
        return false;
    }
    let buffer = libc::iovec { iov_base: start.cast(), iov_len: len };
    // SAFETY: the mapping is owned by the arena, of which the driver keeps a clone until after the ring is gone; the kernel pins its
    // pages itself and copies the iovec.
    match unsafe { ring.submitter().register_buffers(&[buffer]) } {
        Ok(()) => true,
        Err(error) => {
            notes.push(format!("buffers cannot be registered with io_uring ({error}); they are used unregistered"));
            false
        }
    }
}

/// How much memory this user's processes may lock; `None` = no limit, or a capability that lifts it.
fn lockable_bytes() -> Option<u64> {
    let lifted = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if lifted { None } else { getrlimit(Resource::Memlock).current }
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
