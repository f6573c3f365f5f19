//! The image converter: an OCI image becomes a descriptor, folders become an OCI image, a descriptor becomes a layout again.
//!
//! Owned by the controller (registration) and the command line (build, inspect, pull). Registration keeps no blob: images are
//! streamed through the hashes.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod build;
mod export;
mod inspect;
mod layer;
mod layout_writer;

pub use build::{BuildError, BuildOptions, BuiltImage, BuiltLayer, Mtime, build, build_opaque};
pub use export::{ExportError, LayoutImage, write_layout, write_layout_image};
pub use faasnet_origin::register::{Platform, RegisterError, RegisterRequest, register, resolve_digest};
pub use inspect::{BlobSummary, ImageSummary, InspectRequest, inspect};
