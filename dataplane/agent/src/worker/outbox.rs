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

use faasnet_api::BlockIndex;
use faasnet_ring::{Driver, Lease, Outcome, Pipe, Token, file, socket};

enum Segment {
    Bytes(Vec<u8>, usize),
    /// So many bytes at the front of the pipe.
    Piped(usize),
    Leased(Lease, Range<usize>),
    Stored {
        file: Arc<File>,
        block: BlockIndex,
        offset: u64,
        left: usize,
    },
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
    /// What comes next lies in the file and not in memory: sending it would wait for the disk. [`Outbox::warmed`] goes on.
    Cold,
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

    /// Queues plain bytes, such as control frames. Nothing is not queued: a send that moves nothing looks like a broken file.
    pub(super) fn bytes(&mut self, bytes: Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        self.queued_bytes += bytes.len();
        self.queue.push_back(Segment::Bytes(bytes, 0));
    }

    /// Queues the `len` bytes of a block at `offset` of the image file. Whether they are in memory is asked again each time before
    /// some of them are sent: a child that is slow to take them leaves the kernel time to drop them.
    pub(super) fn stored(&mut self, file: &Arc<File>, block: BlockIndex, offset: u64, len: usize) {
        self.queued_bytes += len;
        self.queue.push_back(Segment::Stored { file: Arc::clone(file), block, offset, left: len });
    }

    /// The block that has to be read back after [`Flushed::Cold`].
    pub(super) fn cold_block(&self) -> Option<BlockIndex> {
        match self.queue.front() {
            Some(Segment::Stored { block, .. }) => Some(*block),
            _ => None,
        }
    }

    /// The cold block has been read back and ends at `end` of `lease`: what is left of it is sent from there.
    pub(super) fn warmed(&mut self, lease: Lease, end: usize) {
        if let Some(front) = self.queue.front_mut()
            && let Segment::Stored { left, .. } = front
        {
            *front = Segment::Leased(lease, end - *left..end);
            self.leases += 1;
        }
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
            if front.is_cold() {
                return Flushed::Cold;
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
            Self::Stored { file, offset, left, .. } => {
                let outcome = socket::sendfile(fd, file, *offset, *left);
                advance(&outcome, |moved| {
                    *offset += moved as u64;
                    *left -= moved;
                });
                outcome
            }
        }
    }

    /// Whether sending would wait for the disk; where the kernel cannot tell, it might.
    fn is_cold(&self) -> bool {
        match self {
            Self::Stored { file, offset, left, .. } => file::resident(file, *offset, *left as u64) != Some(true),
            _ => false,
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Self::Bytes(bytes, sent) => *sent == bytes.len(),
            Self::Piped(left) | Self::Stored { left, .. } => *left == 0,
            Self::Leased(_, range) => range.is_empty(),
        }
    }
}

fn advance(outcome: &Outcome, by: impl FnOnce(usize)) {
    if let Outcome::Moved(moved) = outcome {
        by(*moved);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use faasnet_ring::Arena;

    use super::*;

    /// More than a socket takes at once.
    const LEN: usize = 4 << 20;
    const BLOCK: BlockIndex = BlockIndex(3);

    /// Catches a child that is cut off because another one's pipe ran full at the end of a frame, so that nothing of it was left for this one.
    #[test]
    fn an_empty_rest_is_no_failure() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut outbox = Outbox::default();
        outbox.bytes(Vec::new());
        outbox.bytes(vec![1]);
        assert!(matches!(outbox.flush(ours.as_fd(), None), Flushed::Empty));
        assert_eq!(outbox.sent_bytes(), 1);
    }

    /// Catches a worker that waits for the disk because what was in memory when it was queued has left since, and bytes that are lost or
    /// sent twice where the rest of a frame changes from the file to a buffer.
    #[test]
    fn what_left_memory_on_its_way_is_read_back() {
        let mut source = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..LEN).map(|n| (n % 251) as u8).collect();
        source.write_all(&bytes).unwrap();
        let data = Arc::new(source.reopen().unwrap());
        let evict = || file::release(&data, 0..LEN as u64).unwrap();
        evict();
        if file::resident(&data, 0, LEN as u64) != Some(false) {
            eprintln!("SKIPPED: {} is memory, or this kernel does not tell what is cached", source.path().display());
            return;
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut outbox = Outbox::default();
        outbox.bytes(vec![1; 16]);
        outbox.stored(&data, BLOCK, 0, LEN);
        outbox.bytes(vec![2; 16]);
        assert!(matches!(outbox.flush(ours.as_fd(), None), Flushed::Cold));
        assert_eq!((outbox.sent_bytes(), outbox.cold_block()), (16, Some(BLOCK)));
        // In memory again: as much goes as the socket takes.
        (&*data).read_exact(&mut vec![0; LEN]).unwrap();
        assert!(matches!(outbox.flush(ours.as_fd(), None), Flushed::Blocked));
        let sent = outbox.sent_bytes() as usize - 16;
        assert!(sent > 0 && sent < LEN, "{sent} of {LEN} bytes fit a socket");
        let mut got = vec![0; 16 + sent];
        theirs.read_exact(&mut got).unwrap();
        evict();
        // What a socket still refers to stays in memory; all of the rest does not.
        assert!(matches!(outbox.flush(ours.as_fd(), None), Flushed::Cold));
        assert_eq!(outbox.sent_bytes() as usize - 16, sent);
        let arena = Arena::new(1, LEN).unwrap();
        let mut lease = arena.take().unwrap();
        lease[100..100 + LEN].copy_from_slice(&bytes);
        outbox.warmed(lease.freeze(), 100 + LEN);
        while got.len() < 16 + LEN + 16 {
            outbox.flush(ours.as_fd(), None);
            let mut part =
                vec![0; (16 + LEN + 16 - got.len()).min(64 << 10).min(outbox.sent_bytes() as usize - got.len())];
            theirs.read_exact(&mut part).unwrap();
            got.extend(part);
        }
        assert!(got[..16] == [1; 16] && got[16..16 + LEN] == bytes && got[16 + LEN..] == [2; 16]);
        assert_eq!((outbox.queued_bytes(), outbox.has_room_for_lease()), (0, true));
    }
}
