//! The state in one redb file, `controller.redb`, in the state directory. One process at a time can have it open.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use faasnet_api::{FunctionId, NodeId};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableHandle, WriteTransaction};

use super::lock::StateLock;
use super::{StateStore, StoreError};
use crate::state::{Key, Records, SCHEMA, migrate};

pub(super) const FILE: &str = "controller.redb";

/// Keys and values as they lie in a table.
type Rows = Vec<(Vec<u8>, Vec<u8>)>;
/// Every table by its name.
pub(super) type Tables = Vec<(String, Rows)>;
type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

const META: Table = TableDefinition::new("meta");
const NODE_KEYS: Table = TableDefinition::new("node_keys");
const NODES: Table = TableDefinition::new("nodes");
const FUNCTIONS: Table = TableDefinition::new("functions");
const ORDERS: Table = TableDefinition::new("orders");
const DESCRIPTORS: Table = TableDefinition::new("descriptors");
const NEXT_DESCRIPTORS: Table = TableDefinition::new("next_descriptors");
const TABLES: [Table; 7] = [META, NODES, NODE_KEYS, FUNCTIONS, ORDERS, DESCRIPTORS, NEXT_DESCRIPTORS];

const SCHEMA_KEY: &[u8] = b"schema";
const TERM_KEY: &[u8] = b"term";
const TICKET_KEYS_KEY: &[u8] = b"ticket_keys";
const SECRETS_KEY: &[u8] = b"registry_secrets";

/// See the module's documentation.
pub struct RedbStore {
    path: PathBuf,
    database: Database,
    /// Given back after the database was closed; `None`: whoever opened it holds the directory.
    _lock: Option<StateLock>,
}

impl RedbStore {
    /// Opens the state in `directory`; makes both if they are not there.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let lock = StateLock::take(directory)?;
        Ok(Self { _lock: Some(lock), ..Self::open_locked(directory)? })
    }

    /// The same for who holds the directory's lock.
    pub(super) fn open_locked(directory: &Path) -> Result<Self, StoreError> {
        let store = Self::open_file(directory.join(FILE), directory)?;
        store.check_schema()?;
        Ok(store)
    }

    /// A new file at `path` with these tables, brought to the present schema.
    pub(super) fn create_from(path: &Path, tables: &Tables) -> Result<Self, StoreError> {
        let store = Self::open_file(path.into(), path)?;
        let unknown = tables.iter().find(|(name, _)| TABLES.iter().all(|table| table.name() != name));
        if let Some((name, _)) = unknown {
            let reason = format!("this version of faasnet has no table {name:?}");
            return Err(StoreError::Failed { path: path.into(), verb: "imported", reason });
        }
        store.write("imported", |write| {
            for table in TABLES {
                let mut opened = write.open_table(table)?;
                for (key, value) in tables.iter().filter(|(name, _)| table.name() == name).flat_map(|(_, rows)| rows) {
                    opened.insert(&key[..], &value[..])?;
                }
            }
            Ok(())
        })?;
        store.check_schema()?;
        Ok(store)
    }

    /// Everything as it is stored.
    pub(super) fn tables(&self) -> Result<Tables, StoreError> {
        TABLES.into_iter().map(|table| Ok((table.name().to_owned(), self.read_table(table)?))).collect()
    }

    fn open_file(path: PathBuf, named: &Path) -> Result<Self, StoreError> {
        let database = Database::create(&path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(named.into()),
            DatabaseError::Storage(redb::StorageError::Io(source)) => {
                StoreError::Directory { path: named.into(), source }
            }
            other => StoreError::Failed { path: path.clone(), verb: "opened", reason: other.to_string() },
        })?;
        // It holds the private keys that sign tickets, and registries' passwords.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(|source| StoreError::Directory { path: named.into(), source })?;
        Ok(Self { path, database, _lock: None })
    }

    /// Writes the schema number into a new file and compares it in an old one, whose records are brought to the present form; makes every
    /// table, so that reading finds them.
    fn check_schema(&self) -> Result<(), StoreError> {
        let found = self
            .write("opened", |write| {
                for table in TABLES {
                    write.open_table(table)?;
                }
                let mut meta = write.open_table(META)?;
                let found = meta.get(SCHEMA_KEY)?.map(|value| value.value().to_vec());
                if found.is_none() {
                    meta.insert(SCHEMA_KEY, &SCHEMA.to_le_bytes()[..])?;
                }
                Ok(found)
            })?
            .map_or(SCHEMA, |bytes| bytes.try_into().map_or(0, u32::from_le_bytes));
        match found {
            SCHEMA => Ok(()),
            1..SCHEMA => self.migrate_from(found),
            _ => Err(StoreError::Schema { path: self.path.clone(), found, known: SCHEMA }),
        }
    }

    /// All records and the schema number change in one commit, so that a crash leaves either the old state or the new one.
    fn migrate_from(&self, found: u32) -> Result<(), StoreError> {
        let records = migrate(found, self.load()?).map_err(|error| StoreError::Failed {
            path: self.path.clone(),
            verb: "brought to the present schema",
            reason: error.to_string(),
        })?;
        self.write("written", |write| {
            put(write, records.iter().map(|(key, value)| (key, Some(&value[..]))))?;
            write.open_table(META)?.insert(SCHEMA_KEY, &SCHEMA.to_le_bytes()[..])?;
            Ok(())
        })?;
        tracing::info!(from = found, to = SCHEMA, "the state was brought to the present schema");
        Ok(())
    }

    fn write<T>(
        &self,
        verb: &'static str,
        change: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let attempt = || {
            let write = self.database.begin_write()?;
            let value = change(&write)?;
            write.commit()?;
            Ok(value)
        };
        attempt().map_err(|error: redb::Error| self.failed(verb, &error))
    }

    fn read_table(&self, table: Table) -> Result<Rows, StoreError> {
        let attempt = || {
            let mut rows = Vec::new();
            for row in self.database.begin_read()?.open_table(table)?.iter()? {
                let (key, value) = row?;
                rows.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(rows)
        };
        attempt().map_err(|error: redb::Error| self.failed("read", &error))
    }

    fn failed(&self, verb: &'static str, error: &redb::Error) -> StoreError {
        StoreError::Failed { path: self.path.clone(), verb, reason: error.to_string() }
    }
}

