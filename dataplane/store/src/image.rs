//! One image on disk: its data file, its map and what is present. Shared by the control side and one worker through an `Arc`.
//!
//! LIFECYCLE of a block: absent → (the worker writes the verified bytes to `file()`) → written → `mark` → present. Only a present
//! block is ever read. The data is never mapped: a bad sector is an error, not a signal.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use faasnet_api::{BlockIndex, Descriptor, Geometry, Verify};

use crate::data::DataFile;
use crate::map::MapFile;
use crate::present::word_of;
use crate::release::Releaser;
use crate::{PresentMap, StoreOptions};

/// See the module's documentation.
pub struct StoredImage {
    tenant: String,
    descriptor: Arc<Descriptor>,
    data: Arc<DataFile>,
    releaser: Option<Releaser>,
    map: MapFile,
    present: PresentMap,
    /// What tells whether bytes on the disk are right.
    verify: Verify,
    bytes_present: AtomicU64,
    bytes_reused: AtomicU64,
    /// The other files of the image, synced by `finish` so that they are found after a crash: descriptor, tenant, folder.
    beside: Vec<File>,
}

/// The open files of an image.
pub(crate) struct Opened {
    pub(crate) data: DataFile,
    pub(crate) map: MapFile,
    /// See [`StoredImage`].
    pub(crate) beside: Vec<File>,
}

/// What [`StoredImage::verify_all`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Bytes of the blocks that are as they should be.
    pub good_bytes: u64,
    /// Blocks that were marked present and are wrong or unreadable; they are not present any more.
    pub failed: Vec<BlockIndex>,
}

impl fmt::Debug for StoredImage {
    /// Its name only: a descriptor has a digest for every block.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredImage").field("id", &self.descriptor.id()).finish_non_exhaustive()
    }
}

impl StoredImage {
    pub(crate) fn new(
        tenant: String,
        descriptor: Arc<Descriptor>,
        files: Opened,
        words: &[u64],
        options: &StoreOptions,
        releaser: Option<Releaser>,
    ) -> Self {
        let Opened { data, map, beside } = files;
        let present = PresentMap::new(descriptor.geometry().blocks(), words);
        let bytes = bytes_of(descriptor.geometry(), &present);
        let data = Arc::new(data);
        if let Some(releaser) = &releaser {
            releaser.watch(&data);
        }
        Self {
            tenant,
            descriptor,
            data,
            releaser,
            map,
            present,
            verify: options.verify,
            bytes_present: AtomicU64::new(bytes),
            bytes_reused: AtomicU64::new(0),
            beside,
        }
    }

    /// Whose it is.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// What it is made of.
    pub fn descriptor(&self) -> &Arc<Descriptor> {
        &self.descriptor
    }

    /// How it is cut.
    pub fn geometry(&self) -> &Arc<Geometry> {
        self.descriptor.geometry()
    }

    /// The data file, for the worker's reads and writes and for sendfile.
    pub fn file(&self) -> &Arc<File> {
        self.data.cached()
    }

    /// The data file for a write of these bytes past the page cache; `None` where that cannot be, or is not wanted.
    pub fn direct_file(&self, offset: u64, len: u64) -> Option<&Arc<File>> {
        self.data.direct(offset, len)
    }

    /// Whether a write to [`StoredImage::direct_file`] that failed with `error` is to be done again to [`StoredImage::file`]: the file
    /// system refuses direct writes. From then on there is no direct file.
    pub fn gives_up_direct(&self, error: &io::Error) -> bool {
        self.data.gives_up_direct(error)
    }

    /// Which blocks are here.
    pub fn present(&self) -> &PresentMap {
        &self.present
    }

    /// Bytes of the blocks that are here.
    pub fn bytes_present(&self) -> u64 {
        self.bytes_present.load(Ordering::Acquire)
    }

    /// Bytes that this opening of the image took from other images of the tenant.
    pub fn bytes_reused(&self) -> u64 {
        self.bytes_reused.load(Ordering::Acquire)
    }

    /// Whether every block is here.
    pub fn is_complete(&self) -> bool {
        self.present.count() == self.present.len()
    }

    /// Tells that `block` went through the page cache, so that it can be released from there. Never waits.
    pub fn went_through_cache(&self, block: BlockIndex) {
        if let (Some(releaser), Some(place)) = (&self.releaser, self.geometry().place(block)) {
            releaser.note(&self.data, place.file_offset..place.file_offset + u64::from(place.len));
        }
    }

    /// Declares that the verified bytes of `block` have been written to [`StoredImage::file`]. `false` if it was present already (or
    /// the image has no such block). Writes 8 bytes into the page cache; called by the image's worker.
    pub fn mark(&self, block: BlockIndex) -> io::Result<bool> {
        let Some(place) = self.geometry().place(block) else { return Ok(false) };
        if !self.present.insert(block) {
            return Ok(false);
        }
        self.bytes_present.fetch_add(place.len.into(), Ordering::AcqRel);
        if let Err(error) = self.write_word(word_of(block)) {
            // Not present in the file, so not here either: the error stays the only thing that happened.
            if self.present.remove(block) {
                self.bytes_present.fetch_sub(place.len.into(), Ordering::AcqRel);
            }
            return Err(error);
        }
        Ok(true)
    }

    /// Declares that the marks in the map file can be believed in this boot of the host.
    pub(crate) fn trust_marks(&self) -> io::Result<()> {
        self.map.trust()
    }

