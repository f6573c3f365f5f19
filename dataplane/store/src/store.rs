//! The images of a node: which there are, opening, recovery, quota and removal. One per agent; every call may block on the disk.

mod staged;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use faasnet_api::{Descriptor, ImageId, NodeId};
use faasnet_ring::file::{boot_id, preallocate};

use crate::data::DataFile;
use crate::folder::{Folder, new_file_options};
use crate::image::{Opened, bytes_of};
use crate::map::{Belief, BootId, Found, MapFile};
use crate::release::Releaser;
use crate::reuse::{self, Donor};
use crate::{PresentMap, StoreError, StoreOptions, StoredImage};
pub use staged::StagedImage;

/// A handle; clones share the store. Calls that touch the disk belong on a blocking thread.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

/// What the store tells about an image that it holds.
#[derive(Debug, Clone)]
pub struct HeldImage {
    /// Its id.
    pub image: ImageId,
    /// Whose it is.
    pub tenant: String,
    /// Bytes of the blocks that are here.
    pub bytes_present: u64,
    /// Whether every block is here and none awaits verification.
    pub complete: bool,
    /// What it is made of.
    pub descriptor: Arc<Descriptor>,
}

#[derive(Debug)]
struct Shared {
    folder: Folder,
    options: StoreOptions,
    releaser: Option<Releaser>,
    boot: BootId,
    /// One image is opened at a time, so that an image has one `StoredImage` and the quota is kept. Taken before `images`.
    opening: Mutex<()>,
    images: Mutex<HashMap<ImageId, Known>>,
    /// Bytes of the files of images that are being registered, which have no id yet.
    staged_bytes: AtomicU64,
}

/// An image with a folder.
#[derive(Debug, Clone)]
struct Known {
    tenant: String,
    descriptor: Arc<Descriptor>,
    used: SystemTime,
    open: Weak<StoredImage>,
}

impl Store {
    /// Opens the store in `dir`, making it if needed, with default settings but for the quota.
    pub fn open(dir: &Path, quota_bytes: Option<u64>) -> Result<Self, StoreError> {
        Self::open_with(dir, StoreOptions { quota_bytes, ..StoreOptions::default() })
    }

    /// Opens the store in `dir`, making it if needed.
    pub fn open_with(dir: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        let boot = boot_id().map_err(|source| StoreError::Folder { path: dir.into(), source })?;
        Self::open_in_boot(dir, options, boot)
    }

    pub(crate) fn open_in_boot(dir: &Path, options: StoreOptions, boot: BootId) -> Result<Self, StoreError> {
        let folder = Folder::open(dir)?;
        let failed = |source| StoreError::Folder { path: dir.into(), source };
        let mut images = HashMap::new();
        for image in folder.list().map_err(failed)? {
            match Known::load(&folder.image(image), image) {
                Ok(known) => drop(images.insert(image, known)),
                Err(reason) => {
                    tracing::warn!(%image, reason, "a stored image cannot be used and is removed; it will be fetched anew");
                    folder.remove(image).map_err(failed)?;
                }
            }
        }
        let releaser = options.cache_bytes.map(Releaser::start).transpose().map_err(failed)?;
        let (opening, images) = (Mutex::new(()), Mutex::new(images));
        let staged_bytes = AtomicU64::new(0);
        Ok(Self { shared: Arc::new(Shared { folder, options, releaser, boot, opening, images, staged_bytes }) })
    }

    /// The node's id: random, made once, kept with the store.
    pub fn node_id(&self) -> NodeId {
        self.shared.folder.node_id()
    }

    /// Rises every time the store is opened.
    pub fn incarnation(&self) -> u64 {
        self.shared.folder.incarnation()
    }

    /// The store's folder.
    pub fn path(&self) -> &Path {
        self.shared.folder.path()
    }

    /// Opens an image, making or recovering its files, and takes blocks that other images of `tenant` hold. While an image is open,
    /// the same value is returned again. After a crash of the host this hashes what was not synced, so it may take a while.
    pub fn open_image(&self, tenant: &str, descriptor: Arc<Descriptor>) -> Result<Arc<StoredImage>, StoreError> {
        let _opening = lock(&self.shared.opening);
        self.shared.open_image(tenant, descriptor)
    }

