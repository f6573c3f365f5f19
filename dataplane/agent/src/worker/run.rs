//! The worker's loop: one command, the completions, the timers, one wait.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam::channel::{Receiver, TryRecvError, TrySendError};
use faasnet_api::{FunctionId, MAX_BLOCK_BYTES, NodeId, TicketError};
use faasnet_relay::upstream::Now;
use faasnet_relay::wire::{HEADER_BYTES, Hello, Refusal};
use faasnet_ring::{Arena, Completion, Pipe, SocketOptions, Token, Waker, socket};
use tokio::sync::{mpsc, oneshot};

use super::WorkerConfig;
use super::allowance::Allowance;
use super::function::Function;
use super::io::{ConnId, Direction, Io, Route, TICK};
use super::leases::Leased;
use super::mailbox::{Assignment, Mail, Mailbox, WorkerCommand, WorkerEvent};
use super::mover::choose;
use super::newcomer::{Heard, Newcomer};
use super::pacing::Pacing;

/// Everything that a worker owns.
struct Worker {
    io: Io,
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

/// Connections that have not said who they are.
const MAX_NEWCOMERS: usize = 256;
/// How long a newcomer may take to say `Hello`, and how long it is kept while its function is not known here: commands of one burst
/// reach parents and children in any order.
const NEWCOMER_PATIENCE: Duration = Duration::from_secs(2);
/// Between two lines about refused tickets.
const STRANGER_PAUSE: Duration = Duration::from_secs(1);
/// After a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
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
    fn new(config: &WorkerConfig, seat: Seat, events: mpsc::Sender<WorkerEvent>) -> anyhow::Result<(Self, SocketAddr)> {
        if let Some(core) = seat.core {
            faasnet_ring::cores::stay_on(core).with_context(|| format!("cannot stay on core {core}"))?;
        }
        let tuning = &config.tuning;
        let arena = arena(config.buffers, tuning.huge_pages)?;
        let (driver, movers) = choose(config.engine, tuning.driver_kind, &arena, &tuning.driver)?;
        driver.notes().iter().for_each(|note| tracing::warn!("{note}"));
        if let Some(warning) = config.verify.warning() {
            tracing::warn!("{warning}");
        }
        if config.forward_only {
            tracing::warn!(
                "experiment_forward_only: nothing is verified or kept; this node has no image for anybody who comes late"
            );
        }
        tracing::info!(
            worker = seat.index,
            mover = movers.first.name(),
            reason = movers.reason,
            driver = driver.kind().name(),
            buffers = config.buffers,
            core = seat.core,
            "data worker starts"
        );
        let (listener, address) = match seat.bound {
            Some(address) => (None, address),
            None => {
                // A child begins with the whole limit, until it is divided.
                let pacing_bytes_per_second = tuning.limit_bytes_per_second;
                let options = SocketOptions { pacing_bytes_per_second, ..config.socket_options.clone() };
                listen(config.listen, &options).map(|(fd, address)| (Some(fd), address))?
            }
        };
        let transit = movers.may_splice().then(|| Pipe::new(tuning.pipe_bytes)).transpose();
        if let Ok(Some(pipe)) = &transit
            && pipe.capacity_bytes() < tuning.pipe_bytes
        {
            tracing::warn!(
                wanted = tuning.pipe_bytes,
                granted = pipe.capacity_bytes(),
                "pipes are smaller than asked for: frames that do not fit go through buffers; raise fs.pipe-max-size and \
                 fs.pipe-user-pages-soft, or give the agent CAP_SYS_RESOURCE"
            );
        }
        let pipes = [transit.context("cannot make a pipe")?, movers.gauge().context("cannot make a pipe")?];
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
            stopping: false,
        };
        Ok((worker, address))
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        let mut completions = Vec::new();
        let mut ticked = self.io.now();
        while !self.stopping {
            self.take_mail();
            let wait = self.patience();
            self.pace(wait == IDLE_WAIT);
            self.leased.set(self.io.leased_buffers());
            self.io.driver.wait(Some(wait), &mut completions).context("waiting for the kernel failed")?;
            for completion in completions.drain(..) {
                self.complete(completion);
            }
            if self.io.now().saturating_sub(ticked) >= TICK {
                ticked = self.io.now();
                self.tick(ticked);
            }
        }
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
            WorkerCommand::Drop { function, term, epoch } => self.drop_function(function, term, epoch),
            WorkerCommand::Report => {
                let reports = self.functions.values().map(|function| function.report(&self.io)).collect();
                self.io.tell(WorkerEvent::Reported(reports));
            }
            WorkerCommand::Stop => self.stopping = true,
        }
    }

    fn assign(&mut self, assignment: Assignment) {
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

    fn accept(&mut self) {
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

    fn listen_to(&mut self, id: ConnId) {
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
    fn check_next(&mut self) {
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
    fn admit(&mut self, id: ConnId) {
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
    fn set_route(&mut self, function: FunctionId, worker: Option<usize>) {
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
    fn take_over(&mut self, newcomer: Newcomer) {
        let id = self.io.route(Route::Newcomer);
        self.newcomers.push(newcomer.settled(id, self.io.now()));
        if self.newcomers.len() > MAX_NEWCOMERS {
            return self.dismiss(id, Some((Refusal::Other, "too many connections wait here; try again")));
        }
        self.admit(id);
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

    fn waiting_newcomers(&self, function: FunctionId) -> Vec<ConnId> {
        let waits = |hello: &Hello| hello.function == function;
        self.newcomers.iter().filter(|n| n.hello.as_ref().is_some_and(waits)).map(|newcomer| newcomer.id).collect()
    }

    fn dismiss(&mut self, id: ConnId, refusal: Option<(Refusal, &str)>) {
        let Some(index) = self.newcomers.iter().position(|newcomer| newcomer.id == id) else { return };
        let newcomer = self.newcomers.remove(index);
        if let Some((refusal, text)) = refusal {
            newcomer.refuse(refusal, text);
        }
        let (id, fd, _) = newcomer.into_parts();
        self.io.close(id, fd);
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

    /// Ends all edges and waits for the writes in flight, so that no block is on disk without being marked.
    fn close(mut self) {
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

fn arena(buffers: usize, huge_pages: bool) -> anyhow::Result<Arena> {
    // The next frame's header is read with the last of a block.
    let payload = MAX_BLOCK_BYTES as usize + HEADER_BYTES;
    if !huge_pages {
        return Arena::new(buffers, payload).context("cannot allocate block buffers");
    }
    let arena = Arena::on_huge_pages(buffers, payload).context("cannot allocate block buffers")?;
    let (huge, all) = (arena.huge_bytes(), arena.slots() * arena.slot_bytes());
    match huge >= all {
        true => tracing::info!(bytes = huge, "block buffers lie on huge pages"),
        false => tracing::warn!(
            huge,
            all,
            "not all block buffers lie on huge pages; see /sys/kernel/mm/transparent_hugepage/enabled (always or madvise)"
        ),
    }
    Ok(arena)
}

fn listen(address: SocketAddr, options: &SocketOptions) -> anyhow::Result<(OwnedFd, SocketAddr)> {
    socket::listen(address, options)
        .with_context(|| format!("cannot listen on {address} for children; is the port in use, or another agent running? choose another with --listen"))
}
