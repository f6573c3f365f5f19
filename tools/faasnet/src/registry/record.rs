//! What the registry sent: counters, one record per blob read, and the access log.
//!
//! Bytes count when they are handed to the connection, not when they are asked for.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use serde::Serialize;

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RegistryStats {
    /// All requests.
    pub requests: u64,
    /// GETs of blobs, whatever the answer.
    pub blob_requests: u64,
    /// Body bytes of blobs handed to connections.
    pub blob_bytes_sent: u64,
    /// Body bytes of everything else.
    pub other_bytes_sent: u64,
}

/// One GET of a blob that was answered with (a part of) the blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlobRead {
    /// Which blob.
    pub digest: String,
    /// The bytes that the answer promised.
    pub range: Range<u64>,
    /// How many of them were handed to the connection so far, from the range's start on.
    pub bytes_sent: u64,
}

/// Shared by all requests.
#[derive(Debug)]
pub(super) struct Recorder {
    counted: Mutex<Counted>,
    log: Option<Mutex<LogFile>>,
    keep_reads: bool,
    pace: Option<Pace>,
}

#[derive(Debug, Default)]
struct Counted {
    stats: RegistryStats,
    reads: Vec<BlobRead>,
}

#[derive(Debug)]
enum LogFile {
    Stdout,
    File(File),
}

impl Recorder {
    pub(super) fn new(log: Option<&Path>, rate: Option<u64>, keep_reads: bool) -> Result<Self> {
        let open = |path: &Path| match path.to_str() {
            Some("-") => Ok(LogFile::Stdout),
            _ => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                file.map(LogFile::File).with_context(|| format!("cannot write the access log {}", path.display()))
            }
        };
        let log = log.map(open).transpose()?.map(Mutex::new);
        let pace = rate.filter(|&rate| rate > 0).map(|rate| Pace { rate, free_at: Mutex::new(Instant::now()) });
        Ok(Self { counted: Mutex::default(), log, keep_reads, pace })
    }

    pub(super) fn stats(&self) -> RegistryStats {
        self.counted().stats
    }

    pub(super) fn reads(&self) -> Vec<BlobRead> {
        self.counted().reads.clone()
    }

    /// How many bytes to send at once: few enough that a limited rate is smooth.
    pub(super) fn frame_bytes(&self) -> u64 {
        const FRAME_BYTES: u64 = 256 << 10;
        self.pace.as_ref().map_or(FRAME_BYTES, |pace| (pace.rate / 50).clamp(1 << 10, FRAME_BYTES))
    }

    /// Waits until `bytes` may be sent.
    pub(super) async fn pace(&self, bytes: u64) {
        if let Some(pace) = &self.pace {
            let wait = pace.reserve(bytes, Instant::now());
            tokio::time::sleep(wait).await;
        }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A rate over all connections: each frame takes the next free time.
#[derive(Debug)]
struct Pace {
    rate: u64,
    free_at: Mutex<Instant>,
}

impl Pace {
    fn reserve(&self, bytes: u64, now: Instant) -> Duration {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        // Unused time is lost, so that a pause is not followed by a burst.
        let start = (*free_at).max(now);
        *free_at = start + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        start - now
    }
}

/// One request, from its head to the last byte of its answer. Logs itself when dropped.
#[derive(Debug)]
pub(super) struct RequestRecord {
    recorder: Arc<Recorder>,
    remote: SocketAddr,
    method: String,
    path: String,
    range: Option<String>,
    status: u16,
    bytes_sent: u64,
    is_blob: bool,
    read: Option<usize>,
}

impl RequestRecord {
    pub(super) fn new(
        recorder: Arc<Recorder>,
        remote: SocketAddr,
        method: &str,
        path: &str,
        range: Option<&str>,
    ) -> Self {
        recorder.counted().stats.requests += 1;
        // Spaces would shift the columns of the log.
        let range = range.map(|range| range.split_whitespace().collect());
        let (method, path) = (method.into(), path.into());
        Self { recorder, remote, method, path, range, status: 0, bytes_sent: 0, is_blob: false, read: None }
    }

    pub(super) fn set_status(&mut self, status: u16) {
        self.status = status;
    }

    /// This is a GET of a blob.
    pub(super) fn is_blob_request(&mut self) {
        self.recorder.counted().stats.blob_requests += 1;
    }

    /// A part of a blob is about to be sent.
    pub(super) fn sends_blob(&mut self, digest: &str, range: Range<u64>) {
        self.is_blob = true;
        if self.recorder.keep_reads {
            let mut counted = self.recorder.counted();
            self.read = Some(counted.reads.len());
            counted.reads.push(BlobRead { digest: digest.into(), range, bytes_sent: 0 });
        }
    }

    /// Bytes were handed to the connection.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.bytes_sent += bytes;
        let mut counted = self.recorder.counted();
        if self.is_blob {
            counted.stats.blob_bytes_sent += bytes;
        } else {
            counted.stats.other_bytes_sent += bytes;
        }
        if let Some(read) = self.read.and_then(|read| counted.reads.get_mut(read)) {
            read.bytes_sent += bytes;
        }
    }

    pub(super) fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let Some(log) = &self.recorder.log else { return };
        let line = format!(
            "{} {} {} {} {} {} {}\n",
            humantime::format_rfc3339_millis(SystemTime::now()),
            self.remote,
            self.method,
            self.path,
            self.range.as_deref().unwrap_or("-"),
            self.status,
            self.bytes_sent,
        );
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        let written = match &mut *log {
            LogFile::Stdout => std::io::stdout().lock().write_all(line.as_bytes()),
            LogFile::File(file) => file.write_all(line.as_bytes()),
        };
        // Ignored: a full disk or closed pipe must not stop the transfers; the counters still count.
        let _ = written;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a rate that is exceeded by many small frames, and a pause that is caught up with a burst.
    #[test]
    fn the_pace_is_kept_over_all_frames() {
        let start = Instant::now();
        let pace = Pace { rate: 1000, free_at: Mutex::new(start) };
        assert_eq!(pace.reserve(500, start), Duration::ZERO);
        assert_eq!(pace.reserve(500, start), Duration::from_millis(500));
        assert_eq!(pace.reserve(1, start), Duration::from_millis(1000));
        let later = start + Duration::from_secs(60);
        assert_eq!(pace.reserve(1000, later), Duration::ZERO);
        assert_eq!(pace.reserve(1000, later), Duration::from_secs(1));
    }
}
