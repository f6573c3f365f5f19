//! The map file of an image: a checked header of one page and one bit per block.
//!
//! Whether marks can be believed depends on when they were made. In the boot of the host that made them, they can: a killed process
//! loses nothing of the page cache. Later they can if the header says that the data was synced for exactly these bits (it holds
//! their hash, so that a mark made after the sync, in whatever order pages reached the disk, takes the belief away). Else every
//! marked block must be verified again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use faasnet_api::ImageId;
use faasnet_ring::file::preallocate;
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "FaaSNmap".
const MAGIC: [u8; 8] = *b"FaaSNmap";
const VERSION: u32 = 1;
/// The words begin here: the header has its own page.
const WORDS_OFFSET: u64 = 4096;

/// The id of one boot of the host.
pub(crate) type BootId = [u8; 16];

/// How far the marks in a map can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Belief {
    /// Written in this boot, or synced.
    Trusted,
    /// Written in another boot and not synced: verify.
    Doubtful,
}

/// What was found in a map file.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) words: Vec<u64>,
    pub(crate) belief: Belief,
}

/// An open map file. Word writes come from one worker, header writes from the control side.
#[derive(Debug)]
pub(crate) struct MapFile {
    file: File,
    image: ImageId,
    blocks: u32,
    boot: BootId,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    clean: U32,
    image: [u8; 32],
    blocks: U32,
    reserved: U32,
    boot: BootId,
    /// xxh3-64 of the words for which the data was synced; meaningful when clean.
    words_hash: U64,
    /// xxh3-64 of all before.
    header_hash: U64,
}

impl Header {
    fn hash(&self) -> u64 {
        let bytes = self.as_bytes();
        xxh3_64(&bytes[..bytes.len() - size_of::<U64>()])
    }
}

impl MapFile {
    /// An empty map in the new file `file`.
    pub(crate) fn create(file: File, image: ImageId, blocks: u32, boot: BootId) -> io::Result<Self> {
        let map = Self { file, image, blocks, boot };
        // Room for every mark now: a mark that the full disk refuses later would be of a block that is there.
        preallocate(&map.file, map.file_bytes())?;
        map.write_header(None)?;
        Ok(map)
    }

    /// Reads the map in `file`; `Err` with the reason when it is not a sound map of this image.
    pub(crate) fn read(file: &File, image: ImageId, blocks: u32, boot: BootId) -> Result<Found, String> {
        let failed = |error: io::Error| format!("the map cannot be read: {error}");
        let words_bytes = words_bytes(blocks);
        let len = file.metadata().map_err(failed)?.len();
        if len != WORDS_OFFSET + words_bytes as u64 {
            return Err(format!("the map has {len} bytes instead of {}", WORDS_OFFSET + words_bytes as u64));
        }
        let mut bytes = [0; size_of::<Header>()];
        file.read_exact_at(&mut bytes, 0).map_err(failed)?;
        let header = Header::read_from_bytes(&bytes).map_err(|error| error.to_string())?;
        if header.magic != MAGIC || header.version.get() != VERSION || header.header_hash.get() != header.hash() {
            return Err("the map's header is damaged or of another version".into());
        }
        if header.image != image.0 || header.blocks.get() != blocks {
            return Err("the map belongs to another image".into());
        }
        let mut bytes = vec![0; words_bytes];
        file.read_exact_at(&mut bytes, WORDS_OFFSET).map_err(failed)?;
        let synced = header.clean.get() == 1 && header.words_hash.get() == xxh3_64(&bytes);
        let belief = if header.boot == boot || synced { Belief::Trusted } else { Belief::Doubtful };
        Ok(Found { words: from_bytes(&bytes), belief })
    }

    /// Opens a map that [`MapFile::read`] found sound. The file is as believable as before until [`MapFile::trust`].
    pub(crate) fn open(file: File, image: ImageId, blocks: u32, boot: BootId) -> Self {
        Self { file, image, blocks, boot }
    }

    /// Declares that the marks in the file hold in this boot. Only when nothing doubtful is left: whoever is killed before this must
    /// find the doubt again.
    pub(crate) fn trust(&self) -> io::Result<()> {
        let mut bytes = [0; size_of::<Header>()];
        self.file.read_exact_at(&mut bytes, 0)?;
        let synced = Header::read_from_bytes(&bytes).ok().filter(|header| header.clean.get() == 1);
        // The hash of the synced words stays: if nothing is marked in this boot, the map remains clean.
        self.write_header(synced.map(|header| header.words_hash.get()))
    }

