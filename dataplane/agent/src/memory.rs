//! What the controller last said, kept in the store: its ticket keys, and what this node shall hold.
//!
//! An agent that starts while the controller is away goes on from here, so that it serves children whose tickets are good. Where the
//! controller is there, its word counts and this file is only written. Losing it costs nothing but that.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use faasnet_api::{FunctionId, KeySet, PublicKey, TicketKey, v1};
use prost::Message;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const FILE: &str = "last-word";

/// See the module's documentation.
pub(crate) struct Memory {
    latest: watch::Sender<v1::LastWord>,
    writer: JoinHandle<()>,
}

impl Memory {
    /// Reads what there is in the store at `dir`, and starts the task that writes changes. One that cannot be read is as good as none.
    pub(crate) fn open(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let word = read(&path).unwrap_or_else(|reason| {
            tracing::warn!(file = %path.display(), reason, "what the controller last said cannot be read; it will say it again");
            v1::LastWord::default()
        });
        let (latest, changes) = watch::channel(word);
        Self { latest, writer: tokio::spawn(write_changes(path, changes)) }
    }

    /// The keys that the controller last named.
    pub(crate) fn keys(&self) -> KeySet {
        self.latest.borrow().ticket_keys.as_ref().map(key_set).unwrap_or_default()
    }

    /// The assignments that it last gave, without descriptors.
    pub(crate) fn assigns(&self) -> Vec<v1::Assign> {
        self.latest.borrow().assigns.clone()
    }

    pub(crate) fn set_keys(&self, keys: v1::TicketKeys) {
        self.latest.send_if_modified(|word| {
            let changed = word.ticket_keys.as_ref() != Some(&keys);
            word.ticket_keys = Some(keys);
            changed
        });
    }

    /// `assign` came; its descriptor is the store's to keep.
    pub(crate) fn assigned(&self, assign: v1::Assign) {
        self.latest.send_modify(|word| {
            word.assigns.retain(|old| old.function_id != assign.function_id);
            word.assigns.push(v1::Assign { descriptor: Vec::new(), ..assign });
        });
    }

    /// The function is not to be held any more.
    pub(crate) fn dropped(&self, function: FunctionId) {
        self.latest.send_if_modified(|word| {
            let before = word.assigns.len();
            word.assigns.retain(|old| old.function_id != function.0);
            before != word.assigns.len()
        });
    }

    /// Nothing of what it said before counts any more.
    pub(crate) fn forget_assigns(&self) {
        self.latest.send_if_modified(|word| !std::mem::take(&mut word.assigns).is_empty());
    }

    /// Waits until the last change is written.
    pub(crate) async fn close(self) {
        drop(self.latest);
        // Ignored: a writer that was cut off has nothing to tell.
        let _ = self.writer.await;
    }
}

/// The keys of a message; what is no key is left out.
pub(crate) fn key_set(keys: &v1::TicketKeys) -> KeySet {
    let key = |key: &v1::TicketKey| {
        let valid_until = if key.valid_until == 0 { u64::MAX } else { key.valid_until };
        Some(TicketKey { public: PublicKey::try_from(&key.public_key[..]).ok()?, valid_until })
    };
    KeySet::new(keys.keys.iter().filter_map(key))
}

/// Writes the latest state as long as there are newer ones.
async fn write_changes(path: PathBuf, mut changes: watch::Receiver<v1::LastWord>) {
    while changes.changed().await.is_ok() {
        let (bytes, path) = (changes.borrow_and_update().encode_to_vec(), path.clone());
        let written = tokio::task::spawn_blocking(move || write(&path, &bytes).map_err(|error| (path, error))).await;
        if let Ok(Err((path, error))) = written {
            tracing::warn!(file = %path.display(), %error, "what the controller says cannot be kept for a restart without it");
        }
    }
}

fn read(path: &Path) -> Result<v1::LastWord, String> {
    match fs::read(path) {
        Ok(bytes) => v1::LastWord::decode(&bytes[..]).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(v1::LastWord::default()),
        Err(error) => Err(error.to_string()),
    }
}

fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::commands::tests::assign;

    /// Catches a word that does not outlive the process, a function that comes back after it was dropped, and a damaged file that is fatal.
    #[tokio::test]
    async fn the_last_word_counts() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::open(dir.path());
        assert!(memory.keys().is_empty() && memory.assigns().is_empty());
        let key = v1::TicketKey { public_key: vec![7; 32], valid_until: 9 };
        memory.set_keys(v1::TicketKeys { keys: vec![key] });
        memory.assigned(v1::Assign { descriptor: vec![1; 9], ..assign(3) });
        memory.assigned(assign(4));
        let other = v1::Assign { function_id: vec![8; 16], ..assign(1) };
        memory.assigned(other);
        memory.dropped(FunctionId([8; 16]));
        memory.close().await;
        let memory = Memory::open(dir.path());
        assert_eq!(memory.assigns(), [assign(4)]);
        assert_eq!(memory.keys().keys().map(|key| (key.public.0, key.valid_until)).collect::<Vec<_>>(), [([7; 32], 9)]);
        memory.close().await;
        fs::write(dir.path().join(FILE), b"\xff\xff\xff").unwrap();
        assert!(Memory::open(dir.path()).keys().is_empty());
    }
}
