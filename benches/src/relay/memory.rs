//! The most memory of its own that a relay's process has while it works, seen from outside: it costs the relay nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use faasnet_lab::process;

/// Watches one process until it is asked.
pub(crate) struct Peak {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

/// Between two looks.
const EVERY: Duration = Duration::from_millis(10);

impl Peak {
    /// Watches `pid` from now on.
    pub(crate) fn of(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut peak = 0;
            while let Some(usage) = process::usage(pid).filter(|_| !stopped.load(Ordering::Relaxed)) {
                peak = usage.anonymous_bytes.max(peak);
                std::thread::sleep(EVERY);
            }
            peak
        });
        Self { stop, thread }
    }

    /// Bytes without file cache: RssAnon and RssShmem.
    pub(crate) fn bytes(self) -> Option<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().filter(|bytes| *bytes > 0)
    }
}
