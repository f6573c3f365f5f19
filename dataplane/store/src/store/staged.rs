//! An image that is being registered on this node: its bytes come before its descriptor is known, so it has no id yet.
//!
//! LIFECYCLE: `stage` (a file of its size, under a temporary name) → `write` → `keep` (all of it is present, under its id) or dropped
//! (nothing is left). What a process leaves behind that is killed in between is removed when the store is opened. Until `keep` nobody finds
//! it and nothing of it is given out, since its bytes may be wrong.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use faasnet_api::{BlockIndex, Descriptor, Geometry};
use faasnet_ring::file::preallocate;

use super::{Known, Shared, Store, lock, touch};
use crate::StoreError;
use crate::data::DataFile;
use crate::folder::new_file_options;
use crate::image::Opened;
use crate::map::MapFile;

/// Tells the folders of one process apart; a lock keeps other processes out.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// See the module's documentation.
#[derive(Debug)]
pub struct StagedImage {
    shared: Arc<Shared>,
    tenant: String,
    folder: PathBuf,
    data: File,
    geometry: Geometry,
}

impl Store {
    /// Makes room for an image that is cut like `geometry`. Blocks on the disk, as all of this does.
    pub fn stage(&self, tenant: &str, geometry: &Geometry) -> Result<StagedImage, StoreError> {
        let folder = self.shared.folder.staged(NUMBERS.fetch_add(1, Ordering::Relaxed));
        let full = |source: io::Error| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StoreError::Full { image: super::named(None), source }
            }
            _ => StoreError::Staged { path: folder.clone(), source },
        };
        let opening = lock(&self.shared.opening);
        self.shared.make_room(geometry.file_bytes(), None)?;
        let made = fs::create_dir(&folder).and_then(|()| new_file_options().open(folder.join("data")));
        let staged = StagedImage {
            shared: self.shared.clone(),
            tenant: tenant.into(),
            data: made.map_err(full)?,
            folder: folder.clone(),
            geometry: geometry.clone(),
        };
        self.shared.staged_bytes.fetch_add(geometry.file_bytes(), Ordering::AcqRel);
        // From here on they are counted; other images need not wait for the disk.
        drop(opening);
        preallocate(&staged.data, geometry.file_bytes()).map_err(full)?;
        Ok(staged)
    }
}

impl StagedImage {
    /// Its data, for reading what is known to be right already; good also after `keep`.
    pub fn data(&self) -> io::Result<File> {
        self.data.try_clone()
    }

    /// Writes bytes of an entry, which begin at `offset` of it.
    pub fn write(&self, entry: usize, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let start = self.geometry.entry_range(entry).start + offset;
        self.data.write_all_at(bytes, start).map_err(|source| self.failed(source))
    }

    /// It turned out to be this image, whole and with the right digests: from now on it is held, and present to its last block.
    pub fn keep(self, descriptor: Arc<Descriptor>) -> Result<(), StoreError> {
        self.finish(&descriptor).map_err(|source| self.failed(source))?;
        let (shared, image) = (&self.shared, descriptor.id());
        let _opening = lock(&shared.opening);
        let known = lock(&shared.images).get(&image).cloned();
        if known.is_some_and(|known| known.open.strong_count() > 0) {
            // Somebody fetched the same image meanwhile, and goes on with what it has.
            return Ok(());
        }
        shared.remove(image)?;
        fs::rename(&self.folder, shared.folder.image(image)).map_err(|source| self.failed(source))?;
        let known =
            Known { tenant: self.tenant.clone(), descriptor, used: SystemTime::now(), open: Default::default() };
        touch(&shared.folder.image(image), known.used);
        lock(&shared.images).insert(image, known);
        Ok(())
    }

    /// Makes the other files of the image, with every block marked. Not synced: that is done where every other image is, when it is complete,
    /// and a crash of the host before that leaves marks that are verified.
    fn finish(&self, descriptor: &Arc<Descriptor>) -> io::Result<()> {
        let new = |name: &str| new_file_options().open(self.folder.join(name));
        let blocks = descriptor.geometry().blocks();
        let map = MapFile::create(new("map")?, descriptor.id(), blocks, self.shared.boot)?;
        new("descriptor")?.write_all(&descriptor.encode())?;
        new("tenant")?.write_all(self.tenant.as_bytes())?;
        let data = DataFile::new(self.data.try_clone()?, &self.folder.join("data"), crate::WriteMode::Buffered);
        let stored = self.shared.stored(&self.tenant, descriptor, Opened { data, map, beside: Vec::new() }, &[]);
        for block in (0..blocks).map(BlockIndex) {
            stored.mark(block)?;
            stored.went_through_cache(block);
        }
        Ok(())
    }

    fn failed(&self, source: io::Error) -> StoreError {
        StoreError::Staged { path: self.folder.clone(), source }
    }
}

impl Drop for StagedImage {
    fn drop(&mut self) {
        self.shared.staged_bytes.fetch_sub(self.geometry.file_bytes(), Ordering::AcqRel);
        // Ignored: after `keep` it is not there any more; else the next start of the store removes it.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::tests::{blob, descriptor};

    fn names(store: &Path) -> Vec<String> {
        let entries = fs::read_dir(store.join("images")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Catches an image that is found before it is whole, one that is lost when it is, and files that a killed or failed attempt leaves.
    #[test]
    fn a_staged_image_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let seeds = [(1, 300_000), (2, 0), (3, 5000)];
        let (blobs, descriptor) = (seeds.map(|(seed, len)| blob(seed, len)), descriptor(&seeds));
        let store = Store::open(dir.path(), Some(descriptor.geometry().file_bytes())).unwrap();
        let write = |staged: &StagedImage| {
            for (entry, blob) in blobs.iter().enumerate() {
                for (n, part) in blob.chunks(10_007).enumerate() {
                    staged.write(entry, n as u64 * 10_007, part).unwrap();
                }
            }
        };
        let staged = store.stage("acme", descriptor.geometry()).unwrap();
        write(&staged);
        assert!(store.held().is_empty());
        let refused = store.stage("acme", descriptor.geometry()).unwrap_err();
        assert!(matches!(refused, StoreError::Quota { .. }), "the staged bytes count: {refused}");
        // As a process that is killed leaves it.
        std::mem::forget(staged);
        drop(store);
        assert_eq!(names(dir.path()).len(), 1);
        let dir_of_the_dead = dir.path().join("images");
        let copy = tempfile::tempdir().unwrap();
        fs::rename(dir_of_the_dead, copy.path().join("images")).unwrap();
        let store = Store::open(copy.path(), None).unwrap();
        assert!(names(copy.path()).is_empty(), "a start leaves nothing of it");
        drop(store.stage("acme", descriptor.geometry()).unwrap());
        assert!(names(copy.path()).is_empty(), "nor does an attempt that was given up");
        let staged = store.stage("acme", descriptor.geometry()).unwrap();
        write(&staged);
        staged.keep(descriptor.clone()).unwrap();
        drop(store);
        let store = Store::open(copy.path(), None).unwrap();
        assert!(store.held()[0].complete);
        let stored = store.open_image("acme", descriptor.clone()).unwrap();
        let verified = stored.verify_all().unwrap();
        assert_eq!((verified.good_bytes, verified.failed.len()), (descriptor.geometry().image_bytes(), 0));
    }
}
