//! Images that this node registers because its runtime asked first: read once from the registry, straight into the store.
//!
//! Runs on the control side, by order of the controller, which has said what the image's name stands for. The runtime here gets each blob
//! when it had its sha256 ([`crate::arriving`]); when all had theirs the descriptor goes to the controller, and the image comes back to this
//! node as an assignment that finds it complete. The end of the session ends what is under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use faasnet_api::{BlockDigest, Descriptor, v1};
use faasnet_origin::register::{Keep, Outline, RegisterError, RegisterRequest, register_keeping};
use faasnet_origin::{Credentials, Error};
use faasnet_store::{StagedImage, Store};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

use crate::arriving::{Arrival, Arrivals, Arriving};
use crate::feed::Counters;
use crate::session::events;

/// At a time; for more the controller asks somebody else.
const MAX_READINGS: usize = 4;
/// How often the controller hears that somebody is at it.
const SAYS: Duration = Duration::from_secs(1);
/// After an image is registered the mirror still gives it out from here, until it has been assigned to this node.
const LINGERS: Duration = Duration::from_secs(10);
/// Of the descriptor in one message.
const PART_BYTES: usize = 256 << 10;

type Uplink = mpsc::Sender<v1::Event>;

/// The readings under way. Owned by the control side.
#[derive(Debug)]
pub(crate) struct Readings {
    tasks: JoinSet<()>,
    places: Arc<Semaphore>,
    arrivals: Arrivals,
    counters: Arc<Counters>,
}

/// Why an image was not registered.
#[derive(Debug)]
enum NotRead {
    /// The image's fault, or the registry's.
    Image(String),
    /// This node's.
    Here(String),
    /// On the way to the registry, perhaps this node's.
    Origin(String),
}

/// Keeps the bytes in the store; nothing before their number is known.
struct Keeper {
    store: Store,
    tenant: String,
    arrivals: Arrivals,
    arriving: Arc<Arriving>,
    counters: Arc<Counters>,
    staged: Option<StagedImage>,
}

impl Readings {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        let places = Arc::new(Semaphore::new(MAX_READINGS));
        Self { tasks: JoinSet::new(), places, arrivals: Arrivals::default(), counters }
    }

    /// What the mirror looks at.
    pub(crate) fn arrivals(&self) -> Arrivals {
        self.arrivals.clone()
    }

    /// Begins to read; all that comes of it is told on `uplink`.
    pub(crate) fn begin(&mut self, order: v1::ReadImage, store: &Store, uplink: Option<Uplink>) {
        let Some(uplink) = uplink else { return };
        while self.tasks.try_join_next().is_some() {}
        let refuse = |failure: String| {
            let read = v1::ImageRead { request: order.request, failure, here_only: true, ..Default::default() };
            // Ignored: without an answer the controller asks somebody else a little later.
            let _ = uplink.try_send(events::image_read(read));
        };
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return refuse(format!("this node registers {MAX_READINGS} images already"));
        };
        let Some(arrival) = self.arrivals.enter(&order.reference) else {
            return refuse(format!("this node reads {} already", order.reference));
        };
        let keeper = Keeper {
            store: store.clone(),
            tenant: order.tenant.clone(),
            arrivals: self.arrivals.clone(),
            arriving: arrival.arriving(),
            counters: self.counters.clone(),
            staged: None,
        };
        self.tasks.spawn(async move {
            let registered = read_and_tell(order, keeper, &arrival, uplink).await;
            drop(place);
            if registered {
                sleep(LINGERS).await;
            }
            drop(arrival);
        });
    }

    /// The controller is not there any more, so nobody waits for what comes of it.
    pub(crate) fn stop(&mut self) {
        self.tasks.abort_all();
    }
}

