//! Numbers from a seed: SplitMix64 (Steele, Lea, Flood 2014). The only source of chance in a simulation.

/// A seeded stream of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// A stream of its own for each purpose, so that a new draw for one of them does not change the others.
    pub(crate) fn new(seed: u64, purpose: &str) -> Self {
        let mixed = purpose.bytes().fold(seed ^ 0x5bd1_e995, |state, byte| Self(state ^ u64::from(byte)).next());
        Self(mixed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `from..=to`.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    /// True in `share` of all cases.
    pub(crate) fn chance(&mut self, share: f64) -> bool {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64 <= share && share > 0.0
    }

    /// Puts `items` into a random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches two purposes that share a stream, and draws outside their bounds.
    #[test]
    fn streams_are_separate_and_in_bounds() {
        let (mut one, mut other) = (Random::new(7, "one"), Random::new(7, "other"));
        assert_ne!(one.next(), other.next());
        assert!((0..1000).all(|_| (3..=9).contains(&one.between(3, 9))));
        assert_eq!((one.below(0), one.below(1)), (0, 0));
        assert!(!one.chance(0.0) && one.chance(1.0));
    }
}
