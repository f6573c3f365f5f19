//! Random disturbances from a seed: always the same for the same seed, length and number of hosts. Pure.

use super::fault::{FaultPlan, Kind, Target};
use super::random::Random;

/// On average one disturbance in so many seconds.
const EVERY_SECONDS: f64 = 1.5;
/// Disturbances begin in this part of the time, so that the last are undone within it.
const WINDOW: std::ops::Range<f64> = 0.08..0.75;

/// Seconds since the start, and what happens then, in the order of time. Everything is undone again: at the end all nodes must be complete.
pub fn schedule(seed: u64, seconds: u64, hosts: usize) -> Vec<(f64, FaultPlan)> {
    let mut random = Random::new(seed);
    let seconds = seconds as f64;
    let count = (seconds * (WINDOW.end - WINDOW.start) / EVERY_SECONDS).ceil() as usize;
    let mut events: Vec<_> = (0..count)
        .map(|_| {
            let at = seconds * (WINDOW.start + random.share() * (WINDOW.end - WINDOW.start));
            (at, event(&mut random, hosts))
        })
        .collect();
    events.sort_by(|a, b| a.0.total_cmp(&b.0));
    events
}

fn event(random: &mut Random, hosts: usize) -> FaultPlan {
    let node = Target::Node(random.below(hosts as u64) as usize);
    let away = 0.3 + 2.7 * random.share();
    let (kind, target, seconds) = match random.below(20) {
        0..8 => (Kind::Kill, node, away),
        8..12 => (Kind::Stop, node, away),
        12..14 => (Kind::Link, node, 1.0),
        14 => (Kind::Link, node, 4.0),
        15..17 => (Kind::Slow, node, away),
        17 => (Kind::Kill, Target::Half, away),
        18 => (Kind::Kill, Target::Controller, away),
        _ => (Kind::Kill, Target::Origin, away),
    };
    FaultPlan { kind, target, percent: 0, seconds: Some((seconds * 100.0).round() / 100.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a schedule that differs from run to run, is the same for every seed, or ends too late to be undone.
    #[test]
    fn a_seed_is_a_schedule() {
        let first = schedule(1, 20, 15);
        assert_eq!(first, schedule(1, 20, 15));
        assert_ne!(first, schedule(2, 20, 15));
        assert!(first.len() >= 8 && first.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        assert!(first.iter().all(|(at, plan)| *at <= 15.0 && plan.seconds.is_some() && plan.check(15).is_ok()));
    }

    /// Catches a kind of disturbance that no seed ever brings.
    #[test]
    fn every_kind_comes_up() {
        let all: Vec<_> = (0..50).flat_map(|seed| schedule(seed, 20, 15)).map(|(_, plan)| plan).collect();
        for kind in [Kind::Kill, Kind::Stop, Kind::Link, Kind::Slow] {
            assert!(all.iter().any(|plan| plan.kind == kind), "{kind:?}");
        }
        for target in [Target::Half, Target::Controller, Target::Origin] {
            assert!(all.iter().any(|plan| plan.target == target), "{target:?}");
        }
    }
}
