//! `faasnet demo`: the whole system on one machine, without root: a registry, a controller and agents as processes of their own, a real
//! image, and a check of every byte on every node's disk that does not trust the nodes.
//!
//! Nothing is left behind, whether it succeeds, fails or is interrupted, except with `--keep`.

pub mod files;
pub mod report;
pub mod source;
pub mod stages;
pub mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{DemoArgs, Global};
use crate::{daemon, output};
use report::Report;
use stages::Demo;

/// Exit code after an interruption, as shells expect it.
const INTERRUPTED: u8 = 130;
/// How long the folder may resist being removed: a thread that was building the image may still be writing into it.
const REMOVE_DEADLINE: Duration = Duration::from_secs(10);

/// Runs the demo. The exit code is a failure unless every node holds every byte.
pub async fn run(global: &Global, args: DemoArgs) -> Result<ExitCode> {
    let folder = Folder::create(args.dir.as_deref(), args.keep)?;
    let interrupted = interruption()?;
    let mut demo = Demo::new(global, args, folder.path().to_owned())?;
    let outcome = tokio::select! {
        outcome = demo.run() => Some(outcome),
        () = interrupted => None,
    };
    let stopped = demo.stop().await;
    let kept = folder.finish()?;
    stopped?;
    match outcome {
        Some(outcome) => finish(global, outcome?, kept),
        None => {
            eprintln!(
                "interrupted: the processes are stopped{}",
                if kept.is_some() { "" } else { ", the files removed" }
            );
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}

fn finish(global: &Global, mut report: Report, kept: Option<PathBuf>) -> Result<ExitCode> {
    report.dir = kept;
    match global.json {
        true => output::json(&report)?,
        false => output::line(report.text())?,
    }
    Ok(if report.verified { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn interruption_or_hangup(shutdown: impl Future<Output = ()>, mut hangup: tokio::signal::unix::Signal) {
    tokio::select! {
        () = shutdown => {}
        _ = hangup.recv() => {}
    }
}

/// SIGINT, SIGTERM, or the terminal that goes away.
fn interruption() -> Result<impl Future<Output = ()>> {
    let hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
    Ok(interruption_or_hangup(daemon::shutdown(false)?, hangup))
}

/// The folder that holds everything.
struct Folder {
    dir: TempDir,
    keep: bool,
}

impl Folder {
    fn create(parent: Option<&Path>, keep: bool) -> Result<Self> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let dir = tempfile::Builder::new().prefix("faasnet-demo-").tempdir_in(&parent);
        let dir =
            dir.with_context(|| format!("cannot make a folder in {}; choose another with --dir", parent.display()))?;
        Ok(Self { dir, keep })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Keeps or removes the folder; returns its path when it is kept.
    fn finish(self) -> Result<Option<PathBuf>> {
        if self.keep {
            return Ok(Some(self.dir.keep()));
        }
        let path = self.dir.path().to_owned();
        let deadline = Instant::now() + REMOVE_DEADLINE;
        loop {
            match std::fs::remove_dir_all(&path) {
                Ok(()) => return Ok(None),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(_) if Instant::now() < deadline => std::thread::yield_now(),
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot remove {}; remove it by hand", path.display()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a demo that leaves its folder behind, or removes it although it was told not to.
    #[test]
    fn the_folder_goes_unless_it_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::create(Some(parent.path()), false).unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        assert_eq!(folder.finish().unwrap(), None);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
        let kept = Folder::create(Some(parent.path()), true).unwrap().finish().unwrap().unwrap();
        assert!(kept.is_dir());
        assert!(Folder::create(Some(Path::new("/no/such/folder")), false).is_err());
    }
}
