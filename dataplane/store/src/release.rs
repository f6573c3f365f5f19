//! Takes blocks out of the page cache, oldest first, so that an image which is only passed through does not push out what the host's
//! functions use.
//!
//! A thread of the store, there only when a budget is set: waiting for the disk is its whole work. It never sees a block's bytes.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};

use crate::data::DataFile;

/// Ranges that may wait for the thread.
const QUEUE: usize = 1024;

/// The way to the thread; it ends when the last copy is gone.
#[derive(Debug, Clone)]
pub(crate) struct Releaser {
    queue: SyncSender<Cached>,
}

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
        let run = move || release_beyond(budget_bytes, &cached);
        std::thread::Builder::new().name("faasnet-cache".into()).spawn(run)?;
        Ok(Self { queue })
    }

    /// These bytes were written or read through the page cache. Never waits.
    pub(crate) fn note(&self, data: &Arc<DataFile>, range: Range<u64>) {
        // Ignored: a full queue means that the disk is far behind; what is not noted is left to the kernel.
        let _ = self.queue.try_send(Cached { data: Arc::downgrade(data), range });
    }
}

fn release_beyond(budget_bytes: u64, queue: &Receiver<Cached>) {
    let (mut held, mut held_bytes) = (VecDeque::new(), 0);
    for cached in queue {
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
