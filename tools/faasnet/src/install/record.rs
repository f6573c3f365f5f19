//! What `install` did, kept on the host so that `uninstall` takes back exactly that.
//!
//! The record is written before the first file is changed: a crash in between leaves entries that uninstall finds undone.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Runtime;
use super::host::Host;
use super::names::{Mirror, Registry};

/// What was installed for one runtime.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// The mirror that the entries name.
    pub(super) mirror: Mirror,
    /// The registries that were asked for; none: all.
    pub(super) registries: Vec<Registry>,
    /// The files, in the order in which they were changed.
    pub(super) files: Vec<Touched>,
    /// Folders that were made.
    pub(super) folders: Vec<PathBuf>,
    /// Registries that had a folder of their own before us.
    pub(super) bystanders: Vec<String>,
}

/// One file that was changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Touched {
    /// Its path on the host.
    pub(super) path: PathBuf,
    /// It was there before; [`backup`] is how it was.
    pub(super) existed: bool,
    /// SHA-256 of what was written, to see later whether somebody has edited it.
    pub(super) written: String,
}

impl Touched {
    /// Whether the file is still as it was written.
    pub(super) fn is_untouched(&self, text: &str) -> bool {
        self.written == hash(text)
    }
}

impl Record {
    /// An installation of nothing so far.
    pub(super) fn new(mirror: Mirror) -> Self {
        Self { mirror, registries: Vec::new(), files: Vec::new(), folders: Vec::new(), bystanders: Vec::new() }
    }

    /// The record of an earlier installation.
    pub(super) fn load(host: &Host, runtime: Runtime) -> Result<Option<Self>> {
        let path = path(runtime);
        let Some(text) = host.read(&path)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).with_context(|| {
            format!(
                "the record of the installation, {}, is damaged; remove our entries by hand, then delete it",
                path.display()
            )
        })
    }

    /// Writes it; returns the folders that had to be made.
    pub(super) fn save(&self, host: &Host, runtime: Runtime) -> Result<Vec<PathBuf>> {
        let text = serde_json::to_string_pretty(self).context("the record of the installation cannot be encoded")?;
        host.write(&path(runtime), &format!("{text}\n"), None)
    }

    /// Notes that `path` changes from `before` to `after`. Whether `before` needs a backup: not when it is our own work.
    pub(super) fn touch(&mut self, path: &Path, before: Option<&str>, after: &str) -> bool {
        let earlier = self.files.iter().position(|file| file.path == path).map(|index| self.files.remove(index));
        let own = earlier.filter(|earlier| before.is_some_and(|before| earlier.is_untouched(before)));
        let (is_own, existed) = (own.is_some(), own.map_or(before.is_some(), |own| own.existed));
        self.files.push(Touched { path: path.to_owned(), existed, written: hash(after) });
        before.is_some() && !is_own
    }
}

/// Where the record is.
pub(super) fn path(runtime: Runtime) -> PathBuf {
    format!("/etc/faasnet/installed/{runtime}.json").into()
}

/// Where a file's content before the installation is kept.
pub(super) fn backup(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".before-faasnet");
    name.into()
}

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}
