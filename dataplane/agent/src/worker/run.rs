//! The worker's loop: one command, the completions, the timers, one wait.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam::channel::{Receiver, TryRecvError};
use faasnet_api::FunctionId;
use faasnet_relay::upstream::Now;
use faasnet_ring::{Completion, Token, Waker};
use tokio::sync::{mpsc, oneshot};

use super::WorkerConfig;
use super::allowance::Allowance;
use super::function::Function;
use super::io::{ConnId, Direction, Io, Route, TICK};
use super::leases::Leased;
use super::mailbox::{Assignment, Mail, Mailbox, WorkerCommand, WorkerEvent};
use super::mover::choose;
use super::newcomer::Newcomer;
use super::pacing::Pacing;

mod front;
mod parts;

/// Everything that a worker owns.
pub(super) struct Worker {
    pub(super) io: Io,
    queue: Receiver<Mail>,
    waker: Waker,
    waker_id: ConnId,
    /// The front's; other workers are handed what it accepted.
    listener: Option<(ConnId, OwnedFd)>,
    functions: HashMap<FunctionId, Function>,
    /// At the front: functions that live on other workers, and where these can be reached.
    elsewhere: HashMap<FunctionId, usize>,
    siblings: Vec<Mailbox>,
    pacing: Option<Pacing>,
    leased: Leased,
    /// In the order of arrival.
    newcomers: Vec<Newcomer>,
    /// For checking what newcomers show.
    allowance: Allowance,
    /// How many were refused for their tickets, and when that was last told.
    strangers: u64,
    stranger_told: Now,
    /// When to try to accept again, after it failed.
    accept_again: Option<Now>,
    /// Empty between two waits; kept for its room.
    completions: Vec<Completion>,
    stopping: bool,
}

/// What makes a worker one of several.
pub(super) struct Seat {
    pub(super) index: usize,
    pub(super) queue: Receiver<Mail>,
    pub(super) waker: Waker,
    /// The core on which it stays.
    pub(super) core: Option<usize>,
    /// Every worker's mailbox, for the front; empty for the others.
    pub(super) siblings: Vec<Mailbox>,
    /// Where the front listens; `None` for the front itself, which has to find out.
    pub(super) bound: Option<SocketAddr>,
    pub(super) pacing: Option<Pacing>,
    pub(super) leased: Leased,
}

/// An idle worker wakes up this rarely.
const IDLE_WAIT: Duration = Duration::from_secs(5);
/// How long writes in flight may take when the worker stops.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// The thread's body.
pub(super) fn run(
    config: WorkerConfig,
    seat: Seat,
    events: mpsc::Sender<WorkerEvent>,
    ready: oneshot::Sender<anyhow::Result<SocketAddr>>,
) {
    let mut worker = match Worker::new(&config, seat, events) {
        Ok((worker, address)) => {
            // Ignored: a control side that has gone drops the command queue, which ends the loop.
            let _ = ready.send(Ok(address));
            worker
        }
        Err(error) => {
            // Ignored: nobody is left to be told.
            let _ = ready.send(Err(error));
            return;
        }
    };
    if let Err(error) = worker.turn() {
        tracing::error!(%error, "the data worker cannot go on");
    }
    worker.close();
}

