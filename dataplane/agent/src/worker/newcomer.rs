//! A connection that was accepted and has not been given to a function yet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use faasnet_relay::upstream::Now;
use faasnet_relay::wire::{Hello, Kind, Refusal, WaitingFor, encode_waiting};
use faasnet_ring::socket;

use super::inbox::{ControlReader, Read};
use super::io::ConnId;

/// See the module's documentation.
pub(super) struct Newcomer {
    pub(super) id: ConnId,
    fd: OwnedFd,
    reader: ControlReader,
    /// What it said, while its function is not known here yet.
    pub(super) hello: Option<Hello>,
    pub(super) since: Now,
    said: Now,
}

/// What listening to it came to.
pub(super) enum Heard {
    /// `Hello` is not whole yet.
    Nothing,
    /// It said `Hello`.
    Hello(Hello),
    /// It has to go, for this reason.
    Nonsense(String),
}

impl Newcomer {
    pub(super) fn new(id: ConnId, fd: OwnedFd, now: Now) -> Self {
        Self { id, fd, reader: ControlReader::default(), hello: None, since: now, said: now }
    }

    /// The same on this worker, whose clock and names are its own.
    pub(super) fn settled(self, id: ConnId, now: Now) -> Self {
        Self { id, since: now, said: now, ..self }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn into_parts(self) -> (ConnId, OwnedFd, ControlReader) {
        (self.id, self.fd, self.reader)
    }

    /// Reads until `Hello` is whole.
    pub(super) fn listen(&mut self) -> Heard {
        match self.reader.step(&self.fd) {
            Read::Blocked => Heard::Nothing,
            Read::Frame(frame, payload) if frame.kind == Kind::Hello => match Hello::parse(&payload) {
                Ok(hello) => Heard::Hello(hello),
                Err(error) => Heard::Nonsense(error.to_string()),
            },
            Read::Frame(frame, _) => Heard::Nonsense(format!("a {:?} frame before Hello", frame.kind)),
            Read::Ended(reason) => Heard::Nonsense(reason),
        }
    }

    /// Says that this node lives while the newcomer's function is not known here yet.
    pub(super) fn soothe(&mut self, now: Now, every: Now) {
        if now.saturating_sub(self.said) >= every {
            self.said = now;
            // Ignored: a newcomer that takes no more bytes is found by its time-out.
            let _ = socket::send(&self.fd, &encode_waiting(WaitingFor::Progress), false);
        }
    }

    /// Tells it why it is refused.
    pub(super) fn refuse(&self, refusal: Refusal, text: &str) {
        // Ignored: the connection ends either way.
        let _ = socket::send(&self.fd, &refusal.encode(text), false);
    }
}
