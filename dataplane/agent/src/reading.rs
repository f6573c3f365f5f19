//! Images that this node registers because its runtime asked first: read once from the registry, straight into the store.
//!
//! Runs on the control side, by order of the controller, which has said what the image's name stands for. Nothing of such an image is given
//! out before every blob had its sha256: then the descriptor goes to the controller, and the image comes back to this node as an assignment
//! that finds it complete. The end of the session ends what is under way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use faasnet_api::{Descriptor, Geometry, v1};
use faasnet_origin::Credentials;
use faasnet_origin::register::{Keep, RegisterError, RegisterRequest, register_keeping};
use faasnet_store::{StagedImage, Store};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};

use crate::feed::Counters;
use crate::session::events;

/// At a time; for more the controller asks somebody else.
const MAX_READINGS: usize = 4;
/// How often the controller hears that somebody is at it.
const SAYS: Duration = Duration::from_secs(1);
/// Of the descriptor in one message.
const PART_BYTES: usize = 256 << 10;

type Uplink = mpsc::Sender<v1::Event>;

/// The readings under way. Owned by the control side.
#[derive(Debug)]
pub(crate) struct Readings {
    tasks: JoinSet<()>,
    progress: Progress,
    counters: Arc<Counters>,
}

/// Bytes that came of each image that is being read, by its name. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<Mutex<HashMap<String, Arc<AtomicU64>>>>);

/// Why an image was not registered.
#[derive(Debug)]
enum NotRead {
    /// The image's fault, or the registry's.
    Image(String),
    /// This node's.
    Here(String),
}

/// Its entry among the readings, gone with it.
struct Entry {
    progress: Progress,
    name: String,
    bytes: Arc<AtomicU64>,
}

/// Keeps the bytes in the store; nothing before their number is known.
struct Keeper {
    store: Store,
    tenant: String,
    staged: Option<StagedImage>,
}

impl Readings {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self { tasks: JoinSet::new(), progress: Progress::default(), counters }
    }

    /// What the mirror looks at.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Begins to read; all that comes of it is told on `uplink`.
    pub(crate) fn begin(&mut self, order: v1::ReadImage, store: &Store, uplink: Option<Uplink>) {
        let Some(uplink) = uplink else { return };
        while self.tasks.try_join_next().is_some() {}
        if self.tasks.len() >= MAX_READINGS {
            let failure = format!("this node registers {MAX_READINGS} images already");
            let read = v1::ImageRead { request: order.request, failure, here_only: true, ..Default::default() };
            // Ignored: without an answer the controller asks somebody else a little later.
            let _ = uplink.try_send(events::image_read(read));
            return;
        }
        let keeper = Keeper { store: store.clone(), tenant: order.tenant.clone(), staged: None };
        let (entry, counters) = (self.progress.enter(&order.reference), self.counters.clone());
        self.tasks.spawn(async move { read_and_tell(order, keeper, entry, counters, uplink).await });
    }

    /// The controller is not there any more, so nobody waits for what comes of it.
    pub(crate) fn stop(&mut self) {
        self.tasks.abort_all();
    }
}

impl Progress {
    /// The bytes that came so far; `None`: it is not being read.
    pub(crate) fn bytes(&self, name: &str) -> Option<u64> {
        self.lock().get(name).map(|bytes| bytes.load(Ordering::Relaxed))
    }

    fn enter(&self, name: &str) -> Entry {
        let bytes = Arc::<AtomicU64>::default();
        self.lock().insert(name.into(), bytes.clone());
        Entry { progress: self.clone(), name: name.into(), bytes }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<AtomicU64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut all = self.progress.lock();
        // Not that of a later order for the same image.
        if all.get(&self.name).is_some_and(|bytes| Arc::ptr_eq(bytes, &self.bytes)) {
            all.remove(&self.name);
        }
    }
}

async fn read_and_tell(order: v1::ReadImage, keeper: Keeper, entry: Entry, counters: Arc<Counters>, uplink: Uplink) {
    let (request, image) = (order.request, order.reference.clone());
    let (bytes, total) = (entry.bytes.clone(), AtomicU64::new(0));
    let counted = |read: u64, of: u64| {
        total.store(of, Ordering::Relaxed);
        Counters::add(&counters.bytes, read.saturating_sub(bytes.swap(read, Ordering::Relaxed)));
    };
    let reading = read(order, keeper, counted);
    tokio::pin!(reading);
    let mut says = tokio::time::interval(SAYS);
    let result = loop {
        tokio::select! {
            result = &mut reading => break result,
            _ = says.tick() => {
                let (bytes_read, bytes_total) = (bytes.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
                let read = v1::ImageRead { request, bytes_read, bytes_total, ..Default::default() };
                // Ignored: the next one is a second away.
                let _ = uplink.try_send(events::image_read(read));
            }
        }
    };
    let (failure, here_only) = match result {
        Ok(descriptor) => {
            tracing::info!(
                image,
                bytes = descriptor.geometry().image_bytes(),
                "read and registered for the runtime here"
            );
            return bring_up(request, &descriptor, &uplink).await;
        }
        Err(NotRead::Image(reason)) => (reason, false),
        Err(NotRead::Here(reason)) => (reason, true),
    };
    tracing::warn!(image, reason = failure, "an image that the runtime here asked for cannot be registered");
    // Ignored: the session has ended.
    let _ = uplink.send(events::image_read(v1::ImageRead { request, failure, here_only, ..Default::default() })).await;
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
        RegisterError::Keeping(_) | RegisterError::Hashing(_) => NotRead::Here(error.to_string()),
        // It may be this host's way to the registry that is broken.
        RegisterError::Origin(cause) if cause.is_transient() => NotRead::Here(cause.to_string()),
        error => NotRead::Image(error.to_string()),
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
    fn begin(&mut self, geometry: &Geometry) -> Result<(), String> {
        let staged = self.store.stage(&self.tenant, geometry).map_err(|error| error.to_string())?;
        self.staged = Some(staged);
        Ok(())
    }

    fn keep(&mut self, entry: usize, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let Some(staged) = &self.staged else { return Ok(()) };
        staged.write(entry, offset, bytes).map_err(|error| error.to_string())
    }
}
