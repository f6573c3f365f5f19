//! Those who connect, until each is given to its function: accepted, listened to, checked, handed on.
//!
//! A part of the worker. At the front it accepts for all workers; the others take over what the front hands them.

use std::os::fd::OwnedFd;
use std::time::Duration;

use crossbeam::channel::TrySendError;
use faasnet_api::{FunctionId, NodeId, TicketError};
use faasnet_relay::upstream::Now;
use faasnet_relay::wire::{Hello, Refusal};
use faasnet_ring::socket;

use super::super::io::{ConnId, Direction, Route};
use super::super::mailbox::Mail;
use super::super::newcomer::{Heard, Newcomer};
use super::Worker;

/// Connections that have not said who they are.
const MAX_NEWCOMERS: usize = 256;
/// How long a newcomer may take to say `Hello`, and how long it is kept while its function is not known here: commands of one burst
/// reach parents and children in any order.
const NEWCOMER_PATIENCE: Duration = Duration::from_secs(2);
/// Between two lines about refused tickets.
const STRANGER_PAUSE: Duration = Duration::from_secs(1);
/// After a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

impl Worker {
    pub(super) fn accept(&mut self) {
        let Some((listener_id, listener)) = self.listener.take() else { return };
        let armed = self.accept_from(&listener);
        if armed {
            self.accept_again = None;
            self.io.arm(listener_id, &listener, Direction::Read);
        }
        self.listener = Some((listener_id, listener));
    }

    /// Takes what waits; `false` when the listener is to be left alone for a while.
    fn accept_from(&mut self, listener: &OwnedFd) -> bool {
        for _ in 0..MAX_NEWCOMERS {
            match socket::accept(listener) {
                Ok(Some((fd, _))) => {
                    let id = self.io.route(Route::Newcomer);
                    if self.newcomers.len() >= MAX_NEWCOMERS {
                        // The one that has been silent longest makes room: silent strangers must not lock children out.
                        let silent = self.newcomers.iter().find(|newcomer| newcomer.is_silent());
                        match silent.map(|newcomer| newcomer.id) {
                            Some(oldest) => self.dismiss(oldest, None),
                            None => {
                                self.io.close(id, fd);
                                continue;
                            }
                        }
                    }
                    self.newcomers.push(Newcomer::challenge(id, fd, self.io.me, self.io.now()));
                    self.listen_to(id);
                }
                Ok(None) => break,
                Err(error) => {
                    // Out of descriptors, most likely: the listener stays readable, so it is armed again only after a pause.
                    if self.accept_again.is_none() {
                        tracing::warn!(%error, "cannot accept children; trying again every second; raise the limit of open files (ulimit -n)");
                    }
                    self.accept_again = Some(self.io.now() + ACCEPT_PAUSE);
                    return false;
                }
            }
        }
        true
    }

    pub(super) fn listen_to(&mut self, id: ConnId) {
        let Some(newcomer) = self.newcomers.iter_mut().find(|newcomer| newcomer.id == id) else { return };
        if !newcomer.is_silent() {
            // Readable again before it was adopted: `Want` sent ahead, read after adoption, or the end, found by the time-out.
            return;
        }
        match newcomer.listen() {
            Heard::Nothing => self.io.arm(id, newcomer.fd(), Direction::Read),
            Heard::Nonsense(reason) => {
                tracing::debug!(reason, "a connection that is no child");
                self.dismiss(id, Some((Refusal::Protocol, &reason)));
            }
            Heard::Stranger(node, error) => self.turn_away(id, node, error),
            Heard::Hello => self.check_next(),
        }
    }

    /// Checks the signatures of the newcomer that waits longest for it, if this worker has time for that: see [`Allowance`].
    pub(super) fn check_next(&mut self) {
        let now = self.io.now();
        let Some(newcomer) = self.newcomers.iter_mut().find(|newcomer| newcomer.is_unchecked()) else { return };
        if !self.allowance.has_some(now) {
            return;
        }
        let (id, checked) = (newcomer.id, newcomer.check(&self.io.trust));
        self.allowance.spend(self.io.now().saturating_sub(now));
        match checked {
            Ok(()) => self.admit(id),
            Err((node, error)) => self.turn_away(id, node, error),
        }
    }

