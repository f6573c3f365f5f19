//! The whole state as one JSON document and back, for copies and moves of a controller that does not run.
//!
//! The document holds the store's tables as they are: keys as hexadecimal digits, values as Base64 of the stored records. It is for keeping,
//! not for editing; a BLAKE3 over it finds what was cut off or changed. An older document is brought to the present schema like an older store.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::lock::StateLock;
use super::redb::{FILE, RedbStore, Tables};
use super::{StateStore, StoreError};
use crate::state::Key;

const FORMAT: &str = "faasnet controller state";
/// Rises when the document's own shape changes.
const VERSION: u32 = 1;
/// Where an import is written before it takes its place, and how the state is called then that it replaces; a number follows if there is
/// one of that name.
const NEW: &str = "controller.redb.importing";
const OLD: &str = "controller.redb.before-import";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    version: u32,
    /// Who wrote it, for people.
    program: String,
    blake3: String,
    /// By name; keys in hexadecimal, values in Base64.
    tables: BTreeMap<String, BTreeMap<String, String>>,
}

/// What a state holds, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// Registered functions.
    pub functions: u64,
    /// Known nodes.
    pub nodes: u64,
    /// Where the state went that was there before.
    pub replaced: Option<PathBuf>,
}

/// Why a document is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Not one of ours, cut off, or changed.
    #[error("this is not an exported state: {0}; export it again with `faasnet state export`")]
    Document(String),
    /// There is something to lose.
    #[error(
        "the state in {path} has {functions} functions and {nodes} nodes; replace it with --force, or choose another with --state-dir"
    )]
    Occupied {
        /// Which.
        path: PathBuf,
        /// How many would be lost.
        functions: u64,
        /// How many would be lost.
        nodes: u64,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The state in `directory` as a document. No controller may be running on it.
pub fn export(directory: &Path) -> Result<(String, Contents), StoreError> {
    if !directory.join(FILE).is_file() {
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, "no controller has left its state there");
        return Err(StoreError::Directory { path: directory.into(), source });
    }
    let store = RedbStore::open(directory)?;
    let tables: BTreeMap<String, BTreeMap<String, String>> = store
        .tables()?
        .into_iter()
        .map(|(name, rows)| {
            let text = |(key, value): (Vec<u8>, Vec<u8>)| (hex(&key), STANDARD.encode(value));
            (name, rows.into_iter().map(text).collect())
        })
        .collect();
    let document = Document {
        format: FORMAT.into(),
        version: VERSION,
        program: env!("CARGO_PKG_VERSION").into(),
        blake3: digest(&tables),
        tables,
    };
    let text = serde_json::to_string_pretty(&document)
        .unwrap_or_else(|error| unreachable!("maps of text have a JSON form: {error}"));
    Ok((text, contents(&store)?))
}

/// Makes the document the state in `directory`. What was there is kept beside it; if that was more than nothing, only with `force`.
pub fn import(directory: &Path, text: &str, force: bool) -> Result<Contents, ImportError> {
    let tables = parse(text)?;
    let unusable = |source| StoreError::Directory { path: directory.into(), source };
    // No controller starts meanwhile, be there a state already or none.
    let _lock = StateLock::take(directory)?;
    let (place, new) = (directory.join(FILE), directory.join(NEW));
    let present = if place.exists() { Some(RedbStore::open_locked(directory)?) } else { None };
    let before = present.as_ref().map(contents).transpose()?.unwrap_or_default();
    if !force && (before.functions, before.nodes) != (0, 0) {
        let Contents { functions, nodes, .. } = before;
        return Err(ImportError::Occupied { path: directory.into(), functions, nodes });
    }
    match fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(unusable(error).into()),
        _ => {}
    }
    let written = RedbStore::create_from(&new, &tables).and_then(|store| contents(&store));
    let mut contents = written.inspect_err(|_| {
        // Ignored: the next import removes it too.
        let _ = fs::remove_file(&new);
    })?;
    if present.is_some() {
        contents.replaced = Some(keep(directory, &place).map_err(unusable)?);
    }
    // One step, so that after a crash there is the old state or the new one, never none.
    fs::rename(&new, &place).map_err(unusable)?;
    File::open(directory).and_then(|folder| folder.sync_all()).map_err(unusable)?;
    Ok(contents)
}

/// Gives the state at `place` a second name, under which it stays. Never one that is taken: that would be the only copy of an earlier one.
fn keep(directory: &Path, place: &Path) -> std::io::Result<PathBuf> {
    for number in 1u32.. {
        let name = if number == 1 { OLD.to_owned() } else { format!("{OLD}-{number}") };
        let old = directory.join(name);
        match fs::hard_link(place, &old) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            done => return done.map(|()| old),
        }
    }
    Err(std::io::ErrorKind::AlreadyExists.into())
}

fn parse(text: &str) -> Result<Tables, ImportError> {
    let bad = |why: String| ImportError::Document(why);
    let document: Document = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    if document.format != FORMAT || document.version != VERSION {
        return Err(bad(format!("it says {:?} version {}", document.format, document.version)));
    }
    if document.blake3 != digest(&document.tables) {
        return Err(bad("it was changed after it was exported".into()));
    }
    let row = |(key, value): (String, String)| Some((unhex(&key)?, STANDARD.decode(value).ok()?));
    let table = |(name, rows): (String, BTreeMap<String, String>)| {
        Some((name, rows.into_iter().map(row).collect::<Option<Vec<_>>>()?))
    };
    let tables = document.tables.into_iter().map(table).collect::<Option<Tables>>();
    tables.ok_or_else(|| bad("a key is not hexadecimal or a value not Base64".into()))
}

