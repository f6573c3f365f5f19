//! The driver for hosts without io_uring: epoll for readiness, one thread for the disk.
//!
//! Owned by a [`crate::Driver`]. The worker never waits for a disk: it queues the transfer and is woken through an eventfd.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, unbounded};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::driver::{Buffer, Direction, Transfer};
use crate::slab::Slab;
use crate::{Completion, SetupError, Token, Waker};

const EVENTS: usize = 256;
/// The disk thread's bell in the event data; no descriptor has this number.
const BELL: u64 = u64::MAX;

pub(crate) struct EpollDriver {
    epoll: OwnedFd,
    arms: Vec<Arms>,
    events: Vec<Event>,
    transfers: Slab<Transfer>,
    /// None where somebody else does the disk's part.
    disk: Option<Disk>,
    stale: u64,
}

/// What is armed on the descriptor with the number of this entry.
#[derive(Clone, Default)]
struct Arms {
    tokens: [Option<Token>; 2],
    /// The epoll set contains it.
    known: bool,
}

impl EpollDriver {
    pub(crate) fn new(slots: usize) -> Result<Self, SetupError> {
        let mut driver = Self::without_disk()?;
        let disk = Disk::start()?;
        epoll::add(&driver.epoll, disk.bell.as_fd(), EventData::new_u64(BELL), EventFlags::IN)
            .map_err(|source| SetupError::Kernel { what: "a watch of the disk thread", source: source.into() })?;
        driver.transfers = Slab::with_capacity(slots);
        driver.disk = Some(disk);
        Ok(driver)
    }

    /// Readiness only: [`EpollDriver::start`] refuses.
    pub(crate) fn without_disk() -> Result<Self, SetupError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|source| SetupError::Kernel { what: "an epoll set", source: source.into() })?;
        Ok(Self {
            epoll,
            arms: Vec::new(),
            events: Vec::with_capacity(EVENTS),
            transfers: Slab::with_capacity(0),
            disk: None,
            stale: 0,
        })
    }

    /// Readable when something that is armed is ready.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn arm(&mut self, fd: BorrowedFd<'_>, direction: Direction, token: Token) -> io::Result<()> {
        let index = fd.as_raw_fd() as usize;
        if self.arms.len() <= index {
            self.arms.resize(index + 1, Arms::default());
        }
        if self.arms[index].tokens[direction as usize].replace(token).is_none() {
            self.watch(fd)?;
        }
        Ok(())
    }

    /// Arms; when the kernel will not watch `fd`, tells it ready, and the caller's next call on it meets the reason.
    pub(crate) fn arm_or_ready(
        &mut self,
        fd: BorrowedFd<'_>,
        direction: Direction,
        token: Token,
    ) -> impl Iterator<Item = Completion> + use<> {
        let refused = match self.arm(fd, direction, token) {
            Ok(()) => [None; 2],
            Err(_) => self.disarm(fd),
        };
        refused.into_iter().flatten().map(|token| Completion::Ready { token })
    }

    /// Tells the kernel what is armed on `fd`.
    fn watch(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let arms = &mut self.arms[fd.as_raw_fd() as usize];
        let mut flags = EventFlags::ONESHOT;
        flags.set(EventFlags::IN | EventFlags::RDHUP, arms.tokens[Direction::Read as usize].is_some());
        flags.set(EventFlags::OUT, arms.tokens[Direction::Write as usize].is_some());
        let data = EventData::new_u64(fd.as_raw_fd() as u64);
        if arms.known {
            match epoll::modify(&self.epoll, fd, data, flags) {
                // An idle descriptor was closed elsewhere and its number given to another.
                Err(Errno::NOENT) => {}
                result => return Ok(result?),
            }
        }
        epoll::add(&self.epoll, fd, data, flags)?;
        arms.known = true;
        Ok(())
    }

    /// Forgets `fd`; returns what was armed on it.
    pub(crate) fn disarm(&mut self, fd: BorrowedFd<'_>) -> [Option<Token>; 2] {
        let Some(arms) = self.arms.get_mut(fd.as_raw_fd() as usize) else { return [None; 2] };
        let Arms { tokens, known } = std::mem::take(arms);
        if known {
            // Ignored: the one failure is that the set does not contain it, which is what we want.
            let _ = epoll::delete(&self.epoll, fd);
        }
        tokens
    }

    pub(crate) fn close(&mut self, fd: OwnedFd) {
        // epoll refers to nothing between waits, so the descriptor can be closed at once.
        self.disarm(fd.as_fd());
    }

    pub(crate) fn start(&mut self, mut transfer: Transfer) -> Result<(), Completion> {
        let file = Arc::clone(&transfer.file);
        let memory = Memory::of(&mut transfer);
        let offset = transfer.offset;
        let key = self.transfers.insert(transfer);
        if self.disk.as_ref().is_some_and(|disk| disk.queue(Job { key, file, memory, offset })) {
            return Ok(());
        }
        let error = io::Error::other("the disk thread has ended");
        self.transfers.remove(key).map_or(Ok(()), |transfer| Err(transfer.complete(Err(error))))
    }

    pub(crate) fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for index in 0..self.events.len() {
            let Event { flags, data, .. } = self.events[index];
            match data.u64() {
                BELL => self.collect(out),
                fd => self.fired(fd as RawFd, flags, out),
            }
        }
        Ok(())
    }

    fn collect(&mut self, out: &mut Vec<Completion>) {
        let Some(disk) = &self.disk else { return };
        disk.bell.drain();
        while let Ok((key, result)) = disk.results.try_recv() {
            match self.transfers.remove(key) {
                Some(transfer) => out.push(transfer.complete(result)),
                None => self.stale += 1,
            }
        }
    }

    fn fired(&mut self, fd: RawFd, flags: EventFlags, out: &mut Vec<Completion>) {
        let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        let readable = broken || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        let writable = broken || flags.intersects(EventFlags::OUT);
        let Some(arms) = self.arms.get_mut(fd as usize) else { return self.stale += 1 };
        let had = out.len();
        for (direction, fired) in [(Direction::Read, readable), (Direction::Write, writable)] {
            if fired && let Some(token) = arms.tokens[direction as usize].take() {
                out.push(Completion::Ready { token });
            }
        }
        self.stale += u64::from(out.len() == had);
        let rest = arms.tokens.iter().flatten().next().copied();
        if let Some(token) = rest {
            // SAFETY: the other direction is still armed, and by the driver's contract an armed descriptor is closed only through
            // `close`, which clears its entry; so the number still names the open descriptor that the caller lent. Borrowed for one
            // call.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            if self.watch(fd).is_err() {
                self.disarm(fd);
                out.push(Completion::Ready { token });
            }
        }
    }

    pub(crate) fn stale_completions(&self) -> u64 {
        self.stale
    }
}

