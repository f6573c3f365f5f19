//! Who may use a state directory: one process at a time, also while there is no database in it or another one takes its place.
//!
//! The database locks its own file, but an import replaces that file.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::StoreError;

/// Stays in the directory; what counts is who holds it.
const LOCK: &str = "controller.lock";

/// See the module's documentation; given back when dropped.
#[derive(Debug)]
pub(super) struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes the directory, which is made if it is not there.
    pub(super) fn take(directory: &Path) -> Result<Self, StoreError> {
        let unusable = |source| StoreError::Directory { path: directory.into(), source };
        fs::create_dir_all(directory).map_err(unusable)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(directory.join(LOCK)).map_err(unusable)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(Errno::WOULDBLOCK) => Err(StoreError::InUse(directory.into())),
            Err(error) => Err(unusable(error.into())),
        }
    }
}
