//! What both BitTorrent systems need: the file that describes the blob (BEP 3).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use super::{BLOB, Job, Settings};
use crate::LabError;
use crate::error::Result;

/// Where clients listen for each other.
pub(super) const PORT: u16 = 6881;
/// The setting that says how much of the file has one hash.
pub(super) const HASHED_KIB: &str = "hashed KiB";

/// The description of a file.
pub(super) struct Torrent {
    pub(super) path: PathBuf,
    /// What trackers know it by, in hexadecimal digits.
    pub(super) id: String,
}

/// Writes the description of the job's blob; hosts ask `tracker`, if there is one, for each other.
pub(super) fn describe(job: &Job<'_>, settings: &Settings, tracker: Option<&str>) -> Result<Torrent> {
    let kib: u64 = settings.get(HASHED_KIB).parse().expect("sweeps have whole numbers of KiB");
    let hashes = hashes(job.blob, kib << 10).map_err(LabError::io(format!("cannot read {}", job.blob.display())))?;
    let info = info(job.bytes, kib << 10, &hashes);
    let announce = tracker.map(|tracker| format!("8:announce{}:{tracker}", tracker.len())).unwrap_or_default();
    let text = [b"d", announce.as_bytes(), b"4:info", &info, b"e"].concat();
    let path = job.folder.join("blob.torrent");
    std::fs::write(&path, text).map_err(LabError::io(format!("cannot write {}", path.display())))?;
    Ok(Torrent { path, id: id(&info) })
}

/// The folder that has the blob already.
pub(super) fn source<'a>(job: &Job<'a>) -> &'a Path {
    job.blob.parent().unwrap_or(Path::new("/"))
}

/// The part that the id is computed from.
fn info(bytes: u64, length: u64, hashes: &[u8]) -> Vec<u8> {
    let name = BLOB.len();
    let head = format!("d6:lengthi{bytes}e4:name{name}:{BLOB}12:piece lengthi{length}e6:pieces{}:", hashes.len());
    [head.as_bytes(), hashes, b"e"].concat()
}

fn id(info: &[u8]) -> String {
    digest(&SHA1_FOR_LEGACY_USE_ONLY, info).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One after the other, of every `length` bytes and of what remains.
fn hashes(path: &Path, length: u64) -> std::io::Result<Vec<u8>> {
    let (mut file, mut buffer, mut hashes) = (File::open(path)?, Vec::new(), Vec::new());
    loop {
        buffer.clear();
        if file.by_ref().take(length).read_to_end(&mut buffer)? == 0 {
            return Ok(hashes);
        }
        hashes.extend_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, &buffer).as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches descriptions that clients refuse and ids that the tracker does not know; the id is what libtorrent 2.0.8 computes.
    #[test]
    fn the_id_is_that_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blob");
        std::fs::write(&path, "abc").unwrap();
        let hashes = hashes(&path, 16 << 10).unwrap();
        assert_eq!(id(&info(3, 16 << 10, &hashes)), "c893a13c43fbabff9c89db76c56dabcb9b7d4b46");
        std::fs::write(&path, [0; 5]).unwrap();
        assert_eq!(super::hashes(&path, 2).unwrap().len(), 3 * 20);
    }
}
