//! Images that are being registered here, as the mirror sees them: the manifest from the first moment, each blob as soon as its sha256 is right.
//!
//! Filled by the control side's readings, looked at by the mirror's connections. An image stays for a while after it is registered, until
//! the controller has assigned it to this node and the mirror finds it in the store.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use faasnet_api::{BlockDigest, Verify};
use faasnet_origin::RegistryReference;
use faasnet_origin::register::Outline;
use tokio::sync::watch;

/// All of them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arrivals(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    open: Mutex<Vec<Arc<Arriving>>>,
    /// Told when an image comes, or what is known of one.
    changed: watch::Sender<()>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Arriving {
    name: String,
    /// `None`: a name that no runtime can ask for.
    reference: Option<RegistryReference>,
    bytes: AtomicU64,
    image: OnceLock<ArrivingImage>,
    failure: OnceLock<String>,
}

/// What is known of an image before its bytes are, and where they go.
#[derive(Debug)]
pub(crate) struct ArrivingImage {
    pub(crate) outline: Outline,
    data: File,
    /// Of the entries that are right: the first ones.
    blocks: Mutex<Vec<BlockDigest>>,
}

/// Its place among the arrivals, gone with it.
#[derive(Debug)]
pub(crate) struct Arrival {
    arrivals: Arrivals,
    arriving: Arc<Arriving>,
}

impl Arrivals {
    /// An image is being read. `None`: it is already.
    pub(crate) fn enter(&self, name: &str) -> Option<Arrival> {
        let mut open = self.lock();
        if open.iter().any(|arriving| arriving.name == name && arriving.failure.get().is_none()) {
            return None;
        }
        let reference = RegistryReference::parse(name).ok();
        let (bytes, image, failure) = (AtomicU64::new(0), OnceLock::new(), OnceLock::new());
        let arriving = Arc::new(Arriving { name: name.into(), reference, bytes, image, failure });
        open.push(arriving.clone());
        Some(Arrival { arrivals: self.clone(), arriving })
    }

    /// The bytes that came so far of the image of that name; `None`: it is not being read.
    pub(crate) fn bytes(&self, name: &str) -> Option<u64> {
        self.lock().iter().find(|arriving| arriving.name == name).map(|arriving| arriving.bytes())
    }

    /// The image of that name or manifest, once its manifest is known.
    pub(crate) fn image(&self, wanted: &RegistryReference) -> Option<Arc<Arriving>> {
        let name = wanted.to_string();
        self.find(|arriving| match (&wanted.digest, arriving.image.get()) {
            (_, None) => false,
            (None, Some(_)) => arriving.name == name,
            (Some(digest), Some(image)) => arriving.is_of(wanted) && image.outline.manifest_digest == *digest,
        })
    }

    /// The same, as soon as it is.
    pub(crate) async fn wait_for(&self, wanted: &RegistryReference) -> Arc<Arriving> {
        let mut changed = self.0.changed.subscribe();
        loop {
            if let Some(arriving) = self.image(wanted) {
                return arriving;
            }
            // Ignored: the sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    /// An image of that repository with that blob, and which of its entries it is.
    pub(crate) fn blob(&self, repository: &RegistryReference, digest: &str) -> Option<(Arc<Arriving>, usize)> {
        let entry = |arriving: &Arriving| {
            let image = arriving.image.get().filter(|_| arriving.is_of(repository))?;
            image.outline.entries.iter().position(|entry| entry.digest == digest)
        };
        let arriving = self.find(|arriving| entry(arriving).is_some())?;
        let entry = entry(&arriving)?;
        Some((arriving, entry))
    }

    /// Its manifest is known, and where its bytes will be.
    pub(crate) fn outline(&self, arriving: &Arriving, outline: Outline, data: File) {
        // Ignored: a reading begins once.
        let _ = arriving.image.set(ArrivingImage { outline, data, blocks: Mutex::default() });
        self.0.changed.send_replace(());
    }

    fn find(&self, is_it: impl Fn(&Arriving) -> bool) -> Option<Arc<Arriving>> {
        self.lock().iter().find(|arriving| arriving.failure.get().is_none() && is_it(arriving)).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Arriving>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrival {
    /// What its readers tell, and look at.
    pub(crate) fn arriving(&self) -> Arc<Arriving> {
        self.arriving.clone()
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        // Whoever waits for one of its blobs learns that it will not come; unless it has come.
        let _ = self.arriving.failure.set("the image is not being read any more".into());
        self.arrivals.lock().retain(|other| !Arc::ptr_eq(other, &self.arriving));
    }
}

impl Arriving {
    /// That came so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn came(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// All of the next entry is on the disk, and right.
    pub(crate) fn right(&self, blocks: &[BlockDigest]) {
        if let Some(image) = self.image.get() {
            image.lock().extend_from_slice(blocks);
        }
    }

    /// It will not be registered, and why.
    pub(crate) fn fail(&self, reason: &str) {
        // Ignored: the first reason counts.
        let _ = self.failure.set(reason.into());
    }

    /// Why what is not here yet will not come.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// `None`: not known yet.
    pub(crate) fn known(&self) -> Option<&ArrivingImage> {
        self.image.get()
    }

    fn is_of(&self, repository: &RegistryReference) -> bool {
        let own = self.reference.as_ref();
        own.is_some_and(|own| (&own.registry, &own.repository) == (&repository.registry, &repository.repository))
    }
}

impl ArrivingImage {
    /// Whether all of an entry is here, with the digest that its manifest gives.
    pub(crate) fn is_right(&self, entry: usize) -> bool {
        self.outline.geometry.entry_blocks(entry).end as usize <= self.lock().len()
    }

    /// A block of an entry that is right, read and hashed once more: the disk may have changed it. The error is for people.
    pub(crate) fn block(&self, entry: usize, index: u32) -> Result<Vec<u8>, String> {
        let geometry = &self.outline.geometry;
        let number = geometry.entry_blocks(entry).start + index;
        let digest = self.lock().get(number as usize).copied().ok_or("it has not come yet")?;
        let start = u64::from(index) * u64::from(geometry.block_bytes());
        let range = geometry.entry_range(entry);
        let len = (range.end - range.start).saturating_sub(start).min(geometry.block_bytes().into());
        let mut bytes = vec![0; len as usize];
        let read: io::Result<()> = self.data.read_exact_at(&mut bytes, range.start + start);
        read.map_err(|error| format!("block {number} of a file of the store: {error}"))?;
        match digest.matches(&bytes, Verify::Blake3) {
            true => Ok(bytes),
            false => Err(format!("block {number} of a file of the store is damaged; check the disk under the store")),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<BlockDigest>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
