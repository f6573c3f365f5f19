//! What both BitTorrent systems need: the file that describes the blob (BEP 3).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use super::relay::BLOB;
use super::stage::Stage;
use super::{Job, Settings};
use crate::LabError;
use crate::error::Result;
use crate::network::Host;

/// Where clients listen for each other.
pub(super) const PORT: u16 = 6881;
/// The setting that says how much of the file has one hash.
const HASHED_KIB: &str = "hashed KiB";

/// The description of a file.
pub(super) struct Torrent {
    pub(super) path: PathBuf,
    /// What trackers know it by, in hexadecimal digits.
    pub(super) id: String,
}

/// Writes the description of the job's blob; hosts ask `tracker`, if there is one, for each other.
pub(super) fn describe(job: &Job<'_>, settings: &Settings, tracker: Option<&str>) -> Result<Torrent> {
    let kib: usize = settings.get(HASHED_KIB).parse().unwrap_or(1024);
    let hashes = hashes(job.blob, kib << 10).map_err(LabError::io(format!("cannot read {}", job.blob.display())))?;
    let mut text = b"d".to_vec();
    if let Some(tracker) = tracker {
        text.extend(format!("8:announce{}:{tracker}", tracker.len()).bytes());
    }
    let (bytes, length) = (job.bytes, kib << 10);
    text.extend(b"4:info");
    let info = text.len();
    text.extend(format!("d6:lengthi{bytes}e4:name{}:{BLOB}12:piece lengthi{length}e", BLOB.len()).bytes());
    text.extend(format!("6:pieces{}:", hashes.len()).bytes());
    text.extend(hashes);
    text.push(b'e');
    let id =
        digest(&SHA1_FOR_LEGACY_USE_ONLY, &text[info..]).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    text.push(b'e');
    let path = job.folder.join("blob.torrent");
    std::fs::write(&path, text).map_err(LabError::io(format!("cannot write {}", path.display())))?;
    Ok(Torrent { path, id })
}

/// The folder into which `host` receives.
pub(super) fn target(stage: &Stage<'_>, host: &Host) -> Result<PathBuf> {
    stage.folder(host, "got")
}

/// The folder that has the blob already.
pub(super) fn source<'a>(job: &Job<'a>) -> &'a Path {
    job.blob.parent().unwrap_or(Path::new("/"))
}

fn hashes(path: &Path, length: usize) -> std::io::Result<Vec<u8>> {
    let (mut file, mut buffer, mut hashes) = (File::open(path)?, Vec::with_capacity(length), Vec::new());
    loop {
        buffer.clear();
        if file.by_ref().take(length as u64).read_to_end(&mut buffer)? == 0 {
            return Ok(hashes);
        }
        hashes.extend_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, &buffer).as_ref());
    }
}
