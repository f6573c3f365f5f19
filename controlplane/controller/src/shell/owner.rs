//! The task that owns the state: takes messages, commits records, carries out the rest.
//!
//! It never waits for an agent or a client: whoever does not take what it is sent is cut off and comes back later.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use faasnet_api::v1;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use super::probe::probe;
use crate::state::{Answer, Ask, Input, Key, Now, Output, ProbeId, Refusal, RefusalKind, RequestId, SessionId, State};
use crate::store::StateStore;

/// Messages that may wait for the owner; senders wait beyond it, agents by their streams' flow control.
const INBOX: usize = 4_096;
/// Messages whose records share one commit.
const BATCH: usize = 1_024;
const TICK: Duration = Duration::from_millis(100);
/// Each costs a descriptor.
const PROBES_AT_ONCE: usize = 256;

/// What the owner is told.
pub(crate) enum Message {
    /// An agent's stream is open; dropping `session` ends it.
    Attach { id: SessionId, attached: Box<v1::Attached>, session: Session },
    /// Anything that the state machine understands directly.
    Input(Input),
    /// A client's call.
    Call { request: RequestId, ask: Ask, reply: Reply },
}

/// The owner's end of an agent's stream.
pub(crate) struct Session {
    pub(crate) commands: mpsc::Sender<Result<v1::Command, Status>>,
    /// Tells the task that reads the stream.
    pub(crate) _end: DropGuard,
}

/// The latest state of something that takes its time; `None` before the first word.
pub(crate) type Latest<P> = Option<Result<P, Refusal>>;

/// Where a call's answer goes.
pub(crate) enum Reply {
    Once(oneshot::Sender<Result<Answer, Refusal>>),
    Progress(watch::Sender<Latest<v1::ProvisionProgress>>),
    Drain(watch::Sender<Latest<v1::DrainProgress>>),
}

/// What the services hold of the owner.
#[derive(Clone)]
pub(crate) struct Handle {
    inbox: mpsc::Sender<Message>,
    numbers: Arc<AtomicU64>,
    meters: Arc<Meters>,
}

/// What the owner did so far.
#[derive(Default)]
pub(crate) struct Meters {
    inputs: AtomicU64,
    busy_us: AtomicU64,
    commits: AtomicU64,
    records: AtomicU64,
    commit_us: AtomicU64,
}

impl Meters {
    /// Inputs, microseconds that they took; commits, records in them, microseconds that they took.
    pub(crate) fn read(&self) -> [u64; 5] {
        [&self.inputs, &self.busy_us, &self.commits, &self.records, &self.commit_us]
            .map(|meter| meter.load(Ordering::Relaxed))
    }
}

fn count(meter: &AtomicU64, more: u64) {
    meter.fetch_add(more, Ordering::Relaxed);
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

impl Handle {
    /// A number that is not used twice, for sessions and requests.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn meters(&self) -> &Meters {
        &self.meters
    }

    pub(crate) async fn send(&self, message: Message) -> Result<(), Status> {
        self.inbox.send(message).await.map_err(|_| stopping())
    }

    pub(crate) async fn ask(&self, ask: Ask) -> Result<Answer, Status> {
        let (reply, answer) = oneshot::channel();
        let request = RequestId(self.number());
        self.send(Message::Call { request, ask, reply: Reply::Once(reply) }).await?;
        answer.await.map_err(|_| stopping())?.map_err(|refusal| status(&refusal))
    }
}

pub(crate) fn stopping() -> Status {
    Status::unavailable("the controller is stopping; try again when it is back")
}

pub(crate) fn status(refusal: &Refusal) -> Status {
    let message = refusal.message.clone();
    match refusal.kind {
        RefusalKind::Invalid => Status::invalid_argument(message),
        RefusalKind::NotFound => Status::not_found(message),
        RefusalKind::AlreadyExists => Status::already_exists(message),
        RefusalKind::Precondition => Status::failed_precondition(message),
    }
}

/// See the module's documentation.
pub(crate) struct Owner {
    state: State,
    store: Arc<dyn StateStore>,
    inbox: mpsc::Receiver<Message>,
    /// For the results of probes; weak, so that the inbox closes when the services are gone.
    own: mpsc::WeakSender<Message>,
    sessions: HashMap<SessionId, Session>,
    calls: HashMap<RequestId, Reply>,
    clock: Instant,
    probe_timeout: Duration,
    probes: Arc<Semaphore>,
    meters: Arc<Meters>,
}

/// The time as the state machine is told it; `clock` is when the owner began.
pub(crate) fn now(clock: Instant) -> Now {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { ms: clock.elapsed().as_millis() as u64, unix_s: unix.as_secs() }
}

impl Owner {
    pub(crate) fn new(
        state: State,
        store: Arc<dyn StateStore>,
        clock: Instant,
        probe_timeout: Duration,
    ) -> (Self, Handle) {
        let (sender, inbox) = mpsc::channel(INBOX);
        let meters = Arc::new(Meters::default());
        let owner = Self {
            state,
            store,
            inbox,
            own: sender.downgrade(),
            sessions: HashMap::new(),
            calls: HashMap::new(),
            clock,
            probe_timeout,
            probes: Arc::new(Semaphore::new(PROBES_AT_ONCE)),
            meters: meters.clone(),
        };
        (owner, Handle { inbox: sender, numbers: Arc::new(AtomicU64::new(1)), meters })
    }

