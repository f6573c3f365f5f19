//! The image converter: an OCI image becomes a descriptor, a folder becomes an OCI image, a descriptor becomes a layout again.
//!
//! Owned by the controller (registration) and the command line (build, inspect, pull). Keeps no blob: images are streamed.

#![forbid(unsafe_code)]

mod register;

pub use register::{RegisterError, RegisterRequest, register};
