//! How much of a worker's time may go into something that strangers can ask for.
//!
//! Pure; the clock is the caller's.

use std::time::Duration;

use faasnet_relay::upstream::Now;

/// A budget of time that refills slowly: a burst within it is served at once, a flood gets its share and no more.
pub(super) struct Allowance {
    /// Nanoseconds; below zero when the last thing took more than was left, which is worked off before the next may begin.
    left: i64,
    refilled: Now,
}

/// Enough for the signatures of a hundred newcomers at once; the longest that all of them together hold the stream.
const MOST: Duration = Duration::from_millis(10);
/// A twentieth of the time goes back: a flood costs the stream 5 %, and some hundred honest newcomers a second still pass.
const REFILL_DIVISOR: u32 = 20;

impl Allowance {
    pub(super) fn new() -> Self {
        Self { left: nanoseconds(MOST), refilled: Now::ZERO }
    }

    /// Whether something may begin. What it takes may overdraw the budget.
    pub(super) fn has_some(&mut self, now: Now) -> bool {
        let refill = nanoseconds(now.saturating_sub(self.refilled) / REFILL_DIVISOR);
        (self.left, self.refilled) = (self.left.saturating_add(refill).min(nanoseconds(MOST)), now);
        self.left > 0
    }

    /// So much was taken.
    pub(super) fn spend(&mut self, took: Duration) {
        self.left = self.left.saturating_sub(nanoseconds(took));
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a flood that takes more than its share of the time, and a burst that has to wait.
    #[test]
    fn a_burst_passes_and_a_flood_gets_its_share() {
        let cost = Duration::from_micros(100);
        let (mut allowance, mut now, mut taken) = (Allowance::new(), Duration::from_secs(1), Duration::ZERO);
        let mut burst = 0;
        while allowance.has_some(now) {
            allowance.spend(cost);
            burst += 1;
        }
        assert_eq!(burst, 100);
        let begin = now;
        while now < begin + Duration::from_secs(10) {
            now += Duration::from_micros(50);
            if allowance.has_some(now) {
                allowance.spend(cost);
                taken += cost;
            }
        }
        assert!(taken > Duration::from_millis(450) && taken < Duration::from_millis(1_100), "{taken:?}");
    }
}
