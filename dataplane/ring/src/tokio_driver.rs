//! The driver on the tokio-uring runtime, to compare with and as an oracle: the worker's loop stays as it is, and every read, write,
//! receive and send is a future on a runtime that [`crate::Driver::wait`] runs.
//!
//! Owned by a [`crate::Driver`]. tokio-uring 0.5 has no readiness, so an epoll set tells that, and the runtime watches the set. Each
//! operation allocates; that is the price of the comparison and one reason why this is not the engine.
//!
//! LIFECYCLE of a connection: first exchange → a duplicate of the descriptor, owned by tokio-uring → `close` shuts the connection down,
//! so that its futures end → their results are swallowed → the duplicate is closed.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::time::Duration;

use rustix::net::Shutdown;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio_uring::buf::{BoundedBuf, IoBuf, IoBufMut};
use tokio_uring::fs::File;
use tokio_uring::net::TcpStream;

use crate::driver::{Buffer, Direction, Exchange, Transfer};
use crate::epoll::EpollDriver;
use crate::{Completion, Lease, LeaseMut, SetupError, Token};

/// Entries of the submission queue, as tokio-uring's own default.
const SUBMISSIONS: u32 = 256;

pub(crate) struct TokioUringDriver {
    readiness: EpollDriver,
    /// The set of `readiness`, watched by the runtime.
    watched: AsyncFd<OwnedFd>,
    connections: HashMap<RawFd, Connection>,
    /// Duplicates of files, while anything is in flight on them; that keeps the number from being given to another file.
    files: HashMap<RawFd, Weak<File>>,
    /// Started since the last wait; they need the runtime to begin.
    started: Vec<Pin<Box<dyn Future<Output = ()>>>>,
    done: Rc<Done>,
    runtime: tokio_uring::Runtime,
}

struct Connection {
    stream: Rc<TcpStream>,
    /// False when it has been closed: what still completes on it is nobody's.
    open: Rc<Cell<bool>>,
}

#[derive(Default)]
struct Done {
    completions: RefCell<VecDeque<Completion>>,
    bell: Notify,
    stale: Cell<u64>,
}

impl TokioUringDriver {
    pub(crate) fn new() -> Result<Self, SetupError> {
        let mut builder = tokio_uring::builder();
        let runtime = tokio_uring::Runtime::new(builder.entries(SUBMISSIONS))
            .map_err(|error| SetupError::Uring(crate::setup::explain(&error)))?;
        let readiness = EpollDriver::without_disk()?;
        let kernel = |source| SetupError::Kernel { what: "a watch of an epoll set", source };
        let set = readiness.as_fd().try_clone_to_owned().map_err(kernel)?;
        let watched = runtime.block_on(async {
            // SAFETY: `AsyncFd` owns the duplicate, which stays open until it is dropped and deregistered.
            unsafe { AsyncFd::register_with_interest(set, Interest::READABLE) }
        });
        let watched = watched.map_err(|error| kernel(error.into_parts().1))?;
        let done = Rc::default();
        Ok(Self {
            readiness,
            watched,
            connections: HashMap::new(),
            files: HashMap::new(),
            started: Vec::new(),
            done,
            runtime,
        })
    }

    pub(crate) fn arm(
        &mut self,
        fd: BorrowedFd<'_>,
        direction: Direction,
        token: Token,
    ) -> impl Iterator<Item = Completion> + use<> {
        self.readiness.arm_or_ready(fd, direction, token)
    }

    pub(crate) fn disarm(&mut self, fd: BorrowedFd<'_>) {
        self.readiness.disarm(fd);
    }

    pub(crate) fn close(&mut self, fd: OwnedFd) {
        if let Some(connection) = self.connections.remove(&fd.as_raw_fd()) {
            connection.open.set(false);
            // Ignored: a connection that is not connected any more has no futures that wait.
            let _ = rustix::net::shutdown(&fd, Shutdown::Both);
        }
        self.readiness.close(fd);
    }

    pub(crate) fn exchange(&mut self, fd: BorrowedFd<'_>, exchange: Exchange) {
        let connection = match self.connections.get(&fd.as_raw_fd()) {
            Some(connection) => connection,
            None => match fd.try_clone_to_owned() {
                Ok(duplicate) => {
                    let stream = Rc::new(TcpStream::from_std(std::net::TcpStream::from(duplicate)));
                    let connection = Connection { stream, open: Rc::new(Cell::new(true)) };
                    self.connections.entry(fd.as_raw_fd()).or_insert(connection)
                }
                Err(error) => return self.done.push(exchange.complete(Err(error))),
            },
        };
        let (stream, open, done) = (Rc::clone(&connection.stream), Rc::clone(&connection.open), Rc::clone(&self.done));
        self.started.push(Box::pin(async move {
            let completion = carry_out(&stream, exchange).await;
            match open.get() {
                true => done.push(completion),
                false => done.stale.set(done.stale.get() + 1),
            }
        }));
    }