impl Worker {
    pub(super) fn new(
        config: &WorkerConfig,
        seat: Seat,
        events: mpsc::Sender<WorkerEvent>,
    ) -> anyhow::Result<(Self, SocketAddr)> {
        if let Some(core) = seat.core {
            faasnet_ring::cores::stay_on(core).with_context(|| format!("cannot stay on core {core}"))?;
        }
        let tuning = &config.tuning;
        let arena = parts::arena(config.buffers, tuning.huge_pages)?;
        let (driver, movers) = choose(config.engine, tuning.driver_kind, &arena, &tuning.driver)?;
        parts::announce(config, &seat, &driver, &movers);
        let (listener, address) = match seat.bound {
            Some(address) => (None, address),
            None => parts::listen(config).map(|(fd, address)| (Some(fd), address))?,
        };
        let pipes = parts::pipes(&movers, tuning.pipe_bytes)?;
        let advertised = config.advertise.unwrap_or(address);
        let advertised =
            SocketAddr::new(advertised.ip(), if advertised.port() == 0 { address.port() } else { advertised.port() });
        let mut io = Io::new(driver, arena, movers, config, advertised, pipes, events);
        let waker_id = io.route(Route::Waker);
        io.arm(waker_id, seat.waker.as_fd(), Direction::Read);
        let listener = listener.map(|fd| (io.route(Route::Listener), fd));
        if let Some((id, fd)) = &listener {
            io.arm(*id, fd, Direction::Read);
        }
        let worker = Self {
            io,
            queue: seat.queue,
            waker: seat.waker,
            waker_id,
            listener,
            functions: HashMap::new(),
            elsewhere: HashMap::new(),
            siblings: seat.siblings,
            pacing: seat.pacing,
            leased: seat.leased,
            newcomers: Vec::new(),
            allowance: Allowance::new(),
            strangers: 0,
            stranger_told: Now::ZERO,
            accept_again: None,
            completions: Vec::new(),
            stopping: false,
        };
        Ok((worker, address))
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        let mut ticked = self.io.now();
        while !self.stopping {
            self.take_mail();
            let wait = self.patience();
            self.pace(wait == IDLE_WAIT);
            self.leased.set(self.io.leased_buffers());
            self.wait(wait)?;
            if self.io.now().saturating_sub(ticked) >= TICK {
                ticked = self.io.now();
                self.tick(ticked);
            }
        }
        Ok(())
    }

