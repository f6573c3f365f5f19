//! Which blocks of an image are here: one bit each, readable from any thread without a lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use faasnet_api::BlockIndex;

/// A set of blocks. Changed only by the [`crate::StoredImage`] that owns it.
#[derive(Debug)]
pub struct PresentMap {
    words: Box<[AtomicU64]>,
    count: AtomicU32,
    len: u32,
}

impl PresentMap {
    /// A map of `len` blocks with the bits of `words`; bits past the end are dropped, missing words are empty.
    pub(crate) fn new(len: u32, words: &[u64]) -> Self {
        let words: Box<[AtomicU64]> = (0..len.div_ceil(64))
            .map(|word| {
                let valid = u64::MAX >> (64 - (len - word * 64).min(64));
                AtomicU64::new(words.get(word as usize).copied().unwrap_or(0) & valid)
            })
            .collect();
        let count = words.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum();
        Self { words, count: AtomicU32::new(count), len }
    }

    /// Whether `block` is here; `false` for a block that the image does not have.
    pub fn contains(&self, block: BlockIndex) -> bool {
        // Acquire: who sees the bit also sees the bytes that were written before it was set.
        block.0 < self.len && self.words[word_of(block)].load(Ordering::Acquire) & bit_of(block) != 0
    }

    /// How many blocks are here.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// How many blocks the image has.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether the image has no blocks at all (every entry is empty).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bits, 64 blocks a word, lowest block in the lowest bit; a snapshot word by word.
    pub fn words(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().map(|word| word.load(Ordering::Acquire))
    }

    /// The present blocks in order.
    pub fn blocks(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        (0..self.len).map(BlockIndex).filter(|&block| self.contains(block))
    }

    /// `false` if it was there already, or the image has no such block.
    pub(crate) fn insert(&self, block: BlockIndex) -> bool {
        let new = block.0 < self.len
            && self.words[word_of(block)].fetch_or(bit_of(block), Ordering::AcqRel) & bit_of(block) == 0;
        if new {
            self.count.fetch_add(1, Ordering::AcqRel);
        }
        new
    }

    /// `false` if it was not there.
    pub(crate) fn remove(&self, block: BlockIndex) -> bool {
        let gone = block.0 < self.len
            && self.words[word_of(block)].fetch_and(!bit_of(block), Ordering::AcqRel) & bit_of(block) != 0;
        if gone {
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
        gone
    }

    pub(crate) fn word(&self, index: usize) -> u64 {
        self.words[index].load(Ordering::Acquire)
    }
}

pub(crate) fn word_of(block: BlockIndex) -> usize {
    block.0 as usize / 64
}

fn bit_of(block: BlockIndex) -> u64 {
    1 << (block.0 % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Catches a bit at the wrong place, a count that drifts, or bits past the end that are taken over from a file.
        #[test]
        fn behaves_like_a_set(len in 0u32..200, changes in prop::collection::vec((0u32..220, any::<bool>()), 0..100)) {
            let map = PresentMap::new(len, &[]);
            let mut model = BTreeSet::new();
            for (block, insert) in changes {
                let expected = if insert { block < len && model.insert(block) } else { model.remove(&block) };
                let got = if insert { map.insert(BlockIndex(block)) } else { map.remove(BlockIndex(block)) };
                prop_assert_eq!(got, expected);
            }
            prop_assert_eq!(map.count() as usize, model.len());
            prop_assert_eq!(map.blocks().map(|block| block.0).collect::<BTreeSet<_>>(), model);
            let copy = PresentMap::new(len, &map.words().collect::<Vec<_>>());
            prop_assert_eq!(copy.blocks().collect::<Vec<_>>(), map.blocks().collect::<Vec<_>>());
            prop_assert_eq!(PresentMap::new(len, &[u64::MAX; 4]).count(), len);
        }
    }
}
