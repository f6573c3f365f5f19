//! The note that a lab leaves while it exists: `/run/faasnet-lab/<id>.json`. It tells which process owns it and which folder it uses.
//!
//! The note is written before anything is made, so whatever a crash leaves behind has one. Namespaces are found by their prefix even
//! without it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::LabError;
use crate::error::Result;
use crate::name::LabId;
use crate::process;

/// Where the notes are.
const FOLDER: &str = "/run/faasnet-lab";

/// One lab's note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The process that takes it down.
    pub owner: u32,
    /// When that process started, in clock ticks since boot: a later process with the same number is another one.
    pub owner_started: u64,
    /// The folder with its images, stores and logs.
    pub folder: Option<PathBuf>,
    /// Whether it was made by `lab up`, to stay until `lab down`.
    pub stays: bool,
    /// The rate of its links.
    pub rate: String,
}

impl State {
    /// Writes the first note, for this process; an error when there is one, or when namespaces of that name exist. Whoever makes namespaces
    /// of a lab claims its name first: only then do others see that it is in use.
    pub fn claim(id: &LabId) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(FOLDER)
            .map_err(LabError::io(format!("cannot make {FOLDER}")))?;
        if !crate::leftovers::namespaces(id)?.is_empty() {
            return Err(LabError::Exists(id.to_string()));
        }
        let owner = std::process::id();
        let state = Self {
            owner,
            owner_started: process::started(owner).unwrap_or_default(),
            folder: None,
            stays: false,
            rate: String::new(),
        };
        state.place(&path(id), id)
    }

    /// Writes the note whole or not at all: an empty one would say that the lab is somebody's without saying whose.
    fn place(&self, path: &Path, id: &LabId) -> Result<()> {
        let fresh = path.with_extension(format!("{}.new", self.owner));
        let text = self.encode()?;
        let write = || {
            fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?.write_all(&text)?;
            fs::hard_link(&fresh, path)
        };
        let placed = write();
        // Ignored: it holds nothing that the note does not; `forget` removes it.
        let _ = fs::remove_file(&fresh);
        placed.map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => LabError::Exists(id.to_string()),
            _ => LabError::io(format!("cannot write {}", path.display()))(error),
        })
    }

    /// The note of `id`, if there is one that can be read.
    pub fn read(id: &LabId) -> Option<Self> {
        serde_json::from_slice(&fs::read(path(id)).ok()?).ok()
    }

    /// Changes the note of `id`.
    pub fn update(id: &LabId, change: impl FnOnce(&mut Self)) -> Result<()> {
        let path = path(id);
        let Some(mut state) = Self::read(id) else {
            return Err(LabError::Invalid(format!("{} is gone or damaged; see `faasnet lab down`", path.display())));
        };
        change(&mut state);
        // A crash between the two steps leaves the old note.
        let fresh = path.with_extension("new");
        fs::write(&fresh, state.encode()?)
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(LabError::io(format!("cannot write {}", path.display())))
    }

    /// Whether the process that owns it still runs.
    pub fn is_owned(&self) -> bool {
        process::started(self.owner) == Some(self.owner_started)
    }

    /// The labs that have a note.
    pub(crate) fn all() -> Vec<LabId> {
        let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
        entries.filter_map(|entry| id_of(&entry.path())).collect()
    }

    /// Removes the note; fine when there is none.
    pub(crate) fn forget(id: &LabId) -> Result<()> {
        // A crash may have left one that was not in place yet.
        let of_ours = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('.'));
            name.is_some_and(|(name, rest)| name == id.to_string() && rest.ends_with("new"))
        };
        let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in entries.filter(of_ours).chain([path(id)]) {
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(LabError::io(format!("cannot remove {}", path.display()))(error)),
            }
        }
        Ok(())
    }

    fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|error| LabError::Invalid(format!("the lab's note cannot be written: {error}")))
    }
}

fn path(id: &LabId) -> PathBuf {
    Path::new(FOLDER).join(format!("{id}.json"))
}

fn id_of(path: &Path) -> Option<LabId> {
    path.file_name()?.to_str()?.strip_suffix(".json")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a second owner that overwrites the first one's note, and a note that can be seen half written.
    #[test]
    fn a_note_is_placed_once_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (path, id) = (folder.path().join("a1.json"), "a1".parse::<LabId>().unwrap());
        let state = State { owner: 7, owner_started: 1, folder: None, stays: false, rate: String::new() };
        state.place(&path, &id).unwrap();
        let second = State { owner: 8, ..state.clone() }.place(&path, &id);
        assert!(matches!(second, Err(LabError::Exists(_))), "{second:?}");
        assert_eq!(serde_json::from_slice::<State>(&fs::read(&path).unwrap()).unwrap(), state);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a draft is left");
    }
}