/// Whether it came to a descriptor.
async fn read_and_tell(order: v1::ReadImage, keeper: Keeper, arrival: &Arrival, uplink: Uplink) -> bool {
    let (request, image) = (order.request, order.reference.clone());
    let (arriving, total) = (arrival.arriving(), AtomicU64::new(0));
    let reading = read(order, keeper, |_, of| total.store(of, Ordering::Relaxed));
    tokio::pin!(reading);
    let mut says = tokio::time::interval(SAYS);
    let result = loop {
        tokio::select! {
            result = &mut reading => break result,
            _ = says.tick() => {
                let (bytes_read, bytes_total) = (arriving.bytes(), total.load(Ordering::Relaxed));
                let read = v1::ImageRead { request, bytes_read, bytes_total, ..Default::default() };
                // Ignored: the next one is a second away.
                let _ = uplink.try_send(events::image_read(read));
            }
        }
    };
    let (failure, here_only, of_origin) = match result {
        Ok(descriptor) => {
            let bytes = descriptor.geometry().image_bytes();
            tracing::info!(image, bytes, "read and registered for the runtime here");
            bring_up(request, &descriptor, &uplink).await;
            return true;
        }
        Err(NotRead::Image(reason)) => (reason, false, false),
        Err(NotRead::Here(reason)) => (reason, true, false),
        Err(NotRead::Origin(reason)) => (reason, true, true),
    };
    arriving.fail(&failure);
    tracing::warn!(image, reason = failure, "an image that the runtime here asked for cannot be registered");
    // Ignored: the session has ended.
    let read = v1::ImageRead { request, failure, here_only, of_origin, ..Default::default() };
    let _ = uplink.send(events::image_read(read)).await;
    false
}

/// Reads the image into the store; it is held when this returns.
async fn read(
    order: v1::ReadImage,
    keeper: Keeper,
    progress: impl Fn(u64, u64) + Send + Sync,
) -> Result<Arc<Descriptor>, NotRead> {
    let request = RegisterRequest {
        plain_http: order.plain_http,
        login: order.login.map(|v1::Login { username, password }| Credentials { username, password }),
        manifest: Some(order.manifest_digest),
        ..RegisterRequest::new(order.reference)
    };
    let (descriptor, keeper) = register_keeping(request, keeper, progress).await.map_err(|error| match error {
        // What every node would find. All else may be this host's own: its disk, its way to the registry, its password.
        RegisterError::Origin(Error::FalseDigest { .. })
        | RegisterError::Length { .. }
        | RegisterError::NotAnImage { .. }
        | RegisterError::Descriptor { .. } => NotRead::Image(error.to_string()),
        RegisterError::Origin(cause) if cause.is_transient() => NotRead::Origin(cause.to_string()),
        error => NotRead::Here(error.to_string()),
    })?;
    let descriptor = Arc::new(descriptor);
    let (staged, kept) = (keeper.staged, descriptor.clone());
    let keeping = spawn_blocking(move || staged.map_or(Ok(()), |staged| staged.keep(kept)));
    let kept = keeping.await.map_err(|error| NotRead::Here(error.to_string()))?;
    kept.map_err(|error| NotRead::Here(error.to_string()))?;
    Ok(descriptor)
}

async fn bring_up(request: u64, descriptor: &Descriptor, uplink: &Uplink) {
    let encoded = descriptor.encode();
    let mut parts = encoded.chunks(PART_BYTES).peekable();
    while let Some(part) = parts.next() {
        let (descriptor_part, done) = (part.to_vec(), parts.peek().is_none());
        let read = v1::ImageRead { request, descriptor_part, done, ..Default::default() };
        if uplink.send(events::image_read(read)).await.is_err() {
            return;
        }
    }
}

impl Keep for Keeper {
    fn begin(&mut self, outline: Outline) -> Result<(), String> {
        let staged = self.store.stage(&self.tenant, &outline.geometry).map_err(|error| error.to_string())?;
        let data = staged.data().map_err(|error| error.to_string())?;
        self.staged = Some(staged);
        self.arrivals.outline(&self.arriving, outline, data);
        Ok(())
    }

    fn keep(&mut self, entry: usize, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let Some(staged) = &self.staged else { return Ok(()) };
        staged.write(entry, offset, bytes).map_err(|error| error.to_string())?;
        self.arriving.came(bytes.len() as u64);
        Counters::add(&self.counters.bytes, bytes.len() as u64);
        Ok(())
    }

    fn right(&mut self, blocks: &[BlockDigest]) {
        self.arriving.right(blocks);
    }
}
