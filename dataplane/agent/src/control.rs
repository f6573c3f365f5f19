//! The control side of an agent: one task that owns what this node is told to hold and mediates between controller, store and worker.
//!
//! Everybody else sends it `Input`s and reads its `View`. It never waits: the store works on blocking threads and answers by an input,
//! events to a controller that is away are dropped, since `Attached` and heartbeats say again what matters.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use faasnet_api::{BlockIndex, FunctionId, ImageId, Introduction, KeySet, SigningKey, Stripe, Verify, v1};
use faasnet_store::{Store, StoredImage};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::feed::Sources;
use crate::link::{WorkerEnded, WorkerLink};
use crate::memory::{self, Memory};
use crate::mirror::questions::{ImageAnswer, ImageQuestions, Wish};
use crate::opening::{Opening, Unopened};
use crate::reading::Readings;
use crate::session::commands::{AssignOrder, Order};
use crate::session::events;
use crate::table::{Decision, Phase, Table, Use};
use crate::view::{Descriptors, Identity, View};
use crate::worker::mailbox::{Assignment, Target, WorkerCommand, WorkerEvent};

/// Inputs that may wait; a sender beyond that waits itself.
pub(crate) const INPUTS: usize = 256;
/// Joins asked for while the controller is away.
const MAX_JOINS: usize = 256;

/// What others tell the control side.
#[derive(Debug)]
pub(crate) enum Input {
    /// A new session with the controller begins; its events go here, `Attached` first, with the nonce signed.
    Attach { uplink: mpsc::Sender<v1::Event>, nonce: Vec<u8> },
    /// The session has ended. `away`: the controller cannot be reached; else it is there and refuses this agent.
    Detached { away: bool },
    /// The controller orders.
    Order(Box<Order>),
    /// Somebody on this node asks for a function.
    Join { tenant: String, name: String, heard: oneshot::Sender<()> },
    /// The store has answered.
    Opened(Opened),
    /// A complete image could not be made durable.
    NotDurable { function: FunctionId, image: ImageId, reason: String },
    /// The runtime on this host asks for an image that is not here; the answer goes there.
    Image { wish: Wish, answer: ImageAnswer },
    /// Somebody on this host waits for these blocks.
    Hurry { function: FunctionId, image: ImageId, blocks: Vec<BlockIndex> },
    /// What is on the disk is not what was verified.
    Damaged { function: FunctionId, image: ImageId, reason: String },
    /// The origin sent bytes that are not the image's, twice.
    OriginLied { function: FunctionId, stripe: Stripe, reason: String },
}

/// The store's answer.
#[derive(Debug)]
pub(crate) struct Opened {
    opening: Opening,
    /// `None`: the store does not hold it and there was no descriptor.
    result: Result<Option<Arc<StoredImage>>, Unopened>,
}

/// How often to report.
#[derive(Debug, Clone, Copy)]
struct Pace {
    busy: Duration,
    idle: Duration,
}

/// See the module's documentation.
pub(crate) struct Control<W> {
    identity: Identity,
    node_key: Arc<SigningKey>,
    store: Store,
    memory: Memory,
    /// What the controller said before this start; gone when it counts again or was said anew, nothing once a controller refused this agent.
    remembered: Option<Vec<v1::Assign>>,
    keys: watch::Sender<KeySet>,
    /// Told with whose password to read which origin.
    sources: Arc<Sources>,
    /// Images that this node registers.
    readings: Readings,
    worker: W,
    table: Table,
    /// Functions that the worker knows of.
    at_worker: BTreeSet<FunctionId>,
    /// How many it has let go.
    drops: u64,
    /// Images of which another tenant's function has yet to let go.
    waiting: Vec<Opening>,
    /// Joins that were asked for and not answered yet.
    joins: BTreeMap<FunctionId, (String, String)>,
    refused: BTreeMap<FunctionId, String>,
    /// Images that the runtime asked for and the controller has not answered.
    images: ImageQuestions,
    uplink: Option<mpsc::Sender<v1::Event>>,
    term: Option<u64>,
    pace: Pace,
    next_report: Instant,
    inputs: mpsc::Receiver<Input>,
    answers: mpsc::Sender<Input>,
    view: watch::Sender<Arc<View>>,
    descriptors: watch::Sender<Descriptors>,
}

/// What outlives this start.
pub(crate) struct Kept {
    pub(crate) node_key: Arc<SigningKey>,
    pub(crate) store: Store,
    pub(crate) memory: Memory,
    /// Where everybody reads the keys whose tickets are accepted.
    pub(crate) keys: watch::Sender<KeySet>,
    pub(crate) sources: Arc<Sources>,
    pub(crate) readings: Readings,
}

