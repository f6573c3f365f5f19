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
        Self { begin: Instant::now(), before: waited() }
    }

    /// Ends.
    pub fn finish(self) -> SchedulingDelay {
        let waited = self.before.zip(waited()).map(|(before, after)| after.saturating_sub(before));
        SchedulingDelay {
            seconds: self.begin.elapsed().as_secs_f64(),
            waited_seconds: waited.map(|nanos| nanos as f64 / 1e9),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
        }
    }
}

/// By the processors' counters; where the kernel has none (no CONFIG_SCHEDSTATS), by those of all threads. The latter miss threads that
/// end meanwhile.
fn waited() -> Option<u64> {
    waited_nanos(&fs::read_to_string("/proc/schedstat").unwrap_or_default()).or_else(waited_by_threads)
}

fn waited_by_threads() -> Option<u64> {
    let numbers = |folder: &str| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).collect::<Vec<_>>()
    };
    let threads = numbers("/proc").into_iter().flat_map(|pid| {
        let folder = format!("/proc/{pid}/task");
        numbers(&folder).into_iter().map(move |thread| format!("{folder}/{thread}/schedstat"))
    });
    // What a thread ran, what it waited (ns), how often.
    let waited =
        threads.filter_map(|path| fs::read_to_string(path).ok()?.split_whitespace().nth(1)?.parse::<u64>().ok());
    waited.fold(None, |sum, nanos| Some(sum.unwrap_or(0) + nanos))
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
