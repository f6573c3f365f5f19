//! How an image is cut: entries into chunks (4 MiB) and blocks (256 KiB), and where each block lies in the image file.
//!
//! Chunks and blocks start anew at every entry, so the last block of an entry may be short and none crosses entries; a blob has
//! the same blocks in every image that contains it. In the image file each entry starts on a 4 KiB boundary, so that a blob can be
//! shared between files by reflink and written by direct I/O. Pure arithmetic; both planes use this one definition.

use std::ops::Range;

/// Bytes of a chunk: the unit of striping and bookkeeping.
pub const CHUNK_BYTES: u32 = 4 << 20;
/// Bytes of a block by default: the unit of verification, forwarding, resume and demand.
pub const BLOCK_BYTES: u32 = 256 << 10;
/// The largest block that agents accept: the payload size of one receive buffer.
pub const MAX_BLOCK_BYTES: u32 = 256 << 10;
/// The smallest block: a page, so that blocks start on page boundaries in the image file.
pub const MIN_BLOCK_BYTES: u32 = 4 << 10;
/// Every entry starts on a multiple of this in the image file.
pub const ENTRY_ALIGN_BYTES: u64 = 4096;
/// The most blocks that an image may have (1 TiB at 256 KiB); bounds what a hostile descriptor can make us allocate.
pub const MAX_BLOCKS: u64 = 1 << 22;

/// A block's number within its image, counted through all entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u32);

/// A chunk's number within its image, counted through all entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u32);

/// One of the trees of a function: the chunks with `index % stripes == stripe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stripe(pub u8);

impl Stripe {
    /// The stripe as an index into per-stripe tables.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Where one block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockPlace {
    /// The entry that the block belongs to.
    pub entry: usize,
    /// Byte offset of the block within its entry (blob).
    pub entry_offset: u64,
    /// Byte offset of the block in the image file.
    pub file_offset: u64,
    /// Bytes in the block: `block_bytes`, or less at the end of an entry; never 0.
    pub len: u32,
    /// The chunk that holds the block.
    pub chunk: ChunkIndex,
    /// The block's number within its chunk.
    pub in_chunk: u32,
}

/// One entry's place in the numbering.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EntryPlace {
    len: u64,
    file_offset: u64,
    first_block: u32,
    first_chunk: u32,
}

/// The cut of one image. Cheap to clone through an `Arc`; all look-ups are O(log entries).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    chunk_bytes: u32,
    block_bytes: u32,
    entries: Vec<EntryPlace>,
    blocks: u32,
    chunks: u32,
    file_bytes: u64,
    image_bytes: u64,
}

/// Why lengths do not make a geometry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The block size is not a power of two in the allowed range.
    #[error("block size {0} is not a power of two between {MIN_BLOCK_BYTES} and {MAX_BLOCK_BYTES}")]
    BlockBytes(u32),
    /// The chunk size is not a power-of-two multiple of the block size, or not the one we speak.
    #[error("chunk size {0} is not {CHUNK_BYTES}")]
    ChunkBytes(u32),
    /// More blocks than anyone should have to track.
    #[error("the image has more than {MAX_BLOCKS} blocks")]
    TooManyBlocks,
}

impl Geometry {
    /// Cuts entries of the given lengths.
    pub fn new(
        chunk_bytes: u32,
        block_bytes: u32,
        entry_lengths: impl IntoIterator<Item = u64>,
    ) -> Result<Self, GeometryError> {
        if !block_bytes.is_power_of_two() || !(MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES).contains(&block_bytes) {
            return Err(GeometryError::BlockBytes(block_bytes));
        }
        if chunk_bytes != CHUNK_BYTES {
            return Err(GeometryError::ChunkBytes(chunk_bytes));
        }
        let mut geometry =
            Self { chunk_bytes, block_bytes, entries: Vec::new(), blocks: 0, chunks: 0, file_bytes: 0, image_bytes: 0 };
        for len in entry_lengths {
            geometry.push(len)?;
        }
        Ok(geometry)
    }

    fn push(&mut self, len: u64) -> Result<(), GeometryError> {
        let blocks = u64::from(self.blocks) + len.div_ceil(self.block_bytes.into());
        if blocks > MAX_BLOCKS {
            return Err(GeometryError::TooManyBlocks);
        }
        self.entries.push(EntryPlace {
            len,
            file_offset: self.file_bytes,
            first_block: self.blocks,
            first_chunk: self.chunks,
        });
        self.blocks = blocks as u32;
        self.chunks += len.div_ceil(self.chunk_bytes.into()) as u32;
        self.file_bytes += len.next_multiple_of(ENTRY_ALIGN_BYTES);
        self.image_bytes += len;
        Ok(())
    }

    /// How many blocks the image has.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// How many chunks the image has.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Bytes of a full block.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Sum of the entries' lengths.
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    /// Length of the image file: entries with their padding.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// How many entries the image has.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Where an entry starts in the image file, and its length.
    pub fn entry_range(&self, entry: usize) -> Range<u64> {
        let place = &self.entries[entry];
        place.file_offset..place.file_offset + place.len
    }

    /// The blocks of an entry; empty for an empty blob.
    pub fn entry_blocks(&self, entry: usize) -> Range<u32> {
        let first = self.entries[entry].first_block;
        first..first + self.entries[entry].len.div_ceil(self.block_bytes.into()) as u32
    }