    /// Opens an image that is held, by its id alone; `None` when it is not held.
    pub fn open_held(&self, image: ImageId) -> Result<Option<Arc<StoredImage>>, StoreError> {
        let _opening = lock(&self.shared.opening);
        let known = lock(&self.shared.images).get(&image).cloned();
        known.map(|known| self.shared.open_image(&known.tenant, known.descriptor)).transpose()
    }

    /// The images that are held, open or not, in the order of their ids.
    pub fn held(&self) -> Vec<HeldImage> {
        let known = lock(&self.shared.images).clone();
        let mut held: Vec<HeldImage> =
            known.into_iter().map(|(image, known)| self.shared.describe(image, known)).collect();
        held.sort_by_key(|held| held.image);
        held
    }

    /// Removes an image. Where it is in use, its files stay until the last user has let go, but it is not held any more.
    pub fn remove(&self, image: ImageId) -> Result<(), StoreError> {
        let _opening = lock(&self.shared.opening);
        self.shared.remove(image)
    }
}

impl Shared {
    fn open_image(&self, tenant: &str, descriptor: Arc<Descriptor>) -> Result<Arc<StoredImage>, StoreError> {
        let image = descriptor.id();
        let known = lock(&self.images).get(&image).cloned();
        if let Some(known) = known {
            let open = known.open.upgrade();
            match (known.tenant == tenant, open) {
                (true, Some(open)) => return Ok(open),
                (true, None) => {}
                (false, Some(_)) => return Err(StoreError::OtherTenant(image)),
                // Another tenant's copy must not spare this one the fetch.
                (false, None) => self.remove(image)?,
            }
        }
        let stored = match self.recover(tenant, &descriptor)? {
            Some(stored) => stored,
            None => {
                self.make_room(descriptor.geometry().file_bytes(), Some(&descriptor))?;
                self.create(tenant, &descriptor)?
            }
        };
        if !stored.is_complete() {
            self.reuse(&stored);
        }
        let stored = Arc::new(stored);
        let open = Arc::downgrade(&stored);
        let known = Known { tenant: tenant.into(), descriptor, used: SystemTime::now(), open };
        touch(&self.folder.image(image), known.used);
        lock(&self.images).insert(image, known);
        Ok(stored)
    }

    /// Opens the files of an image that has been here before; `None` when there are none that can be used.
    fn recover(&self, tenant: &str, descriptor: &Arc<Descriptor>) -> Result<Option<StoredImage>, StoreError> {
        let image = descriptor.id();
        if !lock(&self.images).contains_key(&image) {
            return Ok(None);
        }
        let files = match Files::open(&self.folder.image(image), descriptor, self.boot) {
            Ok(files) => files,
            Err(reason) => {
                tracing::warn!(%image, reason, "a stored image is damaged; it starts from nothing");
                self.remove(image)?;
                return Ok(None);
            }
        };
        let Files { data, map, beside, found } = files;
        let map = MapFile::open(map, image, descriptor.geometry().blocks(), self.boot);
        let data = DataFile::new(data, &self.folder.image(image).join("data"), self.options.write);
        let files = Opened { data, map, beside };
        let stored = self.stored(tenant, descriptor, files, &found.words);
        if found.belief == Belief::Doubtful {
            let verified = stored.verify_all().map_err(|source| self.failed(image, "map", source))?;
            tracing::info!(
                %image, good_bytes = verified.good_bytes, failed_blocks = verified.failed.len(),
                "verified an image that was not synced before the host restarted"
            );
        }
        // Last: an agent that is killed while it verifies must find the map as doubtful as it was.
        stored.trust_marks().map_err(|source| self.failed(image, "map", source))?;
        Ok(Some(stored))
    }

