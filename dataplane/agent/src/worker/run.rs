//! The worker's loop: one command, the completions, the timers, one wait.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use crossbeam::channel::{Receiver, TryRecvError};
use faasnet_api::{FunctionId, MAX_BLOCK_BYTES};
use faasnet_relay::upstream::Now;
use faasnet_relay::wire::{Hello, Refusal};
use faasnet_ring::{Arena, Completion, Driver, DriverKind, Pipe, SocketOptions, Token, Waker, probe, socket};
use tokio::sync::{mpsc, oneshot};

use super::WorkerConfig;
use super::function::Function;
use super::io::{ConnId, Direction, Io, Mover, Route, TICK};
use super::mailbox::{Assignment, WorkerCommand, WorkerEvent};
use super::newcomer::{Heard, Newcomer};
use crate::config::Engine;

/// Everything that a worker owns.
struct Worker {
    io: Io,
    commands: Receiver<WorkerCommand>,
    waker: Waker,
    waker_id: ConnId,
    listener: OwnedFd,
    listener_id: ConnId,
    functions: HashMap<FunctionId, Function>,
    /// In the order of arrival.
    newcomers: Vec<Newcomer>,
    /// When to try to accept again, after it failed.
    accept_again: Option<Now>,
    stopping: bool,
}

/// Connections that have not said who they are.
const MAX_NEWCOMERS: usize = 256;
/// How long a newcomer may take to say `Hello`, and how long it is kept while its function is not known here: commands of one burst
/// reach parents and children in any order.
const NEWCOMER_PATIENCE: Duration = Duration::from_secs(2);
/// After a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// An idle worker wakes up this rarely.
const IDLE_WAIT: Duration = Duration::from_secs(5);
/// How long writes in flight may take when the worker stops.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// The thread's body.
pub(super) fn run(
    config: WorkerConfig,
    commands: Receiver<WorkerCommand>,
    events: mpsc::Sender<WorkerEvent>,
    waker: Waker,
    ready: oneshot::Sender<anyhow::Result<SocketAddr>>,
) {
    let mut worker = match Worker::new(&config, commands, events, waker) {
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
    fn new(
        config: &WorkerConfig,
        commands: Receiver<WorkerCommand>,
        events: mpsc::Sender<WorkerEvent>,
        waker: Waker,
    ) -> anyhow::Result<(Self, SocketAddr)> {
        let arena = Arena::new(config.buffers, MAX_BLOCK_BYTES as usize).context("cannot allocate block buffers")?;
        let (driver, mover) = choose(config.engine, &arena)?;
        driver.notes().iter().for_each(|note| tracing::warn!("{note}"));
        if let Some(warning) = config.verify.warning() {
            tracing::warn!("{warning}");
        }
        tracing::info!(mover = mover.name(), buffers = config.buffers, "data worker starts");
        let (listener, address) = listen(config.listen, &config.socket_options)?;
        let transit = (mover == Mover::Splice).then(|| Pipe::new(1 << 20)).transpose().context("cannot make a pipe")?;
        let advertised = config.advertise.unwrap_or(address);
        let advertised =
            SocketAddr::new(advertised.ip(), if advertised.port() == 0 { address.port() } else { advertised.port() });
        let mut io = Io::new(driver, arena, mover, config, advertised, transit, events);
        let (waker_id, listener_id) = (io.route(Route::Waker), io.route(Route::Listener));
        io.arm(waker_id, waker.as_fd(), Direction::Read);
        io.arm(listener_id, &listener, Direction::Read);
        let worker = Self {
            io,
            commands,
            waker,
            waker_id,
            listener,
            listener_id,
            functions: HashMap::new(),
            newcomers: Vec::new(),
            accept_again: None,
            stopping: false,
        };
        Ok((worker, address))
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        let mut completions = Vec::new();
        let mut ticked = self.io.now();
        while !self.stopping {
            self.command();
            let wait = self.patience();
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
        if !self.commands.is_empty() || self.stopping {
            return Duration::ZERO;
        }
        let quiet =
            self.newcomers.is_empty() && self.accept_again.is_none() && self.functions.values().all(Function::is_quiet);
        if quiet { IDLE_WAIT } else { TICK }
    }

    fn command(&mut self) {
        match self.commands.try_recv() {
            Ok(WorkerCommand::Assign(assignment)) => self.assign(*assignment),
            Ok(WorkerCommand::OpenImage { function, stored }) => {
                if let Some(function) = self.functions.get_mut(&function) {
                    function.open_image(stored, &mut self.io);
                }
            }
            Ok(WorkerCommand::FailImage { function, image, reason }) => {
                if let Some(function) = self.functions.get_mut(&function).filter(|function| function.image() == image) {
                    function.fail(reason, &mut self.io);
                }
            }
            Ok(WorkerCommand::Drop { function, term, epoch }) => self.drop_function(function, term, epoch),
            Ok(WorkerCommand::Report) => {
                let reports = self.functions.values().map(|function| function.report(&self.io)).collect();
                self.io.tell(WorkerEvent::Reported(reports));
            }
            Ok(WorkerCommand::Stop) | Err(TryRecvError::Disconnected) => self.stopping = true,
            Err(TryRecvError::Empty) => {}
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
            // No mover asks for these yet.
            Completion::Received { .. } | Completion::Sent { .. } => {}
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
        for _ in 0..MAX_NEWCOMERS {
            match socket::accept(&self.listener) {
                Ok(Some((fd, _))) => {
                    let id = self.io.route(Route::Newcomer);
                    if self.newcomers.len() >= MAX_NEWCOMERS {
                        // The one that has been silent longest makes room: silent strangers must not lock children out.
                        let silent = self.newcomers.iter().find(|newcomer| newcomer.hello.is_none());
                        match silent.map(|newcomer| newcomer.id) {
                            Some(oldest) => self.dismiss(oldest, None),
                            None => {
                                self.io.close(id, fd);
                                continue;
                            }
                        }
                    }
                    self.newcomers.push(Newcomer::new(id, fd, self.io.now()));
                    self.listen_to(id);
                }
                Ok(None) => break,
                Err(error) => {
                    // Out of descriptors, most likely: the listener stays readable, so it is armed again only after a pause.
                    if self.accept_again.is_none() {
                        tracing::warn!(%error, "cannot accept children; trying again every second; raise the limit of open files (ulimit -n)");
                    }
                    self.accept_again = Some(self.io.now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.accept_again = None;
        self.io.arm(self.listener_id, &self.listener, Direction::Read);
    }

    fn listen_to(&mut self, id: ConnId) {
        let Some(newcomer) = self.newcomers.iter_mut().find(|newcomer| newcomer.id == id) else { return };
        if newcomer.hello.is_some() {
            // Readable again before it was adopted: `Want` sent ahead, read after adoption, or the end, found by the time-out.
            return;
        }
        match newcomer.listen() {
            Heard::Nothing => self.io.arm(id, newcomer.fd(), Direction::Read),
            Heard::Nonsense(reason) => {
                tracing::debug!(reason, "a connection that is no child");
                self.dismiss(id, Some((Refusal::Protocol, &reason)));
            }
            Heard::Hello(hello) => {
                newcomer.hello = Some(hello);
                match hello.ticket.check(&self.io.secret, hello.node, hello.function, hello.image, unix_seconds()) {
                    Ok(()) => self.admit(id),
                    Err(error) => {
                        tracing::warn!(node = %hello.node, %error, "a child without a valid ticket was refused");
                        self.dismiss(id, Some((Refusal::Ticket, &error.to_string())));
                    }
                }
            }
        }
    }

    /// Gives a newcomer to its function, if that is known here.
    fn admit(&mut self, id: ConnId) {
        let Some(index) = self.newcomers.iter().position(|newcomer| newcomer.id == id) else { return };
        let Some(hello) = self.newcomers[index].hello else { return };
        let function = self.functions.get_mut(&hello.function).filter(|function| function.image() == hello.image);
        if let Some(function) = function {
            let newcomer = self.newcomers.remove(index);
            function.adopt(newcomer, &hello, &mut self.io);
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
        let late = |newcomer: &&Newcomer| now.saturating_sub(newcomer.since) > NEWCOMER_PATIENCE;
        for id in self.newcomers.iter().filter(late).map(|newcomer| newcomer.id).collect::<Vec<_>>() {
            self.dismiss(id, Some((Refusal::UnknownFunction, "this node does not have the function")));
        }
    }

    /// Ends all edges and waits for the writes in flight, so that no block is on disk without being marked.
    fn close(mut self) {
        let deadline = Instant::now() + STOP_PATIENCE;
        let mut completions = Vec::new();
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

/// The driver and mover for the configured engine; `auto` takes the best that the host permits and says why not a better one.
fn choose(engine: Engine, arena: &Arena) -> anyhow::Result<(Driver, Mover)> {
    let copy = |arena| anyhow::Ok((Driver::new(DriverKind::Epoll, arena)?, Mover::Copy));
    if engine == Engine::Copy {
        return copy(arena);
    }
    let host = probe();
    let obstacle = match &host.uring {
        Err(reason) => Some(reason.clone()),
        Ok(()) if !host.splice => Some("this kernel or sandbox forbids splice and tee".to_owned()),
        Ok(()) => None,
    };
    match obstacle {
        None => Ok((Driver::new(DriverKind::Uring, arena)?, Mover::Splice)),
        Some(reason) if engine == Engine::Auto => {
            tracing::warn!(reason, "engine auto: copy");
            copy(arena)
        }
        Some(reason) => anyhow::bail!("engine splice is not possible: {reason}"),
    }
}

fn listen(address: SocketAddr, options: &SocketOptions) -> anyhow::Result<(OwnedFd, SocketAddr)> {
    socket::listen(address, options)
        .with_context(|| format!("cannot listen on {address} for children; is the port in use, or another agent running? choose another with --listen"))
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
