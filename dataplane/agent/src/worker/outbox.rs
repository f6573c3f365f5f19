//! What is on its way to one neighbour: whole frames, in order, wherever their bytes lie.
//!
//! A frame may lie in the neighbour's pipe (teed there), in a leased buffer, in the image file, or in plain memory, and may even change
//! from the pipe to a buffer in the middle when the pipe runs full. Frames are only ever appended whole, so the connection always
//! stands at a frame boundary when the queue is empty.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use faasnet_ring::{Driver, Lease, Outcome, Pipe, Token, socket};

enum Segment {
    Bytes(Vec<u8>, usize),
    /// So many bytes at the front of the pipe.
    Piped(usize),
    Leased(Lease, Range<usize>),
    Stored(Arc<File>, u64, usize),
}

/// What flushing came to.
#[derive(Debug)]
pub(super) enum Flushed {
    /// Nothing is left.
    Empty,
    /// The socket takes no more now.
    Blocked,
    /// The driver sends; [`Outbox::sent`] goes on.
    InFlight,
    /// The connection or the file is broken.
    Failed(String),
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Outbox {
    queue: VecDeque<Segment>,
    pipe: Option<Pipe>,
    queued_bytes: usize,
    leases: usize,
    sent_bytes: u64,
    /// The driver has the front of the queue.
    in_flight: bool,
}

const PAGE_BYTES: usize = 4096;
/// Pipes with fewer slots cannot hold a block of small fragments.
const MIN_SLOTS: usize = 128;
/// Buffers that one child may hold, so that it cannot starve its siblings.
const MAX_LEASES: usize = 2;

impl Outbox {
    /// Bytes that have not been handed to the socket.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Bytes that the socket took, ever.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Makes the pipe, of `bytes`, for movers that tee: what lies in it is outside of the kernel's socket accounting. Without one (too few slots left for this user) the neighbour is served by copy.
    pub(super) fn prepare_pipe(&mut self, bytes: usize) {
        self.pipe = Pipe::new(bytes).ok().filter(|pipe| pipe.slots() >= MIN_SLOTS);
    }

    /// Whether a frame of `len` bytes may be teed into the pipe now. A pipe counts slots: small fragments fill it long before its bytes
    /// do, and then the rest of a frame waits in a buffer behind it.
    pub(super) fn pipe_has_room(&self, len: usize) -> bool {
        self.leases == 0 && self.pipe.as_ref().is_some_and(|pipe| pipe.buffered() + len <= pipe.slots() * PAGE_BYTES)
    }

    /// Whether another leased buffer may be queued now.
    pub(super) fn has_room_for_lease(&self) -> bool {
        self.leases < MAX_LEASES
    }

    /// The pipe, for teeing into; tell [`Outbox::piped`] what arrived in it.
    pub(super) fn pipe(&self) -> Option<&Pipe> {
        self.pipe.as_ref()
    }

    /// `len` bytes were teed or moved into the pipe.
    pub(super) fn piped(&mut self, len: usize) {
        if len == 0 {
            return;
        }
        self.queued_bytes += len;
        match self.queue.back_mut() {
            Some(Segment::Piped(bytes)) => *bytes += len,
            _ => self.queue.push_back(Segment::Piped(len)),
        }
    }

    /// Queues bytes of a buffer.
    pub(super) fn leased(&mut self, lease: Lease, range: Range<usize>) {
        self.queued_bytes += range.len();
        self.leases += 1;
        self.queue.push_back(Segment::Leased(lease, range));
    }

    /// Queues plain bytes, such as control frames.
    pub(super) fn bytes(&mut self, bytes: Vec<u8>) {
        self.queued_bytes += bytes.len();
        self.queue.push_back(Segment::Bytes(bytes, 0));
    }

    /// Queues bytes of the image file.
    pub(super) fn stored(&mut self, file: &Arc<File>, offset: u64, len: usize) {
        self.queued_bytes += len;
        self.queue.push_back(Segment::Stored(Arc::clone(file), offset, len));
    }

    /// Sends until the queue is empty or the socket takes no more. With a driver, buffers are sent by it.
    pub(super) fn flush(&mut self, fd: BorrowedFd<'_>, mut driver: Option<(&mut Driver, Token)>) -> Flushed {
        loop {
            if self.in_flight {
                return Flushed::InFlight;
            }
            let more = self.queue.len() > 1;
            let Some(front) = self.queue.front_mut() else { return Flushed::Empty };
            if let (Segment::Leased(lease, range), Some((driver, token))) = (&*front, &mut driver) {
                driver.send(fd, lease.clone(), range.clone(), *token);
                self.in_flight = true;
                return Flushed::InFlight;
            }
            let outcome = front.send(fd, self.pipe.as_ref(), more);
            match self.moved(outcome) {
                None => {}
                Some(end) => return end,
            }
        }
    }

    /// What the driver's send came to; `None`: flush again.
    pub(super) fn sent(&mut self, outcome: Outcome) -> Option<Flushed> {
        self.in_flight = false;
        if let (Some(Segment::Leased(_, range)), Outcome::Moved(moved)) = (self.queue.front_mut(), &outcome) {
            range.start += moved;
        }
        match outcome {
            // Nothing moved, and nothing is wrong: it is sent again.
            Outcome::WouldBlock => None,
            other => self.moved(other),
        }
    }

    /// Accounts for what the front of the queue gave to the socket; `None`: go on.
    fn moved(&mut self, outcome: Outcome) -> Option<Flushed> {
        match outcome {
            Outcome::Moved(0) | Outcome::Ended => Some(Flushed::Failed("the image file ends too early".into())),
            Outcome::Moved(moved) => {
                self.queued_bytes -= moved;
                self.sent_bytes += moved as u64;
                let is_done = self.queue.front().is_some_and(Segment::is_done);
                if is_done && matches!(self.queue.pop_front(), Some(Segment::Leased(..))) {
                    self.leases -= 1;
                }
                None
            }
            Outcome::WouldBlock => Some(Flushed::Blocked),
            Outcome::Failed(error) => Some(Flushed::Failed(error.to_string())),
        }
    }
}

impl Segment {
    /// `more` joins a header to what follows it; the last bytes of a queue are never held back.
    fn send(&mut self, fd: impl AsFd, pipe: Option<&Pipe>, more: bool) -> Outcome {
        match self {
            Self::Bytes(bytes, sent) => {
                let outcome = socket::send(fd, &bytes[*sent..], more);
                advance(&outcome, |moved| *sent += moved);
                outcome
            }
            Self::Piped(left) => {
                let Some(pipe) = pipe else { return Outcome::Ended };
                let outcome = pipe.drain_to_socket(fd, *left, false);
                advance(&outcome, |moved| *left -= moved);
                outcome
            }
            Self::Leased(lease, range) => {
                let outcome = socket::send(fd, &lease[range.clone()], false);
                advance(&outcome, |moved| range.start += moved);
                outcome
            }
            Self::Stored(file, offset, left) => {
                let outcome = socket::sendfile(fd, file, *offset, *left);
                advance(&outcome, |moved| {
                    *offset += moved as u64;
                    *left -= moved;
                });
                outcome
            }
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Self::Bytes(bytes, sent) => *sent == bytes.len(),
            Self::Piped(left) | Self::Stored(_, _, left) => *left == 0,
            Self::Leased(_, range) => range.is_empty(),
        }
    }
}

fn advance(outcome: &Outcome, by: impl FnOnce(usize)) {
    if let Outcome::Moved(moved) = outcome {
        by(*moved);
    }
}
