//! What a run looked like from outside: how many bytes each host had received and sent at each moment. Pure: samples in, answers out.

use serde::Serialize;

/// One moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that reached the host, headers included.
    pub received: u64,
    /// Bytes that left it.
    pub sent: u64,
}

/// Samples of all hosts, in the order of the network's hosts.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// Seconds since the recording began.
    pub seconds: Vec<f64>,
    /// Per host, one entry per moment.
    pub hosts: Vec<Vec<Traffic>>,
}

/// A time without bytes in the middle of a transfer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Stall {
    /// When it began, in seconds since the recording began.
    pub from: f64,
    /// How long it lasted.
    pub seconds: f64,
}

impl Recording {
    /// Bytes that `host` received and sent in the whole recording.
    pub fn total(&self, host: usize) -> Traffic {
        match self.hosts.get(host).and_then(|samples| Some((samples.first()?, samples.last()?))) {
            Some((first, last)) => Traffic { received: last.received - first.received, sent: last.sent - first.sent },
            None => Traffic::default(),
        }
    }

    /// The longest time between the first and the last real traffic of `host`, until `end`, in which it received fewer than
    /// `least_bytes_per_second`: acknowledgements and signs of life do not count as traffic.
    pub fn longest_stall(&self, host: usize, least_bytes_per_second: f64, end: f64) -> Stall {
        let Some(samples) = self.hosts.get(host) else { return Stall::default() };
        let mut longest = Stall::default();
        let mut last_flow = None;
        for at in 1..samples.len().min(self.seconds.len()) {
            let (from, to) = (self.seconds[at - 1], self.seconds[at]);
            if to > end {
                break;
            }
            let bytes = samples[at].received - samples[at - 1].received;
            if (bytes as f64) < least_bytes_per_second * (to - from) {
                continue;
            }
            if let Some(last) = last_flow.replace(to)
                && from - last > longest.seconds
            {
                longest = Stall { from: last, seconds: from - last };
            }
        }
        longest
    }

    /// The share of `bytes` that `host` had received at each moment, thinned out to about `points`.
    pub fn line(&self, host: usize, bytes: u64, points: usize) -> Vec<(f64, f64)> {
        let Some(samples) = self.hosts.get(host) else { return Vec::new() };
        let first = samples.first().map_or(0, |sample| sample.received);
        let step = (samples.len() / points.max(1)).max(1);
        let share = |sample: &Traffic| ((sample.received - first) as f64 / bytes.max(1) as f64).min(1.05);
        let all = self.seconds.iter().copied().zip(samples.iter().map(share));
        let last = all.clone().next_back();
        all.step_by(step).chain(last).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a stall that is missed, one that is seen where only the start or the end is quiet, and keep-alives taken for progress.
    #[test]
    fn only_gaps_within_the_flow_are_stalls() {
        let received = [0, 0, 100, 200, 201, 202, 203, 300, 400, 400, 400, 500];
        let recording = Recording {
            seconds: (0..received.len()).map(|at| at as f64).collect(),
            hosts: vec![received.iter().map(|bytes| Traffic { received: *bytes, sent: 0 }).collect()],
        };
        assert_eq!(recording.longest_stall(0, 50.0, 100.0), Stall { from: 3.0, seconds: 3.0 });
        assert_eq!(recording.longest_stall(0, 50.0, 3.0), Stall::default());
        assert_eq!(recording.longest_stall(0, 1.0, 100.0), Stall { from: 8.0, seconds: 2.0 });
        assert_eq!(recording.longest_stall(7, 1.0, 100.0), Stall::default());
        assert_eq!(recording.total(0), Traffic { received: 500, sent: 0 });
        assert_eq!(recording.line(0, 500, 4).last(), Some(&(11.0, 1.0)));
    }
}