fn contents(store: &RedbStore) -> Result<Contents, StoreError> {
    let mut contents = Contents::default();
    for (key, _) in store.load()? {
        match key {
            Key::Function(_) => contents.functions += 1,
            Key::Node(_) => contents.nodes += 1,
            _ => {}
        }
    }
    Ok(contents)
}

/// Over every name, key and value with their lengths, so that nothing runs together.
fn digest(tables: &BTreeMap<String, BTreeMap<String, String>>) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    for (name, rows) in tables {
        add(name);
        add(&rows.len().to_string());
        for (key, value) in rows {
            add(key);
            add(value);
        }
    }
    hasher.finalize().to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    text.len().is_multiple_of(2).then(|| text.as_bytes().chunks_exact(2).map(digits).collect())?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use faasnet_api::{FunctionId, NodeId};

    use super::*;

    fn state(directory: &Path) -> Vec<(Key, Vec<u8>)> {
        let function = FunctionId([2; 16]);
        let keys = [Key::Term, Key::Node(NodeId([1; 16])), Key::Function(function), Key::Order(function)];
        let records: Vec<_> = keys.into_iter().zip(0u8..).map(|(key, n)| (key, vec![n; 300])).collect();
        let store = RedbStore::open(directory).unwrap();
        store.commit(records.iter().cloned().map(|(key, value)| (key, Some(value))).collect()).unwrap();
        records
    }

    /// Catches a record that does not survive the way out and in, and an import that throws away what nobody wanted to lose.
    #[test]
    fn a_state_moves() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let records = state(from.path());
        let (text, contents) = export(from.path()).unwrap();
        assert_eq!((contents.functions, contents.nodes), (1, 1));
        assert_eq!(import(to.path(), &text, false).unwrap(), contents);
        assert_eq!(RedbStore::open(to.path()).unwrap().load().unwrap(), records);
        let refused = import(to.path(), &text, false).unwrap_err();
        assert!(matches!(refused, ImportError::Occupied { functions: 1, .. }), "{refused}");
        let replaced = import(to.path(), &text, true).unwrap().replaced.unwrap();
        assert!(replaced.is_file());
        let again = import(to.path(), &text, true).unwrap().replaced.unwrap();
        assert!(again.is_file() && replaced.is_file() && again != replaced, "the first one is kept as well");
        let _running = RedbStore::open(to.path()).unwrap();
        assert!(matches!(import(to.path(), &text, true), Err(ImportError::Store(StoreError::InUse(_)))));
        assert!(matches!(export(to.path()), Err(StoreError::InUse(_))));
    }

    /// Catches a controller that starts in the middle of an import, with an empty state or with one that is about to be unlinked.
    #[test]
    fn an_import_has_the_directory_for_itself() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        state(from.path());
        let text = export(from.path()).unwrap().0;
        let in_use = |error: Option<StoreError>| assert!(matches!(error, Some(StoreError::InUse(_))), "{error:?}");
        let importing = StateLock::take(to.path()).unwrap();
        in_use(RedbStore::open(to.path()).err());
        assert!(!to.path().join(FILE).exists(), "not even a file was made");
        assert!(matches!(import(to.path(), &text, true), Err(ImportError::Store(StoreError::InUse(_)))));
        drop(importing);
        // The state that is replaced keeps its file, under a second name: there was no moment without one.
        import(to.path(), &text, false).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        let before = inode(&to.path().join(FILE));
        let replaced = import(to.path(), &text, true).unwrap().replaced.unwrap();
        assert_eq!(inode(&replaced), before);
        assert_ne!(inode(&to.path().join(FILE)), before);
    }

    /// Catches a document that lost its end or a byte and is taken all the same, and an export that makes a state where there is none.
    #[test]
    fn damage_is_found() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        state(from.path());
        let text = export(from.path()).unwrap().0;
        for damaged in [&text[..text.len() / 2], &text.replace("AgIC", "AwIC"), "{}", &text.replace("state", "stage")] {
            assert!(matches!(import(to.path(), damaged, true), Err(ImportError::Document(_))));
        }
        assert!(!to.path().join(FILE).exists());
        assert!(export(to.path()).unwrap_err().to_string().contains(&to.path().display().to_string()));
        assert!(!to.path().join(FILE).exists());
    }

    /// Catches a state of a later version that is taken over by import.
    #[test]
    fn a_later_schema_is_refused() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        state(from.path());
        let mut document: Document = serde_json::from_str(&export(from.path()).unwrap().0).unwrap();
        let schema = document.tables.get_mut("meta").unwrap().get_mut(&hex(b"schema")).unwrap();
        *schema = STANDARD.encode(99u32.to_le_bytes());
        document.blake3 = digest(&document.tables);
        let text = serde_json::to_string(&document).unwrap();
        let refused = import(to.path(), &text, true).unwrap_err();
        assert!(matches!(refused, ImportError::Store(StoreError::Schema { found: 99, .. })), "{refused}");
        assert_eq!(std::fs::read_dir(to.path()).unwrap().count(), 1, "nothing is left but the lock");
    }
}
