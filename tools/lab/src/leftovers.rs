//! Finds and removes what labs made: by the notes, and by the prefix of names when a note is missing. Nothing without the prefix is touched.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::Result;
use crate::name::LabId;
use crate::state::State;
use crate::{LabError, enter, tool};

/// How long killed processes may take to vanish.
const DEADLINE: Duration = Duration::from_secs(10);

/// What exists of one lab.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Leftovers {
    /// Its namespaces.
    pub namespaces: Vec<String>,
    /// Processes in them.
    pub processes: Vec<u32>,
    /// Its folder.
    pub folder: Option<PathBuf>,
}

/// The namespaces of a lab, held open: their processes can be found also when their names are gone, and the kernel gives their numbers to no
/// other namespace meanwhile.
#[derive(Debug)]
pub struct Pinned(Vec<File>);

impl Pinned {
    /// Those that `id` has now.
    pub fn of(id: &LabId) -> Result<Self> {
        let open = |name: String| {
            let path = enter::path(&name);
            File::open(&path).map_err(LabError::io(format!("cannot open {}", path.display())))
        };
        namespaces(id)?.into_iter().map(open).collect::<Result<_>>().map(Self)
    }

    /// Processes of which the main thread is in one of them; never this one.
    pub fn processes(&self) -> Vec<u32> {
        processes_in(&self.0.iter().filter_map(|file| file.metadata().ok()).map(|found| number(&found)).collect())
    }
}

/// Every lab that there is anything of on this machine.
pub fn labs() -> Result<BTreeSet<LabId>> {
    let named = all_namespaces()?.into_iter().filter_map(|name| LabId::of(&name));
    Ok(named.chain(State::all()).collect())
}

/// What exists of `id`.
pub fn find(id: &LabId) -> Result<Leftovers> {
    let namespaces = namespaces(id)?;
    let folder = State::read(id).and_then(|state| state.folder).filter(|folder| is_ours(id, folder));
    Ok(Leftovers { processes: processes(&namespaces), namespaces, folder })
}

/// Ends the processes in the lab's namespaces, removes the namespaces (with them every interface), the folder and the note.
pub fn remove(id: &LabId) -> Result<Leftovers> {
    let found = find(id)?;
    end_processes(&found.namespaces)?;
    let lines: Vec<_> = found.namespaces.iter().map(|name| format!("netns delete {name}")).collect();
    if !lines.is_empty() {
        tool::batch("ip", None, &lines)?;
    }
    if let Some(folder) = &found.folder {
        remove_folder(folder)?;
    }
    State::forget(id)?;
    Ok(found)
}

/// The namespaces of `id`, sorted by name.
pub fn namespaces(id: &LabId) -> Result<Vec<String>> {
    let prefix = id.prefix();
    Ok(all_namespaces()?.into_iter().filter(|name| name.starts_with(&prefix)).collect())
}

/// The processes of which the main thread is in one of the namespaces; never this one.
pub fn processes(namespaces: &[String]) -> Vec<u32> {
    processes_in(&namespaces.iter().filter_map(|name| identity(&enter::path(name))).collect())
}

fn processes_in(wanted: &BTreeSet<(u64, u64)>) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id())
        // A process that ends while we look is none.
        .filter(|pid| identity(Path::new(&format!("/proc/{pid}/ns/net"))).is_some_and(|id| wanted.contains(&id)))
        .collect()
}

fn all_namespaces() -> Result<BTreeSet<String>> {
    let entries = match fs::read_dir(enter::NAMESPACES) {
        Ok(entries) => entries,
        // No namespace was ever made since the machine started.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(LabError::io(format!("cannot list {}", enter::NAMESPACES))(error)),
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn identity(namespace: &Path) -> Option<(u64, u64)> {
    fs::metadata(namespace).ok().map(|found| number(&found))
}

fn number(namespace: &fs::Metadata) -> (u64, u64) {
    (namespace.dev(), namespace.ino())
}

/// Ends every process in the namespaces and waits until they are gone.
pub(crate) fn end_processes(namespaces: &[String]) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = processes(namespaces);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(LabError::Late(format!("the processes {left:?} do not end; look at them with ps")));
        }
        for pid in left.iter().filter_map(|pid| Pid::from_raw(*pid as i32)) {
            // Ignored: it ended in the meantime, or the loop sees it again.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a folder is one that the lab made: a damaged note must not remove anything else.
fn is_ours(id: &LabId, folder: &Path) -> bool {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    folder.is_absolute() && name.starts_with(&id.prefix()) && folder.is_dir() && !folder.is_symlink()
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(LabError::io(format!("cannot remove {}", folder.display()))(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a damaged note that would make `lab down` remove a folder of somebody else.
    #[test]
    fn only_the_labs_own_folder_is_removed() {
        let id: LabId = "a1".parse().unwrap();
        let parent = tempfile::tempdir().unwrap();
        let ours = parent.path().join("fnlab-a1-files");
        let other = parent.path().join("home");
        fs::create_dir(&ours).unwrap();
        fs::create_dir(&other).unwrap();
        let link = parent.path().join("fnlab-a1-link");
        std::os::unix::fs::symlink(&other, &link).unwrap();
        assert!(is_ours(&id, &ours));
        assert!(!is_ours(&id, &other) && !is_ours(&id, &link) && !is_ours(&id, Path::new("fnlab-a1-x")));
        assert!(!is_ours(&"a".parse().unwrap(), &ours));
    }
}
