//! Records of earlier versions, brought to the present form one schema at a time.
//!
//! A schema's records are described here as they were when it ended and never change again. Pure.

use std::net::SocketAddr;

use faasnet_api::{ImageId, NodeId};
use serde::{Deserialize, Serialize};

use super::records::{FunctionRecord, Key, NodeRecord, OrderRecord, RestoreError, decode, encode};

/// The present schema. It rises when the meaning of a record changes; then a step in [`migrate`] says how the old one is read.
pub const SCHEMA: u32 = 3;

/// Records as a store holds them.
pub type Records = Vec<(Key, Vec<u8>)>;

#[derive(Serialize, Deserialize)]
struct NodeRecord1 {
    name: String,
    address: SocketAddr,
    incarnation: u64,
    memory_mib: u64,
    version: String,
    dead: bool,
}

#[derive(Serialize, Deserialize)]
struct FunctionRecord1 {
    tenant: String,
    name: String,
    image: ImageId,
    memory_mib: u32,
    policy: String,
    note: String,
    count: Option<u32>,
    wanted: Vec<(NodeId, bool)>,
}

#[derive(Serialize, Deserialize)]
struct OrderRecord1 {
    stripes: Vec<Vec<NodeId>>,
    reds: u64,
}

#[derive(Serialize, Deserialize)]
struct OrderRecord2 {
    stripes: Vec<Vec<NodeId>>,
    reds: u64,
    riders: Vec<(NodeId, Vec<NodeId>)>,
}

/// The same state in the present schema. `from` is a schema that there was, so at least 1 and at most [`SCHEMA`].
pub fn migrate(from: u32, records: Records) -> Result<Records, RestoreError> {
    match from {
        1 => records.into_iter().map(|(key, value)| Ok((key, from_1(key, value)?))).collect(),
        2 => records.into_iter().map(|(key, value)| Ok((key, from_2(key, value)?))).collect(),
        _ => Ok(records),
    }
}

fn from_1(key: Key, value: Vec<u8>) -> Result<Vec<u8>, RestoreError> {
    Ok(match key {
        Key::Node(_) => {
            let NodeRecord1 { name, address, incarnation, memory_mib, version, dead } = decode(key, &value)?;
            // When it was seen was not kept: the epoch says so.
            let (draining, quarantine, last_seen_unix_s) = (false, String::new(), 0);
            encode(&NodeRecord {
                name,
                address,
                incarnation,
                memory_mib,
                version,
                dead,
                draining,
                quarantine,
                last_seen_unix_s,
            })
        }
        Key::Function(_) => {
            let FunctionRecord1 { tenant, name, image, memory_mib, policy, note, count, wanted } = decode(key, &value)?;
            let (leaving, next) = (Vec::new(), None);
            encode(&FunctionRecord { tenant, name, image, memory_mib, policy, note, count, wanted, leaving, next })
        }
        Key::Order(_) => {
            let OrderRecord1 { stripes, reds } = decode(key, &value)?;
            encode(&OrderRecord { stripes, reds, riders: Vec::new(), donors: Vec::new() })
        }
        _ => value,
    })
}

fn from_2(key: Key, value: Vec<u8>) -> Result<Vec<u8>, RestoreError> {
    let Key::Order(_) = key else { return Ok(value) };
    let OrderRecord2 { stripes, reds, riders } = decode(key, &value)?;
    Ok(encode(&OrderRecord { stripes, reds, riders, donors: Vec::new() }))
}

#[cfg(test)]
mod tests {
    use faasnet_api::FunctionId;

    use super::*;

    /// Catches an old state that is misread: the bytes are those that the version before this one wrote.
    #[test]
    fn records_of_schema_1_are_read() {
        let (id, image, node) = (FunctionId([1; 16]), ImageId([2; 32]), NodeId([3; 16]));
        let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        // Names, image, memory, policy, note, no count, one member that has not failed.
        let old = [
            text("acme"),
            text("resize"),
            image.to_vec(),
            vec![64],
            text("twin"),
            text(""),
            vec![0],
            vec![1],
            node.to_vec(),
            vec![0],
        ];
        let records = migrate(1, vec![(Key::Function(id), old.concat())]).unwrap();
        let read: FunctionRecord = decode(Key::Function(id), &records[0].1).unwrap();
        assert_eq!((read.tenant.as_str(), read.name.as_str(), read.image), ("acme", "resize", image));
        assert_eq!((read.memory_mib, read.wanted, read.next), (64, vec![(node, false)], None));
        let old = [text("n1"), vec![0, 127, 0, 0, 1, 80], vec![5, 99], text("0.1.0"), vec![1]].concat();
        let records = migrate(1, vec![(Key::Node(node), old)]).unwrap();
        let read: NodeRecord = decode(Key::Node(node), &records[0].1).unwrap();
        assert_eq!((read.name.as_str(), read.address.port(), read.incarnation), ("n1", 80, 5));
        assert!((read.memory_mib, read.dead) == (99, true) && read.version == "0.1.0");
        assert!(migrate(1, vec![(Key::Node(node), vec![9])]).is_err());
        // One stripe of one node, no reds, one rider with one host.
        let old = [vec![1, 1], node.to_vec(), vec![0, 1], vec![4; 16], vec![1], node.to_vec()].concat();
        let records = migrate(2, vec![(Key::Order(id), old)]).unwrap();
        let read: OrderRecord = decode(Key::Order(id), &records[0].1).unwrap();
        assert_eq!((read.stripes, read.riders.len(), read.donors), (vec![vec![node]], 1, vec![]));
        let kept = vec![(Key::Term, vec![7])];
        assert_eq!(migrate(SCHEMA, kept.clone()).unwrap(), kept);
    }
}
