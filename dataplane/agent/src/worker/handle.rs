//! The control side's hold on the running workers: starts and stops the threads, sends each command to the worker that it concerns, and
//! gives out all events as if there were one worker.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::{Context as TaskContext, Poll};
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};
use crossbeam::channel::{self, Receiver, Sender};
use faasnet_api::FunctionId;
use faasnet_ring::Waker;
use tokio::sync::{mpsc, oneshot};

use super::leases::Leases;
use super::mailbox::{FunctionReport, Mail, Mailbox, WorkerCommand, WorkerEvent};
use super::pacing::Pacing;
use super::placement::Placement;
use super::run::{self, Seat};
use super::{WorkerConfig, cores};
use crate::link::{WorkerEnded, WorkerLink};

/// See the module's documentation. Dropping it stops the workers without waiting.
pub struct WorkerHandle {
    workers: Vec<Worker>,
    /// Changed by commands, which borrow the handle shared; one thread at a time has it.
    placement: RefCell<Placement>,
    reports: Reports,
    /// Who is asked first for an event.
    turn: usize,
    data_address: SocketAddr,
    leases: Leases,
}

/// One thread, seen from outside.
struct Worker {
    mailbox: Mailbox,
    events: mpsc::Receiver<WorkerEvent>,
    thread: JoinHandle<()>,
}

/// The workers' answers to one `Report`, until all are there.
struct Reports {
    rows: Vec<FunctionReport>,
    answered: Vec<bool>,
}

/// The worker that accepts connections and passes them on.
const FRONT: usize = 0;
/// Commands and events that may wait, per worker; a burst of joins fits.
const MAILBOX_DEPTH: usize = 1024;

/// Starts the workers' threads and waits until they listen.
pub async fn start(config: WorkerConfig) -> anyhow::Result<WorkerHandle> {
    let count = config.tuning.workers.max(1);
    let cores = cores(&config.tuning)?;
    let (mut mailboxes, mut queues) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (sender, queue): (Sender<Mail>, Receiver<Mail>) = channel::bounded(MAILBOX_DEPTH);
        let waker = Waker::new().context("cannot make a worker's wake-up descriptor")?;
        mailboxes.push(Mailbox::new(sender, waker.clone()));
        queues.push((queue, waker));
    }
    let mut pacing =
        config.tuning.limit_bytes_per_second.map(|limit| Pacing::for_all(count, limit)).into_iter().flatten();
    let mut handle = WorkerHandle {
        workers: Vec::new(),
        placement: RefCell::new(Placement::new(count)),
        reports: Reports { rows: Vec::new(), answered: vec![false; count] },
        turn: 0,
        data_address: config.listen,
        leases: Leases::default(),
    };
    for (index, (queue, waker)) in queues.into_iter().enumerate() {
        let seat = Seat {
            index,
            queue,
            waker,
            core: cores.as_ref().map(|cores| cores[index]),
            siblings: if index == FRONT { mailboxes.clone() } else { Vec::new() },
            bound: (index != FRONT).then_some(handle.data_address),
            pacing: pacing.next(),
            leased: handle.leases.add(),
        };
        handle.data_address = handle.add(config.clone(), seat, mailboxes[index].clone()).await?;
    }
    Ok(handle)
}

impl WorkerHandle {
    /// Where children connect to.
    pub fn data_address(&self) -> SocketAddr {
        self.data_address
    }

    /// The worker on which a function lives, from 0.
    pub fn worker_of(&self, function: FunctionId) -> Option<usize> {
        self.placement.borrow().worker_of(function)
    }

    async fn add(&mut self, config: WorkerConfig, seat: Seat, mailbox: Mailbox) -> anyhow::Result<SocketAddr> {
        let (event_queue, events) = mpsc::channel(MAILBOX_DEPTH);
        let (ready, started) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(format!("faasnet-worker{}", seat.index))
            .spawn(move || run::run(config, seat, event_queue, ready))
            .context("cannot start a worker's thread")?;
        self.workers.push(Worker { mailbox, events, thread });
        started.await.map_err(|_| anyhow!("a worker ended while starting"))?
    }

    fn deliver(&self, worker: usize, mail: Mail) -> Result<(), WorkerEnded> {
        self.workers.get(worker).ok_or(WorkerEnded)?.mailbox.send(mail)
    }

    fn deliver_to_all(&self, command: impl Fn() -> WorkerCommand) -> Result<(), WorkerEnded> {
        (0..self.workers.len()).try_for_each(|worker| self.deliver(worker, Mail::Command(command())))
    }

    /// The function's worker hears of it before the front does: a child that is passed on finds it there.
    fn assign(
        &self,
        command: WorkerCommand,
        function: FunctionId,
        image: faasnet_api::ImageId,
    ) -> Result<(), WorkerEnded> {
        let placed = self.placement.borrow_mut().assign(function, image);
        if let Some(left) = placed.left {
            self.deliver(left, Mail::Leave(function))?;
        }
        self.deliver(placed.worker, Mail::Command(command))?;
        self.deliver_route(function, (placed.worker != FRONT).then_some(placed.worker))
    }

