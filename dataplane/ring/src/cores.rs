//! On which cores a thread runs.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores on which the calling thread may run, in order.
pub fn allowed() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

/// Keeps the calling thread on one core. Call it before a driver is made: the kernel's threads of a ring stay where its maker was.
pub fn stay_on(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a thread that is said to be pinned and is not.
    #[test]
    fn a_pinned_thread_stays() {
        let last = *allowed().unwrap().last().unwrap();
        let pinned = std::thread::spawn(move || {
            stay_on(last).unwrap();
            allowed().unwrap()
        });
        assert_eq!(pinned.join().unwrap(), [last]);
    }
}
