//! A set of blocks of one image: one bit per block.

use faasnet_api::BlockIndex;

/// A fixed-size bitmap over the blocks of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockSet {
    words: Vec<u64>,
    len: u32,
    count: u32,
}

impl BlockSet {
    /// An empty set over `len` blocks.
    pub fn new(len: u32) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize], len, count: 0 }
    }

    /// The set with the bits of `words`; bits beyond `len` are ignored, missing words are zero.
    pub fn from_words(len: u32, words: impl IntoIterator<Item = u64>) -> Self {
        let mut set = Self::new(len);
        for (word, bits) in set.words.iter_mut().zip(words) {
            *word = bits;
        }
        set.trim();
        set
    }

    /// The set whose bit `n % 8` of byte `n / 8` is block `n`, as `Want` carries it; bits beyond `len` are ignored.
    pub fn from_bitmap(len: u32, bitmap: &[u8]) -> Self {
        let words = bitmap.chunks(8).map(|bytes| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        });
        Self::from_words(len, words)
    }

    /// The bitmap that `Want` carries.
    pub fn to_bitmap(&self) -> Vec<u8> {
        let bytes = self.words.iter().flat_map(|word| word.to_le_bytes());
        bytes.take(self.len.div_ceil(8) as usize).collect()
    }

    /// How many blocks are in the set.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether no block is in the set.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether `block` is in the set; false for a block that the image does not have.
    pub fn contains(&self, block: BlockIndex) -> bool {
        block.0 < self.len && self.words[block.0 as usize / 64] & bit(block) != 0
    }

    /// Puts `block` in; false if it was there, or if the image has no such block.
    pub fn insert(&mut self, block: BlockIndex) -> bool {
        let fresh = block.0 < self.len && !self.contains(block);
        if fresh {
            self.words[block.0 as usize / 64] |= bit(block);
            self.count += 1;
        }
        fresh
    }

    /// Takes `block` out; false if it was not there.
    pub fn remove(&mut self, block: BlockIndex) -> bool {
        let there = self.contains(block);
        if there {
            self.words[block.0 as usize / 64] &= !bit(block);
            self.count -= 1;
        }
        there
    }

    /// Keeps only what is in `other` as well.
    pub fn intersect(&mut self, other: &Self) {
        for (index, word) in self.words.iter_mut().enumerate() {
            *word &= other.words.get(index).copied().unwrap_or(0);
        }
        self.trim();
    }

    /// How many blocks are in both sets.
    pub fn count_in_both(&self, other: &Self) -> u32 {
        self.words.iter().zip(&other.words).map(|(a, b)| (a & b).count_ones()).sum()
    }

    /// The first block from `from` on, cyclically, that is in both sets.
    pub fn next_in_both(&self, other: &Self, from: BlockIndex) -> Option<BlockIndex> {
        let words = self.words.len().min(other.words.len());
        let start = (from.0 as usize / 64).min(words);
        let both = |index: usize| self.words[index] & other.words[index];
        let first = |index: usize, bits: u64| BlockIndex((index * 64) as u32 + bits.trailing_zeros());
        if start < words {
            let bits = both(start) & (u64::MAX << (from.0 % 64));
            if bits != 0 {
                return Some(first(start, bits));
            }
        }
        // The start word comes again at the very end, for the bits before `from`.
        let rest = (start + 1..words).chain(0..(start + 1).min(words));
        rest.map(|index| (index, both(index))).find(|(_, bits)| *bits != 0).map(|(index, bits)| first(index, bits))
    }

    /// The blocks in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            std::iter::successors((word != 0).then_some(word), |bits| Some(bits & (bits - 1)).filter(|bits| *bits != 0))
                .map(move |bits| BlockIndex((index * 64) as u32 + bits.trailing_zeros()))
        })
    }

    fn trim(&mut self) {
        if !self.len.is_multiple_of(64)
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << (self.len % 64)) - 1;
        }
        self.count = self.words.iter().map(|word| word.count_ones()).sum();
    }
}

fn bit(block: BlockIndex) -> u64 {
    1 << (block.0 % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Catches any difference from a set of numbers, in every operation.
        #[test]
        fn behaves_like_a_set(
            len in 0u32..300,
            ops in prop::collection::vec((any::<bool>(), 0u32..320), 0..200),
            other in prop::collection::btree_set(0u32..300, 0..100),
            from in 0u32..320,
        ) {
            let mut set = BlockSet::new(len);
            let mut model = BTreeSet::new();
            for (insert, n) in ops {
                if insert {
                    prop_assert_eq!(set.insert(BlockIndex(n)), n < len && model.insert(n));
                } else {
                    prop_assert_eq!(set.remove(BlockIndex(n)), model.remove(&n));
                }
            }
            prop_assert_eq!(set.count() as usize, model.len());
            prop_assert_eq!(set.iter().map(|b| b.0).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(&BlockSet::from_bitmap(len, &set.to_bitmap()), &set);
            let mut others = BlockSet::new(300);
            other.iter().for_each(|n| { others.insert(BlockIndex(*n)); });
            let both: BTreeSet<u32> = model.intersection(&other).copied().collect();
            let expected = both.range(from..).next().or_else(|| both.iter().next()).copied();
            prop_assert_eq!(set.next_in_both(&others, BlockIndex(from)).map(|b| b.0), expected);
            prop_assert_eq!(set.count_in_both(&others) as usize, both.len());
            set.intersect(&others);
            prop_assert_eq!(set.iter().map(|b| b.0).collect::<BTreeSet<_>>(), both);
        }
    }
}