    /// Tells the front where children of a function go.
    fn deliver_route(&self, function: FunctionId, worker: Option<usize>) -> Result<(), WorkerEnded> {
        match self.workers.len() {
            0 | 1 => Ok(()),
            _ => self.deliver(FRONT, Mail::Route { function, worker }),
        }
    }

    /// A command for a function that lives nowhere is answered by the front.
    fn home_of(&self, function: FunctionId) -> usize {
        self.worker_of(function).unwrap_or(FRONT)
    }

    fn poll_event(&mut self, context: &mut TaskContext<'_>) -> Poll<Option<(usize, WorkerEvent)>> {
        let count = self.workers.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            if let Poll::Ready(event) = self.workers[index].events.poll_recv(context) {
                self.turn = index + 1;
                // One worker that has ended takes its images along: the agent must not go on as if it held them.
                return Poll::Ready(event.map(|event| (index, event)));
            }
        }
        Poll::Pending
    }

    /// What the control side is told of a worker's event; nothing while other workers' reports are awaited.
    fn heard(&mut self, worker: usize, event: WorkerEvent) -> Option<WorkerEvent> {
        let placement = self.placement.get_mut();
        match &event {
            WorkerEvent::Completed { function, image } | WorkerEvent::Failed { function, image, .. } => {
                placement.settled(*function, *image);
            }
            WorkerEvent::Dropped { function } if placement.dropped(*function) => {
                // Ignored: a front that has ended is told by its events.
                let _ = self.deliver_route(*function, None);
            }
            WorkerEvent::Reported(_) => {
                let WorkerEvent::Reported(rows) = event else { return None };
                return self.reports.add(worker, rows).map(WorkerEvent::Reported);
            }
            _ => {}
        }
        Some(event)
    }
}

impl Reports {
    /// Takes a worker's answer; gives all of them out when every worker has answered, or one has answered twice: then another's answer
    /// was lost because its queue was full.
    fn add(&mut self, worker: usize, mut rows: Vec<FunctionReport>) -> Option<Vec<FunctionReport>> {
        if self.answered[worker] {
            self.answered.fill(false);
            self.answered[worker] = true;
            std::mem::swap(&mut self.rows, &mut rows);
            return Some(rows);
        }
        self.answered[worker] = true;
        self.rows.append(&mut rows);
        if !self.answered.iter().all(|answered| *answered) {
            return None;
        }
        self.answered.fill(false);
        Some(std::mem::take(&mut self.rows))
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        // Ignored: a full or closed mailbox; its end, with this handle, stops the worker as well.
        self.workers.iter().for_each(|worker| drop(worker.mailbox.try_send(Mail::Command(WorkerCommand::Stop))));
    }
}

impl WorkerLink for WorkerHandle {
    fn send(&self, command: WorkerCommand) -> Result<(), WorkerEnded> {
        match command {
            WorkerCommand::Assign(ref assignment) => {
                let (function, image) = (assignment.function, assignment.image);
                self.assign(command, function, image)
            }
            WorkerCommand::OpenImage { function, .. }
            | WorkerCommand::FailImage { function, .. }
            | WorkerCommand::Hurry { function, .. }
            | WorkerCommand::OriginLease { function, .. } => {
                self.deliver(self.home_of(function), Mail::Command(command))
            }
            WorkerCommand::Drop { function, .. } => {
                self.placement.borrow_mut().dropping(function);
                self.deliver(self.home_of(function), Mail::Command(command))
            }
            WorkerCommand::Report => self.deliver_to_all(|| WorkerCommand::Report),
            WorkerCommand::Stop => self.deliver_to_all(|| WorkerCommand::Stop),
        }
    }

    async fn next_event(&mut self) -> Option<WorkerEvent> {
        loop {
            let (worker, event) = poll_fn(|context| self.poll_event(context)).await?;
            if let Some(event) = self.heard(worker, event) {
                return Some(event);
            }
        }
    }

    fn leases(&self) -> Leases {
        self.leases.clone()
    }

    fn stop(mut self) {
        for worker in &self.workers {
            // Ignored: a worker that has ended already needs no command.
            let _ = worker.mailbox.send(Mail::Command(WorkerCommand::Stop));
        }
        for worker in self.workers.drain(..) {
            // Ignored: a panic of the worker has been printed by its thread.
            let _ = worker.thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a report that is given out before every worker has answered, and one that waits for ever for a lost answer.
    #[test]
    fn reports_are_joined() {
        let mut reports = Reports { rows: Vec::new(), answered: vec![false; 2] };
        assert!(reports.add(1, Vec::new()).is_none());
        assert!(reports.add(0, Vec::new()).is_some());
        assert!(reports.add(0, Vec::new()).is_none());
        assert!(reports.add(0, Vec::new()).is_some(), "the other answer was lost");
        assert!(reports.add(1, Vec::new()).is_some(), "the second answer of the first begins a round");
    }
}