    fn turn_away(&mut self, id: ConnId, node: NodeId, error: TicketError) {
        self.strangers += 1;
        // One line a second: a flood of strangers must not fill the log.
        let now = self.io.now();
        if now.saturating_sub(self.stranger_told) >= STRANGER_PAUSE || self.strangers == 1 {
            self.stranger_told = now;
            tracing::warn!(%node, %error, so_far = self.strangers, "a child without a valid ticket was refused");
        }
        self.dismiss(id, Some((Refusal::Ticket, &error.to_string())));
    }

    /// Gives a newcomer to its function, if that is known here.
    pub(super) fn admit(&mut self, id: ConnId) {
        let Some(index) = self.newcomers.iter().position(|newcomer| newcomer.id == id) else { return };
        let Some(hello) = self.newcomers[index].hello else { return };
        if let Some(worker) = self.elsewhere.get(&hello.function) {
            return self.pass_on(index, *worker);
        }
        let function = self.functions.get_mut(&hello.function).filter(|function| function.image() == hello.image);
        if let Some(function) = function {
            let newcomer = self.newcomers.remove(index);
            function.adopt(newcomer, &hello, &mut self.io);
        }
    }

    /// At the front: children of a function go to another worker, or stay here.
    pub(super) fn set_route(&mut self, function: FunctionId, worker: Option<usize>) {
        match worker {
            Some(worker) => drop(self.elsewhere.insert(function, worker)),
            None => drop(self.elsewhere.remove(&function)),
        }
        for id in self.waiting_newcomers(function) {
            self.admit(id);
        }
    }

    /// Gives a newcomer that has said `Hello` to the worker of its function. One whose mailbox is full is tried again.
    fn pass_on(&mut self, index: usize, worker: usize) {
        let newcomer = self.newcomers.remove(index);
        self.io.release(newcomer.id, newcomer.fd());
        let mail = Mail::Newcomer(Box::new(newcomer));
        if let Err(TrySendError::Full(Mail::Newcomer(newcomer))) = self.siblings[worker].try_send(mail) {
            let id = self.io.route(Route::Newcomer);
            self.newcomers.push(newcomer.settled(id, self.io.now()));
        }
    }

    /// Takes a newcomer that the front accepted and checked.
    pub(super) fn take_over(&mut self, newcomer: Newcomer) {
        let id = self.io.route(Route::Newcomer);
        self.newcomers.push(newcomer.settled(id, self.io.now()));
        if self.newcomers.len() > MAX_NEWCOMERS {
            return self.dismiss(id, Some((Refusal::Other, "too many connections wait here; try again")));
        }
        self.admit(id);
    }

    pub(super) fn waiting_newcomers(&self, function: FunctionId) -> Vec<ConnId> {
        let waits = |hello: &Hello| hello.function == function;
        self.newcomers.iter().filter(|n| n.hello.as_ref().is_some_and(waits)).map(|newcomer| newcomer.id).collect()
    }

    pub(super) fn dismiss(&mut self, id: ConnId, refusal: Option<(Refusal, &str)>) {
        let Some(index) = self.newcomers.iter().position(|newcomer| newcomer.id == id) else { return };
        let newcomer = self.newcomers.remove(index);
        if let Some((refusal, text)) = refusal {
            newcomer.refuse(refusal, text);
        }
        let (id, fd, _) = newcomer.into_parts();
        self.io.close(id, fd);
    }

    /// Goes on with those that wait: for room, for time, for their function.
    pub(super) fn tick_newcomers(&mut self, now: Now) {
        if self.accept_again.is_some_and(|at| now >= at) {
            self.accept();
        }
        let every = self.io.patience.waiting_every;
        for newcomer in self.newcomers.iter_mut().filter(|newcomer| newcomer.hello.is_some()) {
            newcomer.soothe(now, every);
        }
        // Those for whom there was no time when they came.
        for _ in 0..self.newcomers.iter().filter(|newcomer| newcomer.is_unchecked()).count() {
            self.check_next();
        }
        // Those that found another worker's mailbox full.
        let stuck = |newcomer: &&Newcomer| {
            newcomer.hello.as_ref().is_some_and(|hello| self.elsewhere.contains_key(&hello.function))
        };
        for id in self.newcomers.iter().filter(stuck).map(|newcomer| newcomer.id).collect::<Vec<_>>() {
            self.admit(id);
        }
        let late = |newcomer: &&Newcomer| now.saturating_sub(newcomer.since) > NEWCOMER_PATIENCE;
        for id in self.newcomers.iter().filter(late).map(|newcomer| newcomer.id).collect::<Vec<_>>() {
            self.dismiss(id, Some((Refusal::UnknownFunction, "this node does not have the function")));
        }
    }
}
