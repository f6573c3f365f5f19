//! Takes blocks out of the page cache, oldest first, so that an image which is only passed through does not push out what the host's
//! functions use.
//!
//! A thread of the store, there only when a budget is set: waiting for the disk is its whole work. It never sees a block's bytes.
//! Whoever notes a block never waits: where the thread is so far behind that its queue is full, each file gathers what was not queued as
//! one range, which the thread releases when it has caught up.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::data::DataFile;

/// Ranges that may wait for the thread.
const QUEUE: usize = 1024;

/// The way to the thread; it ends when the last copy is gone.
#[derive(Debug, Clone)]
pub(crate) struct Releaser {
    queue: SyncSender<Cached>,
    files: Files,
}

/// The files of open images. Locked when one is opened and when the thread has caught up; never where blocks are noted.
type Files = Arc<Mutex<Vec<Weak<DataFile>>>>;

/// Bytes of an image that went through the page cache. An image that is closed or removed is not held open by them.
#[derive(Debug)]
struct Cached {
    data: Weak<DataFile>,
    range: Range<u64>,
}

impl Releaser {
    /// Starts the thread: at most `budget_bytes` stay in the cache.
    pub(crate) fn start(budget_bytes: u64) -> io::Result<Self> {
        let (queue, cached) = sync_channel(QUEUE);
        let files = Files::default();
        let theirs = Arc::clone(&files);
        let run = move || release_beyond(budget_bytes, &cached, &theirs);
        std::thread::Builder::new().name("faasnet-cache".into()).spawn(run)?;
        Ok(Self { queue, files })
    }

    /// An image is opened; before any of its bytes is noted.
    pub(crate) fn watch(&self, data: &Arc<DataFile>) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|file| file.strong_count() > 0);
        files.push(Arc::downgrade(data));
    }

    /// These bytes were written or read through the page cache. Never waits.
    pub(crate) fn note(&self, data: &Arc<DataFile>, range: Range<u64>) {
        let cached = |range| Cached { data: Arc::downgrade(data), range };
        if self.queue.try_send(cached(range.clone())).is_err() {
            data.overdue().add(range);
            // Ignored: if the queue is still full, the thread finds what is overdue after what is in it; if not, this wakes it.
            let _ = self.queue.try_send(cached(0..0));
        }
    }
}

fn release_beyond(budget_bytes: u64, queue: &Receiver<Cached>, files: &Files) {
    let (mut held, mut held_bytes) = (VecDeque::new(), 0);
    loop {
        let cached = match queue.try_recv() {
            Ok(cached) => cached,
            Err(TryRecvError::Disconnected) => return release_overdue(files),
            Err(TryRecvError::Empty) => {
                release_overdue(files);
                let Ok(cached) = queue.recv() else { return release_overdue(files) };
                cached
            }
        };
        held_bytes += cached.bytes();
        cached.begin();
        held.push_back(cached);
        while held_bytes > budget_bytes
            && let Some(oldest) = held.pop_front()
        {
            held_bytes -= oldest.bytes();
            oldest.release();
        }
    }
}

/// More was noted than the queue holds, so the budget is long exceeded: what was not queued goes at once.
fn release_overdue(files: &Files) {
    let open: Vec<_> = {
        let files = files.lock().unwrap_or_else(PoisonError::into_inner);
        files.iter().filter_map(Weak::upgrade).collect()
    };
    for data in open {
        if let Some(range) = data.overdue().take() {
            data.release(range);
        }
    }
}

impl Cached {
    fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Has the kernel begin to write, so that `release` waits little.
    fn begin(&self) {
        if let Some(data) = self.data.upgrade() {
            data.begin_write_back(self.range.clone());
        }
    }

    fn release(&self) {
        if let Some(data) = self.data.upgrade() {
            data.release(self.range.clone());
        }
    }
}

/// What was to be queued and found no room: the smallest range of whole pages that holds all of it, in one word so that nobody waits.
#[derive(Debug)]
pub(crate) struct Overdue(AtomicU64);

/// First page above, last page below: pages of a file of up to 16 TiB.
const NOTHING: u64 = (u32::MAX as u64) << 32;
const PAGE: u64 = 4096;

impl Default for Overdue {
    fn default() -> Self {
        Self(AtomicU64::new(NOTHING))
    }
}

impl Overdue {
    fn add(&self, range: Range<u64>) {
        let page = |offset: u64| u32::try_from(offset / PAGE).unwrap_or(u32::MAX);
        let (first, end) = (page(range.start), page(range.end.saturating_add(PAGE - 1)));
        let widen = |word: u64| {
            let (from, to) = ((word >> 32) as u32, word as u32);
            Some(u64::from(from.min(first)) << 32 | u64::from(to.max(end)))
        };
        // Ignored: widening never declines.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, widen);
    }

    fn take(&self) -> Option<Range<u64>> {
        let word = self.0.swap(NOTHING, Ordering::AcqRel);
        (word != NOTHING).then(|| (word >> 32) * PAGE..u64::from(word as u32) * PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WriteMode;

    /// Catches a range that is lost or cut because another one was gathered before it.
    #[test]
    fn what_is_overdue_is_gathered() {
        let overdue = Overdue::default();
        assert_eq!(overdue.take(), None);
        overdue.add(8192..16384);
        overdue.add(1..4097);
        overdue.add(4096..8192);
        assert_eq!(overdue.take(), Some(0..16384));
        assert_eq!(overdue.take(), None);
        overdue.add(1 << 40..(1 << 40) + 1);
        assert_eq!(overdue.take(), Some(1 << 40..(1 << 40) + 4096));
    }

    /// Catches a block that stays in memory for good because the queue was full when it was noted, and one of a file that is noted by
    /// nothing else than that.
    #[test]
    fn a_full_queue_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name| {
            let path = dir.path().join(name);
            let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            Arc::new(DataFile::new(file, &path, WriteMode::Buffered))
        };
        let (other, late) = (open("other"), open("late"));
        let (queue, cached) = sync_channel(1);
        let releaser = Releaser { queue, files: Files::default() };
        releaser.watch(&other);
        releaser.watch(&late);
        std::os::unix::fs::FileExt::write_all_at(&**late.cached(), &[1; 64 << 10], 0).unwrap();
        releaser.note(&other, 0..4096);
        releaser.note(&late, 0..32 << 10);
        releaser.note(&late, 32 << 10..64 << 10);
        let files = Arc::clone(&releaser.files);
        drop(releaser);
        release_beyond(1 << 20, &cached, &files);
        assert_eq!(late.overdue().take(), None, "taken by the thread");
        match faasnet_ring::file::resident(late.cached(), 0, 64 << 10) {
            None => eprintln!("NOT COVERED: this kernel does not tell what is in the page cache"),
            Some(true) if rustix::fs::statfs(dir.path()).unwrap().f_type as i64 == 0x0102_1994 => {
                eprintln!("NOT COVERED: {} is memory", dir.path().display());
            }
            Some(resident) => assert!(!resident),
        }
    }
}
