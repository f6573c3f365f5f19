//! How long runnable tasks of the whole machine waited for a core: says how far a figure can be trusted.

use std::fs;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// A measurement under way.
#[derive(Debug)]
pub struct Scheduling {
    begin: Instant,
    before: Option<u64>,
}

/// What a measurement found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct SchedulingDelay {
    /// How long was measured.
    pub seconds: f64,
    /// The sum over all tasks of the time that they were runnable and waited; `None` where the kernel does not count it.
    pub waited_seconds: Option<f64>,
    /// The cores.
    pub cores: usize,
}

impl Scheduling {
    /// Begins.
    pub fn start() -> Self {
        Self { begin: Instant::now(), before: waited_nanos(&read()) }
    }

    /// Ends.
    pub fn finish(self) -> SchedulingDelay {
        let waited = self.before.zip(waited_nanos(&read())).map(|(before, after)| after.saturating_sub(before));
        SchedulingDelay {
            seconds: self.begin.elapsed().as_secs_f64(),
            waited_seconds: waited.map(|nanos| nanos as f64 / 1e9),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
        }
    }
}

fn read() -> String {
    fs::read_to_string("/proc/schedstat").unwrap_or_default()
}

/// The eighth number of each processor's line (Documentation/scheduler/sched-stats.rst).
fn waited_nanos(text: &str) -> Option<u64> {
    let cpus = text.lines().filter(|line| line.starts_with("cpu"));
    let waited: Option<Vec<u64>> = cpus.map(|line| line.split_whitespace().nth(8)?.parse().ok()).collect();
    waited.filter(|cpus| !cpus.is_empty()).map(|cpus| cpus.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches the wrong column: the seventh is time that tasks ran, not waited.
    #[test]
    fn the_eighth_number_counts() {
        let text = "version 17\ntimestamp 1\ncpu0 0 0 0 0 0 0 70 8 9\ndomain0 x 1 2 3\ncpu1 0 0 0 0 0 0 70 80 9\n";
        assert_eq!(waited_nanos(text), Some(88));
        assert_eq!(waited_nanos(""), None);
    }
}
