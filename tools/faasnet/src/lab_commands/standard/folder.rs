//! The report's folder: one file of raw data per job, written whole or not at all.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::job::Job;
use super::perform::Found;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

/// One file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// What was asked for.
    job: Value,
    /// What came out.
    found: Found,
}

impl Folder {
    /// Makes it if needed.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()))?;
        std::fs::create_dir_all(path.join("raw"))
            .with_context(|| format!("cannot make {}; choose another folder", path.join("raw").display()))?;
        Ok(Self { path })
    }

    /// Where everything goes.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the job was done before, with the same settings.
    pub(super) fn holds(&self, job: &Job) -> bool {
        self.read(job).is_some()
    }

    /// What came out of the job; `None` when it was not done, or with other settings. A damaged file is as good as none.
    pub(super) fn read(&self, job: &Job) -> Option<Found> {
        self.kept(job).filter(|kept| kept.job == job.settings()).map(|kept| kept.found)
    }

    /// Whether the job was done with other settings: a new run would replace what somebody may still need.
    pub(super) fn holds_other(&self, job: &Job) -> bool {
        self.kept(job).is_some_and(|kept| kept.job != job.settings())
    }

    fn kept(&self, job: &Job) -> Option<Kept> {
        serde_json::from_slice(&std::fs::read(self.file(job)).ok()?).ok()
    }

    /// Keeps what came out.
    pub(super) fn keep(&self, job: &Job, found: Found) -> Result<()> {
        let path = self.file(job);
        let text = serde_json::to_vec(&Kept { job: job.settings(), found }).context("cannot encode the raw data")?;
        // An interruption between the two steps leaves what was there before.
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, text)
            .and_then(|()| std::fs::rename(&fresh, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn file(&self, job: &Job) -> PathBuf {
        self.path.join("raw").join(format!("{}.json", job.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab_commands::standard::job::{Set, Work};

    /// Catches a job that is run again although it was done, and one that is not although its settings or its file changed.
    #[test]
    fn a_job_is_done_with_its_settings() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let mut jobs = Set::quick().jobs();
        let job = jobs.iter_mut().find(|job| matches!(job.work, Work::Relay(_))).unwrap();
        assert!(!folder.holds(job));
        folder.keep(job, Found::default()).unwrap();
        assert!(folder.holds(job) && !folder.holds_other(job));
        if let Work::Relay(relay) = &mut job.work {
            relay.gib = 2.0;
        }
        assert!(!folder.holds(job) && folder.holds_other(job));
        folder.keep(job, Found::default()).unwrap();
        std::fs::write(dir.path().join("raw/relay.json"), "{\"job\":").unwrap();
        assert!(!folder.holds(job) && !folder.holds_other(job));
    }
}
