//! A lab of one command: network and folder, made at its start and gone with it, whatever happens in between.

use std::future::Future;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
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

impl Session {
    /// Makes both. `stays`: for other commands to use, until `lab down`.
    pub fn open(plan: &Plan, stays: bool) -> Result<Self> {
        let id = plan.id.clone().unwrap_or_else(LabId::fresh);
        let parent = plan.dir.clone().unwrap_or_else(std::env::temp_dir);
        let parent = std::path::absolute(&parent).with_context(|| format!("cannot find {}", parent.display()))?;
        let folder = parent.join(id.namespace("files"));
        let options = NetworkOptions { id: id.clone(), hosts: plan.hosts, rate: plan.rate(), mtu: plan.mtu };
        let session = Self { network: Network::up(options)?, folder, open: true };
        std::fs::create_dir(&session.folder)
            .with_context(|| format!("cannot make {}; choose another place with --dir", session.folder.display()))?;
        // Noted only now: a folder that was there before is not ours to remove.
        State::update(&id, |state| {
            state.folder = Some(session.folder.clone());
            state.stays = stays;
            state.rate = plan.rate().to_string();
        })?;
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

    /// Takes everything down; with `keep`, all but the folder, which is returned.
    pub fn close(mut self, keep: bool) -> Result<Option<PathBuf>> {
        self.open = false;
        if keep {
            State::update(self.network.id(), |state| state.folder = None)?;
        }
        leftovers::remove(self.network.id())?;
        Ok(keep.then(|| self.folder.clone()))
    }
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
