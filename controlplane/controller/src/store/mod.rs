//! Where the controller's state is kept: an interface, so that another store can follow, and its implementation in one file.
//!
//! A store moves bytes. What they mean is the state machine's business.

mod lock;
mod redb;
mod transfer;

use std::path::PathBuf;

pub use self::redb::RedbStore;
pub use self::transfer::{Contents, ImportError, export, import};
use crate::state::Key;

/// Keeps records.
pub trait StateStore: Send + Sync + 'static {
    /// Every record.
    fn load(&self) -> Result<Vec<(Key, Vec<u8>)>, StoreError>;

    /// Writes (`Some`) and deletes (`None`) records, all or none; when it returns they survive a crash.
    fn commit(&self, changes: Vec<(Key, Option<Vec<u8>>)>) -> Result<(), StoreError>;
}

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be made or written.
    #[error(
        "the state directory {path} cannot be used: {source}; let this user make and write it, or choose another with --state-dir"
    )]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("the state in {0} is in use by another controller; stop that one or choose another with --state-dir")]
    InUse(PathBuf),
    /// A file of another program or version.
    #[error(
        "the state in {path} has schema {found}, this version of faasnet reads up to {known}; start the version that wrote it, or one that is later"
    )]
    Schema {
        /// Which file.
        path: PathBuf,
        /// What the file says.
        found: u32,
        /// What this program knows.
        known: u32,
    },
    /// A record's key that this program did not write.
    #[error("the state has a damaged key in table {0}; restore the file from a copy or delete it")]
    DamagedKey(&'static str),
    /// Anything else.
    #[error("the state in {path} cannot be {verb}: {reason}")]
    Failed {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        verb: &'static str,
        /// Why it failed.
        reason: String,
    },
}
