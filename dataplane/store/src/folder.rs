//! The store's folder: its lock, the node's identity in it, and the names of an image's files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use faasnet_api::{ImageId, NodeId};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::StoreError;

/// Names in `images` that begin with this are half made or half removed, and go when the store is opened.
const TEMPORARY: &str = ".";

/// A folder that this process alone uses while the value lives.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    node_id: NodeId,
    incarnation: u64,
    /// Holds the lock.
    _lock: File,
}

impl Folder {
    /// Makes the folder if needed, locks it, reads and raises the identity, and removes what an interrupted agent left half done.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Folder { path: path.into(), source };
        fs::create_dir_all(path.join("images")).map_err(failed)?;
        let lock = new_file_options().truncate(false).open(path.join("lock")).map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(StoreError::InUse(path.into())),
            Err(error) => return Err(failed(error.into())),
        }
        let (node_id, incarnation) = identity(&path.join("node"), path)?;
        let folder = Self { path: path.into(), node_id, incarnation, _lock: lock };
        folder.remove_temporary().map_err(failed)?;
        Ok(folder)
    }

    pub(crate) fn node_id(&self) -> NodeId {
        self.node_id
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of an image.
    pub(crate) fn image(&self, image: ImageId) -> PathBuf {
        self.images().join(image.to_string())
    }

    /// Where an image is made before it gets its name.
    pub(crate) fn unfinished(&self, image: ImageId) -> PathBuf {
        self.images().join(format!("{TEMPORARY}new-{image}"))
    }

    /// Where the bytes of an image go that is being registered: the `number`th since this start.
    pub(crate) fn staged(&self, number: u64) -> PathBuf {
        self.images().join(format!("{TEMPORARY}read-{number}"))
    }

    /// The images that have a folder here.
    pub(crate) fn list(&self) -> io::Result<Vec<ImageId>> {
        let names = fs::read_dir(self.images())?.map(|entry| Ok(entry?.file_name()));
        let names: io::Result<Vec<_>> = names.collect();
        Ok(names?.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// Removes an image's folder; files that are still open elsewhere go when they are closed.
    pub(crate) fn remove(&self, image: ImageId) -> io::Result<()> {
        let doomed = self.images().join(format!("{TEMPORARY}gone-{image}"));
        // Left by a removal that failed half way; a rename onto it would fail.
        remove_all(&doomed)?;
        // Renamed first: an image is there with all its files or not at all, whenever the process ends.
        match fs::rename(self.image(image), &doomed) {
            Ok(()) => fs::remove_dir_all(doomed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    fn remove_temporary(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.images())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Removes a folder with all that is in it; fine when it is not there.
fn remove_all(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Options for files that nobody but the agent reads: images are their tenants' property.
pub(crate) fn new_file_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    options
}

/// Reads the node's id and incarnation, makes them the first time, and raises the incarnation.
fn identity(file: &Path, folder: &Path) -> Result<(NodeId, u64), StoreError> {
    let failed = |source| StoreError::Folder { path: folder.into(), source };
    let damaged = || StoreError::NodeFile(file.into());
    let (node_id, last) = match fs::read_to_string(file) {
        Ok(text) => {
            let mut words = text.split_whitespace();
            let node_id = words.next().and_then(|word| word.parse().ok()).ok_or_else(damaged)?;
            let last: u64 = words.next().and_then(|word| word.parse().ok()).ok_or_else(damaged)?;
            (node_id, last)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (random_node_id().map_err(failed)?, 0),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(damaged()),
        Err(error) => return Err(failed(error)),
    };
    let incarnation = last.checked_add(1).ok_or_else(damaged)?;
    replace(file, format!("{node_id} {incarnation}\n").as_bytes()).map_err(failed)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok((node_id, incarnation))
}

fn random_node_id() -> io::Result<NodeId> {
    let mut id = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut id)?;
    Ok(NodeId(id))
}

/// Replaces a small file so that it is never seen half written.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = new_file_options().open(&new)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(new, path)
}
