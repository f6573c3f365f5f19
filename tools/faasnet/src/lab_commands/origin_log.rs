//! What the lab's registry sent, by its own access log: exact, also for roots that were killed. Pure but for reading the file.

use std::path::Path;

use anyhow::{Context, Result};

use crate::demo::report::{BlobRead, OriginLog};

/// Reads the log as far as it is written: a read that is under way has no line yet.
pub fn read(path: &Path) -> Result<OriginLog> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let reads: Vec<BlobRead> = text.lines().filter_map(blob).collect();
    Ok(OriginLog { requests: reads.len() as u64, reads })
}

/// `time remote GET /v2/NAME/blobs/DIGEST RANGE STATUS BYTES`
fn blob(line: &str) -> Option<BlobRead> {
    let fields: Vec<&str> = line.split(' ').collect();
    let [_, _, "GET", path, range, _, bytes] = fields[..] else { return None };
    let (_, digest) = path.rsplit_once("/blobs/")?;
    let start = range.strip_prefix("bytes=").and_then(|range| range.split('-').next()?.parse().ok()).unwrap_or(0);
    Some(BlobRead { digest: digest.into(), start, bytes: bytes.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches ranges that are read as whole blobs, and manifests or HEADs that count as blobs.
    #[test]
    fn only_reads_of_blobs_count() {
        let lines = "t r GET /v2/a/b/blobs/sha256:1 bytes=5-9 206 5\nt r GET /v2/a/manifests/x - 200 7\n\
                     t r HEAD /v2/a/blobs/sha256:1 - 200 0\nt r GET /v2/a/blobs/sha256:2 - 200 3\nhalf a li";
        let reads: Vec<_> = lines.lines().filter_map(blob).collect();
        let read = |digest: &str, start, bytes| BlobRead { digest: digest.into(), start, bytes };
        assert_eq!(reads, [read("sha256:1", 5, 5), read("sha256:2", 0, 3)]);
    }
}
