//! The receiving end of a link to an upstream: frames out of a byte stream, with as little copying as the mover allows.
//!
//! For movers that splice a block frame stays in the socket until the whole of it is there; only then is a buffer taken, so a slow upstream
//! holds none. If a child would take the block live without a copy, it is peeked (the one copy: verified there, kept from there) and its
//! bytes stay in the socket to be teed; else it is read. When the receive buffer cannot hold a whole frame, that frame is read as it comes,
//! into a buffer that is held meanwhile; some buffers are kept free of that.
//!
//! For movers that copy, frames are read as they come, so that the window opens steadily instead of once per frame, and each read asks for
//! the next frame's header as well: a frame that is there costs one call. While buffers are scarce they wait for whole frames, too.
//!
//! Peeking does not make the kernel grow the receive buffer, and a window of hardly one frame makes a poll fire early; so the buffer is
//! grown once, by asking for more than is ever awaited. SO_RCVLOWAT then always equals what the next step still needs, so that a poll
//! fires once per frame and not per segment.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use faasnet_api::BlockIndex;
use faasnet_relay::upstream::Now;
use faasnet_relay::wire::{Frame, HEADER_BYTES, Kind};
use faasnet_ring::{Arena, LeaseMut, Outcome, socket};

use super::io::FRAME_START;
use super::mover::Intake;

/// What one step of receiving came to.
pub(super) enum Step {
    /// Wait until the socket is readable.
    Blocked,
    /// No buffer is free; try again when one is.
    NoLease,
    /// Let the driver receive into this part of the buffer; [`Inbox::received`] takes what came.
    Receive(LeaseMut, Range<usize>),
    /// A control frame.
    Control(Frame, Vec<u8>),
    /// A whole block frame, read or still in the socket.
    Block(Arrival),
    /// A whole block frame in the socket, not looked at; it must be consumed before the next step.
    Unseen(BlockIndex, Frame),
    /// The stream ended, or what came is not acceptable.
    Ended(String),
}

/// A whole block frame in a buffer, from [`FRAME_START`] on.
pub(super) struct Arrival {
    pub(super) block: BlockIndex,
    pub(super) frame: Frame,
    pub(super) lease: LeaseMut,
    /// The same bytes are still in the socket and must be consumed, all of them, before the next step.
    pub(super) in_socket: bool,
}

enum State {
    /// Bytes of a header that came in parts.
    Header {
        bytes: [u8; HEADER_BYTES],
        filled: usize,
    },
    Control {
        frame: Frame,
        payload: Vec<u8>,
        filled: usize,
    },
    /// The header has been seen, not consumed; the whole frame is awaited in the socket.
    Await {
        frame: Frame,
        block: BlockIndex,
        seen: usize,
        since: Now,
    },
    /// The frame is read into a buffer as it comes.
    Fill {
        frame: Frame,
        block: BlockIndex,
        /// `None` while the driver receives into it.
        lease: Option<LeaseMut>,
        filled: usize,
    },
}

/// Decides about a block frame whose header arrived.
pub(super) trait Judge {
    /// Which block it is, or why it is not acceptable.
    fn expect(&self, frame: &Frame) -> Result<BlockIndex, String>;
    /// Whether a child would take it live, without a copy.
    fn wants_peek(&self, block: BlockIndex) -> bool;
    /// Whether nobody needs to look at it.
    fn passes_unseen(&self, block: BlockIndex) -> bool;
}

/// See the module's documentation.
pub(super) struct Inbox {
    state: State,
    lowat: usize,
    /// The present frame is read as it comes: the socket cannot hold the whole of it.
    read_this: bool,
    intake: Intake,
    /// The next frame shall stay in the socket until it is whole, whatever the intake.
    next_whole: bool,
}

/// A frame that does not grow for this long in a socket is read as it comes: its sender pauses, or memory is short.
const STUCK: Duration = Duration::from_millis(100);
/// Room for four frames; the kernel grants at most half of the tcp_rmem maximum.
const WINDOW_BYTES: usize = 1 << 20;
/// While reading into a buffer, wake up for this much at least.
const READ_LOWAT: usize = 32 << 10;

impl Inbox {
    pub(super) fn new(intake: Intake) -> Self {
        Self { state: HEADER, lowat: 1, read_this: false, intake, next_whole: false }
    }

    /// How frames are taken from the next one on.
    pub(super) fn set_intake(&mut self, intake: Intake) {
        self.intake = intake;
    }

    pub(super) fn intake(&self) -> Intake {
        self.intake
    }

