//! How fast bytes flow along each edge: from two reports of the node at its lower end.
//!
//! Pure.

use faasnet_api::v1;

/// Reports closer together than this say nothing about a rate; the last one stands.
const WINDOW_MS: u64 = 100;

/// Puts the rate of each upstream into `progress`, which was reported `elapsed_ms` after `before`. A node that does not fetch receives
/// nothing; neither does it in its first report, as nobody knows since when it counts.
pub(super) fn put(before: Option<&v1::FunctionProgress>, elapsed_ms: u64, progress: &mut v1::FunctionProgress) {
    let fetching = progress.state() == v1::FunctionState::Fetching;
    let before = before.filter(|before| fetching && before.image_id == progress.image_id);
    for used in &mut progress.upstreams {
        let known = before.and_then(|before| {
            before.upstreams.iter().find(|old| (old.stripe, &old.node_id) == (used.stripe, &used.node_id))
        });
        used.bytes_per_second = match (before, known) {
            (None, _) => 0,
            (Some(_), Some(old)) if elapsed_ms < WINDOW_MS => old.bytes_per_second,
            (Some(_), old) => {
                let bytes = used.bytes.saturating_sub(old.map_or(0, |old| old.bytes));
                bytes.saturating_mul(1_000) / elapsed_ms.max(WINDOW_MS)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: v1::FunctionState, bytes: &[u64]) -> v1::FunctionProgress {
        let used = |(stripe, bytes): (u32, &u64)| v1::UpstreamUse { stripe, bytes: *bytes, ..Default::default() };
        let upstreams = (0..).zip(bytes).map(used).collect();
        v1::FunctionProgress { state: state.into(), upstreams, ..Default::default() }
    }

    fn rates(before: Option<&v1::FunctionProgress>, elapsed_ms: u64, mut now: v1::FunctionProgress) -> Vec<u64> {
        put(before, elapsed_ms, &mut now);
        now.upstreams.iter().map(|used| used.bytes_per_second).collect()
    }

    /// Catches a rate that is the total, that goes on after the end, or that jumps when two reports come at once.
    #[test]
    fn rates_are_differences_over_time() {
        use v1::FunctionState::{Complete, Fetching};
        let mut first = report(Fetching, &[1_000, 50]);
        assert_eq!(rates(None, 0, first.clone()), [0, 0]);
        assert_eq!(rates(Some(&first), 500, report(Fetching, &[2_000, 50, 10])), [2_000, 0, 20]);
        first.upstreams[0].bytes_per_second = 7;
        assert_eq!(rates(Some(&first), 1, report(Fetching, &[9_000, 50])), [7, 0]);
        assert_eq!(rates(Some(&first), 500, report(Complete, &[2_000, 50])), [0, 0]);
        // A node that began again counts from nothing.
        assert_eq!(rates(Some(&first), 500, report(Fetching, &[10, 50])), [0, 0]);
    }
}
