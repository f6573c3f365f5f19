//! The hash of the index: a folded multiplication per word, seeded per map.
//!
//! The standard library's hash resists chosen keys at the price of about 20 ns a look-up. Node ids are drawn by agents that have the
//! cluster's secret, and the seed is not known to them.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Makes the hashers of one map.
#[derive(Debug, Clone)]
pub(crate) struct Seed(u64);

impl Default for Seed {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0u8))
    }
}

impl BuildHasher for Seed {
    type Hasher = Fold;
    fn build_hasher(&self) -> Fold {
        Fold(self.0)
    }
}

/// The state of one hash.
pub(crate) struct Fold(u64);

impl Fold {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(MULTIPLIER);
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.mix(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }

    fn finish(&self) -> u64 {
        // Once more, since the table looks at the lowest and the highest bits.
        let product = u128::from(self.0) * u128::from(MULTIPLIER);
        (product >> 64) as u64 ^ product as u64
    }
}

/// An odd number without a pattern: the fraction of the golden ratio.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Catches a hash that puts keys which differ little into few places of a table.
    #[test]
    fn near_keys_are_spread() {
        let seed = Seed(1);
        for shift in [0, 16, 48] {
            let hashes = (0..4_096u64).map(|key| seed.hash_one(key << shift));
            let (low, high): (HashSet<u64>, HashSet<u64>) = hashes.map(|hash| (hash & 0xfff, hash >> 52)).unzip();
            // Random places would leave 63 % of the 4,096 occupied.
            assert!(low.len() > 2_300 && high.len() > 2_300, "{shift}: {} and {}", low.len(), high.len());
        }
        let ids = (0..4_096u32).map(|n| seed.hash_one([n.to_be_bytes(), [0; 4], [0; 4], [0; 4]].concat()));
        assert!(ids.map(|hash| hash & 0xfff).collect::<HashSet<_>>().len() > 2_300);
    }
}
