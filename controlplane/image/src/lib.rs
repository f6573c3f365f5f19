//! OCI images as folders: folders become an image, a descriptor becomes a layout again, and what an image is made of is shown.
//!
//! Owned by the command line (build, inspect, pull). How an image becomes a descriptor is `faasnet_origin::register`'s, named here too for
//! those who build what they register.

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