    /// Writes one word of 64 blocks, into the page cache.
    pub(crate) fn write_word(&self, index: usize, word: u64) -> io::Result<()> {
        self.file.write_all_at(&word.to_le_bytes(), WORDS_OFFSET + index as u64 * 8)
    }

    /// Declares that the data of all blocks in `words` is on the disk, and syncs that.
    pub(crate) fn set_clean(&self, words: impl Iterator<Item = u64>) -> io::Result<()> {
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        self.write_header(Some(xxh3_64(&bytes)))?;
        self.file.sync_data()
    }

    fn write_header(&self, synced_words_hash: Option<u64>) -> io::Result<()> {
        let mut header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            clean: u32::from(synced_words_hash.is_some()).into(),
            image: self.image.0,
            blocks: self.blocks.into(),
            reserved: 0.into(),
            boot: self.boot,
            words_hash: synced_words_hash.unwrap_or(0).into(),
            header_hash: 0.into(),
        };
        header.header_hash = header.hash().into();
        self.file.write_all_at(header.as_bytes(), 0)
    }

    fn file_bytes(&self) -> u64 {
        WORDS_OFFSET + words_bytes(self.blocks) as u64
    }
}

fn words_bytes(blocks: u32) -> usize {
    blocks.div_ceil(64) as usize * 8
}

fn from_bytes(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: ImageId = ImageId([7; 32]);
    const BOOT: BootId = [1; 16];
    const LATER: BootId = [2; 16];

    fn sample() -> MapFile {
        let map = MapFile::create(tempfile::tempfile().unwrap(), IMAGE, 130, BOOT).unwrap();
        map.write_word(1, 0b101).unwrap();
        map
    }

    fn belief(map: &MapFile, boot: BootId) -> Belief {
        MapFile::read(&map.file, IMAGE, 130, boot).unwrap().belief
    }

    /// Catches marks that are believed although nobody synced the data, or the other way round.
    #[test]
    fn belief_follows_boot_and_sync() {
        let map = sample();
        assert_eq!(MapFile::read(&map.file, IMAGE, 130, BOOT).unwrap().words, [0, 0b101, 0]);
        assert_eq!((belief(&map, BOOT), belief(&map, LATER)), (Belief::Trusted, Belief::Doubtful));
        map.set_clean([0, 0b101, 0].into_iter()).unwrap();
        assert_eq!((belief(&map, BOOT), belief(&map, LATER)), (Belief::Trusted, Belief::Trusted));
        map.write_word(0, 1).unwrap();
        assert_eq!(
            (belief(&map, BOOT), belief(&map, LATER)),
            (Belief::Trusted, Belief::Doubtful),
            "marked after the sync"
        );
    }

    /// Catches a clean map that must be verified again only because it was opened.
    #[test]
    fn opening_keeps_a_map_clean() {
        let map = sample();
        map.set_clean([0, 0b101, 0].into_iter()).unwrap();
        let map = MapFile::open(map.file, IMAGE, 130, LATER);
        map.trust().unwrap();
        assert_eq!(belief(&map, [3; 16]), Belief::Trusted);
    }

    /// Catches a damaged, cut or foreign map that is taken for this image's.
    #[test]
    fn damage_is_noticed() {
        for offset in 0..size_of::<Header>() as u64 {
            let map = sample();
            let mut byte = [0];
            map.file.read_exact_at(&mut byte, offset).unwrap();
            map.file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
            assert!(MapFile::read(&map.file, IMAGE, 130, BOOT).is_err(), "byte {offset}");
        }
        let map = sample();
        assert!(MapFile::read(&map.file, ImageId([8; 32]), 130, BOOT).is_err());
        assert!(MapFile::read(&map.file, IMAGE, 129, BOOT).is_err());
        for len in [0, 87, 4096, 4096 + 8, 1 << 20] {
            map.file.set_len(len).unwrap();
            assert!(MapFile::read(&map.file, IMAGE, 130, BOOT).is_err(), "length {len}");
        }
    }
}
