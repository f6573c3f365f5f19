//! The hashes of an image's bytes as they stream by: sha256 per entry, BLAKE3 and XXH3 per block.
//!
//! Runs on a blocking thread beside the reader, with whoever keeps them. Knows neither origin nor descriptor.

use bytes::Bytes;
use faasnet_api::verify::BlockHasher;
use faasnet_api::{BlockDigest, Entry};
use tokio::sync::mpsc;

use super::{Keep, RegisterError};
use crate::{Error, digest};

/// Hashes what comes out of `parts`: the entries' bytes one after another, no part across two entries. Ends early, with the
/// error, at the first entry whose bytes are not the ones that its digest names, or when `keep` cannot keep them.
pub(crate) fn hash_entries(
    entries: &[Entry],
    block_bytes: u32,
    parts: &mut mpsc::Receiver<Bytes>,
    keep: &mut impl Keep,
) -> Result<Vec<BlockDigest>, RegisterError> {
    let mut blocks = Vec::new();
    for (number, entry) in entries.iter().enumerate() {
        let mut hasher = EntryHasher::new(block_bytes);
        let first_block = blocks.len();
        let mut left = entry.len;
        while left > 0 {
            let Some(part) = parts.blocking_recv() else {
                let cause = format!("{left} bytes did not come");
                return Err(Error::Cut { url: entry.digest.clone(), received: entry.len - left, cause }.into());
            };
            keep.keep(number, entry.len - left, &part).map_err(RegisterError::Keeping)?;
            hasher.update(&part, &mut blocks);
            left = left.saturating_sub(part.len() as u64);
        }
        let got = hasher.finish(&mut blocks);
        if got != entry.digest {
            let what = format!("blob {}", entry.digest);
            return Err(Error::FalseDigest { what, expected: entry.digest.clone(), got }.into());
        }
        keep.right(&blocks[first_block..]);
    }
    Ok(blocks)
}

/// The hashes of one entry; blocks start anew with it.
struct EntryHasher {
    entry: digest::Hasher,
    block: BlockHasher,
    block_bytes: usize,
    in_block: usize,
}

impl EntryHasher {
    fn new(block_bytes: u32) -> Self {
        Self {
            entry: digest::Hasher::default(),
            block: BlockHasher::default(),
            block_bytes: block_bytes as usize,
            in_block: 0,
        }
    }

    fn update(&mut self, mut part: &[u8], blocks: &mut Vec<BlockDigest>) {
        self.entry.update(part);
        while !part.is_empty() {
            let (now, later) = part.split_at((self.block_bytes - self.in_block).min(part.len()));
            self.block.update(now);
            self.in_block += now.len();
            part = later;
            if self.in_block == self.block_bytes {
                self.end_block(blocks);
            }
        }
    }

    fn end_block(&mut self, blocks: &mut Vec<BlockDigest>) {
        blocks.push(self.block.finish());
        self.in_block = 0;
    }

    fn finish(mut self, blocks: &mut Vec<BlockDigest>) -> String {
        if self.in_block > 0 {
            self.end_block(blocks);
        }
        self.entry.finish()
    }
}
