//! The data file of an image, open once for everybody and once more for direct writes.
//!
//! Owned by the image. Says where a write may go; the worker's ring writes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use faasnet_ring::file::{self, DIRECT_ALIGN_BYTES, open_direct};

use crate::WriteMode;
use crate::release::Overdue;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct DataFile {
    cached: Arc<File>,
    direct: Option<Arc<File>>,
    /// A direct write was refused for its form: the file system lets the file be opened so and not be written so.
    refused: AtomicBool,
    /// The kernel has told once that bytes did not reach the disk; it does not tell the next who asks.
    lost: AtomicBool,
    /// For whoever keeps the page cache within a budget.
    overdue: Overdue,
}

impl DataFile {
    /// Takes the open file at `path`, and opens it for direct writes unless `mode` forbids them. A file system that cannot do those
    /// costs a line in the log.
    pub(crate) fn new(cached: File, path: &Path, mode: WriteMode) -> Self {
        let direct = match mode {
            WriteMode::Buffered => None,
            WriteMode::Auto | WriteMode::Direct => {
                let opened = open_direct(path);
                opened.inspect_err(explain).ok().map(Arc::new)
            }
        };
        let (refused, lost) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { cached: Arc::new(cached), direct, refused, lost, overdue: Overdue::default() }
    }

    /// The file through the page cache.
    pub(crate) fn cached(&self) -> &Arc<File> {
        &self.cached
    }

    /// The file past the page cache, if these bytes can be written that way.
    pub(crate) fn direct(&self, offset: u64, len: u64) -> Option<&Arc<File>> {
        let aligned = offset.is_multiple_of(DIRECT_ALIGN_BYTES) && len.is_multiple_of(DIRECT_ALIGN_BYTES);
        self.direct.as_ref().filter(|_| aligned && !self.refused.load(Ordering::Relaxed))
    }

    /// Whether a direct write that failed with `error` is to be done through the page cache instead. If so, all later ones are.
    pub(crate) fn gives_up_direct(&self, error: &io::Error) -> bool {
        let refused = matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported);
        if refused && !self.refused.swap(true, Ordering::Relaxed) {
            explain(error);
        }
        refused
    }

    /// Waits until everything that was written is on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.cached.sync_data()?;
        match self.lost.load(Ordering::Acquire) {
            true => Err(io::Error::other("blocks did not reach the disk; look for its errors in the kernel's log")),
            false => Ok(()),
        }
    }

    /// What could not be noted for release in time.
    pub(crate) fn overdue(&self) -> &Overdue {
        &self.overdue
    }

    /// Has the kernel begin to write these bytes to the disk.
    pub(crate) fn begin_write_back(&self, range: Range<u64>) {
        self.note(file::begin_write_back(&self.cached, range));
    }

    /// Waits until these bytes are on the disk and takes them out of the page cache.
    pub(crate) fn release(&self, range: Range<u64>) {
        self.note(file::release(&self.cached, range));
    }

    fn note(&self, result: io::Result<()>) {
        if let Err(error) = result
            && !self.lost.swap(true, Ordering::AcqRel)
        {
            tracing::error!(%error, "stored blocks did not reach the disk");
        }
    }
}

fn explain(error: &io::Error) {
    tracing::warn!(
        %error,
        "the store's file system refuses direct writes; blocks go through the page cache, which costs CPU and memory (store_write = buffered says that this is meant)"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a file system that takes direct writes back at the first one and is asked again and again, or a full disk that is taken
    /// for that.
    #[test]
    fn only_a_refusal_ends_direct_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let data = DataFile::new(File::create_new(&path).unwrap(), &path, WriteMode::Direct);
        if data.direct(0, 4096).is_none() {
            eprintln!("SKIPPED: the file system of {} has no direct writes", path.display());
            return;
        }
        assert!(data.direct(0, 4095).is_none() && data.direct(512, 4096).is_none(), "not whole pages");
        assert!(!data.gives_up_direct(&io::Error::from_raw_os_error(28)), "ENOSPC");
        assert!(data.direct(0, 4096).is_some());
        assert!(data.gives_up_direct(&io::Error::from_raw_os_error(22)), "EINVAL");
        assert!(data.direct(0, 4096).is_none());
    }
}
