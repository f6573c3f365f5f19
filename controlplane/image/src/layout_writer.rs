//! Writes an OCI layout folder: blobs under their digests, then `index.json`, which makes the image visible.
//!
//! Never touches a folder that is neither empty nor a layout. What it wrote disappears again unless it is committed.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use faasnet_origin::manifest::{Link, OCI_INDEX, REF_NAME};
use faasnet_origin::{Layout, digest};
use serde::Serialize;

/// Why a layout could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayoutWriteError {
    #[error("{path} is neither empty nor an OCI layout ({reason}); choose another folder", path = path.display())]
    Foreign { path: PathBuf, reason: String },
    #[error("cannot write {path}: {cause}", path = path.display())]
    Write { path: PathBuf, cause: io::Error },
}

/// A layout that is being written. Dropped without [`LayoutWriter::commit`], it removes what it added.
#[derive(Debug)]
pub(crate) struct LayoutWriter {
    path: PathBuf,
    before: Vec<Link>,
    added: Mutex<Added>,
    next_file: AtomicU64,
    committed: bool,
}

#[derive(Debug, Default)]
struct Added {
    files: BTreeSet<PathBuf>,
    /// Outermost first.
    folders: Vec<PathBuf>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u32,
    media_type: &'a str,
    manifests: &'a [Link],
}

impl LayoutWriter {
    /// Prepares `path`: new, empty, or a layout to which an image is added.
    pub(crate) fn prepare(path: &Path) -> Result<Self, LayoutWriteError> {
        let before = existing(path)?;
        let mut added = Added::default();
        let blobs = path.join("blobs/sha256");
        for folder in blobs.ancestors().collect::<Vec<_>>().into_iter().rev() {
            if folder.as_os_str().is_empty() || folder.is_dir() {
                continue;
            }
            if let Err(cause) = fs::create_dir(folder) {
                remove(&added);
                return Err(LayoutWriteError::Write { path: folder.into(), cause });
            }
            added.folders.push(folder.into());
        }
        Ok(Self { path: path.into(), before, added: Mutex::new(added), next_file: AtomicU64::new(0), committed: false })
    }

    /// Opens a file for a blob whose digest is not known yet.
    pub(crate) fn blob(&self) -> Result<BlobFile<'_>, LayoutWriteError> {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        let path = self.path.join(format!("blobs/.partial-{}-{number}", std::process::id()));
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(|cause| LayoutWriteError::Write { path: path.clone(), cause })?;
        self.added().files.insert(path.clone());
        Ok(BlobFile { writer: self, path, file, hasher: digest::Hasher::default(), bytes: 0 })
    }

    /// Writes a small blob; its digest.
    pub(crate) fn put(&self, bytes: &[u8]) -> Result<String, LayoutWriteError> {
        let mut blob = self.blob()?;
        let path = blob.path.clone();
        blob.write_all(bytes).map_err(|cause| LayoutWriteError::Write { path, cause })?;
        Ok(blob.keep()?.0)
    }

    /// Makes the image visible under `tag`, in the place of an image that had the tag before.
    pub(crate) fn commit(mut self, mut image: Link, tag: &str) -> Result<(), LayoutWriteError> {
        image.annotations.insert(REF_NAME.into(), tag.into());
        let mut links = std::mem::take(&mut self.before);
        links.retain(|link| link.annotations.get(REF_NAME).is_none_or(|name| name != tag));
        links.push(image);
        let index = Index { schema_version: 2, media_type: OCI_INDEX, manifests: &links };
        self.write_file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        self.write_file("index.json", &to_json(&index))?;
        self.committed = true;
        Ok(())
    }

    /// Replaces a file in one step, so that a reader never sees half of it.
    fn write_file(&self, name: &str, bytes: &[u8]) -> Result<(), LayoutWriteError> {
        let path = self.path.join(name);
        let partial = self.path.join(format!(".{name}.partial-{}", std::process::id()));
        let is_new = !path.exists();
        self.added().files.insert(partial.clone());
        let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, &path));
        written.map_err(|cause| LayoutWriteError::Write { path: path.clone(), cause })?;
        let mut added = self.added();
        added.files.remove(&partial);
        if is_new {
            added.files.insert(path);
        }
        Ok(())
    }

    fn added(&self) -> std::sync::MutexGuard<'_, Added> {
        self.added.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LayoutWriter {
    fn drop(&mut self) {
        if !self.committed {
            remove(&self.added());
        }
    }
}

/// The images of a layout that is there already; none for a new or empty folder.
fn existing(path: &Path) -> Result<Vec<Link>, LayoutWriteError> {
    let foreign = |reason: String| LayoutWriteError::Foreign { path: path.into(), reason };
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(foreign(error.to_string())),
        Ok(true) => return Ok(Vec::new()),
        Ok(false) => {}
    }
    let layout = Layout::open(path).map_err(|error| foreign(error.to_string()))?;
    layout.index().map_err(|error| foreign(error.to_string()))
}

fn remove(added: &Added) {
    for file in &added.files {
        // Ignored: it may never have been created; whatever remains is in the folder that the user named.
        let _ = fs::remove_file(file);
    }
    for folder in added.folders.iter().rev() {
        // Ignored: somebody else may have put something there, which is not ours to remove.
        let _ = fs::remove_dir(folder);
    }
}

/// A value as JSON; the types written here have string keys and no floats, so it cannot fail.
pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|error| unreachable!("writing JSON cannot fail: {error}"))
}

/// A blob that is being written.
#[derive(Debug)]
pub(crate) struct BlobFile<'a> {
    writer: &'a LayoutWriter,
    path: PathBuf,
    file: File,
    hasher: digest::Hasher,
    bytes: u64,
}

impl BlobFile<'_> {
    /// Ends the blob and gives it the name of its digest; digest and bytes.
    pub(crate) fn keep(mut self) -> Result<(String, u64), LayoutWriteError> {
        let digest = std::mem::take(&mut self.hasher).finish();
        let hex = digest.trim_start_matches("sha256:");
        let target = self.writer.path.join("blobs/sha256").join(hex);
        let is_new = !target.exists();
        fs::rename(&self.path, &target).map_err(|cause| LayoutWriteError::Write { path: target.clone(), cause })?;
        let mut added = self.writer.added();
        added.files.remove(&self.path);
        if is_new {
            added.files.insert(target);
        }
        drop(added);
        Ok((digest, self.bytes))
    }

    /// The file's path until it is kept; for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The digest of what was written so far.
    pub(crate) fn digest(&self) -> String {
        self.hasher.clone().finish()
    }
}

impl Write for BlobFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