impl Drop for EpollDriver {
    fn drop(&mut self) {
        // Before `transfers`, whose memory the thread uses.
        if let Some(disk) = &mut self.disk {
            disk.stop();
        }
    }
}

/// The disk thread and the queues to and from it. Their length is bounded by the arena: every transfer holds a lease.
struct Disk {
    jobs: Option<Sender<Job>>,
    results: Receiver<(u64, io::Result<()>)>,
    bell: Waker,
    thread: Option<JoinHandle<()>>,
}

struct Job {
    key: u64,
    file: Arc<File>,
    memory: Memory,
    offset: u64,
}

/// A part of a lease that is parked in `EpollDriver::transfers` until the disk thread has answered.
enum Memory {
    Source(*const u8, usize),
    Target(*mut u8, usize),
}

// SAFETY: the memory belongs to a lease that stays parked in the driver until the answer has come back, the driver joins the thread
// before it drops parked leases, and nobody looks at a parked `LeaseMut`; so the disk thread is the only one that uses a target, and a
// source is only read by anybody. The lease itself, which is not `Send`, stays on the worker's thread.
unsafe impl Send for Memory {}

impl Memory {
    fn of(transfer: &mut Transfer) -> Self {
        let (range, len) = (transfer.range.clone(), transfer.range.len());
        match &mut transfer.buffer {
            Buffer::Write(data) => Self::Source(data[range].as_ptr(), len),
            Buffer::Read(buffer) => Self::Target(buffer[range].as_mut_ptr(), len),
        }
    }
}

impl Disk {
    fn start() -> Result<Self, SetupError> {
        let (jobs, queue) = unbounded::<Job>();
        let (answers, results) = unbounded();
        let bell = Waker::new()?;
        let ring = bell.clone();
        let run = move || {
            for job in queue {
                // Ignored: the driver has gone; it waits for this thread, which ends when the queue is empty.
                let _ = answers.send((job.key, job.run()));
                ring.wake();
            }
        };
        let thread = std::thread::Builder::new()
            .name("faasnet-disk".into())
            .spawn(run)
            .map_err(|source| SetupError::Kernel { what: "the disk thread", source })?;
        Ok(Self { jobs: Some(jobs), results, bell, thread: Some(thread) })
    }

    fn queue(&self, job: Job) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok())
    }

    fn stop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // Ignored: a thread that panicked does not use the memory any more either.
            let _ = thread.join();
        }
    }
}

impl Job {
    fn run(&self) -> io::Result<()> {
        match self.memory {
            Memory::Source(start, len) => {
                // SAFETY: see `Memory`: the parked lease owns these bytes until this thread has answered, and nobody writes to them.
                let bytes = unsafe { std::slice::from_raw_parts(start, len) };
                self.file.write_all_at(bytes, self.offset)
            }
            Memory::Target(start, len) => {
                // SAFETY: see `Memory`: the parked lease owns these bytes until this thread has answered, and nobody else uses them.
                let bytes = unsafe { std::slice::from_raw_parts_mut(start, len) };
                self.file.read_exact_at(bytes, self.offset)
            }
        }
    }
}