    /// Makes the files of a new image under another name, so that nothing half made is ever found.
    fn create(&self, tenant: &str, descriptor: &Arc<Descriptor>) -> Result<StoredImage, StoreError> {
        let image = descriptor.id();
        let unfinished = self.folder.unfinished(image);
        let created = self.create_files(&unfinished, tenant, descriptor).and_then(|created| {
            // A folder that is not in the index, whoever left it: a rename onto it would fail again and again.
            self.folder.remove(image)?;
            fs::rename(&unfinished, self.folder.image(image))?;
            Ok(created)
        });
        let created = created.map(|files| self.stored(tenant, descriptor, files, &[]));
        created.map_err(|source| {
            // Ignored: what cannot be removed now is removed when the store is opened next.
            let _ = fs::remove_dir_all(&unfinished);
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    StoreError::Full { image: image.to_string(), source }
                }
                _ => self.failed(image, "", source),
            }
        })
    }

    fn stored(&self, tenant: &str, descriptor: &Arc<Descriptor>, files: Opened, words: &[u64]) -> StoredImage {
        StoredImage::new(tenant.into(), Arc::clone(descriptor), files, words, &self.options, self.releaser.clone())
    }

    fn create_files(&self, folder: &Path, tenant: &str, descriptor: &Descriptor) -> io::Result<Opened> {
        // What an attempt in this process that failed and could not be cleaned may have left.
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir(folder)?;
        let new = |name: &str| new_file_options().open(folder.join(name));
        let data = new("data")?;
        preallocate(&data, descriptor.geometry().file_bytes())?;
        let data = DataFile::new(data, &folder.join("data"), self.options.write);
        let map = MapFile::create(new("map")?, descriptor.id(), descriptor.geometry().blocks(), self.boot)?;
        let write = |name: &str, bytes: &[u8]| {
            let mut file = new(name)?;
            io::Write::write_all(&mut file, bytes)?;
            Ok::<_, io::Error>(file)
        };
        let mut beside = vec![write("descriptor", &descriptor.encode())?, write("tenant", tenant.as_bytes())?];
        beside.extend(folders(folder)?);
        Ok(Opened { data, map, beside })
    }

    /// Evicts images that nobody uses, the longest unused first, until a file of so many bytes fits the quota.
    fn make_room(&self, needed_bytes: u64, descriptor: Option<&Descriptor>) -> Result<(), StoreError> {
        let Some(quota_bytes) = self.options.quota_bytes else { return Ok(()) };
        let staged_bytes = self.staged_bytes.load(Ordering::Acquire);
        let known = lock(&self.images).clone();
        let mut total_bytes: u64 = staged_bytes + known.values().map(Known::file_bytes).sum::<u64>();
        let (open, mut idle): (Vec<_>, Vec<_>) = known.iter().partition(|(_, known)| known.open.strong_count() > 0);
        let used_bytes: u64 = staged_bytes + open.iter().map(|(_, known)| known.file_bytes()).sum::<u64>();
        if used_bytes.saturating_add(needed_bytes) > quota_bytes {
            // Evicting would not help, so nothing is evicted.
            return Err(StoreError::Quota { image: named(descriptor), needed_bytes, used_bytes, quota_bytes });
        }
        // An image that has blocks for the new one goes last: it saves a fetch.
        let saves = |known: &Known| descriptor.is_some_and(|new| reuse::related(new, &known.descriptor));
        idle.sort_by_key(|(_, known)| (saves(known), known.used));
        for (&image, known) in idle {
            if total_bytes.saturating_add(needed_bytes) <= quota_bytes {
                break;
            }
            tracing::info!(%image, "evicting an image that nobody uses, to stay within the quota");
            self.remove(image)?;
            total_bytes -= known.file_bytes();
        }
        Ok(())
    }

    /// Takes what other images have. Whatever fails is fetched: reuse saves a transfer and is not worth a failed image.
    fn reuse(&self, stored: &StoredImage) {
        let image = stored.descriptor().id();
        let known = lock(&self.images).clone();
        for (&id, known) in &known {
            let related = id != image
                && known.tenant == stored.tenant()
                && reuse::related(stored.descriptor(), &known.descriptor);
            if let Some(donor) = related.then(|| self.donor(id, known)).flatten()
                && let Err(error) = reuse::take_from(stored, &donor)
            {
                tracing::warn!(%image, donor = %id, %error, "blocks of a stored image cannot be kept; they will be fetched");
            }
        }
    }

    fn donor(&self, image: ImageId, known: &Known) -> Option<Donor> {
        let (descriptor, blocks) = (Arc::clone(&known.descriptor), known.descriptor.geometry().blocks());
        if let Some(open) = known.open.upgrade() {
            let present = PresentMap::new(blocks, &open.present().words().collect::<Vec<_>>());
            return Some(Donor { descriptor, file: Arc::clone(open.file()), present });
        }
        let Files { data, found, .. } = Files::open(&self.folder.image(image), &descriptor, self.boot).ok()?;
        Some(Donor { descriptor, file: Arc::new(data), present: PresentMap::new(blocks, &found.words) })
    }

    fn describe(&self, image: ImageId, known: Known) -> HeldImage {
        let Known { tenant, descriptor, open, .. } = known;
        let (bytes_present, complete) = match open.upgrade() {
            Some(open) => (open.bytes_present(), open.is_complete()),
            None => match Files::open(&self.folder.image(image), &descriptor, self.boot) {
                Ok(Files { found, .. }) => {
                    let present = PresentMap::new(descriptor.geometry().blocks(), &found.words);
                    let complete = present.count() == present.len() && found.belief == Belief::Trusted;
                    (bytes_of(descriptor.geometry(), &present), complete)
                }
                // Told when it is opened.
                Err(_) => (0, false),
            },
        };
        HeldImage { image, tenant, bytes_present, complete, descriptor }
    }

    fn remove(&self, image: ImageId) -> Result<(), StoreError> {
        self.folder.remove(image).map_err(|source| self.failed(image, "", source))?;
        lock(&self.images).remove(&image);
        Ok(())
    }

    fn failed(&self, image: ImageId, file: &str, source: io::Error) -> StoreError {
        StoreError::Image { image, path: self.folder.image(image).join(file), source }
    }
}

