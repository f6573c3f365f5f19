//! Changes of files: planned as whole texts, shown as a diff, made in one go and taken back when one of them fails.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use similar::TextDiff;

use super::host::Host;
use super::names::Registry;
use super::record::backup;

/// One file before and after; `None`: no such file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edit {
    /// Its path on the host.
    pub(super) path: PathBuf,
    /// How it is.
    pub(super) before: Option<String>,
    /// How it shall be.
    pub(super) after: Option<String>,
    /// Whether `before` shall be kept beside it.
    pub(super) keep_backup: bool,
}

/// What a runtime's part of the program wants done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The files, in the order in which they shall change.
    pub(super) edits: Vec<Edit>,
    /// What the user has to know.
    pub(super) notes: Vec<String>,
    /// What the user has to do.
    pub(super) next: Vec<String>,
    /// The registries that are asked through the mirror; none: all.
    pub(super) registries: Vec<Registry>,
    /// Where the runtime looks for hosts, if that is a folder.
    pub(super) folder: Option<PathBuf>,
    /// Registries that have a configuration of their own and are not named.
    pub(super) bystanders: Vec<String>,
}

/// What happens to a file, for people and programs.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Shown {
    /// Its path, with the prefix.
    pub(super) path: PathBuf,
    /// `created`, `changed` or `removed`.
    pub(super) action: &'static str,
    /// Where the earlier content is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backup: Option<PathBuf>,
    /// A unified diff.
    pub(super) diff: String,
}

impl Edit {
    /// A change of `path`; `None` when nothing changes.
    pub(super) fn of(path: &Path, before: Option<String>, after: Option<String>) -> Option<Self> {
        (before != after).then(|| Self { path: path.to_owned(), before, after, keep_backup: false })
    }

    /// What it does.
    pub(super) fn show(&self, host: &Host) -> Result<Shown> {
        let path = host.place(&self.path)?;
        let name = path.display().to_string();
        let (from, to) = (self.before.as_deref().unwrap_or_default(), self.after.as_deref().unwrap_or_default());
        let old = if self.before.is_some() { name.as_str() } else { "/dev/null" };
        let new = if self.after.is_some() { name.as_str() } else { "/dev/null" };
        let diff = TextDiff::from_lines(from, to).unified_diff().header(old, new).to_string();
        let action = match (&self.before, &self.after) {
            (None, _) => "created",
            (_, None) => "removed",
            _ => "changed",
        };
        Ok(Shown { backup: self.keep_backup.then(|| backup(&path)), path, action, diff })
    }

    fn make(&self, host: &Host) -> Result<Vec<PathBuf>> {
        if let Some(before) = self.before.as_deref().filter(|_| self.keep_backup) {
            host.write(&backup(&self.path), before, Some(&self.path))?;
        }
        let made = match &self.after {
            Some(after) => host.write(&self.path, after, None),
            None => host.remove(&self.path).map(|()| Vec::new()),
        };
        if made.is_err() && self.keep_backup {
            // Ignored: the file is as it was, and the user hears of the error that matters.
            let _ = host.remove(&backup(&self.path));
        }
        made
    }

    fn take_back(&self, host: &Host) -> Result<()> {
        match &self.before {
            Some(before) => host.write(&self.path, before, None).map(drop)?,
            None => host.remove(&self.path)?,
        }
        if self.keep_backup { host.remove(&backup(&self.path)) } else { Ok(()) }
    }
}

/// Makes all changes, or none: when one fails, those before it are taken back. Returns the folders that had to be made.
pub(super) fn make_all(host: &Host, edits: &[Edit]) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for (index, edit) in edits.iter().enumerate() {
        match edit.make(host) {
            Ok(made) => folders.extend(made),
            Err(error) => {
                take_back_all(host, &edits[..index], &folders)?;
                return Err(error.context("nothing was changed"));
            }
        }
    }
    Ok(folders)
}

/// Takes all changes back.
pub(super) fn take_back_all(host: &Host, edits: &[Edit], folders: &[PathBuf]) -> Result<()> {
    for edit in edits.iter().rev() {
        edit.take_back(host).with_context(|| {
            format!(
                "{} could not be put back; its earlier content is in {}",
                edit.path.display(),
                backup(&edit.path).display()
            )
        })?;
    }
    host.remove_empty(folders);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a half-done installation: the second file cannot be written, so the first must be as it was.
    #[test]
    fn a_failure_takes_back_what_was_done() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path()).unwrap();
        let (first, second) = (Path::new("/etc/first"), Path::new("/blocked/second"));
        host.write(first, "old\n", None).unwrap();
        std::fs::write(dir.path().join("blocked"), "a file where a folder should be").unwrap();
        let mut edits = [(first, Some("old\n")), (second, None)]
            .map(|(path, before)| Edit::of(path, before.map(str::to_owned), Some("new\n".into())).unwrap());
        edits[0].keep_backup = true;
        assert!(edits[0].show(&host).unwrap().diff.contains("-old\n+new\n"));
        let error = make_all(&host, &edits).unwrap_err();
        assert!(format!("{error:#}").contains("nothing was changed"), "{error:#}");
        assert_eq!(host.read(first).unwrap().as_deref(), Some("old\n"));
        assert_eq!(host.list(Path::new("/etc")).unwrap(), ["first"]);
    }
}