/// The ends that others hold.
#[derive(Debug, Clone)]
pub(crate) struct Handles {
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) descriptors: watch::Receiver<Descriptors>,
}

/// The channels of a control side that is yet to be made; the feed needs them before there is a worker.
pub(crate) struct Channels {
    pub(crate) handles: Handles,
    inputs: mpsc::Receiver<Input>,
    view: watch::Sender<Arc<View>>,
    descriptors: watch::Sender<Descriptors>,
}

impl Channels {
    pub(crate) fn new() -> Self {
        let (answers, inputs) = mpsc::channel(INPUTS);
        let (view, view_reader) = watch::channel(Arc::new(View::default()));
        let (descriptors, descriptors_reader) = watch::channel(Descriptors::new());
        let handles = Handles { inputs: answers, view: view_reader, descriptors: descriptors_reader };
        Self { handles, inputs, view, descriptors }
    }
}

impl<W: WorkerLink> Control<W> {
    pub(crate) fn new(identity: Identity, kept: Kept, worker: W, channels: Channels) -> Self {
        let Kept { node_key, store, memory, keys, sources, readings } = kept;
        let remembered = Some(memory.assigns());
        Self {
            identity,
            node_key,
            store,
            memory,
            remembered,
            keys,
            sources,
            readings,
            worker,
            table: Table::default(),
            at_worker: BTreeSet::new(),
            drops: 0,
            waiting: Vec::new(),
            joins: BTreeMap::new(),
            refused: BTreeMap::new(),
            images: ImageQuestions::default(),
            uplink: None,
            term: None,
            pace: Pace { busy: Duration::from_millis(500), idle: Duration::from_secs(5) },
            next_report: Instant::now(),
            inputs: channels.inputs,
            answers: channels.handles.inputs,
            view: channels.view,
            descriptors: channels.descriptors,
        }
    }

