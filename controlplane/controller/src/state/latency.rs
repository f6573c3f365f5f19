//! How long nodes take from the wish that they hold a function until they hold it: per member for people, as a histogram for metrics.

use faasnet_api::v1;

use super::function::Member;
use super::io::Now;

/// Upper bounds of the histogram's buckets, in milliseconds; one more holds the rest.
pub const BOUNDS_MS: [u64; 12] = [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 1_800_000];

/// Counts of latencies, each in the first bucket that it fits in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    /// One per bound, and one for what is above all of them.
    pub buckets: [u64; BOUNDS_MS.len() + 1],
    /// All of them added up.
    pub sum_ms: u64,
}

impl Histogram {
    fn observe(&mut self, ms: u64) {
        let bucket = BOUNDS_MS.iter().position(|bound| ms <= *bound).unwrap_or(BOUNDS_MS.len());
        self.buckets[bucket] += 1;
        self.sum_ms = self.sum_ms.saturating_add(ms);
    }
}

impl Member {
    /// Somebody wishes that the node holds the function, which it does not do yet.
    pub(super) fn asked_for(&mut self, now: Now) {
        if !self.is_complete() && self.asked_ms.is_none() {
            (self.asked_ms, self.queued_ms) = (Some(now.ms), None);
        }
    }

    /// Completes a report with what only the controller knows, and counts the provision if it ended with this report.
    pub(super) fn take_story(&mut self, now: Now, progress: &mut v1::FunctionProgress, latencies: &mut Histogram) {
        let Some(asked_ms) = self.asked_ms else {
            return put(progress, self.queued_ms);
        };
        if progress.elapsed_us > 0 {
            let began_ms = now.ms.saturating_sub(progress.elapsed_us / 1_000);
            self.queued_ms.get_or_insert(began_ms.saturating_sub(asked_ms));
        }
        put(progress, self.queued_ms);
        if progress.state() == v1::FunctionState::Complete {
            self.asked_ms = None;
            latencies.observe(now.ms.saturating_sub(asked_ms));
        }
    }
}

fn put(progress: &mut v1::FunctionProgress, queued_ms: Option<u64>) {
    if let (Some(story), Some(queued_ms)) = (&mut progress.story, queued_ms) {
        story.queued_us = queued_ms.saturating_mul(1_000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: v1::FunctionState, elapsed_ms: u64) -> v1::FunctionProgress {
        let story = Some(v1::PullStory::default());
        v1::FunctionProgress { state: state.into(), elapsed_us: elapsed_ms * 1_000, story, ..Default::default() }
    }

    fn at(ms: u64) -> Now {
        Now { ms, unix_s: 0 }
    }

    /// Catches a provision that is counted with every heartbeat, a latency without the time in the queue, and a later wish for
    /// what is held already.
    #[test]
    fn a_provision_counts_once_with_its_queue() {
        let (mut member, mut latencies) = (Member::default(), Histogram::default());
        member.asked_for(at(1_000));
        member.asked_for(at(1_500));
        let mut first = report(v1::FunctionState::Fetching, 100);
        member.take_story(at(1_300), &mut first, &mut latencies);
        assert_eq!((first.story.unwrap().queued_us, latencies.sum_ms), (200_000, 0));
        for now in [3_000, 8_000] {
            let mut last = report(v1::FunctionState::Complete, 1_700);
            member.take_story(at(now), &mut last, &mut latencies);
            assert_eq!(last.story.clone().unwrap().queued_us, 200_000);
            member.progress = Some(last);
            member.asked_for(at(now));
        }
        assert_eq!((latencies.buckets[5], latencies.buckets.iter().sum::<u64>(), latencies.sum_ms), (1, 1, 2_000));
    }

    /// Catches a latency that falls out of the histogram.
    #[test]
    fn the_last_bucket_takes_the_rest() {
        let mut latencies = Histogram::default();
        latencies.observe(u64::MAX);
        latencies.observe(50);
        latencies.observe(51);
        assert_eq!((latencies.buckets[0], latencies.buckets[1], latencies.buckets[12]), (1, 1, 1));
    }
}