impl Known {
    /// Reads what an image is from its folder; `Err` with the reason when it cannot be told.
    fn load(folder: &Path, image: ImageId) -> Result<Self, String> {
        let read = |name: &str| fs::read(folder.join(name)).map_err(|error| format!("{name}: {error}"));
        let tenant = String::from_utf8(read("tenant")?).map_err(|_| "tenant: not text".to_string())?;
        let descriptor = Descriptor::decode(&read("descriptor")?, image).map_err(|error| error.to_string())?;
        let used = fs::metadata(folder.join("tenant")).and_then(|metadata| metadata.modified());
        let used = used.unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Self { tenant, descriptor: Arc::new(descriptor), used, open: Weak::new() })
    }

    fn file_bytes(&self) -> u64 {
        self.descriptor.geometry().file_bytes()
    }
}

/// The opened files of an image and what its map says.
struct Files {
    data: File,
    map: File,
    beside: Vec<File>,
    found: Found,
}

impl Files {
    /// Opens what is there; `Err` with the reason when it is not sound.
    fn open(folder: &Path, descriptor: &Descriptor, boot: BootId) -> Result<Self, String> {
        let open = |name: &str| {
            File::options().read(true).write(true).open(folder.join(name)).map_err(|error| format!("{name}: {error}"))
        };
        let (data, map) = (open("data")?, open("map")?);
        let (got, expected) =
            (data.metadata().map_err(|error| error.to_string())?.len(), descriptor.geometry().file_bytes());
        if got != expected {
            return Err(format!("the data file has {got} bytes instead of {expected}"));
        }
        let found = MapFile::read(&map, descriptor.id(), descriptor.geometry().blocks(), boot)?;
        let mut beside = vec![open("descriptor")?, open("tenant")?];
        beside.extend(folders(folder).map_err(|error| error.to_string())?);
        Ok(Self { data, map, beside, found })
    }
}

fn named(descriptor: Option<&Descriptor>) -> String {
    descriptor.map_or_else(|| "that is being registered".into(), |descriptor| descriptor.id().to_string())
}

/// The folder and the one that holds its name, opened to be synced.
fn folders(folder: &Path) -> io::Result<Vec<File>> {
    folder.ancestors().take(2).map(File::open).collect()
}

/// Remembers when an image was used last, for eviction after a restart, as the modification time of a file that never changes.
fn touch(folder: &Path, used: SystemTime) {
    let path: PathBuf = folder.join("tenant");
    if let Err(error) = File::options().write(true).open(&path).and_then(|file| file.set_modified(used)) {
        tracing::debug!(path = %path.display(), %error, "the time of use cannot be kept");
    }
}

/// A thread that panicked leaves the index as it was between two changes; going on is right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