    /// Leaves the next frame whose header has not been read in the socket, so that it can be spliced.
    pub(super) fn leave_next_in_socket(&mut self) {
        self.next_whole = true;
    }

    /// Makes the socket ready to hold whole frames; once, when it is connected.
    pub(super) fn prepare(&mut self, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        socket::set_rcvlowat(fd, WINDOW_BYTES)?;
        self.lowat = 1;
        socket::set_rcvlowat(fd, 1)
    }

    /// A turn is over before the socket was empty: the next frame may be shorter than what was awaited last, and must still be polled.
    pub(super) fn await_header(&mut self, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        let State::Header { filled, .. } = self.state else { return Ok(()) };
        let missing = (HEADER_BYTES - filled).max(1);
        if self.lowat > missing {
            self.lowat = missing;
            socket::set_rcvlowat(fd, missing)?;
        }
        Ok(())
    }

    /// Goes on receiving. `fired` tells that the socket was just reported readable.
    pub(super) fn step(
        &mut self,
        fd: BorrowedFd<'_>,
        arena: &Arena,
        now: Now,
        fired: bool,
        judge: &impl Judge,
    ) -> Step {
        let mut fired = fired;
        loop {
            let step = match &self.state {
                State::Header { filled: 0, .. } if self.reads_as_it_comes(arena) => self.read_header(fd),
                State::Header { filled: 0, .. } => self.header(fd, now, judge),
                State::Header { .. } => self.consume_header(fd, arena, judge),
                State::Control { .. } => self.control(fd),
                State::Await { .. } if self.read_this => self.consume_header(fd, arena, judge),
                State::Await { .. } => self.whole(fd, arena, now, std::mem::take(&mut fired), judge),
                State::Fill { .. } => self.fill(fd, arena),
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    /// Takes back a buffer that the driver received into; an error says why the connection is over.
    pub(super) fn received(&mut self, buffer: LeaseMut, outcome: Outcome) -> Result<(), String> {
        // A frame that was given up meanwhile wants nothing back.
        let State::Fill { lease, filled, .. } = &mut self.state else { return Ok(()) };
        *lease = Some(buffer);
        match outcome {
            Outcome::Moved(moved) => *filled += moved,
            Outcome::WouldBlock => {}
            Outcome::Ended => return Err("the connection ended inside a frame".into()),
            Outcome::Failed(error) => return Err(error.to_string()),
        }
        Ok(())
    }

    /// Whether the driver has the buffer: nothing can be done before [`Inbox::received`].
    pub(super) fn is_receiving(&self) -> bool {
        matches!(self.state, State::Fill { lease: None, .. })
    }

    /// Whether the next frame is read as it comes: the mover wants it, and buffers are not scarce.
    fn reads_as_it_comes(&self, arena: &Arena) -> bool {
        self.intake != Intake::Whole && !self.next_whole && has_spare(arena)
    }

    /// Whether a frame has begun and is not complete.
    pub(super) fn is_mid_frame(&self) -> bool {
        !matches!(self.state, State::Header { filled: 0, .. })
    }

    /// Looks at the next header without consuming it.
    fn header(&mut self, fd: BorrowedFd<'_>, now: Now, judge: &impl Judge) -> Option<Step> {
        let mut bytes = [0; HEADER_BYTES];
        match socket::peek(fd, &mut bytes) {
            Outcome::Moved(HEADER_BYTES) => {}
            // A part of a header: consumed at once, so that a connection that ends here cannot be polled readable for ever.
            Outcome::Moved(_) => return self.read_header(fd),
            other => return Some(self.not_moved(fd, other, HEADER_BYTES)),
        }
        let frame = match Frame::parse(&bytes) {
            Ok(frame) => frame,
            Err(error) => return Some(Step::Ended(error.to_string())),
        };
        if frame.kind != Kind::Block {
            return self.read_header(fd);
        }
        match judge.expect(&frame) {
            Ok(block) => {
                self.state = State::Await { frame, block, seen: 0, since: now };
                None
            }
            Err(error) => Some(Step::Ended(error)),
        }
    }

    /// Reads what there is of a header.
    fn read_header(&mut self, fd: BorrowedFd<'_>) -> Option<Step> {
        if !matches!(self.state, State::Header { .. }) {
            self.state = HEADER;
        }
        let State::Header { bytes, filled } = &mut self.state else { return None };
        match socket::recv(fd, &mut bytes[*filled..]) {
            Outcome::Moved(moved) => *filled += moved,
            other => {
                let missing = HEADER_BYTES - *filled;
                return Some(self.not_moved(fd, other, missing));
            }
        }
        None
    }

    /// Consumes the header and chooses where its payload goes: for control frames, and for blocks that are read as they come.
    fn consume_header(&mut self, fd: BorrowedFd<'_>, arena: &Arena, judge: &impl Judge) -> Option<Step> {
        // Taken before the header is consumed; and not one of those that whole frames need.
        let spare = has_spare(arena);
        match &self.state {
            State::Header { filled: HEADER_BYTES, .. } => {}
            _ if self.read_this && !spare => return Some(Step::NoLease),
            _ => return self.read_header(fd),
        }
        let State::Header { bytes, .. } = &self.state else { return None };
        let frame = match Frame::parse(bytes) {
            Ok(frame) => frame,
            Err(error) => return Some(Step::Ended(error.to_string())),
        };
        if frame.kind != Kind::Block {
            self.state = State::Control { frame, payload: vec![0; frame.len as usize], filled: 0 };
            return None;
        }
        let block = match judge.expect(&frame) {
            Ok(block) => block,
            Err(error) => return Some(Step::Ended(error)),
        };
        let Some(mut lease) = spare.then(|| arena.take()).flatten() else { return Some(Step::NoLease) };
        lease[FRAME_START..FRAME_START + HEADER_BYTES].copy_from_slice(bytes);
        // A frame that was to stay whole in the socket and did not fit; the try is over.
        self.next_whole &= !self.read_this;
        self.state = State::Fill { frame, block, lease: Some(lease), filled: HEADER_BYTES };
        None
    }

    fn control(&mut self, fd: BorrowedFd<'_>) -> Option<Step> {
        let State::Control { frame, payload, filled } = &mut self.state else { return None };
        if *filled < payload.len() {
            match socket::recv(fd, &mut payload[*filled..]) {
                Outcome::Moved(moved) => *filled += moved,
                other => return Some(self.not_moved(fd, other, 1)),
            }
        }
        if *filled < payload.len() {
            return None;
        }
        let done = Step::Control(*frame, std::mem::take(payload));
        self.state = HEADER;
        Some(done)
    }

    /// Takes the frame if the whole of it is in the socket.
    fn whole(&mut self, fd: BorrowedFd<'_>, arena: &Arena, now: Now, fired: bool, judge: &impl Judge) -> Option<Step> {
        let State::Await { frame, block, seen, since } = &mut self.state else { return None };
        let (frame, block, total) = (*frame, *block, frame.total_bytes());
        let queued = match socket::readable_bytes(fd) {
            Ok(queued) => queued,
            Err(error) => return Some(Step::Ended(error.to_string())),
        };
        if queued < total {
            if queued != *seen {
                (*seen, *since) = (queued, now);
            }
            // Polled readable although SO_RCVLOWAT asks for more: the window is nearly full (or the stream ended).
            self.read_this = (fired && self.lowat == total) || now.saturating_sub(*since) > STUCK;
            return (!self.read_this).then(|| self.block_until(fd, total));
        }
        if judge.passes_unseen(block) {
            (self.state, self.next_whole) = (HEADER, false);
            return Some(Step::Unseen(block, frame));
        }
        let Some(mut lease) = arena.take() else { return Some(Step::NoLease) };
        let (bytes, in_socket) = (&mut lease[FRAME_START..FRAME_START + total], judge.wants_peek(block));
        match if in_socket { socket::peek(fd, bytes) } else { socket::recv(fd, bytes) } {
            Outcome::Moved(moved) if moved == total => {
                (self.state, self.next_whole) = (HEADER, false);
                Some(Step::Block(Arrival { block, frame, lease, in_socket }))
            }
            Outcome::Moved(moved) if !in_socket && moved >= HEADER_BYTES => {
                self.state = State::Fill { frame, block, lease: Some(lease), filled: moved };
                None
            }
            Outcome::Failed(error) => Some(Step::Ended(error.to_string())),
            _ => {
                self.read_this = true;
                None
            }
        }
    }

    fn fill(&mut self, fd: BorrowedFd<'_>, arena: &Arena) -> Option<Step> {
        // The next header comes along, unless the next frame has to be looked at before it is taken.
        let ahead = if self.reads_as_it_comes(arena) && !self.read_this { HEADER_BYTES } else { 0 };
        let State::Fill { frame, lease, filled, .. } = &mut self.state else { return None };
        let total = frame.total_bytes();
        while *filled < total {
            let rest = FRAME_START + *filled..FRAME_START + total + ahead;
            let Some(bytes) = lease.as_mut().map(|lease| &mut lease[rest]) else { return Some(Step::Blocked) };
            let outcome = match self.intake {
                Intake::DriverOnly => Outcome::WouldBlock,
                _ => socket::recv(fd, bytes),
            };
            match outcome {
                Outcome::Moved(moved) => *filled += moved,
                Outcome::WouldBlock => return self.wait_for_rest(fd, ahead),
                other => return Some(self.not_moved(fd, other, 1)),
            }
        }
        self.read_this = false;
        let State::Fill { frame, block, lease, filled } = std::mem::replace(&mut self.state, HEADER) else {
            return None;
        };
        let lease = lease?;
        let mut bytes = [0; HEADER_BYTES];
        bytes[..filled - total].copy_from_slice(&lease[FRAME_START + total..FRAME_START + filled]);
        self.state = State::Header { bytes, filled: filled - total };
        Some(Step::Block(Arrival { block, frame, lease, in_socket: false }))
    }

    /// Waits for more of a frame that is read as it comes.
    fn wait_for_rest(&mut self, fd: BorrowedFd<'_>, ahead: usize) -> Option<Step> {
        let State::Fill { frame, lease, filled, .. } = &mut self.state else { return None };
        let (filled, total) = (*filled, frame.total_bytes());
        let lease = match self.intake {
            Intake::Driver | Intake::DriverOnly => lease.take(),
            Intake::Whole | Intake::AsItComes => None,
        };
        let blocked = self.block_until(fd, (total - filled).min(READ_LOWAT));
        match (blocked, lease) {
            (Step::Blocked, Some(lease)) => {
                Some(Step::Receive(lease, FRAME_START + filled..FRAME_START + total + ahead))
            }
            (other, _) => Some(other),
        }
    }

    fn not_moved(&mut self, fd: BorrowedFd<'_>, outcome: Outcome, needed: usize) -> Step {
        match outcome {
            Outcome::WouldBlock => self.block_until(fd, needed),
            Outcome::Failed(error) => Step::Ended(error.to_string()),
            _ if self.is_mid_frame() => Step::Ended("the connection ended inside a frame".into()),
            _ => Step::Ended("the connection ended".into()),
        }
    }

    fn block_until(&mut self, fd: BorrowedFd<'_>, needed: usize) -> Step {
        if self.lowat != needed {
            if let Err(error) = socket::set_rcvlowat(fd.as_fd(), needed) {
                return Step::Ended(error.to_string());
            }
            self.lowat = needed;
        }
        Step::Blocked
    }
}

/// Whether a buffer can be held while its frame arrives, and enough are left for whole frames.
fn has_spare(arena: &Arena) -> bool {
    arena.free() > arena.slots() / 4
}

const HEADER: State = State::Header { bytes: [0; HEADER_BYTES], filled: 0 };

/// Reads the few small frames that children send.
#[derive(Default)]
pub(super) struct ControlReader {
    header: Vec<u8>,
    frame: Option<Frame>,
    payload: Vec<u8>,
}

/// What reading came to.
pub(super) enum Read {
    /// Wait until the socket is readable.
    Blocked,
    /// A whole frame.
    Frame(Frame, Vec<u8>),
    /// The stream ended, or what came is not a control frame.
    Ended(String),
}

impl ControlReader {
    pub(super) fn step(&mut self, fd: impl AsFd) -> Read {
        loop {
            let (buffer, want) = match &self.frame {
                None => (&mut self.header, HEADER_BYTES),
                Some(frame) => (&mut self.payload, frame.len as usize),
            };
            if buffer.len() < want {
                let filled = buffer.len();
                buffer.resize(want, 0);
                let outcome = socket::recv(fd.as_fd(), &mut buffer[filled..]);
                buffer.truncate(filled + if let Outcome::Moved(moved) = outcome { moved } else { 0 });
                match outcome {
                    Outcome::Moved(_) => continue,
                    Outcome::WouldBlock => return Read::Blocked,
                    Outcome::Ended => return Read::Ended("the connection ended".into()),
                    Outcome::Failed(error) => return Read::Ended(error.to_string()),
                }
            }
            if let Some(frame) = self.frame.take() {
                self.header.clear();
                return Read::Frame(frame, std::mem::take(&mut self.payload));
            }
            let Some(header) = self.header.first_chunk::<HEADER_BYTES>() else { continue };
            match Frame::parse(header) {
                Ok(frame) if frame.kind == Kind::Block => return Read::Ended("a child sent a block".into()),
                Ok(frame) => self.frame = Some(frame),
                Err(error) => return Read::Ended(error.to_string()),
            }
        }
    }
}
