//! Where the time of one pull went, and what went wrong on the way: for people, by `faasnet explain`, and for metrics.
//!
//! One per function and image, written by its worker. Times are since the first assignment. Bounded: what happened last is kept.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use faasnet_api::Stripe;
use faasnet_relay::plan::Target;

/// Upstreams given up that are remembered.
const MAX_GIVEN_UP: usize = 8;
/// A silence between two blocks of a stripe counts as a stall when it is longer than this and than four usual ones.
const MIN_STALL: Duration = Duration::from_millis(100);

/// See the module's documentation.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    /// When the first assignment came, by the host's clock: other programs of the host have the same one.
    pub assigned_at: Option<SystemTime>,
    /// An upstream said `Welcome` for the first time.
    pub welcomed: Option<Duration>,
    /// The image's file was open, so that blocks could be asked for.
    pub opened: Option<Duration>,
    /// The first block was verified.
    pub first_block: Option<Duration>,
    /// Time that the worker took to verify blocks.
    pub verifying: Duration,
    /// Blocks that it verified.
    pub blocks_verified: u64,
    /// Per stripe: when nothing came though something was missing.
    pub stalls: Vec<Stalls>,
    /// The upstreams that were given up last.
    pub given_up: VecDeque<GivenUp>,
}

/// The silences of one stripe in which blocks were missing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stalls {
    /// How many.
    pub count: u64,
    /// All of them.
    pub total: Duration,
    /// The longest time between two blocks, stall or not.
    pub longest: Duration,
    /// When that began.
    pub longest_from: Duration,
    last_block: Option<Duration>,
    usual_gap: Duration,
}

/// An upstream that was given up.
#[derive(Debug, Clone)]
pub struct GivenUp {
    /// When.
    pub at: Duration,
    /// Of which stripe.
    pub stripe: Stripe,
    /// Who.
    pub upstream: Target,
    /// Why, for people.
    pub reason: String,
}

impl Journal {
    pub(super) fn new(stripes: u8) -> Self {
        let stalls = vec![Stalls::default(); stripes.into()];
        Self { assigned_at: Some(SystemTime::now()), stalls, ..Self::default() }
    }

    /// A block was verified at `at`, which took `verifying`.
    pub(super) fn verified(&mut self, at: Duration, verifying: Duration) {
        self.first_block.get_or_insert(at);
        self.blocks_verified += 1;
        self.verifying += verifying;
    }

    pub(super) fn gave_up(&mut self, entry: GivenUp) {
        if self.given_up.len() == MAX_GIVEN_UP {
            self.given_up.pop_front();
        }
        self.given_up.push_back(entry);
    }
}

impl Stalls {
    /// A block that was missing has arrived at `at`.
    pub(super) fn block(&mut self, at: Duration) {
        let Some(last) = self.last_block.replace(at) else { return };
        let gap = at.saturating_sub(last);
        if gap > self.longest {
            (self.longest, self.longest_from) = (gap, last);
        }
        if gap > MIN_STALL.max(self.usual_gap * 4) {
            self.count += 1;
            self.total += gap;
        } else {
            // A stall is no measure of what is usual.
            self.usual_gap = (self.usual_gap * 7 + gap) / 8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a slow but steady stream that counts as stalled all the time, and a silence that is not counted.
    #[test]
    fn a_stall_is_longer_than_usual() {
        let mut stalls = Stalls::default();
        let mut now = Duration::from_secs(1);
        for _ in 0..50 {
            now += Duration::from_millis(80);
            stalls.block(now);
        }
        assert_eq!((stalls.count, stalls.longest.as_millis()), (0, 80));
        stalls.block(now + Duration::from_millis(700));
        stalls.block(now + Duration::from_millis(780));
        assert_eq!((stalls.count, stalls.total.as_millis(), stalls.longest.as_millis()), (1, 700, 700));
        assert_eq!(stalls.longest_from, now);
    }

    /// Catches a journal that grows with every failure of a long outage.
    #[test]
    fn the_last_failures_are_kept() {
        let mut journal = Journal::new(1);
        for n in 0..100 {
            let at = Duration::from_secs(n);
            journal.gave_up(GivenUp { at, stripe: Stripe(0), upstream: Target::Origin, reason: "silent".into() });
        }
        assert_eq!(journal.given_up.len(), MAX_GIVEN_UP);
        assert_eq!(journal.given_up.back().map(|entry| entry.at.as_secs()), Some(99));
    }
}