    /// Whether the disk still holds the right bytes of a present block; `buffer` is for them. Blocks on the disk.
    pub fn is_intact(&self, block: BlockIndex, buffer: &mut Vec<u8>) -> io::Result<bool> {
        self.read_block_into(block, buffer)?;
        Ok(self.is_right(block, buffer))
    }

    /// Takes a block back whose bytes on the disk are not right any more. The image's worker is not told: whoever does this has the
    /// control side begin the image anew.
    pub fn clear(&self, block: BlockIndex) -> io::Result<()> {
        let Some(place) = self.geometry().place(block) else { return Ok(()) };
        if self.present.remove(block) {
            self.bytes_present.fetch_sub(place.len.into(), Ordering::AcqRel);
            self.write_word(word_of(block))?;
        }
        Ok(())
    }

    fn write_word(&self, index: usize) -> io::Result<()> {
        loop {
            let word = self.present.word(index);
            self.map.write_word(index, word)?;
            // A verification on the control side may have changed the word meanwhile; the last state must be the file's.
            if self.present.word(index) == word {
                return Ok(());
            }
        }
    }

    /// Syncs what is present, so that it is trusted after a crash of the host. Blocks on the disk; called by the control side when the
    /// image is complete, and at shutdown.
    pub fn finish(&self) -> io::Result<()> {
        // Taken before the sync: a block that is marked during it makes the mark of cleanness void, see `map`.
        let words: Vec<u64> = self.present.words().collect();
        self.data.sync()?;
        for file in &self.beside {
            file.sync_all()?;
        }
        self.map.set_clean(words.into_iter())
    }

    /// The bytes of a present block.
    pub fn read_block(&self, block: BlockIndex) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_block_into(block, &mut bytes)?;
        Ok(bytes)
    }

    fn read_block_into(&self, block: BlockIndex, bytes: &mut Vec<u8>) -> io::Result<()> {
        let place = self.geometry().place(block).filter(|_| self.present.contains(block));
        let place = place.ok_or_else(|| absent(block))?;
        bytes.resize(place.len as usize, 0);
        self.file().read_exact_at(bytes, place.file_offset)
    }

    /// Reads bytes of an entry (blob) from `offset`, as many as fit into `buffer`, are present without a gap, and belong to the entry:
    /// 0 at its end. `WouldBlock` when the block at `offset` has not arrived, `InvalidInput` when there is no such entry.
    pub fn read_at(&self, entry: usize, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if entry >= self.geometry().entries() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the image has no entry {entry}")));
        }
        let range = self.geometry().entry_range(entry);
        let wanted = (range.end - range.start).saturating_sub(offset).min(buffer.len() as u64);
        if wanted == 0 {
            return Ok(0);
        }
        let block_bytes = u64::from(self.geometry().block_bytes());
        let first_block = self.geometry().entry_blocks(entry).start;
        let blocks = offset / block_bytes..(offset + wanted).div_ceil(block_bytes);
        let missing = blocks.clone().find(|&block| !self.present.contains(BlockIndex(first_block + block as u32)));
        let end = missing.map_or(offset + wanted, |block| (block * block_bytes).min(offset + wanted));
        if end <= offset {
            return Err(absent(BlockIndex(first_block + blocks.start as u32)));
        }
        let len = (end - offset) as usize;
        self.file().read_exact_at(&mut buffer[..len], range.start + offset)?;
        Ok(len)
    }

    /// Hashes every present block again; what is wrong is not present afterwards. Blocks on the disk. An image whose worker is
    /// receiving it must not be verified: the worker would not learn what was cleared.
    pub fn verify_all(&self) -> io::Result<Verified> {
        let mut verified = Verified { good_bytes: 0, failed: Vec::new() };
        let mut bytes = Vec::new();
        for block in self.present.blocks() {
            let read = self.read_block_into(block, &mut bytes);
            if read.is_ok() && self.is_right(block, &bytes) {
                verified.good_bytes += bytes.len() as u64;
            } else {
                self.clear(block)?;
                verified.failed.push(block);
            }
        }
        Ok(verified)
    }

    fn is_right(&self, block: BlockIndex, bytes: &[u8]) -> bool {
        self.descriptor.verify(block, bytes, self.verify.on_disk())
    }

    /// Marks `block` if the data file holds its right bytes, brought there from another image. `true` if it does.
    pub(crate) fn mark_if_right(&self, block: BlockIndex, buffer: &mut Vec<u8>) -> io::Result<bool> {
        let Some(place) = self.geometry().place(block) else { return Ok(false) };
        buffer.resize(place.len as usize, 0);
        // An unreadable block is a missing one.
        let right = self.file().read_exact_at(buffer, place.file_offset).is_ok() && self.is_right(block, buffer);
        if right && self.mark(block)? {
            self.bytes_reused.fetch_add(place.len.into(), Ordering::AcqRel);
        }
        Ok(right)
    }
}

/// Bytes of the blocks in `present`.
pub(crate) fn bytes_of(geometry: &Geometry, present: &PresentMap) -> u64 {
    if present.count() == present.len() {
        return geometry.image_bytes();
    }
    present.blocks().filter_map(|block| geometry.place(block)).map(|place| u64::from(place.len)).sum()
}

fn absent(block: BlockIndex) -> io::Error {
    io::Error::new(io::ErrorKind::WouldBlock, format!("block {} has not arrived", block.0))
}