impl StateStore for RedbStore {
    fn load(&self) -> Result<Records, StoreError> {
        let function = |key: &[u8], name| FunctionId::try_from(key).map_err(|_| StoreError::DamagedKey(name));
        let mut records = Vec::new();
        for (key, value) in self.read_table(META)? {
            match &key[..] {
                TERM_KEY => records.push((Key::Term, value)),
                SECRETS_KEY => records.push((Key::Secrets, value)),
                TICKET_KEYS_KEY => records.push((Key::TicketKeys, value)),
                _ => {}
            }
        }
        for (key, value) in self.read_table(NODES)? {
            let node = NodeId::try_from(&key[..]).map_err(|_| StoreError::DamagedKey("nodes"))?;
            records.push((Key::Node(node), value));
        }
        for (key, value) in self.read_table(NODE_KEYS)? {
            let node = NodeId::try_from(&key[..]).map_err(|_| StoreError::DamagedKey("node_keys"))?;
            records.push((Key::NodeKey(node), value));
        }
        for (key, value) in self.read_table(FUNCTIONS)? {
            records.push((Key::Function(function(&key, "functions")?), value));
        }
        for (key, value) in self.read_table(ORDERS)? {
            records.push((Key::Order(function(&key, "orders")?), value));
        }
        for (key, value) in self.read_table(DESCRIPTORS)? {
            records.push((Key::Descriptor(function(&key, "descriptors")?), value));
        }
        for (key, value) in self.read_table(NEXT_DESCRIPTORS)? {
            records.push((Key::NextDescriptor(function(&key, "next_descriptors")?), value));
        }
        Ok(records)
    }

    fn commit(&self, changes: Vec<(Key, Option<Vec<u8>>)>) -> Result<(), StoreError> {
        self.write("written", |write| put(write, changes.iter().map(|(key, value)| (key, value.as_deref()))))
    }
}

/// Writes (`Some`) and deletes (`None`) records.
fn put<'a>(
    write: &WriteTransaction,
    changes: impl Iterator<Item = (&'a Key, Option<&'a [u8]>)>,
) -> Result<(), redb::Error> {
    for (key, value) in changes {
        let (table, key) = place(key);
        let mut table = write.open_table(table)?;
        match value {
            Some(value) => table.insert(key, value)?,
            None => table.remove(key)?,
        };
    }
    Ok(())
}

fn place(key: &Key) -> (Table, &[u8]) {
    match key {
        Key::Term => (META, TERM_KEY),
        Key::TicketKeys => (META, TICKET_KEYS_KEY),
        Key::Secrets => (META, SECRETS_KEY),
        Key::NodeKey(node) => (NODE_KEYS, node.as_bytes()),
        Key::Node(node) => (NODES, node.as_bytes()),
        Key::Function(function) => (FUNCTIONS, function.as_bytes()),
        Key::Order(function) => (ORDERS, function.as_bytes()),
        Key::Descriptor(function) => (DESCRIPTORS, function.as_bytes()),
        Key::NextDescriptor(function) => (NEXT_DESCRIPTORS, function.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_key() -> Vec<Key> {
        let function = FunctionId([2; 16]);
        let mut keys = vec![
            Key::Term,
            Key::TicketKeys,
            Key::Node(NodeId([1; 16])),
            Key::NodeKey(NodeId([1; 16])),
            Key::Function(function),
        ];
        keys.extend([Key::Order(function), Key::Descriptor(function), Key::NextDescriptor(function)]);
        keys
    }

    /// Catches a record that is lost, confused with another, or left behind after its deletion.
    #[test]
    fn records_survive_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let written: Vec<_> = every_key().into_iter().zip(0u8..).map(|(key, n)| (key, vec![n; 3])).collect();
        let changes = written.iter().cloned().map(|(key, value)| (key, Some(value))).collect();
        RedbStore::open(directory.path()).unwrap().commit(changes).unwrap();
        let store = RedbStore::open(directory.path()).unwrap();
        assert_eq!(store.load().unwrap(), written);
        store.commit(every_key().into_iter().map(|key| (key, None)).collect()).unwrap();
        assert_eq!(store.load().unwrap(), vec![]);
    }

    /// Catches two controllers that write the same state.
    #[test]
    fn a_second_owner_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let _first = RedbStore::open(directory.path()).unwrap();
        assert!(matches!(RedbStore::open(directory.path()), Err(StoreError::InUse(_))));
    }

    /// Catches a state of a later version that is read as if it were ours.
    #[test]
    fn another_schema_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = RedbStore::open(directory.path()).unwrap();
        store
            .write("written", |write| {
                write.open_table(META)?.insert(SCHEMA_KEY, &99u32.to_le_bytes()[..])?;
                Ok(())
            })
            .unwrap();
        drop(store);
        assert!(matches!(RedbStore::open(directory.path()), Err(StoreError::Schema { found: 99, .. })));
    }

    /// Catches an error that does not say which folder is at fault.
    #[test]
    fn an_unusable_directory_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = RedbStore::open(&file.path().join("state")).err().unwrap();
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }
}
