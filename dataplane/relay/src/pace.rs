//! Whether a node should stop receiving for a moment because it is far ahead of all its children.
//!
//! Who reads ahead takes a share of its parent's uplink (or of the origin's) that it cannot pass on: its own uplink is divided by two. The
//! stripe or the subtree beside it then lags, and never catches up, for the same reason. With this rule the two finish together.
//! Children which are slower than the link by far are no reason to wait: that would let a slow child delay its parent.

use std::time::Duration;

use crate::upstream::Now;

/// Receiving and sending speeds of one stripe, measured over windows of [`WINDOW`].
#[derive(Debug, Default)]
pub struct Pace {
    began: Now,
    received: u64,
    /// The most that a window received, ageing.
    best_received: u64,
    /// What the fastest child took in the last whole window; unknown before there was one.
    fastest_sent: Option<u64>,
    /// Since when nothing is received for the children's sake.
    waiting: Option<Now>,
}

/// How long speeds are averaged.
pub const WINDOW: Duration = Duration::from_millis(250);
/// A node may be so many bytes ahead of the child that is best served: more than a stream needs to flow evenly, less than what matters.
pub const AHEAD_BYTES: u64 = 2 << 20;
/// Children which take less than this part of what the link can bring are slow; an uplink is shared by two, and at times by a guest.
const SLOW_DIVISOR: u64 = 4;
/// A child that lacks more than this has joined late or was away; it catches up from the store while the stream goes on.
const FAR_BYTES: u64 = 16 << 20;
/// The longest wait in one go: a receive window that stays shut for longer looks like a dead node to the parent.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

impl Pace {
    /// A block of `bytes` arrived.
    pub fn received(&mut self, bytes: u64) {
        self.received += bytes;
    }

    /// Whether a window is over at `now`; then [`Pace::turn`] is due.
    pub fn is_due(&self, now: Now) -> bool {
        now.saturating_sub(self.began) >= WINDOW
    }

    /// Ends a window in which the fastest child took `fastest_sent` bytes.
    pub fn turn(&mut self, now: Now, fastest_sent: u64) {
        // Windows that nobody ended (nothing happened) say nothing about speeds.
        let fresh = now.saturating_sub(self.began) < WINDOW * 2;
        self.best_received = self.received.max(self.best_received - self.best_received / 16);
        self.fastest_sent = fresh.then_some(fastest_sent);
        (self.began, self.received) = (now, 0);
    }

    /// Whether to receive nothing for now: the child that is best served lacks `behind_bytes` of what is here.
    pub fn should_wait(&mut self, now: Now, behind_bytes: u64) -> bool {
        let keeps_up = self.best_received > 0
            && self.fastest_sent.is_some_and(|sent| sent > 0 && sent >= self.best_received / SLOW_DIVISOR);
        if !keeps_up || !(AHEAD_BYTES + 1..=FAR_BYTES).contains(&behind_bytes) {
            self.waiting = None;
            return false;
        }
        now.saturating_sub(*self.waiting.get_or_insert(now)) < LONGEST_WAIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(pace: &mut Pace, count: u32, received: u64, sent: u64) {
        for _ in 0..count {
            let now = pace.began + WINDOW;
            pace.received(received);
            assert!(pace.is_due(now));
            pace.turn(now, sent);
        }
    }

    const BEHIND: u64 = AHEAD_BYTES + 1;

    /// Catches a root that takes more of the origin than its children can be given.
    #[test]
    fn waits_for_children_that_take_their_half() {
        let mut pace = Pace::default();
        windows(&mut pace, 4, 3_000_000, 1_500_000);
        let now = pace.began;
        assert!(pace.should_wait(now, BEHIND));
        assert!(!pace.should_wait(now, AHEAD_BYTES));
        // While it waits it receives nothing, and goes on waiting.
        windows(&mut pace, 3, 0, 1_500_000);
        assert!(pace.should_wait(pace.began, BEHIND));
    }

    /// Catches a slow or stopped child that delays its parent, also one that came before anything else.
    #[test]
    fn does_not_wait_for_slow_children() {
        let mut pace = Pace::default();
        assert!(!pace.should_wait(Now::ZERO, BEHIND));
        windows(&mut pace, 4, 0, 0);
        assert!(!pace.should_wait(pace.began, BEHIND));
        windows(&mut pace, 4, 3_000_000, 300_000);
        assert!(!pace.should_wait(pace.began, BEHIND));
        windows(&mut pace, 4, 3_000_000, 0);
        assert!(!pace.should_wait(pace.began, BEHIND));
    }

    /// Catches a late joiner for which a stream stands still until it has caught up.
    #[test]
    fn does_not_wait_for_children_that_are_far_behind() {
        let mut pace = Pace::default();
        windows(&mut pace, 4, 3_000_000, 3_000_000);
        assert!(!pace.should_wait(pace.began, FAR_BYTES + 1));
    }

    /// Catches a wait so long that the parent takes this node for dead.
    #[test]
    fn one_wait_is_short() {
        let mut pace = Pace::default();
        windows(&mut pace, 4, 3_000_000, 1_500_000);
        let began = pace.began;
        assert!(pace.should_wait(began, BEHIND));
        windows(&mut pace, 4, 0, 1_500_000);
        assert!(!pace.should_wait(began + LONGEST_WAIT, BEHIND));
        // Not at once again, but after the child has caught up.
        assert!(!pace.should_wait(began + LONGEST_WAIT, BEHIND));
        assert!(!pace.should_wait(began + LONGEST_WAIT, AHEAD_BYTES));
        assert!(pace.should_wait(began + LONGEST_WAIT, BEHIND));
    }

    /// Catches a rule that for ever remembers one fast moment of a link.
    #[test]
    fn a_link_that_became_slow_is_remembered_as_slow() {
        let mut pace = Pace::default();
        windows(&mut pace, 1, 30_000_000, 3_000_000);
        assert!(!pace.should_wait(pace.began, BEHIND));
        windows(&mut pace, 60, 3_000_000, 3_000_000);
        assert!(pace.should_wait(pace.began, BEHIND));
    }
}
