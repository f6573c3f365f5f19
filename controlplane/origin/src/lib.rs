//! Where images come from: OCI registries over HTTP, and OCI layout folders on a local file system.
//!
//! Used by registration (control plane, and agents that register what their runtime asked for) and by the origin feed of roots (data plane). Reads only; keeps no blob. What it
//! hands out of a manifest is verified against its digest; blobs are verified by the callers, who see the whole of them.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod auth;
mod backoff;
mod challenge;
mod credentials;
pub mod digest;
mod error;
mod helper;
mod http;
mod layout;
pub mod manifest;
mod options;
pub mod range;
mod reader;
mod reference;
pub mod register;
mod registry;
mod source;

pub use backoff::{Backoff, RetryPolicy};
pub use credentials::{Credentials, registry_key};
pub use error::Error;
pub use layout::Layout;
pub use options::SourceOptions;
pub use reader::BlobReader;
pub use reference::{Reference, RegistryReference, Target, image_names, is_tag, may_carry_password};
pub use registry::Registry;
pub use source::{BlobStream, Manifest, Source};

/// The largest manifest or index that is read; registries refuse larger ones too.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
