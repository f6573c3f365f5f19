//! The contract that both planes share: ids, the image descriptor and its geometry, tickets, and the gRPC messages.
//!
//! Nothing here performs I/O but [`tls`], which reads certificates, and [`is_read_by_others`], which looks at a file.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod descriptor;
pub mod geometry;
pub mod ids;
mod introduction;
#[cfg(feature = "rpc")]
mod json;
#[cfg(feature = "keys")]
pub mod keys;
#[cfg(feature = "rpc")]
mod login;
mod node_name;
mod secret;
pub mod ticket;
#[cfg(feature = "rpc")]
pub mod tls;
pub mod verify;

pub use descriptor::{Descriptor, DescriptorError, Entry, Origin};
pub use geometry::{BLOCK_BYTES, BlockIndex, CHUNK_BYTES, ChunkIndex, Geometry, MAX_BLOCK_BYTES, Stripe};
pub use ids::{FunctionId, IdError, ImageId, KeyId, NodeId, PublicKey, TenantId};
pub use introduction::Introduction;
#[cfg(feature = "keys")]
pub use keys::{KeySet, SigningKey, TicketKey};
pub use node_name::{NODE_NAME_RULE, is_node_name};
pub use secret::{ClusterSecret, is_read_by_others};
pub use ticket::{Claims, Ticket, TicketError};
pub use verify::{BlockDigest, Verify};

/// Generated protobuf messages and gRPC services; `proto/faasnet/v1/faasnet.proto` documents each.
#[cfg(feature = "rpc")]
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("faasnet.v1");

    /// The encoded contract, for the reflection service.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/faasnet.bin"));
}