    /// Where `block` lies; `None` when the image has no such block.
    pub fn place(&self, block: BlockIndex) -> Option<BlockPlace> {
        if block.0 >= self.blocks {
            return None;
        }
        let entry = self.entries.partition_point(|entry| entry.first_block <= block.0) - 1;
        let place = &self.entries[entry];
        let entry_offset = u64::from(block.0 - place.first_block) * u64::from(self.block_bytes);
        Some(BlockPlace {
            entry,
            entry_offset,
            file_offset: place.file_offset + entry_offset,
            len: (place.len - entry_offset).min(self.block_bytes.into()) as u32,
            chunk: ChunkIndex(place.first_chunk + (entry_offset / u64::from(self.chunk_bytes)) as u32),
            in_chunk: (entry_offset % u64::from(self.chunk_bytes)) as u32 / self.block_bytes,
        })
    }

    /// The block at position `in_chunk` of `chunk`; `None` when there is none, whatever the numbers are.
    pub fn block_at(&self, chunk: ChunkIndex, in_chunk: u32) -> Option<BlockIndex> {
        let range = self.chunk_blocks(chunk)?;
        let block = range.start.checked_add(in_chunk)?;
        range.contains(&block).then_some(BlockIndex(block))
    }

    /// The blocks of `chunk`; `None` when the image has no such chunk.
    pub fn chunk_blocks(&self, chunk: ChunkIndex) -> Option<Range<u32>> {
        if chunk.0 >= self.chunks {
            return None;
        }
        let entry = self.entries.partition_point(|entry| entry.first_chunk <= chunk.0) - 1;
        let per_chunk = self.chunk_bytes / self.block_bytes;
        let first = self.entries[entry].first_block + (chunk.0 - self.entries[entry].first_chunk) * per_chunk;
        Some(first..(first + per_chunk).min(self.entry_blocks(entry).end))
    }

    /// The blocks of `stripe` when the image is cut into `stripes`, in stream order.
    pub fn stripe_blocks(&self, stripe: Stripe, stripes: u8) -> impl Iterator<Item = BlockIndex> + '_ {
        (u32::from(stripe.0)..self.chunks)
            .step_by(usize::from(stripes.max(1)))
            .filter_map(|chunk| self.chunk_blocks(ChunkIndex(chunk)))
            .flatten()
            .map(BlockIndex)
    }

    /// The stripe that `block` belongs to.
    pub fn stripe_of(&self, block: BlockIndex, stripes: u8) -> Option<Stripe> {
        self.place(block).map(|place| Stripe((place.chunk.0 % u32::from(stripes.max(1))) as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lengths() -> impl Strategy<Value = Vec<u64>> {
        let edge = prop_oneof![
            Just(0),
            Just(1),
            Just(u64::from(CHUNK_BYTES)),
            Just(u64::from(CHUNK_BYTES) - 1),
            Just(u64::from(CHUNK_BYTES) + 1),
            Just(u64::from(BLOCK_BYTES) + 1),
            0..20_000_000u64,
        ];
        prop::collection::vec(edge, 0..8)
    }

    proptest! {
        /// Catches a byte of an entry that no block covers, or that two do, and any disagreement between the look-ups.
        #[test]
        fn blocks_tile_the_entries_exactly(lengths in lengths(), stripes in 1u8..4) {
            let geometry = Geometry::new(CHUNK_BYTES, BLOCK_BYTES, lengths.iter().copied()).unwrap();
            let mut expected = lengths.iter().enumerate().flat_map(|(entry, &len)| {
                (0..len.div_ceil(BLOCK_BYTES.into())).map(move |n| (entry, n * u64::from(BLOCK_BYTES), len))
            });
            for block in (0..geometry.blocks()).map(BlockIndex) {
                let place = geometry.place(block).unwrap();
                let (entry, offset, len) = expected.next().unwrap();
                prop_assert_eq!((place.entry, place.entry_offset), (entry, offset));
                prop_assert_eq!(u64::from(place.len), (len - offset).min(BLOCK_BYTES.into()));
                prop_assert_eq!(place.file_offset % 4096, 0);
                prop_assert_eq!(geometry.block_at(place.chunk, place.in_chunk), Some(block));
            }
            prop_assert!(expected.next().is_none());
            let mut seen: Vec<u32> = (0..stripes)
                .flat_map(|s| geometry.stripe_blocks(Stripe(s), stripes).map(|b| b.0).collect::<Vec<_>>())
                .collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..geometry.blocks()).collect::<Vec<_>>());
        }

        /// Catches a look-up that panics or lies for numbers taken from a wire.
        #[test]
        fn unknown_numbers_are_none(chunk: u32, in_chunk: u32, block: u32) {
            let geometry = Geometry::new(CHUNK_BYTES, BLOCK_BYTES, [5_000_000, 1]).unwrap();
            if let Some(index) = geometry.block_at(ChunkIndex(chunk), in_chunk) {
                prop_assert!(index.0 < geometry.blocks());
            }
            prop_assert_eq!(geometry.place(BlockIndex(block)).is_some(), block < geometry.blocks());
        }
    }
}
