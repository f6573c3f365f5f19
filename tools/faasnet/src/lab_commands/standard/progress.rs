//! What the terminal says while the set runs: which job, how it ended, and about how long the rest will take.

use std::time::Instant;

/// Of one command.
#[derive(Debug)]
pub(super) struct Progress {
    /// Of the jobs to run, in their order.
    expected: Vec<f64>,
    started: usize,
    spent: f64,
    since: Instant,
    failures: Vec<String>,
}

impl Progress {
    /// For jobs that are expected to take so many seconds.
    pub(super) fn new(expected: Vec<f64>) -> Self {
        Self { expected, started: 0, spent: 0.0, since: Instant::now(), failures: Vec::new() }
    }

    /// Says what there is to do.
    pub(super) fn begin(&self, all: usize) {
        let count = self.expected.len();
        let kept = match all - count {
            0 => String::new(),
            kept => format!(" ({kept} of {all} are kept or not asked for)"),
        };
        eprintln!("{count} experiments to run{kept}, about {}", duration(self.left()));
    }

    /// The next job begins.
    pub(super) fn next(&mut self, key: &str) {
        let left = duration(self.left());
        self.started += 1;
        self.since = Instant::now();
        eprintln!("[{}/{}] {key}, about {left} left", self.started, self.expected.len());
    }

    /// It ended.
    pub(super) fn finished(&mut self, summary: &str) {
        let took = self.since.elapsed().as_secs_f64();
        self.spent += took;
        eprintln!("        {summary} ({})", duration(took));
    }

    /// It could not be done.
    pub(super) fn failed(&mut self, key: &str, error: &str) {
        self.spent += self.since.elapsed().as_secs_f64();
        eprintln!("        FAILED: {error}");
        self.failures.push(format!("{key}: {error}"));
    }

    /// Jobs that could not be done, and why.
    pub(super) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// What the rest will take, on a machine as fast as it was so far.
    fn left(&self) -> f64 {
        let (done, rest) = self.expected.split_at(self.started.min(self.expected.len()));
        let done: f64 = done.iter().sum();
        let slower = if done > 0.0 { self.spent / done } else { 1.0 };
        rest.iter().sum::<f64>() * slower
    }
}

fn duration(seconds: f64) -> String {
    match seconds.round() as u64 {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches an estimate that does not learn from what was done, or counts what is done already.
    #[test]
    fn the_estimate_learns() {
        let mut progress = Progress::new(vec![10.0, 20.0, 30.0]);
        assert_eq!(progress.left(), 60.0);
        progress.next("a");
        progress.spent = 20.0;
        assert_eq!(progress.left(), 100.0);
        assert_eq!((duration(99.4), duration(121.0)), ("99 s".into(), "3 min".into()));
    }
}
