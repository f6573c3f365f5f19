//! Whether a folder has room for what a command is about to make: said before, with a way out, not by a disk that is full.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::output;

/// An error when `dir` has less than `needed` bytes free. `what` needs them; `instead` is what to ask for beside another folder.
pub fn check(dir: &Path, needed: u64, what: &str, instead: &str) -> Result<()> {
    ensure!(dir.is_dir(), "there is no folder {}; make it, or choose another with --dir", dir.display());
    let disk =
        rustix::fs::statvfs(dir).with_context(|| format!("cannot ask for the free space of {}", dir.display()))?;
    let free = disk.f_bavail * disk.f_frsize;
    ensure!(
        free >= needed,
        "{what} need {} in {}, which has {} free; choose another folder with --dir, or {instead}",
        output::bytes(needed),
        dir.display(),
        output::bytes(free)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a disk that is filled because nobody asked whether there is room.
    #[test]
    fn more_than_there_is_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path(), 1, "1 host", "less").unwrap();
        let error = check(&dir.path().join("none"), 1, "1 host", "less").unwrap_err().to_string();
        assert!(error.starts_with("there is no folder"), "{error}");
        let error = check(dir.path(), u64::MAX, "3 hosts", "a smaller --size").unwrap_err().to_string();
        assert!(error.starts_with("3 hosts need") && error.ends_with("or a smaller --size"), "{error}");
    }
}
