//! This node's own key: made at the first start, kept in the store, never sent anywhere.
//!
//! The controller binds the node's id to the public half, and every ticket to that.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use faasnet_api::SigningKey;
use faasnet_api::keys::SEED_BYTES;

const FILE: &str = "node-key";

/// Reads the key of the store in `dir`, or makes one. The folder must exist and belong to this process alone.
pub(crate) fn open(dir: &Path) -> anyhow::Result<SigningKey> {
    let path = dir.join(FILE);
    match File::open(&path) {
        Ok(file) => read(file).with_context(|| {
            format!(
                "the node's key {} cannot be used; restore it, or empty the whole store so that this node registers anew",
                path.display()
            )
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            make(&path).with_context(|| format!("the node's key {} cannot be written", path.display()))
        }
        Err(error) => {
            Err(error).with_context(|| format!("the node's key {} cannot be read by this user", path.display()))
        }
    }
}

fn read(file: File) -> anyhow::Result<SigningKey> {
    let mut bytes = Vec::new();
    file.take(SEED_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    let Ok(seed) = bytes.try_into() else { bail!("it does not have {SEED_BYTES} bytes") };
    Ok(SigningKey::from_seed(seed))
}

fn make(path: &Path) -> anyhow::Result<SigningKey> {
    let key = SigningKey::random();
    // Under another name first: a start that is cut short must not leave half a key.
    let unfinished = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(key.seed())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// Catches a key that others can read, that changes with a restart, or a damaged one that is replaced silently.
    #[test]
    fn the_key_is_made_once_and_for_this_user_only() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(open(dir.path()).unwrap().public(), first.public());
        std::fs::write(&path, b"short").unwrap();
        let error = format!("{:#}", open(dir.path()).unwrap_err());
        assert!(error.contains("node-key") && error.contains("empty the whole store"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"short");
    }
}
