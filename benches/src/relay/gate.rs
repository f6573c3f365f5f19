//! The start: origin, relay and children report ready, then all of them are let go at one moment.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ready: usize,
    opened: Option<Instant>,
}

/// Longer than any set-up takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

impl Gate {
    /// One more is ready.
    pub(crate) fn arrive(&self) {
        self.lock().ready += 1;
        self.changed.notify_all();
    }

    /// Waits until `count` are ready.
    pub(crate) fn wait_ready(&self, count: usize) -> Result<()> {
        let waiting = self.changed.wait_timeout_while(self.lock(), PATIENCE, |state| state.ready < count);
        let (state, timeout) = waiting.unwrap_or_else(PoisonError::into_inner);
        match timeout.timed_out() {
            true => bail!("only {} of {count} connections stood after {PATIENCE:?}", state.ready),
            false => Ok(()),
        }
    }

    /// Lets all of them go.
    pub(crate) fn open(&self) -> Instant {
        let now = Instant::now();
        self.lock().opened = Some(now);
        self.changed.notify_all();
        now
    }

    /// Waits for [`Gate::open`] up to `patience`; whether it came.
    pub(crate) fn wait_open(&self, patience: Duration) -> bool {
        let waiting = self.changed.wait_timeout_while(self.lock(), patience, |state| state.opened.is_none());
        waiting.unwrap_or_else(PoisonError::into_inner).0.opened.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