    /// Runs until `stop`, or until the state cannot be committed.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut messages = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => self.take(vec![Input::Tick]).await?,
                count = self.inbox.recv_many(&mut messages, BATCH) => {
                    if count == 0 {
                        return Ok(());
                    }
                    let inputs = messages.drain(..).map(|message| self.unpack(message)).collect();
                    self.take(inputs).await?;
                }
            }
        }
    }

    fn unpack(&mut self, message: Message) -> Input {
        match message {
            Message::Input(input) => {
                if let Input::Abandoned { request } = input {
                    self.calls.remove(&request);
                }
                input
            }
            Message::Attach { id, attached, session } => {
                self.sessions.insert(id, session);
                Input::Attached { session: id, attached }
            }
            Message::Call { request, ask, reply } => {
                self.calls.insert(request, reply);
                Input::Asked { request, ask }
            }
        }
    }

    /// Applies inputs, commits all their records at once, then carries out what they ask for. Agents that had to be cut off are inputs
    /// of the next round.
    async fn take(&mut self, mut inputs: Vec<Input>) -> anyhow::Result<()> {
        while !inputs.is_empty() {
            let (begun, now) = (Instant::now(), now(self.clock));
            count(&self.meters.inputs, inputs.len() as u64);
            let mut records = BTreeSet::new();
            let mut actions = Vec::new();
            for input in inputs.drain(..) {
                if let Input::Detached { session } = input {
                    self.sessions.remove(&session);
                }
                for output in self.state.handle(now, input) {
                    match output {
                        Output::Store(key) => drop(records.insert(key)),
                        action => actions.push(action),
                    }
                }
            }
            count(&self.meters.busy_us, micros(begun));
            self.commit(records).await?;
            let begun = Instant::now();
            inputs.extend(actions.into_iter().filter_map(|action| self.carry_out(action)));
            count(&self.meters.busy_us, micros(begun));
        }
        Ok(())
    }

    async fn commit(&self, records: BTreeSet<Key>) -> anyhow::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        count(&self.meters.commits, 1);
        count(&self.meters.records, records.len() as u64);
        let changes = records.into_iter().map(|key| (key, self.state.record(key))).collect();
        let store = self.store.clone();
        let committed = tokio::task::spawn_blocking(move || store.commit(changes)).await;
        count(&self.meters.commit_us, micros(begun));
        committed
            .context("the task that writes the state ended")?
            .context("the controller stops, since it cannot keep its promises without its state; transfers go on")
    }

    /// Answers what follows from an action that failed.
    fn carry_out(&mut self, action: Output) -> Option<Input> {
        match action {
            // Ignored: records are committed already.
            Output::Store(_) => {}
            Output::Note(text) => tracing::info!("{text}"),
            Output::Send { session, command } => return self.send(session, command),
            Output::Close { session, refusal } => {
                if let Some(closed) = self.sessions.remove(&session) {
                    tracing::warn!("an agent is turned away: {refusal}");
                    // Ignored: an agent whose queue is full sees the end of the stream without the reason.
                    let _ = closed.commands.try_send(Err(status(&refusal)));
                }
            }
            Output::Probe { node, probe, address } => self.start_probe(node, probe, address),
            Output::Answer { request, answer } => self.answer(request, answer),
            Output::Drained { request, progress } => {
                let done = progress.done;
                if let Some(Reply::Drain(client)) = self.calls.get(&request) {
                    client.send_replace(Some(Ok(progress)));
                }
                if done {
                    self.calls.remove(&request);
                }
            }
            Output::Progress { request, progress } => {
                let done = progress.done;
                if let Some(Reply::Progress(client)) = self.calls.get(&request) {
                    client.send_replace(Some(Ok(progress)));
                }
                if done {
                    self.calls.remove(&request);
                }
            }
        }
        None
    }

    fn send(&mut self, id: SessionId, command: v1::command::Command) -> Option<Input> {
        let session = self.sessions.get(&id)?;
        let error = session.commands.try_send(Ok(v1::Command { command: Some(command) })).err()?;
        if let mpsc::error::TrySendError::Full(_) = error {
            tracing::warn!("an agent takes its commands too slowly and is disconnected");
        }
        self.sessions.remove(&id);
        Some(Input::Detached { session: id })
    }

    fn answer(&mut self, request: RequestId, answer: Result<Answer, Refusal>) {
        match (self.calls.remove(&request), answer) {
            // Ignored: the client may be gone.
            (Some(Reply::Once(client)), answer) => drop(client.send(answer)),
            (Some(Reply::Progress(client)), Err(refusal)) => drop(client.send_replace(Some(Err(refusal)))),
            (Some(Reply::Drain(client)), Err(refusal)) => drop(client.send_replace(Some(Err(refusal)))),
            (Some(Reply::Progress(_) | Reply::Drain(_)), Ok(_)) | (None, _) => {}
        }
    }

    fn start_probe(&self, node: faasnet_api::NodeId, id: ProbeId, address: std::net::SocketAddr) {
        let (own, limit, probes) = (self.own.clone(), self.probe_timeout, self.probes.clone());
        tokio::spawn(async move {
            let Ok(_permit) = probes.acquire_owned().await else { return };
            let answer = probe(address, limit).await;
            if let Some(own) = own.upgrade() {
                // Ignored: without an owner nobody wants to know.
                let _ = own.send(Message::Input(Input::Probed { node, probe: id, answer })).await;
            }
        });
    }
}
