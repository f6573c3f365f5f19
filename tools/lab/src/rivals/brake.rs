//! Lets the owner of a lab forbid further processes on it: a delivery runs on a thread that cannot be stopped from outside.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by a delivery and whoever may end it early.
#[derive(Debug, Clone, Default)]
pub struct Brake(Arc<Mutex<bool>>);

impl Brake {
    /// From now on nothing is started; what was started before runs on, and is there for others to find.
    pub fn pull(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Starts something while nobody can pull.
    pub(super) fn unless_pulled<T>(&self, start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            true => Err(io::Error::new(io::ErrorKind::Interrupted, "the lab is being taken down")),
            false => start(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a process that is started after the lab was searched for processes.
    #[test]
    fn nothing_starts_after_the_pull() {
        let brake = Brake::default();
        assert_eq!(brake.clone().unless_pulled(|| Ok(1)).unwrap(), 1);
        brake.pull();
        assert!(brake.unless_pulled(|| Ok(1)).is_err());
    }
}
