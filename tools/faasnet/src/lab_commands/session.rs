//! A lab of one command: network and folder, made at its start and gone with it, whatever happens in between.

use std::future::Future;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use faasnet_lab::leftovers::Pinned;
use faasnet_lab::state::State;
use faasnet_lab::{LabId, Network, NetworkOptions, enter, leftovers};

use super::plan::Plan;

/// Threads that drive the experiment; the daemons have processes of their own.
const THREADS: usize = 2;

/// A network that is up, and a folder.
#[derive(Debug)]
pub struct Session {
    /// The hosts.
    pub network: Network,
    folder: PathBuf,
    open: bool,
}

/// What there is after a lab was taken down.
#[derive(Debug)]
pub struct Closed {
    /// The folder, if it was to be kept.
    pub kept: Option<PathBuf>,
    /// What should be gone, in words; must be empty.
    pub left: Vec<String>,
}

impl Session {
    /// Makes both. `stays`: for other commands to use, until `lab down`.
    pub fn open(plan: &Plan, stays: bool) -> Result<Self> {
        let id = plan.id.clone().unwrap_or_else(LabId::fresh);
        let folder = parent(plan.dir.as_deref())?.join(id.namespace("files"));
        let options = NetworkOptions { id: id.clone(), hosts: plan.hosts, rate: plan.rate(), mtu: plan.mtu };
        let cannot = || format!("cannot make {}; choose another place with --dir", folder.display());
        // A folder that was there before is not ours to remove.
        ensure!(!folder.exists(), "{}: it exists already", cannot());
        plan.check_room(&parent(plan.dir.as_deref())?)?;
        let session = Self { network: Network::up(options)?, folder: folder.clone(), open: true };
        // Noted before it is made: a crash in between leaves a note without a folder, not a folder without a note.
        State::update(&id, |state| {
            state.folder = Some(folder.clone());
            state.stays = stays;
            state.rate = plan.rate().to_string();
        })?;
        if let Err(error) = std::fs::create_dir(&folder) {
            State::update(&id, |state| state.folder = None)?;
            return Err(error).with_context(cannot);
        }
        Ok(session)
    }

    /// Where everything on disk is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs `work` on threads of the controller's host: what connects from there is on the lab's network, and so are its child processes
    /// unless they are sent elsewhere.
    pub async fn inside<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let runner = enter::spawn(&self.network.controller().namespace, move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
            let runtime = runtime.context("cannot start threads; is the limit of processes reached?")?;
            let outcome = runtime.block_on(work);
            runtime.shutdown_background();
            outcome
        })?;
        let joined = tokio::task::spawn_blocking(move || runner.join()).await.context("the experiment broke off")?;
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?
    }

    /// Takes everything down; with `keep`, all but the folder.
    pub fn close(mut self, keep: bool) -> Result<Closed> {
        self.open = false;
        let id = self.network.id();
        if keep {
            State::update(id, |state| state.folder = None)?;
        }
        // Afterwards nobody could tell which processes were the lab's.
        let pinned = Pinned::of(id)?;
        leftovers::remove(id)?;
        let processes = pinned.processes().into_iter().map(|pid| format!("process {pid}"));
        let mut left: Vec<String> = leftovers::namespaces(id)?.into_iter().chain(processes).collect();
        if !keep && self.folder.exists() {
            left.push(format!("folder {}", self.folder.display()));
        }
        Ok(Closed { kept: keep.then(|| self.folder.clone()), left })
    }
}

/// Where the folders of labs go, absolute.
pub fn parent(dir: Option<&Path>) -> Result<PathBuf> {
    let dir = dir.map_or_else(std::env::temp_dir, Path::to_owned);
    std::path::absolute(&dir).with_context(|| format!("cannot find {}", dir.display()))
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.open
            && let Err(error) = leftovers::remove(self.network.id())
        {
            tracing::warn!("{error}; remove the rest with: faasnet lab down {}", self.network.id());
        }
    }
}