    /// Waits once, and takes what has completed.
    pub(super) fn wait(&mut self, most: Duration) -> anyhow::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        self.io.driver.wait(Some(most), &mut completions).context("waiting for the kernel failed")?;
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        Ok(())
    }

    /// How long to sleep: not at all while commands wait, a tick while something moves, else long.
    fn patience(&self) -> Duration {
        if !self.queue.is_empty() || self.stopping {
            return Duration::ZERO;
        }
        let quiet =
            self.newcomers.is_empty() && self.accept_again.is_none() && self.functions.values().all(Function::is_quiet);
        if quiet { IDLE_WAIT } else { TICK }
    }

    fn take_mail(&mut self) {
        match self.queue.try_recv() {
            Ok(Mail::Command(command)) => self.command(command),
            Ok(Mail::Route { function, worker }) => self.set_route(function, worker),
            Ok(Mail::Leave(function)) => {
                if let Some(function) = self.functions.remove(&function) {
                    function.close(&mut self.io);
                }
            }
            Ok(Mail::Newcomer(newcomer)) => self.take_over(*newcomer),
            Err(TryRecvError::Disconnected) => self.stopping = true,
            Err(TryRecvError::Empty) => {}
        }
    }

    fn command(&mut self, command: WorkerCommand) {
        match command {
            WorkerCommand::Assign(assignment) => self.assign(*assignment),
            WorkerCommand::OpenImage { function, stored } => {
                if let Some(function) = self.functions.get_mut(&function) {
                    function.open_image(stored, &mut self.io);
                }
            }
            WorkerCommand::FailImage { function, image, reason } => {
                if let Some(function) = self.functions.get_mut(&function).filter(|function| function.image() == image) {
                    function.fail(reason, &mut self.io);
                }
            }
            WorkerCommand::OriginLease { function, stripe, lease } => {
                if let Some(function) = self.functions.get_mut(&function) {
                    function.origin_leave(stripe, lease, &mut self.io);
                }
            }
            WorkerCommand::Hurry { function, image, blocks } => {
                if let Some(function) = self.functions.get_mut(&function).filter(|function| function.image() == image) {
                    function.hurry(&blocks, &mut self.io);
                }
            }
            WorkerCommand::Drop { function, term, epoch } => self.drop_function(function, term, epoch),
            WorkerCommand::Report => {
                let reports = self.functions.values().map(|function| function.report(&self.io)).collect();
                self.io.tell(WorkerEvent::Reported(reports));
            }
            WorkerCommand::Stop => self.stopping = true,
        }
    }

    pub(super) fn assign(&mut self, assignment: Assignment) {
        let id = assignment.function;
        if assignment.stripes.is_empty() {
            return;
        }
        match self.functions.get_mut(&id) {
            Some(function) if function.is_newer_than(assignment.term, assignment.epoch) => return,
            Some(function)
                if function.image() == assignment.image
                    && usize::from(function.stripe_count()) == assignment.stripes.len()
                    && !function.has_failed() =>
            {
                function.set_plan(assignment, &mut self.io);
            }
            _ => {
                if let Some(old) = self.functions.remove(&id) {
                    old.close(&mut self.io);
                }
                let function = Function::new(assignment, &mut self.io);
                self.functions.insert(id, function);
            }
        }
        for id in self.waiting_newcomers(id) {
            self.admit(id);
        }
    }

    fn drop_function(&mut self, id: FunctionId, term: u64, epoch: u64) {
        if self.functions.get(&id).is_some_and(|function| function.is_newer_than(term, epoch)) {
            return;
        }
        if let Some(function) = self.functions.remove(&id) {
            function.close(&mut self.io);
        }
        self.io.tell(WorkerEvent::Dropped { function: id });
    }

    fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Ready { token } => self.ready(token),
            Completion::Wrote { token, result } => {
                if let Some(op) = self.io.finish(token)
                    && let Some(function) = self.functions.get_mut(&op.function)
                {
                    function.wrote(&op, result, &mut self.io);
                }
                self.resume_starved();
            }
            Completion::Read { token, result } => {
                if let Some(op) = self.io.finish(token)
                    && let Some(function) = self.functions.get_mut(&op.function)
                {
                    function.loaded(&op, result, &mut self.io);
                }
            }
            Completion::Received { token, buffer, outcome } => {
                if let Some((id, Route::Link(function, stripe), _)) = self.io.ready(token)
                    && let Some(function) = self.functions.get_mut(&function)
                {
                    function.received(stripe, id, buffer, outcome, &mut self.io);
                }
            }
            Completion::Sent { token, outcome } => {
                if let Some((id, Route::Child(function, stripe), _)) = self.io.ready(token)
                    && let Some(function) = self.functions.get_mut(&function)
                {
                    function.sent(stripe, id, outcome, &mut self.io);
                }
            }
        }
    }

    fn ready(&mut self, token: Token) {
        let Some((id, route, direction)) = self.io.ready(token) else { return };
        match route {
            Route::Waker => {
                self.waker.drain();
                self.io.arm(self.waker_id, self.waker.as_fd(), Direction::Read);
            }
            Route::Listener => self.accept(),
            Route::Newcomer => self.listen_to(id),
            Route::Link(function, stripe) => {
                if let Some(function) = self.functions.get_mut(&function) {
                    function.link_ready(stripe, id, direction, &mut self.io);
                }
            }
            Route::Child(function, stripe) => {
                if let Some(function) = self.functions.get_mut(&function) {
                    function.child_ready(stripe, id, direction, &mut self.io);
                }
            }
        }
    }

    /// Divides the node's rate limit anew when it is time; a worker that is about to sleep leaves its part to the others.
    fn pace(&mut self, idle: bool) {
        let now = self.io.now();
        let Some(pacing) = &mut self.pacing else { return };
        if idle {
            pacing.share(0);
        } else if pacing.is_due(now) {
            let active = self.functions.values().map(Function::active_children).sum();
            let rate = pacing.share(active);
            self.functions.values_mut().for_each(|function| function.pace(rate));
        }
    }

    fn resume_starved(&mut self) {
        for function in self.functions.values_mut() {
            function.resume_starved(&mut self.io);
        }
    }

    fn tick(&mut self, now: Now) {
        self.io.judge_disk();
        for function in self.functions.values_mut() {
            function.tick(&mut self.io);
        }
        self.tick_newcomers(now);
    }

    /// Ends all edges and waits for the writes in flight, so that no block is on disk without being marked.
    pub(super) fn close(mut self) {
        let deadline = Instant::now() + STOP_PATIENCE;
        let mut completions = Vec::new();
        self.io.stopping = true;
        while self.io.disk_is_busy() && Instant::now() < deadline {
            if self.io.driver.wait(Some(TICK), &mut completions).is_err() {
                break;
            }
            for completion in completions.drain(..).filter(|completion| !matches!(completion, Completion::Ready { .. }))
            {
                self.complete(completion);
            }
        }
        for (_, function) in self.functions.drain() {
            function.close(&mut self.io);
        }
        if self.io.lost_events > 0 {
            tracing::warn!(events = self.io.lost_events, "events were lost because the control side was slow");
        }
    }
}
