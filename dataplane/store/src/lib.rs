//! A node's images on disk: files, maps of what is present, recovery after a crash, reuse between images, eviction.
//!
//! The control side opens images (blocking calls); a worker writes a block's bytes through its own ring and then calls
//! [`StoredImage::mark`]. Any thread may look at a [`PresentMap`].

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod data;
mod error;
mod folder;
mod image;
mod map;
mod options;
mod present;
mod release;
mod reuse;
mod store;
#[cfg(test)]
mod tests;

pub use error::StoreError;
pub use image::{StoredImage, Verified};
pub use options::{StoreOptions, WriteMode};
pub use present::PresentMap;
pub use store::{HeldImage, StagedImage, Store};