    /// Serves until `stop` is cancelled, or the worker has ended by itself.
    pub(crate) async fn run(&mut self, stop: &CancellationToken) -> Result<(), WorkerEnded> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(input) = self.inputs.recv() => self.take_input(input)?,
                event = self.worker.next_event() => self.take_event(event.ok_or(WorkerEnded)?)?,
                () = tokio::time::sleep_until(self.next_report) => self.ask_report()?,
            }
            self.publish();
        }
    }

    /// Lets go of everything but the worker, which is still to be stopped, and the images, which are still to be synced.
    pub(crate) fn into_parts(self) -> (W, Vec<Arc<StoredImage>>, Memory) {
        // The view holds images open as well.
        self.view.send_replace(Arc::default());
        let images = self.table.rows().filter_map(|(_, row)| row.stored.clone()).collect();
        (self.worker, images, self.memory)
    }

    fn take_input(&mut self, input: Input) -> Result<(), WorkerEnded> {
        match input {
            Input::Attach { uplink, nonce } => self.attach(uplink, &nonce)?,
            Input::Detached { away } => {
                (self.uplink, self.term) = (None, None);
                self.images.clear();
                self.readings.stop();
                match away {
                    true => self.remember()?,
                    false => self.remembered.iter_mut().for_each(Vec::clear),
                }
            }
            Input::Order(order) => self.take_order(*order)?,
            Input::Join { tenant, name, heard } => {
                self.join(tenant, name);
                // Whoever looks after the answer must not see the refusal of an earlier wish.
                self.publish();
                // Ignored: the asker has gone.
                let _ = heard.send(());
            }
            Input::Opened(opened) => self.opened(opened)?,
            Input::Image { wish, answer } => self.want_image(wish, answer),
            Input::Hurry { function, image, blocks } => {
                self.worker.send(WorkerCommand::Hurry { function, image, blocks })?;
            }
            Input::NotDurable { function, image, reason } => self.fail(function, image, reason),
            Input::Damaged { function, image, reason } => {
                self.worker.send(WorkerCommand::FailImage { function, image, reason: reason.clone() })?;
                self.fail(function, image, reason);
            }
            Input::OriginLied { function, stripe, reason } => {
                self.up(events::edge_failed(function, stripe, Target::Origin, reason, true, None));
            }
        }
        Ok(())
    }

    fn take_order(&mut self, order: Order) -> Result<(), WorkerEnded> {
        match order {
            Order::Accepted(accepted) => self.accepted(accepted),
            Order::TicketKeys(keys) => self.take_keys(keys),
            Order::Assign(order) => self.assign(*order)?,
            Order::OriginLease { function, stripe, lease } => {
                if self.at_worker.contains(&function) {
                    self.worker.send(WorkerCommand::OriginLease { function, stripe, lease })?;
                }
            }
            Order::Reread { function, image, request, blocks } => self.reread(function, image, request, blocks),
            Order::Drop { function, version, discard } => {
                let dropped = self.table.drop_function(function, version);
                if self.table.get(function).is_none() {
                    self.memory.dropped(function);
                    self.sources.tell(function, None);
                }
                let Some(row) = dropped else {
                    // A function that this node does not have is as good as dropped; a stale command is not answered.
                    if self.table.get(function).is_none() {
                        self.up(events::dropped(function));
                    }
                    return Ok(());
                };
                tracing::info!(tenant = row.tenant, function = row.name, discard, "dropped");
                if discard {
                    self.discard(row.image);
                }
                self.descriptors.send_modify(|all| drop(all.remove(&function)));
                match self.at_worker.contains(&function) {
                    true => {
                        self.worker.send(WorkerCommand::Drop { function, term: version.term, epoch: version.epoch })?
                    }
                    false => self.up(events::dropped(function)),
                }
            }
            Order::ReadImage(order) => self.readings.begin(order, &self.store, self.uplink.clone()),
            Order::ImageAnswer { request, answer } => self.images.answer(request, &answer),
            Order::JoinRefused(refused) => {
                let function = FunctionId::new(&refused.tenant, &refused.function);
                tracing::warn!(
                    tenant = refused.tenant,
                    function = refused.function,
                    reason = refused.reason,
                    "join refused"
                );
                if self.joins.remove(&function).is_some() {
                    self.refused.insert(function, refused.reason);
                }
            }
        }
        Ok(())
    }

    /// Frees the disk, unless another function here has the same image.
    fn discard(&self, image: ImageId) {
        if self.table.rows().any(|(_, row)| row.image == image) {
            return;
        }
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.remove(image) {
                tracing::warn!(image = %image, %error, "the image cannot be removed; the store's quota will do it");
            }
        });
    }

    /// Reads blocks back from the disk and tells the controller whether they are right.
    fn reread(&self, function: FunctionId, image: ImageId, request: u64, blocks: Vec<BlockIndex>) {
        let stored = self.table.get(function).filter(|row| row.image == image).and_then(|row| row.stored.clone());
        let (Some(stored), Some(uplink)) = (stored, self.uplink.clone()) else { return };
        tokio::task::spawn_blocking(move || {
            let (mut checked, mut wrong) = (0, 0);
            for block in blocks.into_iter().filter(|block| stored.present().contains(*block)) {
                checked += 1;
                let right = |bytes: &Vec<u8>| stored.descriptor().verify(block, bytes, Verify::Blake3);
                wrong += u32::from(!stored.read_block(block).as_ref().is_ok_and(right));
            }
            // Ignored: without a stream nobody waits for the answer.
            let _ = uplink.try_send(events::blocks_reread(function, request, checked, wrong));
        });
    }

    fn take_event(&mut self, event: WorkerEvent) -> Result<(), WorkerEnded> {
        match event {
            WorkerEvent::DescriptorArrived { function, image, bytes } => {
                let Some(row) = self.table.get(function).filter(|row| row.image == image) else { return Ok(()) };
                let (tenant, descriptor) = (row.tenant.clone(), Some(bytes));
                self.open(Opening { function, image, tenant, descriptor, for_worker: true, drops: 0 });
            }
            WorkerEvent::EdgeFailed { function, stripe, upstream, reason, wrong_bytes, refused } => {
                tracing::warn!(
                    function = function.short(),
                    stripe = stripe.0,
                    ?upstream,
                    reason,
                    wrong_bytes,
                    "upstream given up"
                );
                self.up(events::edge_failed(function, stripe, upstream, reason, wrong_bytes, refused));
            }
            WorkerEvent::OriginWanted { function, stripe } => self.up(events::origin_wanted(function, stripe)),
            WorkerEvent::Completed { function, image } => {
                self.completed(function, image);
                self.ask_report()?;
            }
            WorkerEvent::Failed { function, image, reason } => {
                self.fail(function, image, reason);
                self.ask_report()?;
            }
            WorkerEvent::Dropped { function } => {
                self.at_worker.remove(&function);
                self.drops += 1;
                for opening in std::mem::take(&mut self.waiting) {
                    self.open(opening);
                }
                self.up(events::dropped(function));
            }
            WorkerEvent::Reported(reports) => {
                self.table.report(reports);
                self.up(events::heartbeat(&self.table));
            }
        }
        Ok(())
    }

    fn attach(&mut self, uplink: mpsc::Sender<v1::Event>, nonce: &[u8]) -> Result<(), WorkerEnded> {
        self.uplink = Some(uplink);
        self.term = None;
        let Identity { node, incarnation, .. } = self.identity;
        let data_address = self.identity.data_address.to_string();
        let said = Introduction { nonce, node, incarnation, data_address: &data_address };
        let proof = self.node_key.sign(&said.message()).to_vec();
        self.up(events::event(v1::event::Event::Attached(v1::Attached {
            node_id: node.to_vec(),
            incarnation,
            name: self.identity.name.clone(),
            data_address,
            public_key: self.node_key.public().to_vec(),
            memory_mib: self.identity.memory_mib,
            version: env!("CARGO_PKG_VERSION").into(),
            held: events::held(&self.table),
            proof,
        })));
        for (tenant, name) in self.joins.clone().into_values() {
            self.up(events::join_requested(tenant, name));
        }
        self.ask_report()
    }

    fn accepted(&mut self, accepted: v1::Accepted) {
        let pace = |ms: u32| Duration::from_millis(u64::from(ms).clamp(10, 60_000));
        self.pace = Pace { busy: pace(accepted.heartbeat_ms), idle: pace(accepted.idle_heartbeat_ms) };
        self.term = Some(accepted.term);
        if let Some(keys) = accepted.ticket_keys {
            self.take_keys(keys);
        }
        if self.remembered.take().is_some() {
            // It says anew what this node shall hold.
            self.memory.forget_assigns();
        }
        self.schedule_report();
        tracing::info!(term = accepted.term, "the controller accepted this agent");
    }

    fn take_keys(&mut self, keys: v1::TicketKeys) {
        self.keys.send_replace(memory::key_set(&keys));
        self.memory.set_keys(keys);
    }

    /// The controller was not reached at this start: what it said before it still counts.
    fn remember(&mut self) -> Result<(), WorkerEnded> {
        // After a refusal it stays empty: who accepts this agent later still has it forgotten on the disk.
        let Some(assigns) = self.remembered.take_if(|assigns| !assigns.is_empty()) else { return Ok(()) };
        for assign in assigns {
            match AssignOrder::parse(assign) {
                Ok(order) => {
                    tracing::info!(
                        tenant = order.tenant,
                        function = order.name,
                        "the controller is away: held as it last said"
                    );
                    self.assign(order)?;
                }
                Err(error) => tracing::warn!(%error, "what the controller last said makes no sense to this version"),
            }
        }
        Ok(())
    }

    fn assign(&mut self, order: AssignOrder) -> Result<(), WorkerEnded> {
        let AssignOrder { tenant, name, assignment, descriptor, login, message } = order;
        let (function, image) = (assignment.function, assignment.image);
        let (term, epoch) = (assignment.term, assignment.epoch);
        let decision = self.table.assign(tenant.clone(), name.clone(), assignment, descriptor.is_some());
        tracing::debug!(tenant, function = name, image = image.short(), term, epoch, ?decision, "assigned");
        match decision {
            Decision::Ignore => return Ok(()),
            _ => self.memory.assigned(message),
        }
        // Before anybody is told to read.
        self.sources.tell(function, login);
        match decision {
            Decision::Ignore => {}
            Decision::Send(assignment) => self.send_assignment(assignment)?,
            Decision::Open => self.open(Opening { function, image, tenant, descriptor, for_worker: false, drops: 0 }),
            Decision::Wait => {}
        }
        self.joins.remove(&function);
        self.refused.remove(&function);
        self.schedule_report();
        Ok(())
    }

    fn send_assignment(&mut self, assignment: Box<Assignment>) -> Result<(), WorkerEnded> {
        self.at_worker.insert(assignment.function);
        self.worker.send(WorkerCommand::Assign(assignment))
    }

    /// Has the store open an image. The answer comes as `Input::Opened`.
    fn open(&self, mut opening: Opening) {
        opening.drops = self.drops;
        let (store, answers) = (self.store.clone(), self.answers.clone());
        tokio::task::spawn_blocking(move || {
            let result = opening.run(&store);
            // Ignored: the control side has ended, nobody waits for the image.
            let _ = answers.blocking_send(Input::Opened(Opened { opening, result }));
        });
    }

    fn opened(&mut self, opened: Opened) -> Result<(), WorkerEnded> {
        let Opened { opening, result } = opened;
        let (function, image, for_worker) = (opening.function, opening.image, opening.for_worker);
        let stored = match result {
            Ok(stored) => stored,
            // A function of the tenant before has let the image go meanwhile, or is about to.
            Err(Unopened::OtherTenant(_)) if opening.drops != self.drops => {
                self.open(opening);
                return Ok(());
            }
            Err(Unopened::OtherTenant(_)) if self.at_worker.iter().any(|held| self.table.get(*held).is_none()) => {
                self.waiting.retain(|other| other.function != function);
                self.waiting.push(opening);
                return Ok(());
            }
            Err(Unopened::OtherTenant(reason) | Unopened::Failed(reason)) => {
                if for_worker {
                    self.worker.send(WorkerCommand::FailImage { function, image, reason: reason.clone() })?;
                }
                self.fail(function, image, reason);
                return self.ask_report();
            }
        };
        let used = self.table.opened(function, image, stored);
        let known = self.table.get(function).and_then(|row| row.stored.as_ref());
        if let Some(descriptor) = known.map(|stored| stored.descriptor().clone()) {
            self.descriptors.send_modify(|all| drop(all.insert(function, descriptor)));
        }
        match used {
            Use::Assign(assignment) => self.send_assignment(assignment),
            Use::Open(stored) => self.worker.send(WorkerCommand::OpenImage { function, stored }),
            Use::Nothing => Ok(()),
        }
    }

    fn completed(&mut self, function: FunctionId, image: ImageId) {
        let Some(row) = self.table.get(function).filter(|row| row.image == image) else { return };
        tracing::info!(tenant = row.tenant, function = row.name, image = image.short(), "complete");
        let (Some(stored), answers) = (row.stored.clone(), self.answers.clone()) else { return };
        tokio::task::spawn_blocking(move || {
            if let Err(error) = stored.finish() {
                let reason = format!("the image is complete but could not be made durable: {error}");
                // Ignored: the control side has ended; its stop finishes the image once more.
                let _ = answers.blocking_send(Input::NotDurable { function, image, reason });
            }
        });
    }

    fn fail(&mut self, function: FunctionId, image: ImageId, reason: String) {
        let Some(row) = self.table.get(function).filter(|row| row.image == image) else { return };
        if matches!(row.phase, Phase::Failed(_)) {
            return;
        }
        tracing::error!(
            tenant = row.tenant,
            function = row.name,
            image = image.short(),
            reason,
            "the image cannot be held here"
        );
        self.table.failed(function, image, reason.clone());
        self.up(events::image_failed(function, image, reason));
    }

    fn join(&mut self, tenant: String, name: String) {
        let function = FunctionId::new(&tenant, &name);
        self.refused.remove(&function);
        if self.table.get(function).is_some() || self.joins.contains_key(&function) {
            return;
        }
        if self.joins.len() >= MAX_JOINS {
            self.joins.pop_first();
        }
        self.joins.insert(function, (tenant.clone(), name.clone()));
        self.up(events::join_requested(tenant, name));
    }

    fn want_image(&mut self, wish: Wish, answer: ImageAnswer) {
        // Without a controller nobody knows of more images than this node holds: the answer's end is dropped.
        if self.uplink.is_none() {
            return;
        }
        if let Some(request) = self.images.ask(&wish.reference, answer) {
            self.up(events::image_wanted(request, wish));
        }
    }

    fn ask_report(&mut self) -> Result<(), WorkerEnded> {
        self.next_report = Instant::now() + self.interval();
        self.worker.send(WorkerCommand::Report)
    }

    /// After a change of pace or activity: the next report is due one interval from now at the latest.
    fn schedule_report(&mut self) {
        self.next_report = self.next_report.min(Instant::now() + self.interval());
    }

    fn interval(&self) -> Duration {
        if self.table.is_active() { self.pace.busy } else { self.pace.idle }
    }

    /// Tells the controller, if it is there.
    fn up(&mut self, event: v1::Event) {
        let Some(uplink) = &self.uplink else { return };
        match uplink.try_send(event) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::warn!("the controller does not take events fast enough; one was dropped");
            }
            Err(mpsc::error::TrySendError::Closed(_)) => (self.uplink, self.term) = (None, None),
        }
    }

    fn publish(&self) {
        let rows = self.table.rows().map(|(function, row)| (function, row.clone())).collect();
        let view = View { term: self.term, rows, refused: self.refused.clone() };
        self.view.send_replace(Arc::new(view));
    }
}