    pub(crate) fn start(&mut self, transfer: Transfer) {
        let number = transfer.file.as_raw_fd();
        let file = match self.files.get(&number).and_then(Weak::upgrade) {
            Some(file) => file,
            None => match transfer.file.try_clone() {
                Ok(duplicate) => Rc::new(File::from_std(duplicate)),
                Err(error) => return self.done.push(transfer.complete(Err(error))),
            },
        };
        self.files.insert(number, Rc::downgrade(&file));
        let done = Rc::clone(&self.done);
        self.started.push(Box::pin(async move {
            let completion = transfer_file(&file, transfer).await;
            done.push(completion);
        }));
    }

    pub(crate) fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        let Self { runtime, readiness, watched, started, done, .. } = self;
        runtime.block_on(async {
            if !started.is_empty() {
                for operation in started.drain(..) {
                    // Detached: it tells its result to `done`.
                    tokio_uring::spawn(operation);
                }
                // The runtime submits when it goes to sleep, and a wait that finds something ready does not.
                tokio_uring::no_op().await?;
            }
            let had = out.len();
            collect(readiness, done, out)?;
            if out.len() > had || timeout.is_some_and(|timeout| timeout.is_zero()) {
                return Ok(());
            }
            let time_over = async {
                match timeout {
                    Some(timeout) => tokio::time::sleep(timeout).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = done.bell.notified() => {}
                // The set is emptied below, and whatever becomes ready later is an edge of its own.
                ready = watched.readable() => ready?.clear_ready(),
                () = time_over => {}
            }
            collect(readiness, done, out)
        })
    }

    pub(crate) fn stale_completions(&self) -> u64 {
        self.done.stale.get() + self.readiness.stale_completions()
    }
}

impl Drop for TokioUringDriver {
    fn drop(&mut self) {
        // Futures that wait for a neighbour would be waited for; the runtime cancels them, but an ended connection is sure.
        for connection in self.connections.values() {
            connection.open.set(false);
            // Ignored: as in `close`.
            let _ = connection.stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Done {
    fn push(&self, completion: Completion) {
        self.completions.borrow_mut().push_back(completion);
        self.bell.notify_one();
    }
}

fn collect(readiness: &mut EpollDriver, done: &Done, out: &mut Vec<Completion>) -> io::Result<()> {
    readiness.wait(Some(Duration::ZERO), out)?;
    out.extend(done.completions.borrow_mut().drain(..));
    Ok(())
}

async fn carry_out(stream: &TcpStream, exchange: Exchange) -> Completion {
    let Exchange { buffer, range, token } = exchange;
    let (buffer, result) = match buffer {
        Buffer::Read(buffer) => {
            let (result, slice) = stream.read(buffer.slice(range.clone())).await;
            (Buffer::Read(slice.into_inner()), result)
        }
        Buffer::Write(mut data) => {
            let mut done = 0;
            let result = loop {
                let (result, slice) = stream.write(data.slice(range.start + done..range.end)).submit().await;
                data = slice.into_inner();
                match result {
                    Ok(moved) if moved > 0 && done + moved < range.len() => done += moved,
                    Ok(moved) => break Ok(done + moved),
                    Err(_) if done > 0 => break Ok(done),
                    Err(error) => break Err(error),
                }
            };
            (Buffer::Write(data), result)
        }
    };
    Exchange { buffer, range, token }.complete(result)
}

async fn transfer_file(file: &File, mut transfer: Transfer) -> Completion {
    loop {
        let (range, offset) = (transfer.range.clone(), transfer.offset);
        let (buffer, result, nothing) = match transfer.buffer {
            Buffer::Write(data) => {
                let (result, slice) = file.write_at(data.slice(range), offset).submit().await;
                (Buffer::Write(slice.into_inner()), result, io::ErrorKind::WriteZero)
            }
            Buffer::Read(buffer) => {
                let (result, slice) = file.read_at(buffer.slice(range), offset).await;
                (Buffer::Read(slice.into_inner()), result, io::ErrorKind::UnexpectedEof)
            }
        };
        transfer.buffer = buffer;
        match result {
            Ok(0) => return transfer.complete(Err(nothing.into())),
            Ok(moved) if transfer.advance(moved) => return transfer.complete(Ok(())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return transfer.complete(Err(error)),
        }
    }
}

// SAFETY: the slot's memory does not move with the lease, stays mapped as long as the lease lives, is initialised from its first day, and
// nobody writes to it while a `Lease` exists. tokio-uring holds the lease until the kernel has completed the operation.
unsafe impl IoBuf for Lease {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len()
    }

    fn bytes_total(&self) -> usize {
        self.len()
    }
}

// SAFETY: as for `Lease`; a `LeaseMut` is the only holder of its slot.
unsafe impl IoBuf for LeaseMut {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len()
    }

    fn bytes_total(&self) -> usize {
        self.len()
    }
}

// SAFETY: the pointer is the one that `IoBuf` gives, and its holder may write.
unsafe impl IoBufMut for LeaseMut {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }

    unsafe fn set_init(&mut self, _pos: usize) {
        // All of a slot is initialised always.
    }
}
