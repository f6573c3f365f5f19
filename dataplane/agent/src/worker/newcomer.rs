//! A connection that was accepted and has not been given to a function yet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use faasnet_api::{NodeId, TicketError};
use faasnet_relay::upstream::Now;
use faasnet_relay::wire::{Challenge, Hello, Kind, Refusal, WaitingFor, encode_waiting};
use faasnet_ring::socket;

use super::inbox::{ControlReader, Read};
use super::io::ConnId;
use crate::trust::Trust;

/// See the module's documentation.
pub(super) struct Newcomer {
    pub(super) id: ConnId,
    fd: OwnedFd,
    reader: ControlReader,
    challenge: Challenge,
    /// What it said and nobody has checked yet.
    unchecked: Option<Hello>,
    /// What it said, checked, while its function is not known here yet.
    pub(super) hello: Option<Hello>,
    pub(super) since: Now,
    said: Now,
}

/// What listening to it came to.
pub(super) enum Heard {
    /// `Hello` is not whole yet.
    Nothing,
    /// It said `Hello`; its signatures are to be checked.
    Hello,
    /// It has to go, for this reason.
    Nonsense(String),
    /// Its ticket is not worth the look at a signature.
    Stranger(NodeId, TicketError),
}

impl Newcomer {
    /// Challenges whoever connected to `me`.
    pub(super) fn challenge(id: ConnId, fd: OwnedFd, me: NodeId, now: Now) -> Self {
        let challenge = Trust::challenge(me);
        // Ignored: the buffer of a fresh connection takes it, and one that is broken already is found by listening.
        let _ = socket::send(&fd, &challenge.encode(), false);
        let reader = ControlReader::default();
        Self { id, fd, reader, challenge, unchecked: None, hello: None, since: now, said: now }
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
                Ok(hello) => match Trust::check_claims(&hello) {
                    Ok(()) => {
                        self.unchecked = Some(hello);
                        Heard::Hello
                    }
                    Err(error) => Heard::Stranger(hello.node, error),
                },
                Err(error) => Heard::Nonsense(error.to_string()),
            },
            Read::Frame(frame, _) => Heard::Nonsense(format!("a {:?} frame before Hello", frame.kind)),
            Read::Ended(reason) => Heard::Nonsense(reason),
        }
    }

    /// Whether it has not said `Hello`.
    pub(super) fn is_silent(&self) -> bool {
        self.unchecked.is_none() && self.hello.is_none()
    }

    /// Whether its signatures are still to be checked.
    pub(super) fn is_unchecked(&self) -> bool {
        self.unchecked.is_some()
    }

    /// Checks the signatures of what it said.
    pub(super) fn check(&mut self, trust: &Trust) -> Result<(), (NodeId, TicketError)> {
        let Some(hello) = self.unchecked.take() else { return Ok(()) };
        trust.check_signatures(&hello, &self.challenge).map_err(|error| (hello.node, error))?;
        self.hello = Some(hello);
        Ok(())
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
